"""Policies as they are kept: versions of documents, set with an actor and never edited."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.errors import Refused
from gpuslice.hubnames import user_name
from gpuslice.ledger import accounts
from gpuslice.ledger.tables import Account, Audit, Policy
from gpuslice.quotas.documents import UNLIMITED, PolicyDocument

#: The actor of what came from gpuslice.toml.
SETTINGS = "settings"
EVERYONE = "everyone"
_SOURCES = {"user": accounts.HUB_USER, "group": accounts.HUB_GROUP}


@dataclass(frozen=True)
class Stored:
    """One version of a policy."""

    subject: str
    account_id: int | None
    version: int
    document: PolicyDocument
    valid_from_us: int
    valid_til_us: int | None
    actor: str
    reason: str | None


def subject_of(kind: str, account_id: int | None) -> str:
    """What a policy is kept under: ``everyone``, ``user:ID`` or ``group:ID``."""
    return EVERYONE if account_id is None else f"{kind}:{account_id}"


def current(session: Session, subject: str) -> Stored | None:
    """The version that holds now."""
    row = session.scalar(
        sa.select(Policy).where(Policy.subject == subject, Policy.valid_til_us.is_(None))
    )
    return None if row is None else _stored(row)


_CURRENT_OF = sa.select(Policy).where(
    Policy.subject.in_(sa.bindparam("subjects", expanding=True)), Policy.valid_til_us.is_(None)
)


def some(session: Session, subjects: Collection[str]) -> dict[str, Stored]:
    """The versions that hold now, of those subjects that have one."""
    rows = session.scalars(_CURRENT_OF, {"subjects": sorted(subjects)})
    return {row.subject: _stored(row) for row in rows}


def versions(session: Session, subjects: Collection[str]) -> dict[str, list[Stored]]:
    """Every version there ever was of these subjects, newest first."""
    rows = session.scalars(
        sa.select(Policy)
        .where(Policy.subject.in_(subjects))
        .order_by(Policy.subject, Policy.version.desc())
    )
    found: dict[str, list[Stored]] = defaultdict(list)
    for row in rows:
        found[row.subject].append(_stored(row))
    return found


def at(known: Iterable[Stored], moment: int) -> Stored | None:
    """The version that held at a moment, of one subject's `versions`."""
    for stored in known:
        til = stored.valid_til_us
        if stored.valid_from_us <= moment and (til is None or til > moment):
            return stored
    return None


def every_current(session: Session) -> list[Stored]:
    """All policies that hold now."""
    rows = session.scalars(
        sa.select(Policy).where(Policy.valid_til_us.is_(None)).order_by(Policy.subject)
    )
    return [_stored(row) for row in rows]


def some_current(
    session: Session, after: int, limit: int, *, find: str | None = None, field: str | None = None
) -> list[Stored]:
    """Policies that hold now, by their accounts' numbers from above ``after`` on; everyone's is 0.

    An account keeps its number whatever happens to its policy, so a walk over these pages meets
    every policy that stays, once.

    Args:
        find: Only those of accounts with this in their names.
        field: Leave out what nowhere has this field; where in a document it is, is not looked at.
    """
    number = sa.func.coalesce(Policy.account_id, 0)
    query = sa.select(Policy).where(Policy.valid_til_us.is_(None), number > after)
    if find is not None:
        named = sa.select(Account.id).where(Account.label.icontains(find, autoescape=True))
        query = query.where(Policy.account_id.in_(named))
    if field is not None:
        query = query.where(Policy.document.contains(f'"{field}":', autoescape=True))
    return [_stored(row) for row in session.scalars(query.order_by(number).limit(limit))]


def history(
    session: Session, subject: str, *, before: int | None = None, limit: int | None = None
) -> list[Stored]:
    """Every version there ever was, newest first; ``before`` a version, and so many at most."""
    query = sa.select(Policy).where(Policy.subject == subject).order_by(Policy.version.desc())
    if before is not None:
        query = query.where(Policy.version < before)
    return [_stored(row) for row in session.scalars(query.limit(limit))]


def _stored(row: Policy) -> Stored:
    return Stored(
        subject=row.subject, account_id=row.account_id, version=row.version,
        document=_document(row.document),
        valid_from_us=row.valid_from_us, valid_til_us=row.valid_til_us, actor=row.actor,
        reason=row.reason,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _document(text: str) -> PolicyDocument:
    """The document that a text is: read at every admission, and few are ever different."""
    return PolicyDocument.model_validate_json(text)


def set_policy(
    session: Session,
    subject: str,
    account_id: int | None,
    document: PolicyDocument | None,
    *,
    expected: int | None,
    actor: str,
    reason: str | None,
    now: int,
    name: str | None = None,
) -> Stored | None:
    """Make ``document`` the policy from now on; None removes it. The old version is kept.

    Args:
        expected: The version that was read; None: there was none.
        name: Whose it is, for the audit.

    Raises:
        Refused: somebody else changed it in the meantime, or it says what its subject cannot.
    """
    if document is not None and document.total is not None and not subject.startswith("group:"):
        raise Refused(
            "total-of-a-user", "Only a group has limits in all; a user's are under 'each'.",
            status=422,
        )  # fmt: skip
    before = current(session, subject)
    if (before.version if before is not None else None) != expected:
        is_now = f"it is at version {before.version}" if before else "there is none any more"
        raise Refused(
            "stale-version",
            f"This policy was changed by somebody else in the meantime ({is_now}); "
            "look at it again.",
            status=409,
        )
    if document == (before.document if before is not None else None):
        return before
    if before is not None:
        session.execute(
            sa.update(Policy)
            .where(Policy.subject == subject, Policy.valid_til_us.is_(None))
            .values(valid_til_us=now)
            .execution_options(synchronize_session=False)
        )
    if document is not None:
        newest = session.scalar(
            sa.select(sa.func.max(Policy.version)).where(Policy.subject == subject)
        )
        session.add(
            Policy(
                subject=subject, account_id=account_id, version=(newest or 0) + 1,
                document=_json(document), valid_from_us=now, actor=actor[:255],
                reason=None if reason is None else reason[:500],
            )
        )  # fmt: skip
    session.add(
        Audit(
            at_us=now, actor=actor[:255], reason=None if reason is None else reason[:500],
            action="policy.set" if document is not None else "policy.remove",
            subject=(name or subject)[:255],
            before=None if before is None else _json(before.document),
            after=None if document is None else _json(document),
        )
    )  # fmt: skip
    session.flush()
    return current(session, subject)


def _json(document: PolicyDocument) -> str:
    return document.model_dump_json(exclude_defaults=True)


def zones(session: Session) -> frozenset[str]:
    """The time zones that policies name now."""
    named = {stored.document.timezone for stored in every_current(session)}
    return frozenset(zone for zone in named if zone is not None)


def account_of(session: Session, kind: str, name: str, now: int) -> int:
    """The account of a user or a group, opened on first use.

    Raises:
        Refused: ``no-such-name``: no user of the hub can be called like that.
    """
    found = accounts.find(session, _SOURCES[kind], name)
    if found is not None:
        return found
    if kind == "user":
        try:
            user_name(name)
        except ValueError as error:
            raise Refused("no-such-name", f"{name[:100]!r} is {error}.", status=422) from None
    return accounts.find_or_open(session, _SOURCES[kind], name, now)


def follow_settings(session: Session, slices: int | None, *, now: int) -> None:
    """Make the configured number of slices everybody's if the configuration has changed.

    What an administrator has set since the configuration was last read stands: a restart changes
    no limit.
    """
    value = UNLIMITED if slices is None else slices
    configured = session.scalar(
        sa.select(Policy)
        .where(Policy.subject == EVERYONE, Policy.actor == SETTINGS)
        .order_by(Policy.version.desc())
        .limit(1)
    )
    if configured is not None and _stored(configured).document.each.slices == value:
        return
    before = current(session, EVERYONE)
    document = before.document if before is not None else PolicyDocument()
    changed = document.model_copy(
        update={"each": document.each.model_copy(update={"slices": value})}
    )
    set_policy(
        session, EVERYONE, None, changed, expected=before.version if before else None,
        actor=SETTINGS, reason="gpuslice.toml", now=now,
    )  # fmt: skip
