"""Proves a ledger from its facts: segments tile, entries pay, projections rebuild to the same.

Written apart from the code that bills, so that a mistake there is seen here. Reads one
consistent snapshot; changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

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


def verify(session: Session) -> list[str]:
    """Every way in which the ledger contradicts itself, one sentence each; empty is clean."""
    return [
        *_leases(session),
        *_charged(session),
        *_entries(session),
        *_credit(session),
        *_holds(session),
        *_projections(session),
        *_totals(session),
    ]


# --- leases and their segments ----------------------------------------------------------------


def _leases(session: Session) -> Iterator[str]:
    prices = {price.id: price for price in session.scalars(sa.select(Price))}
    lists = _price_lists(prices)
    segments: dict[str, list[Segment]] = defaultdict(list)
    for segment in session.scalars(sa.select(Segment).order_by(Segment.lease_id, Segment.from_us)):
        segments[segment.lease_id].append(segment)
    for lease in session.scalars(sa.select(Lease).order_by(Lease.id)):
        mine = segments.pop(lease.id, [])
        yield from _tiles(lease, mine)
        known = lists.get((lease.price_list, lease.slice_type), [])
        for segment in mine:
            yield from _priced(lease, segment, prices, known)
    for lease_id in segments:
        yield f"segments of lease {lease_id}, which does not exist"


def _price_lists(prices: dict[int, Price]) -> dict[tuple[str, str], list[Price]]:
    found: dict[tuple[str, str], list[Price]] = defaultdict(list)
    for price in sorted(prices.values(), key=lambda price: price.effective_from_us):
        found[price.price_list, price.slice_type].append(price)
    return found


def _tiles(lease: Lease, mine: list[Segment]) -> Iterator[str]:
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


def _priced(
    lease: Lease, segment: Segment, prices: dict[int, Price], known: list[Price]
) -> Iterator[str]:
    """The price is the one in force, for the whole segment, and the amount follows from it."""
    where = f"segment {segment.id} of lease {lease.id}"
    price = prices.get(segment.price_id)
    in_force = [p for p in known if p.effective_from_us <= segment.from_us]
    if price is None or not in_force or in_force[-1].id != price.id:
        yield f"{where}: price {segment.price_id} was not in force at {segment.from_us}"
        return
    if any(segment.from_us < p.effective_from_us < segment.til_us for p in known):
        yield f"{where} spans a change of price"
    assert lease.started_us is not None
    origin = max(lease.started_us, price.effective_from_us)
    before = price.rate_u_per_hour * (segment.from_us - origin) // 3_600_000_000
    after = price.rate_u_per_hour * (segment.til_us - origin) // 3_600_000_000
    if segment.amount_u != after - before:
        yield f"{where}: amount {segment.amount_u}, its time costs {after - before}"
    absorbed, idle_til = _platform_pays(lease)
    for mark in (absorbed, idle_til):
        if mark is not None and segment.from_us < mark < segment.til_us:
            yield f"{where} spans {mark}, from where another one pays"
    payer = "user" if _payer(lease, segment.from_us) == "user" else "writeoff"
    if segment.payer != payer:
        yield f"{where}: paid by {segment.payer}, should be {payer}"


def _platform_pays(lease: Lease) -> tuple[int | None, int | None]:
    """From where the platform pays because a stop was due, and until where nobody had come."""
    stops = [mark for mark in (lease.stop_requested_us, lease.absorbed_from_us) if mark is not None]
    idle_til = lease.opened_us if lease.open_before_us is not None else None
    return min(stops, default=None), idle_til


def _payer(lease: Lease, moment: int) -> str:
    absorbed, _ = _platform_pays(lease)
    unopened = lease.open_before_us is not None and (
        lease.opened_us is None or moment < lease.opened_us
    )
    if unopened:
        return "idle"
    return "writeoff" if absorbed is not None and moment >= absorbed else "user"


# --- entries ----------------------------------------------------------------------------------


def _entries(session: Session) -> Iterator[str]:
    """Every segment is paid exactly, by the right accounts, to revenue."""
    platform = {name: accounts.find(session, accounts.OURS, name) for name in accounts.PLATFORM}
    chains = _chains(session)
    owners = dict(session.execute(sa.select(CreditGrant.id, CreditGrant.account_id)).all())
    paid: dict[int, int] = defaultdict(int)
    query = (
        sa.select(Entry, Segment.from_us, Lease)
        .join(Segment, Entry.segment_id == Segment.id)
        .join(Lease, Segment.lease_id == Lease.id)
        .order_by(Entry.id)
    )
    for entry, from_us, lease in session.execute(query):
        paid[entry.segment_id or 0] += entry.amount_u
        payer = _payer(lease, from_us)
        debit = lease.account_id if payer == "user" else platform[payer]
        if entry.grant_id is not None:
            debit = owners.get(entry.grant_id)
            if payer != "user" or debit not in chains[lease.id]:
                yield f"entry {entry.id} is paid from credit {entry.grant_id}, which is not its"
        if entry.debit_id != debit or entry.credit_id != platform["revenue"]:
            moves = f"{entry.debit_id} → {entry.credit_id}"
            yield f"entry {entry.id} moves {moves}, not {debit} → {platform['revenue']}"
    for segment_id, amount in session.execute(sa.select(Segment.id, Segment.amount_u)):
        if paid.get(segment_id, 0) != amount:
            yield f"segment {segment_id} costs {amount} but {paid.get(segment_id, 0)} was paid"


def _chains(session: Session) -> dict[str, list[int]]:
    """The accounts of each lease, its user's first."""
    found: dict[str, list[int]] = defaultdict(list)
    rows = session.execute(
        sa.select(LeaseAccount.lease_id, LeaseAccount.account_id).order_by(
            LeaseAccount.lease_id, LeaseAccount.depth
        )
    )
    for lease_id, account_id in rows:
        found[lease_id].append(account_id)
    return found


def _charged(session: Session) -> Iterator[str]:
    """Every lease counts for its user first, then for the group that it is charged to."""
    chains = _chains(session)
    rows = session.execute(sa.select(Lease.id, Lease.account_id, Lease.group_id).order_by(Lease.id))
    for lease_id, account_id, group_id in rows:
        chain = chains.get(lease_id, [])
        if chain[:2] != [account_id, *([group_id] if group_id is not None else [])]:
            yield f"lease {lease_id} of {account_id} (group {group_id}) counts for {chain}"


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
    should = _rebuilt(session)
    stored: dict[_Row, _Figures] = {
        (row.account_id, row.slice_type, row.period, row.start_us): (
            row.spent_u, row.gpu_us, row.held_u, row.held_gpu_us, row.active
        )
        for row in session.scalars(sa.select(AccountPeriod))
    }  # fmt: skip
    for key in sorted({*should, *stored}):
        is_, due = stored.get(key, _NOTHING), should.get(key, _NOTHING)
        if is_ != due:
            account_id, slice_type, period, start = key
            where = f"account {account_id} {slice_type or 'all'} {period} {start}"
            yield f"{where}: (spent, gpu, held, held gpu, active) is {is_}, its facts give {due}"


_Row = tuple[int, str, str, int]


def _rebuilt(session: Session) -> dict[_Row, _Figures]:
    found: dict[_Row, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    at = Segment.from_us - Segment.from_us % _BUCKET_US
    gpu = (Segment.til_us - Segment.from_us) * Lease.gpu_milli
    rows = session.execute(
        sa.select(
            LeaseAccount.account_id,
            at,
            sa.func.sum(Segment.amount_u),
            sa.func.sum(gpu // 1000),  # rounded down for each segment
        )
        .select_from(Segment)
        .join(Lease, Lease.id == Segment.lease_id)
        .join(LeaseAccount, LeaseAccount.lease_id == Lease.id)
        .where(Segment.payer == "user")
        .group_by(LeaseAccount.account_id, at)
    )
    for account_id, start, spent, gpu_us in rows:
        for key in ((account_id, "", "bucket", int(start)), (account_id, "", "life", 0)):
            found[key][0] += int(spent)
            found[key][1] += int(gpu_us)
    for account_id, start, amount in _corrections(session):
        for key in ((account_id, "", "bucket", start), (account_id, "", "life", 0)):
            found[key][0] += amount
    held = session.execute(
        sa.select(Hold.account_id, sa.func.sum(Hold.amount_u), sa.func.sum(Hold.gpu_us))
        .where(Hold.state == "open")
        .group_by(Hold.account_id)
    )
    for account_id, amount, gpu_us in held:
        found[account_id, "", "life", 0][2] += int(amount)
        found[account_id, "", "life", 0][3] += int(gpu_us)
    active = session.execute(
        sa.select(LeaseAccount.account_id, Lease.slice_type, sa.func.count())
        .join(Lease, Lease.id == LeaseAccount.lease_id)
        .where(Lease.state.in_(LIVE_STATES))
        .group_by(LeaseAccount.account_id, Lease.slice_type)
    )
    for account_id, slice_type, count in active:
        found[account_id, "", "life", 0][4] += count
        found[account_id, slice_type, "life", 0][4] += count
    return {key: (a, b, c, d, e) for key, (a, b, c, d, e) in found.items()}


def _corrections(session: Session) -> Iterator[tuple[int, int, int]]:
    """Account, start of the bucket and signed amount of what was corrected afterwards."""
    corrected = aliased(Entry)
    rows = session.execute(
        sa.select(LeaseAccount.account_id, Segment.from_us, Entry.kind, Entry.amount_u)
        .select_from(Entry)
        .join(corrected, corrected.id == Entry.corrects_id)
        .join(Segment, Segment.id == corrected.segment_id)
        .join(LeaseAccount, LeaseAccount.lease_id == Segment.lease_id)
        .where(Entry.kind.in_(_SIGNS))
    )
    for account_id, from_us, kind, amount in rows:
        yield account_id, from_us - from_us % _BUCKET_US, _SIGNS[kind] * amount


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
    paid = aliased(Entry)
    corrected = session.execute(
        sa.select(Lease.slice_type, Entry.kind, sa.func.sum(Entry.amount_u))
        .select_from(Entry)
        .join(paid, paid.id == Entry.corrects_id)
        .join(Segment, Segment.id == paid.segment_id)
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
