"""The independent check that live claims do not overlap, for ``gpuslice ledger verify``.

It shares no code with :mod:`gpuslice.placement.place` and goes about it the other way: it lays all
claims out at once and looks for collisions, where placing adds one claim to a valid state. What it
cannot know (a claim on a MIG instance that is gone) it does not report; placing is the careful one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from gpuslice.fleet.mig import geometry, profile_compute
from gpuslice.placement.snapshot import Claim, DeviceSnapshot, HostSnapshot
from gpuslice.units import format_memory


def overlaps(
    device: DeviceSnapshot, claims: Sequence[Claim], *, reserve_bytes: int = 0
) -> list[str]:
    """One sentence for each way in which these live claims do not fit on the device together.

    ``device.claims`` is not looked at. ``reserve_bytes`` is 0 by default, because the reserve may
    have been raised since the claims were made; only the memory that exists is a matter of fact.
    """
    where = f"device {device.uuid}"
    whole = [claim for claim in claims if claim.whole]
    mig = [claim for claim in claims if not claim.whole and claim.mig_uuid is not None]
    shared = [claim for claim in claims if not claim.whole and claim.mig_uuid is None]
    problems = [
        f"{where}: lease {lease} holds {count} claims"
        for lease, count in Counter(claim.lease_id for claim in claims).items()
        if count > 1
    ]
    if whole and len(claims) > 1:
        problems.append(f"{where}: leased whole and once more, to {_leases(claims)}")
    if mig and shared:
        problems.append(f"{where}: leased shared and as MIG, to {_leases([*mig, *shared])}")
    problems += [f"{where}: {text}" for text in _shared_problems(device, shared, reserve_bytes)]
    problems += [f"{where}: {text}" for text in _mig_problems(device, mig)]
    return problems


def host_overlaps(host: HostSnapshot, claims: Sequence[Claim]) -> list[str]:
    """The same for a host's processors and RAM, of which the reserve is not counted."""
    problems = []
    cpu = sum(claim.cpu_milli for claim in claims)
    ram = sum(claim.ram_bytes for claim in claims)
    if cpu > host.cpu_milli:
        problems.append(f"host {host.node_id}: {cpu} of {host.cpu_milli} milli-cores are leased")
    if ram > host.ram_bytes:
        leased, has = format_memory(ram), format_memory(host.ram_bytes)
        problems.append(f"host {host.node_id}: {leased} of {has} RAM are leased")
    return problems


def _shared_problems(
    device: DeviceSnapshot, shared: Sequence[Claim], reserve_bytes: int
) -> list[str]:
    problems = [
        f"lease {claim.lease_id} holds a share of nothing"
        for claim in shared
        if claim.memory_bytes <= 0
    ]
    memory = sum(claim.memory_bytes for claim in shared)
    if device.memory_bytes is not None and shared and memory > device.memory_bytes - reserve_bytes:
        room = format_memory(max(0, device.memory_bytes - reserve_bytes))
        problems.append(f"{format_memory(memory)} of {room} are leased, to {_leases(shared)}")
    milli = sum(claim.share_milli for claim in shared)
    if milli > 1000:
        problems.append(f"{milli} thousandths are leased, to {_leases(shared)}")
    return problems


def _mig_problems(device: DeviceSnapshot, claims: Sequence[Claim]) -> list[str]:
    layout = geometry(device.model, device.memory_bytes)
    profiles = {instance.uuid: instance.profile for instance in device.instances}
    problems = []
    by_slot: dict[int, set[str]] = {}
    by_instance: dict[str, set[str]] = {}
    compute = 0
    for claim in claims:
        by_instance.setdefault(claim.mig_uuid or "", set()).add(claim.lease_id)
        compute += profile_compute(profiles.get(claim.mig_uuid or "", "")) or 1
        if claim.mig_start is not None and claim.mig_size is not None:
            for slot in range(claim.mig_start, claim.mig_start + claim.mig_size):
                by_slot.setdefault(slot, set()).add(claim.lease_id)
    for uuid, leases in sorted(by_instance.items()):
        if len(leases) > 1:
            problems.append(f"MIG instance {uuid} is leased to {', '.join(sorted(leases))}")
    for slot, leases in sorted(by_slot.items()):
        if len(leases) > 1:
            problems.append(f"memory slot {slot} is leased to {', '.join(sorted(leases))}")
    outside = sorted(
        slot for slot in by_slot if not 0 <= slot < (layout.memory_slots if layout else 8)
    )
    if outside:
        problems.append(f"memory slot {outside[0]} is leased and does not exist")
    if compute > (layout.compute_slices if layout else 7):
        problems.append(f"{compute} compute slices are leased, to {_leases(claims)}")
    return problems


def _leases(claims: Iterable[Claim]) -> str:
    return ", ".join(sorted({claim.lease_id for claim in claims}))
