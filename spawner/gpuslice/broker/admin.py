"""What administrators read and change: bills, limits, and the record of who changed what."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.ledger.tables import Account, Audit, Entry, Price, Segment
from gpuslice.quotas import policies
from gpuslice.quotas.documents import UNLIMITED, PolicyDocument

_SCOPES = {"everyone": "default", "user": "user", "group": "group_member"}


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


def limits(
    session: Session, find: str | None, after: int | None, limit: int
) -> tuple[list[wire.LimitView], int | None]:
    """Limits on leases that hold now, the default first, and the ``after`` of the next page.

    Args:
        find: Only of those with this in their names.
    """
    found: list[policies.Stored] = []
    start = -1 if after is None else after
    while len(found) <= limit:
        # The field may be a group's in total alone: a part of what is read may be left out.
        some = policies.some_current(session, start, limit + 1, find=find, field="slices")
        found += [stored for stored in some if stored.document.each.slices is not None]
        if len(some) <= limit:
            break
        start = some[-1].account_id or 0
    shown = found[:limit]
    following = (shown[-1].account_id or 0) if len(found) > limit else None
    ids = [stored.account_id for stored in shown if stored.account_id is not None]
    query = sa.select(Account.id, Account.label).where(Account.id.in_(ids))
    names = dict(session.execute(query).all())
    return [_view(stored, names.get(stored.account_id or 0)) for stored in shown], following


def _view(stored: policies.Stored, name: str | None) -> wire.LimitView:
    slices = stored.document.each.slices
    return wire.LimitView.model_validate(
        {
            "scope": _SCOPES[stored.subject.partition(":")[0]],
            "name": name,
            "value": None if slices == UNLIMITED else slices,
            "version": stored.version,
            "since_us": stored.valid_from_us,
            "actor": stored.actor,
        }
    )


def set_limit(session: Session, body: wire.SetLimit, *, actor: str, now: int) -> wire.LimitView:
    """Change how many leases somebody may hold, and nothing else of that policy.

    Raises:
        Refused: the policy was changed by somebody else since it was read, or names nobody.
    """
    account_id, kind = None, "everyone"
    if body.scope != "default":
        if body.name is None:
            raise Refused(
                "name-missing", f"A limit of scope {body.scope} needs a name.", status=400
            )
        kind = "user" if body.scope == "user" else "group"
        account_id = policies.account_of(session, kind, body.name, now)
    elif body.name is not None:
        raise Refused("name-given", "The default limit is everybody's: give no name.", status=400)
    subject = policies.subject_of(kind, account_id)
    before = policies.current(session, subject)
    document = before.document if before is not None else PolicyDocument()
    slices = UNLIMITED if body.value is None else body.value
    each = document.each.model_copy(update={"slices": slices})
    after = policies.set_policy(
        session, subject, account_id, document.model_copy(update={"each": each}),
        expected=body.version, actor=actor, reason=body.reason, now=now,
        name=f"policy of {body.name or 'everybody'} ({body.scope})",
    )  # fmt: skip
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
