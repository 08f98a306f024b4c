"""Where a lease's time is cut into segments and what each costs: pure arithmetic, no database."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from gpuslice.ledger.prices import Rate, anchor_us, changes, rate_at
from gpuslice.units import HOUR_US, cost_u, from_datetime, to_datetime


@dataclass(frozen=True)
class Piece:
    """A part of a lease's time, half open, at one price: ready to become a segment.

    ``payer``: ``user``; ``writeoff``, the platform; ``idle``, nobody's time, the platform's too.
    """

    from_us: int
    til_us: int
    price_id: int
    payer: str
    amount_u: int


@dataclass(frozen=True)
class Payers:
    """Who pays which part of a lease's time.

    ``idle_til_us``: until then nobody had asked for it (a server the queue started and its user
    had not opened). ``absorbed_from_us``: from then on the platform pays (the user had asked to
    stop, or nobody was there to stop it at its limit).
    """

    absorbed_from_us: int | None = None
    idle_til_us: int | None = None

    @property
    def marks(self) -> list[int]:
        return [mark for mark in (self.absorbed_from_us, self.idle_til_us) if mark is not None]

    def of(self, moment: int) -> str:
        if self.idle_til_us is not None and moment < self.idle_til_us:
            return "idle"
        if self.absorbed_from_us is not None and moment >= self.absorbed_from_us:
            return "writeoff"
        return "user"


def hours(from_us: int, til_us: int) -> Iterator[int]:
    """The full UTC hours strictly between two moments."""
    mark = (from_us // HOUR_US + 1) * HOUR_US
    while mark < til_us:
        yield mark
        mark += HOUR_US


def days(from_us: int, til_us: int, timezone: str) -> Iterator[int]:
    """The local midnights strictly between two moments.

    Every period boundary and every daylight-saving change lies on a local day, and where the
    offset is no full hour the midnights are not among `hours`. A day of 23 or 25 hours is that.
    """
    zone = ZoneInfo(timezone)
    day = to_datetime(from_us).astimezone(zone).date()
    while True:
        day += timedelta(days=1)
        mark = from_datetime(datetime(day.year, day.month, day.day, tzinfo=zone))
        if mark >= til_us:
            return
        if mark > from_us:
            yield mark


def cut(from_us: int, til_us: int, marks: Iterable[int]) -> list[tuple[int, int]]:
    """``[from_us, til_us)`` cut at the marks inside it; tiles it without gap or overlap."""
    inner = sorted({mark for mark in marks if from_us < mark < til_us})
    edges = [from_us, *inner, til_us]
    return [(a, b) for a, b in pairwise(edges) if a < b]


def pieces(
    *,
    started_us: int,
    billed_us: int,
    til_us: int,
    final: bool,
    payers: Payers,
    known: list[Rate],
    timezones: Collection[str],
) -> list[Piece]:
    """The segments to write for a lease that is paid up to ``billed_us``.

    Cuts at full hours, local midnights, price changes and where another one begins to pay.
    Unless ``final``, the last, still open piece is left for later.

    Each amount is the difference of two cumulative costs since the price began to hold for this
    lease, so the amounts of a lease sum to the same whatever the cuts were.
    """
    marks = [*hours(billed_us, til_us), *changes(known), *payers.marks]
    for timezone in timezones:
        marks += days(billed_us, til_us, timezone)
    found = []
    for a, b in cut(billed_us, til_us, marks):
        rate = rate_at(known, a)
        anchor = anchor_us(known, rate, started_us)
        amount = cost_u(rate.rate_u_per_hour, b - anchor) - cost_u(rate.rate_u_per_hour, a - anchor)
        found.append(Piece(a, b, rate.price_id, payers.of(a), amount))
    if not final and found:
        found.pop()
    return found


def total(found: Iterable[Piece], payer: str) -> int:
    """What ``payer`` owes for these pieces, micro-units."""
    return sum(piece.amount_u for piece in found if piece.payer == payer)
