"""Proves a ledger from its facts: segments tile, entries pay, projections rebuild to the same.

Written apart from the code that bills, so that a mistake there is seen here. Reads one
consistent snapshot; changes nothing. Tables that grow are read in the order of their leases or
accounts, side by side, and no more of them is held than one lease or one account has.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from gpuslice.ledger import accounts
from gpuslice.ledger.tables import (
    LIVE_STATES,
    AccountPeriod,
    CreditGrant,
    Entry,
    Hold,
    Lease,
    LeaseAccount,
    Price,
    Segment,
    SliceTotal,
)

_SETTLED = ("settled", "ended")
#: Stated again here, apart from the code that counts by it.
_BUCKET_US = 900_000_000
_HOLDING = ("granted", "running", "stopping", "revoking")
#: So many rows are fetched at a time.
_CHUNK = 5_000
_K = TypeVar("_K", int, str)
_Row = sa.Row[*tuple[Any, ...]]


def verify(session: Session) -> list[str]:
    """Every way in which the ledger contradicts itself, one sentence each; empty is clean."""
    return [
        *_leases(session),
        *_credit(session),
        *_holds(session),
        *_projections(session),
        *_totals(session),
    ]


def _rows(session: Session, query: sa.Select[*tuple[Any, ...]]) -> Iterator[_Row]:
    """The rows of a query, some at a time, and without what makes objects of them."""
    return iter(session.connection().execute(query, execution_options={"yield_per": _CHUNK}))


class _Sorted(Generic[_K]):
    """The rows of a query that is in the order of its first column, taken by its values."""

    def __init__(self, session: Session, query: sa.Select[*tuple[Any, ...]]) -> None:
        self._rows = _rows(session, query)
        self._next: _Row | None = next(self._rows, None)

    @property
    def key(self) -> _K | None:
        """The first column of what comes next; None: nothing does."""
        return None if self._next is None else self._next[0]

    def take(self, key: _K) -> list[_Row]:
        """All rows of ``key``, if they come next."""
        found = []
        while self._next is not None and self._next[0] == key:
            found.append(self._next)
            self._next = next(self._rows, None)
        return found


# --- leases, their segments, and the entries that pay them --------------------------------------

_LEASE = (
    Lease.id, Lease.account_id, Lease.group_id, Lease.price_list, Lease.slice_type, Lease.state,
    Lease.started_us, Lease.covered_us, Lease.billed_us, Lease.finished_us,
    Lease.stop_requested_us, Lease.absorbed_from_us, Lease.open_before_us, Lease.opened_us,
)  # fmt: skip
_SEGMENT = (
    Segment.lease_id, Segment.id, Segment.from_us, Segment.til_us, Segment.price_id, Segment.payer,
    Segment.amount_u,
)  # fmt: skip
#: Of each segment's entries; all None where it has none.
_ENTRY = (
    Entry.id.label("entry_id"), Entry.debit_id, Entry.credit_id,
    Entry.amount_u.label("paid_u"), Entry.grant_id,
)  # fmt: skip


class _Price(NamedTuple):
    number: int
    from_us: int
    rate_u_per_hour: int


@dataclass
class _Prices:
    """The prices of one list and slice type, oldest first."""

    starts: list[int] = field(default_factory=list)
    prices: list[_Price] = field(default_factory=list)


@dataclass(frozen=True)
class _Facts:
    """What is small and needed for every lease."""

    lists: Mapping[tuple[str, str], _Prices]
    platform: Mapping[str, int | None]
    #: Whose each credit is.
    owners: Mapping[int, int]


def _leases(session: Session) -> Iterator[str]:
    """Each lease with its segments, their entries, and the accounts that it counts for."""
    facts = _Facts(
        lists=_price_lists(session),
        platform={name: accounts.find(session, accounts.OURS, name) for name in accounts.PLATFORM},
        owners=dict(session.execute(sa.select(CreditGrant.id, CreditGrant.account_id)).all()),
    )
    paid: _Sorted[str] = _Sorted(
        session,
        sa.select(*_SEGMENT, *_ENTRY)
        .outerjoin(Entry, Entry.segment_id == Segment.id)
        .order_by(Segment.lease_id, Segment.from_us),
    )
    counts: _Sorted[str] = _Sorted(
        session,
        sa.select(LeaseAccount.lease_id, LeaseAccount.account_id).order_by(
            LeaseAccount.lease_id, LeaseAccount.depth
        ),
    )
    for lease in _rows(session, sa.select(*_LEASE).order_by(Lease.id)):
        yield from _of_nobody(paid, lease.id)
        while counts.key is not None and counts.key < lease.id:
            counts.take(counts.key)
        chain = [row.account_id for row in counts.take(lease.id)]
        yield from _charged(lease, chain)
        rows = paid.take(lease.id)
        # A segment has a row for each entry that pays it.
        mine = list({row.id: row for row in rows}.values())
        yield from _tiles(lease, mine)
        pays = _Pays.of(lease)
        yield from _priced(lease, mine, facts.lists, pays)
        yield from _paid(lease, chain, rows, facts, pays)
    yield from _of_nobody(paid, None)


def _of_nobody(paid: _Sorted[str], before: str | None) -> Iterator[str]:
    """Segments of leases that do not exist, up to the next one that does."""
    while paid.key is not None and (before is None or paid.key < before):
        lease_id = paid.key
        yield f"segments of lease {lease_id}, which does not exist"
        for segment_id, amount in {row.id: row.amount_u for row in paid.take(lease_id)}.items():
            if amount:
                yield f"segment {segment_id} costs {amount} but 0 was paid"


def _price_lists(session: Session) -> dict[tuple[str, str], _Prices]:
    found: dict[tuple[str, str], _Prices] = defaultdict(_Prices)
    for price in session.scalars(sa.select(Price).order_by(Price.effective_from_us)):
        mine = found[price.price_list, price.slice_type]
        mine.starts.append(price.effective_from_us)
        mine.prices.append(_Price(price.id, price.effective_from_us, price.rate_u_per_hour))
    return found


def _charged(lease: _Row, chain: list[int]) -> Iterator[str]:
    """A lease counts for its user first, then for the group that it is charged to."""
    group = [] if lease.group_id is None else [lease.group_id]
    if chain[:2] != [lease.account_id, *group]:
        yield (
            f"lease {lease.id} of {lease.account_id} (group {lease.group_id}) counts for {chain}"
        )


def _tiles(lease: _Row, mine: list[_Row]) -> Iterator[str]:
    """From *started* to what is paid without gap or overlap; to *finished* once it is settled."""
    where = f"lease {lease.id}"
    if lease.started_us is None:
        if mine:
            yield f"{where} never started but has {len(mine)} segments"
        if lease.state in (*_SETTLED, "running", "stopping"):
            yield f"{where} is {lease.state} but never started"
        return
    at = lease.started_us
    for segment in mine:
        if segment.from_us != at:
            kind = "gap" if segment.from_us > at else "overlap"
            yield f"{where}: {kind} between {at} and {segment.from_us}"
        at = segment.til_us
    if at != lease.billed_us:
        yield f"{where}: segments end at {at}, billed_us says {lease.billed_us}"
    if lease.state in _SETTLED and at != lease.finished_us:
        yield f"{where}: finished at {lease.finished_us} but billed to {at}"
    if lease.covered_us is None or lease.covered_us < at:
        yield f"{where}: billed to {at} but seen alive only to {lease.covered_us}"


class _Pays(NamedTuple):
    """From where the platform pays because a stop was due, and until where nobody had come."""

    absorbed_us: int | None
    idle_til_us: int | None

    @classmethod
    def of(cls, lease: _Row) -> _Pays:
        stop, absorbed, idle_til = lease.stop_requested_us, lease.absorbed_from_us, None
        if lease.open_before_us is not None:
            idle_til = _NEVER if lease.opened_us is None else lease.opened_us
        if stop is not None and (absorbed is None or stop < absorbed):
            absorbed = stop
        return cls(absorbed, idle_til)

    def at(self, moment: int) -> str:
        """Who pays what begins at a moment."""
        if self.idle_til_us is not None and moment < self.idle_til_us:
            return "idle"
        if self.absorbed_us is not None and moment >= self.absorbed_us:
            return "writeoff"
        return "user"


_NEVER = 1 << 62


def _priced(
    lease: _Row, mine: list[_Row], lists: Mapping[tuple[str, str], _Prices], pays: _Pays
) -> Iterator[str]:
    """Each price is the one in force, for the whole segment, and the amount follows from it.

    The first price is in force before it begins, too.
    """
    known = lists.get((lease.price_list, lease.slice_type))
    started = lease.started_us
    for segment in mine:
        from_us, til_us = segment.from_us, segment.til_us
        following = 1 if known is None else max(1, bisect_right(known.starts, from_us))
        price = None if known is None else known.prices[following - 1]
        if known is None or price is None or price.number != segment.price_id:
            where = f"segment {segment.id} of lease {lease.id}"
            yield f"{where}: price {segment.price_id} was not in force at {from_us}"
            continue
        if following < len(known.starts) and known.starts[following] < til_us:
            yield f"segment {segment.id} of lease {lease.id} spans a change of price"
        if started is None:
            continue  # which is told already
        origin = started if following == 1 else max(started, price.from_us)
        before = price.rate_u_per_hour * (from_us - origin) // 3_600_000_000
        cost = price.rate_u_per_hour * (til_us - origin) // 3_600_000_000 - before
        if segment.amount_u != cost:
            where = f"segment {segment.id} of lease {lease.id}"
            yield f"{where}: amount {segment.amount_u}, its time costs {cost}"
        for mark in pays:
            if mark is not None and from_us < mark < til_us:
                where = f"segment {segment.id} of lease {lease.id}"
                yield f"{where} spans {mark}, from where another one pays"
        payer = "user" if pays.at(from_us) == "user" else "writeoff"
        if segment.payer != payer:
            where = f"segment {segment.id} of lease {lease.id}"
            yield f"{where}: paid by {segment.payer}, should be {payer}"


def _paid(
    lease: _Row, chain: list[int], rows: list[_Row], facts: _Facts, pays: _Pays
) -> Iterator[str]:
    """Every segment is paid exactly, by the right accounts, to revenue."""
    rest: dict[int, int] = {}
    revenue = facts.platform["revenue"]
    for row in rows:
        if row.id not in rest:
            rest[row.id] = row.amount_u
        if row.entry_id is None:
            continue
        rest[row.id] -= row.paid_u
        payer = pays.at(row.from_us)
        debit = lease.account_id if payer == "user" else facts.platform[payer]
        if row.grant_id is not None:
            debit = facts.owners.get(row.grant_id)
            if payer != "user" or debit not in chain:
                yield f"entry {row.entry_id} is paid from credit {row.grant_id}, which is not its"
        if row.debit_id != debit or row.credit_id != revenue:
            moves = f"{row.debit_id} → {row.credit_id}"
            yield f"entry {row.entry_id} moves {moves}, not {debit} → {revenue}"
    if any(rest.values()):
        for segment_id, amount in {row.id: row.amount_u for row in rows}.items():
            paid = amount - rest[segment_id]
            if paid != amount:
                yield f"segment {segment_id} costs {amount} but {paid} was paid"


# --- corrections and credit -------------------------------------------------------------------

#: What a correction does to what was spent.
_SIGNS = {"refund": -1, "surcharge": 1}


def _credit(session: Session) -> Iterator[str]:
    """A grant is what was given, and its use what was paid, taken back and returned."""
    given: dict[int, int] = defaultdict(int)
    gone: dict[int, int] = defaultdict(int)
    rows = session.execute(
        sa.select(Entry.grant_id, Entry.kind, sa.func.sum(Entry.amount_u))
        .where(Entry.grant_id.is_not(None))
        .group_by(Entry.grant_id, Entry.kind)
    )
    for named, kind, amount in rows:
        grant_id = named or 0
        if kind == "credit":
            given[grant_id] += int(amount)
        else:
            gone[grant_id] += int(amount) * (-1 if kind == "refund" else 1)
    for grant in session.scalars(sa.select(CreditGrant).order_by(CreditGrant.id)):
        if given.pop(grant.id, 0) != grant.amount_u:
            yield f"credit {grant.id} is {grant.amount_u}, its entry says otherwise"
        if gone.pop(grant.id, 0) != grant.used_u:
            yield f"credit {grant.id}: used_u is {grant.used_u}, its entries give otherwise"
    for grant_id in sorted({*given, *gone}):
        yield f"entries name credit {grant_id}, which does not exist"


# --- holds and projections --------------------------------------------------------------------


def _holds(session: Session) -> Iterator[str]:
    """A lease reserves exactly while it may still cost some, on every account it counts for."""
    open_holds = set(
        session.execute(sa.select(Hold.lease_id, Hold.account_id).where(Hold.state == "open")).all()
    )
    holding = set(
        session.execute(
            sa.select(Lease.id, LeaseAccount.account_id)
            .join(LeaseAccount, LeaseAccount.lease_id == Lease.id)
            .where(Lease.state.in_(_HOLDING))
        ).all()
    )
    for lease_id, _ in sorted(holding - open_holds):
        yield f"lease {lease_id} is not settled but holds no money"
    for lease_id, _ in sorted(open_holds - holding):
        yield f"lease {lease_id} is settled but still holds money"


#: What `account_period` stores, in this order.
_Figures = tuple[int, int, int, int, int]
_NOTHING: _Figures = (0, 0, 0, 0, 0)


def _projections(session: Session) -> Iterator[str]:
    """What is stored per account equals what its segments, corrections, holds and leases give."""
    stored: _Sorted[int] = _Sorted(
        session,
        sa.select(
            AccountPeriod.account_id, AccountPeriod.slice_type, AccountPeriod.period,
            AccountPeriod.start_us, AccountPeriod.spent_u, AccountPeriod.gpu_us,
            AccountPeriod.held_u, AccountPeriod.held_gpu_us, AccountPeriod.active,
        ).order_by(AccountPeriod.account_id),
    )  # fmt: skip
    used, corrected = _Sorted[int](session, _USED), _Sorted[int](session, _CORRECTED)
    held, active = _Sorted[int](session, _HELD), _Sorted[int](session, _ACTIVE)
    sources = (stored, used, corrected, held, active)
    while keys := [one.key for one in sources if one.key is not None]:
        account_id = min(keys)
        kept: dict[_Place, _Figures] = {
            (row.slice_type, row.period, row.start_us): (
                row.spent_u, row.gpu_us, row.held_u, row.held_gpu_us, row.active
            )
            for row in stored.take(account_id)
        }  # fmt: skip
        due = _rebuilt(*(one.take(account_id) for one in (used, corrected, held, active)))
        for place in sorted({*kept, *due}):
            is_, should = kept.get(place, _NOTHING), due.get(place, _NOTHING)
            if is_ != should:
                slice_type, period, start = place
                where = f"account {account_id} {slice_type or 'all'} {period} {start}"
                yield (
                    f"{where}: (spent, gpu, held, held gpu, active) is {is_}, "
                    f"its facts give {should}"
                )


#: Which row of an account: slice type, period, start.
_Place = tuple[str, str, int]

_AT = Segment.from_us - Segment.from_us % _BUCKET_US
#: Each by account first. Time is rounded down for each segment.
_USED = (
    sa.select(
        LeaseAccount.account_id,
        _AT.label("start"),
        sa.func.sum(Segment.amount_u),
        sa.func.sum((Segment.til_us - Segment.from_us) * Lease.gpu_milli // 1000),
    )
    .select_from(Segment)
    .join(Lease, Lease.id == Segment.lease_id)
    .join(LeaseAccount, LeaseAccount.lease_id == Lease.id)
    .where(Segment.payer == "user")
    .group_by(LeaseAccount.account_id, _AT)
    .order_by(LeaseAccount.account_id, _AT)  # as it is grouped, so that it is sorted once
)
_CORRECTED_ENTRY, _FIRST_ENTRY = aliased(Entry), aliased(Entry)
#: Every correction with the segment that it is about: that of what it corrects or, where it gives
#: a surcharge back, of what that one corrects.
_CORRECTIONS = (
    sa.join(Entry, _CORRECTED_ENTRY, _CORRECTED_ENTRY.id == Entry.corrects_id)
    .outerjoin(_FIRST_ENTRY, _FIRST_ENTRY.id == _CORRECTED_ENTRY.corrects_id)
    .join(
        Segment,
        Segment.id == sa.func.coalesce(_CORRECTED_ENTRY.segment_id, _FIRST_ENTRY.segment_id),
    )
)
_CORRECTED = (
    sa.select(LeaseAccount.account_id, _AT, Entry.kind, Entry.amount_u)
    .select_from(_CORRECTIONS)
    .join(LeaseAccount, LeaseAccount.lease_id == Segment.lease_id)
    .where(Entry.kind.in_(_SIGNS))
    .order_by(LeaseAccount.account_id)
)
_HELD = (
    sa.select(Hold.account_id, sa.func.sum(Hold.amount_u), sa.func.sum(Hold.gpu_us))
    .where(Hold.state == "open")
    .group_by(Hold.account_id)
    .order_by(Hold.account_id)
)
_ACTIVE = (
    sa.select(LeaseAccount.account_id, Lease.slice_type, sa.func.count())
    .join(Lease, Lease.id == LeaseAccount.lease_id)
    .where(Lease.state.in_(LIVE_STATES))
    .group_by(LeaseAccount.account_id, Lease.slice_type)
    .order_by(LeaseAccount.account_id)
)


def _rebuilt(
    used: list[_Row], corrected: list[_Row], held: list[_Row], active: list[_Row]
) -> dict[_Place, _Figures]:
    """The rows of one account as they should be."""
    found: dict[_Place, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for _, start, spent, gpu_us in used:
        for place in (("", "bucket", int(start)), ("", "life", 0)):
            found[place][0] += int(spent)
            found[place][1] += int(gpu_us)
    for _, start, kind, amount in corrected:
        for place in (("", "bucket", int(start)), ("", "life", 0)):
            found[place][0] += _SIGNS[kind] * amount
    for _, amount, gpu_us in held:
        found["", "life", 0][2] += int(amount)
        found["", "life", 0][3] += int(gpu_us)
    for _, slice_type, count in active:
        found["", "life", 0][4] += count
        found[slice_type, "life", 0][4] += count
    return {place: (a, b, c, d, e) for place, (a, b, c, d, e) in found.items()}


def _totals(session: Session) -> Iterator[str]:
    """Each slice type's time and money ever are those of its segments and corrections."""
    unopened = sa.and_(
        Lease.open_before_us.is_not(None),
        sa.or_(Lease.opened_us.is_(None), Segment.from_us < Lease.opened_us),
    )
    what = sa.case((unopened, "idle"), else_=Segment.payer)
    billed = session.execute(
        sa.select(
            Lease.slice_type, what, sa.func.sum(Segment.til_us - Segment.from_us),
            sa.func.sum(Segment.amount_u),
        )
        .join(Lease, Lease.id == Segment.lease_id)
        .group_by(Lease.slice_type, what)
    )  # fmt: skip
    should = {(name, by): (int(time_us), int(amount)) for name, by, time_us, amount in billed}
    corrected = session.execute(
        sa.select(Lease.slice_type, Entry.kind, sa.func.sum(Entry.amount_u))
        .select_from(_CORRECTIONS)
        .join(Lease, Lease.id == Segment.lease_id)
        .where(Entry.kind.in_(_SIGNS))
        .group_by(Lease.slice_type, Entry.kind)
    )
    should |= {(name, kind): (0, int(amount)) for name, kind, amount in corrected}
    stored = {
        (row.slice_type, row.what): (row.us, row.amount_u)
        for row in session.scalars(sa.select(SliceTotal))
    }
    for key in sorted({*should, *stored}):
        is_, due = stored.get(key, (0, 0)), should.get(key, (0, 0))
        if is_ != due:
            yield f"slices {key[0]} {key[1]}: (time, money) is {is_}, their facts give {due}"
