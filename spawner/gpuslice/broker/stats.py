"""Counts for operators: leases, queue and devices now, time and money ever, errors by source.

A look costs what there is *now*, never what there ever was: live leases and waiting requests are
found by the index on their state, and what was billed is read from a projection with a few rows
for each slice type (`gpuslice.ledger.tables.SliceTotal`), whether there are ten entries or ten
million.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger import counters
from gpuslice.ledger.tables import LIVE_STATES, WAITING_STATES, Device, Lease, QueueRequest
from gpuslice.wire import DeviceState

SOURCES = ("node", "hub", "ledger", "clock_jump", "unaccounted", "internal")

#: Slice types that are configured no more, but are in leases and bills: one label for all.
OTHER = "other"

#: States of requests whose slice is reserved for them and not used yet.
_OFFERED = tuple(state for state in WAITING_STATES if state != "waiting")


class Errors:
    """Errors since the start, by source; every source is there from zero on."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, source: str) -> None:
        if source not in SOURCES:
            raise ValueError(f"{source!r} is no source of errors")
        self._counts[source] += 1

    def counts(self) -> dict[str, int]:
        return {source: self._counts[source] for source in SOURCES}


@dataclass(frozen=True)
class Waits:
    """Requests in the queue: how many, and for how long the oldest has waited (microseconds)."""

    count: dict[str, int] = field(default_factory=dict)
    oldest_us: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """What the ledger says at one moment. What is not in a mapping is zero.

    ``leases`` by (state, kind, slice type), live ones only; ``totals`` time (microseconds) and
    money ever by (slice type, what), as `SliceTotal` says. Slice types are those of
    ``slice_types``, which are bounded, and the last of them is `OTHER`.
    """

    slice_types: tuple[str, ...]
    leases: dict[tuple[str, str, str], int]
    devices: dict[str, int]
    waiting: Waits
    offers: dict[str, int]
    totals: dict[tuple[str, str], tuple[int, int]]


@dataclass(frozen=True)
class Snapshot:
    """All that the broker tells the metrics. ``reconcile_age_s`` None: not compared yet."""

    ledger: Counts
    reconcile_age_s: float | None
    node_reachable: bool
    errors: dict[str, int]


def leases_by_state(session: Session) -> dict[str, int]:
    """How many leases hold something, by state, zero included."""
    found = dict(
        session.execute(
            sa.select(Lease.state, sa.func.count())
            .where(Lease.state.in_(LIVE_STATES))
            .group_by(Lease.state)
        ).all()
    )
    return {state: found.get(state, 0) for state in LIVE_STATES}


def look(session: Session, slice_types: Iterable[str], now: int) -> Counts:
    """Everything that the ledger knows for the metrics, with these slice types by name."""
    names = sorted(set(slice_types) - {OTHER})

    def name(slice_type: str) -> str:
        return slice_type if slice_type in names else OTHER

    return Counts(
        slice_types=(*names, OTHER),
        leases=_leases(session, name),
        devices=_devices(session),
        waiting=_waiting(session, name, now),
        offers=_offers(session, name),
        totals=_totals(session, name),
    )


def _leases(session: Session, name: Callable[[str], str]) -> dict[tuple[str, str, str], int]:
    found: dict[tuple[str, str, str], int] = defaultdict(int)
    rows = session.execute(
        sa.select(Lease.state, Lease.kind, Lease.slice_type, sa.func.count())
        .where(Lease.state.in_(LIVE_STATES))
        .group_by(Lease.state, Lease.kind, Lease.slice_type)
    )
    for state, kind, slice_type, count in rows:
        found[state, kind, name(slice_type)] += count
    return dict(found)


def _devices(session: Session) -> dict[str, int]:
    rows = session.execute(
        sa.select(Device.state, sa.func.count()).where(Device.kind != "host").group_by(Device.state)
    )
    found = dict(rows.all())
    return {state.value: found.get(state.value, 0) for state in DeviceState}


def _waiting(session: Session, name: Callable[[str], str], now: int) -> Waits:
    waits: Waits = Waits()
    rows = session.execute(
        sa.select(QueueRequest.slice_type, sa.func.count(), sa.func.min(QueueRequest.created_us))
        .where(QueueRequest.state == "waiting")
        .group_by(QueueRequest.slice_type)
    )
    for slice_type, count, since in rows:
        key = name(slice_type)
        waits.count[key] = waits.count.get(key, 0) + count
        waits.oldest_us[key] = max(waits.oldest_us.get(key, 0), now - since)
    return waits


def _offers(session: Session, name: Callable[[str], str]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    rows = session.execute(
        sa.select(QueueRequest.slice_type, sa.func.count())
        .where(QueueRequest.state.in_(_OFFERED))
        .group_by(QueueRequest.slice_type)
    )
    for slice_type, count in rows:
        found[name(slice_type)] += count
    return dict(found)


def _totals(session: Session, name: Callable[[str], str]) -> dict[tuple[str, str], tuple[int, int]]:
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for (slice_type, what), (time_us, amount) in counters.of_slices(session).items():
        key = (name(slice_type), what)
        time_before, amount_before = found.get(key, (0, 0))
        found[key] = (time_before + time_us, amount_before + amount)
    return found
