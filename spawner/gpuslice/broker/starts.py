"""A server's own start: what was offered to it, or what those who wait in line can spare.

While anybody waits, whoever just tries is the last in line: `gpuslice.placement.queue` decides it
with the same function that serves the line, in the transaction of the grant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.broker import queue
from gpuslice.broker.grant import (
    FULL_RETRY_S,
    GrantRules,
    ask_of,
    bookings,
    grant,
    longest,
    refuse_place,
    slice_type_of,
)
from gpuslice.broker.queue import QueueRules
from gpuslice.broker.reserved import newcomer_id
from gpuslice.broker.snapshot import ceilings
from gpuslice.errors import Refused
from gpuslice.fleet.slice_types import SliceType
from gpuslice.ledger import accounts, billing, counters
from gpuslice.ledger.tables import Lease, QueueRequest
from gpuslice.placement import FleetSnapshot, NoPlace, Placement, place
from gpuslice.placement.fleets import Rules
from gpuslice.placement.queue import Served, Waiting, in_turn
from gpuslice.placement.reserved import left_over
from gpuslice.quotas import admission
from gpuslice.quotas.admission import Ask
from gpuslice.quotas.chain import candidates
from gpuslice.quotas.words import in_hours
from gpuslice.units import MINUTE_US
from gpuslice.wire import LeaseState


def start(
    session: Session, request: wire.LeaseRequest, rules: GrantRules, line: QueueRules, *, now: int
) -> Lease:
    """A server's own start: what was offered to it, or what those who wait can spare.

    Raises:
        Refused: with the reason; ``others-wait``: what is free is for those who wait.
        Conflict: the fleet changed under us; the caller's transaction is tried again.
    """
    taken = take_offer(session, request, rules, now=now)
    if taken is not None:
        return taken

    def behind(account_id: int, wanted: SliceType, ask: Ask) -> Placement | None:
        return _behind(session, account_id, request, wanted, ask, rules, line, now)

    return grant(session, request, rules, now=now, behind=behind)


def take_offer(
    session: Session, request: wire.LeaseRequest, rules: GrantRules, *, now: int
) -> Lease | None:
    """The lease that was offered to this server, to be started now; None: there is no offer.

    Raises:
        Refused: another slice type is reserved for it, or a shorter time, or another group is
            charged; what is reserved stays so.
    """
    account_id = accounts.find(session, accounts.HUB_USER, request.user)
    found = None if account_id is None else queue.live(session, account_id, request.server)
    if found is None or found.lease_id is None:
        return None
    lease = session.get(Lease, found.lease_id, populate_existing=True, with_for_update=True)
    if lease is None or lease.state != LeaseState.GRANTED:
        return None
    if lease.slice_type != request.slice:
        raise Refused(
            "offer-waits",
            f"A slice {lease.slice_type} is reserved for this server; take that one, or give it "
            "back first (My GPU, leave the queue).",
            status=409,
            alternatives=[lease.slice_type],
        )
    _as_asked(session, lease, request, rules, now)
    lease.attempt = request.attempt
    til = now + rules.start_timeout_us
    if lease.open_before_us is not None:
        # As long after the start as was said, whenever the start is.
        lease.open_before_us += til - lease.start_before_us
    lease.start_before_us = til
    session.flush()
    return lease


def _as_asked(
    session: Session, lease: Lease, request: wire.LeaseRequest, rules: GrantRules, now: int
) -> None:
    """Make what was offered what is asked for now: the same, or for a shorter time.

    What is not said stays as it was said when the place in line was taken. What is reserved for
    it is given back and admitted anew, by the code of every grant.

    Raises:
        Refused: a longer time, or another group to be charged.
    """
    declared = lease.declared_us if request.declared_us is None else request.declared_us
    if lease.declared_us is not None and declared is not None and declared > lease.declared_us:
        longest = in_hours(lease.declared_us)
        raise Refused(
            "offer-shorter",
            f"The {lease.title} that is reserved for this server is for {longest}, and you ask "
            f"for {in_hours(declared)}. Take it for at most {longest}, or give it back first (My "
            "GPU) and ask anew.",
            status=409, limit=longest,
        )  # fmt: skip
    charged = None if lease.group_id is None else accounts.name_of(session, lease.group_id)
    if declared == lease.declared_us and request.group in (None, charged):
        return
    wanted = slice_type_of(lease.slice_type, rules.catalogue)
    asked = request.model_copy(
        update={"declared_us": declared, "group": request.group or charged}
    )  # fmt: skip
    ask = ask_of(asked, wanted, rules)
    counted = counters.of_lease(session, lease.id)
    may_be = candidates(session, lease.account_id, ask.user, ask.groups, ask.group)
    if counted not in [chain.account_ids for chain in may_be]:
        raise _charged_otherwise(lease, charged)
    billing.set_holds(session, {lease.id: (0, 0)}, now=now)
    counters.leave(session, counted, lease.slice_type)
    verdict = admission.admit(session, lease.account_id, ask, now=now)
    if verdict.chain.account_ids != counted:
        raise _charged_otherwise(lease, charged)
    billing.note_hold(session, lease, verdict.hold_u, verdict.hold_gpu_us, now=now)
    lease.price_list, lease.hold_kind = verdict.price_list, verdict.hold_kind
    lease.declared_us, lease.session_us = verdict.declared_us, verdict.session_us


def _charged_otherwise(lease: Lease, charged: str | None) -> Refused:
    """For which accounts a lease counts is a fact from its grant on."""
    whom = "to no group" if charged is None else f"to the group {charged}"
    return Refused(
        "offer-charged",
        f"The {lease.title} that is reserved for this server is charged {whom}. Take it like that, "
        "or give it back first (My GPU) and ask anew.",
        status=409,
    )


@dataclass(frozen=True)
class Ahead:
    """Those who wait, as they are to somebody who does not: that one is the last in line.

    A server that waits itself does not stand in its own way, and for the slice type that it waits
    for it is judged in its own place: ``own`` is that type, and what those before it leave.
    """

    waiting: tuple[Waiting, ...]
    others: Served
    own: tuple[str, Served] | None
    placing: Rules
    now: int

    def place(self, last: Waiting) -> Placement | None:
        """Where it may start now without delaying anybody who is protected."""
        return self.served(last.slice_type).place(last, self.placing, self.now)

    def served(self, wanted: SliceType) -> Served:
        """What they leave to somebody who wants this type."""
        if self.own is not None and self.own[0] == wanted.name:
            return self.own[1]
        return self.others

    @property
    def words(self) -> str:
        """Who they are, for a sentence: ``3 who wait in line``."""
        count = len(self.waiting)
        return f"{count} who wait in line" if count > 1 else "one who waits in line"


def ahead(
    session: Session, rules: GrantRules, line: QueueRules, groups: Sequence[str], *, now: int,
    account_id: int | None = None, server: str = "",
) -> Ahead | None:  # fmt: skip
    """Those who wait; None: nobody does whom a start could delay.

    Args:
        groups: Of whoever asks.
        account_id: Whose server asks, and by its name which one; None: nobody's in particular.
    """
    standing = queue.standing(session, rules, line, now=now, newcomer=groups)
    if standing is None or not standing.waiting:
        return None
    placing = standing.placing

    def served(waiting: Sequence[Waiting]) -> Served:
        return in_turn(waiting, standing.fleet, ends=standing.ends, rules=placing, now=now)

    mine = {
        one.id for one in standing.requests
        if (one.account_id, one.server_name) == (account_id, server)
    }  # fmt: skip
    at = next((i for i, one in enumerate(standing.waiting) if one.request_id in mine), None)
    if at is None:
        return Ahead(standing.waiting, served(standing.waiting), None, placing, now)
    before, own, after = standing.waiting[:at], standing.waiting[at], standing.waiting[at + 1 :]
    others = (*before, *after)
    return Ahead(others, served(others), (own.slice_type.name, served(before)), placing, now)


def _behind(
    session: Session, account_id: int, request: wire.LeaseRequest, wanted: SliceType, ask: Ask,
    rules: GrantRules, line: QueueRules, now: int,
) -> Placement | None:  # fmt: skip
    """A place for a start that those who wait can spare; None: nobody waits, or it is refused
    for another reason.

    Raises:
        Refused: ``others-wait``; or nothing is free, and they wait for what there is instead.
    """
    if not _anybody_waits(session):
        return None
    verdicts = admission.decide(session, account_id, ask, now=now)
    chosen = next((verdict for verdict in verdicts if verdict.ok), None)
    if chosen is None:
        return None
    booked = bookings(session, rules, now=now, til_us=now + rules.reservation_lead_us + 1)
    asks = Waiting(
        newcomer_id(wanted.name), wanted, longest_us=longest(chosen),
        keeps=booked.keeps(request.groups),
    )  # fmt: skip
    fleet, placing = queue.fleet_now(session, rules), Rules(rules.reserve_bytes, ceilings(session))
    open_to_it = left_over(fleet, asks.keeps, placing, at=now, longest_us=asks.longest_us)
    free = [one for one in rules.catalogue.types if _fits(open_to_it, one, placing)]
    if not free:
        return None
    found = ahead(
        session, rules, line, request.groups, now=now, account_id=account_id,
        server=request.server,
    )  # fmt: skip
    if found is None:
        return None
    placement = found.place(asks)
    if placement is not None:
        return placement
    instead = [
        one.name for one in free
        if one is not wanted and found.place(_for(asks, one)) is not None
    ]  # fmt: skip
    if wanted in free:
        raise _others_wait(found, asks, instead)
    full = place(fleet, wanted, reserve_bytes=placing.reserve_bytes, ceilings=placing.ceilings)
    if isinstance(full, NoPlace):
        raise refuse_place(wanted, full, instead)
    return None


def _for(asks: Waiting, other: SliceType) -> Waiting:
    return replace(asks, request_id=newcomer_id(other.name), slice_type=other)


def _anybody_waits(session: Session) -> bool:
    found = session.scalar(
        sa.select(QueueRequest.id).where(QueueRequest.state == "waiting").limit(1)
    )
    return found is not None


def _fits(fleet: FleetSnapshot, wanted: SliceType, placing: Rules) -> bool:
    found = place(fleet, wanted, reserve_bytes=placing.reserve_bytes, ceilings=placing.ceilings)
    return isinstance(found, Placement)


def _others_wait(found: Ahead, asks: Waiting, instead: Sequence[str]) -> Refused:
    """The refusal of what is free and for those who wait: how many, and what may be had."""
    same = sum(one.slice_type.name == asks.slice_type.name for one in found.waiting)
    of_type = f", {same} of them for this slice type" if 0 < same < len(found.waiting) else ""
    room_us = room_before_them(found, asks)
    limit, todo = None, ""
    if room_us is not None:
        limit = f"{room_us // MINUTE_US} minutes"
        todo = f" Until their turn you may have it: say that you need it for at most {limit}."
    free = f" Free instead: {', '.join(instead)}." if instead else " Nothing else is free either."
    return Refused(
        "others-wait",
        f"{asks.slice_type.title}: what is free is for {found.words}{of_type}. Join the queue for "
        f"your turn, or try again in a minute.{todo}{free}",
        status=503, limit=limit, retry_after_s=FULL_RETRY_S, alternatives=instead,
    )  # fmt: skip


def room_before_them(found: Ahead, asks: Waiting) -> int | None:
    """For how long it could be had before the first of them has its turn; None: not even so."""
    certain_us = found.served(asks.slice_type).certain_us()
    if certain_us is None or certain_us - found.now < MINUTE_US:
        return None
    room_us = certain_us - found.now
    return None if found.place(replace(asks, longest_us=room_us)) is None else room_us
