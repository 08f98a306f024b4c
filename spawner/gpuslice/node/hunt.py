"""Finds and ends what a lease has left behind when no supervisor of it is there to do so."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from gpuslice.node.leasedir import Record
from gpuslice.node.procs import Process, all_processes, descendants, marked, send_signal
from gpuslice.units import boot_id

_LOOK_AGAIN_S = 0.05

#: How many processes of one lease are remembered; a bound, not a limit on what is ended.
_REMEMBERED = 10_000


class Memory:
    """Which processes were seen to belong to which lease while its supervisor still held them.

    Only a help: it finds a process that has changed its session and cleaned its environment, and
    it tells whose a process on a device was. The node's truth is never deduced from it.
    """

    def __init__(self) -> None:
        self._seen: dict[str, dict[int, Process]] = {}

    def note(self, lease_id: str, processes: list[Process]) -> None:
        seen = self._seen.setdefault(lease_id, {})
        if len(seen) < _REMEMBERED:
            seen.update((process.pid, process) for process in processes)

    def of(self, lease_id: str) -> list[Process]:
        return list(self._seen.get(lease_id, {}).values())

    def forget(self, lease_id: str) -> None:
        self._seen.pop(lease_id, None)


def members(lease_id: str, record: Record | None, remembered: list[Process]) -> list[Process]:
    """Every living process of a lease, supervisor included, that can be told for certain."""
    table = all_processes()
    found = {process.pid: process for process in marked(table, lease_id)}
    known = [(process.pid, process.start_ticks) for process in remembered]
    if record is not None and record.boot_id == boot_id():
        known.append((record.supervisor_pid, record.supervisor_ticks))
        if record.child_pid is not None and record.child_ticks is not None:
            known.append((record.child_pid, record.child_ticks))
        found.update((process.pid, process) for process in _session(table, record))
    for pid, ticks in known:
        process = table.get(pid)
        if process is not None and process.start_ticks == ticks:
            found[pid] = process
    found.update((process.pid, process) for process in descendants(table, list(found)))
    found.pop(os.getpid(), None)
    return list(found.values())


def _session(table: dict[int, Process], record: Record) -> list[Process]:
    """The session that a killed supervisor leaves behind; its number is the supervisor's pid."""
    if record.state != "running":
        return []
    leader = table.get(record.supervisor_pid)
    if leader is not None and leader.start_ticks != record.supervisor_ticks:
        # The kernel gives a pid out again only when no session has that number any more.
        return []
    return [process for process in table.values() if process.session == record.supervisor_pid]


async def end_all(
    lease_id: str, record: Record | None, remembered: list[Process], limit_s: float
) -> list[Process]:
    """SIGKILLs all members until none is left; returns those that are still there at the limit."""
    deadline = time.monotonic() + limit_s
    while True:
        left = await asyncio.to_thread(_kill_once, lease_id, record, remembered)
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(_LOOK_AGAIN_S)


def _kill_once(lease_id: str, record: Record | None, remembered: list[Process]) -> list[Process]:
    left = members(lease_id, record, remembered)
    for process in left:
        send_signal(process.pid, process.start_ticks, signal.SIGKILL)
    return left
