"""The one door to NVML: a reading is a value or *not available* with the reason, never a fake 0.

Opened by the node daemon and the notebook extension, nowhere else. Memory is in bytes, power in
watts, temperature in degrees Celsius, utilisation in percent of the device that was asked about:
a MIG slice never shows numbers of the card it lies on.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import pynvml

T = TypeVar("T")

Health: TypeAlias = Literal["ok", "lost", "reset required", "unknown"]
UnavailableKind: TypeAlias = Literal[
    "library not found",
    "driver not loaded",
    "version mismatch",
    "no permission",
    "closed",
    "unknown",
]


@dataclass(frozen=True, slots=True)
class NotAvailable:
    """What a reading is when there is no value.

    Attributes:
        reason: One short phrase for people.
        code: The nvmlReturn_t behind it, None where NVML was not the one to refuse.
    """

    reason: str
    code: int | None = None


Reading: TypeAlias = T | NotAvailable
"""A value, or why there is none. Tell them apart with `isinstance(x, NotAvailable)`."""


class NvmlUnavailable(Exception):
    """NVML cannot be used at all.

    Attributes:
        kind: Which of the known causes, for programs.
        reason: One sentence for people.
        code: The nvmlReturn_t, None where the library could not even be loaded.
    """

    def __init__(self, kind: UnavailableKind, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.code = code


class DeviceNotFound(LookupError):
    """No device of this UUID is visible: it never was, or its MIG instance was destroyed."""

    def __init__(self, uuid: str) -> None:
        super().__init__(f"no device {uuid}")
        self.uuid = uuid


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a MIG instance lies: its first memory slot and how many it takes."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class MigInfo:
    """What only a MIG instance has.

    Attributes:
        profile: For example "1g.10gb".
        gpu_instance: NVML's id of the GPU instance; a new instance may get the same one again.
        placement: Its memory slots; needs privilege, so it is not available in a container.
        compute_slices: How many compute slices it has.
    """

    profile: Reading[str]
    gpu_instance: Reading[int]
    placement: Reading[Placement]
    compute_slices: Reading[int]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device is; none of it changes while it exists.

    Attributes:
        uuid: "GPU-..." or "MIG-...".
        kind: Whole GPU or MIG instance.
        index: NVML's index of the GPU, or of the instance on its GPU.
        model: The GPU's name, for a MIG instance that of its card.
        memory_total: Bytes.
        compute_capability: (major, minor).
        parent_uuid: The card of a MIG instance, None for a GPU.
        mig_enabled: Whether a GPU is in MIG mode, so that only its instances are usable; False
            where MIG does not exist.
        mig: Set on a MIG instance.
    """

    uuid: str
    kind: Literal["gpu", "mig"]
    index: int
    model: str
    memory_total: Reading[int]
    compute_capability: Reading[tuple[int, int]]
    parent_uuid: str | None = None
    mig_enabled: Reading[bool] = False
    mig: MigInfo | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A device that NVML counts but that cannot be named now; `mig_index` None for a GPU."""

    index: int
    mig_index: int | None
    problem: NotAvailable


@dataclass(frozen=True, slots=True)
class DeviceList:
    """All devices; a GPU that stopped answering is still listed as it was last known.

    Attributes:
        devices: Each GPU followed by its MIG instances.
        unreadable: What failed while listing; it never hides the others.
    """

    devices: tuple[DeviceInfo, ...]
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of a device in bytes, all of one instant.

    Attributes:
        total: All of it.
        used: Allocated; with `reserved` known, without what the driver keeps for itself.
        free: `total - used`, computed: some libraries in between do not fill NVML's own value.
        reserved: What the driver keeps, part of `free` here; not available from old drivers.
    """

    total: int
    used: int
    free: int
    reserved: Reading[int]


@dataclass(frozen=True, slots=True)
class Utilisation:
    """How busy a device is.

    Attributes:
        percent: 0 to 100 of the device that was asked about.
        source: "gpm", share of its SMs that were busy since the previous reading, or "rates",
            share of the last fraction of a second in which a kernel ran.
    """

    percent: float
    source: Literal["gpm", "rates"]


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """One process on a device; in a container the pid may be the host's or the container's."""

    pid: int
    memory: Reading[int]
    sm_percent: Reading[float]


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """What a device does now.

    Attributes:
        taken_us: When, in UTC microseconds.
        health: "unknown" when nothing at all could be read.
        problem: Why the health is not "ok", else None.
    """

    uuid: str
    taken_us: int
    health: Health
    problem: NotAvailable | None
    memory: Reading[MemoryUse]
    utilisation: Reading[Utilisation]
    power_w: Reading[float]
    temperature_c: Reading[int]
    processes: Reading[tuple[ProcessUse, ...]]


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether something can be done, and if not why; true in a condition when it can."""

    available: bool
    reason: str

    def __bool__(self) -> bool:
        return self.available


class Nvml:
    """NVML, opened. All methods may be called from any thread; calls happen one at a time.

    They block (power takes milliseconds, a sick GPU longer): never call them on an event loop.
    """

    def __init__(self, library: str | os.PathLike[str] | None = None) -> None:
        """Use `Nvml.open`."""
        self._library = library
        self._lock = threading.RLock()
        self._is_open = False
        self._forget()

    @classmethod
    def open(cls, library: str | os.PathLike[str] | None = None) -> Nvml:
        """Load the library and initialise it.

        Args:
            library: Its path; None for what the dynamic loader finds as libnvidia-ml.so.1.

        Raises:
            NvmlUnavailable: With one sentence that says why.
        """
        nvml = cls(library)
        nvml.reopen()
        return nvml

    def reopen(self) -> None:
        """Initialise again, for example after the driver was reloaded; forgets what was learnt.

        Raises:
            NvmlUnavailable: It still cannot be used; calling this again later is fine.
        """
        with self._lock:
            self.close()
            with _library_lock:
                _load(self._library)
                try:
                    pynvml.nvmlInit()
                except pynvml.NVMLError as error:
                    raise _unavailable(error) from error
                _doors.add(id(self))
            self._is_open = True

    def close(self) -> None:
        """Give NVML back; safe to call twice."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            for window in self._windows.values():
                _free(window.sample)
            self._forget()
            with _library_lock:
                _attempt(pynvml.nvmlShutdown)
                _doors.discard(id(self))

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the library and its driver ----------------------------------------------------------------

    @property
    def simulated(self) -> bool:
        """Whether this is nvmlsim's library, which no real driver can be taken for."""
        with self._lock:
            self._check_open()
            return hasattr(pynvml.nvmlLib, "nvmlsimVersion")

    @property
    def driver_version(self) -> Reading[str]:
        """The driver's version, for example "580.159.04"."""
        with self._lock:
            self._check_open()
            return _driver_version()

    # -- what there is -----------------------------------------------------------------------------

    def devices(self) -> list[DeviceInfo]:
        """Return all devices; `listing` also tells what could not be read."""
        return list(self.listing().devices)

    def listing(self) -> DeviceList:
        """List the devices.

        Raises:
            NvmlUnavailable: NVML as a whole does not answer any more.
        """
        with self._lock:
            self._check_open()
            try:
                count = int(pynvml.nvmlDeviceGetCount())
            except pynvml.NVMLError as error:
                raise _unavailable(error) from error
            devices: list[DeviceInfo] = []
            unreadable: list[Unreadable] = []
            for index in range(count):
                before = len(unreadable)
                found = self._describe_gpu(index, unreadable)
                if len(unreadable) > before:
                    found = _complete(found, self._known.get(index, ()))
                self._known[index] = found
                devices.extend(found)
            return DeviceList(tuple(devices), tuple(unreadable))

    def can_cgroup_limits(self, uuid: str) -> Capability:
        """Tell whether the driver can hold a memory limit per cgroup on this device.

        Raises:
            DeviceNotFound: There is no such device.
        """
        with self._lock:
            handle = self._handle(uuid)
            if isinstance(handle, NotAvailable):
                return Capability(False, handle.reason)
            if self._is_mig(uuid, handle):
                return Capability(False, "MIG slices have no cgroup limits and need none")
            return _probe_cgroup_limits(handle, self.driver_version)

    # -- what it does ------------------------------------------------------------------------------

    def device_state(self, uuid: str, *, details: bool = True) -> DeviceSample:
        """Read what a device does now.

        Args:
            uuid: Of a GPU or a MIG instance.
            details: False leaves out power, temperature and processes, which are slow; memory and
                utilisation may be read every second, the rest every five.

        Raises:
            DeviceNotFound: There is no such device.
        """
        with self._lock:
            taken_us = time.time_ns() // 1000
            handle = self._handle(uuid)
            if isinstance(handle, NotAvailable):
                return DeviceSample(
                    uuid, taken_us, _health(handle), handle, handle, handle, handle, handle, handle
                )
            is_mig = self._is_mig(uuid, handle)
            memory = _memory(handle)
            utilisation = (
                self._mig_utilisation(uuid, handle)
                if is_mig
                else self._gpu_utilisation(uuid, handle)
            )
            power, temperature, processes = _details(handle, is_mig, details)
            health, problem = _judge(memory, utilisation, power, temperature, processes)
            return DeviceSample(
                uuid, taken_us, health, problem, memory, utilisation, power, temperature, processes
            )

    # -- inside ------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._known: dict[int, tuple[DeviceInfo, ...]] = {}
        self._windows: dict[str, _Window] = {}
        # What was found out once and is not tried again: a failing call costs 0.2 ms each time.
        self._no_gpm: dict[str, NotAvailable] = {}
        self._gpm_works: set[str] = set()
        self._no_rates_on_mig: set[str] = set()

    def _check_open(self) -> None:
        if not self._is_open:
            raise NvmlUnavailable("closed", "NVML is not open; open it again.")

    def _handle(self, uuid: str) -> Any:
        """Return the handle, or NotAvailable when the device is there but does not answer."""
        self._check_open()
        handle = _attempt(lambda: pynvml.nvmlDeviceGetHandleByUUID(uuid))
        if isinstance(handle, NotAvailable) and handle.code in _ABSENT:
            raise DeviceNotFound(uuid)
        return handle

    @staticmethod
    def _is_mig(uuid: str, handle: Any) -> bool:
        answer = _attempt(lambda: bool(pynvml.nvmlDeviceIsMigDeviceHandle(handle).value))
        return uuid.startswith("MIG-") if isinstance(answer, NotAvailable) else answer

    def _describe_gpu(self, index: int, unreadable: list[Unreadable]) -> tuple[DeviceInfo, ...]:
        """Return a GPU and its instances, nothing if it cannot be named; notes what failed."""
        handle = _attempt(lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
        uuid = _of(handle, pynvml.nvmlDeviceGetUUID)
        model = _of(handle, pynvml.nvmlDeviceGetName)
        for reading in (handle, uuid, model):
            if isinstance(reading, NotAvailable):
                unreadable.append(Unreadable(index, None, reading))
                return ()
        mig_enabled = _mig_enabled(handle)
        gpu = DeviceInfo(
            uuid=uuid,
            kind="gpu",
            index=index,
            model=model,
            memory_total=_total(handle),
            compute_capability=_compute_capability(handle),
            mig_enabled=mig_enabled,
        )
        if mig_enabled is not True:
            return (gpu,)
        return (gpu, *_describe_migs(gpu, handle, unreadable))

    def _gpu_utilisation(self, uuid: str, handle: Any) -> Reading[Utilisation]:
        """GPM on Hopper and newer; the coarse rates elsewhere and until GPM has two samples."""
        gpm = self._gpm(uuid, uuid, handle, lambda sample: pynvml.nvmlGpmSampleGet(handle, sample))
        if not isinstance(gpm, NotAvailable):
            return gpm
        rates = _rates(handle)
        if isinstance(rates, NotAvailable) and _mig_enabled(handle) is True:
            return NotAvailable("a GPU in MIG mode is measured by its slices", rates.code)
        return rates

    def _mig_utilisation(self, uuid: str, handle: Any) -> Reading[Utilisation]:
        """The rates if this driver answers them on a slice, else GPM; on Ampere neither exists."""
        parent = _attempt(lambda: pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle))
        parent_uuid = _of(parent, pynvml.nvmlDeviceGetUUID)
        if isinstance(parent_uuid, NotAvailable):
            return parent_uuid
        if parent_uuid not in self._no_rates_on_mig:
            rates = _rates(handle)
            if not isinstance(rates, NotAvailable):
                return rates
            if rates.code in _PERMANENT:
                self._no_rates_on_mig.add(parent_uuid)
        return self._gpm(
            uuid, parent_uuid, parent, lambda sample: _sample_slice(parent, handle, sample)
        )

    def _gpm(
        self, uuid: str, gpu_uuid: str, gpu: Any, take: Callable[[Any], object]
    ) -> Reading[Utilisation]:
        """Measure since the previous call on this device; the first call has no value yet."""
        if refusal := self._gpm_refusal(gpu_uuid, gpu):
            return refusal
        window = self._windows.get(uuid)
        if window and time.monotonic_ns() - window.taken_ns < _GPM_MIN_NS:
            return window.value
        sample = _attempt(pynvml.nvmlGpmSampleAlloc)
        if isinstance(sample, NotAvailable):
            return sample
        taken = _attempt(lambda: take(sample))
        if isinstance(taken, NotAvailable):
            _free(sample)
            if taken.code in _PERMANENT:
                self._no_gpm[gpu_uuid] = taken
            return taken
        now = time.monotonic_ns()
        value: Reading[Utilisation] = NotAvailable("being measured: the next reading has a value")
        if window:
            if now - window.taken_ns <= _GPM_MAX_NS:
                value = _gpm_percent(window.sample, sample)
            _free(window.sample)
        self._windows[uuid] = _Window(sample, now, value)
        return value

    def _gpm_refusal(self, gpu_uuid: str, gpu: Any) -> NotAvailable | None:
        """Ask once per GPU whether it can do GPM here, and remember the answer."""
        if gpu_uuid in self._no_gpm:
            return self._no_gpm[gpu_uuid]
        if gpu_uuid in self._gpm_works:
            return None
        support = _attempt(lambda: bool(pynvml.nvmlGpmQueryDeviceSupport(gpu).isSupportedDevice))
        if support is True:
            self._gpm_works.add(gpu_uuid)
            return None
        if isinstance(support, NotAvailable) and support.code not in _PERMANENT:
            return support  # a passing failure: ask again next time
        refusal = NotAvailable("not measurable on this GPU generation", 3)
        if isinstance(support, NotAvailable) and support.code != 3:
            refusal = support
        self._no_gpm[gpu_uuid] = refusal
        return refusal


# -- the library: one per process ------------------------------------------------------------------

_library_lock = threading.Lock()
_doors: set[int] = set()


def _load(library: str | os.PathLike[str] | None) -> None:
    """Load `library` for pynvml, which otherwise looks for it by its name at the first call."""
    if library is None:
        return
    path = os.fspath(library)
    loaded = pynvml.nvmlLib
    if loaded is not None and loaded._name == path:
        return
    if loaded is not None and _doors:
        raise NvmlUnavailable("unknown", f"This process already uses the NVML of {loaded._name}.")
    try:
        pynvml.nvmlLib = ctypes.CDLL(path)
    except OSError as error:
        raise NvmlUnavailable(
            "library not found", f"The NVML library {path} cannot be loaded ({error})."
        ) from error
    pynvml._nvmlGetFunctionPointer_cache.clear()  # its functions are those of the old library


_KINDS: dict[int, tuple[UnavailableKind, str]] = {
    1: ("closed", "NVML is not open; open it again."),
    4: ("no permission", "This process is not permitted to talk to the NVIDIA driver."),
    9: ("driver not loaded", "The NVIDIA driver is not loaded on this machine."),
    12: (
        "library not found",
        "There is no NVIDIA driver on this machine (libnvidia-ml.so.1 was not found).",
    ),
    18: ("version mismatch", "The GPU driver was updated; restart the node."),
}


def _unavailable(error: pynvml.NVMLError) -> NvmlUnavailable:
    code = int(error.value)
    kind, reason = _KINDS.get(
        code, ("unknown", f"The NVIDIA driver does not answer (NVML error {code}: {error}).")
    )
    return NvmlUnavailable(kind, reason, code)


# -- calls -----------------------------------------------------------------------------------------

_LOST, _RESET_REQUIRED = 15, 16
_ABSENT = (2, 6)  # invalid argument (some drivers, for a UUID that is gone), not found
_PERMANENT = (3, 4, 13)  # not supported, no permission, function not found: asking again is vain
_NOT_FOUND, _FUNCTION_NOT_FOUND = 6, 13
_GPM_MIN_NS = 110_000_000  # NVIDIA: more than 100 ms between two samples
_GPM_MAX_NS = 300_000_000_000  # older than five minutes says nothing about now
_CGROUP_BRANCH = 615
_CGROUP_ROOT = b"/sys/fs/cgroup"

_REASONS = {
    2: "the device is gone",
    3: "not supported on this device",
    4: "not permitted here",
    6: "not found",
    9: "the driver is not loaded",
    10: "the driver did not answer in time",
    13: "this driver is too old to tell",
    15: "the GPU is lost: it has fallen off the bus",
    16: "the GPU needs a reset",
    18: "the GPU driver was updated; restart the node",
}


@dataclass(slots=True)
class _Window:
    """The previous GPM sample of a device and what the last pair of samples said."""

    sample: Any
    taken_ns: int
    value: Reading[Utilisation]


def _attempt(call: Callable[[], T]) -> Reading[T]:
    try:
        return call()
    except pynvml.NVMLError as error:
        code = int(error.value)
        return NotAvailable(_REASONS.get(code, f"NVML error {code}: {error}"), code)
    except UnicodeDecodeError:
        return NotAvailable("the driver answered garbage")


def _of(handle: Any, function: Callable[[Any], Any]) -> Any:
    """Call `function` on a handle, or hand on why there is no handle."""
    return handle if isinstance(handle, NotAvailable) else _attempt(lambda: function(handle))


def _driver_version() -> Reading[str]:
    return _attempt(lambda: str(pynvml.nvmlSystemGetDriverVersion()))


def _free(sample: Any) -> None:
    _attempt(lambda: pynvml.nvmlGpmSampleFree(sample))


def _total(handle: Any) -> Reading[int]:
    memory = _memory(handle)
    return memory if isinstance(memory, NotAvailable) else memory.total


def _compute_capability(handle: Any) -> Reading[tuple[int, int]]:
    found = _attempt(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    return found if isinstance(found, NotAvailable) else (int(found[0]), int(found[1]))


def _mig_enabled(handle: Any) -> Reading[bool]:
    mode = _attempt(lambda: bool(pynvml.nvmlDeviceGetMigMode(handle)[0]))
    if isinstance(mode, NotAvailable) and mode.code in (3, 13):
        return False  # a card or a driver without MIG is not in MIG mode
    return mode


def _complete(
    found: tuple[DeviceInfo, ...], known: tuple[DeviceInfo, ...]
) -> tuple[DeviceInfo, ...]:
    """Add what was known of a GPU that could be read only in part, so that nothing vanishes."""
    if found and known and found[0].uuid != known[0].uuid:
        return found  # another card took the place
    present = {device.uuid for device in found}
    return (*found, *(device for device in known if device.uuid not in present))


def _describe_migs(gpu: DeviceInfo, parent: Any, unreadable: list[Unreadable]) -> list[DeviceInfo]:
    most = _attempt(lambda: int(pynvml.nvmlDeviceGetMaxMigDeviceCount(parent)))
    if isinstance(most, NotAvailable):
        unreadable.append(Unreadable(gpu.index, None, most))
        return []
    found = []
    for index in range(most):
        handle = _mig_handle(parent, index)
        if isinstance(handle, NotAvailable) and handle.code == _NOT_FOUND:
            continue
        uuid = _of(handle, pynvml.nvmlDeviceGetUUID)
        if isinstance(uuid, NotAvailable):
            unreadable.append(Unreadable(gpu.index, index, uuid))
            continue
        found.append(_describe_mig(gpu, parent, index, handle, uuid))
    return found


def _mig_handle(parent: Any, index: int) -> Any:
    return _attempt(lambda: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, index))


def _describe_mig(gpu: DeviceInfo, parent: Any, index: int, handle: Any, uuid: str) -> DeviceInfo:
    attributes = _attempt(lambda: pynvml.nvmlDeviceGetAttributes_v2(handle))
    instance = _attempt(lambda: int(pynvml.nvmlDeviceGetGpuInstanceId(handle)))
    total = _total(handle)
    compute: Reading[int] = NotAvailable("not found")
    if isinstance(attributes, NotAvailable):
        compute = attributes
    else:
        compute = int(attributes.computeInstanceSliceCount)
        if isinstance(total, NotAvailable):
            total = int(attributes.memorySizeMB) << 20
    return DeviceInfo(
        uuid=uuid,
        kind="mig",
        index=index,
        model=gpu.model,
        memory_total=total,
        compute_capability=gpu.compute_capability,
        parent_uuid=gpu.uuid,
        mig=MigInfo(_profile(handle), instance, _placement(parent, instance), compute),
    )


def _profile(handle: Any) -> Reading[str]:
    name = _attempt(lambda: str(pynvml.nvmlDeviceGetName(handle)))
    if isinstance(name, NotAvailable):
        return name
    _, found, profile = name.rpartition(" MIG ")
    return profile if found else NotAvailable("the driver does not name the profile")


def _placement(parent: Any, gpu_instance: Reading[int]) -> Reading[Placement]:
    if isinstance(gpu_instance, NotAvailable):
        return gpu_instance
    instance = _attempt(lambda: pynvml.nvmlDeviceGetGpuInstanceById(parent, gpu_instance))
    info = _of(instance, pynvml.nvmlGpuInstanceGetInfo)
    if isinstance(info, NotAvailable):
        return info
    return Placement(int(info.placement.start), int(info.placement.size))


def _memory(handle: Any) -> Reading[MemoryUse]:
    """Read v2, whose `used` leaves out what the driver reserves, or v1 from an old driver."""
    info = _attempt(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2))
    reserved: Reading[int] = NotAvailable("this driver is too old to tell")
    if isinstance(info, NotAvailable):
        if info.code not in (3, 13, 25):
            return info
        info = _attempt(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
        if isinstance(info, NotAvailable):
            return info
    else:
        reserved = int(info.reserved)
    total, used = int(info.total), int(info.used)
    if total == 0 or used > total:
        return NotAvailable("the driver's numbers make no sense")
    return MemoryUse(total, used, total - used, reserved)


def _rates(handle: Any) -> Reading[Utilisation]:
    percent = _attempt(lambda: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))
    return percent if isinstance(percent, NotAvailable) else _utilisation(percent, "rates")


def _utilisation(percent: float, source: Literal["gpm", "rates"]) -> Reading[Utilisation]:
    if math.isnan(percent):
        return NotAvailable("the GPU gave no number for this interval")
    return Utilisation(min(max(percent, 0.0), 100.0), source)


def _sample_slice(parent: Any, handle: Any, sample: Any) -> None:
    """Sample a MIG slice through its card, or on its own handle where the card is not ours."""
    instance = pynvml.nvmlDeviceGetGpuInstanceId(handle)
    try:
        pynvml.nvmlGpmMigSampleGet(parent, instance, sample)
    except pynvml.NVMLError as error:
        if error.value not in (*_PERMANENT, _NOT_FOUND):
            raise
        pynvml.nvmlGpmSampleGet(handle, sample)


def _gpm_percent(first: Any, second: Any) -> Reading[Utilisation]:
    """Return busy SMs between two samples; a pair that does not fit together starts anew."""
    request = _gpm_request()
    request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    request.sample1, request.sample2 = first, second
    wanted = (pynvml.NVML_GPM_METRIC_SM_UTIL, pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL)
    request.numMetrics = len(wanted)
    for place, metric in enumerate(wanted):
        request.metrics[place].metricId = metric
    done = _attempt(lambda: pynvml.nvmlGpmMetricsGet(request))
    if isinstance(done, NotAvailable):
        return NotAvailable("the slice was made anew; being measured again", done.code)
    for place in range(len(wanted)):
        if request.metrics[place].nvmlReturn == 0:
            return _utilisation(float(request.metrics[place].value), "gpm")
    code = int(request.metrics[0].nvmlReturn)
    return NotAvailable(_REASONS.get(code, f"NVML error {code}"), code)


_gpm_buffers = threading.local()


def _gpm_request() -> Any:
    """Return this thread's request struct: it has 19,104 bytes and is used every second."""
    if not hasattr(_gpm_buffers, "request"):
        _gpm_buffers.request = pynvml.c_nvmlGpmMetricsGet_t()
    return _gpm_buffers.request


def _details(
    handle: Any, is_mig: bool, wanted: bool
) -> tuple[Reading[float], Reading[int], Reading[tuple[ProcessUse, ...]]]:
    """Return power, temperature and processes."""
    if not wanted:
        skipped = NotAvailable("not asked for")
        return skipped, skipped, skipped
    processes = _processes(handle, is_mig)
    if is_mig:
        card = NotAvailable("only the whole card has this, and it tells about the neighbours")
        return card, card, processes
    power = _attempt(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)
    temperature = _attempt(
        lambda: int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    )
    return power, temperature, processes


def _processes(handle: Any, is_mig: bool) -> Reading[tuple[ProcessUse, ...]]:
    driver = _driver_version()
    if _lists_processes_wrongly(driver):
        return NotAvailable(f"driver {driver} lists processes wrongly")
    compute = _process_list(handle, "Compute")
    if isinstance(compute, NotAvailable):
        return compute
    entries = {int(entry.pid): entry.usedGpuMemory for entry in compute}
    for kind in ("Graphics", "MPSCompute"):
        more = _process_list(handle, kind)
        for entry in [] if isinstance(more, NotAvailable) else more:
            entries.setdefault(int(entry.pid), entry.usedGpuMemory)
    busy = _process_utilisation(handle, is_mig)
    return tuple(
        ProcessUse(pid, _process_memory(memory), _process_percent(busy, pid))
        for pid, memory in sorted(entries.items())
    )


def _process_list(handle: Any, kind: str) -> Reading[list[Any]]:
    """Call version 3, or 2 of an old driver; the unversioned names raise no NVMLError then."""
    name = f"nvmlDeviceGet{kind}RunningProcesses"
    listed = _attempt(lambda: list(getattr(pynvml, f"{name}_v3")(handle)))
    if isinstance(listed, NotAvailable) and listed.code == _FUNCTION_NOT_FOUND:
        return _attempt(lambda: list(getattr(pynvml, f"{name}_v2")(handle)))
    return listed


def _lists_processes_wrongly(driver: Reading[str]) -> bool:
    """Whether this is one of the 535 drivers whose structs are longer than they say."""
    version = re.match(r"535\.(\d+)", driver) if isinstance(driver, str) else None
    return version is not None and 43 <= int(version[1]) < 98


def _process_memory(used: int | None) -> Reading[int]:
    """Nothing on a GPU uses 0 bytes: driver 560 says so in a container to hide the number."""
    return int(used) if used else NotAvailable("the driver does not tell here")


def _process_utilisation(handle: Any, is_mig: bool) -> Reading[dict[int, float]]:
    if is_mig:
        return NotAvailable("not measured per process on a MIG slice")
    samples = _attempt(lambda: list(pynvml.nvmlDeviceGetProcessUtilization(handle, 0)))
    if isinstance(samples, NotAvailable):
        # Not found, or success with a count of 0 which the binding raises too: no activity.
        return {} if samples.code in (0, _NOT_FOUND) else samples
    samples.sort(key=lambda sample: sample.timeStamp)
    return {int(sample.pid): float(sample.smUtil) for sample in samples}


def _process_percent(busy: Reading[dict[int, float]], pid: int) -> Reading[float]:
    if isinstance(busy, NotAvailable):
        return busy
    # Without a sample it is not 0: inside a container the two lists may hold different pids.
    return busy.get(pid, NotAvailable("no sample of this process"))


def _health(problem: NotAvailable) -> Health:
    if problem.code == _LOST:
        return "lost"
    return "reset required" if problem.code == _RESET_REQUIRED else "unknown"


def _judge(*readings: Reading[Any]) -> tuple[Health, NotAvailable | None]:
    """Conclude from all readings of a device whether it is well."""
    missing = [reading for reading in readings if isinstance(reading, NotAvailable)]
    for problem in missing:
        if _health(problem) != "unknown":
            return _health(problem), problem
    if len(missing) == len(readings):
        return "unknown", missing[0]
    return "ok", None


def _probe_cgroup_limits(handle: Any, driver: Reading[str]) -> Capability:
    if isinstance(driver, NotAvailable):
        return Capability(False, f"the driver's version is not known ({driver.reason})")
    if not re.match(r"\d+", driver) or int(driver.split(".")[0]) < _CGROUP_BRANCH:
        return Capability(False, f"needs driver {_CGROUP_BRANCH} or newer, this is {driver}")
    struct = getattr(pynvml, "c_nvmlGetMemoryLimits_v1_t", None)
    if struct is None:
        return Capability(False, "this nvidia-ml-py is too old for cgroup limits")
    limits = struct(nameSpace=_CGROUP_ROOT)
    answer = _attempt(lambda: pynvml.nvmlDeviceGetMemoryLimits_v1(handle, limits))
    if isinstance(answer, NotAvailable) and answer.code != _NOT_FOUND:  # not found: none set yet
        return Capability(False, answer.reason)
    return Capability(True, f"driver {driver} holds memory limits per cgroup")
