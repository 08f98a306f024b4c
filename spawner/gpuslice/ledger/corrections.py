"""Corrections of what was paid: new entries that point at the old ones, never an edit.

A refund moves money back to whom it came from, into the credit it came out of; a surcharge takes
more. Both count in the period of what they correct.
"""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from gpuslice.errors import Refused
from gpuslice.ledger import accounts, counters, credit
from gpuslice.ledger.tables import Entry, Lease, Segment
from gpuslice.units import format_money

Kind = Literal["refund", "surcharge"]


def correct(
    session: Session, entry_id: int, kind: Kind, amount_u: int, *, key: str, actor: str,
    reason: str, now: int,
) -> Entry:  # fmt: skip
    """Give back a part of what an entry paid, or take more for what it paid for.

    Args:
        key: Permanent and unique: the same correction twice fails on it.

    Raises:
        Refused: no such payment, or more than it paid would be given back.
    """
    paid = session.get(Entry, entry_id, with_for_update=True)
    segment = None if paid is None else session.get(Segment, paid.segment_id)
    if paid is None or segment is None or paid.kind != "usage":
        raise Refused(
            "no-such-payment", "There is no entry of that number that pays for a lease.", status=404
        )
    if kind == "refund":
        back = refunded(session, entry_id)
        if back + amount_u > paid.amount_u:
            raise Refused(
                "refund-too-large",
                f"Entry {entry_id} paid {format_money(paid.amount_u, places=6)}, of which "
                f"{format_money(back, places=6)} went back already; no more than the rest can.",
                status=409,
            )
    revenue = accounts.platform(session, "revenue", now)
    gives_back = kind == "refund"
    entry = Entry(
        idem_key=f"{kind}:{key}", kind=kind, amount_u=amount_u, corrects_id=entry_id,
        debit_id=revenue if gives_back else paid.debit_id,
        credit_id=paid.debit_id if gives_back else revenue,
        grant_id=paid.grant_id if gives_back else None,
        actor=actor[:255], memo=reason[:500], created_us=now,
    )  # fmt: skip
    session.add(entry)
    if gives_back and paid.grant_id is not None:
        credit.use(session, paid.grant_id, -amount_u)
    chain = counters.of_lease(session, segment.lease_id)
    counters.spend(session, chain, segment.from_us, -amount_u if gives_back else amount_u, 0)
    lease = session.get_one(Lease, segment.lease_id)
    counters.add_to_slice(session, lease.slice_type, kind, 0, amount_u)
    session.flush()
    return entry


def refunded(session: Session, entry_id: int) -> int:
    """What of an entry went back already, micro-units."""
    total = session.scalar(
        sa.select(sa.func.sum(Entry.amount_u)).where(
            Entry.corrects_id == entry_id, Entry.kind == "refund"
        )
    )
    return int(total or 0)


def of_lease(session: Session, lease_id: str) -> int:
    """What of a lease's cost went back, less what was charged for it in addition, micro-units."""
    paid = aliased(Entry)
    sums = dict(
        session.execute(
            sa.select(Entry.kind, sa.func.sum(Entry.amount_u))
            .join(paid, paid.id == Entry.corrects_id)
            .join(Segment, Segment.id == paid.segment_id)
            .where(Segment.lease_id == lease_id)
            .group_by(Entry.kind)
        ).all()
    )
    return int(sums.get("refund", 0)) - int(sums.get("surcharge", 0))


def payments(session: Session, lease_id: str) -> list[tuple[Entry, int]]:
    """What the user's side paid for a lease, each with what went back already, newest first."""
    rows = session.scalars(
        sa.select(Entry)
        .join(Segment, Segment.id == Entry.segment_id)
        .where(Segment.lease_id == lease_id, Entry.kind == "usage")
        .order_by(Entry.id.desc())
    ).all()
    return [(entry, refunded(session, entry.id)) for entry in rows]
