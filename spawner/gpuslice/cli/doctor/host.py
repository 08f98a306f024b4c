"""Checks of the machine itself: its clock, and how much room is left on its disks."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuslice.cli.doctor.findings import (
    Group,
    Verdict,
    Verdicts,
    ok,
    problem,
    unknown,
    warning,
)
from gpuslice.cli.doctor.machine import Machine
from gpuslice.units import GIB, format_memory

#: What ``adjtimex`` returns, and sets in ``status``, while nothing synchronises the clock.
_TIME_ERROR = 5
_STA_UNSYNC = 0x0040
#: Less than this is close to full, for a disk of any size; and less than this is full.
_LITTLE_BYTES, _LITTLE_SHARE = 5 * GIB, 0.05
_NOTHING_BYTES = GIB // 2
_NOTHING_FILES_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Disk:
    """How full the file system of one path is."""

    path: str
    use: str
    total_bytes: int
    free_bytes: int
    files: int = 0
    free_files: int = 0


@dataclass(frozen=True, slots=True)
class HostFacts:
    #: What the kernel says of its clock; None when it does not.
    synchronised: bool | None
    disks: tuple[Disk, ...]


class _Timex(ctypes.Structure):
    """The head of ``struct timex``, and room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def clock_synchronised() -> bool | None:
    """Whether the kernel holds its clock for synchronised; None when it does not say.

    Asked directly, because every daemon that does it (chrony, ntpd, systemd-timesyncd) tells the
    kernel, and no program for asking is in a container.
    """
    timex = _Timex()
    result = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if result < 0:
        return None
    return result != _TIME_ERROR and not timex.status & _STA_UNSYNC


def look(machine: Machine) -> HostFacts:
    return HostFacts(clock_synchronised(), tuple(_disks(_watched(machine))))


def _watched(machine: Machine) -> list[tuple[str, Path, str]]:
    """Paths whose file systems must not be full: how people call them, where they are, for what."""
    root = machine.state.root
    found = [(str(root), root if root.exists() else root.absolute().parent, "ledger and logs")]
    if machine.kind == "docker":
        settings = machine.settings.docker
        volumes = machine.engine.info.get("DockerRootDir")
        if isinstance(volumes, str):
            found.append((volumes, machine.host(volumes), "images, containers and volumes"))
        if settings.home != "volume":
            found.append((settings.home, machine.host(settings.home), "homes"))
    return found


def _disks(paths: Iterable[tuple[str, Path, str]]) -> Iterable[Disk]:
    seen: set[int] = set()
    for shown, path, use in paths:
        try:
            device, stated = path.stat().st_dev, os.statvfs(path)
        except OSError:
            continue
        if device not in seen:
            seen.add(device)
            yield Disk(
                shown, use, stated.f_blocks * stated.f_frsize, stated.f_bavail * stated.f_frsize,
                stated.f_files, stated.f_favail,
            )  # fmt: skip


def clock(facts: HostFacts) -> Verdict:
    """Bills are times of this clock."""
    if facts.synchronised is None:
        return unknown(
            "The kernel does not say whether its clock is synchronised.",
            "Run: timedatectl; bills are as exact as this clock.",
        )
    if not facts.synchronised:
        return warning(
            "Nothing synchronises this machine's clock, and bills are times of this clock.",
            "Install and start chrony (apt-get install chrony).",
        )
    return ok("The clock is synchronised.")


def disks(facts: HostFacts) -> list[Verdict]:
    found = [verdict for disk in facts.disks if (verdict := _full(disk)) is not None]
    if not facts.disks:
        return [unknown("No disk could be looked at.", "Run: df -h.")]
    return found or [ok("There is room on all disks.")]


def _full(disk: Disk) -> Verdict | None:
    left = f"{disk.path} ({disk.use}) has {format_memory(disk.free_bytes)} left"
    if disk.files and disk.free_files < disk.files * _NOTHING_FILES_SHARE:
        return problem(
            f"{disk.path} ({disk.use}) has room for {disk.free_files} more files only.",
            "Remove what is made of many small files: old images, caches.",
        )
    if disk.free_bytes < _NOTHING_BYTES:
        return problem(
            f"{left}: no server can start, and soon nothing can be billed.",
            "Remove old images (docker image prune) and files, or enlarge it.",
        )
    if disk.free_bytes < _LITTLE_BYTES or disk.free_bytes < disk.total_bytes * _LITTLE_SHARE:
        return warning(
            f"{left}.", "Remove old images (docker image prune) and files, or enlarge it."
        )
    return None


CHECKS: Mapping[str, Callable[[HostFacts], Verdicts]] = {"clock": clock, "disks": disks}


def group(machine: Machine) -> Group[HostFacts]:
    return Group("host", lambda: look(machine), CHECKS)
