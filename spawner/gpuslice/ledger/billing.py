"""Writes a lease's segments and the entries that pay them, and keeps the projections in step.

Everything here runs inside the caller's transaction. Only `bill` writes segments, so there is
one place where time becomes money. It takes many leases at once: a heartbeat has as many
statements for a thousand leases as for one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger import accounts, counters, credit, segments
from gpuslice.ledger.prices import Rate, Rates, rate_at, rates
from gpuslice.ledger.tables import Entry, Hold, Lease, Segment
from gpuslice.units import HOUR_US


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
    due: Sequence[tuple[Lease, int]],
    *,
    final: bool,
    timezones: Collection[str],
    now: int,
) -> None:
    """Pay each lease up to its moment: all of it if ``final``, else up to the last boundary.

    Idempotent: what is paid (``lease.billed_us``) is never paid again. Credit that several leases
    may use goes to the first ones.
    """
    known = Rates(session)
    found = []
    for lease, til_us in due:
        if lease.started_us is None or lease.billed_us is None or til_us <= lease.billed_us:
            continue
        pieces = _pieces(lease, til_us, known.of(lease), final=final, timezones=timezones)
        if pieces:
            found.append((lease, pieces))
    if not found:
        return
    _book(session, found, now)
    for lease, pieces in found:
        lease.billed_us = pieces[-1].til_us
    session.flush()


def _pieces(
    lease: Lease, til_us: int, known: list[Rate], *, final: bool, timezones: Collection[str]
) -> list[segments.Piece]:
    assert lease.started_us is not None and lease.billed_us is not None
    return segments.pieces(
        started_us=lease.started_us, billed_us=lease.billed_us, til_us=til_us, final=final,
        payers=payers(lease), known=known, timezones=timezones,
    )  # fmt: skip


def _book(session: Session, found: Sequence[tuple[Lease, list[segments.Piece]]], now: int) -> None:
    """The segments and, unless they are free, the entries that pay them."""
    numbers = _segments(session, found, now)
    chains = counters.of_leases(session, [lease.id for lease, _ in found])
    purse = credit.Purse(session, {one for chain in chains.values() for one in chain})
    platform, tally = _Platform(session, now), counters.Tally()
    entries: list[dict[str, int | str | None]] = []
    for lease, pieces in found:
        chain = chains[lease.id]
        for piece in pieces:
            _count(tally, lease, chain, piece)
            if piece.amount_u == 0:
                continue
            if piece.payer == "user":
                legs = purse.take(chain, lease.account_id, piece.amount_u, piece.from_us)
            else:
                legs = [credit.Leg(platform.account(piece.payer), piece.amount_u, None)]
            revenue, segment_id = platform.account("revenue"), numbers[lease.id, piece.from_us]
            entries += [
                {
                    "idem_key": f"usage:{lease.id}:{piece.from_us}:{number}",
                    "kind": "usage" if piece.payer == "user" else piece.payer,
                    "debit_id": leg.account_id, "credit_id": revenue, "amount_u": leg.amount_u,
                    "segment_id": segment_id, "leg": number, "grant_id": leg.grant_id,
                    "actor": "meter", "memo": "", "created_us": now,
                }
                for number, leg in enumerate(legs)
            ]  # fmt: skip
    if entries:
        session.execute(sa.insert(_ENTRIES), entries)
    purse.write()
    tally.write(session)


def _segments(
    session: Session, found: Sequence[tuple[Lease, list[segments.Piece]]], now: int
) -> dict[tuple[str, int], int]:
    """Write the segments; their numbers by lease and beginning."""
    rows: list[dict[str, int | str]] = [
        {
            "lease_id": lease.id, "from_us": piece.from_us, "til_us": piece.til_us,
            "price_id": piece.price_id, "payer": "user" if piece.payer == "user" else "writeoff",
            "amount_u": piece.amount_u, "created_us": now,
        }
        for lease, pieces in found for piece in pieces
    ]  # fmt: skip
    session.execute(sa.insert(_SEGMENTS), rows)
    written = session.execute(
        sa.select(Segment.lease_id, Segment.from_us, Segment.id).where(
            Segment.lease_id.in_([lease.id for lease, _ in found]),
            Segment.from_us >= min(pieces[0].from_us for _, pieces in found),
        )
    )
    return {(lease_id, from_us): number for lease_id, from_us, number in written}


def _count(
    tally: counters.Tally, lease: Lease, chain: Sequence[int], piece: segments.Piece
) -> None:
    if piece.payer == "user":
        gpu = counters.gpu_us(piece.from_us, piece.til_us, lease.gpu_milli)
        tally.spend(chain, piece.from_us, piece.amount_u, gpu)
    tally.of_slice(lease.slice_type, piece.payer, piece.til_us - piece.from_us, piece.amount_u)


class _Platform:
    """The platform's accounts, each looked up once and opened when it is first needed."""

    def __init__(self, session: Session, now: int) -> None:
        self._session = session
        self._now = now
        self._ids: dict[str, int] = {}

    def account(self, purpose: str) -> int:
        if purpose not in self._ids:
            self._ids[purpose] = accounts.platform(self._session, purpose, self._now)
        return self._ids[purpose]


def top_up(session: Session, leases: Sequence[Lease], horizon_us: int, *, now: int) -> None:
    """Keep reserved what is used but not yet paid, and what comes next.

    Next: as `ahead_us` says.
    """
    known = Rates(session)
    wanted = {lease.id: _reserve(lease, known.of(lease), horizon_us) for lease in leases}
    set_holds(session, wanted, now=now)


def _reserve(lease: Lease, known: list[Rate], horizon_us: int) -> tuple[int, int]:
    """Money and GPU time to hold for a lease."""
    unpaid = ran = 0
    at = lease.granted_us
    if None not in (lease.started_us, lease.covered_us, lease.billed_us):
        assert lease.started_us is not None and lease.covered_us is not None
        assert lease.billed_us is not None
        at = lease.covered_us
        unpaid = lease.covered_us - lease.billed_us
        ran = lease.covered_us - lease.started_us
    # At the price that holds now: a reservation, no bill.
    rate = rate_at(known, at).rate_u_per_hour
    ahead = ahead_us(lease.hold_kind, lease.declared_us, horizon_us, ran)
    return to_hold(rate, lease.gpu_milli, unpaid + ahead)


def ahead_us(kind: str, declared_us: int | None, horizon_us: int, ran_us: int = 0) -> int:
    """How much of the time ahead a lease reserves.

    Never less than the horizon to begin with, however short the time that was declared: until a
    stop is seen and done, a lease runs on, and of those that reserve next to nothing any number
    would fit into what is left of a limit.
    """
    if kind == "safe" and declared_us is not None:
        return max(0, max(declared_us, horizon_us) - ran_us)
    return horizon_us


def to_hold(rate_u_per_hour: int, gpu_milli: int, us: int) -> tuple[int, int]:
    """The money and the GPU time to hold for so much time, rounded up."""
    return -(-rate_u_per_hour * us // HOUR_US), -(-gpu_milli * us // 1000)


def set_holds(session: Session, wanted: Mapping[str, tuple[int, int]], *, now: int) -> None:
    """Make leases' open holds so large (money, GPU time), on every account they count for."""
    rows = session.execute(
        sa.select(Hold.id, Hold.lease_id, Hold.account_id, Hold.amount_u, Hold.gpu_us)
        .where(Hold.lease_id.in_(list(wanted)), Hold.state == "open")
        .order_by(Hold.account_id, Hold.id)
    ).all()
    tally = counters.Tally()
    changed = []
    for hold_id, lease_id, account_id, before_u, before_gpu in rows:
        amount_u, gpu_us = wanted[lease_id]
        if (amount_u, gpu_us) == (before_u, before_gpu):
            continue
        tally.hold([account_id], amount_u - before_u, gpu_us - before_gpu)
        changed.append({"hold": hold_id, "amount": amount_u, "gpu": gpu_us, "now": now})
    tally.write(session)
    if changed:
        session.execute(_SET_HOLD, changed)


#: As tables and not as classes: one statement that is run for many rows.
_HOLDS = cast(sa.Table, Hold.__table__)
_SEGMENTS = cast(sa.Table, Segment.__table__)
_ENTRIES = cast(sa.Table, Entry.__table__)
_SET_HOLD = (
    sa.update(_HOLDS)
    .where(_HOLDS.c.id == sa.bindparam("hold"))
    .values(
        amount_u=sa.bindparam("amount"), gpu_us=sa.bindparam("gpu"),
        updated_us=sa.bindparam("now"),
    )
)  # fmt: skip


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
    set_holds(session, {lease.id: (0, 0)}, now=now)
    session.execute(
        sa.update(Hold)
        .where(Hold.lease_id == lease.id, Hold.state == "open")
        .values(state="closed", updated_us=now)
        .execution_options(synchronize_session=False)
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
        assert lease.covered_us is not None and lease.billed_us is not None
        if lease.covered_us > lease.billed_us:
            known = rates(session, lease.price_list, lease.slice_type)
            open_part = _pieces(lease, lease.covered_us, known, final=True, timezones=timezones)
            user += segments.total(open_part, "user")
            platform += sum(piece.amount_u for piece in open_part if piece.payer != "user")
    return user, platform
