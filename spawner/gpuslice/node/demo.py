"""Demo mode: the simulated devices show what the leased servers really do on this machine.

Resident memory stands for GPU memory and processor time for GPU use, so the numbers move because
of what people do. A slice is fully used when one processor is; of a shared device it then uses
its share.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpuslice.node.events import log_event
from gpuslice.node.ports import LiveServers
from nvmlsim import Fleet, SimGpu, SimMig, SimProcess, demo_fleet

log = logging.getLogger("gpuslice.node")

_PERIOD_S = 1.0
#: The simulated driver's table has 256 places.
_TABLE = 256
_PER_LEASE = 16


@dataclass(frozen=True, slots=True)
class Use:
    """What one lease does now: bytes, and percent of the *device*."""

    memory: int
    percent: float
    processes: tuple[SimProcess, ...]


class Demo:
    """Writes into the simulated fleet once a second what the leases' processes do."""

    def __init__(self, state: Path, servers: LiveServers) -> None:
        self._fleet: Fleet = demo_fleet(state)
        self._servers = servers
        self._lock = threading.Lock()
        #: psutil measures processor time between two calls on the same object.
        self._known: dict[int, psutil.Process] = {}

    def start(self) -> None:
        threading.Thread(target=self._run, name="demo", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.refresh()
            except (OSError, ValueError, psutil.Error) as problem:
                log_event(log, "demo-failed", logging.WARNING, problem=repr(problem))
            time.sleep(_PERIOD_S)

    def refresh(self) -> None:
        """Makes every simulated device show what is true now."""
        with self._lock:
            uses = self._uses()
            with self._fleet.transaction():
                free = _TABLE
                for device in _devices(self._fleet):
                    free -= _show(device, uses.get(device.uuid, []), free)

    def _uses(self) -> dict[str, list[Use]]:
        """What each leased device is used for, by UUID."""
        uses: dict[str, list[Use]] = {}
        alive: dict[int, psutil.Process] = {}
        for one in self._servers.live():
            processes = self._processes(one.pids)
            alive.update((process.pid, process) for process in processes)
            uses.setdefault(one.device_uuid, []).append(_use(processes, one.share_milli))
        self._known = alive
        return uses

    def _processes(self, pids: Iterable[int]) -> list[psutil.Process]:
        found = []
        for pid in pids:
            try:
                process = psutil.Process(pid)
            except psutil.NoSuchProcess:
                continue
            known = self._known.get(pid)
            # Equal means the same pid and the same birth.
            found.append(known if known is not None and known == process else process)
        return found


def _use(tree: Iterable[psutil.Process], share_milli: int) -> Use:
    share = share_milli / 1000
    processes = []
    for process in tree:
        try:
            with process.oneshot():
                memory, percent = process.memory_info().rss, process.cpu_percent()
        except psutil.Error:
            continue
        processes.append(SimProcess(process.pid, memory, utilisation=min(100.0, percent) * share))
    processes.sort(key=lambda process: process.memory or 0, reverse=True)
    return Use(
        memory=sum(process.memory or 0 for process in processes),
        percent=min(100.0 * share, sum(process.utilisation or 0 for process in processes)),
        processes=tuple(processes[:_PER_LEASE]),
    )


def _devices(fleet: Fleet) -> list[SimGpu | SimMig]:
    found: list[SimGpu | SimMig] = []
    for gpu in fleet.gpus():
        found += [gpu, *gpu.migs()]
    return found


def _show(device: SimGpu | SimMig, uses: list[Use], free: int) -> int:
    """Sets one device's numbers; returns how many places of the process table it took."""
    device.used = min(sum(use.memory for use in uses), device.total - device.reserved)
    device.utilisation = min(100.0, sum(use.percent for use in uses))
    processes = [process for use in uses for process in use.processes][:free]
    device.set_processes(processes)
    return len(processes)
