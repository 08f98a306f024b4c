"""What a policy says: limits as an administrator writes them, parsed and checked in one place.

A limit that is not said is inherited; `UNLIMITED` lifts one that would be. GPU-hours count the
share: a quarter of a GPU for an hour is a quarter of a GPU-hour (a CPU slice counts nothing).
"""

from __future__ import annotations

from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from gpuslice.quotas.periods import Period, PeriodError, parse_period
from gpuslice.units import HOUR_US, MAX_MONEY_U, UnitError, format_money, parse_money
from gpuslice.wire import SliceName, Wire

UNLIMITED = "unlimited"
Unlimited = Literal["unlimited"]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
#: At most a century of GPU-hours of a large cluster, so that sums stay inside 64 bits.
MAX_HOURS = 10_000_000


def _zone(name: str) -> str:
    if name != "UTC":
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            raise ValueError(
                f"{name[:64]!r} is no time zone; write one such as Europe/Berlin"
            ) from None
    return name


def zone_of(name: str) -> ZoneInfo:
    """The time zone; ``UTC`` works without tzdata on the machine."""
    return ZoneInfo("UTC") if name == "UTC" else ZoneInfo(name)


TimeZone = Annotated[str, Field(max_length=64), AfterValidator(_zone)]


def _money(value: object) -> object:
    if isinstance(value, str | int | float) and value != UNLIMITED:
        try:
            return parse_money(value)
        except UnitError as error:
            raise ValueError(str(error)) from None
    return value


def _hours(value: object) -> object:
    """Hours as people write them (``20``, ``0.5``) to microseconds."""
    if isinstance(value, str | int | float) and value != UNLIMITED:
        try:
            amount = parse_money(value)  # a decimal with at most six places, and no float's error
        except UnitError as error:
            raise ValueError(
                str(error).replace("an amount of money", "a number of hours")
            ) from None
        return amount * HOUR_US // 1_000_000
    return value


def _period(value: object) -> object:
    if isinstance(value, str):
        try:
            return parse_period(value)
        except PeriodError as error:
            raise ValueError(str(error)) from None
    return value


def _as_money(value: int | str) -> str:
    return (
        value if isinstance(value, str) else format_money(value, places=6).rstrip("0").rstrip(".")
    )


def _as_hours(value: int | str) -> str:
    return value if isinstance(value, str) else _as_money(value * 1_000_000 // HOUR_US)


MoneyText = Annotated[
    Annotated[int, Field(ge=0, le=MAX_MONEY_U)] | Unlimited,
    BeforeValidator(_money),
    PlainSerializer(_as_money, return_type=str),
]
HoursText = Annotated[
    Annotated[int, Field(ge=0, le=MAX_HOURS * HOUR_US)] | Unlimited,
    BeforeValidator(_hours),
    PlainSerializer(_as_hours, return_type=str),
]
PeriodText = Annotated[Period, BeforeValidator(_period), PlainSerializer(str, return_type=str)]


class MoneyLimit(Wire):
    """So much money a period; ``at_most`` in units of the currency (``"50"``)."""

    at_most: MoneyText
    per: PeriodText


class HoursLimit(Wire):
    """So many GPU-hours a period."""

    at_most: HoursText
    per: PeriodText


class Limits(Wire):
    """Limits of one account. What is not said (null) is inherited."""

    #: Slices at the same time, of all types together and of single types.
    slices: Count | Unlimited | None = None
    slices_by_type: dict[SliceName, Count | Unlimited] = Field({}, max_length=200)
    gpu_hours: list[HoursLimit] = Field([], max_length=5)
    money: list[MoneyLimit] = Field([], max_length=5)
    #: Nothing is granted, and nothing runs on, beyond the credit that was granted.
    prepaid: bool | None = None

    @model_validator(mode="after")
    def _one_each(self) -> Limits:
        for name, found in (("gpu_hours", self.gpu_hours), ("money", self.money)):
            periods = [str(limit.per) for limit in found]
            twice = sorted({period for period in periods if periods.count(period) > 1})
            if twice:
                raise ValueError(f"{name}: there are two limits per {twice[0]}")
        return self


class EachLimits(Limits):
    """Limits of one user, with what only makes sense for one."""

    #: Only these slice types; an empty list means none.
    slice_types: list[SliceName] | Unlimited | None = Field(None)
    #: The longest session, hours.
    session_hours: HoursText | None = None
    #: A higher one is served first by the queue; 0 without any.
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    #: ``rolling`` reserves the next minutes; ``safe`` all of the declared time, and never stops
    #: for budget.
    hold: Literal["rolling", "safe"] | None = None
    #: What a lowered limit does to what runs: stop after a grace, or count at the next start.
    when_lowered: Literal["grace", "next-start"] | None = None


class PolicyDocument(Wire):
    """All that one policy says: ``each`` for a user (or each of everybody, or each member of a
    group), ``total`` for a group as a whole."""

    each: EachLimits = EachLimits()
    total: Limits | None = None
    timezone: TimeZone | None = None
    #: Which price list a group's leases are paid by.
    price_list: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] | None = None


__all__ = [
    "UNLIMITED",
    "EachLimits",
    "HoursLimit",
    "Limits",
    "MoneyLimit",
    "PolicyDocument",
    "TimeZone",
    "zone_of",
]
