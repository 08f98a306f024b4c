"""Counts for operators: leases and devices by state, and errors by where they came from."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger.tables import Device, Lease
from gpuslice.wire import DeviceState, LeaseState, SliceKind

SOURCES = ("node", "hub", "ledger", "clock_jump", "unaccounted", "internal")


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


def leases_by_state(session: Session) -> dict[str, int]:
    """How many leases are in each state, zero included."""
    found = dict(
        session.execute(sa.select(Lease.state, sa.func.count()).group_by(Lease.state)).all()
    )
    return {state.value: found.get(state.value, 0) for state in LeaseState}


def snapshot(session: Session) -> dict[str, object]:
    """Leases by (state, kind) and devices by state, every combination present."""
    leases = {
        (state, kind): count
        for state, kind, count in session.execute(
            sa.select(Lease.state, Lease.kind, sa.func.count()).group_by(Lease.state, Lease.kind)
        )
    }
    devices = dict(
        session.execute(
            sa.select(Device.state, sa.func.count())
            .where(Device.kind != "host")
            .group_by(Device.state)
        ).all()
    )
    return {
        "leases": {
            (state.value, kind.value): leases.get((state.value, kind.value), 0)
            for state in LeaseState
            for kind in SliceKind
        },
        "devices": {state.value: devices.get(state.value, 0) for state in DeviceState},
    }
