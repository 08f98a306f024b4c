"""Many users' limits and credit from one list: compared, shown, and written all or nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker import people
from gpuslice.broker.core import HubUser
from gpuslice.broker.peopleviews import ImportChange, ImportPeople, ImportRow
from gpuslice.errors import Refused
from gpuslice.ledger import accounts, credit
from gpuslice.ledger.tables import Entry
from gpuslice.quotas import policies
from gpuslice.quotas.documents import PolicyDocument


@dataclass(frozen=True)
class _Plan:
    """What one row would do to one user."""

    row: ImportRow
    account_id: int | None
    before: policies.Stored | None
    after: PolicyDocument | None
    #: What was given under the list's credit name before, micro-units.
    given_u: int | None


def compare(
    session: Session, body: ImportPeople, users: Sequence[HubUser] | None
) -> list[ImportChange]:
    """What would change; ``users`` is what the hub has, None: it did not say.

    Raises:
        Refused: a user twice, or credit without a name for it.
    """
    plans = _plans(session, body)
    listed = None if users is None else {user.name: user.groups for user in users}
    return [_change(plan, listed) for plan in plans]


def apply(session: Session, body: ImportPeople, *, actor: str, now: int) -> list[ImportChange]:
    """Do what `compare` says, and the same again does nothing.

    Raises:
        Refused: as there, or other credit was given under this name.
    """
    plans = _plans(session, body)
    changes = [_change(plan, None) for plan in plans]
    for plan, change in zip(plans, changes, strict=True):
        if change.credit == "differs":
            raise Refused(
                "credit-differs",
                f"{plan.row.user[:64]} was given another amount as {body.credit_name} before; "
                "give this credit another name.",
                status=409,
            )
        _write(session, body, plan, change, actor, now)
    return changes


def _plans(session: Session, body: ImportPeople) -> list[_Plan]:
    names = [row.user for row in body.rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Refused("named-twice", f"{twice[0][:64]} is in this list twice.", status=422)
    if body.credit_name is None and any(row.credit_u for row in body.rows):
        raise Refused(
            "credit-name-missing",
            "Credit in a list needs a name (such as winter-2026), so that it is given only once.",
            status=422,
        )
    return [_plan(session, row, body.credit_name) for row in body.rows]


def _plan(session: Session, row: ImportRow, credit_name: str | None) -> _Plan:
    account_id = accounts.find(session, accounts.HUB_USER, row.user)
    before = None
    if account_id is not None:
        before = policies.current(session, policies.subject_of("user", account_id))
    document = before.document if before is not None else PolicyDocument()
    said = {name: getattr(row.each, name) for name in row.each.model_fields_set}
    after = document.model_copy(update={"each": document.each.model_copy(update=said)})
    given_u = None
    if account_id is not None and row.credit_u is not None and credit_name is not None:
        given_u = session.scalar(
            sa.select(Entry.amount_u).where(
                Entry.idem_key == f"credit:{_key(credit_name, account_id)}"
            )
        )
    return _Plan(row, account_id, before, None if after == PolicyDocument() else after, given_u)


def _key(credit_name: str, account_id: int) -> str:
    """Permanent: the same credit of the same list is given once."""
    return f"import:{credit_name}:{account_id}"


def _change(plan: _Plan, listed: Mapping[str, Collection[str]] | None) -> ImportChange:
    before = plan.before.document if plan.before is not None else None
    verb = "none" if before is None and plan.after is None else "unchanged"
    if before != plan.after:
        verb = "created" if before is None else "changed" if plan.after is not None else "removed"
    gave = "none"
    if plan.row.credit_u is not None:
        gave = "given"
        if plan.given_u is not None:
            gave = "given-before" if plan.given_u == plan.row.credit_u else "differs"
    in_hub = None if listed is None else plan.row.user in listed
    groups = None if listed is None else set(listed.get(plan.row.user, ()))
    return ImportChange.model_validate(
        {
            "user": plan.row.user, "policy": verb, "before": before, "after": plan.after,
            "credit": gave, "credit_u": plan.row.credit_u, "in_hub": in_hub,
            "not_in_groups": None if groups is None
            else [name for name in plan.row.groups if name not in groups],
        }
    )  # fmt: skip


def _write(
    session: Session, body: ImportPeople, plan: _Plan, change: ImportChange, actor: str, now: int
) -> None:
    writes_policy = change.policy in ("created", "changed", "removed")
    if not writes_policy and change.credit != "given":
        return
    user = plan.row.user
    account_id = policies.account_of(session, "user", user, now)
    if writes_policy:
        policies.set_policy(
            session, policies.subject_of("user", account_id), account_id, plan.after,
            expected=plan.before.version if plan.before is not None else None, actor=actor,
            reason=body.reason, now=now, name=f"policy of user {user}",
        )  # fmt: skip
    if change.credit == "given":
        assert plan.row.credit_u is not None and body.credit_name is not None
        credit.give(
            session, account_id, plan.row.credit_u, key=_key(body.credit_name, account_id),
            actor=actor, reason=body.reason, now=now,
        )  # fmt: skip
        people.audit(
            session, "credit.give", f"user {user}", actor=actor, reason=body.reason, now=now,
            after=f"{plan.row.credit_u} as {body.credit_name}",
        )  # fmt: skip
