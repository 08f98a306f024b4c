"""The lease's state machine: which moves there are, and the one compare-and-set that makes them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger.tables import Lease
from gpuslice.wire import LeaseState as S

#: Every move there is. A server that ran although its lease was being taken back is billed to
#: the platform: ``revoking → settled``.
MOVES: dict[S, frozenset[S]] = {
    S.GRANTED: frozenset({S.RUNNING, S.REVOKING}),
    S.RUNNING: frozenset({S.STOPPING, S.SETTLED}),
    S.STOPPING: frozenset({S.SETTLED}),
    S.SETTLED: frozenset({S.ENDED}),
    S.REVOKING: frozenset({S.CANCELLED, S.SETTLED}),
    S.ENDED: frozenset(),
    S.CANCELLED: frozenset(),
}

#: States in which a lease no longer holds anything.
OVER = (S.ENDED, S.CANCELLED)


def move(session: Session, lease_id: str, old: S, new: S, *, now: int, **values: Any) -> bool:
    """Move a lease from ``old`` to ``new`` if it still is ``old``; returns whether it did.

    Raises:
        ValueError: there is no such move; a programming error.
    """
    if new not in MOVES[old]:
        raise ValueError(f"a lease never moves from {old} to {new}")
    done = session.execute(
        sa.update(Lease)
        .where(Lease.id == lease_id, Lease.state == old)
        .values(state=new.value, state_us=now, **values)
        .execution_options(synchronize_session=False)
    )
    moved: bool = done.rowcount == 1  # type: ignore[attr-defined]
    if moved:
        held = session.identity_map.get(sa.orm.util.identity_key(Lease, lease_id))
        if held is not None:
            session.refresh(held)
    return moved
