"""``gpuslice user import``: a list is read whole, shown as what it changes, and then done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuslice.cli.hubpeople import HubPeople, Lacking
from gpuslice.cli.operator import Operator
from gpuslice.cli.peoplecsv import BadList, Person, read_people
from gpuslice.cli.peopletext import change_lines, lack_lines, parts, summary
from gpuslice.cli.trouble import Trouble
from gpuslice.settings import load_settings

#: So many mistakes of a list are printed.
_MOST_PROBLEMS = 50


@dataclass(frozen=True)
class Wishes:
    """A list and what to do with it, as the command was given it."""

    name: str
    raw: bytes
    dry_run: bool
    reason: str | None
    credit_name: str | None
    hub_token_file: Path | None
    hub_api: str | None
    keep_case: bool
    config: Path | None


def run(service: Operator, wishes: Wishes, say: Callable[[str], None]) -> None:
    """Compare, say what changes, and do it; nothing is done unless all of it can be.

    Raises:
        Trouble: the list is wrong (each mistake has been said), or something refused it.
    """
    people = _read(wishes, say)
    changes = _send(service, wishes, people, dry_run=True)
    differ = [change["user"] for change in changes if change["credit"] == "differs"]
    if differ:
        raise Trouble(
            f"Nothing was done: as {wishes.credit_name} another amount was given before to "
            f"{', '.join(differ[:10])}; give this credit another --credit-name."
        )
    settings = load_settings(wishes.config)
    hub, lacking = None, Lacking((), (), {})
    if wishes.hub_token_file is not None:
        hub = HubPeople(wishes.hub_api or settings.hub.api_url, wishes.hub_token_file)
        lacking = hub.lacking(people)
    for line in change_lines(changes, wishes.credit_name, settings.currency):
        say(line)
    for line in lacking.lines() if hub is not None else lack_lines(changes):
        say(line)
    say(summary(changes))
    if wishes.dry_run:
        say("Nothing was done: it was a dry run.")
        return
    if hub is not None and lacking:
        # First: a hub that refuses stops it before any limit is set.
        hub.add(lacking)
    _send(service, wishes, people, dry_run=False)


def _read(wishes: Wishes, say: Callable[[str], None]) -> list[Person]:
    try:
        people = read_people(wishes.raw, keep_case=wishes.keep_case)
    except BadList as bad:
        for problem in bad.problems[:_MOST_PROBLEMS]:
            say(f"{wishes.name}: {problem}")
        many = len(bad.problems)
        raise Trouble(
            f"Nothing was done: {wishes.name} has {many} mistake{'s' if many > 1 else ''}."
        ) from None
    if wishes.credit_name is None and any(person.row.credit_u for person in people):
        raise Trouble(
            "A credit column needs --credit-name, such as winter-2026: whoever was given credit "
            "under that name is not given it again."
        )
    return people


def _send(
    service: Operator, wishes: Wishes, people: Sequence[Person], *, dry_run: bool
) -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = []
    for rows in parts(people):
        body = {
            "rows": rows, "credit_name": wishes.credit_name, "dry_run": dry_run,
            "reason": (wishes.reason or f"import of {wishes.name}")[:500],
        }  # fmt: skip
        changes += service.send("POST", "api/admin/import", body)["changes"]
    return changes
