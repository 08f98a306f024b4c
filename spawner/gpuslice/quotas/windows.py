"""When a reservation holds: local days and hours in its time zone as stretches of real time. Pure.

A stretch is what the clock on the wall says, so on a day on which clocks are changed it is longer
or shorter by that hour. A time that there is twice is the first of the two. A time that there is
not is the moment at which the clock was put forward; a stretch of which there is nothing at all
begins then and keeps its length, so a lesson at 02:30 takes place. No two stretches of one
schedule overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from gpuslice.units import SECOND_US, from_datetime, to_datetime

_DAY = timedelta(days=1)
#: Zones are up to 14 hours before UTC and 12 behind; a night belongs to the day it begins on.
_MARGIN = timedelta(days=3)


@dataclass(frozen=True)
class Schedule:
    """On these weekdays (0 Monday … 6 Sunday) from the first to the last day, both included.

    ``til`` at or before ``start`` is on the next day.
    """

    zone: ZoneInfo
    first_day: date
    last_day: date
    weekdays: frozenset[int]
    start: time
    til: time


@dataclass(frozen=True)
class Stretch:
    """One time that it holds: half open, UTC microseconds."""

    start_us: int
    til_us: int


def stretches(schedule: Schedule, from_us: int, til_us: int) -> Iterator[Stretch]:
    """Everything of a schedule that overlaps ``[from_us, til_us)``, in order and uncut."""
    day = max(schedule.first_day, _day(from_us) - _MARGIN)
    last = min(schedule.last_day, _day(til_us) + _MARGIN)
    while day <= last:
        if day.weekday() in schedule.weekdays:
            found = _on(schedule, day)
            if found.start_us < til_us and found.til_us > from_us:
                yield found
        day += _DAY


def current_and_next(schedule: Schedule, now: int, most: int) -> list[Stretch]:
    """The one that holds now, if any, and those that follow: ``most`` in all."""
    end = from_datetime(datetime.combine(schedule.last_day, time(), UTC) + _MARGIN)
    found = []
    for stretch in stretches(schedule, now, max(now, end)):
        found.append(stretch)
        if len(found) == most:
            break
    return found


def _on(schedule: Schedule, day: date) -> Stretch:
    following = day if schedule.til > schedule.start else day + _DAY
    begins = datetime.combine(day, schedule.start)
    ends = datetime.combine(following, schedule.til)
    start_us, til_us = _moment(begins, schedule.zone), _moment(ends, schedule.zone)
    if start_us == til_us:
        til_us += from_datetime(ends.replace(tzinfo=UTC)) - from_datetime(
            begins.replace(tzinfo=UTC)
        )
    return Stretch(start_us, til_us)


def _moment(local: datetime, zone: ZoneInfo) -> int:
    """The first moment at which the clocks of a zone show this time, or a later one."""
    local = local.replace(fold=0)
    first = from_datetime(local.replace(tzinfo=zone))
    if to_datetime(first).astimezone(zone).replace(tzinfo=None) == local:
        return first
    return _put_forward(from_datetime(local.replace(tzinfo=zone, fold=1)), first, zone)


def _put_forward(before_us: int, after_us: int, zone: ZoneInfo) -> int:
    """The second between two moments at which the offset from UTC changes."""
    offset = to_datetime(before_us).astimezone(zone).utcoffset()
    low, high = before_us // SECOND_US, after_us // SECOND_US
    while high - low > 1:
        middle = (low + high) // 2
        if to_datetime(middle * SECOND_US).astimezone(zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return high * SECOND_US


def _day(us: int) -> date:
    return to_datetime(us).date()
