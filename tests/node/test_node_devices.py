"""Devices as NVML tells them, what a lease is shown of them, and demo numbers that are true."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuslice import wire
from gpuslice.nodeclient import NodeRefused, NodeUnavailable
from gpuslice.wire import ServerState, SliceKind
from nvmlsim import Fleet, SimProcess
from realnode import Node, call, until
from simfleet import three_models

GIB = 1 << 30
MIB = 1 << 20
LOOK = """
import json, pynvml
pynvml.nvmlInit()
handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
print(json.dumps([pynvml.nvmlDeviceGetUUID(h) for h in handles]))
"""
#: Takes memory when a file appears, and gives it back when the file goes.
BREATHE = """
import os, time
held = None
print("up", flush=True)
while True:
    if os.path.exists("inhale") and held is None:
        held = b"x" * (400 << 20)
    elif not os.path.exists("inhale"):
        held = None
    time.sleep(0.05)
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with three_models(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def demo(make_node: Callable[..., Node], tmp_path: Path, library: Path, fleet: Fleet) -> Node:
    return make_node(tmp_path, "--nvml", str(library), "--demo", str(fleet.path))


@pytest.fixture
def plain(make_node: Callable[..., Node], tmp_path: Path, library: Path, fleet: Fleet) -> Node:
    """A node that reads the fleet and does not write it, as with real devices."""
    return make_node(tmp_path, "--nvml", str(library), env={"NVMLSIM_STATE": str(fleet.path)})


def inventory(node: Node) -> wire.Inventory:
    return call(node.client.inventory())


def device(node: Node, uuid: str) -> wire.DeviceReport:
    return next(device for device in inventory(node).devices if device.uuid == uuid)


def piece(uuid: str, kind: SliceKind = SliceKind.EXCLUSIVE, **more: object) -> dict[str, object]:
    return {"kind": kind, "device_uuid": uuid, "slice_type": "gpu", **more}


def test_without_nvml_there_are_no_devices_and_one_sentence(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node(tmp_path, "--nvml", str(tmp_path / "no-such-library.so"))
    found = inventory(node)
    assert found.devices == []
    assert found.gpu_problem
    assert not found.simulated
    assert found.host.cpu_milli >= 1000
    assert found.host.ram_bytes > 1 << 28
    lease = node.run("print('works without a GPU')")
    assert node.wait(lease, ServerState.EXITED).exit_code == 0
    with pytest.raises(NodeRefused) as refused:
        node.prepare(**piece("GPU-1"))
    assert refused.value.reason == "device-unavailable"


def test_the_inventory_is_the_fleet(demo: Node, fleet: Fleet) -> None:
    found = inventory(demo)
    assert found.simulated
    assert found.gpu_problem is None
    assert found.driver_version
    assert found.enforcement_ceiling is wire.Enforcement.ADVISORY
    expected = {}
    for gpu in fleet.gpus():
        expected[gpu.uuid] = ("gpu", gpu.total, None, None, None, gpu.mig_enabled)
        for mig in gpu.migs():
            expected[mig.uuid] = ("mig", mig.total, gpu.uuid, mig.profile, mig.slot, False)
    assert expected == {
        d.uuid: (d.kind, d.memory_bytes, d.parent_uuid, d.mig_profile, d.mig_start, d.mig_enabled)
        for d in found.devices
    }
    assert all(d.healthy and d.simulated for d in found.devices)


def test_a_gpu_that_fell_off_the_bus_is_sick_and_not_prepared(plain: Node, fleet: Fleet) -> None:
    lost, well = fleet.gpu(0), fleet.gpu(2)
    assert device(plain, lost.uuid).healthy
    lost.lose()
    sick = device(plain, lost.uuid)
    assert not sick.healthy
    assert "lost" in (sick.health_reason or "")
    assert sick.memory_used_bytes is None
    assert device(plain, well.uuid).healthy
    with pytest.raises(NodeRefused) as refused:
        plain.prepare(**piece(lost.uuid))
    assert refused.value.reason == "device-unavailable"
    with pytest.raises(NodeRefused):
        plain.prepare(**piece("GPU-of-another-machine"))
    with pytest.raises(NodeRefused, match="MIG mode"):
        plain.prepare(**piece(fleet.gpu(1).uuid))


def test_an_nvml_that_fails_is_told_and_tried_again(plain: Node, fleet: Fleet) -> None:
    assert inventory(plain).devices
    fleet.fail("nvmlDeviceGetCount_v2", 999)
    found = inventory(plain)
    assert found.devices == []
    assert found.gpu_problem
    fleet.heal()
    until(lambda: inventory(plain).devices, "the devices come back")


def test_a_hanging_nvml_blocks_nothing_else(plain: Node, fleet: Fleet) -> None:
    lease = plain.run("import time; time.sleep(600)")
    plain.wait(lease, ServerState.RUNNING)
    fleet.delay("nvmlDeviceGetCount_v2", 60)
    found = inventory(plain)
    assert found.devices == []
    assert "not answered" in (found.gpu_problem or "")
    before = time.monotonic()
    assert plain.server(lease).state is ServerState.RUNNING
    call(plain.client.stop(lease, 0))
    plain.wait(lease, ServerState.EXITED)
    assert call(plain.client.release(lease)).clean
    assert time.monotonic() - before < 30, "the list waited for NVML"


def test_a_lease_is_shown_its_device_and_no_other(demo: Node, fleet: Fleet) -> None:
    gpu = fleet.gpu(0)
    lease = demo.run(LOOK, piece(gpu.uuid), env=_python_env())
    assert demo.wait(lease, ServerState.EXITED).exit_code == 0
    assert json.loads(call(demo.client.log_tail(lease))) == [gpu.uuid]
    none = demo.run(LOOK, env=_python_env())
    assert demo.wait(none, ServerState.EXITED).exit_code == 0
    assert json.loads(call(demo.client.log_tail(none))) == []


def _python_env() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": "/kept", "PYTHONPATH": sys.path[-1]}


def test_the_library_path_of_the_user_is_kept_behind_ours(demo: Node, library: Path) -> None:
    lease = demo.run("import os; print(os.environ['LD_LIBRARY_PATH'])", env=_python_env())
    demo.wait(lease, ServerState.EXITED)
    assert call(demo.client.log_tail(lease)).strip() == f"{library.parent}:/kept"


@pytest.mark.parametrize("which", ["gpu", "mig"])
def test_demo_numbers_follow_what_the_server_does(demo: Node, fleet: Fleet, which: str) -> None:
    uuid = fleet.gpu(0).uuid if which == "gpu" else fleet.gpu(1).migs()[0].uuid
    kind = SliceKind.SHARED if which == "gpu" else SliceKind.MIG
    lease = demo.run(BREATHE, piece(uuid, kind))
    demo.said(lease, "up")
    home = demo.folder / f"home of {lease}"
    until(lambda: 0 < (device(demo, uuid).memory_used_bytes or 0) < 300 * MIB, "idle memory")
    (home / "inhale").touch()
    until(lambda: (device(demo, uuid).memory_used_bytes or 0) > 400 * MIB, "it grows")
    record = demo.dir(lease).read_record()
    assert record is not None
    pids = [p.pid for p in fleet.state().process[: fleet.state().process_count]]
    assert record.child_pid in pids
    assert record.supervisor_pid not in pids
    (home / "inhale").unlink()
    until(lambda: (device(demo, uuid).memory_used_bytes or 0) < 300 * MIB, "it shrinks")
    call(demo.client.stop(lease, 0))
    demo.wait(lease, ServerState.EXITED)
    assert call(demo.client.release(lease)) == wire.ReleaseResult(clean=True)
    assert device(demo, uuid).memory_used_bytes == 0
    others = [d for d in inventory(demo).devices if d.uuid != uuid]
    assert {d.memory_used_bytes for d in others if d.kind == "gpu" and not d.mig_enabled} == {0}


def test_demo_use_follows_the_processor_and_the_share(demo: Node, fleet: Fleet) -> None:
    uuid = fleet.gpu(2).uuid
    busy = demo.run("while True: pass", piece(uuid, SliceKind.SHARED, share_milli=250))
    until(lambda: fleet.device(uuid).utilisation > 5, "it is busy")
    assert fleet.device(uuid).utilisation <= 25
    call(demo.client.stop(busy, 0))
    demo.wait(busy, ServerState.EXITED)
    until(lambda: fleet.device(uuid).utilisation == 0, "it is idle")


def test_a_device_that_still_has_a_process_of_the_lease_is_not_clean(
    plain: Node, fleet: Fleet
) -> None:
    gpu = fleet.gpu(0)
    lease = plain.run("import time; print('up', flush=True); time.sleep(600)", piece(gpu.uuid))
    plain.said(lease, "up")
    pid = plain.dir(lease).read_record().child_pid
    # The driver goes on to list it after its end, and somebody who has nothing to do with it.
    gpu.set_processes([SimProcess(pid, GIB), SimProcess(1, GIB)])
    call(plain.client.stop(lease, 0))
    plain.wait(lease, ServerState.EXITED)
    result = call(plain.client.release(lease))
    assert not result.clean
    assert str(pid) in (result.reason or "")
    assert not plain.dir(lease).path.exists()
    # Asked again, also by a service that lost the answer: the same.
    plain.restart()
    gpu.set_processes([])
    assert call(plain.client.release(lease)) == result


def test_a_device_is_looked_at_whoever_is_on_it(plain: Node, fleet: Fleet) -> None:
    """For somebody who wants it out of quarantine; nobody holds it then."""
    gpu = fleet.gpu(0)
    assert call(plain.client.look(gpu.uuid)) == wire.DeviceCheck(problem=None)
    gpu.set_processes([SimProcess(1, GIB)])
    assert call(plain.client.look(gpu.uuid)).problem == "processes are on it: [1]"
    gpu.set_processes([])
    assert "does not see" in (call(plain.client.look("GPU-no/such & one")).problem or "")
    gpu.lose()
    assert "not well" in (call(plain.client.look(gpu.uuid)).problem or "")
    with pytest.raises(NodeRefused) as refused:
        call(plain.client._call(plain.client._control, "GET", "/v1/device"))
    assert refused.value.status == 400
    fleet.delay("nvmlDeviceGetHandleByUUID", 60)
    with pytest.raises(NodeUnavailable) as silent:
        call(plain.client.look(fleet.gpu(1).uuid))
    assert silent.value.reason == "device-unknown"


def test_a_device_that_cannot_be_asked_is_not_given_back(plain: Node, fleet: Fleet) -> None:
    gpu = fleet.gpu(0)
    lease = plain.run("print('done')", piece(gpu.uuid))
    plain.wait(lease, ServerState.EXITED)
    fleet.delay("nvmlDeviceGetHandleByUUID", 60)
    with pytest.raises(NodeRefused) as refused:
        call(plain.client.release(lease))
    assert refused.value.reason == "device-unknown"
    assert plain.server(lease).state is ServerState.EXITED
