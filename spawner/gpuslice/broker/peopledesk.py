"""Accounts and the people they belong to, as administrators see them and as the hub has them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from gpuslice.broker import people, peopleimport
from gpuslice.broker.core import Core, Hub, HubUser
from gpuslice.broker.peopleviews import (
    AccountDetail,
    AccountKind,
    AccountPage,
    AccountState,
    AccountView,
    Closed,
    CloseMissing,
    CloseUser,
    Imported,
    ImportPeople,
    NameView,
    RenameUser,
    SetParent,
)
from gpuslice.errors import Refused
from gpuslice.ledger import accounts, counters, credit
from gpuslice.ledger.tables import Account, AccountName
from gpuslice.units import SECOND_US

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Between two looks at the hub's list of users.
LOOK_EVERY_S = 900.0
#: For so long a look is good enough to say what of a list the hub lacks.
_LATELY_US = 30 * SECOND_US


class PeopleDesk:
    """Reads and changes accounts, each change one transaction with its audit row.

    ``changed`` is awaited after what may have changed policies.
    """

    def __init__(self, core: Core, hub: Hub | None, changed: Callable[[], Awaitable[None]]) -> None:
        self._core = core
        self._hub = hub
        self._changed = changed
        self._lately: tuple[int, Sequence[HubUser]] | None = None

    # --- looking -----------------------------------------------------------------------------

    async def all(
        self, kind: AccountKind | None, state: AccountState, find: str | None,
        after: int, limit: int,
    ) -> AccountPage:  # fmt: skip
        """Accounts by number from ``after`` on; ``find``: a part of any name they ever had."""

        def work(session: Session) -> AccountPage:
            query = _views().where(Account.id > after, *_where(kind, state, find))
            rows = session.execute(query.order_by(Account.id).limit(limit + 1)).all()
            found = [_view(account, parent) for account, parent in rows[:limit]]
            following = found[-1].account_id if len(rows) > limit else None
            return AccountPage(accounts=found, next=following)

        return await self._core.serve_read(work)

    async def one(self, account_id: int) -> AccountDetail:
        """Any account by its number, closed ones too.

        Raises:
            Refused: ``no-such-account``.
        """
        return await self._core.serve_read(lambda session: self._detail(session, account_id))

    async def named(self, kind: AccountKind, name: str) -> AccountDetail:
        """The open account of a user or a group.

        Raises:
            Refused: ``no-such-account``.
        """
        return await self._core.serve_read(
            lambda session: self._detail(session, people.of_name(session, kind, name).id)
        )

    def _detail(self, session: Session, account_id: int) -> AccountDetail:
        row = session.execute(_views().where(Account.id == account_id)).one_or_none()
        view = _view(*row) if row is not None else None
        if view is None:
            raise Refused("no-such-account", f"There is no account {account_id}.", status=404)
        used = counters.used(session, [account_id], 0)[account_id]
        return AccountDetail(
            **view.model_dump(),
            names=[
                NameView(name=row.name, from_us=row.valid_from_us, til_us=row.valid_til_us)
                for row in accounts.history(session, account_id)
            ],
            spent_u=used.spent_u, gpu_us=used.gpu_us,
            held_u=counters.held(session, account_id).held_u,
            credit_u=credit.left(session, account_id, self._core.now()),
            live_leases=people.live_leases(session, account_id),
            waiting=len(people.waiting(session, account_id)),
        )  # fmt: skip

    # --- changing ----------------------------------------------------------------------------

    async def rename(self, name: str, body: RenameUser, actor: str) -> AccountDetail:
        """Another name for a user's account.

        Raises:
            Refused: no such user, changed in the meantime, taken, or a lease lives.
        """

        def work(session: Session, now: int) -> AccountDetail:
            account = people.rename(
                session, name, body.to, body.version, actor=actor, reason=body.reason, now=now
            )
            return self._detail(session, account.id)

        return await self._core.serve_write(work)

    async def close(self, name: str, body: CloseUser, actor: str) -> AccountDetail:
        """Close a user's account for ever.

        Raises:
            Refused: no such user, changed in the meantime, a lease lives or a request waits.
        """

        def work(session: Session, now: int) -> AccountDetail:
            account = people.close(
                session, name, body.version, actor=actor, reason=body.reason, now=now
            )
            return self._detail(session, account.id)

        found = await self._core.serve_write(work)
        await self._changed()
        return found

    async def set_parent(self, name: str, body: SetParent, actor: str) -> AccountDetail:
        """Put a group below another one, or below none.

        Raises:
            Refused: changed in the meantime, a loop, or too many groups above each other.
        """

        def work(session: Session, now: int) -> AccountDetail:
            account = people.set_parent(
                session, name, body.parent, body.version, actor=actor, reason=body.reason, now=now
            )
            return self._detail(session, account.id)

        return await self._core.serve_write(work)

    async def import_(self, body: ImportPeople, actor: str) -> Imported:
        """Limits and credit of many users at once; with ``dry_run`` only what would change.

        Raises:
            Refused: the list contradicts itself, or credit that was given; nothing was done.
        """
        if body.dry_run:
            users = await self._lately_listed()
            seen = await self._core.serve_read(
                lambda session: peopleimport.compare(session, body, users)
            )
            return Imported(changes=seen, done=False)
        changes = await self._core.serve_write(
            lambda session, now: peopleimport.apply(session, body, actor=actor, now=now)
        )
        await self._changed()
        return Imported(changes=changes, done=True)

    # --- the hub -----------------------------------------------------------------------------

    async def follow(self) -> people.Followed | None:
        """One look at the hub's users: who is gone for long enough is closed.

        None: the hub did not answer with a whole list, or with an empty one; nothing is concluded.
        """
        users = await self._listed()
        if not users:
            return None
        gone_us = int(self._core.settings.timing.user_gone_s * 1e6)
        done = await self._core.write(
            lambda session, now: people.follow(session, users, gone_us, now=now)
        )
        for old, new in done.renamed.items():
            log.info("event=user-renamed old=%r new=%r", old, new)
        for name in done.closed:
            log.info("event=user-closed user=%r", name)
        if done.doubted:
            log.warning("event=many-users-missing missing=%d of=%d", done.gone, done.known)
        if done.closed:
            await self._changed()
        return done

    async def close_missing(self, body: CloseMissing, actor: str) -> Closed:
        """Close all whom the hub has had no more for long enough, however many they are.

        Raises:
            Refused: the hub does not answer, or they are not as many as the caller saw.
        """
        users = await self._listed()
        if users is None:
            raise Refused(
                "hub-unavailable", "The hub does not answer, so nobody knows who is gone.",
                status=503, retry_after_s=60,
            )  # fmt: skip
        gone_us = int(self._core.settings.timing.user_gone_s * 1e6)
        done = await self._core.serve_write(
            lambda session, now: people.follow(
                session, users, gone_us, now=now, approved=body.count, actor=actor,
                reason=body.reason,
            )
        )  # fmt: skip
        await self._changed()
        return Closed(names=done.closed)

    async def _lately_listed(self) -> Sequence[HubUser] | None:
        """As `_listed`, but not anew for each part of a long list of people."""
        now = self._core.now()
        if self._lately is None or not 0 <= now - self._lately[0] < _LATELY_US:
            users = await self._listed()
            if users is None:
                return None
            self._lately = now, users
        return self._lately[1]

    async def _listed(self) -> Sequence[HubUser] | None:
        """All users of the hub; None: it did not say."""
        if self._hub is None:
            return None
        try:
            return await self._hub.users()
        except Exception as error:  # noqa: BLE001 (whatever it is, nothing is concluded)
            self._core.errors.count("hub")
            log.warning("event=hub-users-failed message=%r", str(error))
            return None


# --- helpers ------------------------------------------------------------------------------------


_PARENT = aliased(Account)


def _views() -> sa.Select[Account, str]:
    return (
        sa.select(Account, _PARENT.label)
        .outerjoin(_PARENT, _PARENT.id == Account.parent_id)
        .execution_options(populate_existing=True)
    )


def _where(
    kind: AccountKind | None, state: AccountState, find: str | None
) -> list[sa.ColumnElement[bool]]:
    where: list[sa.ColumnElement[bool]] = []
    if kind is not None:
        where.append(Account.kind == kind)
    match state:
        case "open":
            where.append(Account.closed_us.is_(None))
        case "missing":
            where.append(Account.missing_since_us.is_not(None))
        case "closed":
            where.append(Account.closed_us.is_not(None))
    if find:
        named = sa.select(AccountName.account_id).where(
            AccountName.name.icontains(find, autoescape=True)
        )
        where.append(Account.id.in_(named))
    return where


def _view(account: Account, parent: str | None) -> AccountView:
    return AccountView.model_validate(
        {
            "account_id": account.id, "kind": account.kind, "name": account.label,
            "parent": parent, "version": account.version, "opened_us": account.opened_us,
            "closed_us": account.closed_us, "missing_since_us": account.missing_since_us,
        }
    )  # fmt: skip
