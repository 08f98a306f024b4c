"""Placing on nodes that seldom change: each is asked once, and again when it has become another.

The best place of a fleet is the best of its nodes' best places, so this gives exactly what
:func:`gpuslice.placement.place.place` gives for the whole; only nodes that have changed since the
last time are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gpuslice.fleet.slice_types import SliceType
from gpuslice.placement.place import Found, best, look
from gpuslice.placement.snapshot import NodeSnapshot, NoPlace, Placement
from gpuslice.wire import Enforcement

#: So many questions (a slice type and a reserve) are remembered; a catalogue has fewer types.
_QUESTIONS = 256


class _Known(NamedTuple):
    node: NodeSnapshot
    ceiling: Enforcement
    found: Found


class NodeAnswers:
    """What each node had for each slice type when it was last asked. Threads may share one."""

    def __init__(self) -> None:
        self._known: dict[tuple[SliceType, int], dict[str, _Known]] = {}

    def place(
        self,
        nodes: Iterable[NodeSnapshot],
        slice_type: SliceType,
        *,
        reserve_bytes: int,
        ceilings: Mapping[str, Enforcement],
    ) -> Placement | NoPlace:
        """Where one slice of this type goes on these nodes, or why nowhere."""
        if len(self._known) >= _QUESTIONS:
            self._known = {}
        known = self._known.setdefault((slice_type, reserve_bytes), {})
        found = []
        for node in nodes:
            ceiling = ceilings.get(node.node_id, Enforcement.ADVISORY)
            last = known.get(node.node_id)
            if last is None or last.node is not node or last.ceiling != ceiling:
                hosts = () if node.host is None else (node.host,)
                seen = look(
                    hosts, node.devices, slice_type, reserve_bytes=reserve_bytes,
                    ceilings=ceilings,
                )  # fmt: skip
                last = known[node.node_id] = _Known(node, ceiling, seen)
            found.append(last.found)
        return best(found, slice_type)
