"""What is mine: which device, which part of it, and what that part is doing now.

Of a shared GPU only the own processes count; the card's numbers would include the neighbours'.
Until the service has said which kind of slice this is, a hub's notebook is treated as shared.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from gpuslice.nvml import (
    DeviceInfo,
    DeviceNotFound,
    DeviceSample,
    NotAvailable,
    Nvml,
    NvmlUnavailable,
    Reading,
)
from gpuslice.units import SECOND_US, now_us
from gpuslice.wire import SliceKind
from jupyterlab_gpuslice.budget import Bill

#: NVML that could not be opened, or a device that is gone, is tried again so often.
REOPEN_S = 10.0
#: The node's numbers for a slice are shown so long.
USE_FRESH_US = 30 * SECOND_US
#: The number that the kernel gives the machine's own pid namespace (PROC_PID_INIT_INO).
_HOST_PIDS = "pid:[4026531836]"

CPU_SLICE = "This slice has no GPU."
NO_DEVICE = "No GPU is given to this server."
NONE_ON_MACHINE = "There is no GPU on this machine."
NOT_VISIBLE = "The GPU of this slice cannot be seen any more."
WHOSE = "This GPU is shared, and which of its processes are yours cannot be told here."
NOT_YET = "Which part of this GPU is yours is not known before the gpuslice service answers."


class Kind(StrEnum):
    """How the device belongs to this server."""

    WHOLE = "whole"
    MIG = "mig"
    SHARED = "shared"
    #: Behind a hub whose service has not answered yet.
    UNKNOWN = "unknown"
    #: There is none.
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Device:
    """What is measured; none of it changes while the server runs, except by learning more."""

    kind: Kind
    label: str
    model: str | None = None
    memory_total: int | None = None
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One second of the slice. What is not available is its reason, in one sentence."""

    taken_us: int
    device: Device
    memory_used: Reading[int]
    utilisation: Reading[float]
    cost_u: int | None = None
    problem: str | None = None


class Meter:
    """Reads the own slice. Called in one thread, the sampler's; it blocks.

    Args:
        environment: Of the server: which devices it was given.
        bill: The newest known bill.
        behind_hub: Whether a service exists that knows the kind of slice.
        root_pid: The process whose tree is "mine".
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        bill: Callable[[], Bill | None],
        *,
        behind_hub: bool,
        root_pid: int | None = None,
        open_nvml: Callable[[], Nvml] = Nvml.open,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = now_us,
        proc: Path = Path("/proc"),
    ) -> None:
        self._environment = environment
        self._bill = bill
        self._behind_hub = behind_hub
        self._root_pid = os.getpid() if root_pid is None else root_pid
        self._open = open_nvml
        self._clock = clock
        self._wall = wall
        self._proc = proc
        self._nvml: Nvml | None = None
        self._device: DeviceInfo | None = None
        self._simulated = False
        self._trouble: str | None = None
        self._retry_at = 0.0
        self._last_bill: Bill | None = None

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None

    def read(self) -> Sample:
        """What the slice does now; never raises for what NVML or its devices do."""
        live = self._bill()
        # A lease that is over still was of this kind; it costs no more, as far as we know.
        bill = self._last_bill = live or self._last_bill
        taken_us = self._wall()
        cost = live.cost_at(taken_us) if live else None
        if bill is not None and bill.kind is SliceKind.CPU:
            return self._nothing(taken_us, cost, bill, CPU_SLICE)
        uuid = self._ready(bill)
        if uuid is None:
            return self._nothing(taken_us, cost, bill, self._trouble or NO_DEVICE)
        try:
            sample = self._measure(uuid, bill)
        except (NvmlUnavailable, DeviceNotFound) as error:
            gone = isinstance(error, DeviceNotFound)
            self._give_up(NOT_VISIBLE if gone else str(error))
            return self._nothing(taken_us, cost, bill, self._trouble or NOT_VISIBLE)
        return replace(sample, cost_u=cost)

    # -- which device ------------------------------------------------------------------------------

    def _ready(self, bill: Bill | None) -> str | None:
        """The UUID to measure, with NVML open; None with ``_trouble`` set."""
        if self._nvml is None and self._clock() >= self._retry_at:
            try:
                self._nvml = self._open()
                self._simulated = self._nvml.simulated
                self._trouble = None
            except NvmlUnavailable as error:
                self._give_up(NONE_ON_MACHINE if error.kind == "library not found" else str(error))
        if self._nvml is None:
            return None
        wanted = bill.device_uuid if bill else None
        if self._device is None or (wanted and self._device.uuid != wanted):
            try:
                devices = self._nvml.devices()
            except NvmlUnavailable as error:
                self._give_up(str(error))
                return None
            found = own_device(devices, self._environment, wanted)
            if isinstance(found, str):
                self._give_up(found)
                return None
            self._device = found
        return self._device.uuid

    def _give_up(self, reason: str) -> None:
        self.close()
        self._device = None
        self._trouble = reason
        self._retry_at = self._clock() + REOPEN_S

    # -- what it does ------------------------------------------------------------------------------

    def _measure(self, uuid: str, bill: Bill | None) -> Sample:
        assert self._nvml is not None and self._device is not None
        kind = self._kind(bill)
        alone = kind in (Kind.WHOLE, Kind.MIG)
        seen = self._nvml.device_state(uuid, details=not alone)
        memory: Reading[int]
        busy: Reading[float]
        total: Reading[int] = self._device.memory_total
        if alone:
            whole, rate = seen.memory, seen.utilisation
            memory = whole if isinstance(whole, NotAvailable) else whole.used
            busy = rate if isinstance(rate, NotAvailable) else rate.percent
            if not isinstance(whole, NotAvailable):
                total = whole.total
        else:
            memory, busy = self._own_part(seen, bill, kind)
            total = NotAvailable("not known") if bill is None else bill.memory_bytes or total
        return Sample(
            taken_us=seen.taken_us,
            device=Device(
                kind=kind,
                label=self._label(bill, self._device, kind),
                model=self._device.model,
                memory_total=None if isinstance(total, NotAvailable) else total,
                simulated=self._simulated,
            ),
            memory_used=memory,
            utilisation=busy,
            problem=None
            if seen.problem is None
            else f"The GPU has trouble: {seen.problem.reason}.",
        )

    def _kind(self, bill: Bill | None) -> Kind:
        if bill is None and self._behind_hub:
            return Kind.UNKNOWN
        if bill is not None and bill.kind is SliceKind.SHARED:
            return Kind.SHARED
        assert self._device is not None
        return Kind.MIG if self._device.kind == "mig" else Kind.WHOLE

    def _own_part(
        self, seen: DeviceSample, bill: Bill | None, kind: Kind
    ) -> tuple[Reading[int], Reading[float]]:
        """Memory and utilisation of the own processes, else what the node measured for us."""
        own = own_processes(self._root_pid, self._proc)
        listed = () if isinstance(seen.processes, NotAvailable) else seen.processes
        mine = [process for process in listed if process.pid in own]
        use = None if bill is None else bill.use
        if use is not None and self._wall() - use.sampled_us > USE_FRESH_US:
            use = None
        memories = [p.memory for p in mine if not isinstance(p.memory, NotAvailable)]
        shares = [p.sm_percent for p in mine if not isinstance(p.sm_percent, NotAvailable)]
        unknown = NotAvailable(WHOSE if kind is Kind.SHARED else NOT_YET)
        # With the machine's own pids a list without mine means that I use nothing. In a container
        # it may as well be a list of the host's pids, which tells nothing.
        told = not isinstance(seen.processes, NotAvailable)
        nothing = told and not mine and self._sees_host_pids()
        memory: Reading[int] = unknown
        if memories:
            memory = sum(memories)
        elif use is not None and use.memory_used_bytes is not None:
            memory = use.memory_used_bytes
        elif nothing:
            memory = 0
        busy: Reading[float] = unknown
        share = None if bill is None else bill.share_milli
        if shares and share:
            busy = min(100.0, sum(shares) * 1000 / share)
        elif use is not None and use.utilisation_percent is not None:
            busy = float(use.utilisation_percent)
        elif nothing:
            busy = 0.0
        if use is not None and use.reason:
            memory = NotAvailable(use.reason) if memory is unknown else memory
            busy = NotAvailable(use.reason) if busy is unknown else busy
        return memory, busy

    def _sees_host_pids(self) -> bool:
        with contextlib.suppress(OSError):
            return str((self._proc / "self/ns/pid").readlink()) == _HOST_PIDS
        return False

    # -- words -------------------------------------------------------------------------------------

    def _label(self, bill: Bill | None, device: DeviceInfo | None, kind: Kind) -> str:
        """The slice's title; without the service the name in the environment, for people only."""
        if bill is not None:
            return bill.title
        if self._behind_hub and self._environment.get("GPUSLICE_SLICE"):
            return self._environment["GPUSLICE_SLICE"]
        if device is None:
            return "No GPU"
        if kind is Kind.MIG and device.mig and not isinstance(device.mig.profile, NotAvailable):
            return f"MIG {device.mig.profile}"
        return f"GPU {device.index}"

    def _nothing(self, taken_us: int, cost: int | None, bill: Bill | None, why: str) -> Sample:
        device = Device(
            Kind.NONE,
            self._label(bill, None, Kind.NONE),
            simulated=bill is not None and bill.simulated,
        )
        missing = NotAvailable(why)
        return Sample(taken_us, device, missing, missing, cost, why)


def own_device(
    devices: list[DeviceInfo], environment: Mapping[str, str], wanted: str | None = None
) -> DeviceInfo | str:
    """The device that this server was given, or one sentence why there is none.

    Args:
        devices: All that NVML shows.
        environment: ``CUDA_VISIBLE_DEVICES``, else ``NVIDIA_VISIBLE_DEVICES``.
        wanted: What the service says, which counts more.
    """
    if not devices:
        return NONE_ON_MACHINE
    if wanted is not None:
        return next((device for device in devices if device.uuid == wanted), NOT_VISIBLE)
    usable = [device for device in devices if device.mig_enabled is not True]
    cuda, nvidia = (environment.get(f"{maker}_VISIBLE_DEVICES") for maker in ("CUDA", "NVIDIA"))
    given = nvidia if cuda is None else cuda
    if given is None or given == "all":
        return usable[0] if usable else NO_DEVICE
    first = given.split(",")[0].strip()
    if re.fullmatch(r"\d{1,4}", first):
        gpus = [device for device in devices if device.kind == "gpu"]
        return next((gpu for gpu in gpus if gpu.index == int(first)), NOT_VISIBLE)
    if not first.startswith(("GPU-", "MIG-")):
        return NO_DEVICE  # "", "-1", "void", "none"
    # CUDA accepts the beginning of a UUID where it is the beginning of only one.
    matching = [device for device in devices if device.uuid.startswith(first)]
    return matching[0] if len(matching) == 1 else NOT_VISIBLE


def own_processes(root_pid: int, proc: Path = Path("/proc")) -> set[int]:
    """The pids of ``root_pid``'s session and of everything below it, kernels included."""
    parents: dict[int, list[int]] = {}
    sessions: dict[int, int] = {}
    for entry in proc.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            # The name is in parentheses and may itself hold spaces and parentheses.
            fields = text[text.rindex(")") + 2 :].split()
            parent, session = int(fields[1]), int(fields[3])
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile
        pid = int(entry.name)
        parents.setdefault(parent, []).append(pid)
        sessions[pid] = session
    # Session 0 is "outside this pid namespace", or none at all: init and the kernel's threads have
    # it too, so it says nothing about whose a process is.
    own_session = sessions.get(root_pid) or None
    own = {pid for pid, session in sessions.items() if session == own_session} | {root_pid}
    todo = list(own)
    while todo:
        for child in parents.get(todo.pop(), ()):
            if child not in own:
                own.add(child)
                todo.append(child)
    return own
