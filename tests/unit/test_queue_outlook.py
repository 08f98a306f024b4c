"""Backfill: what is free is used, and nobody small passes somebody large beyond their time."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gpuslice.fleet.slice_types import SliceType
from gpuslice.placement import Claim, DeviceSnapshot, FleetSnapshot, HostSnapshot, overlaps
from gpuslice.placement.fleets import Rules, with_claims
from gpuslice.placement.queue import Outlook, Waiting, earliest, outlooks
from gpuslice.units import GIB, HOUR_US
from gpuslice.wire import DeviceState, Enforcement, SliceKind

NOW = 1_790_000_000_000_000
RULES = Rules(reserve_bytes=0, ceilings={"n": Enforcement.EXCLUSIVE})


def slice_type(name: str, kind: SliceKind, share: int | None = None) -> SliceType:
    return SliceType(
        name=name, title=name, kind=kind, model=None, memory_bytes=None, share_milli=share,
        mig_profile=None, cpu_milli=0, ram_bytes=GIB, rate_u_per_hour=0,
        minimum_enforcement=Enforcement.ADVISORY, gpu_milli=share or 1000,
    )  # fmt: skip


WHOLE = slice_type("whole", SliceKind.EXCLUSIVE)
HALF = slice_type("half", SliceKind.SHARED, 500)
QUARTER = slice_type("quarter", SliceKind.SHARED, 250)
CPU = slice_type("cpu", SliceKind.CPU)
TYPES = (WHOLE, HALF, QUARTER)


def fleet(*held: list[tuple[str, int]]) -> FleetSnapshot:
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
    host = HostSnapshot("n", 640_000, 4096 * GIB, 0, 1)
    return FleetSnapshot((host,), devices)


def with_ram(there: FleetSnapshot, gib: int, leases: list[str]) -> FleetSnapshot:
    """The fleet with so much RAM on its host, of which each lease holds one GiB."""
    (host,) = there.hosts
    claims = tuple(Claim(lease, ram_bytes=GIB) for lease in leases)
    return replace(there, hosts=(replace(host, ram_bytes=gib * GIB, claims=claims),))


def look(
    waiting: list[Waiting], there: FleetSnapshot, ends: dict[str, int] | None = None,
    **more: dict[str, int],
) -> list[Outlook]:  # fmt: skip
    given_ = {"ends": ends or {}, "guesses": ends or {}, "stays": {}} | more
    return outlooks(waiting, there, rules=RULES, now=NOW, **given_)


def starts(found: list[Outlook]) -> list[str]:
    return [one.request_id for one in found if one.placement is not None]


def test_who_fits_starts_in_turn() -> None:
    waiting = [Waiting("a", HALF), Waiting("b", HALF), Waiting("c", HALF)]
    assert starts(look(waiting, fleet([]))) == ["a", "b"]


def test_a_small_one_passes_if_it_is_over_in_time() -> None:
    there = fleet([("long", 500)])
    ends = {"long": NOW + 2 * HOUR_US}
    large = Waiting("large", WHOLE)
    found = look([large, Waiting("small", QUARTER, HOUR_US)], there, ends)
    assert starts(found) == ["small"]
    assert found[0].reserved_us == NOW + 2 * HOUR_US
    assert starts(look([large, Waiting("small", QUARTER, 3 * HOUR_US)], there, ends)) == []
    assert starts(look([large, Waiting("small", QUARTER)], there, ends)) == []


def test_a_small_one_passes_on_what_the_large_one_does_not_need() -> None:
    """The second GPU's tenant stays for ever: the large one will never have that."""
    there = fleet([("ends", 500)], [("stays", 500)])
    waiting = [Waiting("large", WHOLE), Waiting("small", QUARTER)]
    found = look(waiting, there, {"ends": NOW + HOUR_US})
    (placement,) = [one.placement for one in found if one.placement is not None]
    assert placement.device_uuid == "GPU-1"


def test_without_known_ends_patience_decides() -> None:
    there = fleet([("a", 500)], [("b", 250)])
    small = Waiting("small", QUARTER)
    found = look([Waiting("large", WHOLE), small], there)
    assert starts(found) == ["small"]
    assert (found[0].reserved_us, found[0].expected_us) == (None, None)
    waiting = [Waiting("large", WHOLE, impatient=True), small, replace(small, request_id="two"),
               replace(small, request_id="three")]  # fmt: skip
    found = look(waiting, there)
    # One of the two is kept clear; on the other one they still find room.
    used = {one.placement.device_uuid for one in found if one.placement is not None}
    assert len(used) == 1 and len(starts(found)) >= 2


@pytest.mark.parametrize(
    "wanted", [replace(WHOLE, ram_bytes=4 * GIB), replace(CPU, ram_bytes=4 * GIB)]
)
def test_patience_protects_who_lacks_ram(wanted: SliceType) -> None:
    """Five of eight GiB are held by what ends nobody knows when: small ones must not go on for ever
    taking what is given back."""
    there = with_ram(fleet([]), 8, ["c0", "c1", "c2", "c3", "c4"])
    small = Waiting("small", CPU)
    assert starts(look([Waiting("large", wanted), small], there)) == ["small"]
    large = Waiting("large", wanted, impatient=True)
    assert starts(look([large, small, Waiting("gpu", QUARTER)], there)) == []
    assert starts(look([large, small], with_ram(there, 8, ["c0", "c1", "c2", "c3"]))) == ["large"]
    # A host on which it will never have room is kept clear for nobody.
    never = Waiting("never", replace(wanted, ram_bytes=9 * GIB), impatient=True)
    assert starts(look([never, small], there)) == ["small"]


def test_one_who_waits_for_no_gpu_keeps_the_host_clear_and_no_gpu() -> None:
    """The lease on the GPU would free RAM enough: that does not make it a matter of the GPU."""
    there = with_ram(fleet([("a", 500)]), 8, ["a", "b", "c", "d", "e"])
    large = Waiting("large", replace(CPU, ram_bytes=4 * GIB), impatient=True)
    assert starts(look([large, Waiting("small", CPU)], there)) == []


def test_a_guess_is_no_promise() -> None:
    there = fleet([("a", 1000)])
    (found,) = look([Waiting("x", WHOLE)], there, guesses={"a": NOW + HOUR_US})
    assert (found.reserved_us, found.expected_us) == (None, NOW + HOUR_US)
    found_ = look(
        [Waiting("x", WHOLE), Waiting("y", WHOLE)], there, guesses={"a": NOW + HOUR_US},
        stays={"whole": 3 * HOUR_US},
    )  # fmt: skip
    assert [one.expected_us for one in found_] == [NOW + HOUR_US, NOW + 4 * HOUR_US]


shares = st.lists(st.sampled_from([250, 500]), max_size=2)
held = st.lists(st.one_of(shares, st.just([1000])), min_size=1, max_size=3)
lines = st.lists(
    st.tuples(st.sampled_from(TYPES), st.one_of(st.none(), st.integers(1, 8)), st.booleans()),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(held=held, line=lines, data=st.data())
def test_nobody_protected_is_delayed_and_nothing_is_given_twice(held, line, data) -> None:  # type: ignore[no-untyped-def]
    number = iter(range(1000))
    there = fleet(*[[(f"l{next(number)}", share) for share in one] for one in held])
    leases = [claim.lease_id for device in there.devices for claim in device.claims]
    ends = {
        lease: NOW + data.draw(st.integers(1, 8), lease) * HOUR_US
        for lease in leases if data.draw(st.booleans(), lease)
    }  # fmt: skip
    waiting = [
        Waiting(f"r{i}", kind, None if hours is None else hours * HOUR_US, impatient)
        for i, (kind, hours, impatient) in enumerate(line)
    ]
    found = look(waiting, there, ends)
    after, known = there, dict(ends)
    for one, request in zip(found, waiting, strict=True):
        if one.placement is not None:
            after = with_claims(after, one.placement)
            if request.longest_us is not None:
                known[request.request_id] = NOW + request.longest_us
    for device in after.devices:
        assert overlaps(device, device.claims) == []
    first = next((one for one in found if one.placement is None), None)
    if first is not None and first.reserved_us is not None:
        # Whoever passed it: the first one that waits has its place by its time.
        wanted = waiting[found.index(first)].slice_type
        then = earliest(wanted, after, known, RULES, NOW)
        assert then is not None and then <= first.reserved_us
    # Of two that want the same for as long, the later one is never served alone.
    for i, early in enumerate(waiting):
        for late in waiting[i + 1 :]:
            same = (early.slice_type, early.longest_us) == (late.slice_type, late.longest_us)
            if same and found[waiting.index(late)].placement is not None:
                assert found[i].placement is not None
