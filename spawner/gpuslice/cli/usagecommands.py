"""``gpuslice usage``: what a user or a group has used and holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from gpuslice.cli.options import CONFIG, JSON, STATE
from gpuslice.cli.text import Column, moment_of, money, money_of, plain, show, table
from gpuslice.units import HOUR_US


def _hours(us: int) -> str:
    return f"{us / HOUR_US:.2f}"


_DAYS = (
    moment_of("day from", "from_us"),
    money_of("spent", "spent_u"),
    Column("GPU-hours", lambda row: _hours(row["gpu_us"]), number=True),
)


@click.command()
@click.argument("kind", type=click.Choice(["user", "group"]))
@click.argument("name")
@STATE
@CONFIG
@JSON
def usage(kind: str, name: str, state: Path, config: Path | None, as_json: bool) -> None:
    """What a user or a group has used, by day, and what it holds now."""
    from gpuslice.cli.operator import operator

    found = operator(state, config).get("api/admin/usage", whose=kind, name=name)
    show(found, _lines(kind, found), as_json)


def _lines(kind: str, found: dict[str, Any]) -> Iterator[str]:
    currency = found["currency"]
    yield (
        f"{kind} {plain(found['name'])}: spent {money(found['spent_u'], currency)} and "
        f"{_hours(found['gpu_us'])} GPU-hours in all"
    )
    slices = "slice" if found["active"] == 1 else "slices"
    yield (
        f"  {found['active']} {slices} now, {money(found['held_u'], currency)} reserved; "
        f"credit left {money(found['credit_u'], currency)}"
    )
    yield from table([day for day in found["days"] if day["spent_u"] or day["gpu_us"]], _DAYS)
