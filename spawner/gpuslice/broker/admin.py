"""What administrators read and change: bills, limits, and the record of who changed what."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.ledger import accounts
from gpuslice.ledger.tables import Account, Audit, Entry, Price, QuotaPolicy, Segment
from gpuslice.quotas import policies

_SOURCE = {"user": accounts.HUB_USER, "group_member": accounts.HUB_GROUP}


def bill_lines(session: Session, lease_id: str) -> list[wire.BillLine]:
    """A lease's closed segments in their order, each with its price and the entry that paid it."""
    rows = session.execute(
        sa.select(Segment, Price.rate_u_per_hour, Entry.id)
        .join(Price, Segment.price_id == Price.id)
        .outerjoin(Entry, (Entry.segment_id == Segment.id) & (Entry.leg == 0))
        .where(Segment.lease_id == lease_id)
        .order_by(Segment.from_us)
    )
    return [
        wire.BillLine.model_validate(
            {
                "from_us": segment.from_us,
                "til_us": segment.til_us,
                "rate_u_per_hour": rate,
                "payer": segment.payer,
                "amount_u": segment.amount_u,
                "entry_id": entry_id,
            }
        )
        for segment, rate, entry_id in rows
    ]


def limits(session: Session) -> list[wire.LimitView]:
    """All limits on leases that hold now: the default first, then groups and users by name."""
    rows = session.execute(
        sa.select(QuotaPolicy, Account.label)
        .outerjoin(Account, QuotaPolicy.account_id == Account.id)
        .where(
            QuotaPolicy.kind == policies.CONCURRENT_SLICES,
            QuotaPolicy.valid_til_us.is_(None),
            QuotaPolicy.scope.in_(("default", "user", "group_member")),
        )
    )
    found = [_view(policy, name) for policy, name in rows]
    return sorted(found, key=lambda limit: (limit.scope, limit.name or ""))


def _view(policy: QuotaPolicy, name: str | None) -> wire.LimitView:
    return wire.LimitView.model_validate(
        {
            "scope": policy.scope,
            "name": name,
            "value": policy.limit_value,
            "version": policy.id,
            "since_us": policy.valid_from_us,
            "actor": policy.actor,
        }
    )


def set_limit(session: Session, body: wire.SetLimit, *, actor: str, now: int) -> wire.LimitView:
    """Change one limit, with its audit row.

    Raises:
        Refused: the limit was changed by somebody else since it was read, or names nobody.
    """
    account_id = None
    if body.scope != "default":
        if body.name is None:
            raise Refused(
                "name-missing", f"A limit of scope {body.scope} needs a name.", status=400
            )
        account_id = accounts.find_or_open(session, _SOURCE[body.scope], body.name, now)
    elif body.name is not None:
        raise Refused("name-given", "The default limit is everybody's: give no name.", status=400)
    before = policies.current(session, body.scope, account_id, policies.CONCURRENT_SLICES)
    if (before.id if before is not None else None) != body.version:
        raise Refused(
            "stale-version",
            "This limit was changed by somebody else in the meantime; look at it again.",
            status=409,
        )
    policies.set_limit(
        session,
        body.scope,
        account_id,
        policies.CONCURRENT_SLICES,
        body.value,
        actor=actor,
        now=now,
        reason=body.reason,
        subject=f"leases of {body.name or 'everybody'} ({body.scope})"[:255],
    )
    after = policies.current(session, body.scope, account_id, policies.CONCURRENT_SLICES)
    assert after is not None
    return _view(after, body.name)


def audit(session: Session, *, limit: int, before: int | None) -> list[wire.AuditRow]:
    """The newest administrative acts, or those before number ``before``."""
    query = sa.select(Audit).order_by(Audit.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Audit.id < before)
    return [
        wire.AuditRow(
            id=row.id,
            at_us=row.at_us,
            actor=row.actor,
            action=row.action,
            subject=row.subject,
            before=row.before,
            after=row.after,
            reason=row.reason,
        )
        for row in session.scalars(query)
    ]
