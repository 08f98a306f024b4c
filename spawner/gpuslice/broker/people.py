"""The life of accounts, each move a function that runs in the caller's transaction.

An account is opened by its first lease or limit, may get another name, and is closed for ever. A
name that is free again opens another account, with nothing in it. Leases are found by their
user's name, so the leases of a renamed account take the new name, and those of a closed one a
name that nobody can have: whoever comes next under the old name sees none of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker import queue
from gpuslice.broker.core import HubUser
from gpuslice.errors import Refused
from gpuslice.ledger import accounts, credit
from gpuslice.ledger.tables import (
    LIVE_STATES,
    WAITING_STATES,
    Account,
    AccountName,
    Audit,
    Lease,
    QueueRequest,
)
from gpuslice.quotas import policies
from gpuslice.quotas.chain import MAX_DEPTH

#: The actor of what follows from the hub's list of users.
HUB = "hub"
#: If the hub lacks more than one in so many of its users, it is the hub that is doubted.
_ONE_IN = 4


def audit(
    session: Session, action: str, subject: str, *, actor: str, reason: str, now: int,
    before: str | None = None, after: str | None = None,
) -> None:  # fmt: skip
    """Note who did it and why, in the transaction that does it."""
    session.add(
        Audit(at_us=now, actor=actor[:255], action=action, subject=subject[:255], before=before,
              after=after, reason=reason[:500])
    )  # fmt: skip
    session.flush()


# --- looking ------------------------------------------------------------------------------------


def of_name(session: Session, kind: str, name: str) -> Account:
    """The open account of a user or a group, fresh from the database.

    Raises:
        Refused: ``no-such-account``.
    """
    source = accounts.HUB_USER if kind == "user" else accounts.HUB_GROUP
    account_id = accounts.find(session, source, name)
    if account_id is None:
        raise Refused(
            "no-such-account", f"There is no open account of {kind} {name[:64]!r}.", status=404
        )
    return of_id(session, account_id)


def of_id(session: Session, account_id: int) -> Account:
    """Any account, closed ones too.

    Raises:
        Refused: ``no-such-account``.
    """
    account = session.get(Account, account_id, populate_existing=True)
    if account is None:
        raise Refused("no-such-account", f"There is no account {account_id}.", status=404)
    return account


def live_leases(session: Session, account_id: int) -> int:
    """How many leases of a user are not over."""
    return session.scalar(
        sa.select(sa.func.count()).where(
            Lease.account_id == account_id, Lease.state.in_(LIVE_STATES)
        )
    ) or 0  # fmt: skip


def waiting(session: Session, account_id: int) -> list[QueueRequest]:
    """A user's requests that are not over."""
    return list(
        session.scalars(
            sa.select(QueueRequest)
            .where(QueueRequest.account_id == account_id, QueueRequest.state.in_(WAITING_STATES))
            .order_by(QueueRequest.id)
        )
    )


def _check(account: Account, version: int) -> None:
    if account.version != version:
        raise Refused(
            "stale-version",
            f"This account was changed by somebody else in the meantime (it is at version "
            f"{account.version}); look at it again.",
            status=409,
        )


# --- users --------------------------------------------------------------------------------------


def rename(
    session: Session, old: str, new: str, version: int, *, actor: str, reason: str, now: int
) -> Account:
    """The user has another name from now on; account, money, limits and history stay.

    Not while a lease lives: its server has the old name at the engine and in the hub, which ask
    about it by name until it has ended.

    Raises:
        Refused: no such user, changed in the meantime, the new name is taken, or a lease lives.
    """
    account = of_name(session, "user", old)
    _check(account, version)
    taken = accounts.find(session, accounts.HUB_USER, new)
    if taken is not None:
        which = "its own" if taken == account.id else f"that of account {taken}"
        raise Refused(
            "name-taken",
            f"The name {new[:64]!r} is {which}. If the same person has begun to use it, close "
            "that account first; what it was charged stays with it.",
            status=409,
        )
    if live_leases(session, account.id):
        raise Refused(
            "still-leased", f"{old[:64]} has a live lease; stop it first: its server is known by "
            "the old name until it has ended.", status=409,
        )  # fmt: skip
    _rename(session, account.id, old, new, actor=actor, reason=reason, now=now)
    return of_id(session, account.id)


def _rename(
    session: Session, account_id: int, old: str, new: str, *, actor: str, reason: str, now: int
) -> None:
    accounts.rename(session, account_id, new, now)
    _call(session, account_id, new)
    audit(session, "user.rename", f"user {old}", actor=actor, reason=reason, now=now,
          before=old, after=new)  # fmt: skip


def close(
    session: Session, name: str, version: int, *, actor: str, reason: str, now: int
) -> Account:
    """The user is gone: the account is closed and never used again, its name is free.

    What is left of its credit goes back, and its policy ends.

    Raises:
        Refused: no such user, changed in the meantime, a lease lives, or a request waits.
    """
    account = of_name(session, "user", name)
    _check(account, version)
    if live_leases(session, account.id):
        raise Refused("still-leased", f"{name[:64]} has a live lease; stop it first.", status=409)
    if waiting(session, account.id):
        raise Refused(
            "still-waiting", f"{name[:64]} waits in the queue; end that first.", status=409
        )
    _close(session, account.id, name, actor=actor, reason=reason, now=now)
    return of_id(session, account.id)


def _close(
    session: Session, account_id: int, name: str, *, actor: str, reason: str, now: int
) -> None:
    # No name of the hub has a '/', so this one is nobody's.
    former = f"{name[:230]}/{account_id}"
    subject = policies.subject_of("user", account_id)
    policy = policies.current(session, subject)
    if policy is not None:
        policies.set_policy(
            session, subject, account_id, None, expected=policy.version, actor=actor,
            reason=reason, now=now, name=f"policy of user {name}",
        )  # fmt: skip
    back_u = credit.take_back(session, account_id, actor=actor, reason=reason, now=now)
    accounts.close(session, account_id, former, now)
    _call(session, account_id, former)
    audit(session, "user.close", f"user {name}", actor=actor, reason=reason, now=now,
          before=name, after=f"{former}; credit taken back: {back_u}")  # fmt: skip


def _call(session: Session, account_id: int, name: str) -> None:
    """Leases and requests are found by their user's name: it is the account's."""
    for table in (Lease, QueueRequest):
        session.execute(
            sa.update(table)
            .where(table.account_id == account_id)
            .values(user_name=name)
            .execution_options(synchronize_session=False)
        )


# --- groups -------------------------------------------------------------------------------------


def set_parent(
    session: Session, name: str, parent: str | None, version: int | None, *, actor: str,
    reason: str, now: int,
) -> Account:  # fmt: skip
    """Put a group below another, or below none; leases count for the new one from their start on.

    A group that has no account yet gets one, as by its first limit.

    Raises:
        Refused: changed in the meantime, a loop, or more than `MAX_DEPTH` groups above each other.
    """
    known = accounts.find(session, accounts.HUB_GROUP, name)
    if known is None and version is not None:
        raise Refused("stale-version", "This group has no account; look at it again.", status=409)
    account = of_id(session, policies.account_of(session, "group", name, now))
    if known is not None:
        _check(account, version if version is not None else 0)
    above = None if parent is None else policies.account_of(session, "group", parent, now)
    if above == account.parent_id:
        return account
    if above is not None:
        _fits(session, account.id, above, name, parent or "")
    before = None if account.parent_id is None else of_id(session, account.parent_id).label
    account.parent_id = above
    account.version += 1
    audit(session, "group.parent", f"group {name}", actor=actor, reason=reason, now=now,
          before=before, after=parent)  # fmt: skip
    return account


def _fits(session: Session, group: int, above: int, name: str, parent: str) -> None:
    """No loop, and no more groups above each other than are looked at."""
    parents: dict[int, int | None] = dict(
        session.execute(
            sa.select(Account.id, Account.parent_id).where(Account.kind == "group")
        ).all()
    )
    upwards: list[int] = []
    at: int | None = above
    while at is not None and at not in upwards:
        upwards.append(at)
        at = parents.get(at)
    if group in upwards:
        raise Refused(
            "group-loop", f"{parent[:64]} is {name[:64]} or below it, so it cannot be above it.",
            status=422,
        )  # fmt: skip
    if len(upwards) + _height(group, parents) > MAX_DEPTH:
        raise Refused(
            "too-deep", f"At most {MAX_DEPTH} groups may be above each other.", status=422,
            limit=f"{MAX_DEPTH} groups above each other",
        )  # fmt: skip


def _height(group: int, parents: Mapping[int, int | None]) -> int:
    """How many groups are above each other from a group down, itself counted."""
    below: dict[int | None, list[int]] = defaultdict(list)
    for child, parent in parents.items():
        below[parent].append(child)
    level, height = [group], 0
    while level and height <= MAX_DEPTH:
        height += 1
        level = [child for one in level for child in below[one]]
    return height


# --- the hub ------------------------------------------------------------------------------------


@dataclass
class Followed:
    """What came of one complete list of the hub's users."""

    renamed: dict[str, str] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    #: How many accounts the hub has no user of, and of how many that it once had.
    gone: int = 0
    known: int = 0
    #: Nobody was closed: it lacks too many at once.
    doubted: bool = False


@dataclass(frozen=True)
class _Known:
    """An open account of a user, as far as the hub's list is compared with it."""

    account_id: int
    name: str
    seen_us: int | None
    created_us: int | None
    missing_us: int | None


def follow(
    session: Session, users: Sequence[HubUser], gone_us: int, *, now: int,
    approved: int | None = None, actor: str = HUB, reason: str | None = None,
) -> Followed:  # fmt: skip
    """Compare the accounts with a complete list of the hub's users, and close what is long gone.

    Only whom the hub once had can be gone: limits may be set before somebody's first login. A user
    is closed who was missing for ``gone_us``, or whose name the hub has given to somebody else (by
    the time it made the user, if it says that). While the hub lacks more than a quarter of them
    (an empty or older database) nobody is; ``approved`` is an administrator's word, and how many.

    Raises:
        Refused: not as many as were approved.
    """
    done = Followed()
    listed = {user.name: user for user in users}
    known = _known(session)
    gone = [one for one in known if _gone(one, listed.get(one.name))]
    renames = _renames(gone, known, users)
    for one in gone:
        new = renames.get(one.account_id)
        if new is not None and not live_leases(session, one.account_id):
            _rename(session, one.account_id, one.name, new, actor=HUB, now=now,
                    reason="the hub has renamed this user")  # fmt: skip
            done.renamed[one.name] = new
    gone = [one for one in gone if one.account_id not in renames]
    away = {one.account_id for one in gone} | set(renames)
    _note(
        session, [one for one in known if one.name in listed and one.account_id not in away],
        listed, now,
    )  # fmt: skip
    _note_missing(session, gone, now)
    done.gone = len(gone)
    done.known = sum(one.seen_us is not None or one.name in listed for one in known)
    elsewhere = {user.created_us for user in users if user.created_us is not None}
    due = [
        one
        for one in gone
        # Still there, under a name that has an account of its own: an administrator decides.
        if one.created_us not in elsewhere
        and _due(one, one.name in listed, gone_us, now)
        and not live_leases(session, one.account_id)
    ]
    if approved is None:
        done.doubted = done.gone * _ONE_IN > done.known
    elif approved != len(due):
        raise Refused(
            "count-differs", f"There are {len(due)} accounts to close now, not {approved}; look "
            "at them again.", status=409,
        )  # fmt: skip
    if not done.doubted:
        for one in due:
            why = reason or _why(one, one.name in listed)
            for request in waiting(session, one.account_id):
                queue.leave(session, request, actor=actor, reason=why, now=now)
            _close(session, one.account_id, one.name, actor=actor, reason=why, now=now)
            done.closed.append(one.name)
    if done.closed and approved is None:
        # Names are free now that somebody else may have been given in the hub.
        more = follow(session, users, gone_us, now=now)
        done.renamed |= more.renamed
        done.closed += more.closed
    return done


def _known(session: Session) -> list[_Known]:
    rows = session.execute(
        sa.select(
            Account.id, AccountName.name, Account.hub_seen_us, Account.hub_created_us,
            Account.missing_since_us,
        )
        .join(AccountName, AccountName.account_id == Account.id)
        .where(AccountName.source == accounts.HUB_USER, AccountName.valid_til_us.is_(None))
        .order_by(Account.id)
    )  # fmt: skip
    return [_Known(*row) for row in rows]


def _gone(one: _Known, user: HubUser | None) -> bool:
    """The hub had this user, and has not any more, or another one of the same name."""
    return one.seen_us is not None and (user is None or _replaced(one, user))


def _replaced(one: _Known, user: HubUser) -> bool:
    return None not in (one.created_us, user.created_us) and one.created_us != user.created_us


def _renames(
    gone: Sequence[_Known], known: Sequence[_Known], users: Sequence[HubUser]
) -> dict[int, str]:
    """Who is gone under one name and there under another, by the moment the hub made them."""
    made = Counter(user.created_us for user in users)
    ours = Counter(one.created_us for one in known)
    names = {one.name for one in known}
    new = {
        user.created_us: user.name
        for user in users
        if user.created_us is not None and made[user.created_us] == 1 and user.name not in names
    }
    return {
        one.account_id: new[one.created_us]
        for one in gone
        if one.created_us in new and ours[one.created_us] == 1
    }


def _due(one: _Known, listed: bool, gone_us: int, now: int) -> bool:
    # Somebody else has the name already: there is nothing to wait for.
    return listed or (one.missing_us is not None and now - one.missing_us >= gone_us)


def _why(one: _Known, listed: bool) -> str:
    if listed:
        return "the hub has deleted this user, and made another one of the same name"
    return "the hub has had no such user for a while"


def _note(
    session: Session, there: Sequence[_Known], listed: Mapping[str, HubUser], now: int
) -> None:
    """Whom the hub has; rows are written only where that is news."""
    changed = []
    for one in there:
        created = listed[one.name].created_us or one.created_us
        if one.seen_us is None or one.missing_us is not None or created != one.created_us:
            changed.append(
                {
                    "id": one.account_id, "hub_seen_us": one.seen_us or now,
                    "hub_created_us": created, "missing_since_us": None,
                }
            )  # fmt: skip
    if changed:
        session.execute(sa.update(Account), changed)


def _note_missing(session: Session, gone: Sequence[_Known], now: int) -> None:
    first = [one.account_id for one in gone if one.missing_us is None]
    if first:
        session.execute(sa.update(Account), [{"id": one, "missing_since_us": now} for one in first])
