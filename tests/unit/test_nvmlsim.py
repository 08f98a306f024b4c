"""The simulated NVML: its ABI, its state file under load and damage, unmodified readers of it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import files
from pathlib import Path

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nvmlsim
from nvmlsim import Fleet, GpuSpec, MigSpec, NvmlCode, SimProcess, UnknownName, layout
from nvmlsim import build as sim_build
from nvmlsim.__main__ import main
from simfleet import A100, H100, L4, three_models

GIB = 1 << 30


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with three_models(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def nvml(library: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """NVML of this process, on the demo fleet."""
    see(fleet, library, monkeypatch)
    pynvml.nvmlInit()
    yield
    pynvml.nvmlShutdown()


def see(fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch, **view: object) -> None:
    """Point this process at a fleet; takes effect at the next nvmlInit."""
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    for name, value in fleet.environment(library, **view).items():  # type: ignore[arg-type]
        monkeypatch.setenv(name, value)


def code_of(call: object, *arguments: object) -> int:
    """The nvmlReturn_t of a call, 0 when it succeeds."""
    try:
        call(*arguments)  # type: ignore[operator]
    except pynvml.NVMLError as error:
        return int(error.value)
    return 0


def run(command: list[str], fleet: Fleet, library: Path, **view: object) -> str:
    done = subprocess.run(
        command,
        env=os.environ | fleet.environment(library, **view),  # type: ignore[arg-type]
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- the ABI ---------------------------------------------------------------------------------------


def nvidia_header() -> Path:
    found = [f for f in files("nvidia-nvml-dev") or [] if f.name == "nvml.h"]
    assert len(found) == 1, "the package nvidia-nvml-dev has no nvml.h"
    return Path(str(found[0].locate()))


def check_abi(include: Path) -> None:
    sim_build.compile_source(["-fsyntax-only", "-DNVMLSIM_ABI_CHECK", "-I", str(include)])


def test_structs_and_prototypes_are_those_of_nvidias_header() -> None:
    check_abi(nvidia_header().parent)


@pytest.mark.parametrize(
    ("original", "other"),
    [
        ("unsigned long long reserved;     //", "unsigned int reserved;     //"),
        ("NVML_ERROR_GPU_IS_LOST = 15,", "NVML_ERROR_GPU_IS_LOST = 42,"),
        (
            "nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *power)",
            "nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned long *power)",
        ),
    ],
    ids=["struct", "code", "prototype"],
)
def test_the_abi_check_notices_a_difference(tmp_path: Path, original: str, other: str) -> None:
    header = nvidia_header().read_text("utf-8")
    assert original in header
    (tmp_path / "nvml.h").write_text(header.replace(original, other), "utf-8")
    with pytest.raises(nvmlsim.BuildError):
        check_abi(tmp_path)


def test_python_and_c_agree_about_the_state_file(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    assert loaded.nvmlsimStateSize() == layout.STATE_SIZE
    assert loaded.nvmlsimFileSize() == layout.FILE_SIZE


def test_every_listed_function_is_exported(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    names = layout.function_names()
    assert [name for name in names if not hasattr(loaded, name)] == []
    assert len(names) > 60
    # nvitop takes its presence for a driver whose process list has longer structs.
    assert not hasattr(loaded, "nvmlDeviceGetConfComputeMemSizeInfo")


# -- building --------------------------------------------------------------------------------------


def test_an_unchanged_library_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = nvmlsim.build_library(tmp_path)
    monkeypatch.setenv("CC", "false")
    assert nvmlsim.build_library(tmp_path) == first
    (tmp_path / f"{nvmlsim.LIBRARY_NAME}.source").write_text("of another source")
    with pytest.raises(nvmlsim.BuildError, match="failed"):
        nvmlsim.build_library(tmp_path)


def test_without_a_compiler_ziglang_is_used_or_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sim_build.importlib.util, "find_spec", lambda name: object())
    assert sim_build.compiler() == [sys.executable, "-m", "ziglang", "cc"]
    monkeypatch.setattr(sim_build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(nvmlsim.BuildError, match="apt-get install gcc"):
        nvmlsim.build_library(tmp_path)


# -- what is written is what is read ---------------------------------------------------------------


def test_another_process_sees_a_change_at_once(fleet: Fleet, library: Path) -> None:
    script = (
        "import pynvml, sys\n"
        "pynvml.nvmlInit()\n"
        "h = pynvml.nvmlDeviceGetHandleByIndex(0)\n"
        "for line in sys.stdin:\n"
        "    print(pynvml.nvmlDeviceGetMemoryInfo(h, pynvml.nvmlMemory_v2).used, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | fleet.environment(library),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdin and reader.stdout
        for used in (0, 7_900_000_000, 1):
            fleet.gpu(0).used = used
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert int(reader.stdout.readline()) == used
        reader.stdin.close()


def test_every_property_arrives(fleet: Fleet, nvml: None) -> None:
    gpu = fleet.gpu(0)
    gpu.used, gpu.utilisation, gpu.memory_utilisation = 8 * GIB, 41.6, 12.0
    gpu.power_w, gpu.temperature_c, gpu.energy_mj, gpu.sm_clock_mhz = 345.5, 71, 123456789012, 1200
    gpu.set_pcie_kb_per_s(tx=11, rx=22)
    handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    v1, v2 = (pynvml.nvmlDeviceGetMemoryInfo(handle, v) for v in (None, pynvml.nvmlMemory_v2))
    assert (v2.used, v2.total, v2.reserved) == (8 * GIB, gpu.total, gpu.reserved)
    assert v2.used + v2.free + v2.reserved == v2.total
    assert (v1.used, v1.free) == (v2.used + v2.reserved, v2.free)
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    assert (rates.gpu, rates.memory) == (42, 12)
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 345_500
    assert pynvml.nvmlDeviceGetTemperature(handle, 0) == 71
    assert pynvml.nvmlDeviceGetTemperatureV(handle, 0) == 71
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 123456789012
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 1200
    assert pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_TX_BYTES) == 11
    assert pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_RX_BYTES) == 22
    assert pynvml.nvmlDeviceGetName(handle) == gpu.model == H100
    assert pynvml.nvmlDeviceGetCudaComputeCapability(handle) == (9, 0)
    assert pynvml.nvmlDeviceGetPciInfo(handle).busId == "00000000:1A:00.0"


def test_a_card_uses_what_its_instances_use(fleet: Fleet, nvml: None) -> None:
    card = fleet.gpu(1)
    card.used = GIB
    for mig, used in zip(card.migs(), (2 * GIB, 3 * GIB, 4 * GIB), strict=True):
        mig.used = used
        handle = pynvml.nvmlDeviceGetHandleByUUID(mig.uuid)
        assert pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used == used
    parent = pynvml.nvmlDeviceGetHandleByUUID(card.uuid)
    assert pynvml.nvmlDeviceGetMemoryInfo(parent, pynvml.nvmlMemory_v2).used == 10 * GIB


def test_uuids_are_the_same_again_for_the_same_seed_only(tmp_path: Path) -> None:
    def uuids(name: str, seed: str) -> list[str]:
        with Fleet.create(tmp_path / name, [GpuSpec(A100, mig=["1g.10gb"])], seed=seed) as fleet:
            return [fleet.gpu(0).uuid, fleet.gpu(0).migs()[0].uuid]

    assert uuids("a", "x") == uuids("b", "x")
    assert not set(uuids("c", "x")) & set(uuids("d", "y"))


def test_the_largest_fleet(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [GpuSpec(A100, mig=["1g.10gb"] * 7) for _ in range(16)]
    with Fleet.create(tmp_path / "big", specs) as fleet:
        fleet.gpu(15).set_processes([SimProcess(pid, GIB) for pid in range(1, 257)])
        see(fleet, library, monkeypatch)
        pynvml.nvmlInit()
        seen = set()
        for index in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
            assert pynvml.nvmlDeviceGetIndex(gpu) == index
            seen.add(pynvml.nvmlDeviceGetUUID(gpu))
            for place in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
                mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, place)
                assert pynvml.nvmlDeviceGetIndex(mig) == place
                seen.add(pynvml.nvmlDeviceGetUUID(mig))
        assert len(seen) == 16 * 8
        assert len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)) == 256
        pynvml.nvmlShutdown()
        with pytest.raises(ValueError, match="256 processes"):
            fleet.gpu(0).set_processes([SimProcess(1)])
    with pytest.raises(ValueError, match="at most 16"):
        Fleet.create(tmp_path / "bigger", [GpuSpec(L4)] * 17)


def test_a_transaction_shows_all_or_nothing(fleet: Fleet) -> None:
    with Fleet.open(fleet.path) as other, pytest.raises(RuntimeError), fleet.transaction():
        fleet.gpu(0).used = 1
        fleet.gpu(2).used = 2
        assert (fleet.gpu(0).used, other.gpu(0).used) == (1, 0)
        raise RuntimeError
    assert fleet.gpu(0).used == fleet.gpu(2).used == 0


# -- bad input -------------------------------------------------------------------------------------


def test_unknown_names_and_impossible_values_are_refused(fleet: Fleet, tmp_path: Path) -> None:
    gpu = fleet.gpu(0)
    for refused in (
        lambda: fleet.fail("nvmlDeviceGetMemoryInf", 4),
        lambda: fleet.delay("nvmlErrorString", 0.1),
        lambda: fleet.heal("nothing"),
        lambda: fleet.gpu(3),
        lambda: fleet.device("GPU-0"),
        lambda: fleet.set_pid_mode("other"),  # type: ignore[arg-type]
        lambda: gpu.set_processes([SimProcess(1, kind="other")]),  # type: ignore[arg-type]
        lambda: Fleet.create(tmp_path / "x", [GpuSpec("NVIDIA H1000")]),
        lambda: fleet.gpu(1).destroy_mig("MIG-0"),
        lambda: gpu.set_cgroup_used("/sys/fs/cgroup/x", 1),
    ):
        with pytest.raises(UnknownName):
            refused()
    for refused in (
        lambda: setattr(gpu, "used", gpu.total),
        lambda: setattr(gpu, "used", -1),
        lambda: setattr(gpu, "utilisation", 100.1),
        lambda: setattr(gpu, "power_w", -1),
        lambda: fleet.fail("nvmlDeviceGetName", 0),
        lambda: fleet.delay("nvmlDeviceGetName", 0),
        lambda: fleet.set_driver("new"),
        lambda: gpu.set_processes([SimProcess(0)]),
        lambda: gpu.add_mig("1g.10gb"),
        lambda: fleet.gpu(2).enable_mig(),
        lambda: fleet.gpu(1).disable_mig(),
        lambda: Fleet.create(tmp_path / "x", [GpuSpec(L4, mig=[])]),
        lambda: Fleet.create(tmp_path / "x", [GpuSpec(L4, memory=0)]),
    ):
        with pytest.raises(ValueError):
            refused()
    with pytest.raises(AttributeError):
        gpu.utilization = 3  # type: ignore[attr-defined]


def test_a_fleet_is_not_overwritten_by_mistake(fleet: Fleet) -> None:
    with pytest.raises(FileExistsError):
        Fleet.create(fleet.path, [])
    assert len(fleet.gpus()) == 3


def damage(how: str, path: Path) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "missing":
            path.unlink()
            return
        case "empty":
            content = bytearray()
        case "short":
            content = content[: len(content) // 2]
        case "not ours":
            content[:8] = b"SQLite f"
        case "version":
            content[8] += 1
        case "directory":
            path.unlink()
            path.mkdir()
            return
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("missing", NvmlCode.DRIVER_NOT_LOADED),
        ("empty", 14),
        ("short", 14),
        ("not ours", 14),
        ("directory", 14),
        ("version", NvmlCode.LIB_RM_VERSION_MISMATCH),
    ],
)
def test_a_damaged_state_file_is_an_nvml_error(
    how: str, code: int, fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(fleet, library, monkeypatch)
    damage(how, fleet.path)
    assert code_of(pynvml.nvmlInit) == code
    if how not in ("missing", "directory"):
        with pytest.raises(nvmlsim.FleetFileError):
            Fleet.open(fleet.path)
    if how != "directory":
        with nvmlsim.demo_fleet(fleet.path) as again:
            assert len(again.gpus()) == 3
        assert code_of(pynvml.nvmlInit) == 0
        pynvml.nvmlShutdown()


def test_no_state_at_all_is_a_driver_that_is_not_loaded(
    fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(fleet, library, monkeypatch)
    monkeypatch.delenv("NVMLSIM_STATE")
    assert code_of(pynvml.nvmlInit) == NvmlCode.DRIVER_NOT_LOADED


def test_a_file_cut_short_under_a_reader_is_an_error_not_a_crash(fleet: Fleet, nvml: None) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    whole = fleet.path.stat().st_size
    os.truncate(fleet.path, 100)
    assert code_of(pynvml.nvmlDeviceGetMemoryInfo, handle) == 14
    os.truncate(fleet.path, whole)  # all zero now: no generation fits
    assert code_of(pynvml.nvmlDeviceGetMemoryInfo, handle) in (0, 2)


def test_garbage_handles_are_refused(nvml: None) -> None:
    for value in (0, 1, 0xDEADBEEF, 2**64 - 1, 0x4E56_FF_FF_00000000, 0x4E56_01_07_00000001):
        handle = ctypes.cast(ctypes.c_void_p(value), pynvml.c_nvmlDevice_t)
        assert code_of(pynvml.nvmlDeviceGetName, handle) == NvmlCode.INVALID_ARGUMENT
        instance = ctypes.cast(ctypes.c_void_p(value), pynvml.c_nvmlGpuInstance_t)
        assert code_of(pynvml.nvmlGpuInstanceGetInfo, instance) == NvmlCode.INVALID_ARGUMENT


def test_versioned_structs_are_checked(nvml: None) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert code_of(pynvml.nvmlDeviceGetMemoryInfo, handle, 0x1000028) == 25
    wrong = pynvml.c_nvmlTemperature_v1_t(version=7)
    function = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetTemperatureV")
    assert function(handle, ctypes.byref(wrong)) == 25
    assert code_of(pynvml.nvmlGpmMetricsGet, pynvml.c_nvmlGpmMetricsGet_t()) == 25


def test_calls_before_init_and_after_shutdown(
    fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(fleet, library, monkeypatch)
    assert code_of(pynvml.nvmlDeviceGetCount) == 1
    pynvml.nvmlInit()
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 3
    pynvml.nvmlShutdown()
    assert code_of(pynvml.nvmlDeviceGetCount) == 1


# -- under load ------------------------------------------------------------------------------------

#: 200 processes that all use the same amount, and so does the GPU; another amount every time.
HAMMER = """
import sys, time
from nvmlsim import Fleet, SimProcess
fleet = Fleet.open(sys.argv[1])
gpu, turn, pause = fleet.gpu(0), 0, float(sys.argv[2])
print("ready", flush=True)
while True:
    for _ in range(3):
        turn = turn % 1000 + 1
        with fleet.transaction():
            gpu.set_processes([SimProcess(pid, turn << 20) for pid in range(1, 201)])
            gpu.used = turn << 20
    time.sleep(pause)
"""


@contextmanager
def hammered(fleet: Fleet, pause: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """A process that goes on writing, in bursts with `pause` seconds between them."""
    with subprocess.Popen(
        [sys.executable, "-c", HAMMER, str(fleet.path), str(pause)],
        env=os.environ | {"PYTHONPATH": str(Path(nvmlsim.__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        try:
            yield process
            assert process.poll() in (None, -signal.SIGKILL), "the writer died by itself"
        finally:
            process.kill()


def read_hammered(handle: object) -> int:
    """Read the hammered GPU once and check that nothing in it is of two writes."""
    room = ctypes.c_uint(256)
    listed = (pynvml.c_nvmlProcessInfo_v3_t * room.value)()
    function = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetComputeRunningProcesses_v3")
    assert function(handle, ctypes.byref(room), listed) == 0
    assert room.value in (0, 200)
    amounts = {listed[place].usedGpuMemory for place in range(0, room.value, 3)}
    assert len(amounts) <= 1, f"half a change: {sorted(amounts)}"
    v1 = pynvml.nvmlDeviceGetMemoryInfo(handle)
    assert v1.used + v1.free == v1.total
    v2 = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
    assert v2.used + v2.free + v2.reserved == v2.total
    assert v2.used % (1 << 20) == 0 and v2.used <= 1000 << 20
    return int(v2.used)


def test_readers_never_see_half_a_change(fleet: Fleet, nvml: None) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    with hammered(fleet):
        seen = {read_hammered(handle) for _ in range(3000)}
        deadline = time.monotonic() + 60
        while len(seen) < 20 and time.monotonic() < deadline:
            seen.add(read_hammered(handle))
        assert len(seen) >= 20
        state = fleet.state()
        assert len({process.memory for process in state.process[: state.process_count]}) == 1


def test_slow_readers_never_see_half_a_change(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that copies slowly is overtaken by writers all the time, and must notice it."""
    library = tmp_path / nvmlsim.LIBRARY_NAME
    sim_build.compile_source(["-DNVMLSIM_SLOW_COPY", "-o", str(library)])
    see(fleet, library, monkeypatch)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    with hammered(fleet, pause=0.01):
        assert len({read_hammered(handle) for _ in range(150)}) > 10
    pynvml.nvmlShutdown()


def test_a_killed_writer_leaves_a_whole_state_and_no_lock(fleet: Fleet, nvml: None) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    for _ in range(5):
        with hammered(fleet) as writer:
            for _ in range(20):
                read_hammered(handle)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        read_hammered(handle)
        fleet.gpu(0).used = 5 << 20
        assert read_hammered(handle) == 5 << 20


def test_garbage_in_the_copy_that_nobody_reads_is_never_seen(fleet: Fleet, nvml: None) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    for used in (1 << 20, 2 << 20):  # both copies have their turn
        fleet.gpu(0).used = used
        unread = (fleet.state().generation + 1) % 2
        with fleet.path.open("r+b") as file:
            file.seek(layout.HEADER_SIZE + unread * layout.STATE_SIZE)
            file.write(b"\xa5" * layout.STATE_SIZE)
        assert read_hammered(handle) == used
        assert fleet.gpu(0).used == used


def test_two_writers_lose_no_change(fleet: Fleet, nvml: None) -> None:
    def add(index: int) -> None:
        with Fleet.open(fleet.path) as mine:
            for _ in range(200):
                with mine.transaction():
                    mine.gpu(index).used += 1
                    mine.gpu(1).used += 1

    threads = [threading.Thread(target=add, args=(index,)) for index in (0, 0, 2, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (fleet.gpu(0).used, fleet.gpu(1).used, fleet.gpu(2).used) == (400, 800, 400)


def test_calls_from_many_threads(fleet: Fleet, nvml: None) -> None:
    fleet.gpu(0).used = 3 << 20
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(300):
                handle = pynvml.nvmlDeviceGetHandleByIndex(0)
                assert read_hammered(handle) == 3 << 20
                pynvml.nvmlInit()
                pynvml.nvmlShutdown()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [9, 18, 999])
def test_init_errors(
    code: int, fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(fleet, library, monkeypatch)
    fleet.fail_init(code)
    assert code_of(pynvml.nvmlInit) == code
    fleet.fail_init(0)
    assert code_of(pynvml.nvmlInit) == 0
    pynvml.nvmlShutdown()


def test_an_error_is_planted_everywhere_or_on_one_device(fleet: Fleet, nvml: None) -> None:
    first, second = (pynvml.nvmlDeviceGetHandleByIndex(index) for index in (0, 2))
    fleet.gpu(2).fail("nvmlDeviceGetMemoryInfo_v2", NvmlCode.UNKNOWN)
    memory = pynvml.nvmlDeviceGetMemoryInfo
    assert code_of(memory, first, pynvml.nvmlMemory_v2) == 0
    assert code_of(memory, second, pynvml.nvmlMemory_v2) == 999
    assert code_of(memory, second) == 0
    fleet.fail("nvmlDeviceGetMemoryInfo", NvmlCode.NO_PERMISSION)
    assert code_of(memory, first) == code_of(memory, second) == 4
    fleet.heal("nvmlDeviceGetMemoryInfo")
    assert code_of(memory, first) == 0
    fleet.heal()
    assert code_of(memory, second, pynvml.nvmlMemory_v2) == 0


def test_an_error_on_an_instance_goes_with_it(fleet: Fleet, nvml: None) -> None:
    mig = fleet.gpu(1).migs()[0]
    mig.fail("nvmlDeviceGetName", NvmlCode.UNKNOWN)
    assert code_of(pynvml.nvmlDeviceGetName, pynvml.nvmlDeviceGetHandleByUUID(mig.uuid)) == 999
    parent = pynvml.nvmlDeviceGetHandleByUUID(fleet.gpu(1).uuid)
    assert code_of(pynvml.nvmlDeviceGetName, parent) == 0
    mig.destroy()
    again = fleet.gpu(1).add_mig("3g.40gb")
    assert code_of(pynvml.nvmlDeviceGetName, pynvml.nvmlDeviceGetHandleByUUID(again.uuid)) == 0


def test_a_delay_is_waited_for(fleet: Fleet, nvml: None) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    fleet.real_delays()
    started = time.monotonic()
    pynvml.nvmlDeviceGetPcieThroughput(handle, 0)
    pynvml.nvmlDeviceGetPowerUsage(handle)
    assert time.monotonic() - started >= 0.0236


def test_a_lost_gpu(fleet: Fleet, nvml: None) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    slice_handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0)
    fleet.gpu(1).lose()
    assert fleet.gpu(1).health == "lost"
    assert pynvml.nvmlDeviceGetCount() == 3
    assert code_of(pynvml.nvmlDeviceGetHandleByIndex, 1) == NvmlCode.GPU_IS_LOST
    assert code_of(pynvml.nvmlDeviceGetMemoryInfo, handle) == NvmlCode.GPU_IS_LOST
    assert code_of(pynvml.nvmlDeviceGetMemoryInfo, slice_handle) == NvmlCode.GPU_IS_LOST
    assert code_of(pynvml.nvmlDeviceGetHandleByIndex, 2) == 0
    fleet.gpu(1).require_reset()
    assert code_of(pynvml.nvmlDeviceGetHandleByIndex, 1) == 0
    assert code_of(pynvml.nvmlDeviceGetMemoryInfo, handle) == NvmlCode.RESET_REQUIRED
    fleet.gpu(1).recover()
    assert code_of(pynvml.nvmlDeviceGetMemoryInfo, slice_handle) == 0


def test_an_old_driver_lacks_the_newer_functions(fleet: Fleet, nvml: None) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    fleet.set_driver("470.256.02")
    assert pynvml.nvmlSystemGetDriverVersion() == "470.256.02"
    gone = NvmlCode.FUNCTION_NOT_FOUND
    assert code_of(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2) == gone
    assert code_of(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle) == gone
    assert code_of(pynvml.nvmlDeviceGetComputeRunningProcesses_v2, handle) == 0
    assert code_of(pynvml.nvmlGpmSampleAlloc) == gone
    assert code_of(pynvml.nvmlDeviceGetMemoryInfo, handle) == 0


# -- MIG -------------------------------------------------------------------------------------------


def test_instances_are_made_and_destroyed_at_a_slot(fleet: Fleet, nvml: None) -> None:
    card = fleet.gpu(1)
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    first = card.migs()[0]
    stale = pynvml.nvmlDeviceGetHandleByUUID(first.uuid)
    uuid = first.uuid
    first.set_processes([SimProcess(77, GIB)])
    first.destroy()
    assert code_of(pynvml.nvmlDeviceGetHandleByUUID, uuid) == NvmlCode.NOT_FOUND
    assert code_of(pynvml.nvmlDeviceGetMemoryInfo, stale) == NvmlCode.INVALID_ARGUMENT
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle) == []
    again = card.add_mig("3g.40gb", slot=0)
    assert (again.uuid, again.slot, again.size, again.profile) == (uuid, 0, 4, "3g.40gb")
    # The place and the UUID are the same, the instance is not: the old handle stays dead.
    assert code_of(pynvml.nvmlDeviceGetMemoryInfo, stale) == NvmlCode.INVALID_ARGUMENT
    new = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    info = pynvml.nvmlGpuInstanceGetInfo(
        pynvml.nvmlDeviceGetGpuInstanceById(handle, pynvml.nvmlDeviceGetGpuInstanceId(new))
    )
    assert (info.placement.start, info.placement.size, info.id) == (0, 4, again.gpu_instance)
    assert pynvml.nvmlDeviceGetName(new) == f"{A100} MIG 3g.40gb"
    assert pynvml.nvmlDeviceGetAttributes(new).computeInstanceSliceCount == 3
    assert first.parent.uuid == card.uuid


@pytest.mark.parametrize(
    ("present", "wanted", "slot", "why"),
    [
        (["3g.40gb"], "1g.10gb", 3, "taken"),
        ([], "3g.40gb", 2, "starts at"),
        (["3g.40gb", "3g.40gb"], "2g.20gb", None, "compute slices"),
        (["4g.40gb", "2g.20gb"], "2g.20gb", None, "compute slices"),
        (["1g.10gb+me"], "1g.10gb+me", None, "at most 1"),
        (["4g.40gb"], "4g.40gb", None, "compute slices"),
        ([], "1g.5gb", None, "no MIG profile"),
        (["1g.20gb", MigSpec("1g.20gb", 4)], "3g.40gb", None, "taken"),
    ],
)
def test_instances_that_do_not_fit_are_refused(
    tmp_path: Path, present: list[str], wanted: str, slot: int | None, why: str
) -> None:
    with Fleet.create(tmp_path / "fleet", [GpuSpec(A100, mig=present)]) as fleet:
        with pytest.raises(ValueError, match=why):
            fleet.gpu(0).add_mig(wanted, slot)
        assert len(fleet.gpu(0).migs()) == len(present)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), model=st.sampled_from([A100, H100, "NVIDIA H200", "NVIDIA A30"]))
def test_instances_never_overlap(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, model: str
) -> None:
    path = tmp_path_factory.mktemp("fleets") / "fleet"
    profiles = [profile.name for profile in nvmlsim.MODELS[model].mig]
    with Fleet.create(path, [GpuSpec(model, mig=[])]) as fleet:
        gpu = fleet.gpu(0)
        for _ in range(data.draw(st.integers(1, 12))):
            migs = gpu.migs()
            if migs and data.draw(st.booleans()):
                data.draw(st.sampled_from(migs)).destroy()
                continue
            try:
                gpu.add_mig(data.draw(st.sampled_from(profiles)))
            except ValueError:
                continue
            migs = gpu.migs()
            slots = [slot for mig in migs for slot in range(mig.slot, mig.slot + mig.size)]
            assert len(slots) == len(set(slots))
            assert max(slots) < nvmlsim.MODELS[model].memory_slots
            assert sum(mig.total for mig in migs) <= gpu.total
            assert len({mig.gpu_instance for mig in migs}) == len(migs)


def test_what_a_slice_does_not_answer(fleet: Fleet, nvml: None) -> None:
    card = pynvml.nvmlDeviceGetHandleByIndex(1)
    handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, 0)
    unsupported = NvmlCode.NOT_SUPPORTED
    assert code_of(pynvml.nvmlDeviceGetUtilizationRates, handle) == unsupported
    assert code_of(pynvml.nvmlDeviceGetUtilizationRates, card) == unsupported
    assert code_of(pynvml.nvmlDeviceGetPowerUsage, handle) == unsupported
    assert code_of(pynvml.nvmlDeviceGetTemperature, handle, 0) == NvmlCode.INVALID_ARGUMENT
    assert code_of(pynvml.nvmlDeviceGetProcessUtilization, handle, 0) == unsupported
    assert code_of(pynvml.nvmlDeviceGetMigMode, pynvml.nvmlDeviceGetHandleByIndex(2)) == unsupported
    fleet.gpu(1).mig_answers_rates = True
    fleet.gpu(1).migs()[0].utilisation = 55
    assert pynvml.nvmlDeviceGetUtilizationRates(handle).gpu == 55


# -- views -----------------------------------------------------------------------------------------


def test_a_container_with_one_slice(
    fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = fleet.gpu(1).migs()[1]
    own.used = 2 * GIB
    see(fleet, library, monkeypatch, view="mig-container", visible=[own.uuid])
    pynvml.nvmlInit()
    try:
        assert pynvml.nvmlDeviceGetCount() == 1
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        assert pynvml.nvmlDeviceGetUUID(card) == fleet.gpu(1).uuid
        assert pynvml.nvmlDeviceGetIndex(card) == 0
        for call in (pynvml.nvmlDeviceGetMemoryInfo, pynvml.nvmlDeviceGetComputeRunningProcesses):
            assert code_of(call, card) == NvmlCode.NO_PERMISSION
        handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, 0)
        assert pynvml.nvmlDeviceGetUUID(handle) == own.uuid
        assert pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used == 2 * GIB
        missing = NvmlCode.NOT_FOUND
        assert code_of(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, card, 1) == missing
        for hidden in (fleet.gpu(0).uuid, fleet.gpu(1).migs()[0].uuid):
            assert code_of(pynvml.nvmlDeviceGetHandleByUUID, hidden) == missing
        refused = code_of(pynvml.nvmlDeviceGetGpuInstanceById, card, own.gpu_instance)
        assert refused == NvmlCode.NO_PERMISSION
    finally:
        pynvml.nvmlShutdown()


def test_a_container_with_one_gpu_counts_from_zero(
    fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(fleet, library, monkeypatch, view="shared-container", visible=[fleet.gpu(2).uuid])
    pynvml.nvmlInit()
    try:
        assert pynvml.nvmlDeviceGetCount() == 1
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        assert pynvml.nvmlDeviceGetName(handle) == L4
        assert code_of(pynvml.nvmlDeviceGetMemoryInfo, handle) == 0
    finally:
        pynvml.nvmlShutdown()


def test_a_container_that_was_given_nothing_sees_nothing(
    fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(fleet, library, monkeypatch, view="shared-container")
    pynvml.nvmlInit()
    try:
        assert pynvml.nvmlDeviceGetCount() == 0
    finally:
        pynvml.nvmlShutdown()
    monkeypatch.setenv("NVMLSIM_VIEW", "elsewhere")
    assert code_of(pynvml.nvmlInit) == NvmlCode.INVALID_ARGUMENT


def test_pids_in_containers(fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = fleet.gpu(0)
    gpu.set_processes([SimProcess(4711, 2 * GIB, 30.0, namespaced_pid=12), SimProcess(4712, GIB)])

    def listed() -> list[tuple[int, int]]:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        samples = pynvml.nvmlDeviceGetProcessUtilization(handle, 0)
        assert sorted(sample.pid for sample in samples) == [4711, 4712]
        return [(process.pid, process.usedGpuMemory) for process in found]

    for view, mode, expected in (
        ("host", "namespaced", [(4711, 2 * GIB), (4712, GIB)]),
        ("shared-container", "host", [(4711, 2 * GIB), (4712, GIB)]),
        ("shared-container", "namespaced", [(12, 0)]),
    ):
        fleet.set_pid_mode(mode)  # type: ignore[arg-type]
        see(fleet, library, monkeypatch, view=view, visible=[gpu.uuid])
        pynvml.nvmlInit()
        assert listed() == expected
        pynvml.nvmlShutdown()


def test_process_lists_are_apart_by_kind_and_device(fleet: Fleet, nvml: None) -> None:
    card, mig = fleet.gpu(1), fleet.gpu(1).migs()[0]
    mig.set_processes([SimProcess(1, GIB), SimProcess(2, None, kind="graphics")])
    fleet.gpu(1).migs()[1].set_processes([SimProcess(3, GIB), SimProcess(4, GIB, kind="mps")])
    on_card = pynvml.nvmlDeviceGetHandleByUUID(card.uuid)
    on_slice = pynvml.nvmlDeviceGetHandleByUUID(mig.uuid)
    compute = pynvml.nvmlDeviceGetComputeRunningProcesses
    assert [(p.pid, p.gpuInstanceId) for p in compute(on_slice)] == [(1, mig.gpu_instance)]
    assert [p.pid for p in compute(on_card)] == [1, 3]
    assert pynvml.nvmlDeviceGetGraphicsRunningProcesses(on_slice)[0].usedGpuMemory is None
    assert [p.pid for p in pynvml.nvmlDeviceGetMPSComputeRunningProcesses(on_card)] == [4]
    idle = pynvml.nvmlDeviceGetHandleByUUID(fleet.gpu(0).uuid)
    assert code_of(pynvml.nvmlDeviceGetProcessUtilization, idle, 0) == NvmlCode.NOT_FOUND
    assert pynvml.nvmlSystemGetProcessName(os.getpid()).endswith(Path(sys.executable).name)
    assert code_of(pynvml.nvmlSystemGetProcessName, 2**31) == NvmlCode.NOT_FOUND


# -- cgroup limits ---------------------------------------------------------------------------------


def test_cgroup_limits(
    fleet: Fleet, nvml: None, tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup = str(tmp_path)
    gpu = fleet.gpu(0)
    handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    most = pynvml.NVML_DEVICE_MEMORY_LIMIT_MAX

    def set_limit(soft: int, hard: int, path: str = cgroup, on: object = handle) -> int:
        wanted = pynvml.c_nvmlSetMemoryLimits_v1_t(path.encode(), soft, hard)
        return code_of(pynvml.nvmlDeviceSetMemoryLimits_v1, on, wanted)

    def get_limit() -> tuple[int, ...]:
        limit = pynvml.c_nvmlGetMemoryLimits_v1_t(cgroup.encode())
        code = code_of(pynvml.nvmlDeviceGetMemoryLimits_v1, handle, limit)
        return (code,) if code else (limit.softLimit, limit.hardLimit, limit.currentUsed)

    assert set_limit(GIB, 2 * GIB) == NvmlCode.FUNCTION_NOT_FOUND
    fleet.set_driver("615.21.03")
    assert get_limit() == (NvmlCode.NOT_FOUND,)
    assert set_limit(GIB, 2 * GIB) == 0
    gpu.set_cgroup_used(cgroup, 512)
    assert get_limit() == (GIB, 2 * GIB, 512)
    assert set_limit(0, 3 * GIB) == 0
    assert get_limit() == (0, 3 * GIB, 512)
    assert gpu.cgroup_limits() == {cgroup: nvmlsim.CgroupLimit(0, 3 * GIB, 512)}
    for soft, hard in ((2, 1), (gpu.total + 1, most), (0, gpu.total + 1)):
        assert set_limit(soft, hard) == NvmlCode.INVALID_ARGUMENT
    assert set_limit(0, 1, str(tmp_path / "none")) == 17
    mig = pynvml.nvmlDeviceGetHandleByUUID(fleet.gpu(1).migs()[0].uuid)
    assert set_limit(0, GIB, on=mig) == NvmlCode.NOT_SUPPORTED
    assert set_limit(0, most) == 0
    assert get_limit() == (NvmlCode.NOT_FOUND,)
    see(fleet, library, monkeypatch, view="shared-container", visible=[gpu.uuid])
    pynvml.nvmlInit()
    assert set_limit(0, GIB) == NvmlCode.NO_PERMISSION
    pynvml.nvmlShutdown()


# -- the call log ----------------------------------------------------------------------------------


def test_calls_are_logged_with_pid_and_device(fleet: Fleet, nvml: None) -> None:
    mark = fleet.mark()
    mig = fleet.gpu(1).migs()[0]
    handle = pynvml.nvmlDeviceGetHandleByUUID(mig.uuid)
    pynvml.nvmlDeviceGetMemoryInfo(handle)
    made = fleet.calls(mark)
    assert [(call.function, call.uuid) for call in made] == [
        ("nvmlDeviceGetHandleByUUID", None),
        ("nvmlDeviceGetMemoryInfo", mig.uuid),
    ]
    assert {call.pid for call in made} == {os.getpid()}
    assert fleet.calls(mark, pid=1) == []
    for _ in range(layout.LOG_SIZE + 1):
        pynvml.nvmlDeviceGetCount()
    with pytest.raises(nvmlsim.FleetFileError, match="8192"):
        fleet.calls(mark)
    assert len(fleet.calls(fleet.mark() - layout.LOG_SIZE)) == layout.LOG_SIZE


# -- unmodified readers ----------------------------------------------------------------------------


def script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@pytest.fixture
def busy_fleet(fleet: Fleet) -> Fleet:
    with fleet.transaction():
        fleet.gpu(0).used, fleet.gpu(0).utilisation = 20 * GIB, 63.0
        fleet.gpu(0).set_processes([SimProcess(os.getpid(), 19 * GIB, 60.0)])
        fleet.gpu(1).migs()[0].used = 5 * GIB
        fleet.gpu(2).used = 3 * GIB
    return fleet


def test_nvitop_shows_the_fleet(busy_fleet: Fleet, library: Path) -> None:
    shown = run([script("nvitop"), "-1", "--ascii"], busy_fleet, library)
    for expected in (
        "H100 80GB HBM3",
        "A100-SXM4-80GB",
        "580.159.04",
        "20.00GiB / 79.65GiB",
        "63%",
        "3g.40gb @ GI/CI: 1/0",
        "2g.20gb @ GI/CI: 5/0",
        "1g.10gb @ GI/CI:13/0",
        "5120MiB / 39.25GiB",
        "3072MiB / 22.49GiB",
        str(os.getpid()),
        "19456MiB",
    ):
        assert expected in shown, shown


def test_nvitop_in_a_container_shows_one_slice(busy_fleet: Fleet, library: Path) -> None:
    own = busy_fleet.gpu(1).migs()[0]
    shown = run(
        [script("nvitop"), "-1", "--ascii"],
        busy_fleet,
        library,
        view="mig-container",
        visible=[own.uuid],
    )
    assert "3g.40gb" in shown and "5120MiB / 39.25GiB" in shown
    assert "2g.20gb" not in shown and "H100" not in shown


def test_gpustat_shows_the_fleet(busy_fleet: Fleet, library: Path) -> None:
    shown = run([script("gpustat"), "--no-color", "--show-pid"], busy_fleet, library)
    for expected in (H100, A100, L4, "63 %", "20480 / 81559 MB", "3072 / 23034 MB"):
        assert expected in shown, shown
    assert f"/{os.getpid()}(" in shown, shown


# -- the command line ------------------------------------------------------------------------------


def test_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = str(tmp_path / "a fleet")
    assert main(["build", str(tmp_path)]) == 0
    assert capfd.readouterr().out.strip() == str(tmp_path / nvmlsim.LIBRARY_NAME)
    assert main(["demo", state]) == 0
    shown = capfd.readouterr().out
    assert main(["show", state]) == 0
    assert capfd.readouterr().out == shown
    assert H100 in shown and "MIG 3g.40gb  slots 0-3" in shown
    assert main(["show", str(tmp_path / "none")]) == 1
    assert "none" in capfd.readouterr().err
    environment = os.environ | {"PYTHONPATH": str(Path(nvmlsim.__file__).parents[1])}
    read = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount())"
    command = [sys.executable, "-m", "nvmlsim", "run", str(tmp_path), state]
    done = subprocess.run(
        [*command, sys.executable, "-c", read],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "3\n"


def test_a_demo_fleet_goes_on_where_it_was(tmp_path: Path) -> None:
    with nvmlsim.demo_fleet(tmp_path / "fleet") as first:
        first.gpu(0).used = 42
        with nvmlsim.demo_fleet(tmp_path / "fleet") as second:
            assert second.gpu(0).used == 42
            assert [gpu.model for gpu in second.gpus()] == [H100, H100, A100]
            assert [mig.profile for mig in second.gpu(2).migs()] == [
                "3g.40gb",
                "2g.20gb",
                "1g.10gb",
            ]
