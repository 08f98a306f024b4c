"""Which containers run now, with their processes as this machine numbers them, for the samplers."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpuslice import wire
from gpuslice.node.ports import Live
from gpuslice.node.procs import Process, all_processes, descendants

_PROC = Path("/proc")
#: How many processes of one lease are remembered; a bound, not a limit on what is found.
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Running:
    """A container that runs and has a device: its slice, and its first process."""

    piece: wire.PrepareSlice
    device_uuid: str
    pid: int


class ContainerServers:
    """The ``docker`` engine's running servers, as of the node's last look at the engine.

    The node looks every few seconds. Needs to see the host's processes.
    """

    def __init__(self) -> None:
        self._running: tuple[Running, ...] = ()
        self._lock = threading.Lock()
        self._remembered: dict[str, set[int]] = {}

    def update(self, running: Sequence[Running]) -> None:
        """What the node has just seen."""
        self._running = tuple(running)

    def live(self) -> list[Live]:
        """The running servers that have a device, with their processes as they are now."""
        running = self._running
        # Nobody runs: then nobody's processes are looked for.
        processes = container_processes([one.pid for one in running]) if running else {}
        found = []
        for one in running:
            pids = processes[one.pid]
            self._remember(one.piece.lease_id, pids)
            found.append(
                Live(
                    lease_id=one.piece.lease_id,
                    kind=one.piece.kind,
                    device_uuid=one.device_uuid,
                    share_milli=one.piece.share_milli or 1000,
                    pids=pids,
                )
            )
        return found

    def _remember(self, lease_id: str, pids: frozenset[int]) -> None:
        with self._lock:
            seen = self._remembered.setdefault(lease_id, set())
            if len(seen) < _REMEMBERED:
                seen |= pids

    def remembered(self, lease_id: str) -> set[int]:
        """Every process that this lease was seen to have, so that a device can be checked."""
        with self._lock:
            return set(self._remembered.get(lease_id, ()))

    def forget(self, lease_id: str) -> None:
        with self._lock:
            self._remembered.pop(lease_id, None)


def container_processes(firsts: Sequence[int]) -> dict[int, frozenset[int]]:
    """All processes of containers, by the pid of the first process of each.

    They are those of its pid namespace (what was started by ``docker exec`` is no child of the
    first one) and all below them (some may have made a namespace of their own).
    """
    table = all_processes()
    spaces = {pid: space for pid in table if (space := _namespace(pid)) is not None}
    # A container that has ended: its number may by now be that of a process of the host.
    ours = _namespace(os.getpid())
    members: dict[str, list[int]] = {}
    for pid, space in spaces.items():
        members.setdefault(space, []).append(pid)
    found = {}
    for first in firsts:
        space = spaces.get(first)
        of_space = [] if space is None or space == ours else members[space]
        found[first] = _with_descendants(table, of_space)
    return found


def _with_descendants(table: Mapping[int, Process], pids: Sequence[int]) -> frozenset[int]:
    below = descendants(dict(table), pids)
    return frozenset(pids) | {process.pid for process in below}


def _namespace(pid: int) -> str | None:
    """Which pid namespace it is in; None when it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        return str((_PROC / str(pid) / "ns/pid").readlink())
    return None
