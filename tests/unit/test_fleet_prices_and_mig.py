"""Default prices, MIG geometry and the enforcement ladder against what the facts state."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuslice.fleet import mig
from gpuslice.fleet.enforcement import achieved, may_share, share_level
from gpuslice.fleet.prices import gpu_price, part_price_u
from gpuslice.placement.snapshot import DeviceSnapshot
from gpuslice.units import GIB
from gpuslice.wire import DeviceState, Enforcement, SliceKind

E = Enforcement


@pytest.mark.parametrize(
    ("model", "rate_u"),
    [
        ("NVIDIA B200", 6_500_000),
        ("NVIDIA H200", 4_500_000),
        ("NVIDIA GH200 480GB", 2_300_000),
        ("NVIDIA H100 80GB HBM3", 3_500_000),
        ("NVIDIA H100 PCIe", 3_000_000),
        ("NVIDIA H100 NVL", 3_000_000),
        ("NVIDIA A100-SXM4-80GB", 1_800_000),
        ("NVIDIA A100 80GB PCIe", 1_800_000),
        ("NVIDIA A100-SXM4-40GB", 1_500_000),
        ("NVIDIA L40S", 1_100_000),
        ("NVIDIA L40", 900_000),
        ("NVIDIA L4", 600_000),
        ("NVIDIA A10", 900_000),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 1_500_000),
        ("NVIDIA GeForce RTX 4090", 500_000),
        ("Tesla V100-SXM2-16GB", 400_000),
        ("Tesla T4", 300_000),
    ],
)
def test_prices_of_known_models(model: str, rate_u: int) -> None:
    assert gpu_price(model, 24 * GIB).rate_u_per_hour == rate_u
    assert gpu_price(model, None).source == "table"


@pytest.mark.parametrize(
    ("model", "memory", "rate_u"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16 * GIB, 320_000),
        ("NVIDIA A1000", 8 * GIB, 160_000),
        ("Whatever", None, 160_000),
        ("Tiny", 1, 20_000),
    ],
)
def test_prices_of_other_models_are_marked_generic(model, memory, rate_u) -> None:
    price = gpu_price(model, memory)
    assert (price.rate_u_per_hour, price.source) == (rate_u, "generic")


@given(
    rate=st.integers(0, 10**9),
    parts=st.lists(st.fractions(Fraction(1, 1000), 1), min_size=1, max_size=2),
)
def test_a_part_costs_its_largest_share_rounded_down(rate: int, parts: list[Fraction]) -> None:
    price = part_price_u(rate, *parts)
    assert isinstance(price, int)
    assert 0 <= max(parts) * rate - price < 1


@pytest.mark.parametrize("part", [Fraction(0), Fraction(-1, 2), Fraction(3, 2)])
def test_a_part_is_a_part(part: Fraction) -> None:
    with pytest.raises(ValueError, match="no part"):
        part_price_u(1_000_000, part)


A100_40, A100_80 = "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"
H100, H200, A30 = "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A30"


@pytest.mark.parametrize(
    ("model", "profile", "starts", "size", "compute", "most"),
    [
        (A100_40, "1g.5gb", [0, 1, 2, 3, 4, 5, 6], 1, 1, 7),
        (A100_40, "1g.10gb", [0, 2, 4, 6], 2, 1, 4),
        (A100_80, "1g.10gb", [0, 1, 2, 3, 4, 5, 6], 1, 1, 7),
        (H100, "1g.10gb+me", [0, 1, 2, 3, 4, 5, 6], 1, 1, 1),
        (H100, "1g.20gb", [0, 2, 4, 6], 2, 1, 4),
        (H100, "2g.20gb", [0, 2, 4], 2, 2, 3),
        (H100, "3g.40gb", [0, 4], 4, 3, 2),
        (H100, "4g.40gb", [0], 4, 4, 1),
        (H100, "7g.80gb", [0], 8, 7, 1),
        (H200, "1g.18gb", [0, 1, 2, 3, 4, 5, 6], 1, 1, 7),
        (H200, "3g.71gb", [0, 4], 4, 3, 2),
        (A30, "1g.6gb", [0, 1, 2, 3], 1, 1, 4),
        (A30, "2g.12gb", [0, 2], 2, 2, 2),
        (A30, "4g.24gb", [0], 4, 4, 1),
    ],
)
def test_mig_geometry(model, profile, starts, size, compute, most) -> None:
    layout = mig.geometry(model, None)
    assert layout is not None
    found = layout.profile(profile)
    assert found is not None
    assert (list(found.starts), found.size, found.compute, found.most) == (
        starts,
        size,
        compute,
        most,
    )
    assert mig.profile_compute(profile) == compute


def test_memory_tells_models_of_one_name_apart() -> None:
    small, large = mig.geometry("NVIDIA H100 NVL", 93 * GIB), mig.geometry("NVIDIA H100", 79 * GIB)
    assert small is not None and small.profile("1g.12gb") is not None
    assert large is not None and large.profile("1g.10gb") is not None
    assert mig.geometry("NVIDIA A100", None) is None
    assert mig.geometry("NVIDIA GeForce RTX 4090", 24 * GIB) is None
    assert mig.profile_compute("nonsense") is None


def first_fit(
    layout: mig.MigGeometry, occupied: list[tuple[int, int]], profile: mig.MigProfile
) -> int | None:
    """Where an instance would be made beside ``occupied`` (start, size) by the table and the order
    of preference; None: nowhere."""
    taken = {slot for start, size in occupied for slot in range(start, start + size)}
    free = [
        start
        for start in profile.starts
        if start + profile.size <= layout.memory_slots
        and taken.isdisjoint(range(start, start + profile.size))
    ]
    return min(free, key=lambda at: mig.slot_preference(profile.compute, at), default=None)


@pytest.mark.parametrize("model", [A100_40, A100_80, H100, H200, A30])
def test_every_profile_fits_as_often_as_it_says(model: str) -> None:
    layout = mig.geometry(model, None)
    assert layout is not None
    for profile in layout.profiles:
        occupied: list[tuple[int, int]] = []
        while (start := first_fit(layout, occupied, profile)) is not None:
            assert start in profile.starts
            occupied.append((start, profile.size))
        slots = [s for start, size in occupied for s in range(start, start + size)]
        assert len(slots) == len(set(slots)) and max(slots) < layout.memory_slots
        if not profile.name.endswith("+me"):
            assert len(occupied) == profile.most


def test_small_instances_keep_the_low_slots_free() -> None:
    layout = mig.geometry(H100, None)
    assert layout is not None
    by_name = {profile.name: profile for profile in layout.profiles}
    assert first_fit(layout, [], by_name["1g.10gb"]) == 6
    assert first_fit(layout, [], by_name["3g.40gb"]) == 4
    assert first_fit(layout, [], by_name["2g.20gb"]) == 0
    assert first_fit(layout, [(6, 1)], by_name["4g.40gb"]) == 0
    assert first_fit(layout, [(0, 1)], by_name["7g.80gb"]) is None


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        ({}, E.ADVISORY),
        ({"watchdog": True}, E.WATCHDOG),
        ({"watchdog": True, "preload": True}, E.PRELOAD),
        ({"cgroup2": True, "can_cgroup_limits": True, "watchdog": True}, E.CGROUP),
        ({"cgroup2": True, "can_cgroup_limits": True, "driver_version": "614.9"}, E.ADVISORY),
        ({"cgroup2": True, "can_cgroup_limits": True, "driver_version": None}, E.ADVISORY),
        ({"cgroup2": True, "can_cgroup_limits": True, "driver_version": "6150x"}, E.ADVISORY),
        ({"cgroup2": False, "can_cgroup_limits": True}, E.ADVISORY),
        # An older toolkit ignores the limit without a word: capable is not enough.
        ({"cgroup2": True, "can_cgroup_limits": False}, E.ADVISORY),
        ({"cgroup2": True, "can_cgroup_limits": True, "mig_enabled": True}, E.ADVISORY),
    ],
)
def test_what_a_host_can_give(facts: dict, level: Enforcement) -> None:
    given = {"driver_version": "615.71.09", "cgroup2": False, "can_cgroup_limits": False}
    assert share_level(**(given | facts)) is level


def _device(level: Enforcement, *, simulated: bool = False) -> DeviceSnapshot:
    return DeviceSnapshot(
        "n", "GPU-1", H100, 80 * GIB, DeviceState.OK, 1,
        simulated=simulated, share_enforcement=level,
    )  # fmt: skip


def test_what_a_lease_gets_is_capped_by_the_engine() -> None:
    device = _device(E.CGROUP)
    assert achieved(SliceKind.EXCLUSIVE, device, E.EXCLUSIVE) is E.EXCLUSIVE
    assert achieved(SliceKind.MIG, device, E.EXCLUSIVE) is E.MIG
    assert achieved(SliceKind.SHARED, device, E.EXCLUSIVE) is E.CGROUP
    assert achieved(SliceKind.CPU, None, E.EXCLUSIVE) is E.EXCLUSIVE
    for kind in SliceKind:
        assert achieved(kind, device, E.ADVISORY) is E.ADVISORY


def test_who_may_share() -> None:
    assert may_share(_device(E.WATCHDOG), E.EXCLUSIVE, E.WATCHDOG)
    assert not may_share(_device(E.ADVISORY), E.EXCLUSIVE, E.WATCHDOG)
    assert not may_share(_device(E.CGROUP), E.ADVISORY, E.WATCHDOG)
    assert may_share(_device(E.ADVISORY), E.ADVISORY, E.ADVISORY)
    assert may_share(_device(E.ADVISORY, simulated=True), E.ADVISORY, E.CGROUP)
