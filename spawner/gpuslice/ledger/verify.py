"""Proves a ledger from its facts: segments tile, entries pay, projections rebuild to the same.

Written apart from the code that bills, so that a mistake there is seen here. Reads one
consistent snapshot; changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger import accounts
from gpuslice.ledger.tables import (
    LIVE_STATES,
    AccountPeriod,
    Entry,
    Hold,
    Lease,
    Price,
    Segment,
)

_SETTLED = ("settled", "ended")
_HOLDING = ("granted", "running", "stopping", "revoking")


def verify(session: Session) -> list[str]:
    """Every way in which the ledger contradicts itself, one sentence each; empty is clean."""
    return [
        *_leases(session),
        *_entries(session),
        *_holds(session),
        *_projections(session),
    ]


# --- leases and their segments ----------------------------------------------------------------


def _leases(session: Session) -> Iterator[str]:
    prices = {price.id: price for price in session.scalars(sa.select(Price))}
    lists = _price_lists(prices)
    segments: dict[str, list[Segment]] = defaultdict(list)
    for segment in session.scalars(sa.select(Segment).order_by(Segment.lease_id, Segment.from_us)):
        segments[segment.lease_id].append(segment)
    for lease in session.scalars(sa.select(Lease).order_by(Lease.id)):
        mine = segments.pop(lease.id, [])
        yield from _tiles(lease, mine)
        known = lists.get((lease.price_list, lease.slice_type), [])
        for segment in mine:
            yield from _priced(lease, segment, prices, known)
    for lease_id in segments:
        yield f"segments of lease {lease_id}, which does not exist"


def _price_lists(prices: dict[int, Price]) -> dict[tuple[str, str], list[Price]]:
    found: dict[tuple[str, str], list[Price]] = defaultdict(list)
    for price in sorted(prices.values(), key=lambda price: price.effective_from_us):
        found[price.price_list, price.slice_type].append(price)
    return found


def _tiles(lease: Lease, mine: list[Segment]) -> Iterator[str]:
    """From *started* to what is paid without gap or overlap; to *finished* once it is settled."""
    where = f"lease {lease.id}"
    if lease.started_us is None:
        if mine:
            yield f"{where} never started but has {len(mine)} segments"
        if lease.state in (*_SETTLED, "running", "stopping"):
            yield f"{where} is {lease.state} but never started"
        return
    at = lease.started_us
    for segment in mine:
        if segment.from_us != at:
            kind = "gap" if segment.from_us > at else "overlap"
            yield f"{where}: {kind} between {at} and {segment.from_us}"
        at = segment.til_us
    if at != lease.billed_us:
        yield f"{where}: segments end at {at}, billed_us says {lease.billed_us}"
    if lease.state in _SETTLED and at != lease.finished_us:
        yield f"{where}: finished at {lease.finished_us} but billed to {at}"
    if lease.covered_us is None or lease.covered_us < at:
        yield f"{where}: billed to {at} but seen alive only to {lease.covered_us}"


def _priced(
    lease: Lease, segment: Segment, prices: dict[int, Price], known: list[Price]
) -> Iterator[str]:
    """The price is the one in force, for the whole segment, and the amount follows from it."""
    where = f"segment {segment.id} of lease {lease.id}"
    price = prices.get(segment.price_id)
    in_force = [p for p in known if p.effective_from_us <= segment.from_us]
    if price is None or not in_force or in_force[-1].id != price.id:
        yield f"{where}: price {segment.price_id} was not in force at {segment.from_us}"
        return
    if any(segment.from_us < p.effective_from_us < segment.til_us for p in known):
        yield f"{where} spans a change of price"
    assert lease.started_us is not None
    origin = max(lease.started_us, price.effective_from_us)
    before = price.rate_u_per_hour * (segment.from_us - origin) // 3_600_000_000
    after = price.rate_u_per_hour * (segment.til_us - origin) // 3_600_000_000
    if segment.amount_u != after - before:
        yield f"{where}: amount {segment.amount_u}, its time costs {after - before}"
    stop = lease.stop_requested_us
    if stop is not None and segment.from_us < stop < segment.til_us:
        yield f"{where} spans the stop request at {stop}"
    payer = "writeoff" if stop is not None and segment.from_us >= stop else "user"
    if segment.payer != payer:
        yield f"{where}: paid by {segment.payer}, should be {payer}"


# --- entries ----------------------------------------------------------------------------------


def _entries(session: Session) -> Iterator[str]:
    """Every segment is paid exactly, by the right account, to revenue."""
    writeoff = accounts.find(session, accounts.OURS, "writeoff")
    revenue = accounts.find(session, accounts.OURS, "revenue")
    paid: dict[int, int] = defaultdict(int)
    query = (
        sa.select(Entry, Segment.payer, Lease.account_id)
        .join(Segment, Entry.segment_id == Segment.id)
        .join(Lease, Segment.lease_id == Lease.id)
        .order_by(Entry.id)
    )
    for entry, payer, account_id in session.execute(query):
        paid[entry.segment_id or 0] += entry.amount_u
        debit = account_id if payer == "user" else writeoff
        if entry.debit_id != debit or entry.credit_id != revenue:
            moves = f"{entry.debit_id} → {entry.credit_id}"
            yield f"entry {entry.id} moves {moves}, not {debit} → {revenue}"
    for segment_id, amount in session.execute(sa.select(Segment.id, Segment.amount_u)):
        if paid.get(segment_id, 0) != amount:
            yield f"segment {segment_id} costs {amount} but {paid.get(segment_id, 0)} was paid"


# --- holds and projections --------------------------------------------------------------------


def _holds(session: Session) -> Iterator[str]:
    """A lease reserves money exactly while it may still cost some."""
    open_holds = set(
        session.execute(sa.select(Hold.lease_id, Hold.account_id).where(Hold.state == "open")).all()
    )
    holding = set(
        session.execute(
            sa.select(Lease.id, Lease.account_id).where(Lease.state.in_(_HOLDING))
        ).all()
    )
    for lease_id, _ in sorted(holding - open_holds):
        yield f"lease {lease_id} is not settled but holds no money"
    for lease_id, _ in sorted(open_holds - holding):
        yield f"lease {lease_id} is settled but still holds money"


def _projections(session: Session) -> Iterator[str]:
    """What is stored per account equals what its entries, holds and leases give."""
    spent = _sums(session, sa.select(Entry.debit_id, sa.func.sum(Entry.amount_u)).where(
        Entry.kind == "usage").group_by(Entry.debit_id))  # fmt: skip
    held = _sums(session, sa.select(Hold.account_id, sa.func.sum(Hold.amount_u)).where(
        Hold.state == "open").group_by(Hold.account_id))  # fmt: skip
    active = _sums(session, sa.select(Lease.account_id, sa.func.count()).where(
        Lease.state.in_(LIVE_STATES)).group_by(Lease.account_id))  # fmt: skip
    stored = {
        row.account_id: row
        for row in session.scalars(
            sa.select(AccountPeriod).where(
                AccountPeriod.slice_type == "", AccountPeriod.period == "life"
            )
        )
    }
    for account_id in sorted({*spent, *held, *active, *stored}):
        row = stored.get(account_id)
        is_ = (row.spent_u, row.held_u, row.active) if row is not None else (0, 0, 0)
        should = (spent.get(account_id, 0), held.get(account_id, 0), active.get(account_id, 0))
        if is_ != should:
            yield (f"account {account_id}: (spent, held, active) is {is_}, its facts give {should}")


def _sums(session: Session, query: sa.Select[int, int]) -> dict[int, int]:
    return {account_id: int(value) for account_id, value in session.execute(query)}
