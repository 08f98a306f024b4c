"""Messages about reservations: what an administrator asks for, and what becomes of it."""

from __future__ import annotations

from datetime import date, time
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gpuslice.quotas.documents import TimeZone
from gpuslice.units import HOUR_US
from gpuslice.wire import Micros, Reason, SliceName, UserName, Wire

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
#: The last year of a reservation: far enough, and dates can be counted from it.
LAST_YEAR = 2200


def _date(text: str) -> str:
    try:
        found = date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no day; write for example 2026-12-01") from None
    if not 2000 <= found.year <= LAST_YEAR:
        raise ValueError(f"{text!r} is not between 2000 and {LAST_YEAR}")
    return found.isoformat()


def _time(text: str) -> str:
    try:
        return time.fromisoformat(text).strftime("%H:%M")
    except ValueError:
        raise ValueError(f"{text!r} is no time of a day; write for example 10:00") from None


Day = Annotated[
    str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), AfterValidator(_date)
]  # fmt: skip
TimeOfDay = Annotated[str, Field(pattern=r"^[0-9]{2}:[0-9]{2}$"), AfterValidator(_time)]


class Terms(Wire):
    """What is reserved and when: local days and times in a time zone.

    A ``til_time`` at or before ``from_time`` is on the next day. ``weekdays``: those between the
    first and the last day; all of them if none is named. ``notice_us``: leases that stand in its
    way are told so long before it begins and end then; null: they go on, and the reservation gets
    what is free.
    """

    slice: SliceName
    count: Annotated[int, Field(ge=1, le=100_000)]
    title: Annotated[str, Field(max_length=255)] = ""
    timezone: TimeZone
    first_day: Day
    last_day: Day
    weekdays: list[Weekday] = Field([], max_length=7)
    from_time: TimeOfDay
    til_time: TimeOfDay
    notice_us: Annotated[int, Field(ge=0, le=7 * 24 * HOUR_US)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Terms:
        if self.last_day < self.first_day:
            raise ValueError("last_day is before first_day")
        return self


class AddReservation(Terms):
    """Reserves slices for a group and all groups below it."""

    group: UserName
    reason: Reason


class ChangeReservation(Terms):
    """Replaces what a reservation says. ``version`` is the one that was read."""

    version: int
    reason: Reason


class CancelReservation(Wire):
    """Cancels a reservation: from now on it holds nothing."""

    version: int
    reason: Reason


class TimeView(Wire):
    """One time at which it holds, half open; ``text`` says the same in its time zone."""

    from_us: Micros
    til_us: Micros
    text: str


class ReservationView(Terms):
    """A reservation with its next times. ``warnings``: what will not work out as asked for."""

    reservation_id: int
    group: str
    version: int
    actor: str
    reason: str
    created_us: Micros
    cancelled_us: Micros | None
    next: list[TimeView]
    warnings: list[str]
