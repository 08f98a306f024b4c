"""*My GPU* and the page of one bill: what they show, as plain values that are ready to print."""

from __future__ import annotations

from dataclasses import dataclass

from gpuslice import wire
from gpuslice.broker.moneyviews import EntryView, Usage
from gpuslice.hubnames import may_be_user
from gpuslice.service import queuepages, text
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
    #: When a limit stops it, and which; empty: none does as things are.
    ends: str
    #: Reserved by the queue and not started.
    reserved: bool


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
    #: How many wait for one; empty: nobody.
    waiting: str


@dataclass(frozen=True)
class Used:
    """What a user has used and has left, in words."""

    #: What is left of each limit, a sentence each.
    limits: list[str]
    #: (of when, money, GPU-hours)
    rows: list[tuple[str, str, str]]
    credit: str


@dataclass(frozen=True)
class EntryRow:
    """One row of the ledger."""

    entry_id: int
    when: str
    what: str
    slice: str
    lease_id: str
    amount: str
    by: str


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


@dataclass(frozen=True)
class Own:
    """All that a user's own page shows."""

    me: wire.Me
    past: list[wire.LeaseView]
    following: str | None
    choices: wire.Choices
    requests: list[wire.RequestView]
    usage: Usage


def home_page(own: Own, platform: Platform) -> Page:
    """The user's own page."""
    me, offers = own.me, own.choices.offers
    simulated = (
        me.simulated
        or any(lease.simulated for lease in (*me.leases, *own.past))
        or any(offer.simulated for offer in offers)
    )
    reserved = queuepages.reserved_leases(own.requests)
    waiting = {one.slice: one.waiting for one in own.choices.terms}
    return Page(
        "home.html",
        "My GPU",
        {
            "me": me,
            "live": [card(lease, reserved.get(lease.lease_id)) for lease in me.leases],
            "left": leases_left(me),
            "requests": queuepages.cards(own.requests, offers, own.choices.terms, me.now_us),
            "used": used(own.choices, own.usage),
            "past": [past_row(lease) for lease in own.past],
            "following": own.following,
            "offers": [offer_row(offer, waiting.get(offer.slice, 0)) for offer in offers],
            "troubles": platform.troubles,
            "simulated": simulated,
            "now": text.moment(me.now_us),
        },
        script="mygpu.js",
    )


def used(choices: wire.Choices, usage: Usage) -> Used:
    """What was used today, lately and ever, and what limits and credit leave."""
    today, lately = usage.days[-1:], usage.days

    def row(when: str, spent_u: int, gpu_us: int) -> tuple[str, str, str]:
        return when, text.money(spent_u, usage.currency), text.gpu_hours(gpu_us)

    return Used(
        limits=choices.limits,
        rows=[
            row("Today", sum(d.spent_u for d in today), sum(d.gpu_us for d in today)),
            row(f"The last {len(lately)} days", sum(d.spent_u for d in lately),
                sum(d.gpu_us for d in lately)),
            row("Ever", usage.spent_u, usage.gpu_us),
        ],
        credit=text.money(usage.credit_u, usage.currency) if usage.credit_u else "",
    )  # fmt: skip


def entries_page(entries: list[EntryView], following: int | None, user: str, currency: str) -> Page:
    """A user's own rows of the ledger, newest first."""
    return Page(
        "entries.html",
        "My entries",
        {
            "rows": [entry_row(entry, user, currency) for entry in entries],
            "following": following,
        },
    )


#: What a person reads for a kind of entry.
_ENTRIES = {
    "usage": "paid for a slice",
    "writeoff": "paid by the platform",
    "refund": "given back",
    "surcharge": "charged in addition",
    "credit": "credit was given",
    "expiry": "credit ran out",
}


def entry_row(entry: EntryView, user: str, currency: str) -> EntryRow:
    mine = f"user:{user}"
    # Out of the own account is minus, into it plus.
    sign = "−" if entry.debit == mine else "+" if entry.credit == mine else ""
    return EntryRow(
        entry_id=entry.entry_id,
        when=text.moment(entry.at_us),
        what=entry.memo or _ENTRIES.get(entry.kind, entry.kind),
        slice=entry.slice or "",
        lease_id=entry.lease_id or "",
        amount=f"{sign}{text.exact_money(entry.amount_u, currency)}",
        by=entry.actor,
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


def card(lease: wire.LeaseView, reserved_til: int | None = None) -> Card:
    """A live lease; ``reserved_til``: the queue holds it until then for its user."""
    starting = lease.state is wire.LeaseState.GRANTED
    reserved = starting and reserved_til is not None
    return Card(
        lease=lease,
        server=text.server_name(lease),
        device=lease.device_model or "no GPU",
        enforcement=text.cap_held_by(lease.enforcement),
        state="reserved for you" if reserved else text.STATES[lease.state],
        sentence=f"Start your server before {text.moment(reserved_til)}."
        if reserved
        else text.SENTENCES[lease.state],
        stoppable=text.stoppable(lease) and not reserved,
        started=text.moment(lease.started_us),
        memory=text.memory(lease.memory_bytes),
        memory_used=text.memory_in_use(lease.use),
        utilisation=text.utilisation(lease.use),
        why_no_use=text.why_no_use(lease),
        rate=text.rate(lease.rate_u_per_hour, lease.currency),
        cost=text.money(lease.cost_u, lease.currency),
        as_of=text.moment(lease.covered_us),
        ends=_ends(lease),
        reserved=reserved,
    )


def _ends(lease: wire.LeaseView) -> str:
    if lease.deadline_us is None or lease.state is not wire.LeaseState.RUNNING:
        return ""
    why = f": {lease.deadline_reason}" if lease.deadline_reason else ""
    return f"As things are it is stopped at {text.moment(lease.deadline_us)}{why}."


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


def offer_row(offer: wire.Offer, waiting: int = 0) -> OfferRow:
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
        waiting=f"{waiting} wait{'s' if waiting == 1 else ''} for one" if waiting else "",
    )


def bill_page(bill: wire.Bill, *, own: bool, may_change: bool = False) -> Page:
    """One lease with its segments, to the micro-unit."""
    lease, currency = bill.lease, bill.lease.currency
    closed = _sum(bill, "user")
    by_platform = _sum(bill, "writeoff")
    # What runs since the last closed segment has no entry yet.
    still_open = lease.cost_u - closed
    back = bill.corrected_u
    return Page(
        "bill.html",
        "Bill",
        {
            "lease": lease,
            "own": own,
            "may_change": may_change,
            # A closed account gets no credit any more.
            "may_give": may_be_user(lease.user),
            "card": card(lease),
            "ended": text.moment(lease.finished_us),
            "how": lease.stop_reason or lease.end_reason or "",
            "rows": [bill_row(line, currency) for line in bill.lines],
            "closed": text.exact_money(closed, currency),
            "still_open": text.exact_money(still_open, currency) if still_open else "",
            "by_platform": text.exact_money(by_platform, currency) if by_platform else "",
            "given_back": text.exact_money(back, currency) if back > 0 else "",
            "charged": text.exact_money(-back, currency) if back < 0 else "",
            "total": text.exact_money(lease.cost_u - back, currency),
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
