"""Prices, credit, corrections and the ledger's rows, as administrators and users see them."""

from __future__ import annotations

import uuid
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import pairwise

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from gpuslice.broker import lifecycle
from gpuslice.broker.core import Core
from gpuslice.broker.moneyviews import (
    Correct,
    CreditView,
    Day,
    DigestView,
    EntryView,
    GiveCredit,
    GrantMore,
    PricePreview,
    PriceView,
    RefundLease,
    SetPrice,
    Usage,
)
from gpuslice.errors import Refused
from gpuslice.ledger import accounts, corrections, counters, credit, prices
from gpuslice.ledger.tables import (
    LIVE_STATES,
    Account,
    Allowance,
    Audit,
    CreditGrant,
    Digest,
    Entry,
    Lease,
    Price,
    Segment,
)
from gpuslice.quotas import policies
from gpuslice.quotas.chain import Chain, Link
from gpuslice.quotas.documents import zone_of
from gpuslice.quotas.periods import Period, window
from gpuslice.quotas.rules import effective
from gpuslice.units import HOUR_US
from gpuslice.wire import LeaseState

#: So many entries are read at a time for an export.
_CHUNK = 2_000
#: Days of use that are shown one by one.
_DAYS = 31
#: An allowance for a limit without a reset holds for so long.
_LONG_US = 100 * 366 * 24 * HOUR_US


class MoneyDesk:
    """Reads and changes what concerns money, each change one transaction with its audit row."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # --- prices ------------------------------------------------------------------------------

    async def prices(self) -> list[PriceView]:
        """Every price there ever was or is announced, by list, slice type and time."""

        def work(session: Session) -> list[PriceView]:
            rows = session.scalars(
                sa.select(Price).order_by(
                    Price.price_list, Price.slice_type, Price.effective_from_us
                )
            ).all()
            return [_price(row, after) for row, after in pairwise([*rows, None]) if row is not None]

        return await self._core.serve_read(work)

    async def preview_price(self, body: SetPrice) -> PricePreview:
        """Which running leases a price would touch, before it is announced."""

        def work(session: Session) -> PricePreview:
            leases = session.scalars(
                sa.select(Lease.id).where(
                    Lease.state.in_(LIVE_STATES), Lease.price_list == body.price_list,
                    Lease.slice_type == body.slice,
                ).order_by(Lease.id)
            ).all()  # fmt: skip
            known = prices.rates(session, body.price_list, body.slice)
            rate = None
            if known and known[0].from_us <= self._core.now():
                rate = prices.rate_at(known, self._core.now()).rate_u_per_hour
            start = self._core.now() if body.from_us is None else body.from_us
            after = (one.from_us for one in known if one.from_us > start)
            return PricePreview(
                leases=list(leases), rate_now_u_per_hour=rate, til_us=next(after, None)
            )

        return await self._core.serve_read(work)

    async def set_price(self, body: SetPrice, actor: str) -> PriceView:
        """Announce a price.

        Raises:
            Refused: it would begin in the past, or at the very moment at which another one does.
        """

        def work(session: Session, now: int) -> PriceView:
            start = now if body.from_us is None else body.from_us
            try:
                prices.set_price(
                    session, body.slice, body.rate_u_per_hour, now=now, actor=actor[:255],
                    price_list=body.price_list, effective_from_us=start,
                )  # fmt: skip
            except ValueError as error:
                raise Refused("price-not-possible", f"{error}.".capitalize(), status=409) from None
            _audit(session, now, actor, "price.set", f"{body.price_list}/{body.slice}",
                   body.reason, f"{body.rate_u_per_hour} from {start}")  # fmt: skip
            rows = session.scalars(
                sa.select(Price)
                .where(Price.price_list == body.price_list, Price.slice_type == body.slice)
                .order_by(Price.effective_from_us)
            ).all()
            # What holds then is the new one, or the one that says the same already.
            place = bisect_right(rows, start, key=lambda row: row.effective_from_us)
            return _price(rows[place - 1], rows[place] if place < len(rows) else None)

        return await self._core.serve_write(work)

    # --- credit ------------------------------------------------------------------------------

    async def credits(
        self, whose: str | None, name: str | None, before: int | None, limit: int
    ) -> tuple[list[CreditView], int | None]:
        """Credit that was given, newest first, and the cursor of the next page; with a name only
        that account's."""

        def work(session: Session) -> tuple[list[CreditView], int | None]:
            query = (
                sa.select(CreditGrant, Account)
                .join(Account, Account.id == CreditGrant.account_id)
                .order_by(CreditGrant.id.desc())
                .limit(limit + 1)
            )
            if whose is not None:
                query = query.where(CreditGrant.account_id == _account(session, whose, name or ""))
            if before is not None:
                query = query.where(CreditGrant.id < before)
            found = [_credit(grant, account) for grant, account in session.execute(query)]
            following = found[limit - 1].credit_id if len(found) > limit else None
            return found[:limit], following

        return await self._core.serve_read(work)

    async def give_credit(self, body: GiveCredit, actor: str) -> CreditView:
        """Give credit; under the request's idempotency key, if it has one, only once.

        Raises:
            Refused: expired already.
        """

        def work(session: Session, now: int) -> CreditView:
            account_id = policies.account_of(session, body.whose, body.name, now)
            grant = credit.give(
                session, account_id, body.amount_u, key=uuid.uuid4().hex, actor=actor,
                reason=body.reason, now=now, priority=body.priority, expires_us=body.expires_us,
            )  # fmt: skip
            _audit(session, now, actor, "credit.give", f"{body.whose} {body.name}", body.reason,
                   str(body.amount_u))  # fmt: skip
            account = session.get(Account, account_id)
            assert account is not None
            return _credit(grant, account)

        return await self._core.serve_write(work)

    # --- running leases ----------------------------------------------------------------------

    async def grant_more(self, lease_id: str, body: GrantMore, actor: str) -> None:
        """Let a running lease go on longer than its limits say.

        Raises:
            Refused: unknown or over, nothing was given, or money where none is limited.
        """
        if body.until_us is None and body.money_u is None:
            raise Refused("nothing-given", "Give time (until_us), money (money_u) or both.",
                          status=422)  # fmt: skip
        timezone = self._core.settings.timezone

        def work(session: Session, now: int) -> None:
            lease = lifecycle.get(session, lease_id)
            if lease.state not in (LeaseState.GRANTED, LeaseState.RUNNING):
                raise Refused("already-ended", "This lease does not run any more.", status=409)
            if body.until_us is not None:
                if body.until_us <= now:
                    raise Refused("bad-time", "That moment has passed already.", status=422)
                lease.guaranteed_til_us = max(lease.guaranteed_til_us or 0, body.until_us)
            if body.money_u is not None:
                _allow(session, lease, body.money_u, timezone, actor, body.reason, now)
            _audit(session, now, actor, "lease.grant-more", lease.id, body.reason,
                   f"until {body.until_us}, money {body.money_u}")  # fmt: skip

        await self._core.serve_write(work)

    # --- corrections -------------------------------------------------------------------------

    async def correct(self, body: Correct, actor: str) -> EntryView:
        """Write a correction of one entry.

        Raises:
            Refused: no such payment, or more than was paid would go back.
        """

        def work(session: Session, now: int) -> EntryView:
            entry = corrections.correct(
                session, body.entry_id, body.kind, body.amount_u, key=uuid.uuid4().hex,
                actor=actor, reason=body.reason, now=now,
            )  # fmt: skip
            _audit(session, now, actor, f"entry.{body.kind}", str(body.entry_id), body.reason,
                   f"entry {entry.id}: {body.amount_u}")  # fmt: skip
            return _entries(session, [Entry.id == entry.id], 1)[0]

        return await self._core.serve_write(work)

    async def refund_lease(self, lease_id: str, body: RefundLease, actor: str) -> list[EntryView]:
        """Give back what a lease cost its user, or a part of it.

        Raises:
            Refused: nothing was paid, or less than is to go back.
        """

        def work(session: Session, now: int) -> list[EntryView]:
            left = [
                (entry, entry.amount_u - back)
                for entry, back in corrections.payments(session, lease_id)
                if entry.amount_u > back
            ]
            most = sum(amount for _, amount in left)
            total = rest = most if body.amount_u is None else body.amount_u
            if not left or total > most:
                raise Refused("refund-too-large", "That much was not paid for this lease.",
                              status=409)  # fmt: skip
            ids = []
            for entry, amount in left:
                part = min(rest, amount)
                if part:
                    made = corrections.correct(
                        session, entry.id, "refund", part, key=uuid.uuid4().hex, actor=actor,
                        reason=body.reason, now=now,
                    )  # fmt: skip
                    ids.append(made.id)
                rest -= part
            _audit(session, now, actor, "lease.refund", lease_id, body.reason, str(total))
            return _entries(session, [Entry.id.in_(ids)], len(ids))

        return await self._core.serve_write(work)

    # --- rows --------------------------------------------------------------------------------

    async def entries(
        self, whose: str | None, name: str | None, before: int | None, limit: int
    ) -> tuple[list[EntryView], int | None]:
        """Entries, newest first, and the cursor of the next page; with a name that account's."""

        def work(session: Session) -> tuple[list[EntryView], int | None]:
            where = [] if before is None else [Entry.id < before]
            account_id = None if whose is None else _account(session, whose, name or "")
            found = _entries(session, where, limit + 1, account_id=account_id)
            following = found[limit - 1].entry_id if len(found) > limit else None
            return found[:limit], following

        return await self._core.serve_read(work)

    async def export(
        self, whose: str | None, name: str | None, from_us: int, til_us: int
    ) -> AsyncIterator[Sequence[EntryView]]:
        """All entries of a time, oldest first, in chunks: never all of them in memory."""
        account_id = None
        if whose is not None:
            # Once: somebody who is renamed between two chunks is still the same account.
            account_id = await self._core.serve_read(lambda s: _account(s, whose, name or ""))
        last = 0
        while True:

            def work(session: Session, last: int = last) -> list[EntryView]:
                where = [
                    Entry.id > last, Entry.created_us >= from_us, Entry.created_us < til_us
                ]  # fmt: skip
                return _entries(session, where, _CHUNK, account_id=account_id, newest_first=False)

            chunk = await self._core.serve_read(work)
            if not chunk:
                return
            yield chunk
            last = chunk[-1].entry_id

    async def digests(self, before: int | None, limit: int) -> tuple[list[DigestView], int | None]:
        """The signed digests, newest first, and the cursor of the next page."""

        def work(session: Session) -> tuple[list[DigestView], int | None]:
            query = sa.select(Digest).order_by(Digest.number.desc()).limit(limit + 1)
            if before is not None:
                query = query.where(Digest.number < before)
            found = [_digest(row) for row in session.scalars(query)]
            following = found[limit - 1].number if len(found) > limit else None
            return found[:limit], following

        return await self._core.serve_read(work)

    async def usage(self, whose: str, name: str) -> Usage:
        """What an account has used, day by day lately, and what it holds."""
        zone = zone_of(self._core.settings.timezone)

        def work(session: Session) -> Usage:
            now = self._core.now()
            account_id = _account(session, whose, name)
            ever = counters.used(session, [account_id], 0)[account_id]
            held = counters.held(session, account_id)
            return Usage(
                name=name, currency=self._core.settings.currency, spent_u=ever.spent_u,
                gpu_us=ever.gpu_us, held_u=held.held_u, active=held.active,
                credit_u=credit.left(session, account_id, now),
                days=list(_days(session, account_id, str(zone), now)),
            )  # fmt: skip

        return await self._core.serve_read(work)


# --- helpers ----------------------------------------------------------------------------------


def _account(session: Session, whose: str, name: str) -> int:
    """An account by name; 0, which nobody has, for one that was never opened."""
    source = accounts.HUB_USER if whose == "user" else accounts.HUB_GROUP
    return accounts.find(session, source, name) or 0


def _audit(
    session: Session, now: int, actor: str, action: str, subject: str, reason: str, after: str
) -> None:
    session.add(
        Audit(at_us=now, actor=actor[:255], action=action, subject=subject[:255],
              reason=reason[:500], after=after)
    )  # fmt: skip
    session.flush()


def _price(row: Price, after: Price | None) -> PriceView:
    same = after is not None and (after.price_list, after.slice_type) == (
        row.price_list, row.slice_type,
    )  # fmt: skip
    return PriceView(
        price_list=row.price_list, slice=row.slice_type, rate_u_per_hour=row.rate_u_per_hour,
        from_us=row.effective_from_us, actor=row.actor,
        til_us=after.effective_from_us if after is not None and same else None,
    )  # fmt: skip


def _credit(grant: CreditGrant, account: Account) -> CreditView:
    return CreditView.model_validate(
        {
            "credit_id": grant.id, "whose": account.kind, "name": account.label,
            "amount_u": grant.amount_u, "used_u": grant.used_u, "priority": grant.priority,
            "expires_us": grant.expires_us, "created_us": grant.created_us,
        }
    )  # fmt: skip


def _allow(
    session: Session, lease: Lease, money_u: int, timezone: str, actor: str, reason: str, now: int
) -> None:
    """More money for everything that limits this lease's, until it resets.

    Raises:
        Refused: nothing does, so that more would change nothing.
    """
    chain = _chain_of(session, lease)
    found = False
    for rule in effective(chain, lease.slice_type, timezone).rules:
        if rule.kind == "credit":
            found = True
            credit.give(session, rule.account_id, money_u, key=uuid.uuid4().hex, actor=actor,
                        reason=reason, now=now)  # fmt: skip
        elif rule.kind == "money" and rule.limit is not None:
            found = True
            span = window(rule.period, zone_of(rule.zone), now)
            session.add(
                Allowance(
                    account_id=rule.account_id, kind="money", period=str(rule.period),
                    amount=money_u, from_us=now,
                    til_us=span.end_us if span.end_us is not None else now + _LONG_US,
                    lease_id=lease.id, actor=actor[:255], reason=reason[:500], created_us=now,
                )
            )  # fmt: skip
    if not found:
        raise Refused(
            "no-money-limit",
            "No limit on money holds for this lease; give time instead (--until).",
        )
    session.flush()


def _chain_of(session: Session, lease: Lease) -> Chain:
    """The accounts of a lease with the policies that hold for them now."""
    ids = counters.of_lease(session, lease.id)
    names = dict(
        session.execute(sa.select(Account.id, Account.label).where(Account.id.in_(ids))).all()
    )
    user, *groups = ids
    return Chain(
        user=Link(user, names[user], policies.current(session, f"user:{user}")),
        groups=tuple(Link(g, names[g], policies.current(session, f"group:{g}")) for g in groups),
        everyone=policies.current(session, policies.EVERYONE),
    )


def _entries(
    session: Session, where: Sequence[sa.ColumnElement[bool]], limit: int, *,
    account_id: int | None = None, newest_first: bool = True,
) -> list[EntryView]:  # fmt: skip
    """The first entries of these; with an account only those it has paid or got."""
    order = Entry.id.desc() if newest_first else Entry.id.asc()
    if account_id is not None:
        # Each side by its own index, which is in this order: as many rows are read as are wanted.
        sides = (
            sa.select(Entry.id).where(side == account_id, *where).order_by(order).limit(limit)
            for side in (Entry.debit_id, Entry.credit_id)
        )
        where = [Entry.id.in_(sa.union(*(sa.select(side.subquery().c.id) for side in sides)))]
    debit, credited = aliased(Account), aliased(Account)
    rows = session.execute(
        sa.select(Entry, debit, credited, Segment, Lease.slice_type)
        .join(debit, debit.id == Entry.debit_id)
        .join(credited, credited.id == Entry.credit_id)
        .outerjoin(Segment, Segment.id == Entry.segment_id)
        .outerjoin(Lease, Lease.id == Segment.lease_id)
        .where(*where)
        .order_by(order)
        .limit(limit)
    )
    return [_entry(*row) for row in rows]


def _entry(
    entry: Entry, debit: Account, credited: Account, segment: Segment | None,
    slice_type: str | None,
) -> EntryView:  # fmt: skip
    return EntryView(
        entry_id=entry.id, at_us=entry.created_us, kind=entry.kind,
        debit=f"{debit.kind}:{debit.label}", credit=f"{credited.kind}:{credited.label}",
        amount_u=entry.amount_u, slice=slice_type,
        lease_id=segment.lease_id if segment is not None else None,
        from_us=segment.from_us if segment is not None else None,
        til_us=segment.til_us if segment is not None else None, credit_id=entry.grant_id,
        corrects=entry.corrects_id, actor=entry.actor, memo=entry.memo,
    )  # fmt: skip


def _digest(row: Digest) -> DigestView:
    return DigestView(
        number=row.number, day=row.day, first_entry=row.first_entry, last_entry=row.last_entry,
        entries=row.entries, sha256=row.sha256, previous=row.previous, key_id=row.key_id,
        signature=row.signature, created_us=row.created_us,
    )  # fmt: skip


def _days(session: Session, account_id: int, timezone: str, now: int) -> Iterator[Day]:
    """The last days, today last; a day without use is there too."""
    zone = zone_of(timezone)
    starts = [window(Period("day"), zone, now).start_us]
    while len(starts) < _DAYS:
        starts.append(window(Period("day"), zone, starts[-1] - 1).start_us)
    starts.reverse()
    found = counters.buckets(session, account_id, starts[0])
    for start, end in pairwise([*starts, 1 << 62]):
        mine = [used for at, used in found if start <= at < end]
        yield Day(from_us=start, spent_u=max(0, sum(used.spent_u for used in mine)),
                  gpu_us=sum(used.gpu_us for used in mine))  # fmt: skip
