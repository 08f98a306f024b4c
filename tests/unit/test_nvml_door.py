"""The door to NVML: true values, reasons instead of fake zeros, and no device hides another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

import nvmlsim
from gpuslice.nvml import (
    DeviceNotFound,
    DeviceSample,
    MemoryUse,
    NotAvailable,
    Nvml,
    NvmlUnavailable,
    Placement,
    ProcessUse,
    Utilisation,
)
from nvmlsim import Fleet, GpuSpec, NvmlCode, SimProcess, layout

GIB = 1 << 30
H100, A100, L4 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA L4"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """An H100 in MIG mode, an A100 in MIG mode, an L4 and a whole H100."""
    specs = [
        GpuSpec(H100, mig=["3g.40gb", "1g.10gb"]),
        GpuSpec(A100, mig=["2g.20gb"]),
        GpuSpec(L4),
        GpuSpec(H100),
    ]
    with Fleet.create(tmp_path / "fleet", specs) as fleet:
        yield fleet


@pytest.fixture
def look(
    fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Nvml]]:
    """Open the door on the fleet, as a host or in a container; closed at the end."""
    opened: list[Nvml] = []

    def open_door(**view: object) -> Nvml:
        for name, value in fleet.environment(library, **view).items():  # type: ignore[arg-type]
            monkeypatch.setenv(name, value)
        opened.append(Nvml.open(library))
        return opened[-1]

    yield open_door
    for nvml in opened:
        nvml.close()


@pytest.fixture
def nvml(look: Callable[..., Nvml]) -> Nvml:
    return look()


def wait_for_gpm(nvml: Nvml, uuid: str) -> Utilisation | NotAvailable:
    """Read until two samples lie far enough apart for a GPM value, or for what comes instead."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = nvml.device_state(uuid, details=False).utilisation
        if isinstance(found, NotAvailable) and "being measured" not in found.reason:
            return found
        if isinstance(found, Utilisation) and found.source == "gpm":
            return found
        time.sleep(0.01)
    raise AssertionError("no value within 30 s")


# -- opening ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (9, "driver not loaded", "is not loaded"),
        (18, "version mismatch", "The GPU driver was updated; restart the node."),
        (4, "no permission", "not permitted"),
        (999, "unknown", "NVML error 999"),
        (17, "unknown", "NVML error 17"),
    ],
)
def test_each_way_of_not_opening_has_a_sentence(
    code: int, kind: str, words: str, fleet: Fleet, look: Callable[..., Nvml]
) -> None:
    fleet.fail_init(code)
    with pytest.raises(NvmlUnavailable) as refused:
        look()
    assert (refused.value.kind, refused.value.code) == (kind, code)
    assert words in refused.value.reason
    assert refused.value.reason.endswith(".") and refused.value.reason.count(". ") == 0


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NvmlUnavailable) as refused:
        Nvml.open(tmp_path / "libnvidia-ml.so.1")
    assert refused.value.kind == "library not found"


def test_a_machine_without_a_driver() -> None:
    script = (
        "from gpuslice.nvml import Nvml, NvmlUnavailable\n"
        "try: Nvml.open()\n"
        "except NvmlUnavailable as e: print(e.kind, '/', e.reason)\n"
        "else: print('real')\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH",)
    }
    environment["PYTHONPATH"] = str(Path(nvmlsim.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    if done.stdout != "real\n":  # this machine may have a GPU
        assert done.stdout.startswith(("library not found / There is no", "driver not loaded /"))


def test_reopening_after_the_driver_came_back(fleet: Fleet, nvml: Nvml) -> None:
    fleet.fail_init(9)
    for _ in range(2):
        with pytest.raises(NvmlUnavailable, match="not loaded"):
            nvml.reopen()
        with pytest.raises(NvmlUnavailable, match="not open"):
            nvml.devices()
    fleet.fail_init(0)
    nvml.reopen()
    assert len(nvml.devices()) == 7


def test_a_driver_that_goes_away_while_open(fleet: Fleet, nvml: Nvml) -> None:
    fleet.fail("nvmlDeviceGetCount_v2", NvmlCode.DRIVER_NOT_LOADED)
    with pytest.raises(NvmlUnavailable) as refused:
        nvml.devices()
    assert refused.value.kind == "driver not loaded"


def test_closed_is_closed(nvml: Nvml, fleet: Fleet) -> None:
    nvml.close()
    nvml.close()
    for call in (
        nvml.devices,
        lambda: nvml.device_state(fleet.gpu(0).uuid),
        lambda: nvml.simulated,
        lambda: nvml.driver_version,
        lambda: nvml.can_cgroup_limits(fleet.gpu(0).uuid),
    ):
        with pytest.raises(NvmlUnavailable, match="not open"):
            call()


def test_two_libraries_in_one_process_are_refused(nvml: Nvml, tmp_path: Path) -> None:
    other = nvmlsim.build_library(tmp_path)
    with pytest.raises(NvmlUnavailable, match="already uses"):
        Nvml.open(other)
    nvml.close()
    with Nvml.open(other) as second:
        assert second.simulated


# -- devices ---------------------------------------------------------------------------------------


def test_what_the_devices_are(fleet: Fleet, nvml: Nvml) -> None:
    assert nvml.simulated is True
    assert nvml.driver_version == "580.159.04"
    listing = nvml.listing()
    assert listing.unreadable == ()
    described = [(d.kind, d.index, d.model, d.parent_uuid) for d in listing.devices]
    first, second = fleet.gpu(0).uuid, fleet.gpu(1).uuid
    assert described == [
        ("gpu", 0, H100, None),
        ("mig", 0, H100, first),
        ("mig", 1, H100, first),
        ("gpu", 1, A100, None),
        ("mig", 0, A100, second),
        ("gpu", 2, L4, None),
        ("gpu", 3, H100, None),
    ]
    assert [d.mig_enabled for d in listing.devices if d.kind == "gpu"] == [True, True, False, False]
    for device in listing.devices:
        assert device.memory_total == fleet.device(device.uuid).total
        capability = {H100: (9, 0), A100: (8, 0), L4: (8, 9)}[device.model]
        assert device.compute_capability == capability
    slices = [device.mig for device in listing.devices if device.mig]
    assert [m.profile for m in slices] == ["3g.40gb", "1g.10gb", "2g.20gb"]
    assert [m.placement for m in slices] == [Placement(0, 4), Placement(4, 1), Placement(0, 2)]
    assert [m.compute_slices for m in slices] == [3, 1, 2]


def test_a_gpu_that_cannot_be_named_hides_no_other(fleet: Fleet, nvml: Nvml) -> None:
    fleet.gpu(1).fail("nvmlDeviceGetUUID", NvmlCode.UNKNOWN)
    listing = nvml.listing()
    assert [device.model for device in listing.devices if device.kind == "gpu"] == [H100, L4, H100]
    (problem,) = listing.unreadable
    assert (problem.index, problem.mig_index, problem.problem.code) == (1, None, 999)


def test_a_slice_that_cannot_be_named_hides_no_other(fleet: Fleet, nvml: Nvml) -> None:
    fleet.gpu(0).migs()[0].fail("nvmlDeviceGetUUID", NvmlCode.UNKNOWN)
    listing = nvml.listing()
    assert len(listing.devices) == 6
    assert [(u.index, u.mig_index) for u in listing.unreadable] == [(0, 0)]


@pytest.mark.parametrize("sick", ["lost", "reset required"])
def test_a_sick_gpu_stays_listed_as_it_was(sick: str, fleet: Fleet, nvml: Nvml) -> None:
    before = nvml.devices()
    if sick == "lost":
        fleet.gpu(0).lose()
    else:
        fleet.gpu(0).require_reset()
    listing = nvml.listing()
    assert list(listing.devices) == before
    assert listing.unreadable
    for device in before:
        sample = nvml.device_state(device.uuid)
        expected = sick if fleet.gpu(0).uuid in (device.uuid, device.parent_uuid) else "ok"
        assert sample.health == expected
        if expected != "ok":
            assert sample.problem is not None
            assert isinstance(sample.memory, NotAvailable)
            assert isinstance(sample.processes, NotAvailable)
    fleet.gpu(0).recover()
    assert nvml.listing().unreadable == ()


def test_a_failing_list_of_slices_keeps_those_that_were_known(fleet: Fleet, nvml: Nvml) -> None:
    before = nvml.devices()
    fleet.gpu(0).fail("nvmlDeviceGetMaxMigDeviceCount", NvmlCode.UNKNOWN)
    assert {device.uuid for device in nvml.devices()} == {device.uuid for device in before}
    gone = fleet.gpu(0).migs()[0]
    fleet.heal()
    gone.destroy()
    assert len(nvml.devices()) == len(before) - 1


def test_a_destroyed_slice_is_not_found(fleet: Fleet, nvml: Nvml) -> None:
    mig = fleet.gpu(0).migs()[0]
    uuid = mig.uuid
    mig.destroy()
    for call in (nvml.device_state, nvml.can_cgroup_limits):
        with pytest.raises(DeviceNotFound) as refused:
            call(uuid)
        assert refused.value.uuid == uuid


# -- readings --------------------------------------------------------------------------------------


def test_memory_and_card_numbers(fleet: Fleet, nvml: Nvml) -> None:
    gpu = fleet.gpu(2)
    gpu.used, gpu.utilisation, gpu.power_w, gpu.temperature_c = 7_900_000_000, 88.0, 61.5, 66
    gpu.set_processes([SimProcess(300, 5 * GIB, 40.0), SimProcess(200, GIB, 3.0, kind="graphics")])
    sample = nvml.device_state(gpu.uuid)
    assert sample.memory == MemoryUse(
        total=gpu.total, used=7_900_000_000, free=gpu.total - 7_900_000_000, reserved=gpu.reserved
    )
    assert sample.utilisation == Utilisation(88.0, "rates")
    assert (sample.power_w, sample.temperature_c, sample.health) == (61.5, 66, "ok")
    assert sample.processes == (ProcessUse(200, GIB, 3.0), ProcessUse(300, 5 * GIB, 40.0))
    assert abs(sample.taken_us - time.time_ns() // 1000) < 60_000_000


def test_an_old_driver_has_memory_v1(fleet: Fleet, nvml: Nvml) -> None:
    fleet.set_driver("470.256.02")
    gpu = fleet.gpu(2)
    gpu.used = GIB
    memory = nvml.device_state(gpu.uuid).memory
    assert isinstance(memory, MemoryUse)
    assert memory.used == GIB + gpu.reserved
    assert memory.used + memory.free == memory.total
    assert isinstance(memory.reserved, NotAvailable)


def test_an_idle_device_has_true_zeros(fleet: Fleet, nvml: Nvml) -> None:
    sample = nvml.device_state(fleet.gpu(2).uuid)
    assert isinstance(sample.memory, MemoryUse) and sample.memory.used == 0
    assert sample.utilisation == Utilisation(0.0, "rates")
    assert sample.processes == ()


def test_a_slice_never_shows_the_card(fleet: Fleet, nvml: Nvml) -> None:
    card, mig = fleet.gpu(0), fleet.gpu(0).migs()[1]
    card.utilisation, card.power_w, mig.used = 99.0, 600.0, 3 * GIB
    card.migs()[0].used = 30 * GIB
    sample = nvml.device_state(mig.uuid)
    assert isinstance(sample.memory, MemoryUse)
    assert (sample.memory.total, sample.memory.used) == (mig.total, 3 * GIB)
    assert isinstance(sample.power_w, NotAvailable) and "card" in sample.power_w.reason
    assert isinstance(sample.temperature_c, NotAvailable)
    assert wait_for_gpm(nvml, mig.uuid) == Utilisation(0.0, "gpm")
    calls = {call.function for call in fleet.calls() if call.uuid == card.uuid}
    assert "nvmlDeviceGetPowerUsage" not in calls and "nvmlDeviceGetMemoryInfo_v2" not in calls


def test_without_details_the_slow_calls_are_not_made(fleet: Fleet, nvml: Nvml) -> None:
    mark = fleet.mark()
    sample = nvml.device_state(fleet.gpu(2).uuid, details=False)
    assert isinstance(sample.power_w, NotAvailable) and sample.power_w.reason == "not asked for"
    assert isinstance(sample.memory, MemoryUse)
    made = {call.function for call in fleet.calls(mark)}
    assert made <= {
        "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceIsMigDeviceHandle",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlGpmQueryDeviceSupport",
        "nvmlDeviceGetUtilizationRates",
    }


# -- utilisation -----------------------------------------------------------------------------------


def test_hopper_starts_with_rates_and_goes_on_with_gpm(fleet: Fleet, nvml: Nvml) -> None:
    gpu = fleet.gpu(3)
    gpu.utilisation = 41.7
    first = nvml.device_state(gpu.uuid).utilisation
    assert first == Utilisation(42.0, "rates")
    assert wait_for_gpm(nvml, gpu.uuid) == Utilisation(41.7, "gpm")


def test_a_hopper_slice_is_measured_by_gpm(fleet: Fleet, nvml: Nvml) -> None:
    mig = fleet.gpu(0).migs()[0]
    mig.utilisation = 73.5
    first = nvml.device_state(mig.uuid).utilisation
    assert isinstance(first, NotAvailable) and "next reading" in first.reason
    assert wait_for_gpm(nvml, mig.uuid) == Utilisation(73.5, "gpm")


def test_an_ampere_slice_is_not_measurable_and_says_so(fleet: Fleet, nvml: Nvml) -> None:
    card, mig = fleet.gpu(1), fleet.gpu(1).migs()[0]
    mig.utilisation = card.utilisation = 50.0
    for uuid, words in ((mig.uuid, "this GPU generation"), (card.uuid, "by its slices")):
        found = nvml.device_state(uuid).utilisation
        assert isinstance(found, NotAvailable) and words in found.reason


def test_rates_on_a_slice_are_taken_where_a_driver_has_them(fleet: Fleet, nvml: Nvml) -> None:
    fleet.gpu(1).mig_answers_rates = True
    mig = fleet.gpu(1).migs()[0]
    mig.utilisation = 50.0
    assert nvml.device_state(mig.uuid).utilisation == Utilisation(50.0, "rates")


def test_what_does_not_work_is_found_out_once(fleet: Fleet, nvml: Nvml) -> None:
    fleet.fail("nvmlGpmSampleGet", NvmlCode.NO_PERMISSION)
    fleet.fail("nvmlGpmMigSampleGet", NvmlCode.NO_PERMISSION)
    mig = fleet.gpu(0).migs()[0]
    for _ in range(2):
        found = nvml.device_state(mig.uuid).utilisation
        assert isinstance(found, NotAvailable) and found.reason == "not permitted here"
    mark = fleet.mark()
    nvml.device_state(mig.uuid)
    made = [call.function for call in fleet.calls(mark)]
    assert not [name for name in made if "Gpm" in name or "UtilizationRates" in name]
    fleet.heal()
    nvml.reopen()
    assert isinstance(wait_for_gpm(nvml, mig.uuid), Utilisation)


def test_no_number_is_not_a_zero(fleet: Fleet, nvml: Nvml) -> None:
    mig = fleet.gpu(0).migs()[0]
    mig.utilisation = float("nan")
    found = wait_for_gpm(nvml, mig.uuid)
    assert isinstance(found, NotAvailable) and "no number" in found.reason


def test_a_slice_made_anew_is_not_measured_against_the_old_one(fleet: Fleet, nvml: Nvml) -> None:
    card, old = fleet.gpu(0), fleet.gpu(0).migs()[0]
    old.utilisation = 90.0
    assert wait_for_gpm(nvml, old.uuid) == Utilisation(90.0, "gpm")
    uuid = old.uuid
    old.destroy()
    new = card.add_mig("3g.40gb", slot=0)
    assert new.uuid == uuid
    deadline = time.monotonic() + 30
    seen: list[object] = []
    while time.monotonic() < deadline:
        found = nvml.device_state(uuid, details=False).utilisation
        if found not in seen:
            seen.append(found)
        if found == Utilisation(0.0, "gpm"):
            break
        time.sleep(0.01)
    assert [value for value in seen if isinstance(value, NotAvailable)]
    assert seen[-1] == Utilisation(0.0, "gpm")


def test_gpm_samples_are_given_back(fleet: Fleet, nvml: Nvml) -> None:
    mark = fleet.mark()
    for uuid in (fleet.gpu(3).uuid, fleet.gpu(0).migs()[0].uuid):
        wait_for_gpm(nvml, uuid)
    nvml.close()
    made = [call.function for call in fleet.calls(mark)]
    assert made.count("nvmlGpmSampleAlloc") == made.count("nvmlGpmSampleFree") >= 4


# -- in a container --------------------------------------------------------------------------------


def test_a_container_with_one_slice(fleet: Fleet, look: Callable[..., Nvml]) -> None:
    mig = fleet.gpu(0).migs()[1]
    mig.used, mig.utilisation = 2 * GIB, 64.0
    nvml = look(view="mig-container", visible=[mig.uuid])
    card, own = nvml.devices()
    assert (card.kind, own.kind, own.uuid) == ("gpu", "mig", mig.uuid)
    assert isinstance(card.memory_total, NotAvailable)
    assert card.memory_total.reason == "not permitted here"
    assert own.memory_total == mig.total
    assert own.mig is not None and own.mig.profile == "1g.10gb"
    assert isinstance(own.mig.placement, NotAvailable)
    sample = nvml.device_state(own.uuid)
    assert isinstance(sample.memory, MemoryUse) and sample.memory.used == 2 * GIB
    assert wait_for_gpm(nvml, own.uuid) == Utilisation(64.0, "gpm")
    assert isinstance(nvml.device_state(card.uuid).memory, NotAvailable)


def test_processes_whose_memory_the_driver_hides(fleet: Fleet, look: Callable[..., Nvml]) -> None:
    gpu = fleet.gpu(2)
    gpu.set_processes([SimProcess(4711, GIB, 30.0, namespaced_pid=12)])
    fleet.set_pid_mode("namespaced")
    (process,) = _processes(
        look(view="shared-container", visible=[gpu.uuid]).device_state(gpu.uuid)
    )
    assert process.pid == 12
    assert isinstance(process.memory, NotAvailable)
    assert isinstance(process.sm_percent, NotAvailable)  # its sample is under another pid


def test_processes_without_memory_or_sample(fleet: Fleet, nvml: Nvml) -> None:
    gpu = fleet.gpu(2)
    gpu.set_processes([SimProcess(1, None, 5.0), SimProcess(2, GIB, None)])
    first, second = _processes(nvml.device_state(gpu.uuid))
    assert isinstance(first.memory, NotAvailable) and first.sm_percent == 5.0
    assert second.memory == GIB and isinstance(second.sm_percent, NotAvailable)


def test_drivers_that_list_processes_wrongly_are_not_believed(fleet: Fleet, nvml: Nvml) -> None:
    gpu = fleet.gpu(2)
    for driver, believed in (("535.86.10", False), ("535.183.01", True), ("550.54.15", True)):
        fleet.set_driver(driver)
        assert isinstance(nvml.device_state(gpu.uuid).processes, tuple) is believed


def _processes(sample: DeviceSample) -> tuple[ProcessUse, ...]:
    assert isinstance(sample.processes, tuple)
    return sample.processes


# -- cgroup limits ---------------------------------------------------------------------------------


def test_whether_cgroup_limits_can_be_held(fleet: Fleet, nvml: Nvml) -> None:
    gpu = fleet.gpu(2)
    old = nvml.can_cgroup_limits(gpu.uuid)
    assert not old and old.reason == "needs driver 615 or newer, this is 580.159.04"
    fleet.set_driver("615.21.03")
    assert nvml.can_cgroup_limits(gpu.uuid)
    for device, words in (
        (fleet.gpu(0).migs()[0], "MIG slices"),
        (fleet.gpu(0), "not supported"),  # a card in MIG mode
    ):
        refused = nvml.can_cgroup_limits(device.uuid)
        assert not refused and words in refused.reason
    gpu.fail("nvmlDeviceGetMemoryLimits_v1", NvmlCode.FUNCTION_NOT_FOUND)
    assert not nvml.can_cgroup_limits(gpu.uuid)
    gpu.lose()
    assert "lost" in nvml.can_cgroup_limits(gpu.uuid).reason


# -- any failure at all ----------------------------------------------------------------------------

CODES = (2, 3, 4, 6, 10, 13, 15, 16, 17, 999)


@pytest.mark.parametrize("function", layout.function_names())
def test_no_failing_call_makes_a_wrong_number(function: str, fleet: Fleet, nvml: Nvml) -> None:
    """Every value shown while one function fails is the true one; the rest has a reason."""
    for device in (fleet.gpu(2), fleet.gpu(0).migs()[0], fleet.gpu(3)):
        device.used, device.utilisation = 5 * GIB, 50.0
        device.set_processes([SimProcess(9, 4 * GIB, 25.0)])
    uuids = [device.uuid for device in nvml.devices()]
    for code in CODES:
        fleet.fail(function, code)
        nvml._forget()
        for _ in range(2):
            _check_listing(nvml, uuids)
            for uuid in uuids:
                _check_sample(nvml, fleet, uuid)
    fleet.heal()


def _check_listing(nvml: Nvml, uuids: list[str]) -> None:
    try:
        listing = nvml.listing()
    except NvmlUnavailable:
        return
    assert {device.uuid for device in listing.devices} <= set(uuids)
    assert 0 not in [device.memory_total for device in listing.devices]
    if len(listing.devices) < len(uuids) and not listing.unreadable:
        # Only slices may be missing without a note: NVML said "no MIG here" or "no such slice".
        assert [device.kind for device in listing.devices].count("gpu") == 4


def _check_sample(nvml: Nvml, fleet: Fleet, uuid: str) -> None:
    try:
        sample = nvml.device_state(uuid)
        nvml.can_cgroup_limits(uuid)
    except DeviceNotFound:
        return
    device = fleet.device(uuid)
    if isinstance(sample.memory, MemoryUse):
        assert sample.memory.total == device.total
        assert sample.memory.used % GIB in (0, device.reserved)
        assert sample.memory.used + sample.memory.free == sample.memory.total
    if isinstance(sample.utilisation, Utilisation):
        assert sample.utilisation.percent == device.utilisation
    assert sample.power_w != 0 and sample.temperature_c != 0
    for process in sample.processes if isinstance(sample.processes, tuple) else ():
        assert process.pid == 9 and process.memory == 4 * GIB
        assert process.sm_percent == 25.0 or isinstance(process.sm_percent, NotAvailable)
    assert (sample.health == "ok") is (sample.problem is None)


def test_many_threads(fleet: Fleet, nvml: Nvml) -> None:
    uuids = [device.uuid for device in nvml.devices()]
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(20):
                for uuid in uuids:
                    assert isinstance(nvml.device_state(uuid).memory, MemoryUse)
                assert len(nvml.devices()) == len(uuids)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_binding_has_what_we_reach_into_it_for() -> None:
    """A new nvidia-ml-py that renames these would break `Nvml.open(library)`."""
    assert hasattr(pynvml, "nvmlLib")
    assert isinstance(pynvml._nvmlGetFunctionPointer_cache, dict)
