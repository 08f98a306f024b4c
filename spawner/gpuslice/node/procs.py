"""Processes as ``/proc`` tells them, named so that a reused pid is never mistaken for the old one.

Standard library only: the supervisor imports this, and it has to start fast.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Every process of a leased server is born with this variable; its value is the lease's id.
LEASE_VARIABLE = "GPUSLICE_LEASE"

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One living process. ``start_ticks`` is its birth in clock ticks since boot."""

    pid: int
    ppid: int
    session: int
    start_ticks: int


def read_process(pid: int) -> Process | None:
    """The process with this pid, or None when there is none (a zombie has ended: None)."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        return None
    return Process(pid, ppid=int(fields[1]), session=int(fields[3]), start_ticks=int(fields[19]))


def is_alive(pid: int, start_ticks: int) -> bool:
    """Whether exactly that process still lives: the same pid is not enough."""
    process = read_process(pid)
    return process is not None and process.start_ticks == start_ticks


def all_processes() -> dict[int, Process]:
    """Every living process by pid."""
    pids = (int(name) for name in os.listdir(_PROC) if name.isdecimal())  # noqa: PTH208
    return {pid: process for pid in pids if (process := read_process(pid)) is not None}


def descendants(table: dict[int, Process], roots: Iterable[int]) -> list[Process]:
    """All processes below ``roots`` (which are left out), parents before children."""
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.ppid, []).append(process)
    found: list[Process] = []
    todo = list(roots)
    seen = set(todo)
    while todo:
        for child in children.get(todo.pop(), []):
            if child.pid not in seen:
                seen.add(child.pid)
                found.append(child)
                todo.append(child.pid)
    return found


def marked(table: dict[int, Process], lease_id: str) -> list[Process]:
    """The processes whose environment at birth named this lease."""
    needle = f"{LEASE_VARIABLE}={lease_id}".encode()
    return [p for p in table.values() if needle in _environment(p.pid)]


def _environment(pid: int) -> list[bytes]:
    # Gone meanwhile, or another user's: then it is none of ours.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    return []


def send_signal(pid: int, start_ticks: int, signum: signal.Signals) -> bool:
    """Signals exactly that process; False when it is gone, whoever has its pid now."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # Checked *after* the handle is open: what the handle names can no longer change.
        if not is_alive(pid, start_ticks):
            return False
        signal.pidfd_send_signal(handle, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True
