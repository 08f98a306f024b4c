"""Writes a lease's segments and the entries that pay them, and keeps the projections in step.

Everything here runs inside the caller's transaction. Only `bill` writes segments, so there is
one place where time becomes money.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger import accounts, counters, credit, segments
from gpuslice.ledger.prices import rate_at, rates
from gpuslice.ledger.tables import Entry, Hold, Lease, Segment
from gpuslice.units import cost_u


def payers(lease: Lease) -> segments.Payers:
    """Who pays which part of a lease's time, as far as it is known now."""
    absorbed = [
        mark for mark in (lease.stop_requested_us, lease.absorbed_from_us) if mark is not None
    ]
    idle_til = None
    if lease.open_before_us is not None:
        # Not opened yet: all of it so far is nobody's.
        idle_til = lease.opened_us if lease.opened_us is not None else 1 << 62
    return segments.Payers(min(absorbed, default=None), idle_til)


def bill(
    session: Session,
    lease: Lease,
    til_us: int,
    *,
    final: bool,
    timezones: Collection[str],
    now: int,
) -> None:
    """Pay ``lease`` up to ``til_us``: all of it if ``final``, else up to the last boundary.

    Idempotent: what is paid (``lease.billed_us``) is never paid again.
    """
    if lease.started_us is None or lease.billed_us is None or til_us <= lease.billed_us:
        return
    due = _pieces(session, lease, til_us, final=final, timezones=timezones)
    if not due:
        return
    chain = counters.of_lease(session, lease.id)
    for piece in due:
        _book(session, lease, chain, piece, now)
    lease.billed_us = due[-1].til_us
    session.flush()


def _pieces(
    session: Session, lease: Lease, til_us: int, *, final: bool, timezones: Collection[str]
) -> list[segments.Piece]:
    assert lease.started_us is not None and lease.billed_us is not None
    return segments.pieces(
        started_us=lease.started_us, billed_us=lease.billed_us, til_us=til_us, final=final,
        payers=payers(lease), known=rates(session, lease.price_list, lease.slice_type),
        timezones=timezones,
    )  # fmt: skip


def _book(
    session: Session, lease: Lease, chain: list[int], piece: segments.Piece, now: int
) -> None:
    """One segment and, unless it is free, the entries that pay it."""
    by_user = piece.payer == "user"
    segment = Segment(
        lease_id=lease.id, from_us=piece.from_us, til_us=piece.til_us, price_id=piece.price_id,
        payer="user" if by_user else "writeoff", amount_u=piece.amount_u, created_us=now,
    )  # fmt: skip
    session.add(segment)
    session.flush()
    if by_user:
        gpu = counters.gpu_us(piece.from_us, piece.til_us, lease.gpu_milli)
        counters.spend(session, chain, piece.from_us, piece.amount_u, gpu)
    counters.add_to_slice(
        session, lease.slice_type, piece.payer, piece.til_us - piece.from_us, piece.amount_u
    )
    if piece.amount_u == 0:
        return
    if by_user:
        legs = credit.take(session, chain, lease.account_id, piece.amount_u, piece.from_us)
    else:
        platform = accounts.platform(session, piece.payer, now)
        legs = [credit.Leg(platform, piece.amount_u, None)]
    revenue = accounts.platform(session, "revenue", now)
    for number, leg in enumerate(legs):
        session.add(
            Entry(
                idem_key=f"usage:{lease.id}:{piece.from_us}:{number}",
                kind="usage" if by_user else piece.payer, debit_id=leg.account_id,
                credit_id=revenue, amount_u=leg.amount_u, segment_id=segment.id, leg=number,
                grant_id=leg.grant_id, actor="meter", created_us=now,
            )
        )  # fmt: skip
    session.flush()


def top_up(session: Session, lease: Lease, horizon_us: int, *, now: int) -> None:
    """Keep reserved what is used but not yet paid, and what comes next.

    Next: the horizon, or for a safe hold all of the time that was declared and is left.
    """
    known = rates(session, lease.price_list, lease.slice_type)
    unpaid = 0
    at = lease.granted_us
    ahead = horizon_us if lease.declared_us is None else min(horizon_us, lease.declared_us)
    if lease.hold_kind == "safe" and lease.declared_us is not None:
        ahead = lease.declared_us
    if None not in (lease.started_us, lease.covered_us, lease.billed_us):
        assert lease.started_us is not None and lease.covered_us is not None
        assert lease.billed_us is not None
        at = lease.covered_us
        unpaid = lease.covered_us - lease.billed_us
        if lease.declared_us is not None:
            rest = max(0, lease.declared_us - (lease.covered_us - lease.started_us))
            ahead = rest if lease.hold_kind == "safe" else min(horizon_us, rest)
    # At the price that holds now: a reservation, no bill.
    rate = rate_at(known, at).rate_u_per_hour
    set_hold(
        session, lease, cost_u(rate, unpaid + ahead),
        counters.gpu_us(0, unpaid + ahead, lease.gpu_milli), now=now,
    )  # fmt: skip


def set_hold(session: Session, lease: Lease, amount_u: int, gpu_us: int, *, now: int) -> None:
    """Make the lease's open holds so large, on every account it counts for."""
    holds = session.scalars(
        sa.select(Hold)
        .where(Hold.lease_id == lease.id, Hold.state == "open")
        .order_by(Hold.account_id)
    ).all()
    for hold in holds:
        if (hold.amount_u, hold.gpu_us) == (amount_u, gpu_us):
            continue
        counters.hold(session, [hold.account_id], amount_u - hold.amount_u, gpu_us - hold.gpu_us)
        hold.amount_u, hold.gpu_us, hold.updated_us = amount_u, gpu_us, now
    session.flush()


_OPEN = sa.insert(Hold.__table__)  # type: ignore[arg-type]


def open_hold(
    session: Session, lease: Lease, chain: list[int], amount_u: int, gpu_us: int, *, now: int
) -> None:
    """Note the reservation that admission has taken already, on every account of the chain."""
    session.execute(
        _OPEN,
        [
            {"lease_id": lease.id, "account_id": account_id, "amount_u": amount_u,
             "gpu_us": gpu_us, "state": "open", "updated_us": now}
            for account_id in chain
        ],
    )  # fmt: skip


def note_hold(session: Session, lease: Lease, amount_u: int, gpu_us: int, *, now: int) -> None:
    """Note what admission has reserved anew for a lease that gave back what it had."""
    session.execute(
        sa.update(Hold)
        .where(Hold.lease_id == lease.id, Hold.state == "open")
        .values(amount_u=amount_u, gpu_us=gpu_us, updated_us=now)
        .execution_options(synchronize_session="fetch")
    )


def close_hold(session: Session, lease: Lease, *, now: int) -> None:
    """Give back what is still reserved; the lease will reserve nothing again."""
    set_hold(session, lease, 0, 0, now=now)
    session.execute(
        sa.update(Hold)
        .where(Hold.lease_id == lease.id, Hold.state == "open")
        .values(state="closed", updated_us=now)
        .execution_options(synchronize_session="fetch")
    )


def accrued(session: Session, lease: Lease, timezones: Collection[str]) -> tuple[int, int]:
    """What user and platform owe for a lease up to ``covered_us``, paid or not (micro-units)."""
    paid = dict(
        session.execute(
            sa.select(Segment.payer, sa.func.sum(Segment.amount_u))
            .where(Segment.lease_id == lease.id)
            .group_by(Segment.payer)
        ).all()
    )
    user, platform = int(paid.get("user", 0)), int(paid.get("writeoff", 0))
    if None not in (lease.started_us, lease.billed_us, lease.covered_us):
        assert lease.covered_us is not None
        open_part = _pieces(session, lease, lease.covered_us, final=True, timezones=timezones)
        user += segments.total(open_part, "user")
        platform += sum(piece.amount_u for piece in open_part if piece.payer != "user")
    return user, platform
