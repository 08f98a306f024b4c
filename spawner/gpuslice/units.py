"""Money, memory and time as integers, and the only places where text becomes one of them.

Money is an integer of micro-units (10^-6) of the platform's one currency, a rate is micro-units
per slice-hour, memory is bytes, time is UTC microseconds since the epoch. Decimal and datetime
exist only in this module and where a value is printed.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

MICRO = 1_000_000
SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 3_600 * SECOND_US
GIB = 1 << 30
MIB = 1 << 20

#: Nothing in the ledger may exceed this many micro-units, so that sums stay inside 64 bits.
MAX_MONEY_U = 10**15
#: Largest memory accepted from text: 1 PiB. A bound, so that a typing error is found here.
MAX_MEMORY = 1 << 50

_MEMORY_UNITS = {
    "": 1, "b": 1,
    "k": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mib": 1 << 20, "g": 1 << 30, "gib": 1 << 30,
    "t": 1 << 40, "tib": 1 << 40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip


#: The last moment that a calendar knows in every time zone: two days before the year 10000.
MAX_TIME_US = (253_402_300_800 - 2 * 86_400) * SECOND_US


class UnitError(ValueError):
    """Text that is no money, memory or time; the message says what was wrong with it."""


def parse_money(value: str | int | float | Decimal) -> int:
    """Money in units of the currency (``"2.75"``) to micro-units.

    Raises:
        UnitError: not a number, negative, not finite, finer than a micro-unit, or too large.
    """
    if isinstance(value, bool):
        raise UnitError(f"{value!r} is not an amount of money")
    try:
        # str() first: Decimal(0.1) would carry the float's error into the ledger.
        amount = Decimal(str(value).strip())
    except InvalidOperation:
        raise UnitError(f"{value!r} is not an amount of money") from None
    if not amount.is_finite():
        raise UnitError(f"{value!r} is not a finite amount of money")
    if amount < 0:
        raise UnitError(f"{value!r} is negative")
    if amount > MAX_MONEY_U // MICRO:  # before it is multiplied: 1e999999 would overflow
        raise UnitError(f"{value!r} is larger than {MAX_MONEY_U // MICRO}")
    micro = amount * MICRO
    if micro != micro.to_integral_value():
        raise UnitError(f"{value!r} is finer than a millionth")
    return int(micro)


def format_money(micro: int, currency: str = "", *, places: int = 2) -> str:
    """Micro-units as text for people, rounded half even to ``places`` decimals."""
    text = f"{(Decimal(micro) / MICRO):.{places}f}"
    return f"{text} {currency}".strip()


def format_wait(us: int) -> str:
    """A time to wait as text for people, rounded up to whole minutes or hours."""
    minutes = max(1, -(-us // MINUTE_US))
    if minutes < 120:
        return f"{minutes} minute{'' if minutes == 1 else 's'}"
    return f"{-(-minutes // 60)} hours"


def parse_memory(value: str | int) -> int:
    """Memory such as ``"10 GiB"``, ``"512M"`` (binary) or ``"80GB"`` (decimal) to bytes.

    Raises:
        UnitError: not a size, not positive, or beyond :data:`MAX_MEMORY`.
    """
    if isinstance(value, bool):
        raise UnitError(f"{value!r} is not a size of memory")
    if isinstance(value, int):
        size = value
    else:
        match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*([A-Za-z]{0,3})\s*", value)
        unit = _MEMORY_UNITS.get(match.group(2).lower()) if match else None
        if match is None or unit is None:
            raise UnitError(f"{value!r} is not a size of memory; write for example '10 GiB'")
        size = int(Decimal(match.group(1)) * unit)
    if size <= 0:
        raise UnitError(f"{value!r} is not a positive size")
    if size > MAX_MEMORY:
        raise UnitError(f"{value!r} is larger than {format_memory(MAX_MEMORY)}")
    return size


def format_memory(size: int) -> str:
    """Bytes for people, in binary units: ``9.6 GiB``."""
    for unit, step in (("TiB", 1 << 40), ("GiB", GIB), ("MiB", MIB), ("KiB", 1 << 10)):
        if size >= step:
            text = f"{size / step:.1f}".removesuffix(".0")
            return f"{text} {unit}"
    return f"{size} B"


def cost_u(rate_u_per_hour: int, duration_us: int) -> int:
    """What ``duration_us`` since the start of a price segment costs, in micro-units, rounded down.

    Book ``cost_u(new) - cost_u(old)``: the differences telescope, so the sum does not depend on
    how many of them there were (cumulative rounding).
    """
    return rate_u_per_hour * duration_us // HOUR_US


def now_us() -> int:
    """The wall clock, UTC microseconds. Decides when to act; a bill's times are the engine's."""
    return time.time_ns() // 1_000


def boottime_us() -> int:
    """Microseconds since this machine booted, suspend included; never steps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000


def boot_id() -> str:
    """Which boot of this machine it is: another value means that every process is gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def to_datetime(us: int) -> datetime:
    """UTC microseconds to an aware datetime, exactly."""
    seconds, rest = divmod(us, SECOND_US)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def from_datetime(moment: datetime) -> int:
    """An aware datetime to UTC microseconds, exactly. Raises UnitError for a naive one."""
    if moment.tzinfo is None:
        raise UnitError(f"{moment!r} has no time zone")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * SECOND_US + delta.microseconds
