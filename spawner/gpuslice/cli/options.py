"""Options that many commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

STATE = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".run"),
    show_default=True,
    help="The platform's data folder.",
)
CONFIG = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="gpuslice.toml; without it the defaults.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
YES = click.option("--yes", is_flag=True, help="Do not ask.")
REASON = click.option("--reason", required=True, help="Why, for the audit.")


def account_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--user`` and ``--group``; see `whose`."""
    for option in (
        click.option("--group", help="Only this group's."),
        click.option("--user", help="Only this user's."),
    ):
        command = option(command)
    return command


def whose(user: str | None, group: str | None) -> dict[str, str | None]:
    """Whom the options name, as REST asks for it.

    Raises:
        UsageError: both.
    """
    if user is not None and group is not None:
        raise click.UsageError("Give --user or --group, not both.")
    if group is not None:
        return {"whose": "group", "name": group}
    return {"whose": None if user is None else "user", "name": user}


def page_options(most: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--limit`` and ``--before`` of a list that comes in pages."""

    def with_them(command: Callable[..., Any]) -> Callable[..., Any]:
        before = click.option("--before", help="Where the page before said that there is more.")
        limit = click.option(
            "--limit", type=click.IntRange(1, most), default=50, show_default=True,
            help="Rows on a page.",
        )  # fmt: skip
        return limit(before(command))

    return with_them
