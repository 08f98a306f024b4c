"""The fleet as grants see it: kept from one transaction to the next, read anew where it changed.

Whatever changes what may be granted on a device raises its version in the same transaction, so
every transaction asks for each node's stamp (one short query) and reads only nodes with another
one. Nothing is decided by what is kept: a claim is written together with the guarded raise of the
versions it was placed on (`gpuslice.broker.grant`), so a view that is behind leads to another try.

Only what a committed transaction has read is kept. One that is rolled back may have raised a
version itself, and the next transaction will give the same number to something else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import event
from sqlalchemy.orm import Session

from gpuslice.broker.snapshot import Stamp, read_nodes, stamps
from gpuslice.fleet.slice_types import SliceType
from gpuslice.placement import NodeAnswers, NodeSnapshot, NoPlace, Placement
from gpuslice.placement.fleets import Rules
from gpuslice.wire import Enforcement


@dataclass(frozen=True)
class FleetView:
    """All nodes as they are in one transaction, in their order by name."""

    nodes: tuple[NodeSnapshot, ...]
    #: The strongest enforcement that each node's engine gives.
    ceilings: Mapping[str, Enforcement]


@dataclass(frozen=True)
class _Kept:
    stamp: Stamp
    reserve_ram: int
    node: NodeSnapshot


class FleetCache:
    """One process's view of the fleet; its threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._answers = NodeAnswers()

    def look(self, session: Session, reserve_ram: int) -> FleetView:
        """The fleet as it is in this transaction.

        Args:
            reserve_ram: Of each host, bytes that are never handed out.
        """
        session.flush()  # columns are read, for which the session does not do so by itself
        there = stamps(session)
        found: dict[str, NodeSnapshot] = {}
        for node_id, (stamp, _) in there.items():
            kept = self._kept.get(node_id)
            if kept is not None and (kept.stamp, kept.reserve_ram) == (stamp, reserve_ram):
                found[node_id] = kept.node
        changed = there.keys() - found.keys()
        if changed:
            fresh = {
                # The stamp of what was read: that may be newer than what was asked for.
                node_id: _Kept(stamp, reserve_ram, node)
                for node_id, (node, stamp) in read_nodes(session, reserve_ram, changed).items()
            }
            found |= {node_id: kept.node for node_id, kept in fresh.items()}
            self._keep_if_committed(session, fresh)
        return FleetView(
            tuple(found[node_id] for node_id in sorted(found)),
            {node_id: ceiling for node_id, (_, ceiling) in there.items()},
        )

    def place(
        self, nodes: Iterable[NodeSnapshot], slice_type: SliceType, rules: Rules
    ) -> Placement | NoPlace:
        """Where one slice of this type goes on these nodes, or why nowhere."""
        return self._answers.place(
            nodes, slice_type, reserve_bytes=rules.reserve_bytes, ceilings=rules.ceilings
        )

    def forget(self, node_id: str) -> None:
        """A guard has failed on this node: whatever is kept of it is read again."""
        with self._lock:
            self._kept.pop(node_id, None)

    def _keep_if_committed(self, session: Session, fresh: Mapping[str, _Kept]) -> None:
        if session.in_nested_transaction():
            return  # it may be rolled back by itself, and the rest committed

        def keep(committed: Session) -> None:
            # A savepoint that is released says so too, and that is no commit.
            if not committed.in_nested_transaction():
                self._keep(fresh)

        event.listen(session, "after_commit", keep)

    def _keep(self, fresh: Mapping[str, _Kept]) -> None:
        with self._lock:
            for node_id, one in fresh.items():
                kept = self._kept.get(node_id)
                # A long look that ends now may be of an older state.
                if kept is None or kept.stamp <= one.stamp:
                    self._kept[node_id] = one
