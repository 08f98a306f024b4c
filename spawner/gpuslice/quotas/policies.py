"""Limits: set as new versions, read as the one limit that holds for a user now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger import accounts
from gpuslice.ledger.tables import Audit, QuotaPolicy

#: How many leases one account may hold at a time, of any slice type.
CONCURRENT_SLICES = "concurrent_slices"
#: The actor of what came from gpuslice.toml.
SETTINGS = "settings"


@dataclass(frozen=True)
class Limit:
    """A limit that holds, and where it comes from, for the refusal's text."""

    value: int | None
    source: str


def _slot(scope: str, account_id: int | None, kind: str) -> str:
    return f"{scope}/{account_id or ''}/{kind}//life"


def current(session: Session, scope: str, account_id: int | None, kind: str) -> QuotaPolicy | None:
    """The version of a policy that holds now."""
    return session.scalar(
        sa.select(QuotaPolicy).where(
            QuotaPolicy.slot == _slot(scope, account_id, kind), QuotaPolicy.valid_til_us.is_(None)
        )
    )


def set_limit(
    session: Session,
    scope: str,
    account_id: int | None,
    kind: str,
    value: int | None,
    *,
    actor: str,
    now: int,
    reason: str | None = None,
    subject: str | None = None,
) -> bool:
    """Make ``value`` (None: unlimited) the limit from now on; returns whether it changed."""
    before = current(session, scope, account_id, kind)
    if before is not None and before.limit_value == value:
        return False
    if before is not None:
        before.valid_til_us = now
        session.flush()
    slot = _slot(scope, account_id, kind)
    session.add(
        QuotaPolicy(
            slot=slot, scope=scope, account_id=account_id, kind=kind, limit_value=value,
            valid_from_us=now, actor=actor,
        )
    )  # fmt: skip
    session.add(
        Audit(
            at_us=now, actor=actor, action="quota.set", subject=subject or slot, reason=reason,
            before=None if before is None else json.dumps(before.limit_value),
            after=json.dumps(value),
        )
    )  # fmt: skip
    session.flush()
    return True


def follow_settings(session: Session, kind: str, value: int | None, *, now: int) -> None:
    """Make the configured default hold if the configuration has changed since it was last read.

    A default that an administrator has set since then stands: a restart changes no limit.
    """
    configured = session.scalar(
        sa.select(QuotaPolicy)
        .where(QuotaPolicy.slot == _slot("default", None, kind), QuotaPolicy.actor == SETTINGS)
        .order_by(QuotaPolicy.id.desc())
        .limit(1)
    )
    if configured is None or configured.limit_value != value:
        set_limit(session, "default", None, kind, value, actor=SETTINGS, now=now)


def limit_for(session: Session, account_id: int, groups: Sequence[str], kind: str) -> Limit:
    """The limit that holds for a user: the user's own, else the groups', else the default.

    Of several groups the most generous counts: a user is in a course *and* in a lab to have what
    either gives. Without any policy there is no limit.
    """
    own = current(session, "user", account_id, kind)
    if own is not None:
        return Limit(own.limit_value, "your own limit")
    of_groups = []
    for group in groups:
        group_account = accounts.find(session, accounts.HUB_GROUP, group)
        if group_account is None:
            continue
        policy = current(session, "group_member", group_account, kind)
        if policy is not None:
            of_groups.append(Limit(policy.limit_value, f"the limit of group {group}"))
    if of_groups:
        unlimited = [limit for limit in of_groups if limit.value is None]
        return (unlimited or sorted(of_groups, key=lambda limit: -(limit.value or 0)))[0]
    default = current(session, "default", None, kind)
    if default is not None:
        return Limit(default.limit_value, "the limit for everybody")
    return Limit(None, "no limit")
