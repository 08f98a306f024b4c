"""Setting aside: the reserved slices are there for whom they are for, and nobody else's suffer."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gpuslice.fleet.slice_types import SliceType
from gpuslice.placement import (
    Claim,
    DeviceSnapshot,
    FleetSnapshot,
    HostSnapshot,
    NoPlace,
    Placement,
    capacity,
    overlaps,
    place,
)
from gpuslice.placement.fleets import Rules, leases_in, with_claims, without_leases
from gpuslice.placement.queue import Waiting, earliest, outlooks
from gpuslice.placement.reserved import PHANTOM, Keep, empty, in_the_way, left_over, missing
from gpuslice.placement.reserved import set_aside as aside
from gpuslice.units import GIB, HOUR_US, MINUTE_US
from gpuslice.wire import DeviceState, Enforcement, SliceKind

NOW = 1_790_000_000_000_000
RULES = Rules(reserve_bytes=0, ceilings={"n": Enforcement.EXCLUSIVE})


def slice_type(name: str, kind: SliceKind, share: int | None = None, ram: int = 1) -> SliceType:
    return SliceType(
        name=name, title=name, kind=kind, model=None, memory_bytes=None, share_milli=share,
        mig_profile=None, cpu_milli=0, ram_bytes=ram * GIB, rate_u_per_hour=0,
        minimum_enforcement=Enforcement.ADVISORY,
        gpu_milli=0 if kind is SliceKind.CPU else share or 1000,
    )  # fmt: skip


WHOLE = slice_type("whole", SliceKind.EXCLUSIVE)
HALF = slice_type("half", SliceKind.SHARED, 500)
QUARTER = slice_type("quarter", SliceKind.SHARED, 250)
CPU = slice_type("cpu", SliceKind.CPU, ram=100)
GPU_TYPES = (WHOLE, HALF, QUARTER)


def fleet(*held: list[tuple[str, int]], ram: int = 4096) -> FleetSnapshot:
    """A GPU for each list of (lease, share in thousandths); 1000: whole."""
    devices = tuple(
        DeviceSnapshot(
            node_id="n", uuid=f"GPU-{i}", model="H100", memory_bytes=80 * GIB,
            state=DeviceState.OK, version=1, simulated=True,
            share_enforcement=Enforcement.WATCHDOG,
            claims=tuple(
                Claim(lease, whole=True, memory_bytes=80 * GIB) if share == 1000
                else Claim(lease, memory_bytes=80 * GIB * share // 1000, share_milli=share)
                for lease, share in claims
            ),
        )
        for i, claims in enumerate(held)
    )  # fmt: skip
    on_host = tuple(Claim(lease, ram_bytes=GIB) for claims in held for lease, _ in claims)
    return FleetSnapshot((HostSnapshot("n", 640_000, ram * GIB, 0, 1, claims=on_host),), devices)


def keep(count: int, wanted: SliceType = QUARTER, key: str = "k", **more: object) -> Keep:
    said = {"start_us": NOW, "til_us": NOW + 2 * HOUR_US} | more
    return Keep(key, wanted, count, **said)  # type: ignore[arg-type]


def put(there: FleetSnapshot, wanted: SliceType, name: str = "x") -> Placement | NoPlace:
    return place(there, wanted, reserve_bytes=0, ceilings=RULES.ceilings, lease_id=name)


def free(there: FleetSnapshot, wanted: SliceType) -> int:
    return capacity(there, wanted, reserve_bytes=0, ceilings=RULES.ceilings).free


def phantoms(there: FleetSnapshot) -> int:
    return sum(lease.startswith(PHANTOM) for lease in leases_in(there))


def test_others_see_what_is_left() -> None:
    there = fleet([], [])
    left = aside(there, [keep(5)], RULES)
    assert (free(there, QUARTER), free(left, QUARTER)) == (8, 3)
    assert (free(there, WHOLE), free(left, WHOLE)) == (2, 0)
    assert free(aside(there, [keep(4)], RULES), WHOLE) == 1
    assert aside(there, [keep(5)], RULES) == left


def test_what_members_hold_counts() -> None:
    there = fleet([("ada", 250), ("eve", 250)], [])
    left = aside(there, [keep(4, members=frozenset({"ada", "bob"}))], RULES)
    assert phantoms(left) == 3
    # More than were reserved: nothing more is set aside, and nothing is given back.
    left = aside(there, [keep(1, members=frozenset({"ada", "eve"}))], RULES)
    assert phantoms(left) == 0
    # One lease counts for one of two reservations.
    both = [keep(1, key="a", members=frozenset({"ada"})), keep(1, members=frozenset({"ada"}))]
    assert phantoms(aside(there, both, RULES)) == 1


def test_as_many_as_there_are() -> None:
    there = fleet([("eve", 1000)], [("bob", 500)])
    left = aside(there, [keep(40)], RULES)
    assert (phantoms(left), free(left, QUARTER)) == (2, 0)
    assert missing(empty(there), [keep(40)], RULES) == 32
    assert missing(empty(there), [keep(8)], RULES) == 0


def test_large_ones_are_set_aside_before_small_ones() -> None:
    there = fleet([("eve", 250)], [])
    left = aside(there, [keep(3, key="a"), keep(1, WHOLE, key="b")], RULES)
    assert phantoms(left) == 4


def test_processors_and_ram_are_set_aside_too() -> None:
    there = fleet([], ram=250)
    assert (free(there, CPU), free(aside(there, [keep(1, CPU)], RULES), CPU)) == (2, 1)
    # GPU slices that no RAM would be left for are not promised.
    assert phantoms(aside(fleet([], ram=2), [keep(4)], RULES)) == 2


@pytest.mark.parametrize(
    ("minutes", "longest", "bound"),
    [
        (-121, None, False), (-120, None, True), (-1, None, True), (0, None, True),
        (119, None, True), (120, None, False),
        # Whoever is over before it begins (and two minutes for the start) is not in its way.
        (-60, 58, False), (-60, 59, True), (0, 1, True), (120, 1, False), (-121, 500, False),
    ],
)  # fmt: skip
def test_when_it_binds(minutes: int, longest: int | None, bound: bool) -> None:
    one = keep(1, lead_us=2 * HOUR_US, slack_us=2 * MINUTE_US)
    runs = None if longest is None else longest * MINUTE_US
    assert one.binds(NOW + minutes * MINUTE_US, runs) is bound


# --- waiting ----------------------------------------------------------------------------------


def test_waits_know_of_what_is_reserved() -> None:
    there = fleet([("a", 1000)])
    ends = {"a": NOW + HOUR_US}
    lesson = keep(1, start_us=NOW + 2 * HOUR_US, til_us=NOW + 4 * HOUR_US, lead_us=2 * HOUR_US)
    assert earliest(QUARTER, there, ends, RULES, NOW, keeps=[lesson]) == NOW + HOUR_US
    whole = Waiting("w", WHOLE, keeps=(lesson,))
    (found,) = outlooks(
        [whole], there, ends=ends, guesses=ends, stays={}, rules=RULES, now=NOW
    )  # fmt: skip
    assert (found.reserved_us, found.expected_us) == (NOW + 4 * HOUR_US, NOW + 4 * HOUR_US)
    # Who is over in time has it when it is free; members are not bound at all.
    for more in ({"longest_us": HOUR_US}, {"keeps": ()}):
        one = Waiting(**{"request_id": "w", "slice_type": WHOLE, "keeps": (lesson,)} | more)
        (found,) = outlooks([one], there, ends=ends, guesses={}, stays={}, rules=RULES, now=NOW)
        assert found.reserved_us == NOW + HOUR_US


def test_nobody_else_in_line_is_given_what_is_reserved() -> None:
    there = fleet([])
    lesson = keep(4, members=frozenset({"m1", "m2"}))
    line = [
        Waiting("other", QUARTER, keeps=(lesson,)), Waiting("m1", QUARTER), Waiting("m2", QUARTER),
    ]  # fmt: skip
    found = outlooks(line, there, ends={}, guesses={}, stays={}, rules=RULES, now=NOW)
    assert [one.placement is not None for one in found] == [False, True, True]
    assert found[0].reserved_us == lesson.til_us


# --- in the way -------------------------------------------------------------------------------


def ways(there: FleetSnapshot, one: Keep, newest: list[str]) -> list[str]:
    return in_the_way(there, [one], {one.key: newest}, RULES).get(one.key, [])


def test_only_as_many_as_are_needed_the_newest_first() -> None:
    there = fleet([("a", 250), ("b", 250), ("c", 250), ("d", 250)])
    assert ways(there, keep(2), ["d", "c", "b", "a"]) == ["d", "c"]
    assert ways(there, keep(2), ["b", "c", "d", "a"]) == ["b", "c"]
    assert ways(there, keep(2, members=frozenset({"d"})), ["c", "b", "a"]) == ["c"]
    assert ways(fleet([("a", 250)]), keep(3), ["a"]) == []
    assert in_the_way(there, [keep(2)], {}, RULES) == {}


def test_few_devices_are_touched() -> None:
    there = fleet([("a1", 500), ("a2", 500)], [("b1", 1000)], [("c1", 500), ("c2", 500)])
    # One lease on one device instead of four on three, though others are newer.
    assert ways(there, keep(4), ["c2", "c1", "a2", "a1", "b1"]) == ["b1"]
    assert set(ways(there, keep(2, HALF), ["c2", "a2", "c1", "a1"])) == {"c2", "c1"}


def test_nobody_goes_in_vain() -> None:
    there = fleet([("new", 250), ("old", 750)])
    assert ways(there, keep(1, HALF), ["new", "old"]) == ["old"]
    # What may not go stays, and then the others need not go either.
    assert ways(there, keep(1, WHOLE), ["new"]) == []
    # Nor those that were first in the order, once a later one makes room enough.
    there = fleet([("new", 250), ("old", 500)], [("other", 250)])
    assert ways(there, keep(6), ["new", "old", "other"]) == ["old"]


shares = st.lists(st.sampled_from([250, 500]), max_size=2)
devices = st.lists(st.one_of(shares, st.just([1000])), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(held=devices, count=st.integers(1, 9), wanted=st.sampled_from(GPU_TYPES), data=st.data())
def test_setting_aside_and_making_room(held, count, wanted, data) -> None:  # type: ignore[no-untyped-def]
    number = iter(range(100))
    there = fleet(*[[(f"l{next(number)}", share) for share in one] for one in held])
    leases = sorted(leases_in(there))
    one = keep(count, wanted)
    left = aside(there, [one], RULES)
    for device in left.devices:
        assert overlaps(device, device.claims) == []
    assert phantoms(left) == min(count, free(there, wanted))
    assert without_leases(left, {x for x in leases_in(left) if x.startswith(PHANTOM)}) == there
    # Whoever takes something of what is left leaves as much to be set aside as before.
    other = data.draw(st.sampled_from(GPU_TYPES))
    found = put(left, other)
    if isinstance(found, Placement):
        assert phantoms(aside(with_claims(there, found), [one], RULES)) == phantoms(left)
    # Making room: all of it if that can be, and nobody more than needed.
    order = data.draw(st.permutations(leases))
    ended = ways(there, one, order)
    cleared = without_leases(there, set(ended))
    assert free(cleared, wanted) >= min(count, free(empty(there), wanted))
    for kept in ended:
        fewer = without_leases(there, set(ended) - {kept})
        assert free(fewer, wanted) < count
    assert left_over(there, [one], RULES, at=one.til_us, longest_us=None) is there or (
        left_over(there, [one], RULES, at=one.til_us, longest_us=None) == there
    )
