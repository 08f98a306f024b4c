"""`Fleet`: script simulated GPUs; every process that loaded the library sees it at once."""

from __future__ import annotations

import os
import threading
import time
import uuid as uuid_module
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Literal

from nvmlsim import layout
from nvmlsim.layout import FleetFile, FleetFileError
from nvmlsim.profiles import MIB, MODELS, MigProfile, Model

View = Literal["host", "mig-container", "shared-container"]
_NAMESPACE = uuid_module.UUID("9f0a7f0e-3f5e-5d0c-9a54-6e766d6c73ff")
_LOST, _RESET_REQUIRED = 15, 16
_PID_MODES = ("host", "namespaced")
_KINDS = ("compute", "graphics", "mps")


class NvmlCode(IntEnum):
    """The nvmlReturn_t values worth planting, by the names that pynvml's exceptions have."""

    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    LIB_RM_VERSION_MISMATCH = 18
    NO_DATA = 21
    UNKNOWN = 999


class UnknownName(ValueError):
    """A model, profile, function, device or mode that does not exist; the message lists hints."""


@dataclass(frozen=True, slots=True)
class MigSpec:
    """A MIG instance to make: profile name, and the memory slot or None for the first that fits."""

    profile: str
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """A GPU to make.

    Attributes:
        model: A name of `nvmlsim.MODELS`.
        memory: Total bytes; None for what the model has.
        mig: Instances to create, as names or `MigSpec`; None leaves MIG mode off, an empty
            sequence turns it on without instances.
    """

    model: str
    memory: int | None = None
    mig: Sequence[str | MigSpec] | None = None


@dataclass(frozen=True, slots=True)
class SimProcess:
    """A process on a simulated device.

    Attributes:
        pid: In the host's namespace.
        memory: Bytes; None is reported as NVML's "not available".
        utilisation: Percent of the SMs; None means that there is no sample.
        memory_utilisation: Percent.
        namespaced_pid: Its pid inside its container, 0 for none.
        kind: Which of NVML's lists it is in.
    """

    pid: int
    memory: int | None = 0
    utilisation: float | None = 0.0
    memory_utilisation: float = 0.0
    namespaced_pid: int = 0
    kind: Literal["compute", "graphics", "mps"] = "compute"


@dataclass(frozen=True, slots=True)
class Call:
    """One logged call: the function, who made it, and on what (None: no device, or gone)."""

    function: str
    pid: int
    uuid: str | None


@dataclass(frozen=True, slots=True)
class CgroupLimit:
    """What one cgroup may use of a GPU, and uses; bytes."""

    soft: int
    hard: int
    used: int


class _Device:
    """What a GPU and a MIG instance have in common; every property reads and writes the file."""

    __slots__ = ("_fleet", "_gpu_index", "_serial")  # so that a misspelt property is refused

    def __init__(self, fleet: Fleet, gpu_index: int, serial: int) -> None:
        self._fleet = fleet
        self._gpu_index = gpu_index
        self._serial = serial

    def _record(self, state: layout.State) -> layout.Gpu | layout.Mig:
        gpu: layout.Gpu = state.gpu[self._gpu_index]
        if not self._serial:
            return gpu
        mig: layout.Mig
        for mig in gpu.mig:
            if mig.serial == self._serial:
                return mig
        raise UnknownName("this MIG instance was destroyed")

    @property
    def uuid(self) -> str:
        """Its UUID, the same for the same seed, index and placement."""
        return _text(self._record(self._fleet.state()).uuid)

    @property
    def total(self) -> int:
        """Memory it has, in bytes."""
        return int(self._record(self._fleet.state()).total)

    @property
    def reserved(self) -> int:
        """Memory the driver keeps for itself, in bytes."""
        return int(self._record(self._fleet.state()).reserved)

    @property
    def used(self) -> int:
        """Memory in use, in bytes; of a GPU in MIG mode, besides what its instances use."""
        return int(self._record(self._fleet.state()).used)

    @used.setter
    def used(self, value: int) -> None:
        with self._fleet.transaction() as state:
            record = self._record(state)
            if not 0 <= value <= record.total - record.reserved:
                raise ValueError(
                    f"used must be between 0 and {record.total - record.reserved} bytes, "
                    f"not {value}"
                )
            record.used = value

    @property
    def utilisation(self) -> float:
        """Percent of its SMs that are busy; NaN is handed on by GPM."""
        return float(self._record(self._fleet.state()).utilisation)

    @utilisation.setter
    def utilisation(self, value: float) -> None:
        with self._fleet.transaction() as state:
            self._record(state).utilisation = _percent(value)

    @property
    def memory_utilisation(self) -> float:
        """Percent of its memory bandwidth that is used."""
        return float(self._record(self._fleet.state()).memory_utilisation)

    @memory_utilisation.setter
    def memory_utilisation(self, value: float) -> None:
        with self._fleet.transaction() as state:
            self._record(state).memory_utilisation = _percent(value)

    def set_processes(self, processes: Sequence[SimProcess]) -> None:
        """Replace the processes of this device; `used` is left as it is."""
        with self._fleet.transaction() as state:
            self._record(state)
            mine = (self._gpu_index, self._serial)
            kept = [p for p in _processes(state) if (p.gpu, p.serial) != mine]
            _store_processes(state, kept + [_process_record(p, *mine) for p in processes])

    def fail(self, function: str, code: int) -> None:
        """Make `function` answer `code` on this device only."""
        self._fleet.fail(function, code, device=self)

    def delay(self, function: str, seconds: float) -> None:
        """Make `function` take `seconds` on this device only."""
        self._fleet.delay(function, seconds, device=self)


class SimMig(_Device):
    """A MIG instance: a GPU instance with one compute instance of the same size."""

    __slots__ = ()

    @property
    def parent(self) -> SimGpu:
        """The GPU it lies on."""
        return SimGpu(self._fleet, self._gpu_index, 0)

    @property
    def profile(self) -> str:
        """Its profile, for example "1g.10gb"."""
        return _text(self._mig().profile)

    @property
    def slot(self) -> int:
        """The first memory slot it takes."""
        return int(self._mig().start)

    @property
    def size(self) -> int:
        """How many memory slots it takes."""
        return int(self._mig().size)

    @property
    def gpu_instance(self) -> int:
        """NVML's id of its GPU instance; the same again for the same placement."""
        return int(self._mig().gpu_instance)

    def destroy(self) -> None:
        """Remove it with its processes; handles to it become invalid."""
        self._fleet.gpu(self._gpu_index).destroy_mig(self.uuid)

    def _mig(self) -> layout.Mig:
        record = self._record(self._fleet.state())
        assert isinstance(record, layout.Mig)
        return record


class SimGpu(_Device):
    """A card."""

    __slots__ = ()

    @property
    def index(self) -> int:
        """Its index on the host."""
        return self._gpu_index

    @property
    def model(self) -> str:
        """Its model, as NVML names it."""
        return _text(self._gpu().name)

    @property
    def health(self) -> Literal["ok", "lost", "reset required"]:
        """What `lose`, `require_reset` and `recover` set."""
        code = self._gpu().health
        return "ok" if code == 0 else "lost" if code == _LOST else "reset required"

    def lose(self) -> None:
        """Let it fall off the bus: every call answers GPU_IS_LOST and it has no handle."""
        self._set(health=_LOST)

    def require_reset(self) -> None:
        """Make every call on it answer RESET_REQUIRED."""
        self._set(health=_RESET_REQUIRED)

    def recover(self) -> None:
        """Make it healthy again."""
        self._set(health=0)

    @property
    def power_w(self) -> float:
        """Power it draws, in watts."""
        return float(self._gpu().power) / 1000

    @power_w.setter
    def power_w(self, value: float) -> None:
        self._set(power=_unsigned("power_w", value * 1000))

    @property
    def temperature_c(self) -> int:
        """Temperature of the die in degrees Celsius."""
        return int(self._gpu().temperature)

    @temperature_c.setter
    def temperature_c(self, value: int) -> None:
        self._set(temperature=_unsigned("temperature_c", value))

    @property
    def energy_mj(self) -> int:
        """Energy since the driver was loaded, in millijoule."""
        return int(self._gpu().energy)

    @energy_mj.setter
    def energy_mj(self, value: int) -> None:
        if value < 0:
            raise ValueError("energy_mj must not be negative")
        self._set(energy=value)

    @property
    def sm_clock_mhz(self) -> int:
        """Clock of the SMs in MHz."""
        return int(self._gpu().sm_clock)

    @sm_clock_mhz.setter
    def sm_clock_mhz(self, value: int) -> None:
        self._set(sm_clock=_unsigned("sm_clock_mhz", value))

    def set_pcie_kb_per_s(self, *, tx: int, rx: int) -> None:
        """Set the traffic on the bus in kB/s."""
        self._set(pcie_tx=_unsigned("tx", tx), pcie_rx=_unsigned("rx", rx))

    @property
    def gpm(self) -> bool:
        """Whether it answers GPM calls; Hopper and newer do."""
        return bool(self._gpu().gpm_supported)

    @gpm.setter
    def gpm(self, value: bool) -> None:
        self._set(gpm_supported=int(value))

    @property
    def mig_answers_rates(self) -> bool:
        """Whether UtilizationRates answers on its MIG handles, as some drivers are said to do."""
        return bool(self._gpu().mig_answers_rates)

    @mig_answers_rates.setter
    def mig_answers_rates(self, value: bool) -> None:
        self._set(mig_answers_rates=int(value))

    @property
    def mig_enabled(self) -> bool:
        """Whether it is in MIG mode."""
        return bool(self._gpu().mig_enabled)

    def enable_mig(self) -> None:
        """Turn MIG mode on; its processes must be gone, as on a real card."""
        with self._fleet.transaction() as state:
            if not state.gpu[self._gpu_index].mig_capable:
                raise ValueError(f"{self.model} cannot do MIG")
            if any(p.gpu == self._gpu_index for p in state.process[: state.process_count]):
                raise ValueError("a process is still on the GPU")
            self._set(mig_enabled=1, mig_pending=1)

    def disable_mig(self) -> None:
        """Turn MIG mode off; its instances must be gone."""
        with self._fleet.transaction():
            if self.migs():
                raise ValueError("destroy the MIG instances first")
            self._set(mig_enabled=0, mig_pending=0)

    def migs(self) -> list[SimMig]:
        """Return its MIG instances in NVML's order."""
        return [
            SimMig(self._fleet, self._gpu_index, mig.serial)
            for mig in self._gpu().mig
            if mig.serial
        ]

    def add_mig(self, profile: str, slot: int | None = None) -> SimMig:
        """Create an instance; `slot` None takes the first start where it fits.

        Raises:
            ValueError: MIG mode is off, the profile is unknown, or it does not fit; says which.
        """
        with self._fleet.transaction() as state:
            gpu = state.gpu[self._gpu_index]
            if not gpu.mig_enabled:
                raise ValueError(f"GPU {self._gpu_index} is not in MIG mode")
            model = MODELS[_text(gpu.name)]
            wanted = model.mig_profile(profile)
            start = _find_slot(model, gpu, wanted, slot)
            serial = _place(model, gpu, wanted, start)
        return SimMig(self._fleet, self._gpu_index, serial)

    def destroy_mig(self, uuid: str) -> None:
        """Remove an instance with its processes and the faults planted in it."""
        with self._fleet.transaction() as state:
            gpu = state.gpu[self._gpu_index]
            for mig in gpu.mig:
                if mig.serial and _text(mig.uuid) == uuid:
                    gone = (self._gpu_index, mig.serial)
                    break
            else:
                raise UnknownName(f"GPU {self._gpu_index} has no MIG instance {uuid}")
            _clear(mig)
            _store_processes(state, [p for p in _processes(state) if (p.gpu, p.serial) != gone])
            _store_faults(state, [f for f in _faults(state) if (f.gpu, f.serial) != gone])

    def cgroup_limits(self) -> dict[str, CgroupLimit]:
        """Return the memory limits set on it, by cgroup path."""
        return {
            _text(limit.cgroup): CgroupLimit(limit.soft, limit.hard, limit.used)
            for limit in self._fleet.state().limit
            if limit.active and limit.gpu == self._gpu_index
        }

    def set_cgroup_used(self, cgroup: str, used: int) -> None:
        """Set what a cgroup that has a limit uses, in bytes."""
        with self._fleet.transaction() as state:
            for limit in state.limit:
                if limit.active and limit.gpu == self._gpu_index and _text(limit.cgroup) == cgroup:
                    limit.used = used
                    return
        raise UnknownName(f"no limit is set for {cgroup}")

    def _gpu(self) -> layout.Gpu:
        gpu: layout.Gpu = self._fleet.state().gpu[self._gpu_index]
        return gpu

    def _set(self, **fields: int) -> None:
        with self._fleet.transaction() as state:
            for name, value in fields.items():
                setattr(state.gpu[self._gpu_index], name, value)


class Fleet:
    """A fleet file, opened for writing by default; several processes may have it open at once."""

    def __init__(self, file: FleetFile) -> None:
        """Use `Fleet.create` or `Fleet.open`."""
        self._file = file
        self._lock = threading.RLock()
        self._editing: layout.State | None = None
        self._functions = layout.function_names()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        gpus: Sequence[GpuSpec],
        *,
        driver: str = "580.159.04",
        seed: str = "gpuslice",
        replace: bool = False,
    ) -> Fleet:
        """Write a new fleet file and open it.

        Args:
            path: Where; its folder must exist.
            gpus: Up to 16.
            driver: Driver version; its first number hides what that driver did not have yet.
            seed: Other seeds give other UUIDs; use one per simulated host.
            replace: Take the place of a file that is there; who has it open keeps the old one.

        Raises:
            FileExistsError: There is a file and `replace` is not given.
            ValueError: More GPUs than fit, an unknown model, memory or instances it cannot have.
        """
        path = Path(path)
        if len(gpus) > layout.MAX_GPUS:
            raise ValueError(f"at most {layout.MAX_GPUS} GPUs, not {len(gpus)}")
        state = layout.State(gpu_count=len(gpus), cuda_version=13000)
        _set_driver(state, driver)
        for index, spec in enumerate(gpus):
            _fill_gpu(state.gpu[index], spec, index, seed)
        layout.write_new_file(path, state, replace=replace)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool = True) -> Fleet:
        """Open a fleet file that is there, also while others read and write it.

        Raises:
            FleetFileError: Not a fleet file of this version, or cut short.
            OSError: It cannot be opened.
        """
        return cls(FleetFile(Path(path), writable=writable))

    def close(self) -> None:
        """Close the file; the fleet goes on to exist."""
        self._file.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The fleet file."""
        return self._file.path

    # -- state ------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[layout.State]:
        """Publish all changes made in the body at once, or none if it raises; may be nested."""
        with self._lock:
            if self._editing is not None:
                yield self._editing
                return
            with self._file.change() as state:
                self._editing = state
                try:
                    yield state
                finally:
                    self._editing = None

    def state(self) -> layout.State:
        """Return the current state, within a transaction the one being edited."""
        with self._lock:
            return self._editing if self._editing is not None else self._file.read()

    # -- devices ----------------------------------------------------------------------------------

    def gpus(self) -> list[SimGpu]:
        """Return all GPUs."""
        return [SimGpu(self, index, 0) for index in range(self.state().gpu_count)]

    def gpu(self, index: int) -> SimGpu:
        """Return the GPU with this index on the host."""
        if not 0 <= index < self.state().gpu_count:
            raise UnknownName(f"no GPU {index}; there are {self.state().gpu_count}")
        return SimGpu(self, index, 0)

    def device(self, uuid: str) -> SimGpu | SimMig:
        """Return the GPU or MIG instance with this UUID."""
        for gpu in self.gpus():
            if gpu.uuid == uuid:
                return gpu
            for mig in gpu.migs():
                if mig.uuid == uuid:
                    return mig
        raise UnknownName(f"no device {uuid}")

    # -- the driver and its faults ----------------------------------------------------------------

    def set_driver(self, version: str) -> None:
        """Set the driver version; functions that it did not have yet are hidden."""
        with self.transaction() as state:
            _set_driver(state, version)

    def set_pid_mode(self, mode: Literal["host", "namespaced"]) -> None:
        """Choose what containers get as pids: the host's, or as driver 560 their own, no memory."""
        if mode not in _PID_MODES:
            raise UnknownName(f"pid mode {mode!r} (there are: {', '.join(_PID_MODES)})")
        with self.transaction() as state:
            state.pid_mode = _PID_MODES.index(mode)

    def fail_init(self, code: int) -> None:
        """Make nvmlInit answer `code`, for example 9, 18 or 999; 0 heals it."""
        with self.transaction() as state:
            state.init_error = code

    def fail(self, function: str, code: int, *, device: _Device | None = None) -> None:
        """Make one function answer `code`, everywhere or on one device."""
        if code <= 0:
            raise ValueError("an error code is positive; use heal() to take a fault away")
        self._plant(function, device, error=code)

    def delay(self, function: str, seconds: float, *, device: _Device | None = None) -> None:
        """Make one function take `seconds`, everywhere or on one device."""
        microseconds = round(seconds * 1e6)
        if not 0 < microseconds <= 60_000_000:
            raise ValueError("a delay is more than 0 and at most 60 seconds")
        self._plant(function, device, delay=microseconds)

    def real_delays(self) -> None:
        """Make the slow calls as slow as they are on an H100: 20 ms PCIe, 3.6 ms power."""
        with self.transaction():
            self.delay("nvmlDeviceGetPcieThroughput", 0.020)
            self.delay("nvmlDeviceGetPowerUsage", 0.0036)

    def heal(self, function: str | None = None) -> None:
        """Take planted errors and delays away, of one function or all of them."""
        if function is not None:
            self._check_function(function)
        with self.transaction() as state:
            kept = [
                fault
                for fault in _faults(state)
                if function is not None and _text(fault.function) != function
            ]
            _store_faults(state, kept)

    def _plant(self, function: str, device: _Device | None, **what: int) -> None:
        self._check_function(function)
        gpu, serial = (layout.NONE, 0) if device is None else (device._gpu_index, device._serial)
        with self.transaction() as state:
            faults = _faults(state)
            for fault in faults:
                if (_text(fault.function), fault.gpu, fault.serial) == (function, gpu, serial):
                    break
            else:
                fault = layout.Fault(function=function.encode(), gpu=gpu, serial=serial)
                faults.append(fault)
            for name, value in what.items():
                setattr(fault, name, value)
            _store_faults(state, faults)

    def _check_function(self, function: str) -> None:
        if function not in self._functions:
            raise UnknownName(f"the library has no function {function!r}")

    # -- what was called --------------------------------------------------------------------------

    def mark(self) -> int:
        """Return a mark for `calls(since=...)`: now."""
        return self._file.call_count()

    def calls(self, since: int = 0, *, pid: int | None = None) -> list[Call]:
        """Return the calls since a mark, oldest first, of all processes or one.

        Raises:
            FleetFileError: More calls than are kept (8192) have been made since.
        """
        state = self.state()
        return [
            Call(self._functions[function], caller, _uuid_of(state, gpu, serial))
            for caller, function, gpu, serial in self._file.call_entries(since, self.mark())
            if pid is None or caller == pid
        ]

    # -- running something against it -------------------------------------------------------------

    def environment(
        self,
        library: str | os.PathLike[str],
        *,
        view: View = "host",
        visible: Sequence[str] = (),
    ) -> dict[str, str]:
        """Return the variables that make a process see this fleet; add them to its environment.

        Args:
            library: What `build_library` returned.
            view: Where the process is meant to be.
            visible: UUIDs it was given; needed in a container, where nothing else is seen.
        """
        folder = str(Path(library).resolve().parent)
        inherited = os.environ.get("LD_LIBRARY_PATH")
        return {
            "LD_LIBRARY_PATH": f"{folder}:{inherited}" if inherited else folder,
            "NVMLSIM_STATE": str(self.path.resolve()),
            "NVMLSIM_VIEW": view,
            "NVMLSIM_VISIBLE": ",".join(visible),
        }


def demo_fleet(path: str | os.PathLike[str]) -> Fleet:
    """Open the demo fleet at `path`, or make it: two H100s and an A100 cut in three by MIG.

    A file that another version of nvmlsim wrote, or that is damaged, is replaced: a demo has
    nothing to lose.
    """
    gpus = [
        GpuSpec("NVIDIA H100 80GB HBM3"),
        GpuSpec("NVIDIA H100 80GB HBM3"),
        GpuSpec("NVIDIA A100-SXM4-80GB", mig=["3g.40gb", "2g.20gb", "1g.10gb"]),
    ]
    try:
        return Fleet.open(path)
    except FleetFileError:
        return Fleet.create(path, gpus, replace=True)
    except FileNotFoundError:
        try:
            return Fleet.create(path, gpus)
        except FileExistsError:  # somebody else was faster; one file for all of us
            return Fleet.open(path)


# -- helpers ---------------------------------------------------------------------------------------


def _text(value: bytes) -> str:
    return value.decode("utf-8")


def _unsigned(name: str, value: float) -> int:
    if not 0 <= value < layout.NONE:
        raise ValueError(f"{name} out of range: {value}")
    return round(value)


def _percent(value: float) -> float:
    if value < 0 or value > 100:  # NaN passes: GPM can return it
        raise ValueError(f"a percentage is 0 to 100, not {value}")
    return value


def _set_driver(state: layout.State, version: str) -> None:
    branch = version.split(".")[0]
    if not branch.isdigit() or len(version) > 60:
        raise ValueError(f"a driver version looks like 580.159.04, not {version!r}")
    state.driver_branch = int(branch)
    state.driver = version.encode()
    state.nvml = f"{'13' if int(branch) >= 580 else '12'}.{version}".encode()


def _fill_gpu(gpu: layout.Gpu, spec: GpuSpec, index: int, seed: str) -> None:
    model = MODELS.get(spec.model)
    if model is None:
        raise UnknownName(f"no model {spec.model!r} (there are: {', '.join(MODELS)})")
    total = model.memory_mib * MIB if spec.memory is None else spec.memory
    reserved = min(model.reserved_mib * MIB, total // 16)
    if not MIB <= total < 1 << 48:
        raise ValueError(f"memory of GPU {index} is {total} bytes")
    _describe_model(gpu, model)
    gpu.total, gpu.reserved = total, reserved
    gpu.pci_bus = 0x1A + index
    gpu.uuid = f"GPU-{uuid_module.uuid5(_NAMESPACE, f'{seed}/{index}')}".encode()
    gpu.board_serial = f"{1650000000000 + index}".encode()
    gpu.next_serial = 1
    if spec.mig is None:
        return
    if not model.mig:
        raise ValueError(f"{model.name} cannot do MIG")
    gpu.mig_enabled = gpu.mig_pending = 1
    for item in spec.mig:
        mig = MigSpec(item) if isinstance(item, str) else item
        profile = model.mig_profile(mig.profile)
        _place(model, gpu, profile, _find_slot(model, gpu, profile, mig.slot))


def _describe_model(gpu: layout.Gpu, model: Model) -> None:
    gpu.name = model.name.encode()
    gpu.cc_major, gpu.cc_minor = model.compute_capability
    gpu.pci_device_id = model.pci_device_id
    gpu.gpm_supported = int(model.gpm)
    gpu.mig_capable = int(bool(model.mig))
    gpu.max_mig = model.compute_slices
    gpu.power_limit = model.power_limit_w * 1000
    gpu.power = gpu.power_limit // 8
    gpu.temperature = 34
    gpu.fan = 0 if model.fan else layout.NONE
    gpu.sm_clock = gpu.max_sm_clock = model.max_sm_clock
    gpu.memory_clock = gpu.max_memory_clock = model.max_memory_clock
    gpu.pcie_generation, gpu.pcie_width = model.pcie_generation, 16


def _find_slot(model: Model, gpu: layout.Gpu, profile: MigProfile, slot: int | None) -> int:
    """Return the start for a new instance; raises ValueError with what is in the way."""
    present = [mig for mig in gpu.mig if mig.serial]
    if slot is not None and slot not in profile.starts:
        raise ValueError(f"{profile.name} starts at one of {profile.starts}, not {slot}")
    spent = sum(mig.compute_slices for mig in present)
    if spent + profile.compute_slices > model.compute_slices:
        raise ValueError(
            f"{profile.name} needs {profile.compute_slices} compute slices, "
            f"{model.compute_slices - spent} are left"
        )
    if sum(_text(mig.profile) == profile.name for mig in present) >= profile.maximum:
        raise ValueError(f"at most {profile.maximum} of {profile.name}")
    taken = {mig.start + i for mig in present for i in range(mig.size)}
    for start in profile.starts if slot is None else (slot,):
        if taken.isdisjoint(range(start, start + profile.size)):
            return start
    raise ValueError(f"the slots for {profile.name} are taken")


def _place(model: Model, gpu: layout.Gpu, profile: MigProfile, start: int) -> int:
    """Write an instance at `start` and return its serial number."""
    mig = next(mig for mig in gpu.mig if not mig.serial)
    mig.serial = gpu.next_serial
    gpu.next_serial += 1
    # As on real cards, the id follows from size and start, so it comes again for the same place.
    mig.gpu_instance = {8: 0, 4: 1 + start // 4, 2: 3 + start // 2, 1: 7 + start}[profile.size]
    mig.compute_instance = 0
    mig.profile_id = profile.profile_id
    mig.start, mig.size = start, profile.size
    mig.compute_slices = profile.compute_slices
    mig.multiprocessors = profile.multiprocessors
    # A GPU made smaller than its model has smaller instances; the name stays.
    mig.total = min(profile.memory_mib * MIB, gpu.total * profile.size // model.memory_slots)
    mig.reserved = min(16 * MIB, mig.total // 16)
    mig.used, mig.utilisation, mig.memory_utilisation = 0, 0.0, 0.0
    mig.profile = profile.name.encode()
    identity = f"{_text(gpu.uuid)}/{profile.name}/{start}"
    mig.uuid = f"MIG-{uuid_module.uuid5(_NAMESPACE, identity)}".encode()
    return int(mig.serial)


def _clear(mig: layout.Mig) -> None:
    mig.serial = 0
    mig.profile = mig.uuid = b""
    mig.used = mig.total = mig.reserved = 0


def _process_record(process: SimProcess, gpu: int, serial: int) -> layout.Process:
    if process.kind not in _KINDS:
        raise UnknownName(f"kind {process.kind!r} (there are: {', '.join(_KINDS)})")
    if process.pid <= 0:
        raise ValueError(f"a pid is positive, not {process.pid}")
    no_sample = process.utilisation is None
    return layout.Process(
        pid=process.pid,
        namespaced_pid=process.namespaced_pid,
        gpu=gpu,
        serial=serial,
        kind=_KINDS.index(process.kind),
        memory=layout.MEMORY_NOT_AVAILABLE if process.memory is None else process.memory,
        seen=time.time_ns() // 1000,
        utilisation=float("nan") if no_sample else _percent(process.utilisation or 0.0),
        memory_utilisation=_percent(process.memory_utilisation),
    )


def _processes(state: layout.State) -> list[layout.Process]:
    """Return copies: entries of the state's own array would change while it is refilled."""
    return [layout.Process.from_buffer_copy(p) for p in state.process[: state.process_count]]


def _store_processes(state: layout.State, processes: Sequence[layout.Process]) -> None:
    if len(processes) > layout.MAX_PROCESSES:
        raise ValueError(f"at most {layout.MAX_PROCESSES} processes, not {len(processes)}")
    for index, process in enumerate(processes):
        state.process[index] = process
    state.process_count = len(processes)


def _faults(state: layout.State) -> list[layout.Fault]:
    return [layout.Fault.from_buffer_copy(f) for f in state.fault[: state.fault_count]]


def _store_faults(state: layout.State, faults: Sequence[layout.Fault]) -> None:
    if len(faults) > layout.MAX_FAULTS:
        raise ValueError(f"at most {layout.MAX_FAULTS} planted faults, not {len(faults)}")
    for index, fault in enumerate(faults):
        state.fault[index] = fault
    state.fault_count = len(faults)


def _uuid_of(state: layout.State, gpu: int, serial: int) -> str | None:
    if gpu >= state.gpu_count:
        return None
    if not serial:
        return _text(state.gpu[gpu].uuid)
    for mig in state.gpu[gpu].mig:
        if mig.serial == serial:
            return _text(mig.uuid)
    return None
