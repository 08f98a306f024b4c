"""RAM of derived slices: of use to whoever gets it, and never more in all than the host has."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuslice.fleet import SliceType, mig, slice_types
from gpuslice.fleet.ram import LEAST, cpu_ram, gpu_ram, mig_part
from gpuslice.settings import load_settings
from gpuslice.units import GIB, MIB
from gpuslice.wire import DeviceReport, Enforcement, HostReport, Inventory, SliceKind

H100, A100, A30 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA A30"
B200, L4 = "NVIDIA B200", "NVIDIA L4"
MEMORY = {H100: 80 * GIB, A100: 80 * GIB, A30: 24 * GIB, B200: 180 * GIB, L4: 23 * GIB}
#: Instances that fit on one GPU together, the fullest first.
CUTS = {
    H100: [["4g.40gb", "3g.40gb"], ["1g.10gb"] * 7, ["3g.40gb"] * 2, ["2g.20gb"] * 3, []],
    A100: [["3g.40gb", "2g.20gb", "1g.10gb"], ["7g.80gb"]],
    A30: [["1g.6gb"] * 4, ["2g.12gb"] * 2],
    # In no table of ours: what NVML says of their memory counts.
    B200: [["2g.45gb"] * 3, ["1g.23gb"] * 7],
}
RESERVE = load_settings(None).fleet.host_reserve_ram


def inventory(devices: Sequence[DeviceReport], ram: int, engine: str = "docker") -> Inventory:
    return Inventory(
        node_id="n", boot_id="b", engine=engine, now_us=0, boottime_us=0, simulated=True,
        driver_version=None, gpu_problem=None, host=HostReport(cpu_milli=8000, ram_bytes=ram),
        devices=list(devices), enforcement_ceiling=Enforcement.EXCLUSIVE,
    )  # fmt: skip


def gpu(index: int, model: str, cut: Sequence[str] | None = None) -> list[DeviceReport]:
    whole = DeviceReport(
        uuid=f"GPU-{index}", kind="gpu", index=index, model=model, memory_bytes=MEMORY[model],
        mig_enabled=cut is not None, simulated=True,
    )  # fmt: skip
    return [whole, *(
        DeviceReport(
            uuid=f"MIG-{index}-{number}", kind="mig", index=number, model=f"{model} MIG",
            parent_uuid=whole.uuid, mig_profile=profile, simulated=True,
            memory_bytes=int(profile.rpartition(".")[2].removesuffix("gb")) * GIB,
        )
        for number, profile in enumerate(cut or ())
    )]  # fmt: skip


def most(types: Sequence[SliceType], devices: Sequence[DeviceReport], uuid: str) -> int:
    """The most RAM that slices on one GPU can take together."""
    device = next(one for one in devices if one.uuid == uuid)
    if not device.mig_enabled:
        return max(
            kind.ram_bytes * (1000 // (kind.share_milli or 1000))
            for kind in types
            if kind.kind in (SliceKind.EXCLUSIVE, SliceKind.SHARED)
            and kind.suits_model(device.model)
        )
    of = {
        kind.mig_profile: kind.ram_bytes
        for kind in types
        if kind.kind is SliceKind.MIG and kind.suits_model(device.model)
    }
    return sum(of[one.mig_profile] for one in devices if one.parent_uuid == uuid)


one_gpu = st.sampled_from(sorted(MEMORY)).flatmap(
    lambda model: st.tuples(
        st.just(model), st.one_of(st.none(), *map(st.just, CUTS.get(model, ())))
    )
)


@given(st.lists(one_gpu, max_size=8), st.integers(2 * GIB, 4096 * GIB))
def test_all_slices_of_all_gpus_and_one_without_fit_together(
    gpus: list[tuple[str, list[str] | None]], ram: int
) -> None:
    devices = [d for index, (model, cut) in enumerate(gpus) for d in gpu(index, model, cut)]
    types = slice_types(load_settings(None), [inventory(devices, ram)]).types
    cpu = next(kind.ram_bytes for kind in types if kind.kind is SliceKind.CPU)
    room = ram - RESERVE
    for kind in types:
        assert LEAST <= kind.ram_bytes <= room
    if all(kind.ram_bytes > LEAST for kind in types):
        whole = [d.uuid for d in devices if d.kind == "gpu"]
        assert cpu + sum(most(types, devices, uuid) for uuid in whole) <= room


@given(st.integers(1, 8), st.integers(64 * GIB, 4096 * GIB))
def test_little_of_a_large_host_is_left_over(count: int, ram: int) -> None:
    devices = [d for index in range(count) for d in gpu(index, H100)]
    types = slice_types(load_settings(None), [inventory(devices, ram)]).types
    of = {kind.name: kind.ram_bytes for kind in types}
    assert of["cpu"] == 4 * GIB
    assert ram - RESERVE - 4 * GIB - count * of["whole"] < count * 256 * MIB
    assert of["whole"] - 2 * of["half"] < 2 * 256 * MIB
    assert of["half"] - 2 * of["quarter"] < 2 * 256 * MIB


@pytest.mark.parametrize(
    ("host", "cpu", "whole", "quarter"),
    [(8, 1.75, 1.75, 1), (16, 3.75, 3.75, 1), (24, 4, 6.25, 1.5), (1024, 4, 339.5, 84.75)],
)
def test_the_demo_s_three_gpus_on_hosts_of_many_sizes(
    host: int, cpu: float, whole: float, quarter: float
) -> None:
    devices = [*gpu(0, H100), *gpu(1, H100), *gpu(2, A100, ["3g.40gb", "2g.20gb", "1g.10gb"])]
    types = slice_types(load_settings(None), [inventory(devices, host * GIB)]).types
    of = {kind.name: kind.ram_bytes / GIB for kind in types}
    assert (of["cpu"], of["whole"], of["quarter"]) == (cpu, whole, quarter)
    assert of["3g.40gb"] <= of["whole"] / 2 or of["3g.40gb"] == 1


def test_the_local_engine_sets_the_same_aside_for_everything() -> None:
    types = slice_types(load_settings(None), [inventory(gpu(0, H100), 512 * GIB, "local")]).types
    assert {kind.ram_bytes for kind in types} == {GIB}


def test_a_type_that_two_nodes_offer_fits_on_the_smaller() -> None:
    large, small = inventory(gpu(0, L4), 512 * GIB), inventory(gpu(0, L4), 33 * GIB)
    without = inventory([], 5 * GIB)
    assert gpu_ram([large, small, without], RESERVE, L4, Fraction(1)) == 28 * GIB
    assert cpu_ram([large, small, without], RESERVE) == GIB


@pytest.mark.parametrize("model", [H100, A100, A30, B200])
def test_the_instances_of_a_gpu_are_at_most_all_of_it(model: str) -> None:
    for cut in CUTS[model]:
        whole, *instances = gpu(0, model, cut)
        assert sum(mig_part(whole, instance) for instance in instances) <= 1
        for instance in instances:
            unknown = instance.model_copy(update={"memory_bytes": None})
            compute = mig.profile_compute(instance.mig_profile or "")
            if mig.geometry(model, MEMORY[model]) is None:
                assert mig_part(whole, unknown) == Fraction(compute or 0, 7)
