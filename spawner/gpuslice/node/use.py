"""How much each running server uses of its device now, sampled once a second in one thread.

Who has a whole GPU or a MIG instance alone is shown that device's own numbers. Who has a share is
shown the sum over its own processes on NVML's list, and never the card's numbers: those tell about
the neighbours. Readers take the newest sample from memory and wait for nothing, so an NVML that
hangs shows as samples that grow old. While no server with a device runs, NVML is left alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Set
from pathlib import Path

from gpuslice import wire
from gpuslice.node.events import log_event
from gpuslice.node.ports import Live, LiveServers
from gpuslice.nvml import (
    DeviceNotFound,
    DeviceSample,
    NotAvailable,
    Nvml,
    NvmlUnavailable,
    ProcessUse,
    Reading,
)
from gpuslice.units import SECOND_US, boottime_us, now_us

log = logging.getLogger("gpuslice.node")

PERIOD_S = 1.0
#: How often an NVML that does not answer is tried again.
RETRY_S = 5.0
#: An older sample says nothing about now.
MAX_AGE_US = 30 * SECOND_US


class UseSampler:
    """Samples in its thread; ``of`` may be called from any other."""

    def __init__(
        self,
        servers: LiveServers,
        library: Path | None,
        clock: Callable[[], int] = boottime_us,
    ) -> None:
        self._servers = servers
        self._library = library
        self._clock = clock
        #: A door of its own: a call that hangs here holds up no inventory and no release.
        self._nvml: Nvml | None = None
        self._problem: str | None = None
        self._samples: dict[str, tuple[int, wire.Use]] = {}

    def of(self, lease_id: str) -> wire.Use | None:
        """The newest sample; None before the first one and when it is too old."""
        taken_us, use = self._samples.get(lease_id, (0, None))
        return use if use is not None and self._clock() - taken_us <= MAX_AGE_US else None

    def start(self) -> None:
        threading.Thread(target=self._run, name="use", daemon=True).start()

    def _run(self) -> None:
        while True:
            wait_s = PERIOD_S
            try:
                if not self.sample_once():
                    wait_s = RETRY_S
                self._tell(None)
            except Exception as problem:  # noqa: BLE001 - one bad round must not end all others
                self._tell(repr(problem))
            time.sleep(wait_s)

    def sample_once(self) -> bool:
        """Samples every running server; False when no device of them could be read at all."""
        live = self._servers.live()
        for lease_id in self._samples.keys() - {one.lease_id for one in live}:
            del self._samples[lease_id]
        by_device: dict[str, list[Live]] = {}
        for one in live:
            by_device.setdefault(one.device_uuid, []).append(one)
        answered = [self._sample(uuid, leases) for uuid, leases in by_device.items()]
        if not any(answered):
            # Nobody to sample, or a driver that has to be opened anew.
            self._close()
        return any(answered) or not answered

    def _sample(self, uuid: str, leases: list[Live]) -> bool:
        """Reads one device, once, for all its leases; whether it gave any number."""
        taken_us = self._clock()
        try:
            if self._nvml is None:
                self._nvml = Nvml.open(self._library)
            # Only shares need the list of processes, which brings the slow calls along.
            sample = self._nvml.device_state(uuid, details=any(one.shares for one in leases))
        except (NvmlUnavailable, DeviceNotFound) as problem:
            reason = problem.reason if isinstance(problem, NvmlUnavailable) else _GONE
            use = wire.Use(sampled_us=now_us(), reason=reason)
            self._samples.update({one.lease_id: (taken_us, use) for one in leases})
            return False
        for one in leases:
            use = whole_use(sample)
            if one.shares:
                use = share_use(sample, one.pids, one.share_milli)
            self._samples[one.lease_id] = (taken_us, use)
        return sample.health == "ok"

    def _close(self) -> None:
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None

    def _tell(self, problem: str | None) -> None:
        """Logs what is new, not every second what is known."""
        if problem is not None and problem != self._problem:
            log_event(log, "use-failed", logging.ERROR, problem=problem)
        self._problem = problem


def whole_use(sample: DeviceSample) -> wire.Use:
    """The use of a device that one lease has alone."""
    memory, busy = sample.memory, sample.utilisation
    return _use(
        sample,
        memory if isinstance(memory, NotAvailable) else memory.used,
        busy if isinstance(busy, NotAvailable) else busy.percent,
    )


def share_use(sample: DeviceSample, pids: Set[int], share_milli: int) -> wire.Use:
    """The use of a share: its own processes only, and percent of the share."""
    listed = sample.processes
    if isinstance(listed, NotAvailable):
        return _use(sample, listed, listed)
    own = [process for process in listed if process.pid in pids]
    memory = _sum(process.memory for process in own)
    busy = _busy(listed, own)
    if not isinstance(busy, NotAvailable):
        busy = min(100.0, busy * 1000 / share_milli)
    return _use(sample, memory, busy)


_GONE = "the device is gone"


def _busy(listed: Iterable[ProcessUse], own: list[ProcessUse]) -> Reading[float]:
    """The sum over our processes, in percent of the device.

    The driver samples only processes that compute. So one without a sample is idle, if any process
    of this device has one; if none has, the driver may as well not be telling.
    """
    sampled = [p.sm_percent for p in listed if not isinstance(p.sm_percent, NotAvailable)]
    if own and not sampled:
        return own[0].sm_percent
    return _sum(p.sm_percent for p in own if not isinstance(p.sm_percent, NotAvailable))


def _sum(readings: Iterable[Reading[float]]) -> Reading[float]:
    """The sum; not available if one part of it is not."""
    total: float = 0
    for reading in readings:
        if isinstance(reading, NotAvailable):
            return reading
        total += reading
    return total


def _use(sample: DeviceSample, memory: Reading[float], busy: Reading[float]) -> wire.Use:
    return wire.Use(
        sampled_us=sample.taken_us,
        memory_used_bytes=None if isinstance(memory, NotAvailable) else int(memory),
        utilisation_percent=None if isinstance(busy, NotAvailable) else round(busy),
        reason=_reason(memory, busy),
    )


def _reason(memory: Reading[float], busy: Reading[float]) -> str | None:
    """One sentence on what is missing; None when nothing is."""
    missing: dict[str, list[str]] = {}
    for name, reading in (("memory", memory), ("utilisation", busy)):
        if isinstance(reading, NotAvailable):
            missing.setdefault(reading.reason, []).append(name)
    parts = [f"no {' and no '.join(names)}: {reason}" for reason, names in missing.items()]
    return "; ".join(parts) or None
