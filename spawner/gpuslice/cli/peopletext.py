"""Accounts and what becomes of a list of people, as lines for people and bodies for REST."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpuslice.cli.peoplecsv import Person
from gpuslice.quotas.policytext import limit_texts
from gpuslice.units import HOUR_US, format_money, to_datetime

#: The service reads bodies of 64 KiB; the rest is room for what stands around the rows.
_MAX_BYTES = 40_000
_MAX_ROWS = 200


def account_line(account: Mapping[str, Any]) -> str:
    """An account in one line."""
    said = [f"{account['account_id']:>6}", f"{account['kind']:8}", account["name"]]
    if account["parent"]:
        said.append(f"below {account['parent']}")
    if account["missing_since_us"] is not None:
        said.append(f"(the hub lacks it since {_day(account['missing_since_us'])})")
    if account["closed_us"] is not None:
        said.append(f"(closed {_day(account['closed_us'])})")
    return " ".join(said)


def account_lines(account: Mapping[str, Any], currency: str) -> Iterator[str]:
    """Everything that is known of an account."""
    yield account_line(account).strip()
    for name in account["names"]:
        til = _day(name["til_us"]) if name["til_us"] is not None else "now"
        yield f"  called {name['name']} from {_day(name['from_us'])} to {til}"
    yield (
        f"  has used {format_money(account['spent_u'], currency)}, "
        f"{account['gpu_us'] / HOUR_US:.2f} GPU-hours; credit left "
        f"{format_money(account['credit_u'], currency)}"
    )
    live = account["live_leases"]
    yield (
        f"  {live} live lease{'' if live == 1 else 's'}, {account['waiting']} waiting, "
        f"{format_money(account['held_u'], currency)} held"
    )


def _day(us: int) -> str:
    return to_datetime(us).strftime("%Y-%m-%d %H:%M UTC")


def parts(people: Sequence[Person]) -> Iterator[list[dict[str, Any]]]:
    """The rows of a list as they are sent: as many at a time as one request may carry."""
    part: list[dict[str, Any]] = []
    size = 0
    for person in people:
        row = person.row.model_dump(mode="json", exclude_unset=True)
        length = len(json.dumps(row))
        if part and (size + length > _MAX_BYTES or len(part) == _MAX_ROWS):
            yield part
            part, size = [], 0
        part.append(row)
        size += length
    if part:
        yield part


def change_lines(
    changes: Sequence[Mapping[str, Any]], credit_name: str | None, currency: str
) -> Iterator[str]:
    """What is new for each user of a list; who stays as they are is not named."""
    for change in changes:
        name = change["user"]
        match change["policy"]:
            case "created":
                yield f"+ {name}: {_limits(change['after'])}"
            case "changed":
                yield f"~ {name}: {_limits(change['after'])} (was {_limits(change['before'])})"
            case "removed":
                yield f"- {name}: no limits of their own (was {_limits(change['before'])})"
        if change["credit"] == "given":
            yield f"+ {name}: credit {format_money(change['credit_u'], currency)} ({credit_name})"


def lack_lines(changes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the hub has not, as far as the service may see."""
    if any(change["in_hub"] is None for change in changes):
        yield "the hub did not say whom it has"
        return
    for change in changes:
        groups = ", ".join(change["not_in_groups"])
        if not change["in_hub"]:
            yield f"the hub has no user {change['user']}" + (f" (for {groups})" if groups else "")
        elif groups:
            yield f"the hub does not have {change['user']} in {groups}"


def summary(changes: Sequence[Mapping[str, Any]]) -> str:
    """How many of what."""
    counted = Counter(change["policy"] for change in changes)
    same = counted["unchanged"] + counted["none"]
    credits = sum(change["credit"] == "given" for change in changes)
    return (
        f"{len(changes)} users: limits of {counted['created']} created, {counted['changed']} "
        f"changed, {counted['removed']} removed, {same} unchanged; credit for {credits}."
    )


def _limits(document: Mapping[str, Any]) -> str:
    return ", ".join(limit_texts(document.get("each") or {})) or "none"
