"""What a server uses of its device, as the list tells it: its own, fresh, or honestly nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuslice import wire
from gpuslice.node.live import LocalServers
from gpuslice.node.procs import all_processes, descendants
from gpuslice.node.store import Store
from gpuslice.node.use import MAX_AGE_US, UseSampler
from gpuslice.wire import ServerState, SliceKind
from nvmlsim import Fleet, SimProcess
from realnode import Node, call, until
from simfleet import three_models

GIB = 1 << 30
MIB = 1 << 20
FOREVER = "import time; print('up', flush=True); time.sleep(600)"
#: A server whose work is done by a daemon of its own session, as some kernels' is.
WITH_DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("up", flush=True)
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""
#: Takes 400 MiB when a file appears.
INHALE = """
import os, time
held = None
print("up", flush=True)
while True:
    if os.path.exists("inhale") and held is None:
        held = b"x" * (400 << 20)
    time.sleep(0.05)
"""
HANDLE = "nvmlDeviceGetHandleByUUID"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with three_models(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def node(make_node: Callable[..., Node], tmp_path: Path, library: Path, fleet: Fleet) -> Node:
    """A node that reads the fleet and does not write it, as with real devices."""
    return make_node(tmp_path, "--nvml", str(library), env={"NVMLSIM_STATE": str(fleet.path)})


@pytest.fixture
def demo(make_node: Callable[..., Node], tmp_path: Path, library: Path, fleet: Fleet) -> Node:
    return make_node(tmp_path, "--nvml", str(library), "--demo", str(fleet.path))


def run(node: Node, uuid: str, kind: SliceKind, code: str = FOREVER, **more: object) -> str:
    piece = {"kind": kind, "device_uuid": uuid, "slice_type": "gpu", **more}
    lease = node.run(code, piece)
    node.said(lease, "up")
    return lease


def use_of(node: Node, lease: str) -> wire.Use | None:
    server = node.server(lease)
    assert server is not None
    return server.use


def numbers(node: Node, lease: str) -> tuple[int | None, int | None]:
    use = use_of(node, lease)
    return (use.memory_used_bytes, use.utilisation_percent) if use else (None, None)


def until_use(node: Node, lease: str, memory: int | None, percent: int | None) -> wire.Use:
    return until_fits(
        node,
        lease,
        lambda use: (use.memory_used_bytes, use.utilisation_percent) == (memory, percent),
        f"{memory} bytes and {percent} %",
    )


def until_reason(node: Node, lease: str, reason: str) -> wire.Use:
    return until_fits(node, lease, lambda use: reason in (use.reason or ""), repr(reason))


def until_fits(node: Node, lease: str, fits: Callable[[wire.Use], bool], what: str) -> wire.Use:
    last: wire.Use | None = None

    def look() -> wire.Use | None:
        nonlocal last
        last = use_of(node, lease)
        return last if last is not None and fits(last) else None

    try:
        return until(look, what)
    except AssertionError:
        raise AssertionError(f"never seen: {what}; the last was {last!r}") from None


def children(node: Node, lease: str) -> list[int]:
    record = node.dir(lease).read_record()
    assert record is not None
    return [p.pid for p in descendants(all_processes(), [record.supervisor_pid])]


def test_who_has_a_gpu_alone_sees_its_numbers(node: Node, fleet: Fleet) -> None:
    gpu, other = fleet.gpu(0), fleet.gpu(2)
    gpu.used, gpu.utilisation = 10 * GIB, 40
    other.used, other.utilisation = 3 * GIB, 99
    lease = run(node, gpu.uuid, SliceKind.EXCLUSIVE)
    first = until_use(node, lease, 10 * GIB, 40)
    assert first.reason is None
    gpu.used, gpu.utilisation = 11 * GIB, 100
    assert until_use(node, lease, 11 * GIB, 100).sampled_us > first.sampled_us
    assert call(node.client.server(lease)).use is not None
    call(node.client.stop(lease, 0))
    assert node.wait(lease, ServerState.EXITED).use is None


def test_a_gpu_that_one_has_alone_is_not_asked_for_what_is_slow(node: Node, fleet: Fleet) -> None:
    lease = run(node, fleet.gpu(0).uuid, SliceKind.EXCLUSIVE)
    until(lambda: use_of(node, lease), "a sample")
    called = {one.function for one in fleet.calls()}
    assert "nvmlDeviceGetMemoryInfo_v2" in called
    assert "nvmlDeviceGetPowerUsage" not in called
    assert "nvmlDeviceGetComputeRunningProcesses_v3" not in called


def test_a_mig_instance_shows_its_own_numbers_and_not_its_cards(node: Node, fleet: Fleet) -> None:
    card = fleet.gpu(1)
    mine, other = card.migs()[:2]
    card.utilisation = 77
    mine.used, mine.utilisation = 2 * GIB, 50
    other.used, other.utilisation = 5 * GIB, 88
    lease = run(node, mine.uuid, SliceKind.MIG)
    use = until_use(node, lease, 2 * GIB, None)
    assert use.reason == "no utilisation: not measurable on this GPU generation"
    card.mig_answers_rates = True
    node.restart()
    assert until_use(node, lease, 2 * GIB, 50).reason is None


def test_two_shares_of_a_device_see_their_own_only(node: Node, fleet: Fleet) -> None:
    card = fleet.gpu(2)
    card.used, card.utilisation = 20 * GIB, 95
    quarter = run(node, card.uuid, SliceKind.SHARED, code=WITH_DAEMON, share_milli=250)
    half = run(node, card.uuid, SliceKind.SHARED, share_milli=500)
    until(lambda: len(children(node, quarter)) == 2, "the server and its daemon")
    server, daemon = children(node, quarter)
    (neighbour,) = children(node, half)
    theirs = SimProcess(neighbour, 3 * GIB, utilisation=60)
    stranger = SimProcess(1, 4 * GIB, utilisation=20)
    card.set_processes(
        [
            SimProcess(server, GIB, utilisation=None),
            SimProcess(daemon, 2 * GIB, utilisation=10),
            theirs,
            stranger,
        ]
    )
    # 10 % of the card are 40 % of a quarter; 60 % of the card are more than a half is.
    assert until_use(node, quarter, 3 * GIB, 40).reason is None
    assert until_use(node, half, 3 * GIB, 100).reason is None
    card.set_processes([theirs, stranger])
    assert until_use(node, quarter, 0, 0).reason is None
    assert numbers(node, half) == (3 * GIB, 100)


def test_a_share_whose_numbers_the_driver_keeps_to_itself(node: Node, fleet: Fleet) -> None:
    card = fleet.gpu(2)
    lease = run(node, card.uuid, SliceKind.SHARED, share_milli=500)
    (pid,) = children(node, lease)
    card.set_processes([SimProcess(pid, None, utilisation=None), SimProcess(1, GIB, None)])
    use = until_reason(node, lease, "does not tell")
    assert (use.memory_used_bytes, use.utilisation_percent) == (None, None)
    assert (
        use.reason == "no memory: the driver does not tell here; "
        "no utilisation: no sample of this process"
    )
    # The neighbour's sample shows that the driver does tell: so ours computes nothing.
    card.set_processes([SimProcess(pid, GIB, utilisation=None), SimProcess(1, GIB, 30)])
    assert until_use(node, lease, GIB, 0).reason is None


def test_a_failing_call_is_no_number_and_a_reason(node: Node, fleet: Fleet) -> None:
    alone, card = fleet.gpu(0), fleet.gpu(2)
    alone.used, alone.utilisation = GIB, 10
    card.used = 2 * GIB
    lease = run(node, alone.uuid, SliceKind.EXCLUSIVE)
    share = run(node, card.uuid, SliceKind.SHARED, share_milli=500)
    until_use(node, lease, GIB, 10)
    until_use(node, share, 0, 0)
    fleet.fail("nvmlDeviceGetComputeRunningProcesses_v3", 999)
    use = until_use(node, share, None, None)
    assert (use.reason or "").startswith("no memory and no utilisation: NVML error 999")
    fleet.fail("nvmlDeviceGetMemoryInfo_v2", 999)
    assert "no memory: NVML error 999" in (until_use(node, lease, None, 10).reason or "")
    fleet.heal()
    until_use(node, lease, GIB, 10)
    until_use(node, share, 0, 0)
    alone.lose()
    assert "lost" in (until_use(node, lease, None, None).reason or "")
    alone.recover()
    until_use(node, lease, GIB, 10)


def test_a_driver_that_has_to_be_opened_anew_is(node: Node, fleet: Fleet) -> None:
    gpu = fleet.gpu(0)
    gpu.used, gpu.utilisation = GIB, 10
    lease = run(node, gpu.uuid, SliceKind.EXCLUSIVE)
    until_use(node, lease, GIB, 10)
    fleet.fail(HANDLE, 999)
    fleet.fail_init(9)
    until_reason(node, lease, "not loaded")
    assert numbers(node, lease) == (None, None)
    fleet.heal()
    fleet.fail_init(0)
    until_use(node, lease, GIB, 10)


def test_a_destroyed_instance_is_told(node: Node, fleet: Fleet) -> None:
    mig = fleet.gpu(1).migs()[0]
    lease = run(node, mig.uuid, SliceKind.MIG)
    until_reason(node, lease, "not measurable")
    mig.destroy()
    until_reason(node, lease, "the device is gone")


def test_a_hanging_nvml_holds_up_no_list(node: Node, fleet: Fleet) -> None:
    """A list that waited would run into the client's limit, long before the driver answers."""
    gpu = fleet.gpu(0)
    gpu.used, gpu.utilisation = GIB, 10
    lease = run(node, gpu.uuid, SliceKind.EXCLUSIVE)
    until_use(node, lease, GIB, 10)
    fleet.delay(HANDLE, 60)
    mark = fleet.mark()
    until(lambda: any(one.function == HANDLE for one in fleet.calls(mark)), "the sampler hangs")
    gpu.used = 2 * GIB
    before, again = use_of(node, lease), use_of(node, lease)
    assert before is not None
    assert before.memory_used_bytes == GIB
    assert again == before  # as old as it says
    # And a lease that was never sampled.
    late = node.run(FOREVER)
    assert node.wait(late, ServerState.RUNNING).use is None


def test_a_cpu_lease_uses_no_device(node: Node, fleet: Fleet) -> None:
    cpu = node.run(FOREVER)
    node.said(cpu, "up")
    lease = run(node, fleet.gpu(0).uuid, SliceKind.EXCLUSIVE)
    until(lambda: use_of(node, lease), "a sample of the other one")
    assert use_of(node, cpu) is None


def test_with_no_device_in_use_nvml_is_left_alone(node: Node, fleet: Fleet) -> None:
    cpu = node.run(FOREVER)
    node.said(cpu, "up")
    prepared = node.prepare(
        kind=SliceKind.EXCLUSIVE, device_uuid=fleet.gpu(0).uuid, slice_type="gpu"
    )
    sampler = UseSampler(LocalServers(Store(node.state)), Path("/no/such/library"))
    # It would be told that there is no such library.
    assert sampler.sample_once()
    assert sampler.of(cpu) is None
    assert sampler.of(prepared) is None


def test_an_old_sample_is_none(node: Node, fleet: Fleet) -> None:
    lease = run(node, fleet.gpu(0).uuid, SliceKind.EXCLUSIVE)
    now = [1_000]
    sampler = UseSampler(
        LocalServers(Store(node.state)), Path("/no/such/library"), clock=lambda: now[0]
    )
    assert not sampler.sample_once()
    use = sampler.of(lease)
    assert use is not None
    assert use.reason
    now[0] += MAX_AGE_US
    assert sampler.of(lease) == use
    now[0] += 1
    assert sampler.of(lease) is None


def test_in_a_demo_each_share_sees_what_its_own_server_does(demo: Node, fleet: Fleet) -> None:
    card = fleet.gpu(2)
    grows = run(demo, card.uuid, SliceKind.SHARED, code=INHALE, share_milli=500)
    busy = run(
        demo, card.uuid, SliceKind.SHARED, code="print('up', flush=True)\nwhile True: pass",
        share_milli=250,
    )  # fmt: skip
    (demo.folder / f"home of {grows}" / "inhale").touch()
    until(lambda: (numbers(demo, grows)[0] or 0) > 400 * MIB, "it grows")
    # Far from all of the processor is enough: the tests run on busy machines.
    until(lambda: (numbers(demo, busy)[1] or 0) > 10, "it is busy")
    assert 0 < (numbers(demo, busy)[0] or 0) < 300 * MIB
