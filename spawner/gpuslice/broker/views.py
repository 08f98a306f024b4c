"""Turns rows into the messages that users, notebooks and administrators see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.broker.grant import GrantRules, bookings, takes_from, without_nodes
from gpuslice.broker.reserved import HORIZON_US, Bookings, newcomer_id
from gpuslice.broker.snapshot import HOST, ceilings, fleet_snapshot
from gpuslice.broker.starts import Ahead, room_before_them
from gpuslice.errors import Refused
from gpuslice.fleet.slice_types import SliceType
from gpuslice.ledger import accounts, billing
from gpuslice.ledger.prices import rate_at, rates
from gpuslice.ledger.tables import LIVE_STATES, Claim, Device, Lease, NoticeRow
from gpuslice.placement import FleetSnapshot, NoPlace, capacity, place
from gpuslice.placement.fleets import Rules
from gpuslice.placement.queue import Waiting
from gpuslice.placement.reserved import Keep, left_over
from gpuslice.quotas.explain import most_slices
from gpuslice.units import MINUTE_US


def lease_view(
    session: Session,
    lease: Lease,
    *,
    currency: str,
    timezones: Collection[str],
    use: wire.Use | None = None,
) -> wire.LeaseView:
    """One lease with what it costs so far."""
    known = rates(session, lease.price_list, lease.slice_type)
    rate = rate_at(known, lease.covered_us or lease.granted_us)
    user, writeoff = billing.accrued(session, lease, timezones)
    return wire.LeaseView(
        lease_id=lease.id, user=lease.user_name, server=lease.server_name,
        slice=lease.slice_type, title=lease.title, kind=wire.SliceKind(lease.kind),
        node_id=lease.node_id, device_uuid=lease.device_id, device_model=lease.device_model,
        memory_bytes=lease.memory_bytes, share_milli=lease.share_milli,
        enforcement=wire.Enforcement(lease.enforcement), simulated=lease.simulated,
        state=wire.LeaseState(lease.state), granted_us=lease.granted_us,
        started_us=lease.started_us, covered_us=lease.covered_us,
        finished_us=lease.finished_us, finished_at_unknown=lease.finished_at_unknown,
        stop_requested_us=lease.stop_requested_us, stop_reason=lease.stop_reason,
        end_reason=lease.end_reason, exit_code=lease.exit_code,
        deadline_us=lease.deadline_us, deadline_reason=lease.deadline_reason,
        rate_u_per_hour=rate.rate_u_per_hour, cost_u=user, writeoff_u=writeoff,
        currency=currency, use=use,
    )  # fmt: skip


def lease_grant(session: Session, lease: Lease, *, currency: str) -> wire.LeaseGrant:
    """What the spawner needs of a granted lease."""
    rate = rate_at(rates(session, lease.price_list, lease.slice_type), lease.granted_us)
    return wire.LeaseGrant(
        lease_id=lease.id, slice=lease.slice_type, title=lease.title,
        kind=wire.SliceKind(lease.kind), node_id=lease.node_id, device_uuid=lease.device_id,
        device_model=lease.device_model, memory_bytes=lease.memory_bytes,
        share_milli=lease.share_milli, enforcement=wire.Enforcement(lease.enforcement),
        simulated=lease.simulated, rate_u_per_hour=rate.rate_u_per_hour, currency=currency,
        state=wire.LeaseState(lease.state), start_before_us=lease.start_before_us,
    )  # fmt: skip


_HOST_CLAIM = sa.select(Claim).where(
    Claim.lease_id == sa.bindparam("lease"), Claim.device_id == HOST
)


def host_claim(session: Session, lease_id: str) -> Claim:
    """What a lease holds of its host: processors and RAM."""
    return session.scalars(_HOST_CLAIM, {"lease": lease_id}).one()


def live_lease(session: Session, user: str, server: str) -> Lease | None:
    """The lease of a named server that is not over."""
    return session.scalar(
        sa.select(Lease).where(
            Lease.user_name == user, Lease.server_name == server, Lease.state.in_(LIVE_STATES)
        )
    )


def leases(
    session: Session, *, user: str | None, live: bool | None, limit: int, before: str | None
) -> tuple[list[Lease], str | None]:
    """Leases, newest first, and the cursor of the next page (None at the end)."""
    query = sa.select(Lease).order_by(Lease.granted_us.desc(), Lease.id.desc()).limit(limit + 1)
    if user is not None:
        query = query.where(Lease.user_name == user)
    if live is not None:
        alive = Lease.state.in_(LIVE_STATES)
        query = query.where(alive if live else sa.not_(alive))
    if before is not None:
        moment, lease_id = cursor(before)
        query = query.where(
            sa.or_(
                Lease.granted_us < moment,
                sa.and_(Lease.granted_us == moment, Lease.id < lease_id),
            )
        )
    found = list(session.scalars(query))
    if len(found) <= limit:
        return found, None
    last = found[limit - 1]
    return found[:limit], f"{last.granted_us}-{last.id}"


def cursor(text: str) -> tuple[int, str]:
    """A moment and an id, from what an earlier page gave as its ``next``.

    Raises:
        Refused: it is none.
    """
    moment, dash, lease_id = text.partition("-")
    if not dash or not moment.isascii() or not moment.isdigit() or len(moment) > 18:
        raise Refused("bad-cursor", "'before' is not a cursor of an earlier answer", status=400)
    return int(moment), lease_id


def offers(
    session: Session, rules: GrantRules, currency: str, groups: Sequence[str] = (), *, now: int,
    ahead: Ahead | None = None,
) -> list[wire.Offer]:  # fmt: skip
    """Every slice type on offer, with how many are free now or why none is.

    Args:
        groups: Of whoever looks: what is reserved for one of them is free to them.
        ahead: Those who wait: what is for them is not free to whoever looks.
    """
    everything = fleet_snapshot(session, rules.host_reserve_ram)
    fleet = without_nodes(everything, rules.closed_nodes)
    limits = ceilings(session)
    booked = bookings(session, rules, now=now, til_us=now + HORIZON_US)
    placing = Rules(rules.reserve_bytes, limits)
    left = booked.left(fleet, groups, placing, at=now, longest_us=None)
    found = []
    for offered in rules.catalogue.types:
        # What is simulated stays so while its node is away.
        offer = _offer(left, offered, rules, limits, currency, _simulated(everything, offered))
        offer = _with_reserved(offer, fleet, offered, booked, groups, placing, now)
        if ahead is not None and offer.free:
            offer = _with_line(offer, offered, ahead, booked.keeps(groups))
        found.append(offer)
    return found


def _offer(
    fleet: FleetSnapshot, offered: SliceType, rules: GrantRules,
    limits: dict[str, wire.Enforcement], currency: str, simulated: bool,
) -> wire.Offer:  # fmt: skip
    free, total = capacity(fleet, offered, reserve_bytes=rules.reserve_bytes, ceilings=limits)
    found = place(fleet, offered, reserve_bytes=rules.reserve_bytes, ceilings=limits)
    unavailable = None
    if isinstance(found, NoPlace):
        unavailable = found.message
        if not fleet.hosts:
            unavailable = "; ".join(sorted(set(rules.closed_nodes.values()))) or found.message
    return wire.Offer(
        slice=offered.name, title=offered.title, kind=offered.kind,
        device_model=offered.model, memory_bytes=offered.memory_bytes,
        share_milli=offered.share_milli, enforcement=_enforcement(fleet, offered, found, limits),
        simulated=simulated, rate_u_per_hour=offered.rate_u_per_hour,
        currency=currency, free=free, total=total, unavailable=unavailable,
    )  # fmt: skip


def _with_reserved(
    offer: wire.Offer, fleet: FleetSnapshot, offered: SliceType, booked: Bookings,
    groups: Sequence[str], placing: Rules, now: int,
) -> wire.Offer:  # fmt: skip
    """The offer with what is reserved now and next, as far as it concerns its type."""
    others = booked.of_others(groups)
    binding = [one for one in others if one.keep.binds(now, None)]
    binding = takes_from(fleet, offered, binding, placing)
    kept = 0
    if binding:
        whole = capacity(
            fleet, offered, reserve_bytes=placing.reserve_bytes, ceilings=placing.ceilings
        )
        kept = whole.free - offer.free
    of_type = [one for one in booked.all if one.keep.slice_type.name == offered.name]
    following = next((one for one in of_type if one in others and one.keep.start_us > now), None)
    notes = [f"Reserved: {one.words}" for one in binding[:2] if kept]
    mine = next((one for one in of_type if one not in others), None)
    if mine is not None:
        notes.append(f"For you: {mine.words}")
    if following is not None and following not in binding:
        notes.append(f"Reserved next: {following.words}")
    return offer.model_copy(
        update={
            "reserved": kept,
            "reserved_next": following.keep.count if following else 0,
            "reserved_next_us": following.keep.start_us if following else None,
            "reserved_note": ". ".join(notes) or None,
            "unavailable": f"What is free is reserved: {binding[0].words}"
            if kept and not offer.free
            else offer.unavailable,
        }
    )


def _with_line(
    offer: wire.Offer, offered: SliceType, ahead: Ahead, keeps: Sequence[Keep]
) -> wire.Offer:
    """The offer less what is for those who wait, as a start without an end would find it."""
    asks = Waiting(newcomer_id(offered.name), offered, keeps=tuple(keeps))
    if ahead.place(asks) is None:
        said = f"What is free is for {ahead.words}"
        room_us = room_before_them(ahead, asks)
        if room_us is not None:
            said += (
                f"; until their turn you may have it, for at most {room_us // MINUTE_US} minutes"
            )
        return offer.model_copy(update={"free": 0, "unavailable": said})
    placing = ahead.placing
    fleet = left_over(
        ahead.served(offered).fleet, keeps, placing, at=ahead.now, longest_us=None
    )  # fmt: skip
    left = capacity(fleet, offered, reserve_bytes=placing.reserve_bytes, ceilings=placing.ceilings)
    return offer.model_copy(update={"free": min(offer.free, left.free)})


def _enforcement(
    fleet: FleetSnapshot, offered: SliceType, found: object, limits: dict[str, wire.Enforcement]
) -> wire.Enforcement:
    """What the next lease would get; when none is free, the least that any node gives."""
    achieved = getattr(found, "enforcement", None)
    if isinstance(achieved, wire.Enforcement):
        return achieved
    return min(limits.values(), default=wire.Enforcement.ADVISORY)


def _simulated(fleet: FleetSnapshot, offered: SliceType) -> bool:
    """Whether any device that this type may be placed on is simulated: then it is said."""
    return any(
        device.simulated
        for device in fleet.devices
        if offered.kind is not wire.SliceKind.CPU
        and (offered.model is None or offered.model.lower() in device.model.lower())
    )


def me(
    session: Session, user: str, server: str | None, *, currency: str, timezones: Collection[str],
    simulated: bool, now: int, uses: Mapping[str, wire.Use],
    groups: Sequence[str] = (),
) -> wire.Me:  # fmt: skip
    """A user's own live leases (one server's only, for a notebook) and their limit."""
    query = sa.select(Lease).where(Lease.user_name == user, Lease.state.in_(LIVE_STATES))
    if server is not None:
        query = query.where(Lease.server_name == server)
    rows = session.scalars(query.order_by(Lease.granted_us))
    account_id = accounts.find(session, accounts.HUB_USER, user)
    limit = most_slices(session, account_id or 0, user, groups)
    return wire.Me(
        user=user, server=server, leases_limit=limit, currency=currency,
        simulated=simulated, now_us=now,
        leases=[
            lease_view(session, row, currency=currency, timezones=timezones, use=uses.get(row.id))
            for row in rows
        ],
    )  # fmt: skip


def notices(session: Session, user: str, since: int, limit: int) -> list[wire.Notice]:
    """A user's notices after number ``since``, oldest first."""
    account_id = accounts.find(session, accounts.HUB_USER, user)
    if account_id is None:
        return []
    rows = session.scalars(
        sa.select(NoticeRow)
        .where(NoticeRow.account_id == account_id, NoticeRow.id > since)
        .order_by(NoticeRow.id)
        .limit(limit)
    )
    return [
        wire.Notice.model_validate(
            {
                "id": row.id, "lease_id": row.lease_id, "kind": row.kind,
                "severity": row.severity, "message": row.message, "created_us": row.created_us,
            }
        )
        for row in rows
    ]  # fmt: skip


def devices(session: Session) -> list[wire.DeviceView]:
    """Every device of every node with the leases that hold a part of it."""
    held: dict[tuple[str, str], list[str]] = defaultdict(list)
    for claim in session.scalars(sa.select(Claim).where(Claim.released_version.is_(None))):
        held[claim.node_id, claim.mig_id or claim.device_id].append(claim.lease_id)
    rows: Sequence[Device] = session.scalars(
        sa.select(Device).order_by(Device.node_id, Device.position, Device.id)
    ).all()
    versions = {(row.node_id, row.id): row.version for row in rows}
    return [
        wire.DeviceView.model_validate(
            {
                "version": versions.get((row.node_id, row.parent_id or row.id), row.version),
                "node_id": row.node_id, "uuid": row.id, "kind": row.kind, "model": row.model,
                "memory_bytes": row.memory_bytes, "parent_uuid": row.parent_id,
                "mig_profile": row.mig_profile, "simulated": row.simulated, "state": row.state,
                "state_reason": row.state_reason, "seen_us": row.seen_us,
                "leases": held[row.node_id, row.id],
                "memory_used_bytes": row.memory_used_bytes,
                "utilisation_percent": row.utilisation_percent,
            }
        )
        for row in rows
    ]  # fmt: skip
