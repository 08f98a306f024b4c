"""*My GPU* and the page of one bill: what they show, as plain values that are ready to print."""

from __future__ import annotations

from dataclasses import dataclass

from gpuslice import wire
from gpuslice.service import text
from gpuslice.service.pages import Page
from gpuslice.service.platform import Platform

#: Why the platform pays a part of a bill.
WRITEOFF = "the platform, because the stop was asked for before"


@dataclass(frozen=True)
class Card:
    """A live lease, with what its script needs to move the numbers."""

    lease: wire.LeaseView
    server: str
    device: str
    #: What holds the memory cap.
    enforcement: str
    state: str
    sentence: str
    stoppable: bool
    started: str
    memory: str
    memory_used: str
    utilisation: str
    why_no_use: str
    rate: str
    cost: str
    as_of: str


@dataclass(frozen=True)
class PastRow:
    """A lease that is over."""

    lease_id: str
    title: str
    simulated: bool
    server: str
    device: str
    started: str
    ended: str
    how: str
    cost: str


@dataclass(frozen=True)
class OfferRow:
    """One slice type."""

    title: str
    slice: str
    device: str
    memory: str
    cap: str
    simulated: bool
    rate: str
    free: str
    unavailable: str
    reserved: str


@dataclass(frozen=True)
class BillRow:
    """One segment of a bill."""

    since: str
    til: str
    duration: str
    rate: str
    payer: str
    by_platform: bool
    amount: str
    entry: str


def home_page(
    me: wire.Me,
    past: list[wire.LeaseView],
    following: str | None,
    offers: list[wire.Offer],
    platform: Platform,
) -> Page:
    """The user's own page."""
    simulated = (
        me.simulated
        or any(lease.simulated for lease in (*me.leases, *past))
        or any(offer.simulated for offer in offers)
    )
    return Page(
        "home.html",
        "My GPU",
        {
            "me": me,
            "live": [card(lease) for lease in me.leases],
            "left": leases_left(me),
            "past": [past_row(lease) for lease in past],
            "following": following,
            "offers": [offer_row(offer) for offer in offers],
            "troubles": platform.troubles,
            "simulated": simulated,
            "now": text.moment(me.now_us),
        },
        script="mygpu.js",
    )


def leases_left(me: wire.Me) -> str:
    """How many more leases the user may have, in a sentence."""
    held, limit = len(me.leases), me.leases_limit
    if limit is None:
        return f"You hold {_slices(held)}. There is no limit to how many you may hold."
    left = max(0, limit - held)
    if limit == 0:
        return "You may hold no slice: your limit is 0. An administrator can change that."
    if left == 0:
        return (
            f"You hold {_slices(held)}, which is all that you may hold at a time ({limit}). "
            "Stop one to start another."
        )
    return f"You hold {_slices(held)} and may hold {left} more (at most {limit} at a time)."


def _slices(count: int) -> str:
    return {0: "no slice", 1: "1 slice"}.get(count, f"{count} slices")


def card(lease: wire.LeaseView) -> Card:
    return Card(
        lease=lease,
        server=text.server_name(lease),
        device=lease.device_model or "no GPU",
        enforcement=text.cap_held_by(lease.enforcement),
        state=text.STATES[lease.state],
        sentence=text.SENTENCES[lease.state],
        stoppable=text.stoppable(lease),
        started=text.moment(lease.started_us),
        memory=text.memory(lease.memory_bytes),
        memory_used=text.memory_in_use(lease.use),
        utilisation=text.utilisation(lease.use),
        why_no_use=text.why_no_use(lease),
        rate=text.rate(lease.rate_u_per_hour, lease.currency),
        cost=text.money(lease.cost_u, lease.currency),
        as_of=text.moment(lease.covered_us),
    )


def past_row(lease: wire.LeaseView) -> PastRow:
    return PastRow(
        lease_id=lease.lease_id,
        title=lease.title,
        simulated=lease.simulated,
        server=text.server_name(lease),
        device=lease.device_model or "no GPU",
        started=text.moment(lease.started_us) or "never",
        ended=text.moment(lease.finished_us),
        how=lease.stop_reason or lease.end_reason or text.STATES[lease.state],
        cost=text.money(lease.cost_u, lease.currency),
    )


def offer_row(offer: wire.Offer) -> OfferRow:
    return OfferRow(
        title=offer.title,
        slice=offer.slice,
        device=offer.device_model or "no GPU",
        memory=text.memory(offer.memory_bytes),
        cap="" if offer.memory_bytes is None else text.cap_held_by(offer.enforcement),
        simulated=offer.simulated,
        rate=text.rate(offer.rate_u_per_hour, offer.currency),
        free=f"{offer.free} of {offer.total}",
        unavailable=offer.unavailable or "",
        reserved=offer.reserved_note or "",
    )


def bill_page(bill: wire.Bill, *, own: bool) -> Page:
    """One lease with its segments, to the micro-unit."""
    lease, currency = bill.lease, bill.lease.currency
    closed = _sum(bill, "user")
    by_platform = _sum(bill, "writeoff")
    # What runs since the last closed segment has no entry yet.
    still_open = lease.cost_u - closed
    return Page(
        "bill.html",
        "Bill",
        {
            "lease": lease,
            "own": own,
            "card": card(lease),
            "ended": text.moment(lease.finished_us),
            "how": lease.stop_reason or lease.end_reason or "",
            "rows": [bill_row(line, currency) for line in bill.lines],
            "closed": text.exact_money(closed, currency),
            "still_open": text.exact_money(still_open, currency) if still_open else "",
            "by_platform": text.exact_money(by_platform, currency) if by_platform else "",
            "total": text.exact_money(lease.cost_u, currency),
        },
    )


def bill_row(line: wire.BillLine, currency: str) -> BillRow:
    return BillRow(
        since=text.exact_moment(line.from_us),
        til=text.exact_moment(line.til_us),
        duration=text.exact_duration(line.til_us - line.from_us),
        rate=text.rate(line.rate_u_per_hour, currency),
        payer="you" if line.payer == "user" else WRITEOFF,
        by_platform=line.payer != "user",
        amount=text.exact_money(line.amount_u, currency),
        entry="none, it is free" if line.entry_id is None else str(line.entry_id),
    )


def _sum(bill: wire.Bill, payer: str) -> int:
    return sum(line.amount_u for line in bill.lines if line.payer == payer)
