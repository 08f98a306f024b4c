"""What is reserved, for whom and when: the ledger's reservations as placement looks at them.

Everybody who places (a grant, the offers, the queue) reads them here and looks at what
`gpuslice.placement.reserved.left_over` leaves; who is in the way of one is told by `going`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker.snapshot import ceilings, fleet_snapshot
from gpuslice.broker.stays import guessed_ends
from gpuslice.fleet.slice_types import SliceCatalogue, SliceType
from gpuslice.ledger import accounts
from gpuslice.ledger.tables import (
    LIVE_STATES,
    Account,
    AccountName,
    Lease,
    QueueRequest,
    Reservation,
)
from gpuslice.placement import FleetSnapshot
from gpuslice.placement.fleets import Rules, without_leases
from gpuslice.placement.reserved import Keep, in_the_way, left_over
from gpuslice.quotas.chain import MAX_DEPTH
from gpuslice.quotas.documents import zone_of
from gpuslice.quotas.windows import Schedule, Stretch, stretches
from gpuslice.units import HOUR_US, MINUTE_US, to_datetime
from gpuslice.wire import LeaseState

#: So far ahead the queue and the offers look for what is reserved: beyond the next week's lesson.
HORIZON_US = 8 * 24 * HOUR_US
#: Who is in the way is told so much earlier than asked for, so that a late look is no late class.
_EARLIER_US = MINUTE_US
_WHEN = "%a %Y-%m-%d %H:%M"


def newcomer_id(slice_type: str) -> str:
    """What a server is placed as that asks for a slice and has no lease and no request."""
    return f"newcomer:{slice_type}"


@dataclass(frozen=True)
class Booking:
    """One time of one reservation, with what people read about it."""

    reservation_id: int
    account_id: int
    title: str
    timezone: str
    notice_us: int | None
    keep: Keep

    @property
    def words(self) -> str:
        """For a sentence: ``12 quarter for Course A, Tue 2026-12-01 10:00 to 12:00 (CET)``."""
        return f"{self.keep.count} {self.keep.slice_type.name} for {self.title}, {self.when}"

    @property
    def when(self) -> str:
        return when(Stretch(self.keep.start_us, self.keep.til_us), self.timezone)

    def local(self, moment: int) -> str:
        """A moment as the people it is for read it on their clocks."""
        found = to_datetime(moment).astimezone(zone_of(self.timezone))
        return f"{found.strftime(_WHEN)} ({found.tzname()})"


@dataclass(frozen=True)
class Bookings:
    """What is reserved from now on for a while, in the order in which it begins."""

    all: tuple[Booking, ...] = ()
    #: Groups' accounts by name, and the accounts above each.
    groups: Mapping[str, int] = field(default_factory=dict)
    parents: Mapping[int, int | None] = field(default_factory=dict)

    def of_others(self, groups: Iterable[str]) -> tuple[Booking, ...]:
        """Those that are not for somebody who is in these groups."""
        mine = self.accounts(groups)
        return tuple(one for one in self.all if one.account_id not in mine)

    def keeps(self, groups: Iterable[str]) -> tuple[Keep, ...]:
        """What is kept for others than somebody who is in these groups."""
        return tuple(one.keep for one in self.of_others(groups))

    def left(
        self, fleet: FleetSnapshot, groups: Iterable[str], rules: Rules, *, at: int,
        longest_us: int | None,
    ) -> FleetSnapshot:  # fmt: skip
        """What somebody in these groups may have of a fleet, for at most so long."""
        return left_over(fleet, self.keeps(groups), rules, at=at, longest_us=longest_us)

    def accounts(self, groups: Iterable[str]) -> set[int]:
        """The accounts of these groups and of those above them."""
        found: set[int] = set()
        for name in groups:
            account: int | None = self.groups.get(name)
            for _ in range(MAX_DEPTH):
                if account is None:
                    break
                found.add(account)
                account = self.parents.get(account)
        return found


@dataclass(frozen=True)
class Going:
    """Why a lease has to end, when, and how long before it its user has to be told."""

    at_us: int
    reason: str
    notice_us: int
    key: str


def schedule_of(row: Reservation) -> Schedule:
    """When a reservation holds."""
    return Schedule(
        zone=zone_of(row.timezone),
        first_day=date.fromisoformat(row.first_day), last_day=date.fromisoformat(row.last_day),
        weekdays=frozenset(int(digit) for digit in row.weekdays),
        start=time.fromisoformat(row.from_time), til=time.fromisoformat(row.til_time),
    )  # fmt: skip


def when(stretch: Stretch, timezone: str) -> str:
    """``Tue 2026-12-01 10:00 to 12:00 (CET)``."""
    zone = zone_of(timezone)
    start, til = (to_datetime(us).astimezone(zone) for us in (stretch.start_us, stretch.til_us))
    ends = til.strftime("%H:%M" if til.date() == start.date() else _WHEN)
    return f"{start.strftime(_WHEN)} to {ends} ({til.tzname()})"


_CURRENT = (
    sa.select(Reservation)
    .where(Reservation.cancelled_us.is_(None), Reservation.last_day >= sa.bindparam("oldest"))
    .order_by(Reservation.id)
    .execution_options(populate_existing=True)
)


def current(session: Session, now: int) -> list[Reservation]:
    """The reservations that are not cancelled and not over."""
    # Zones differ from UTC by less than a day, and a night ends a day later.
    oldest = (to_datetime(now).date() - timedelta(days=3)).isoformat()
    return list(session.scalars(_CURRENT, {"oldest": oldest}))


def bookings(
    session: Session, catalogue: SliceCatalogue, *, now: int, til_us: int, lead_us: int,
    slack_us: int = 0, newcomer: Sequence[str] | None = None,
) -> Bookings:  # fmt: skip
    """What is reserved between now and a moment.

    Args:
        newcomer: The groups of somebody who neither waits nor holds a lease yet, and is placed
            under `newcomer_id`: what is theirs counts towards what is kept for their groups.
        lead_us: So long before it begins it already binds.
        slack_us: So long a lease may wait after its grant until it runs.
    """
    found = []
    for row in current(session, now):
        wanted = catalogue.get(row.slice_type)
        if wanted is None:  # not on offer now: there is nothing to keep
            continue
        for stretch in stretches(schedule_of(row), now, til_us):
            found.append((row, wanted, stretch))
    if not found:
        return Bookings()
    groups, parents = _groups(session)
    known = Bookings((), groups, parents)
    slice_types = {row.slice_type for row, _, _ in found}
    takers = _takers(session, known, slice_types)
    if newcomer is not None:
        mine = known.accounts(newcomer)
        takers += [(newcomer_id(one), one, mine) for one in sorted(slice_types)]
    made = [
        _booking(row, wanted, stretch, takers, lead_us, slack_us) for row, wanted, stretch in found
    ]
    made.sort(key=lambda one: (one.keep.start_us, one.reservation_id))
    return Bookings(tuple(made), groups, parents)


def _booking(
    row: Reservation, wanted: SliceType, stretch: Stretch,
    takers: Sequence[tuple[str, str, set[int]]], lead_us: int, slack_us: int,
) -> Booking:  # fmt: skip
    members = frozenset(
        taker for taker, slice_type, of in takers
        if slice_type == row.slice_type and row.account_id in of
    )  # fmt: skip
    keep = Keep(
        key=f"{row.id}:{stretch.start_us}", slice_type=wanted, count=row.count,
        start_us=stretch.start_us, til_us=stretch.til_us, lead_us=lead_us, slack_us=slack_us,
        members=members,
    )  # fmt: skip
    return Booking(row.id, row.account_id, row.title, row.timezone, row.notice_us, keep)


def _groups(session: Session) -> tuple[dict[str, int], dict[int, int | None]]:
    rows = session.execute(
        sa.select(AccountName.name, Account.id, Account.parent_id)
        .join(Account, Account.id == AccountName.account_id)
        .where(AccountName.source == accounts.HUB_GROUP, AccountName.valid_til_us.is_(None))
    ).all()
    return {name: one for name, one, _ in rows}, {one: parent for _, one, parent in rows}


def _takers(
    session: Session, known: Bookings, slice_types: set[str]
) -> list[tuple[str, str, set[int]]]:
    """Leases that live, and requests that wait, with the accounts of their users' groups."""
    of_leases = sa.select(Lease.id, Lease.slice_type, Lease.groups).where(
        Lease.state.in_(LIVE_STATES), Lease.slice_type.in_(slice_types)
    )
    of_requests = sa.select(QueueRequest.id, QueueRequest.slice_type, QueueRequest.groups).where(
        QueueRequest.state == "waiting", QueueRequest.slice_type.in_(slice_types)
    )
    return [
        (one, slice_type, known.accounts(json.loads(groups)))
        for query in (of_leases, of_requests)
        for one, slice_type, groups in session.execute(query)
    ]


# --- who is in the way --------------------------------------------------------------------------


def going(
    session: Session, catalogue: SliceCatalogue, reserve_bytes: int, host_reserve_ram: int,
    closed_nodes: Mapping[str, str], *, now: int,
) -> dict[str, Going]:  # fmt: skip
    """The leases that have to end for a reservation whose time to tell them has come.

    Only those of reservations with a notice; of them as few as are needed, the newest first,
    never one that is certain to end before, nor one that an administrator let go on.
    """
    notices = [row.notice_us for row in current(session, now) if row.notice_us is not None]
    if not notices:
        return {}
    til_us = now + max(notices) + _EARLIER_US + 1
    known = bookings(session, catalogue, now=now, til_us=til_us, lead_us=0)
    due = [
        one for one in known.all
        if one.notice_us is not None and now >= one.keep.start_us - one.notice_us - _EARLIER_US
    ]  # fmt: skip
    if not due:
        return {}
    everything = fleet_snapshot(session, host_reserve_ram)
    fleet = FleetSnapshot(
        tuple(host for host in everything.hosts if host.node_id not in closed_nodes),
        tuple(one for one in everything.devices if one.node_id not in closed_nodes),
    )
    fleet = without_leases(fleet, _ending(session))
    rules = Rules(reserve_bytes, ceilings(session))
    certain, _ = guessed_ends(session, now)
    found: dict[str, Going] = {}
    # Each moment by itself: what is there when one begins differs.
    for start_us in sorted({max(now, one.keep.start_us) for one in due}):
        there = {one.keep.key: one for one in known.all if _holds(one, start_us)}
        over = {lease_id for lease_id, at in certain.items() if at <= start_us}
        newest = _newest_first(session, start_us, over | found.keys())
        taken = frozenset[str]().union(*(one.keep.members for one in there.values()))
        may_go = {
            one.keep.key: [
                lease_id for lease_id, groups in newest
                if lease_id not in taken and one.account_id not in known.accounts(groups)
            ]
            for one in due if one.keep.key in there
        }  # fmt: skip
        ended = in_the_way(
            without_leases(fleet, over | found.keys()), [one.keep for one in there.values()],
            may_go, rules,
        )  # fmt: skip
        for key, leases in ended.items():
            found |= {lease_id: _going(there[key]) for lease_id in leases}
    return found


def _holds(one: Booking, moment: int) -> bool:
    return one.keep.start_us <= moment < one.keep.til_us


def _ending(session: Session) -> set[str]:
    """Leases that are on their way out already."""
    rows = session.scalars(
        sa.select(Lease.id).where(
            Lease.state.in_(LIVE_STATES),
            sa.or_(
                Lease.stop_requested_us.is_not(None),
                Lease.state.not_in((LeaseState.GRANTED.value, LeaseState.RUNNING.value)),
            ),
        )
    )
    return set(rows)


def _newest_first(
    session: Session, start_us: int, over: Collection[str]
) -> list[tuple[str, list[str]]]:
    """Leases that may be ended, with their users' groups."""
    rows = session.execute(
        sa.select(Lease.id, Lease.groups)
        .where(
            Lease.state.in_((LeaseState.GRANTED.value, LeaseState.RUNNING.value)),
            Lease.stop_requested_us.is_(None),
            sa.or_(Lease.guaranteed_til_us.is_(None), Lease.guaranteed_til_us <= start_us),
        )
        .order_by(Lease.granted_us.desc(), Lease.id)
    )
    return [(one, json.loads(groups)) for one, groups in rows if one not in over]


def _going(one: Booking) -> Going:
    assert one.notice_us is not None
    return Going(
        at_us=one.keep.start_us,
        reason=f"Its place is reserved for {one.title} ({one.when})",
        notice_us=one.notice_us,
        key=one.keep.key,
    )
