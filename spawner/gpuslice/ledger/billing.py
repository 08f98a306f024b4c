"""Writes a lease's segments and the entries that pay them, and keeps the projections in step.

Everything here runs inside the caller's transaction. Only `bill` writes segments, so there is
one place where time becomes money.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger import accounts, segments
from gpuslice.ledger.prices import rate_at, rates
from gpuslice.ledger.tables import AccountPeriod, Entry, Hold, Lease, Segment
from gpuslice.units import cost_u


def bill(
    session: Session, lease: Lease, til_us: int, *, final: bool, timezone: str, now: int
) -> None:
    """Pay ``lease`` up to ``til_us``: all of it if ``final``, else up to the last boundary.

    Idempotent: what is paid (``lease.billed_us``) is never paid again.
    """
    if lease.started_us is None or lease.billed_us is None or til_us <= lease.billed_us:
        return
    due = segments.pieces(
        started_us=lease.started_us, billed_us=lease.billed_us, til_us=til_us, final=final,
        stop_requested_us=lease.stop_requested_us,
        known=rates(session, lease.price_list, lease.slice_type), timezone=timezone,
    )  # fmt: skip
    for piece in due:
        _book(session, lease, piece, now)
    if due:
        lease.billed_us = due[-1].til_us
        _spend(session, lease.account_id, segments.total(due, "user"))


def _book(session: Session, lease: Lease, piece: segments.Piece, now: int) -> None:
    """One segment and, unless it is free, the entry that pays it."""
    segment = Segment(
        lease_id=lease.id, from_us=piece.from_us, til_us=piece.til_us, price_id=piece.price_id,
        payer=piece.payer, amount_u=piece.amount_u, created_us=now,
    )  # fmt: skip
    session.add(segment)
    session.flush()
    if piece.amount_u == 0:
        return
    paid_by_user = piece.payer == "user"
    session.add(
        Entry(
            idem_key=f"usage:{lease.id}:{piece.from_us}:0",
            kind="usage" if paid_by_user else "writeoff",
            debit_id=lease.account_id if paid_by_user
            else accounts.platform(session, "writeoff", now),
            credit_id=accounts.platform(session, "revenue", now),
            amount_u=piece.amount_u, segment_id=segment.id, actor="meter", created_us=now,
        )
    )  # fmt: skip
    session.flush()


def _spend(session: Session, account_id: int, amount_u: int) -> None:
    if amount_u:
        _change(session, account_id, spent_u=amount_u)


def _change(session: Session, account_id: int, *, spent_u: int = 0, held_u: int = 0) -> None:
    session.execute(
        sa.update(AccountPeriod)
        .where(AccountPeriod.account_id == account_id, AccountPeriod.slice_type == "")
        .values(spent_u=AccountPeriod.spent_u + spent_u, held_u=AccountPeriod.held_u + held_u)
    )


def rolling_hold(session: Session, lease: Lease, horizon_us: int, *, now: int) -> None:
    """Keep reserved what is used but not yet paid, and the next ``horizon_us`` (rolling hold)."""
    known = rates(session, lease.price_list, lease.slice_type)
    if lease.started_us is None or lease.covered_us is None or lease.billed_us is None:
        due = cost_u(rate_at(known, lease.granted_us).rate_u_per_hour, horizon_us)
    else:
        # From what is paid to the horizon, at the price that holds now: a reservation, no bill.
        rate = rate_at(known, lease.covered_us).rate_u_per_hour
        due = cost_u(rate, lease.covered_us - lease.billed_us + horizon_us)
    set_hold(session, lease, due, now=now)


def set_hold(session: Session, lease: Lease, amount_u: int, *, now: int) -> None:
    """Make the lease's open hold ``amount_u``, and the account's total with it."""
    hold = session.scalar(
        sa.select(Hold).where(Hold.lease_id == lease.id, Hold.account_id == lease.account_id)
    )
    if hold is None:
        hold = Hold(lease_id=lease.id, account_id=lease.account_id, amount_u=0, updated_us=now)
        session.add(hold)
    if hold.state != "open" or hold.amount_u == amount_u:
        session.flush()
        return
    _change(session, lease.account_id, held_u=amount_u - hold.amount_u)
    hold.amount_u = amount_u
    hold.updated_us = now
    session.flush()


def close_hold(session: Session, lease: Lease, *, now: int) -> None:
    """Give back what is still reserved; the lease will reserve nothing again."""
    set_hold(session, lease, 0, now=now)
    session.execute(
        sa.update(Hold)
        .where(Hold.lease_id == lease.id, Hold.state == "open")
        .values(state="closed", updated_us=now)
        .execution_options(synchronize_session="fetch")
    )


def accrued(session: Session, lease: Lease, timezone: str) -> tuple[int, int]:
    """What user and platform owe for a lease up to ``covered_us``, paid or not (micro-units)."""
    paid = dict(
        session.execute(
            sa.select(Segment.payer, sa.func.sum(Segment.amount_u))
            .where(Segment.lease_id == lease.id)
            .group_by(Segment.payer)
        ).all()
    )
    user, writeoff = int(paid.get("user", 0)), int(paid.get("writeoff", 0))
    if None not in (lease.started_us, lease.billed_us, lease.covered_us):
        assert lease.started_us is not None and lease.billed_us is not None
        assert lease.covered_us is not None
        open_part = segments.pieces(
            started_us=lease.started_us, billed_us=lease.billed_us, til_us=lease.covered_us,
            final=True, stop_requested_us=lease.stop_requested_us,
            known=rates(session, lease.price_list, lease.slice_type), timezone=timezone,
        )  # fmt: skip
        user += segments.total(open_part, "user")
        writeoff += segments.total(open_part, "writeoff")
    return user, writeoff
