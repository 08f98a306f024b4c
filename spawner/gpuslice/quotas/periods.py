"""The periods in which a limit counts: a calendar's, in a time zone, or the last so many hours.

A reset is a query, never a job: what counts is what lies in the window that holds now. A day of
23 or 25 hours is that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from gpuslice.units import HOUR_US, from_datetime, to_datetime

Calendar = Literal["day", "week", "month", "year", "life"]
_CALENDAR: dict[str, Calendar] = {
    "day": "day", "week": "week", "month": "month", "year": "year", "life": "life"
}  # fmt: skip
#: The longest rolling window: beyond it `life` is meant.
MAX_ROLLING_H = 24 * 366


class PeriodError(ValueError):
    """Text that names no period."""


@dataclass(frozen=True)
class Window:
    """The stretch of time that counts now, half open, UTC microseconds; no end: it never resets.

    A rolling window resets bit by bit, so its end says when the oldest use leaves it at the
    latest: one whole window from now.
    """

    start_us: int
    end_us: int | None


@dataclass(frozen=True)
class Period:
    """A calendar period, or ``rolling`` with its length in hours."""

    kind: Calendar | Literal["rolling"]
    hours: int = 0

    def __str__(self) -> str:
        if self.kind != "rolling":
            return self.kind
        days, rest = divmod(self.hours, 24)
        return f"{self.hours}h" if rest else f"{days}d"

    @property
    def words(self) -> str:
        """For a sentence: ``a week``, ``in any 7 days``, ``in all``."""
        if self.kind == "life":
            return "in all"
        if self.kind != "rolling":
            return f"a {self.kind}"
        days, rest = divmod(self.hours, 24)
        count, unit = (self.hours, "hour") if rest else (days, "day")
        return f"in any {count} {unit}{'' if count == 1 else 's'}"


def parse_period(text: str) -> Period:
    """``day``, ``week`` (from Monday), ``month``, ``year``, ``life``, or rolling: ``7d``, ``36h``.

    Raises:
        PeriodError: with what may be written.
    """
    said = text.strip().lower()
    if said in _CALENDAR:
        return Period(_CALENDAR[said])
    match = re.fullmatch(r"([1-9][0-9]{0,4})([dh])", said)
    if match is None:
        raise PeriodError(
            f"{text[:40]!r} is no period; write day, week, month, year, life, or a rolling one "
            "such as 7d or 36h"
        )
    hours = int(match[1]) * (24 if match[2] == "d" else 1)
    if hours > MAX_ROLLING_H:
        raise PeriodError(f"{text!r} is longer than a year; write life, or at most 366d")
    return Period("rolling", hours)


def window(period: Period, zone: ZoneInfo, now: int) -> Window:
    """The window of ``period`` that holds at ``now``."""
    if period.kind == "life":
        return Window(0, None)
    if period.kind == "rolling":
        return Window(now - period.hours * HOUR_US, now + period.hours * HOUR_US)
    today = to_datetime(now).astimezone(zone).date()
    first, following = _calendar(period.kind, today)
    start, end = _midnight(first, zone), _midnight(following, zone)
    # Where a midnight does not exist (a change of offset at that hour) the day begins later, so
    # ``now`` may still belong to the day before.
    if now < start:
        first, following = _calendar(period.kind, first - timedelta(days=1))
        start, end = _midnight(first, zone), _midnight(following, zone)
    return Window(start, end)


def _calendar(kind: str, day: date) -> tuple[date, date]:
    """The first day of the period that holds ``day``, and of the next one."""
    if kind == "day":
        return day, day + timedelta(days=1)
    if kind == "week":
        first = day - timedelta(days=day.weekday())
        return first, first + timedelta(days=7)
    if kind == "month":
        first = day.replace(day=1)
        return first, (first + timedelta(days=32)).replace(day=1)
    first = day.replace(month=1, day=1)
    return first, first.replace(year=first.year + 1)


def _midnight(day: date, zone: ZoneInfo) -> int:
    return from_datetime(datetime(day.year, day.month, day.day, tzinfo=zone))
