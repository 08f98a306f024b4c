"""The values that placement works on: claims, devices, hosts, nodes, a fleet, and two answers."""

from __future__ import annotations

from dataclasses import dataclass

from gpuslice.wire import DeviceState, Enforcement


@dataclass(frozen=True)
class Claim:
    """The part of one device, or of one host, that a live lease holds.

    On a GPU exactly one of: ``whole``; ``mig_uuid`` with its memory slots ``mig_start`` and
    ``mig_size`` (None where NVML does not tell them); ``memory_bytes`` and ``share_milli`` of a
    share. A MIG claim is made on the parent GPU. On a host: ``cpu_milli`` and ``ram_bytes``.
    """

    lease_id: str
    whole: bool = False
    memory_bytes: int = 0
    share_milli: int = 0
    mig_uuid: str | None = None
    mig_start: int | None = None
    mig_size: int | None = None
    cpu_milli: int = 0
    ram_bytes: int = 0


@dataclass(frozen=True)
class MigInstance:
    """A MIG instance that exists on a GPU; start and size in memory slots."""

    uuid: str
    profile: str
    start: int | None
    size: int | None
    compute: int | None
    memory_bytes: int | None
    state: DeviceState = DeviceState.OK


@dataclass(frozen=True)
class DeviceSnapshot:
    """One GPU with its live claims, all read at ``version``. MIG instances are inside their GPU."""

    node_id: str
    uuid: str
    model: str
    memory_bytes: int | None
    state: DeviceState
    version: int
    mig_enabled: bool = False
    simulated: bool = False
    share_enforcement: Enforcement = Enforcement.ADVISORY
    instances: tuple[MigInstance, ...] = ()
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class HostSnapshot:
    """One node's processors (thousandths of a core) and RAM (bytes) with their live claims."""

    node_id: str
    cpu_milli: int
    ram_bytes: int
    reserve_ram: int
    version: int
    state: DeviceState = DeviceState.OK
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, eq=False)
class NodeSnapshot:
    """One node: its processors and RAM, if it has reported them, and its GPUs.

    Never changed, so whoever has worked something out for one need not look at it again; two are
    the same only if they are one object.
    """

    node_id: str
    host: HostSnapshot | None
    devices: tuple[DeviceSnapshot, ...]


@dataclass(frozen=True)
class FleetSnapshot:
    """All hosts and GPUs that may be chosen from."""

    hosts: tuple[HostSnapshot, ...]
    devices: tuple[DeviceSnapshot, ...]


@dataclass(frozen=True)
class Placement:
    """Where a slice may go, and the versions that must not have changed when it is claimed.

    ``device_uuid`` is the GPU whose row is claimed (a MIG instance's parent), ``mig_uuid`` the
    instance; the device to hand to the container is :attr:`leased_uuid`. All device fields are
    None for a CPU slice.
    """

    node_id: str
    device_uuid: str | None
    mig_uuid: str | None
    device_version: int | None
    host_version: int
    device_claim: Claim | None
    host_claim: Claim
    enforcement: Enforcement

    @property
    def leased_uuid(self) -> str | None:
        """The UUID that the server gets to see: the MIG instance's, else the GPU's."""
        return self.mig_uuid or self.device_uuid


@dataclass(frozen=True)
class NoPlace:
    """Why there is no place now: a slug for programs, a sentence for people.

    Slugs: ``no-such-device``, ``slice-too-large``, ``memory-unknown``, ``enforcement-too-low``,
    ``devices-sick``, ``gpu-full``, ``host-down``, ``host-cpu-full``, ``host-ram-full``.
    """

    reason: str
    message: str
