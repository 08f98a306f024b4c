"""Placing single slices: what fits where, which place is chosen, and which reason is given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuslice.fleet import SliceType
from gpuslice.placement import (
    Claim,
    DeviceSnapshot,
    FleetSnapshot,
    HostSnapshot,
    MigInstance,
    NoPlace,
    Placement,
    capacity,
    host_overlaps,
    overlaps,
    place,
)
from gpuslice.units import GIB
from gpuslice.wire import DeviceState, Enforcement, SliceKind

H100, L4, A30 = "NVIDIA H100 80GB HBM3", "NVIDIA L4", "NVIDIA A30"
CEILINGS = {"n1": Enforcement.EXCLUSIVE, "n2": Enforcement.EXCLUSIVE}


def offering(kind: SliceKind, **more) -> SliceType:
    fields = {
        "name": kind.value, "title": "", "kind": kind, "model": None, "memory_bytes": None,
        "share_milli": None, "mig_profile": None, "cpu_milli": 0, "ram_bytes": GIB,
        "rate_u_per_hour": 0, "minimum_enforcement": Enforcement.WATCHDOG,
    }  # fmt: skip
    return SliceType(**(fields | more))


WHOLE = offering(SliceKind.EXCLUSIVE)
HALF = offering(SliceKind.SHARED, share_milli=500)
QUARTER = offering(SliceKind.SHARED, share_milli=250)
TEN_GIB = offering(SliceKind.SHARED, memory_bytes=10 * GIB)
ONE_G = offering(SliceKind.MIG, mig_profile="1g.10gb")
THREE_G = offering(SliceKind.MIG, mig_profile="3g.40gb")
CPU = offering(SliceKind.CPU)


def device(uuid: str = "GPU-1", memory: int | None = 80 * GIB, **more) -> DeviceSnapshot:
    fields = {
        "node_id": "n1", "model": H100, "state": DeviceState.OK, "version": 7,
        "share_enforcement": Enforcement.CGROUP,
    }  # fmt: skip
    return DeviceSnapshot(uuid=uuid, memory_bytes=memory, **(fields | more))


def host(node_id: str = "n1", **more) -> HostSnapshot:
    fields = {"cpu_milli": 8000, "ram_bytes": 33 * GIB, "reserve_ram": GIB, "version": 3}
    return HostSnapshot(node_id=node_id, **(fields | more))


def mig_gpu(*instances: MigInstance, claims: tuple[Claim, ...] = (), **more) -> DeviceSnapshot:
    return device(mig_enabled=True, instances=instances, claims=claims, **more)


def ones(*starts: int) -> tuple[MigInstance, ...]:
    return tuple(MigInstance(f"MIG-{s}", "1g.10gb", s, 1, 1, 10 * GIB) for s in starts)


def three(start: int, **more) -> MigInstance:
    return replace(MigInstance(f"MIG-3-{start}", "3g.40gb", start, 4, 3, 40 * GIB), **more)


def claim_on(instance: MigInstance, lease: str = "a") -> Claim:
    return Claim(lease, mig_uuid=instance.uuid, mig_start=instance.start, mig_size=instance.size)


def put(kind: SliceType, *parts: DeviceSnapshot | HostSnapshot, reserve: int = GIB):
    hosts = tuple(part for part in parts if isinstance(part, HostSnapshot)) or (host(),)
    devices = tuple(part for part in parts if isinstance(part, DeviceSnapshot))
    return place(
        FleetSnapshot(hosts, devices), kind, reserve_bytes=reserve, ceilings=CEILINGS, lease_id="x"
    )


def where(found: Placement | NoPlace) -> str | None:
    return found.leased_uuid if isinstance(found, Placement) else found.reason


# --- one device -----------------------------------------------------------------------------


def test_a_placement_names_all_that_the_grant_needs() -> None:
    found = put(replace(TEN_GIB, cpu_milli=500), device(share_enforcement=Enforcement.CGROUP))
    assert found == Placement(
        node_id="n1",
        device_uuid="GPU-1",
        mig_uuid=None,
        device_version=7,
        host_version=3,
        device_claim=Claim("x", memory_bytes=10 * GIB),
        host_claim=Claim("x", cpu_milli=500, ram_bytes=GIB),
        enforcement=Enforcement.CGROUP,
    )


def test_a_cpu_slice_claims_the_host_alone() -> None:
    found = put(CPU, device())
    assert isinstance(found, Placement)
    assert (found.device_uuid, found.device_version, found.device_claim) == (None, None, None)
    assert found.host_claim == Claim("x", ram_bytes=GIB)


@pytest.mark.parametrize("state", [s for s in DeviceState if s is not DeviceState.OK])
@pytest.mark.parametrize("kind", [WHOLE, QUARTER])
def test_only_an_ok_device_is_granted(state: DeviceState, kind: SliceType) -> None:
    assert where(put(kind, device(state=state))) == "devices-sick"
    assert where(put(ONE_G, mig_gpu(*ones(0), state=state))) == "devices-sick"
    assert where(put(kind, device(), host(state=state))) == "host-down"
    assert where(put(CPU, host(state=state))) == "host-down"


@pytest.mark.parametrize(
    "claim",
    [
        Claim("a", whole=True, memory_bytes=80 * GIB),
        Claim("a", memory_bytes=1),
        Claim("a", mig_uuid="MIG-9", mig_start=6, mig_size=1),
    ],
)
def test_whole_needs_an_untouched_device(claim: Claim) -> None:
    assert where(put(WHOLE, device())) == "GPU-1"
    assert where(put(WHOLE, device(claims=(claim,)))) == "gpu-full"


def test_claims_of_different_kinds_exclude_each_other() -> None:
    whole = Claim("a", whole=True)
    shared = Claim("a", memory_bytes=GIB)
    on_mig = Claim("a", mig_uuid="MIG-9", mig_start=6, mig_size=1)
    assert where(put(TEN_GIB, device(claims=(whole,)))) == "gpu-full"
    assert where(put(TEN_GIB, device(claims=(on_mig,)))) == "gpu-full"
    assert where(put(TEN_GIB, device(claims=(shared,)))) == "GPU-1"
    assert where(put(ONE_G, mig_gpu(*ones(0), claims=(whole,)))) == "gpu-full"
    assert where(put(ONE_G, mig_gpu(*ones(0), claims=(shared,)))) == "gpu-full"


def test_shared_memory_stops_at_the_reserve_exactly() -> None:
    used = Claim("a", memory_bytes=69 * GIB)
    assert where(put(TEN_GIB, device(claims=(used,)))) == "GPU-1"
    over = Claim("a", memory_bytes=69 * GIB + 1)
    assert where(put(TEN_GIB, device(claims=(over,)))) == "gpu-full"
    assert where(put(TEN_GIB, device(memory=11 * GIB))) == "GPU-1"
    assert where(put(TEN_GIB, device(memory=11 * GIB - 1))) == "slice-too-large"


def test_shares_stop_at_a_thousand() -> None:
    kind = offering(SliceKind.SHARED, memory_bytes=GIB, share_milli=250)
    assert where(put(kind, device(claims=(Claim("a", memory_bytes=GIB, share_milli=750),))))
    full = Claim("a", memory_bytes=GIB, share_milli=751)
    assert where(put(kind, device(claims=(full,)))) == "gpu-full"


def test_a_share_needs_its_cap_held() -> None:
    weak = device(share_enforcement=Enforcement.ADVISORY)
    assert where(put(QUARTER, weak)) == "enforcement-too-low"
    assert where(put(WHOLE, weak)) == "GPU-1"
    assert where(put(QUARTER, replace(weak, simulated=True))) == "GPU-1"
    lowered = replace(QUARTER, minimum_enforcement=Enforcement.ADVISORY)
    assert where(put(lowered, weak)) == "GPU-1"
    fleet = FleetSnapshot((host(),), (device(),))
    # A node whose ceiling nobody stated can hold nothing.
    found = place(fleet, QUARTER, reserve_bytes=0, ceilings={})
    assert where(found) == "enforcement-too-low"
    found = place(fleet, WHOLE, reserve_bytes=0, ceilings={})
    assert isinstance(found, Placement) and found.enforcement is Enforcement.ADVISORY


def test_a_device_of_unknown_memory_is_whole_or_nothing() -> None:
    assert where(put(QUARTER, device(memory=None))) == "memory-unknown"
    assert where(put(WHOLE, device(memory=None))) == "GPU-1"


def test_a_gpu_in_mig_mode_is_only_its_instances() -> None:
    gpu = mig_gpu(*ones(0))
    assert where(put(WHOLE, gpu)) == "no-such-device"
    assert where(put(QUARTER, gpu)) == "no-such-device"
    assert where(put(ONE_G, gpu)) == "MIG-0"
    assert where(put(ONE_G, replace(gpu, mig_enabled=False))) == "no-such-device"
    assert where(put(THREE_G, gpu)) == "no-such-device"


def test_a_model_that_does_not_suit() -> None:
    assert where(put(replace(WHOLE, model="A100"), device())) == "no-such-device"
    assert where(put(replace(WHOLE, model="h100"), device())) == "GPU-1"
    assert where(put(replace(WHOLE, model="NVIDIA H100", model_exact=True), device())) == (
        "no-such-device"
    )


# --- MIG ------------------------------------------------------------------------------------


def test_a_mig_claim_is_on_the_parent_with_its_slots() -> None:
    found = put(THREE_G, mig_gpu(three(4)))
    assert isinstance(found, Placement)
    assert (found.device_uuid, found.mig_uuid, found.device_version) == ("GPU-1", "MIG-3-4", 7)
    assert found.device_claim == Claim(
        "x", memory_bytes=40 * GIB, mig_uuid="MIG-3-4", mig_start=4, mig_size=4
    )
    assert found.enforcement is Enforcement.MIG


def test_a_claimed_instance_is_taken_even_without_slots() -> None:
    bare = tuple(replace(i, start=None, size=None) for i in ones(0, 1))
    gpu = mig_gpu(*bare, claims=(Claim("a", mig_uuid="MIG-0"),))
    assert where(put(ONE_G, gpu)) == "MIG-1"
    # A claim whose instance is gone may be anywhere: nothing is granted beside it.
    assert where(put(ONE_G, replace(gpu, claims=(Claim("a", mig_uuid="MIG-77"),)))) == "gpu-full"


@pytest.mark.parametrize(
    ("start", "size", "free"),
    [(3, 1, True), (4, 1, False), (7, 1, False), (0, 4, True), (0, 5, False), (2, 2, True)],
)
def test_slots_that_touch_do_not_overlap(start: int, size: int, free: bool) -> None:
    gone = Claim("a", mig_uuid="MIG-gone", mig_start=start, mig_size=size)
    found = where(put(THREE_G, mig_gpu(three(4), claims=(gone,))))
    assert found == ("MIG-3-4" if free else "gpu-full")


def test_the_compute_budget_counts() -> None:
    # 3g + 3g leave one of 7 compute slices, and no memory slot, but a listing may be stale.
    gone = Claim("a", mig_uuid="MIG-gone", mig_start=0, mig_size=4)
    four = MigInstance("MIG-4", "4g.40gb", 4, 4, 4, 40 * GIB)
    four_g = offering(SliceKind.MIG, mig_profile="4g.40gb")
    assert where(put(THREE_G, mig_gpu(three(4), claims=(gone,)))) == "MIG-3-4"
    assert where(put(four_g, mig_gpu(four, claims=(gone,)))) == "gpu-full"
    # An A30 has 4 compute slices in all.
    small = replace(three(0), size=2)
    taken = Claim("a", mig_uuid="MIG-gone", mig_start=2, mig_size=2)
    on_a30 = replace(mig_gpu(small, claims=(taken,)), model=A30)
    assert where(put(THREE_G, on_a30)) == "gpu-full"


@pytest.mark.parametrize("state", [s for s in DeviceState if s is not DeviceState.OK])
def test_a_sick_instance_is_not_granted(state: DeviceState) -> None:
    low, high = ones(0, 6)
    assert where(put(ONE_G, mig_gpu(low, high))) == "MIG-6"
    assert where(put(ONE_G, mig_gpu(low, replace(high, state=state)))) == "MIG-0"
    assert where(put(ONE_G, mig_gpu(replace(high, state=state)))) == "devices-sick"


# --- which of several -----------------------------------------------------------------------


def test_the_fullest_device_that_fits_comes_first() -> None:
    a = device("GPU-a", claims=(Claim("1", memory_bytes=20 * GIB),))
    b = device("GPU-b", claims=(Claim("2", memory_bytes=40 * GIB),))
    c = device("GPU-c", claims=(Claim("3", memory_bytes=75 * GIB),))
    assert where(put(TEN_GIB, a, b, c)) == "GPU-b"


def test_an_untouched_device_is_kept_whole_while_a_touched_one_has_room() -> None:
    small = device("GPU-a", memory=12 * GIB)
    large = device("GPU-b", claims=(Claim("1", memory_bytes=GIB),))
    assert where(put(TEN_GIB, small, large)) == "GPU-b"
    assert where(put(WHOLE, small, device("GPU-c"))) == "GPU-a"


def test_ties_go_by_node_and_uuid_whatever_the_order() -> None:
    hosts = (host("n2"), host("n1"))
    devices = tuple(
        device(u, node_id=n) for u, n in [("GPU-1", "n2"), ("GPU-3", "n1"), ("GPU-2", "n1")]
    )
    assert where(put(WHOLE, *hosts, *devices)) == "GPU-2"
    assert where(put(WHOLE, *reversed(hosts), *reversed(devices))) == "GPU-2"
    assert put(CPU, *hosts) == put(CPU, *reversed(hosts))


def test_a_host_without_room_sends_the_slice_elsewhere() -> None:
    full = host("n1", claims=(Claim("a", ram_bytes=32 * GIB),))
    here, there = device("GPU-1"), device("GPU-2", node_id="n2")
    assert where(put(WHOLE, full, here)) == "host-ram-full"
    assert where(put(WHOLE, full, host("n2"), here, there)) == "GPU-2"
    busy = host("n1", claims=(Claim("a", cpu_milli=7501),))
    assert where(put(replace(WHOLE, cpu_milli=500), busy, here)) == "host-cpu-full"
    assert where(put(replace(WHOLE, cpu_milli=499), busy, here)) == "GPU-1"
    assert where(put(WHOLE, host("n2"), here)) == "host-down"


def test_the_host_reserve_is_kept_exactly() -> None:
    assert where(put(CPU, host(ram_bytes=2 * GIB))) is None
    assert where(put(CPU, host(ram_bytes=2 * GIB - 1))) == "host-ram-full"


def test_the_most_hopeful_reason_is_the_answer() -> None:
    taken = device("GPU-1", claims=(Claim("a", whole=True),))
    sick = device("GPU-2", state=DeviceState.SICK)
    found = put(WHOLE, sick, taken)
    assert found == NoPlace("gpu-full", "All GPUs that could carry it are in use.")
    assert where(put(WHOLE)) == "no-such-device"
    assert where(place(FleetSnapshot((), ()), CPU, reserve_bytes=0, ceilings={})) == "host-down"


# --- counting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "parts", "counted"),
    [
        (WHOLE, (device("a"), device("b", claims=(Claim("1", memory_bytes=1),))), (1, 2)),
        (WHOLE, (device("a"), device("b", state=DeviceState.SICK)), (1, 1)),
        (QUARTER, (device(),), (4, 4)),
        (QUARTER, (device(claims=(Claim("1", memory_bytes=20 * GIB, share_milli=250),)),), (2, 4)),
        (HALF, (device(claims=(Claim("1", whole=True),)),), (0, 2)),
        (ONE_G, (mig_gpu(*ones(0, 1, 2), three(4), claims=(claim_on(three(4)),)),), (3, 3)),
        (QUARTER, (device(), host(ram_bytes=4 * GIB)), (3, 3)),
        (CPU, (host(ram_bytes=4 * GIB, claims=(Claim("1", ram_bytes=GIB),)),), (2, 3)),
        (replace(CPU, cpu_milli=3000), (), (2, 2)),
        (WHOLE, (), (0, 0)),
    ],
)  # fmt: skip
def test_capacity(kind, parts, counted) -> None:
    hosts = tuple(p for p in parts if isinstance(p, HostSnapshot)) or (host(),)
    devices = tuple(p for p in parts if isinstance(p, DeviceSnapshot))
    fleet = FleetSnapshot(hosts, devices)
    assert capacity(fleet, kind, reserve_bytes=GIB, ceilings=CEILINGS) == counted


# --- the checker ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "word"),
    [
        ([Claim("a", whole=True), Claim("b", whole=True)], "leased whole"),
        ([Claim("a", whole=True), Claim("b", memory_bytes=1)], "leased whole"),
        ([Claim("a", whole=True), claim_on(ones(0)[0], "b")], "leased whole"),
        ([claim_on(ones(0)[0], "a"), Claim("b", memory_bytes=1)], "shared and as MIG"),
        ([Claim("a", memory_bytes=1), Claim("a", memory_bytes=1)], "lease a holds 2 claims"),
        ([Claim("a", memory_bytes=0, share_milli=1)], "share of nothing"),
        ([Claim(x, memory_bytes=40 * GIB + n) for n, x in enumerate("ab")], "80 GiB are leased"),
        ([Claim(x, memory_bytes=1, share_milli=500 + n) for n, x in enumerate("ab")], "1001 thou"),
        ([claim_on(ones(0)[0], "a"), claim_on(ones(0)[0], "b")], "MIG instance MIG-0 is leased to"),
        ([claim_on(three(4), "a"), claim_on(ones(6)[0], "b")], "memory slot 6 is leased to a, b"),
        ([Claim("a", mig_uuid="m", mig_start=8, mig_size=1)], "slot 8 is leased and does not"),
        (
            [claim_on(three(4), "a"), *[claim_on(i, i.uuid) for i in ones(0, 1, 2, 3)],
             Claim("z", mig_uuid="z")],
            "8 compute slices",
        ),
    ],
)  # fmt: skip
def test_the_checker_sees(claims: list[Claim], word: str) -> None:
    gpu = mig_gpu(*ones(0, 1, 2, 3, 6), three(4))
    problems = overlaps(gpu, claims)
    assert any(word in problem and "GPU-1" in problem for problem in problems), problems


def test_the_checker_is_content_with_full_devices() -> None:
    assert overlaps(device(), [Claim("a", whole=True, memory_bytes=80 * GIB)]) == []
    quarters = [Claim(x, memory_bytes=20 * GIB, share_milli=250) for x in "abcd"]
    assert overlaps(device(), quarters) == []
    assert overlaps(device(), quarters, reserve_bytes=1) != []
    assert overlaps(device(memory=None), quarters) == []
    gpu = mig_gpu(three(4), *ones(0, 1, 2, 3))
    assert overlaps(gpu, [claim_on(i, i.uuid) for i in gpu.instances]) == []
    assert overlaps(device(), []) == []


def test_the_checker_of_hosts() -> None:
    assert host_overlaps(host(), [Claim("a", cpu_milli=8000, ram_bytes=33 * GIB)]) == []
    over = host_overlaps(host(), [Claim("a", cpu_milli=8001, ram_bytes=33 * GIB + 1)])
    assert len(over) == 2
