"""Grants one lease in one transaction: limits, place, claims, hold and lease, or nothing at all."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker import reserved
from gpuslice.broker.fleetcache import FleetCache
from gpuslice.broker.snapshot import HOST, fleet_of
from gpuslice.errors import Refused
from gpuslice.fleet.slice_types import SliceCatalogue, SliceType
from gpuslice.ledger import accounts, billing
from gpuslice.ledger.database import Conflict
from gpuslice.ledger.tables import IS_LIVE, Claim, Device, Lease, LeaseAccount
from gpuslice.placement import Claim as PlannedClaim
from gpuslice.placement import (
    FleetSnapshot,
    NodeSnapshot,
    NoPlace,
    Placement,
    capacity,
    place,
)
from gpuslice.placement.fleets import Rules
from gpuslice.placement.queue import earliest
from gpuslice.placement.reserved import set_aside
from gpuslice.quotas.admission import Ask, Verdict, admit
from gpuslice.units import MINUTE_US, SECOND_US
from gpuslice.wire import LeaseRequest, LeaseState

#: When to look again if nothing is free: nobody knows when somebody stops, so a polite interval.
FULL_RETRY_S = 60
#: A session that is being stopped is over after this at the latest, usually much sooner.
ENDING_RETRY_S = 5


@dataclass(frozen=True)
class GrantRules:
    """What a grant needs to know beside the request; durations in microseconds."""

    catalogue: SliceCatalogue
    reserve_bytes: int
    host_reserve_ram: int
    start_timeout_us: int
    hold_horizon_us: int
    timezone: str
    currency: str
    #: Nodes on which nothing may be granted now, and why.
    closed_nodes: dict[str, str]
    #: So long before a reservation begins, who else takes its place needs an end before that.
    reservation_lead_us: int = 0
    #: What this process has seen of the fleet before.
    fleets: FleetCache = field(default_factory=FleetCache, compare=False, repr=False)


def grant(
    session: Session,
    request: LeaseRequest,
    rules: GrantRules,
    *,
    now: int,
    placement: Placement | None = None,
    behind: Callable[[int, SliceType, Ask], Placement | None] | None = None,
) -> Lease:
    """Grant one slice. The same attempt again answers with the same lease.

    Args:
        placement: Where, if that was decided already on this very view of the fleet.
        behind: Finds the place of a start that comes past the queue, for this account; None:
            nobody waits whom it could delay. It is asked before the limits are used up, which
            those who wait share.

    Raises:
        Refused: with the reason, the limit and what is free instead; nothing was written.
        Conflict: the fleet changed under us; the caller's transaction is tried again.
    """
    known = _same_attempt(session, request)
    if known is not None:
        return known
    wanted = slice_type_of(request.slice, rules.catalogue)
    account_id = accounts.find_or_open(session, accounts.HUB_USER, request.user, now)
    _no_live_lease(session, account_id, request.server)
    ask = ask_of(request, wanted, rules)
    if behind is not None:
        placement = behind(account_id, wanted, ask)
    verdict = admit(session, account_id, ask, now=now)
    if placement is None:
        placement = _place(session, wanted, rules, request.groups, longest(verdict), now)
    lease = _lease(session, request, verdict, wanted, placement, rules, now)
    session.add(lease)
    session.flush()
    chain = verdict.chain.account_ids
    session.execute(
        _COUNTS_FOR,
        [
            {"lease_id": lease.id, "account_id": account, "depth": depth}
            for depth, account in enumerate(chain)
        ],
    )
    try:
        _claim(session, lease, placement)
    except Conflict:
        rules.fleets.forget(placement.node_id)
        raise
    billing.open_hold(session, lease, chain, verdict.hold_u, verdict.hold_gpu_us, now=now)
    return lease


def ask_of(request: LeaseRequest, wanted: SliceType, rules: GrantRules) -> Ask:
    """What admission needs to know of a request."""
    return Ask(
        user=request.user, groups=request.groups, group=request.group,
        slice_type=wanted.name, gpu_milli=wanted.gpu_milli, horizon_us=rules.hold_horizon_us,
        declared_us=request.declared_us, timezone=rules.timezone, currency=rules.currency,
    )  # fmt: skip


_OF_ATTEMPT = sa.select(Lease).where(Lease.attempt == sa.bindparam("attempt"))


def _same_attempt(session: Session, request: LeaseRequest) -> Lease | None:
    known = session.scalar(_OF_ATTEMPT, {"attempt": request.attempt})
    if known is None:
        return None
    asked = (request.user, request.server, request.slice)
    if (known.user_name, known.server_name, known.slice_type) != asked:
        raise Refused(
            "attempt-reused", "this attempt was already used for another request", status=422
        )
    return known


def slice_type_of(name: str, catalogue: SliceCatalogue) -> SliceType:
    """The slice type of this name.

    Raises:
        Refused: there is none, or it is not on offer here, with the reason.
    """
    wanted = catalogue.get(name)
    if wanted is not None:
        return wanted
    for unoffered in catalogue.not_offered:
        if unoffered.name == name:
            raise Refused("slice-not-offered", unoffered.reason, status=409)
    names = [offered.name for offered in catalogue.types]
    raise Refused(
        "unknown-slice",
        f"There is no slice type {name[:64]!r}; there are {', '.join(names) or 'none'}.",
        status=400,
        alternatives=names,
    )


_LIVE_STATE = sa.select(Lease.state).where(
    Lease.account_id == sa.bindparam("account"),
    Lease.server_name == sa.bindparam("server"),
    IS_LIVE,
)


def _no_live_lease(session: Session, account_id: int, server: str) -> None:
    """One live lease per named server, whatever the limits; the unique index says so too."""
    state = session.scalar(_LIVE_STATE, {"account": account_id, "server": server})
    if state is None:
        return
    if state in (LeaseState.GRANTED, LeaseState.RUNNING):
        raise Refused(
            "already-leased", "This server has a slice already; stop it first.", status=409
        )
    raise Refused(
        "previous-session-ending",
        f"The previous session of this server is still ending; try again in {ENDING_RETRY_S} s.",
        status=409,
        retry_after_s=ENDING_RETRY_S,
    )


def longest(verdict: Verdict) -> int | None:
    """How long it will run at most, if that is certain."""
    known = (verdict.session_us, verdict.declared_us)
    return min((us for us in known if us is not None), default=None)


def _place(
    session: Session, wanted: SliceType, rules: GrantRules, groups: Sequence[str],
    longest_us: int | None, now: int,
) -> Placement:  # fmt: skip
    seen = rules.fleets.look(session, rules.host_reserve_ram)
    nodes = [node for node in seen.nodes if node.node_id not in rules.closed_nodes]
    if all(node.host is None for node in nodes):
        why = "; ".join(sorted(set(rules.closed_nodes.values()))) or "no node has reported yet"
        raise Refused(
            "runtime-unavailable",
            f"No GPU host can start servers now: {why}. Try again in a minute.",
            status=503,
            retry_after_s=FULL_RETRY_S,
        )
    limits = seen.ceilings
    placing = Rules(rules.reserve_bytes, limits)
    booked = bookings(session, rules, now=now, til_us=now + rules.reservation_lead_us + 1)
    if not any(keep.binds(now, longest_us) for keep in booked.keeps(groups)):
        return _place_anywhere(nodes, wanted, rules, placing)
    fleet = fleet_of(nodes)
    left = booked.left(fleet, groups, placing, at=now, longest_us=longest_us)
    found = place(left, wanted, reserve_bytes=rules.reserve_bytes, ceilings=limits)
    if isinstance(found, Placement):
        return found
    free = [
        other.name
        for other in rules.catalogue.types
        if other.name != wanted.name
        and capacity(left, other, reserve_bytes=rules.reserve_bytes, ceilings=limits).free
    ]
    without = place(fleet, wanted, reserve_bytes=rules.reserve_bytes, ceilings=limits)
    if isinstance(without, NoPlace):
        raise refuse_place(wanted, without, free)
    ahead = bookings(session, rules, now=now, til_us=now + reserved.HORIZON_US).of_others(groups)
    again = earliest(
        wanted, fleet, {}, placing, now, keeps=[one.keep for one in ahead], longest_us=longest_us
    )
    binding = [one for one in ahead if one.keep.binds(now, longest_us)]
    room_us = _room_before(fleet, wanted, binding, placing, now)
    binding = takes_from(fleet, wanted, binding, placing)
    raise refuse_reserved(wanted, binding, free, room_us, again, now)


def _place_anywhere(
    nodes: Sequence[NodeSnapshot], wanted: SliceType, rules: GrantRules, placing: Rules
) -> Placement:
    """Where nothing is kept for others: as `place` on the whole fleet, on what has changed of it.

    Raises:
        Refused: there is no place.
    """
    found = rules.fleets.place(nodes, wanted, placing)
    if isinstance(found, Placement):
        return found
    free = [
        other.name
        for other in rules.catalogue.types
        if other.name != wanted.name
        and isinstance(rules.fleets.place(nodes, other, placing), Placement)
    ]
    raise refuse_place(wanted, found, free)


def takes_from(
    fleet: FleetSnapshot, wanted: SliceType, booked: Sequence[reserved.Booking], rules: Rules
) -> list[reserved.Booking]:
    """Those that leave less of a slice type than there would be; all, if only together."""
    if len(booked) == 1:
        return list(booked)

    def free(there: FleetSnapshot) -> int:
        return capacity(
            there, wanted, reserve_bytes=rules.reserve_bytes, ceilings=rules.ceilings
        ).free

    whole = free(fleet)
    alone = [one for one in booked if free(set_aside(fleet, [one.keep], rules)) < whole]
    return alone or list(booked)


def _room_before(
    fleet: FleetSnapshot, wanted: SliceType, binding: Sequence[reserved.Booking], rules: Rules,
    now: int,
) -> int | None:  # fmt: skip
    """For how long it could be had before the next reservation begins; None: not even so."""
    starts = [one.keep.start_us - one.keep.slack_us for one in binding if one.keep.start_us > now]
    if not starts or min(starts) - now < MINUTE_US:
        return None
    on = [one.keep for one in binding if one.keep.start_us <= now]
    left = set_aside(fleet, on, rules)
    found = place(left, wanted, reserve_bytes=rules.reserve_bytes, ceilings=rules.ceilings)
    return min(starts) - now if isinstance(found, Placement) else None


def bookings(
    session: Session, rules: GrantRules, *, now: int, til_us: int, slack_us: int = 0,
    newcomer: Sequence[str] | None = None,
) -> reserved.Bookings:  # fmt: skip
    """What is reserved until then, as it binds grants.

    Args:
        slack_us: How long a lease may wait for its start beyond the time to start.
        newcomer: As `gpuslice.broker.reserved.bookings` says.
    """
    return reserved.bookings(
        session, rules.catalogue, now=now, til_us=til_us, lead_us=rules.reservation_lead_us,
        slack_us=rules.start_timeout_us + slack_us, newcomer=newcomer,
    )  # fmt: skip


def refuse_reserved(
    wanted: SliceType, booked: Sequence[reserved.Booking], free: Sequence[str],
    room_us: int | None, again_us: int | None, now: int,
) -> Refused:  # fmt: skip
    """The refusal for a slice of which all that are free are kept for others.

    Args:
        room_us: For at most so long it could be had now.
        again_us: When it could be had whatever it is for; None: not in the time looked at.
    """
    said = "; ".join(one.words for one in booked[:3])
    todo, limit = "", None
    if room_us is not None:
        limit = f"{room_us // MINUTE_US} minutes"
        todo = f" Until then you may have it: say that you need it for at most {limit}."
    if again_us is not None:
        todo += f" {'Or try' if todo else 'Try'} again after {booked[0].local(again_us)}."
    instead = f" Free instead: {', '.join(free)}." if free else ""
    return Refused(
        "reserved",
        f"{wanted.title}: what is free is reserved: {said}.{todo}{instead}",
        status=503,
        limit=limit,
        retry_after_s=FULL_RETRY_S
        if again_us is None
        else max(1, -(-(again_us - now) // SECOND_US)),
        alternatives=free,
    )


def without_nodes(fleet: FleetSnapshot, closed: dict[str, str]) -> FleetSnapshot:
    """The fleet without the nodes on which nothing may be granted now."""
    return FleetSnapshot(
        hosts=tuple(host for host in fleet.hosts if host.node_id not in closed),
        devices=tuple(device for device in fleet.devices if device.node_id not in closed),
    )


def refuse_place(wanted: SliceType, why: NoPlace, free: Sequence[str]) -> Refused:
    """The refusal for a slice that has no place now."""
    instead = f" Free instead: {', '.join(free)}." if free else " Nothing else is free either."
    return Refused(
        why.reason,
        f"{wanted.title}: {why.message.rstrip('.')}. Try again in a minute.{instead}",
        status=503,
        retry_after_s=FULL_RETRY_S,
        alternatives=free,
    )


_LEASED = sa.select(Device.model, Device.memory_bytes, Device.simulated).where(
    Device.node_id == sa.bindparam("node"), Device.id == sa.bindparam("device")
)


def _lease(
    session: Session, request: LeaseRequest, verdict: Verdict, wanted: SliceType,
    placement: Placement, rules: GrantRules, now: int,
) -> Lease:  # fmt: skip
    device = None
    if placement.leased_uuid is not None:
        of = {"node": placement.node_id, "device": placement.leased_uuid}
        device = session.execute(_LEASED, of).one()
    claim = placement.device_claim
    shared = claim is not None and not claim.whole and claim.mig_uuid is None
    memory = claim.memory_bytes if claim is not None and shared else None
    return Lease(
        id=uuid.uuid4().hex, attempt=request.attempt,
        account_id=verdict.chain.user.account_id,
        user_name=request.user, server_name=request.server, node_id=placement.node_id,
        slice_type=wanted.name, title=wanted.title, kind=wanted.kind.value,
        device_id=placement.leased_uuid,
        device_model=device.model if device is not None else None,
        memory_bytes=memory or (device.memory_bytes if device is not None else None),
        share_milli=claim.share_milli if claim is not None and shared else None,
        enforcement=int(placement.enforcement),
        simulated=device is not None and device.simulated,
        price_list=verdict.price_list, state=LeaseState.GRANTED.value, state_us=now, granted_us=now,
        start_before_us=now + rules.start_timeout_us, gpu_milli=wanted.gpu_milli,
        group_id=verdict.chain.group.account_id if verdict.chain.group else None,
        groups=json.dumps(sorted(set(request.groups))), hold_kind=verdict.hold_kind,
        declared_us=verdict.declared_us, session_us=verdict.session_us,
    )  # fmt: skip


# Rows that nobody needs as objects are written as such: that is a fraction of the time.
_COUNTS_FOR, _TAKE = (
    sa.insert(model.__table__)  # type: ignore[arg-type]
    for model in (LeaseAccount, Claim)
)


def _claim(session: Session, lease: Lease, placement: Placement) -> None:
    """Write the claims, each together with the guarded raise of its device's version."""
    node_id = placement.node_id
    wanted: list[tuple[str, int, PlannedClaim]] = [
        (HOST, placement.host_version, placement.host_claim)
    ]
    if placement.device_uuid is not None:
        assert placement.device_claim is not None and placement.device_version is not None
        wanted.append((placement.device_uuid, placement.device_version, placement.device_claim))
    wanted.sort(key=lambda item: item[0])
    for device_id, version, _ in wanted:
        _raise_version(session, node_id, device_id, version)
    session.execute(
        _TAKE,
        [
            {
                "lease_id": lease.id, "node_id": node_id, "device_id": device_id,
                "whole": claim.whole, "memory_bytes": claim.memory_bytes,
                "share_milli": claim.share_milli, "mig_id": claim.mig_uuid,
                "mig_start": claim.mig_start, "mig_size": claim.mig_size,
                "cpu_milli": claim.cpu_milli, "ram_bytes": claim.ram_bytes,
                "taken_version": version + 1,
            }
            for device_id, version, claim in wanted
        ],
    )  # fmt: skip


_RAISE = (
    sa.update(Device)
    .where(
        Device.node_id == sa.bindparam("node"), Device.id == sa.bindparam("device"),
        Device.version == sa.bindparam("seen"), Device.state == "ok",
    )
    .values(version=Device.version + 1)
    .execution_options(synchronize_session=False)
)  # fmt: skip


def _raise_version(session: Session, node_id: str, device_id: str, version: int) -> None:
    """The guard against granting on an outdated view: no row changed means reread and retry."""
    raised = session.execute(_RAISE, {"node": node_id, "device": device_id, "seen": version})
    if raised.rowcount != 1:  # type: ignore[attr-defined]
        raise Conflict(f"{node_id}/{device_id} changed since version {version}")


def release_claims(session: Session, lease_id: str) -> None:
    """Free what a lease held, raising each device's version in the same transaction."""
    claims = session.scalars(
        sa.select(Claim)
        .where(Claim.lease_id == lease_id, Claim.released_version.is_(None))
        .order_by(Claim.device_id)
    )
    for claim in claims.all():
        version = session.scalar(
            sa.update(Device)
            .where(Device.node_id == claim.node_id, Device.id == claim.device_id)
            .values(version=Device.version + 1)
            .returning(Device.version)
            .execution_options(synchronize_session=False)
        )
        claim.released_version = version
    session.flush()
