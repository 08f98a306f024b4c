"""Deterministic best fit: the fullest device that still has room, then a fixed order.

Every device gives either a fit or the slug that says why not; the best fit is placed, or the slugs
are turned into one sentence. Best fit over GPUs with a fixed slot order per MIG profile is as good
as anything measured for fleets like these (facts on placement, section 2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from gpuslice.fleet import mig
from gpuslice.fleet.enforcement import achieved, may_share
from gpuslice.fleet.slice_types import SliceType
from gpuslice.placement.snapshot import (
    Claim,
    DeviceSnapshot,
    FleetSnapshot,
    HostSnapshot,
    MigInstance,
    NoPlace,
    Placement,
)
from gpuslice.wire import DeviceState, Enforcement, SliceKind


class Capacity(NamedTuple):
    """How many more of a type could be granted now, and how many if no lease existed."""

    free: int
    total: int


def place(
    fleet: FleetSnapshot,
    slice_type: SliceType,
    *,
    reserve_bytes: int,
    ceilings: Mapping[str, Enforcement],
    lease_id: str = "",
) -> Placement | NoPlace:
    """Where one slice of this type goes in this fleet, or why nowhere.

    Args:
        reserve_bytes: memory of each shared device that is never handed out.
        ceilings: each node's ``Inventory.enforcement_ceiling``; a node that is not named counts as
            ``advisory``.
        lease_id: what both claims of the placement carry.
    """
    found = look(
        fleet.hosts, fleet.devices, slice_type, reserve_bytes=reserve_bytes, ceilings=ceilings,
        lease_id=lease_id,
    )  # fmt: skip
    return best([found], slice_type)


@dataclass(frozen=True)
class Found:
    """The best place in a part of a fleet, or the slugs of all that stands against one there."""

    #: What compares it with others for the same slice (the smallest is best), and the place.
    best: tuple[tuple[Any, ...], Placement] | None
    refused: frozenset[str]


def look(
    hosts: Iterable[HostSnapshot],
    devices: Iterable[DeviceSnapshot],
    slice_type: SliceType,
    *,
    reserve_bytes: int,
    ceilings: Mapping[str, Enforcement],
    lease_id: str = "",
) -> Found:
    """What a part of a fleet has for one slice; its devices' hosts have to be among ``hosts``."""
    if slice_type.kind is SliceKind.CPU:
        return _look_at_hosts(hosts, slice_type, ceilings, lease_id)
    room = {host.node_id: (host, _host_refusal(host, slice_type)) for host in hosts}
    chosen: tuple[_Order, _Fit, HostSnapshot] | None = None
    refused: set[str] = set()
    for device in devices:
        ceiling = ceilings.get(device.node_id, Enforcement.ADVISORY)
        fit = _fit(device, slice_type, reserve_bytes, ceiling)
        if isinstance(fit, str):
            refused.add(fit)
            continue
        host, why = room.get(device.node_id, (None, "host-down"))
        if host is None or why is not None:
            refused.add(why or "host-down")
            continue
        order = _Order(*fit.order, _free_ram(host), device.node_id, device.uuid)
        if chosen is None or order < chosen[0]:
            chosen = (order, fit, host)
    if chosen is None:
        return Found(None, frozenset(refused))
    order, fit, host = chosen
    placement = _placement(fit, host, slice_type, ceilings, lease_id)
    return Found((order, placement), frozenset(refused))


def best(found: Iterable[Found], slice_type: SliceType) -> Placement | NoPlace:
    """The best place of all parts of a fleet, or why there is none in any."""
    chosen: tuple[tuple[Any, ...], Placement] | None = None
    refused: set[str] = set()
    for one in found:
        refused |= one.refused
        if one.best is not None and (chosen is None or one.best[0] < chosen[0]):
            chosen = one.best
    return _no_place(slice_type, refused) if chosen is None else chosen[1]


def capacity(
    fleet: FleetSnapshot,
    slice_type: SliceType,
    *,
    reserve_bytes: int,
    ceilings: Mapping[str, Enforcement],
) -> Capacity:
    """How many of this type could be granted if only this type were granted.

    ``free`` is what repeated calls of :func:`place` would find now, ``total`` what they would find
    in the same fleet, with the same states, if no lease existed.
    """
    empty = FleetSnapshot(
        tuple(replace(host, claims=()) for host in fleet.hosts),
        tuple(replace(device, claims=()) for device in fleet.devices),
    )
    return Capacity(
        _count(fleet, slice_type, reserve_bytes, ceilings),
        _count(empty, slice_type, reserve_bytes, ceilings),
    )


# --- one device -----------------------------------------------------------------------------


class _Order(NamedTuple):
    """What is compared between fits, in this order; the smallest is placed."""

    untouched: bool
    left: int
    preference: int
    host_ram: int
    node_id: str
    uuid: str


@dataclass(frozen=True)
class _Fit:
    """One way to grant a slice on one device, and what makes it a good one."""

    device: DeviceSnapshot
    claim: Claim
    #: An untouched device is broken into only when no touched one has room, then least left first.
    order: tuple[bool, int, int]


def _fit(
    device: DeviceSnapshot, wanted: SliceType, reserve_bytes: int, ceiling: Enforcement
) -> _Fit | str:
    """A fit, or the slug of the reason why this device has none."""
    if not wanted.suits_model(device.model):
        return "no-such-device"
    if wanted.kind is SliceKind.MIG:
        return _fit_mig(device, wanted)
    if device.mig_enabled:
        return "no-such-device"
    if wanted.kind is SliceKind.EXCLUSIVE:
        return _fit_whole(device)
    return _fit_share(device, wanted, reserve_bytes, ceiling)


def _fit_whole(device: DeviceSnapshot) -> _Fit | str:
    if device.state is not DeviceState.OK:
        return "devices-sick"
    if device.claims:
        return "gpu-full"
    memory = device.memory_bytes or 0
    return _Fit(device, Claim("", whole=True, memory_bytes=memory), (True, memory, 0))


def _fit_share(
    device: DeviceSnapshot, wanted: SliceType, reserve_bytes: int, ceiling: Enforcement
) -> _Fit | str:
    cap = wanted.memory_on(device.memory_bytes, reserve_bytes)
    if cap is None or device.memory_bytes is None:
        return "memory-unknown"
    if not may_share(device, ceiling, wanted.minimum_enforcement):
        return "enforcement-too-low"
    room = device.memory_bytes - reserve_bytes
    if not 0 < cap <= room:
        return "slice-too-large"
    if device.state is not DeviceState.OK:
        return "devices-sick"
    if any(claim.whole or claim.mig_uuid is not None for claim in device.claims):
        return "gpu-full"
    share = wanted.share_milli or 0
    memory_left = room - sum(claim.memory_bytes for claim in device.claims) - cap
    share_left = 1000 - sum(claim.share_milli for claim in device.claims) - share
    if memory_left < 0 or share_left < 0:
        return "gpu-full"
    claim = Claim("", memory_bytes=cap, share_milli=share)
    return _Fit(device, claim, (not device.claims, memory_left, share_left))


# --- MIG ------------------------------------------------------------------------------------


def _fit_mig(device: DeviceSnapshot, wanted: SliceType) -> _Fit | str:
    fits = [i for i in device.instances if i.profile == wanted.mig_profile]
    if not device.mig_enabled or not fits:
        return "no-such-device"
    if device.state is not DeviceState.OK:
        return "devices-sick"
    healthy = [instance for instance in fits if instance.state is DeviceState.OK]
    if not healthy:
        return "devices-sick"
    free = [instance for instance in healthy if _instance_is_free(device, instance)]
    if not free:
        return "gpu-full"
    best = min(free, key=lambda i: (mig.slot_preference(_compute(i), i.start), i.uuid))
    claim = Claim(
        "",
        memory_bytes=best.memory_bytes or 0,
        mig_uuid=best.uuid,
        mig_start=best.start,
        mig_size=best.size,
    )
    left = -sum(claim.mig_size or 1 for claim in device.claims)
    return _Fit(device, claim, (not device.claims, left, 0))


def _instance_is_free(device: DeviceSnapshot, instance: MigInstance) -> bool:
    """No claim in its way, and its compute slices are still within the GPU's budget."""
    if any(_in_the_way(device, instance, claim) for claim in device.claims):
        return False
    layout = mig.geometry(device.model, device.memory_bytes)
    budget = layout.compute_slices if layout else 7
    used = sum(_claimed_compute(device, claim) for claim in device.claims)
    return used + (_compute(instance) or budget) <= budget


def _in_the_way(device: DeviceSnapshot, instance: MigInstance, claim: Claim) -> bool:
    if claim.whole or claim.mig_uuid is None or claim.mig_uuid == instance.uuid:
        return True
    slots = (instance.start, instance.size, claim.mig_start, claim.mig_size)
    if instance.start is None or instance.size is None or None in slots:
        # Instances that exist at the same time cannot overlap. A claim on one that is gone can.
        return all(other.uuid != claim.mig_uuid for other in device.instances)
    start, size = claim.mig_start or 0, claim.mig_size or 0
    return instance.start < start + size and start < instance.start + instance.size


def _compute(instance: MigInstance) -> int | None:
    return instance.compute or mig.profile_compute(instance.profile)


def _claimed_compute(device: DeviceSnapshot, claim: Claim) -> int:
    """Compute slices of a claim; of an instance that is gone, the most its size can have."""
    for instance in device.instances:
        if instance.uuid == claim.mig_uuid:
            return _compute(instance) or 1
    return min(claim.mig_size or 1, 7)


# --- hosts ----------------------------------------------------------------------------------


def _look_at_hosts(
    hosts: Iterable[HostSnapshot], wanted: SliceType, ceilings: Mapping[str, Enforcement],
    lease_id: str,
) -> Found:  # fmt: skip
    refused: set[str] = set()
    fits: list[tuple[int, str, HostSnapshot]] = []
    for host in hosts:
        why = _host_refusal(host, wanted)
        if why is None:
            fits.append((_free_ram(host), host.node_id, host))
        else:
            refused.add(why)
    if not fits:
        return Found(None, frozenset(refused))
    ram, node_id, host = min(fits, key=lambda fit: fit[:2])
    placement = _placement(None, host, wanted, ceilings, lease_id)
    return Found(((ram, node_id), placement), frozenset(refused))


def _host_refusal(host: HostSnapshot, wanted: SliceType) -> str | None:
    if host.state is not DeviceState.OK:
        return "host-down"
    if _free_cpu(host) < wanted.cpu_milli:
        return "host-cpu-full"
    if _free_ram(host) < wanted.ram_bytes:
        return "host-ram-full"
    return None


def _free_cpu(host: HostSnapshot) -> int:
    return host.cpu_milli - sum(claim.cpu_milli for claim in host.claims)


def _free_ram(host: HostSnapshot) -> int:
    return host.ram_bytes - host.reserve_ram - sum(claim.ram_bytes for claim in host.claims)


# --- answers --------------------------------------------------------------------------------


def _placement(
    fit: _Fit | None,
    host: HostSnapshot,
    wanted: SliceType,
    ceilings: Mapping[str, Enforcement],
    lease_id: str,
) -> Placement:
    device = fit.device if fit else None
    ceiling = ceilings.get(host.node_id, Enforcement.ADVISORY)
    return Placement(
        node_id=host.node_id,
        device_uuid=device.uuid if device else None,
        mig_uuid=fit.claim.mig_uuid if fit else None,
        device_version=device.version if device else None,
        host_version=host.version,
        device_claim=replace(fit.claim, lease_id=lease_id) if fit else None,
        host_claim=Claim(lease_id, cpu_milli=wanted.cpu_milli, ram_bytes=wanted.ram_bytes),
        enforcement=achieved(wanted.kind, device, ceiling),
    )


#: Slugs with the sentence for each, the most hopeful first: that one is the answer.
_REASONS: Mapping[str, str] = {
    "host-ram-full": "The host has too little RAM left.",
    "host-cpu-full": "The host has too few processors left.",
    "gpu-full": "All GPUs that could carry it are in use.",
    "host-down": "The host is not in service.",
    "devices-sick": "No GPU that could carry it is in service.",
    "enforcement-too-low": "Its memory cap cannot be held as strongly as it must be.",
    "memory-unknown": "The size of the GPU's memory is not available.",
    "slice-too-large": "No GPU is large enough.",
    "no-such-device": "There is no such device.",
}


def _no_place(wanted: SliceType, refused: Collection[str]) -> NoPlace:
    nothing = "host-down" if wanted.kind is SliceKind.CPU else "no-such-device"
    slug = next((slug for slug in _REASONS if slug in refused), nothing)
    return NoPlace(slug, _REASONS[slug])


# --- counting -------------------------------------------------------------------------------


def _count(
    fleet: FleetSnapshot,
    wanted: SliceType,
    reserve_bytes: int,
    ceilings: Mapping[str, Enforcement],
) -> int:
    """The hosts are all that devices have in common, so each host's devices can be added up."""
    total = 0
    for host in fleet.hosts:
        room = _count_host(host, wanted)
        if wanted.kind is not SliceKind.CPU and room:
            ceiling = ceilings.get(host.node_id, Enforcement.ADVISORY)
            devices = [device for device in fleet.devices if device.node_id == host.node_id]
            room = min(room, _count_devices(devices, wanted, reserve_bytes, ceiling))
        total += room
    return total


def _count_host(host: HostSnapshot, wanted: SliceType) -> int:
    if _host_refusal(host, wanted) is not None:
        return 0
    by_ram = _free_ram(host) // wanted.ram_bytes
    return min(by_ram, _free_cpu(host) // wanted.cpu_milli) if wanted.cpu_milli else by_ram


def _count_devices(
    devices: Sequence[DeviceSnapshot], wanted: SliceType, reserve_bytes: int, ceiling: Enforcement
) -> int:
    total = 0
    for device in devices:
        fit = _fit(device, wanted, reserve_bytes, ceiling)
        while isinstance(fit, _Fit):
            if wanted.kind is SliceKind.SHARED:
                # A thousandth of a GPU fits a thousand times: divide instead of filling up.
                total += 1 + _more_shares(fit)
                break
            total += 1
            device = replace(device, claims=(*device.claims, fit.claim))
            fit = _fit(device, wanted, reserve_bytes, ceiling)
    return total


def _more_shares(fit: _Fit) -> int:
    _, memory_left, share_left = fit.order
    by_memory = memory_left // fit.claim.memory_bytes
    return (
        min(by_memory, share_left // fit.claim.share_milli) if fit.claim.share_milli else by_memory
    )
