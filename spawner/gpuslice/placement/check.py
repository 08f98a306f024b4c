"""The independent check that live claims do not overlap, for ``gpuslice ledger verify``."""

from __future__ import annotations

from collections.abc import Sequence

from gpuslice.placement.snapshot import Claim, DeviceSnapshot, HostSnapshot


def overlaps(
    device: DeviceSnapshot, claims: Sequence[Claim], *, reserve_bytes: int = 0
) -> list[str]:
    """One sentence for each way in which the claims do not fit on the device together."""
    raise NotImplementedError


def host_overlaps(host: HostSnapshot, claims: Sequence[Claim]) -> list[str]:
    """The same for a host's processors and RAM."""
    raise NotImplementedError
