"""The user page: what it shows, as plain values that are ready to print, and its rendering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gpuslice.units import format_memory, format_money, to_datetime
from gpuslice.wire import LeaseState, LeaseView, Me, Offer

_HERE = Path(__file__).parent
STATIC_PATH = _HERE / "static"

#: What a person reads for a state.
STATES = {
    LeaseState.GRANTED: "starting",
    LeaseState.RUNNING: "running",
    LeaseState.STOPPING: "stopping",
    LeaseState.SETTLED: "ending",
    LeaseState.ENDED: "ended",
    LeaseState.REVOKING: "being taken back",
    LeaseState.CANCELLED: "never started, not billed",
}
_STOPPABLE = (LeaseState.GRANTED, LeaseState.RUNNING)


@dataclass(frozen=True)
class Page:
    """An HTML answer: a template and what it shows."""

    template: str
    context: Mapping[str, object]


@dataclass(frozen=True)
class Redirect:
    """Go on at this path below the prefix (303, so with GET)."""

    path: str


@dataclass(frozen=True)
class LeaseRow:
    """One lease as text."""

    lease_id: str
    title: str
    server: str
    device: str
    cap: str
    simulated: bool
    state: str
    state_class: str
    stoppable: bool
    stop_reason: str
    started: str
    ended: str
    as_of: str
    rate: str
    cost: str


@dataclass(frozen=True)
class OfferRow:
    """One slice type as text."""

    title: str
    slice: str
    device: str
    memory: str
    cap: str
    simulated: bool
    rate: str
    free: str
    unavailable: str


class Pages:
    """Templates with escaping always on, and a name missing in a template an error."""

    def __init__(self, common: Mapping[str, object]) -> None:
        # select_autoescape() would decide by file name; this cannot be got wrong.
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(common)

    def render(self, page: Page, **extra: object) -> str:
        return self._environment.get_template(page.template).render({**page.context, **extra})


def home_page(me: Me, past: list[LeaseView], following: str | None, offers: list[Offer]) -> Page:
    """The user's own page."""
    simulated = (
        me.simulated
        or any(lease.simulated for lease in (*me.leases, *past))
        or any(offer.simulated for offer in offers)
    )
    return Page(
        "home.html",
        {
            "user": me.user,
            "live": [lease_row(lease) for lease in me.leases],
            "past": [lease_row(lease) for lease in past],
            "following": following,
            "offers": [offer_row(offer) for offer in offers],
            "simulated": simulated,
            "now": _time(me.now_us),
        },
    )


def error_page(status: int, message: str) -> Page:
    """Something went wrong, in the words of a refusal."""
    return Page("error.html", {"status": status, "message": message})


def lease_row(lease: LeaseView) -> LeaseRow:
    return LeaseRow(
        lease_id=lease.lease_id,
        title=lease.title,
        server=lease.server or "default server",
        device=lease.device_model or "no GPU",
        cap=_cap(lease.memory_bytes, lease.enforcement.label),
        simulated=lease.simulated,
        state=STATES[lease.state],
        state_class=lease.state.value,
        stoppable=lease.state in _STOPPABLE and lease.stop_requested_us is None,
        stop_reason=lease.stop_reason or lease.end_reason or "",
        started=_time(lease.started_us),
        ended=_time(lease.finished_us),
        as_of=_time(lease.covered_us),
        rate=_rate(lease.rate_u_per_hour, lease.currency),
        cost=format_money(lease.cost_u, lease.currency, places=4),
    )


def offer_row(offer: Offer) -> OfferRow:
    return OfferRow(
        title=offer.title,
        slice=offer.slice,
        device=offer.device_model or "no GPU",
        memory="" if offer.memory_bytes is None else format_memory(offer.memory_bytes),
        cap="" if offer.memory_bytes is None else offer.enforcement.label,
        simulated=offer.simulated,
        rate=_rate(offer.rate_u_per_hour, offer.currency),
        free=f"{offer.free} of {offer.total}",
        unavailable=offer.unavailable or "",
    )


def _cap(memory_bytes: int | None, enforcement: str) -> str:
    return "" if memory_bytes is None else f"{format_memory(memory_bytes)} ({enforcement})"


def _rate(rate_u_per_hour: int, currency: str) -> str:
    return "free" if rate_u_per_hour == 0 else f"{format_money(rate_u_per_hour, currency)} per hour"


def _time(us: int | None) -> str:
    return "" if us is None else to_datetime(us).strftime("%Y-%m-%d %H:%M:%S UTC")
