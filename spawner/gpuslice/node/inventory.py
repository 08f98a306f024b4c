"""What devices this node has, and whether one is clean: NVML in the words of ``wire``."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

import psutil

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.node.events import log_event
from gpuslice.node.worker import Worker
from gpuslice.nvml import (
    DeviceInfo,
    DeviceNotFound,
    DeviceSample,
    MigInfo,
    NotAvailable,
    Nvml,
    NvmlUnavailable,
    Reading,
)
from gpuslice.units import boot_id, boottime_us, now_us

log = logging.getLogger("gpuslice.node")
T = TypeVar("T")

#: How long all devices together may take to answer.
ANSWER_LIMIT_S = 5.0
#: How often an NVML that could not be opened is tried again.
REOPEN_S = 5.0
#: How long a device may take to forget processes that have ended.
CLEAN_LIMIT_S = 3.0
_POLL_S = 0.2


class NvmlDevices:
    """The devices of this node, asked in a thread of their own and never from memory."""

    def __init__(
        self,
        node_id: str,
        engine: Literal["local", "docker"],
        library: Path | None,
        *,
        simulated: bool = False,
        ceiling: wire.Enforcement,
    ) -> None:
        """``ceiling``: how strongly this engine can hold a cap at all."""
        self._node_id = node_id
        self._engine = engine
        self._library = library
        self._simulated = simulated
        self._ceiling = ceiling
        self._worker = Worker("nvml")
        self._nvml: Nvml | None = None
        self._problem: NvmlUnavailable | None = None
        self._tried_at = -REOPEN_S
        #: Called before a device is looked at, so that a demo's numbers are of now.
        self.before_check: Callable[[], None] | None = None

    # --- what there is ----------------------------------------------------------------------

    async def inventory(self) -> wire.Inventory:
        """All devices as they are now; no devices, and one sentence why, when NVML is silent."""
        try:
            return await self._worker.call(self._inventory, ANSWER_LIMIT_S)
        except TimeoutError:
            return self._report(problem=f"NVML has not answered for {ANSWER_LIMIT_S:.0f} s")

    def _inventory(self) -> wire.Inventory:
        try:
            nvml = self._open()
            listing = nvml.listing()
        except NvmlUnavailable as problem:
            self._lose(problem)
            return self._report(problem=problem.reason)
        for gone in listing.unreadable:
            log_event(
                log, "device-unreadable", logging.WARNING, index=gone.index, mig=gone.mig_index,
                reason=gone.problem.reason,
            )  # fmt: skip
        devices = []
        for info in listing.devices:
            try:
                sample = nvml.device_state(info.uuid, details=False)
            except DeviceNotFound:
                continue
            devices.append(device_report(info, sample, simulated=nvml.simulated))
        return self._report(
            devices=devices, simulated=nvml.simulated, driver=_value(nvml.driver_version)
        )

    def _report(
        self,
        *,
        problem: str | None = None,
        devices: list[wire.DeviceReport] | None = None,
        simulated: bool | None = None,
        driver: str | None = None,
    ) -> wire.Inventory:
        host = wire.HostReport(
            cpu_milli=(os.cpu_count() or 1) * 1000, ram_bytes=psutil.virtual_memory().total
        )
        return wire.Inventory(
            node_id=self._node_id,
            boot_id=boot_id(),
            engine=self._engine,
            now_us=now_us(),
            boottime_us=boottime_us(),
            simulated=self._simulated if simulated is None else simulated,
            driver_version=driver,
            gpu_problem=problem,
            host=host,
            devices=devices or [],
            enforcement_ceiling=self._ceiling,
        )

    # --- one device -------------------------------------------------------------------------

    async def problem(self, uuid: str) -> str | None:
        """Why this device cannot be prepared; None when it can."""
        inventory = await self.inventory()
        if inventory.gpu_problem is not None:
            return inventory.gpu_problem
        for device in inventory.devices:
            if device.uuid == uuid:
                if device.mig_enabled:
                    return "this GPU is in MIG mode: only its instances can be leased"
                return None if device.healthy else device.health_reason or "the device is unwell"
        return f"there is no device {uuid} on this node"

    async def check_clean(self, uuid: str, pids: set[int]) -> wire.ReleaseResult:
        """Whether none of these processes is on the device; drivers take a moment to forget.

        Raises Refused when NVML cannot be asked: the slice then waits until it can.
        """
        deadline = time.monotonic() + CLEAN_LIMIT_S
        while True:
            try:
                result = await self._worker.call(lambda: self._check(uuid, pids), ANSWER_LIMIT_S)
            except TimeoutError:
                message = "NVML does not say whether the device is clean"
                raise Refused("device-unknown", message) from None
            except NvmlUnavailable as problem:
                raise Refused("device-unknown", problem.reason) from None
            if result.clean or time.monotonic() > deadline:
                return result
            await asyncio.sleep(_POLL_S)

    async def look(self, uuid: str) -> wire.DeviceCheck:
        """Whether a device that nobody holds is well, and nothing runs on it.

        Raises Refused when NVML cannot be asked.
        """
        try:
            return await self._worker.call(lambda: self._look(uuid), ANSWER_LIMIT_S)
        except TimeoutError:
            message = "NVML does not say how the device is"
            raise Refused("device-unknown", message, status=503) from None
        except NvmlUnavailable as problem:
            raise Refused("device-unknown", problem.reason, status=503) from None

    def _look(self, uuid: str) -> wire.DeviceCheck:
        if self.before_check is not None:
            self.before_check()
        try:
            sample = self._open().device_state(uuid)
        except NvmlUnavailable as problem:
            self._lose(problem)
            raise
        except DeviceNotFound:
            return wire.DeviceCheck(problem="the node does not see this device")
        if sample.health != "ok":
            reason = sample.problem.reason if sample.problem is not None else sample.health
            return wire.DeviceCheck(problem=f"it is not well: {reason}")
        if isinstance(sample.processes, NotAvailable):
            reason = f"its processes cannot be listed: {sample.processes.reason}"
            return wire.DeviceCheck(problem=reason)
        left = sorted({process.pid for process in sample.processes})
        return wire.DeviceCheck(problem=f"processes are on it: {left}" if left else None)

    def _check(self, uuid: str, pids: set[int]) -> wire.ReleaseResult:
        if self.before_check is not None:
            self.before_check()
        try:
            sample = self._open().device_state(uuid)
        except NvmlUnavailable as problem:
            self._lose(problem)
            raise
        except DeviceNotFound:
            return wire.ReleaseResult(clean=False, reason="the device is gone")
        if isinstance(sample.processes, NotAvailable):
            reason = f"the device's processes cannot be listed: {sample.processes.reason}"
            return wire.ReleaseResult(clean=False, reason=reason)
        left = sorted({process.pid for process in sample.processes} & pids)
        if left:
            return wire.ReleaseResult(clean=False, reason=f"processes are left on it: {left}")
        return wire.ReleaseResult(clean=True)

    # --- the door ---------------------------------------------------------------------------

    def _open(self) -> Nvml:
        if self._nvml is not None:
            return self._nvml
        if self._problem is not None and time.monotonic() - self._tried_at < REOPEN_S:
            raise self._problem
        self._tried_at = time.monotonic()
        self._nvml = Nvml.open(self._library)
        self._problem = None
        return self._nvml

    def _lose(self, problem: NvmlUnavailable) -> None:
        if self._problem is None or self._problem.reason != problem.reason:
            log_event(log, "nvml-unavailable", logging.WARNING, reason=problem.reason)
        self._problem = problem
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None


def device_report(info: DeviceInfo, sample: DeviceSample, *, simulated: bool) -> wire.DeviceReport:
    """One device in the words of ``wire``: what is not available is None, never zero."""
    memory = _value(sample.memory)
    busy = _value(sample.utilisation)
    healthy = sample.health == "ok"
    reason = sample.problem.reason if sample.problem is not None else None
    if healthy and isinstance(info.mig_enabled, NotAvailable):
        healthy, reason = False, f"whether it is in MIG mode is unknown: {info.mig_enabled.reason}"
    return wire.DeviceReport(
        uuid=info.uuid,
        kind=info.kind,
        index=info.index,
        model=info.model,
        memory_bytes=_value(info.memory_total),
        parent_uuid=info.parent_uuid,
        **_mig_parts(info.mig),
        mig_enabled=_value(info.mig_enabled) is True,
        simulated=simulated,
        healthy=healthy,
        health_reason=None if healthy else reason or sample.health,
        memory_used_bytes=memory.used if memory is not None else None,
        utilisation_percent=round(busy.percent) if busy is not None else None,
        share_enforcement=wire.Enforcement.ADVISORY,
    )


class _MigParts(TypedDict, total=False):
    mig_profile: str | None
    mig_start: int | None
    mig_size: int | None
    mig_compute: int | None


def _mig_parts(mig: MigInfo | None) -> _MigParts:
    if mig is None:
        return {}
    place = _value(mig.placement)
    return {
        "mig_profile": _value(mig.profile),
        "mig_start": place.start if place is not None else None,
        "mig_size": place.size if place is not None else None,
        "mig_compute": _value(mig.compute_slices),
    }


def _value(reading: Reading[T]) -> T | None:
    return None if isinstance(reading, NotAvailable) else reading
