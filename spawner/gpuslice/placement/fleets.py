"""Fleets made from fleets: with one more lease, without some, without a device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from gpuslice.placement.snapshot import DeviceSnapshot, FleetSnapshot, HostSnapshot, Placement
from gpuslice.wire import DeviceState, Enforcement


@dataclass(frozen=True)
class Rules:
    """What `gpuslice.placement.place` needs beside a fleet and a slice type."""

    reserve_bytes: int
    ceilings: Mapping[str, Enforcement]


def with_claims(fleet: FleetSnapshot, placement: Placement) -> FleetSnapshot:
    """The fleet with one more lease in it."""

    def host(one: HostSnapshot) -> HostSnapshot:
        if one.node_id != placement.node_id:
            return one
        return replace(one, claims=(*one.claims, placement.host_claim))

    def device(one: DeviceSnapshot) -> DeviceSnapshot:
        claim = placement.device_claim
        if claim is None or (one.node_id, one.uuid) != (placement.node_id, placement.device_uuid):
            return one
        return replace(one, claims=(*one.claims, claim))

    return FleetSnapshot(tuple(map(host, fleet.hosts)), tuple(map(device, fleet.devices)))


def without_leases(fleet: FleetSnapshot, gone: Collection[str]) -> FleetSnapshot:
    """The fleet when these leases are over."""
    return FleetSnapshot(
        tuple(
            replace(one, claims=tuple(c for c in one.claims if c.lease_id not in gone))
            for one in fleet.hosts
        ),
        tuple(
            replace(one, claims=tuple(c for c in one.claims if c.lease_id not in gone))
            for one in fleet.devices
        ),
    )


def without_device(fleet: FleetSnapshot, key: tuple[str, str] | None) -> FleetSnapshot:
    """The fleet with nothing more to be had on one device, named by (node, uuid)."""
    return FleetSnapshot(
        fleet.hosts,
        tuple(
            replace(one, state=DeviceState.DRAINING) if (one.node_id, one.uuid) == key else one
            for one in fleet.devices
        ),
    )


def without_host(fleet: FleetSnapshot, node_id: str | None) -> FleetSnapshot:
    """The fleet with nothing more to be had on one host."""
    return FleetSnapshot(
        tuple(
            replace(one, state=DeviceState.DRAINING) if one.node_id == node_id else one
            for one in fleet.hosts
        ),
        fleet.devices,
    )


def only_at(fleet: FleetSnapshot, node_id: str, device_uuid: str | None) -> FleetSnapshot:
    """One host of the fleet with one of its devices, or with none."""
    return FleetSnapshot(
        tuple(host for host in fleet.hosts if host.node_id == node_id),
        tuple(d for d in fleet.devices if (d.node_id, d.uuid) == (node_id, device_uuid)),
    )


def put_back(fleet: FleetSnapshot, part: FleetSnapshot) -> FleetSnapshot:
    """The fleet with these hosts and devices of it as they are in ``part``."""
    hosts = {host.node_id: host for host in part.hosts}
    devices = {(device.node_id, device.uuid): device for device in part.devices}
    return FleetSnapshot(
        tuple(hosts.get(host.node_id, host) for host in fleet.hosts),
        tuple(devices.get((d.node_id, d.uuid), d) for d in fleet.devices),
    )


def leases_in(fleet: FleetSnapshot) -> set[str]:
    """The leases that hold something; each holds a part of its host."""
    return {claim.lease_id for host in fleet.hosts for claim in host.claims}
