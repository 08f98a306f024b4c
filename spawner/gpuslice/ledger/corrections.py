"""Corrections of what was paid: new entries that point at the old ones, never an edit.

A refund moves money back to whom it came from, into the credit it came out of; a surcharge takes
more, and can itself be given back. Both count in the period of what they correct. Where that credit
has expired, what goes back is given anew for `AGAIN_US`: it would be gone at the next look.
"""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from gpuslice.errors import Refused
from gpuslice.ledger import accounts, counters, credit
from gpuslice.ledger.tables import Account, CreditGrant, Entry, Lease, Segment
from gpuslice.units import HOUR_US, format_money

Kind = Literal["refund", "surcharge"]

#: So long credit holds that was given back into what had expired.
AGAIN_US = 30 * 24 * HOUR_US


def correct(
    session: Session, entry_id: int, kind: Kind, amount_u: int, *, key: str, actor: str,
    reason: str, now: int,
) -> Entry:  # fmt: skip
    """Give back a part of what an entry paid or took in addition, or take more for what it paid.

    Args:
        key: Permanent and unique: the same correction twice fails on it.

    Raises:
        Refused: no such payment, more than it paid would be given back, or the account whose
            credit paid it is closed.
    """
    paid = session.get(Entry, entry_id, with_for_update=True)
    segment = None if paid is None else _paid_for(session, paid, kind)
    if paid is None or segment is None:
        raise Refused(
            "no-such-payment", "There is no entry of that number that pays for a lease.", status=404
        )
    grant = None if paid.grant_id is None else session.get_one(CreditGrant, paid.grant_id)
    if kind == "refund":
        back = refunded(session, entry_id)
        if back + amount_u > paid.amount_u:
            raise Refused(
                "refund-too-large",
                f"Entry {entry_id} paid {format_money(paid.amount_u, places=6)}, of which "
                f"{format_money(back, places=6)} went back already; no more than the rest can.",
                status=409,
            )
        if grant is not None and session.get_one(Account, grant.account_id).closed_us is not None:
            raise Refused(
                "credit-closed",
                f"Entry {entry_id} was paid from the credit of an account that is closed, where it "
                "is of use to nobody. Give credit to whoever is to have it instead.",
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
    if gives_back and grant is not None:
        credit.use(session, grant.id, -amount_u)
        if grant.expires_us is not None and grant.expires_us <= now:
            credit.renew(
                session, grant, amount_u, key=f"{kind}:{key}", actor=actor, reason=reason,
                now=now, expires_us=now + AGAIN_US,
            )  # fmt: skip
    chain = counters.of_lease(session, segment.lease_id)
    counters.spend(session, chain, segment.from_us, -amount_u if gives_back else amount_u, 0)
    lease = session.get_one(Lease, segment.lease_id)
    counters.add_to_slice(session, lease.slice_type, kind, 0, amount_u)
    session.flush()
    return entry


def _paid_for(session: Session, paid: Entry, kind: Kind) -> Segment | None:
    """The segment that an entry pays; None: it pays none, or is not corrected in this way."""
    if paid.kind == "surcharge" and kind == "refund" and paid.corrects_id is not None:
        paid = session.get_one(Entry, paid.corrects_id)
    if paid.kind != "usage" or paid.segment_id is None:
        return None
    return session.get(Segment, paid.segment_id)


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
    paid, first = aliased(Entry), aliased(Entry)
    sums = dict(
        session.execute(
            sa.select(Entry.kind, sa.func.sum(Entry.amount_u))
            .join(paid, paid.id == Entry.corrects_id)
            # A surcharge that is given back has no segment; the entry that it corrected has one.
            .outerjoin(first, first.id == paid.corrects_id)
            .join(Segment, Segment.id == sa.func.coalesce(paid.segment_id, first.segment_id))
            .where(Segment.lease_id == lease_id)
            .group_by(Entry.kind)
        ).all()
    )
    return int(sums.get("refund", 0)) - int(sums.get("surcharge", 0))


def payments(session: Session, lease_id: str) -> list[tuple[Entry, int]]:
    """What the user's side paid for a lease, surcharges too, each with what went back already,
    newest first."""
    usage = (
        sa.select(Entry.id)
        .join(Segment, Segment.id == Entry.segment_id)
        .where(Segment.lease_id == lease_id, Entry.kind == "usage")
    )
    rows = session.scalars(
        sa.select(Entry)
        .where(
            sa.or_(
                Entry.id.in_(usage),
                sa.and_(Entry.kind == "surcharge", Entry.corrects_id.in_(usage)),
            )
        )
        .order_by(Entry.id.desc())
    ).all()
    return [(entry, refunded(session, entry.id)) for entry in rows]
