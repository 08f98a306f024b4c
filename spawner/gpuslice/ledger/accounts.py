"""Accounts: opened on first use, found by the name that is current, closed and never reused."""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.errors import Refused
from gpuslice.hubnames import may_be_user
from gpuslice.ledger.tables import Account, AccountName

#: Accounts of the platform itself; a hub name can never be one of these.
PLATFORM = ("revenue", "grants", "writeoff", "idle")

#: Where a name comes from: the hub's users and groups, and our own.
HUB_USER = "hub:user"
HUB_GROUP = "hub:group"
OURS = "platform"

_KIND: dict[str, Literal["user", "group", "platform"]] = {
    HUB_USER: "user",
    HUB_GROUP: "group",
    OURS: "platform",
}


_FIND = sa.select(AccountName.account_id).where(
    AccountName.source == sa.bindparam("source"),
    AccountName.name == sa.bindparam("name"),
    AccountName.valid_til_us.is_(None),
)


def find(session: Session, source: str, name: str) -> int | None:
    """The id of the account that ``name`` means now, None if there is none."""
    return session.scalar(_FIND, {"source": source, "name": name})


def find_or_open(session: Session, source: str, name: str, now: int) -> int:
    """The id of the account that ``name`` means now, opened if there is none.

    Two transactions that open the same one: the second fails on the unique current name and is
    tried again by `gpuslice.ledger.database.Database.write`.

    Raises:
        Refused: the hub can have no user of this name, so the account would be nobody's.
    """
    found = find(session, source, name)
    if found is not None:
        return found
    if source == HUB_USER and not may_be_user(name):
        raise Refused(
            "bad-name",
            f"{name[:255]} is no name of a user: it has a '/', as what a closed account is called.",
            status=422,
        )
    account = Account(kind=_KIND[source], label=name, opened_us=now)
    session.add(account)
    session.flush()
    session.add(AccountName(source=source, name=name, account_id=account.id, valid_from_us=now))
    session.flush()
    return account.id


def platform(session: Session, purpose: str, now: int) -> int:
    """The platform's account for ``purpose``, one of :data:`PLATFORM`."""
    if purpose not in PLATFORM:
        raise ValueError(f"{purpose!r} is no platform account; there are {', '.join(PLATFORM)}")
    return find_or_open(session, OURS, purpose, now)


def name_of(session: Session, account_id: int) -> str | None:
    """What an account is called now; None once it is closed."""
    return session.scalar(
        sa.select(AccountName.name).where(
            AccountName.account_id == account_id, AccountName.valid_til_us.is_(None)
        )
    )


def history(session: Session, account_id: int) -> list[AccountName]:
    """Every name an account has had, oldest first."""
    return list(
        session.scalars(
            sa.select(AccountName)
            .where(AccountName.account_id == account_id)
            .order_by(AccountName.id)
        )
    )


def rename(session: Session, account_id: int, new: str, now: int) -> None:
    """Another name for the same account; the old one is free from now on.

    The new one must be free: the unique current name says no otherwise.
    """
    old = _current(session, account_id)
    old.valid_til_us = now
    session.flush()
    session.add(AccountName(source=old.source, name=new, account_id=account_id, valid_from_us=now))
    session.execute(
        sa.update(Account)
        .where(Account.id == account_id)
        .values(label=new, missing_since_us=None, version=Account.version + 1)
    )
    session.flush()


def close(session: Session, account_id: int, label: str, now: int) -> None:
    """Close an account for ever: its name is free, and opens another account the next time."""
    _current(session, account_id).valid_til_us = now
    session.execute(
        sa.update(Account)
        .where(Account.id == account_id)
        .values(label=label, closed_us=now, missing_since_us=None, version=Account.version + 1)
    )
    session.flush()


def _current(session: Session, account_id: int) -> AccountName:
    return session.scalars(
        sa.select(AccountName)
        .where(AccountName.account_id == account_id, AccountName.valid_til_us.is_(None))
        .execution_options(populate_existing=True)
    ).one()
