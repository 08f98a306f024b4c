"""Numbers and states as people read them, and links as templates write them."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from gpuslice.units import HOUR_US, format_memory, format_money, to_datetime
from gpuslice.wire import DeviceState, Enforcement, LeaseState, LeaseView, Use

#: What a person reads for a state, in a table.
STATES = {
    LeaseState.GRANTED: "starting",
    LeaseState.RUNNING: "running",
    LeaseState.STOPPING: "stopping",
    LeaseState.SETTLED: "ending",
    LeaseState.ENDED: "ended",
    LeaseState.REVOKING: "being taken back",
    LeaseState.CANCELLED: "never started, not billed",
}
#: The same with what it means for the one who pays.
SENTENCES = {
    LeaseState.GRANTED: "The server is starting. It costs nothing until it runs.",
    LeaseState.RUNNING: "The server runs. Closing its tab does not stop the bill.",
    LeaseState.STOPPING: "The server is being stopped. You do not pay for the stop itself.",
    LeaseState.SETTLED: "The server has ended, and its bill is closed. The slice is being "
    "given back.",
    LeaseState.ENDED: "The server has ended.",
    LeaseState.REVOKING: "The server never ran, so the slice is taken back. It costs nothing.",
    LeaseState.CANCELLED: "The server never ran. It costs nothing.",
}
DEVICE_STATES = {
    DeviceState.OK: "ok",
    DeviceState.DRAINING: "draining: nothing new is put on it",
    DeviceState.SICK: "sick: nothing new is put on it",
    DeviceState.QUARANTINED: "quarantined: nothing new is put on it",
}
_STOPPABLE = (LeaseState.GRANTED, LeaseState.RUNNING)


def stoppable(lease: LeaseView) -> bool:
    return lease.state in _STOPPABLE and lease.stop_requested_us is None


def server_name(lease: LeaseView) -> str:
    return lease.server or "default server"


def moment(us: int | None) -> str:
    """A time to the second; empty for none."""
    return "" if us is None else to_datetime(us).strftime("%Y-%m-%d %H:%M:%S UTC")


def exact_moment(us: int) -> str:
    """A time as the ledger has it."""
    return to_datetime(us).strftime("%Y-%m-%d %H:%M:%S.%f")


def exact_duration(us: int) -> str:
    seconds, rest = divmod(us, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}.{rest:06}"


def money(micro: int, currency: str) -> str:
    """An amount that moves before one's eyes."""
    return format_money(micro, currency, places=4)


def exact_money(micro: int, currency: str) -> str:
    """An amount to the micro-unit, as the ledger has it."""
    return format_money(micro, currency, places=6)


def rate(rate_u_per_hour: int, currency: str) -> str:
    if rate_u_per_hour == 0:
        return "free"
    whole, dot, digits = format_money(rate_u_per_hour, places=6).partition(".")
    return f"{whole}{dot}{digits.rstrip('0').ljust(2, '0')} {currency} per hour"


def gpu_hours(us: int) -> str:
    """GPU time to a hundredth of an hour."""
    return f"{us / HOUR_US:.2f} GPU-hours"


def memory(size: int | None) -> str:
    return "" if size is None else format_memory(size)


def cap_held_by(enforcement: Enforcement) -> str:
    """Whether anything stops a slice from taking more memory than is its own."""
    return "nothing (advisory)" if enforcement is Enforcement.ADVISORY else enforcement.label


def memory_in_use(use: Use | None) -> str:
    """GPU memory in use, or in words that the number is not there."""
    if use is None or use.memory_used_bytes is None:
        return "not available"
    return format_memory(use.memory_used_bytes)


def utilisation(use: Use | None) -> str:
    if use is None or use.utilisation_percent is None:
        return "not available"
    return f"{use.utilisation_percent} %"


def why_no_use(lease: LeaseView) -> str:
    """Why a number of the live use is missing; empty when none is."""
    if lease.device_uuid is None:
        return ""
    if lease.state is not LeaseState.RUNNING:
        return "Live numbers come when the server runs."
    if lease.use is None:
        return "The GPU host has not measured this server yet."
    return lease.use.reason or ""


def query(**parts: object) -> str:
    """``?a=b`` without what is None; empty when nothing is left."""
    left = {name: value for name, value in parts.items() if value is not None}
    return f"?{urlencode(left)}" if left else ""


def walked(asked: Mapping[str, object], following: int | None) -> dict[str, object]:
    """Where a page of a list that is walked by a cursor leads to: the first one, and the next one.

    Args:
        asked: The page's query, without its defaults.
        following: The ``after`` of the next page; None: there is no more.
    """
    begin = {name: value for name, value in asked.items() if name != "after"}
    return {
        "find": asked.get("find"),
        "first": query(**begin) if "after" in asked else None,
        "following": None if following is None else query(**begin, after=following),
    }
