"""``gpuslice queue``: who waits for a slice, in the order in which they are served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gpuslice.cli.options import CONFIG, JSON, REASON, STATE
from gpuslice.cli.text import Column, moment, moment_of, of, show, table


def _expected(row: Mapping[str, Any]) -> str:
    """When its turn comes: at the latest, about, or nobody can know."""
    if row["state"] != "waiting":
        return ""
    if row["start_by_us"] is not None:
        return f"by {moment(row['start_by_us'])}"
    return f"about {moment(row['expected_us'])}" if row["expected_us"] is not None else "unknown"


_COLUMNS = (
    Column("place", lambda row: str(row["position"] or ""), number=True),
    of("request", "request_id"),
    of("user", "user"),
    of("server", "server"),
    of("slice", "slice"),
    of("state", "state"),
    moment_of("since", "created_us"),
    Column("expected", _expected),
    Column("starts by itself", lambda row: "yes" if row["auto_start"] else "no"),
)


@click.group()
def queue() -> None:
    """Who waits for a slice."""


@queue.command("list")
@STATE
@CONFIG
@JSON
def list_command(state: Path, config: Path | None, as_json: bool) -> None:
    """Everybody who waits, in the order in which they are served."""
    from gpuslice.cli.operator import operator

    found = operator(state, config).get("api/admin/queue")
    show(found, table(found, _COLUMNS), as_json)


@queue.command()
@click.argument("request_id", metavar="REQUEST")
@REASON
@STATE
@CONFIG
@JSON
def remove(request_id: str, reason: str, state: Path, config: Path | None, as_json: bool) -> None:
    """Take a request out of the queue, with what is reserved for it."""
    from urllib.parse import quote

    from gpuslice.cli.operator import operator

    path = f"api/admin/queue/{quote(request_id, safe='')}"
    found = operator(state, config).send("DELETE", path, {"reason": reason})
    show(found, table([found], _COLUMNS), as_json)
