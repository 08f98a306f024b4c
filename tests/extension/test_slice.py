"""What is mine: own device, own part of a shared one, and a reason where it cannot be told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuslice import wire
from gpuslice.nvml import DeviceInfo, NotAvailable, Nvml, NvmlUnavailable
from gpuslice.units import GIB, now_us
from jupyterlab_gpuslice import slice as part
from jupyterlab_gpuslice.budget import Bill, bill_of
from jupyterlab_gpuslice.slice import Kind, Meter, own_device, own_processes
from notebookworld import a_lease, a_me
from nvmlsim import Fleet, SimProcess

Make = Callable[..., Meter]


@pytest.fixture
def make(fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A meter that sees the simulated fleet as on a host."""
    for name, value in fleet.environment(library).items():
        monkeypatch.setenv(name, value)

    def meter(
        environment: dict[str, str] | None = None, bill: Bill | None = None, **more: object
    ) -> Meter:
        options: dict[str, object] = {
            "behind_hub": bill is not None, "open_nvml": lambda: Nvml.open(library), **more
        }  # fmt: skip
        return Meter(environment or {}, lambda: bill, **options)  # type: ignore[arg-type]

    return meter


def _bill(**changes: object) -> Bill:
    bill = bill_of(a_me(a_lease(**changes)), now_us())
    assert bill is not None
    return bill


def _shared(fleet: Fleet, **changes: object) -> Bill:
    return _bill(
        kind=wire.SliceKind.SHARED, device_uuid=fleet.gpu(0).uuid, share_milli=250,
        memory_bytes=20 * GIB, **changes,
    )  # fmt: skip


def _proc(folder: Path, *processes: tuple[int, int, int], namespace: str | None = None) -> Path:
    """A /proc of (pid, parent, session)."""
    for pid, parent, session in processes:
        (folder / str(pid)).mkdir(parents=True)
        (folder / str(pid) / "stat").write_text(f"{pid} (a (b) c) S {parent} 1 {session} 0 0")
    if namespace:
        (folder / "self/ns").mkdir(parents=True)
        (folder / "self/ns/pid").symlink_to(namespace)
    return folder


# --------------------------------------------------------------------------------- which device


def test_alone_on_a_workstation_it_is_the_first_gpu_and_all_of_it(fleet: Fleet, make: Make) -> None:
    fleet.gpu(0).used = 6 * GIB
    fleet.gpu(0).utilisation = 40
    meter = make()
    seen = meter.read()
    assert (seen.device.kind, seen.device.label) == (Kind.WHOLE, "GPU 0")
    assert seen.memory_used == 6 * GIB
    assert seen.device.memory_total == fleet.gpu(0).total
    assert seen.device.simulated
    assert seen.cost_u is None and seen.problem is None
    meter.close()


def test_a_mig_slice_shows_its_own_numbers(fleet: Fleet, make: Make) -> None:
    mig = fleet.gpu(1).migs()[2]
    mig.used = GIB
    fleet.gpu(1).migs()[0].used = 30 * GIB
    seen = make({"CUDA_VISIBLE_DEVICES": mig.uuid}).read()
    assert (seen.device.kind, seen.device.label) == (Kind.MIG, "MIG 1g.10gb")
    assert seen.memory_used == GIB
    assert seen.device.memory_total == mig.total
    # An A100 cannot measure this; it must not become 0.
    assert isinstance(seen.utilisation, NotAvailable)


def _gpu(index: int, uuid: str, *, mig: bool = False) -> DeviceInfo:
    return DeviceInfo(uuid, "gpu", index, "a model", GIB, (9, 0), mig_enabled=mig)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "GPU-bb"),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, "GPU-bb"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bc"}, "GPU-bc"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bc", "NVIDIA_VISIBLE_DEVICES": "void"}, "GPU-bc"),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-aa"}, "GPU-aa"),
        ({"CUDA_VISIBLE_DEVICES": "2,1"}, "GPU-bc"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b"}, part.NOT_VISIBLE),
        ({"CUDA_VISIBLE_DEVICES": "GPU-zz"}, part.NOT_VISIBLE),
        ({"CUDA_VISIBLE_DEVICES": "7"}, part.NOT_VISIBLE),
        ({"CUDA_VISIBLE_DEVICES": ""}, part.NO_DEVICE),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, part.NO_DEVICE),
        ({"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "GPU-aa"}, part.NO_DEVICE),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, part.NO_DEVICE),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, part.NO_DEVICE),
    ],
    ids=str,
)
def test_the_environment_names_the_device(environment: dict[str, str], expected: str) -> None:
    devices = [_gpu(0, "GPU-aa", mig=True), _gpu(1, "GPU-bb"), _gpu(2, "GPU-bc")]
    found = own_device(devices, environment)
    assert (found if isinstance(found, str) else found.uuid) == expected


def test_the_service_says_the_device_and_not_the_environment(fleet: Fleet, make: Make) -> None:
    fleet.gpu(2).used = 3 * GIB
    bill = _bill(device_uuid=fleet.gpu(2).uuid)
    seen = make({"CUDA_VISIBLE_DEVICES": fleet.gpu(0).uuid}, bill).read()
    assert seen.memory_used == 3 * GIB
    assert seen.device.label == "A whole GPU"


def test_no_gpu_and_no_library_is_a_sentence_and_is_tried_again(make: Make) -> None:
    now = [0.0]
    tries: list[float] = []

    def refuse() -> Nvml:
        tries.append(now[0])
        raise NvmlUnavailable("driver not loaded", "The GPU driver is not loaded.")

    meter = make(open_nvml=refuse, clock=lambda: now[0])
    for now[0] in (0.0, 1.0, 2.0, part.REOPEN_S + 1):
        seen = meter.read()
    assert tries == [0.0, part.REOPEN_S + 1]
    assert seen.problem == "The GPU driver is not loaded."
    assert isinstance(seen.memory_used, NotAvailable)
    assert seen.device.kind is Kind.NONE


def test_a_cpu_slice_has_a_cost_and_no_gpu(make: Make) -> None:
    seen = make({}, _bill(kind=wire.SliceKind.CPU, title="No GPU")).read()
    assert seen.problem == part.CPU_SLICE
    assert seen.cost_u is not None and seen.cost_u >= 50_000


def test_a_gpu_that_falls_off_the_bus_is_said_and_is_not_zero(fleet: Fleet, make: Make) -> None:
    meter = make()
    meter.read()
    fleet.gpu(0).lose()
    seen = meter.read()
    assert isinstance(seen.memory_used, NotAvailable)
    assert seen.problem is not None


# ------------------------------------------------------------------------------------ my part


def test_of_a_shared_gpu_only_the_own_processes_count(fleet: Fleet, make: Make) -> None:
    gpu = fleet.gpu(0)
    gpu.used, gpu.utilisation = 60 * GIB, 95
    gpu.set_processes(
        [SimProcess(os.getpid(), 2 * GIB, utilisation=10), SimProcess(1, 50 * GIB, utilisation=80)]
    )
    seen = make({}, _shared(fleet)).read()
    assert seen.device.kind is Kind.SHARED
    assert seen.memory_used == 2 * GIB
    assert seen.utilisation == 40  # 10 % of the card is 40 % of a quarter
    assert seen.device.memory_total == 20 * GIB


def test_own_processes_that_cannot_be_told_leave_the_nodes_number(
    fleet: Fleet, make: Make, tmp_path: Path
) -> None:
    fleet.gpu(0).used = 60 * GIB
    fleet.gpu(0).set_processes([SimProcess(99_999, 60 * GIB)])
    proc = _proc(tmp_path / "proc", (5, 1, 5), namespace="pid:[4026532999]")
    use = wire.Use(sampled_us=now_us(), memory_used_bytes=3 * GIB, utilisation_percent=7)
    seen = make({}, _shared(fleet, use=use), proc=proc, root_pid=5).read()
    assert (seen.memory_used, seen.utilisation) == (3 * GIB, 7)


def test_without_any_of_both_there_is_a_reason_and_no_number(
    fleet: Fleet, make: Make, tmp_path: Path
) -> None:
    fleet.gpu(0).used = 60 * GIB
    fleet.gpu(0).set_processes([SimProcess(99_999, 60 * GIB)])
    proc = _proc(tmp_path / "proc", (5, 1, 5), namespace="pid:[4026532999]")
    old = wire.Use(sampled_us=now_us() - 2 * part.USE_FRESH_US, memory_used_bytes=3 * GIB)
    seen = make({}, _shared(fleet, use=old), proc=proc, root_pid=5).read()
    assert seen.memory_used == seen.utilisation == NotAvailable(part.WHOSE)


def test_with_the_machines_own_pids_nothing_listed_is_zero(
    fleet: Fleet, make: Make, tmp_path: Path
) -> None:
    fleet.gpu(0).used = 60 * GIB
    fleet.gpu(0).set_processes([SimProcess(99_999, 60 * GIB)])
    proc = _proc(tmp_path / "proc", (5, 1, 5), namespace="pid:[4026531836]")
    seen = make({}, _shared(fleet), proc=proc, root_pid=5).read()
    assert (seen.memory_used, seen.utilisation) == (0, 0)


def test_before_the_service_has_answered_the_cards_numbers_are_not_shown(
    fleet: Fleet, make: Make, tmp_path: Path
) -> None:
    fleet.gpu(0).used = 60 * GIB
    fleet.gpu(0).set_processes([SimProcess(99_999, 60 * GIB)])
    proc = _proc(tmp_path / "proc", (5, 1, 5), namespace="pid:[4026532999]")
    environment = {"GPUSLICE_SLICE": "quarter", "CUDA_VISIBLE_DEVICES": fleet.gpu(0).uuid}
    seen = make(environment, behind_hub=True, proc=proc, root_pid=5).read()
    assert seen.device.kind is Kind.UNKNOWN
    assert seen.device.label == "quarter"
    assert seen.device.memory_total is None
    assert seen.memory_used == NotAvailable(part.NOT_YET)


def test_what_kind_it_was_is_remembered_but_a_cost_is_not(fleet: Fleet, make: Make) -> None:
    bills: list[Bill | None] = [_bill(device_uuid=fleet.gpu(2).uuid), None]
    meter = make({}, behind_hub=True)
    meter._bill = lambda: bills.pop(0)
    assert meter.read().cost_u is not None
    after = meter.read()
    assert after.device.kind is Kind.WHOLE
    assert after.cost_u is None


def test_own_processes_are_the_tree_and_the_session(tmp_path: Path) -> None:
    proc = _proc(
        tmp_path / "proc",
        (1, 0, 1), (10, 1, 10), (11, 10, 11), (12, 11, 12), (13, 1, 10), (20, 1, 20), (21, 20, 20),
    )  # fmt: skip
    (proc / "version").write_text("not a process")
    assert own_processes(10, proc) == {10, 11, 12, 13}


def test_no_session_of_its_own_is_not_everybodys(tmp_path: Path) -> None:
    # Session 0: a server that was started from outside its pid namespace, beside init itself.
    proc = _proc(tmp_path / "proc", (1, 0, 0), (2, 0, 0), (10, 1, 0), (11, 10, 0), (20, 1, 0))
    assert own_processes(10, proc) == {10, 11}
