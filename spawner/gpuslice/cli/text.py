"""What people read and type on the command line: money, moments, and tables of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from gpuslice.units import UnitError, format_money, from_datetime, parse_money, to_datetime

Row = Mapping[str, Any]


# --- out ----------------------------------------------------------------------------------------


def money(micro: int | None, currency: str = "") -> str:
    """Micro-units in units of the currency, exactly; at least two decimals."""
    if micro is None:
        return ""
    whole, _, rest = format_money(micro, places=6).partition(".")
    return f"{whole}.{rest.rstrip('0').ljust(2, '0')} {currency}".strip()


def moment(us: int | None) -> str:
    """A moment in this machine's time zone, to the second, with its offset."""
    if us is None:
        return ""
    return to_datetime(us).astimezone().isoformat(sep=" ", timespec="seconds")


def plain(value: object) -> str:
    """A value on one line. What a stranger wrote must not steer a terminal."""
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and what a row has in it. ``number``: to the right."""

    title: str
    text: Callable[[Row], str]
    number: bool = False


def of(title: str, field: str) -> Column:
    """A column with a field's text."""
    return Column(title, lambda row: plain(row[field]))


def count_of(title: str, field: str) -> Column:
    """A column with a number."""
    return Column(title, lambda row: plain(row[field]), number=True)


def money_of(title: str, field: str) -> Column:
    """A column with money."""
    return Column(title, lambda row: money(row[field]), number=True)


def moment_of(title: str, field: str) -> Column:
    """A column with a moment."""
    return Column(title, lambda row: moment(row[field]))


def table(rows: Sequence[Row], columns: Sequence[Column]) -> Iterator[str]:
    """Lines of a table; one sentence if there is nothing in it."""
    if not rows:
        yield "None."
        return
    cells = [[column.text(row) for column in columns] for row in rows]
    heads = [column.title for column in columns]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for line in (heads, *cells):
        padded = [
            text.rjust(width) if column.number else text.ljust(width)
            for text, width, column in zip(line, widths, columns, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def show(found: Any, lines: Iterator[str] | Sequence[str], as_json: bool) -> None:
    """Print an answer: as it came for programs, as lines for people."""
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for line in lines:
        click.echo(line)


def more(following: object, option: str = "--before") -> Iterator[str]:
    """The line that says that there is another page, and how to get it."""
    if following is not None:
        yield f"There is more: {option} {following}"


# --- in -----------------------------------------------------------------------------------------


# Only newer versions of click have the type of the value as a parameter.
class MoneyType(click.ParamType):  # type: ignore[type-arg]
    """Units of the currency, as in 2.75, to micro-units."""

    name = "money"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_money(value)
        except UnitError as error:
            self.fail(f"{error}; write for example 2.75", param, ctx)


class MomentType(click.ParamType):  # type: ignore[type-arg]
    """An ISO date or time to UTC microseconds; without a zone it is this machine's time."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        try:
            return max(0, from_datetime(datetime.fromisoformat(value).astimezone()))
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time; write 2026-12-01, 2026-12-01T08:00 or "
                "2026-12-01T08:00+01:00",
                param,
                ctx,
            )


MONEY = MoneyType()
MOMENT = MomentType()
