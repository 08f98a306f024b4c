"""The fleet file: the structs that nvmlsim.c declares too, and how they are read and written whole.

The file is a header, the state twice, and a ring of calls. Writers fill the copy that nobody
reads and then publish its generation number; nvmlsim.c's first comment says why that is safe.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

MAGIC = b"NVMLSIM\0"
LAYOUT_VERSION = 1
HEADER_SIZE = 4096
MAX_GPUS = 16
MAX_MIG = 7
MAX_PROCESSES = 256
MAX_FAULTS = 64
MAX_LIMITS = 64
LOG_SIZE = 8192
NONE = 0xFFFFFFFF
MEMORY_NOT_AVAILABLE = 0xFFFFFFFFFFFFFFFF

SOURCE = Path(__file__).with_name("nvmlsim.c")

u32 = ctypes.c_uint32
u64 = ctypes.c_uint64
f64 = ctypes.c_double


class Mig(ctypes.Structure):
    """`struct sim_mig`: one GPU instance with its compute instance; bytes, slots, percent."""

    _fields_: ClassVar = [
        ("serial", u32),
        ("gpu_instance", u32),
        ("compute_instance", u32),
        ("profile_id", u32),
        ("start", u32),
        ("size", u32),
        ("compute_slices", u32),
        ("multiprocessors", u32),
        ("total", u64),
        ("reserved", u64),
        ("used", u64),
        ("utilisation", f64),
        ("memory_utilisation", f64),
        ("profile", ctypes.c_char * 32),
        ("uuid", ctypes.c_char * 64),
    ]


class Gpu(ctypes.Structure):
    """`struct sim_gpu`: one card; bytes, milliwatt, millijoule, degrees Celsius, MHz, kB/s."""

    _fields_: ClassVar = [
        ("health", u32),
        ("mig_capable", u32),
        ("mig_enabled", u32),
        ("mig_pending", u32),
        ("max_mig", u32),
        ("gpm_supported", u32),
        ("mig_answers_rates", u32),
        ("cc_major", u32),
        ("cc_minor", u32),
        ("pci_bus", u32),
        ("pci_device_id", u32),
        ("power", u32),
        ("power_limit", u32),
        ("temperature", u32),
        ("fan", u32),
        ("sm_clock", u32),
        ("memory_clock", u32),
        ("max_sm_clock", u32),
        ("max_memory_clock", u32),
        ("pcie_generation", u32),
        ("pcie_width", u32),
        ("pcie_tx", u32),
        ("pcie_rx", u32),
        ("next_serial", u32),
        ("total", u64),
        ("reserved", u64),
        ("used", u64),
        ("energy", u64),
        ("utilisation", f64),
        ("memory_utilisation", f64),
        ("name", ctypes.c_char * 96),
        ("uuid", ctypes.c_char * 64),
        ("board_serial", ctypes.c_char * 32),
        ("mig", Mig * MAX_MIG),
    ]


class Fault(ctypes.Structure):
    """`struct sim_fault`: an error or a delay (microseconds) planted in one function."""

    _fields_: ClassVar = [
        ("function", ctypes.c_char * 64),
        ("error", ctypes.c_int32),
        ("delay", u32),
        ("gpu", u32),
        ("serial", u32),
    ]


class Limit(ctypes.Structure):
    """`struct sim_limit`: what one cgroup may use of one GPU, in bytes."""

    _fields_: ClassVar = [
        ("soft", u64),
        ("hard", u64),
        ("used", u64),
        ("active", u32),
        ("gpu", u32),
        ("cgroup", ctypes.c_char * 256),
    ]


class Process(ctypes.Structure):
    """`struct sim_process`: bytes, microseconds since 1970, percent."""

    _fields_: ClassVar = [
        ("pid", u32),
        ("namespaced_pid", u32),
        ("gpu", u32),
        ("serial", u32),
        ("kind", u32),
        ("pad", u32),
        ("memory", u64),
        ("seen", u64),
        ("utilisation", f64),
        ("memory_utilisation", f64),
    ]


class State(ctypes.Structure):
    """`struct sim_state`, with `struct sim_head` spelt out at its beginning."""

    _fields_: ClassVar = [
        ("generation", u64),
        ("gpu_count", u32),
        ("process_count", u32),
        ("fault_count", u32),
        ("driver_branch", u32),
        ("cuda_version", u32),
        ("pid_mode", u32),
        ("init_error", ctypes.c_int32),
        ("pad", u32),
        ("driver", ctypes.c_char * 80),
        ("nvml", ctypes.c_char * 80),
        ("fault", Fault * MAX_FAULTS),
        ("gpu", Gpu * MAX_GPUS),
        ("limit", Limit * MAX_LIMITS),
        ("process", Process * MAX_PROCESSES),
    ]


STATE_SIZE = ctypes.sizeof(State)
_HEADER = struct.Struct("=8sIIQQ")  # magic, version, state size, generation, calls
_GENERATION_AT, _CALLS_AT = 16, 24
_GENERATION = struct.Struct("=Q")
_LOG_ENTRY = struct.Struct("=QIIII")  # number, pid, function, gpu, serial
_LOG_AT = HEADER_SIZE + 2 * STATE_SIZE
FILE_SIZE = _LOG_AT + LOG_SIZE * _LOG_ENTRY.size


class FleetFileError(ValueError):
    """The file is not a fleet file that this version of nvmlsim can use; the message says why."""


def function_names() -> tuple[str, ...]:
    """Every NVML function of the library in the order of its table, read from its source."""
    names = re.findall(
        r"^    X\((nvml\w+), \d+, [A-Z_]+\)", SOURCE.read_text("utf-8"), re.MULTILINE
    )
    if not names:
        raise FleetFileError(f"{SOURCE.name} lists no functions")
    return tuple(names)


class FleetFile:
    """An open fleet file: `read()` for a whole state, `change()` to edit one under the lock."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Open and check `path`.

        Raises:
            FleetFileError: Not a fleet file, cut short, or of another version.
            OSError: It cannot be opened.
        """
        self.path = path
        self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            self._check()
        except BaseException:
            os.close(self._fd)
            raise

    def _check(self) -> None:
        header = os.pread(self._fd, _HEADER.size, 0)
        if len(header) < _HEADER.size or header[:8] != MAGIC:
            raise FleetFileError(f"{self.path} is not a fleet file of nvmlsim")
        _, version, state_size, _, _ = _HEADER.unpack(header)
        if (version, state_size) != (LAYOUT_VERSION, STATE_SIZE):
            raise FleetFileError(
                f"{self.path} was written by another version of nvmlsim (layout {version}, this is "
                f"{LAYOUT_VERSION}); delete it to start a new fleet"
            )
        if os.fstat(self._fd).st_size < FILE_SIZE:
            raise FleetFileError(f"{self.path} is cut short")

    def close(self) -> None:
        """Close the file; what was written stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self) -> State:
        """Return a state in which nothing is half written."""
        while True:
            generation = self._generation()
            raw = bytearray(os.pread(self._fd, STATE_SIZE, self._copy_at(generation)))
            if len(raw) < STATE_SIZE:
                raise FleetFileError(f"{self.path} is cut short")
            state = State.from_buffer(raw)
            if state.generation == generation == self._generation():
                return state

    @contextmanager
    def change(self) -> Iterator[State]:
        """Yield a state to edit and publish it at the end, or drop it if the body raises."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            state = self.read()
            yield state
            state.generation += 1
            # Two system calls, not two stores to a map: the kernel takes the file's lock for each,
            # so no processor shows the number before the state that it names.
            self._write(bytes(state), self._copy_at(state.generation))
            self._write(_GENERATION.pack(state.generation), _GENERATION_AT)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def call_count(self) -> int:
        """How many calls the library has logged since the file was made."""
        return int(_GENERATION.unpack(os.pread(self._fd, 8, _CALLS_AT))[0])

    def call_entries(self, first: int, last: int) -> list[tuple[int, int, int, int]]:
        """Return (pid, function number, gpu, serial) of the calls `first` to `last`, exclusive."""
        if last - first > LOG_SIZE:
            raise FleetFileError(f"only the last {LOG_SIZE} calls are kept, {last - first} asked")
        ring = os.pread(self._fd, LOG_SIZE * _LOG_ENTRY.size, _LOG_AT)
        entries = []
        for number in range(first, last):
            entry = _LOG_ENTRY.unpack_from(ring, number % LOG_SIZE * _LOG_ENTRY.size)
            if entry[0] == number + 1:  # else still being written, or overwritten meanwhile
                entries.append(entry[1:])
        return entries

    def _generation(self) -> int:
        return int(_GENERATION.unpack(os.pread(self._fd, 8, _GENERATION_AT))[0])

    @staticmethod
    def _copy_at(generation: int) -> int:
        return HEADER_SIZE + (generation & 1) * STATE_SIZE

    def _write(self, data: bytes, at: int) -> None:
        if os.pwrite(self._fd, data, at) != len(data):
            raise OSError(f"could not write all of {self.path}")


def write_new_file(path: Path, state: State, *, replace: bool) -> None:
    """Put a new fleet file at `path` in one step; a reader finds the old one or all of the new.

    Raises:
        FileExistsError: There is a file and `replace` is not given.
    """
    state.generation = 0
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("wb") as file:
            file.truncate(FILE_SIZE)
            file.write(_HEADER.pack(MAGIC, LAYOUT_VERSION, STATE_SIZE, 0, 0))
            file.seek(HEADER_SIZE)
            file.write(bytes(state))
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # unlike a rename, refuses to overwrite
    finally:
        temporary.unlink(missing_ok=True)
