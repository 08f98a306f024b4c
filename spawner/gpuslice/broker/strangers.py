"""Servers that run on a node under leases the ledger does not know: adopted, or ended.

A restored ledger lacks what was granted after its backup. The node still has what was prepared,
so the lease can be made anew from it, and is then billed from the server's start on: what had been
paid for it is not in this ledger either.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Annotated

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy.orm import Session

from gpuslice.broker.grant import GrantRules, slice_type_of
from gpuslice.broker.snapshot import HOST, to_claim, to_device, to_host
from gpuslice.errors import Refused
from gpuslice.fleet.slice_types import SliceType
from gpuslice.ledger import accounts, billing, counters
from gpuslice.ledger.prices import DEFAULT_LIST, rates
from gpuslice.ledger.tables import LIVE_STATES, Audit, Claim, Device, Lease, LeaseAccount
from gpuslice.placement import host_overlaps, overlaps
from gpuslice.quotas.chain import Chain, candidates
from gpuslice.quotas.rules import effective
from gpuslice.wire import (
    LeaseId,
    LeaseState,
    Micros,
    PrepareSlice,
    Reason,
    ServerReport,
    ServerState,
    SliceKind,
    Wire,
)

_ENDED = "unaccounted.stop"


class Stranger(Wire):
    """A server that runs without a lease; ``slice`` null: the node does not know what it was."""

    lease_id: LeaseId
    node_id: str
    user: str
    server: str
    slice: str | None
    device_uuid: str | None
    started_us: Micros | None
    #: An administrator has asked for its end.
    ending: bool


class AdoptServer(Wire):
    """Makes the lease anew. ``groups`` are the user's, of which ``group`` or one that has a
    policy is charged; without any only the user is."""

    groups: list[Annotated[str, Field(max_length=255)]] = Field([], max_length=1000)
    group: Annotated[str, Field(max_length=255)] | None = None
    reason: Reason


class EndServer(Wire):
    """Ends a server that has no lease; nobody pays for it."""

    reason: Reason


def view(report: ServerReport, node_id: str, ending: bool) -> Stranger:
    piece = report.piece
    return Stranger(
        lease_id=report.lease_id, node_id=node_id, user=report.user, server=report.server,
        slice=piece.slice_type if piece else None,
        device_uuid=piece.device_uuid if piece else None,
        started_us=report.started_us, ending=ending,
    )  # fmt: skip


def ended(session: Session, lease_ids: Collection[str]) -> set[str]:
    """Those that an administrator has asked to be ended."""
    if not lease_ids:
        return set()
    return set(
        session.scalars(
            sa.select(Audit.subject).where(Audit.action == _ENDED, Audit.subject.in_(lease_ids))
        )
    )


def end(session: Session, lease_id: str, reason: str, actor: str, *, now: int) -> None:
    """Commit that a server without a lease is to be ended."""
    _unknown(session, lease_id)
    session.add(
        Audit(at_us=now, actor=actor[:255], action=_ENDED, subject=lease_id, reason=reason[:500])
    )


def adopt(
    session: Session, report: ServerReport, node_id: str, body: AdoptServer, actor: str,
    rules: GrantRules, *, now: int,
) -> Lease:  # fmt: skip
    """Make the lease of a running server anew; limits are not asked, for it runs already.

    Raises:
        Refused: it is known, does not run, or the ledger cannot say what it is or costs.
    """
    _unknown(session, report.lease_id)
    piece = report.piece
    if report.state is not ServerState.RUNNING or piece is None or report.started_us is None:
        raise Refused(
            "not-adoptable",
            "The node does not know since when this server runs, or what was prepared for it: "
            "it can only be stopped.",
            status=409,
        )
    wanted = slice_type_of(piece.slice_type, rules.catalogue)
    account_id = accounts.find_or_open(session, accounts.HUB_USER, piece.user, now)
    _no_other(session, account_id, piece)
    chain = candidates(session, account_id, piece.user, body.groups, body.group)[0]
    lease = _lease(
        session, report, piece, report.started_us, node_id, body.groups, chain, wanted, rules, now
    )
    session.add(lease)
    session.flush()
    for depth, account in enumerate(chain.account_ids):
        session.add(LeaseAccount(lease_id=lease.id, account_id=account, depth=depth))
    counters.enter(session, chain.account_ids, lease.slice_type)
    _claim(session, lease, piece, rules)
    billing.open_hold(session, lease, chain.account_ids, 0, 0, now=now)
    session.add(
        Audit(at_us=now, actor=actor[:255], action="unaccounted.adopt", subject=lease.id,
              after=f"{piece.user}/{piece.server} {piece.slice_type}", reason=body.reason[:500])
    )  # fmt: skip
    session.flush()
    return lease


def no_such_stranger() -> Refused:
    """No such server runs, or the ledger knows it."""
    return Refused("no-such-server", "No server without a lease runs under this id.", status=404)


def _unknown(session: Session, lease_id: str) -> None:
    if session.get(Lease, lease_id) is not None:
        raise no_such_stranger()


def _no_other(session: Session, account_id: int, piece: PrepareSlice) -> None:
    other = session.scalar(
        sa.select(Lease.id).where(
            Lease.account_id == account_id, Lease.server_name == piece.server,
            Lease.state.in_(LIVE_STATES),
        )
    )  # fmt: skip
    if other is not None:
        raise Refused(
            "already-leased",
            f"This server has the lease {other} in the ledger: stop one of the two.",
            status=409,
        )


def _lease(
    session: Session, report: ServerReport, piece: PrepareSlice, started_us: int, node_id: str,
    groups: Collection[str], chain: Chain, wanted: SliceType, rules: GrantRules, now: int,
) -> Lease:  # fmt: skip
    holding = effective(chain, wanted.name, rules.timezone)
    device = None
    if piece.device_uuid is not None:
        device = _device(session, node_id, piece.device_uuid)
    return Lease(
        id=piece.lease_id, attempt=f"adopted-{piece.lease_id}", account_id=chain.user.account_id,
        user_name=piece.user, server_name=piece.server, node_id=node_id, slice_type=wanted.name,
        title=wanted.title, kind=piece.kind.value, device_id=piece.device_uuid,
        device_model=device.model if device else None, memory_bytes=piece.memory_bytes,
        share_milli=piece.share_milli, enforcement=int(piece.enforcement),
        simulated=device is not None and device.simulated,
        price_list=_price_list(session, (holding.price_list, DEFAULT_LIST), wanted, started_us),
        state=LeaseState.RUNNING.value, state_us=now, granted_us=started_us, start_before_us=now,
        boot_id=report.boot_id, started_us=started_us, covered_us=started_us,
        billed_us=started_us, gpu_milli=wanted.gpu_milli,
        group_id=chain.group.account_id if chain.group else None, session_us=holding.session_us,
        groups=json.dumps(sorted(set(groups))),
    )  # fmt: skip


def _price_list(
    session: Session, lists: Sequence[str | None], wanted: SliceType, started_us: int
) -> str:
    for price_list in lists:
        if price_list is None:
            continue
        known = rates(session, price_list, wanted.name)
        if known and known[0].from_us <= started_us:
            return price_list
    raise Refused(
        "no-price",
        f"{wanted.title} had no price yet when this server started: it can only be stopped.",
        status=409,
    )


def _device(session: Session, node_id: str, device_id: str) -> Device:
    row = session.get(Device, (node_id, device_id))
    if row is None:
        raise Refused("no-such-device", f"The node has no device {device_id} any more.", status=409)
    return row


def _claim(session: Session, lease: Lease, piece: PrepareSlice, rules: GrantRules) -> None:
    """What the server has, claimed; refused if somebody else was given it in the meantime."""
    claims = [
        Claim(lease_id=lease.id, node_id=lease.node_id, device_id=HOST, taken_version=0,
              cpu_milli=piece.cpu_milli, ram_bytes=piece.ram_bytes)
    ]  # fmt: skip
    if piece.device_uuid is not None:
        claims.append(_device_claim(session, lease, piece, piece.device_uuid))
    for claim in claims:
        claim.taken_version = _raised(session, claim)
        session.add(claim)
    session.flush()
    problems = [text for claim in claims for text in _collisions(session, claim, rules)]
    if problems:
        raise Refused(
            "no-room", f"Its slice was given to somebody else: {problems[0]}. Stop one of them.",
            status=409,
        )  # fmt: skip


def _device_claim(session: Session, lease: Lease, piece: PrepareSlice, uuid: str) -> Claim:
    row = _device(session, lease.node_id, uuid)
    claim = Claim(
        lease_id=lease.id, node_id=lease.node_id, device_id=row.parent_id or row.id,
        memory_bytes=piece.memory_bytes or row.memory_bytes or 0, taken_version=0,
    )  # fmt: skip
    match piece.kind:
        case SliceKind.EXCLUSIVE:
            claim.whole = True
        case SliceKind.MIG:
            claim.mig_id, claim.mig_start, claim.mig_size = row.id, row.mig_start, row.mig_size
        case _:
            claim.share_milli = piece.share_milli or 0
    return claim


def _raised(session: Session, claim: Claim) -> int:
    version = session.scalar(
        sa.update(Device)
        .where(Device.node_id == claim.node_id, Device.id == claim.device_id)
        .values(version=Device.version + 1)
        .returning(Device.version)
        .execution_options(synchronize_session=False)
    )
    if version is None:
        raise Refused(
            "no-such-device", f"The node has no device {claim.device_id} any more.", status=409
        )
    return version


def _collisions(session: Session, claim: Claim, rules: GrantRules) -> list[str]:
    rows = list(session.scalars(sa.select(Device).execution_options(populate_existing=True)))
    row = next(r for r in rows if (r.node_id, r.id) == (claim.node_id, claim.device_id))
    held = [
        to_claim(other)
        for other in session.scalars(
            sa.select(Claim).where(
                Claim.node_id == claim.node_id, Claim.device_id == claim.device_id,
                Claim.released_version.is_(None),
            )
        )
    ]  # fmt: skip
    if row.kind == HOST:
        return host_overlaps(to_host(row, (), rules.host_reserve_ram), held)
    return overlaps(to_device(row, rows, ()), held)
