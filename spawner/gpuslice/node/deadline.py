"""Until when a server that was asked to stop may still run: durable, and by the boot clock."""

from __future__ import annotations

from gpuslice.node.leasedir import LeaseDir, TornFile
from gpuslice.units import SECOND_US

_FILE = "stop.json"


def write_deadline(lease: LeaseDir, grace_s: float, *, boot_id: str, boottime_us: int) -> None:
    """A second, less patient stop shortens the first, and never lengthens it."""
    end_us = boottime_us + int(grace_s * SECOND_US)
    earlier = deadline_us(lease, boot_id)
    if earlier is not None:
        end_us = min(end_us, earlier)
    stop = {"grace_s": grace_s, "boot_id": boot_id, "end_boottime_us": end_us}
    lease.write_json(_FILE, stop)


def deadline_us(lease: LeaseDir, boot_id: str) -> int | None:
    """The end of the grace on the boot clock; None when nobody asked for a stop in this boot."""
    try:
        stop = lease.read_json(_FILE)
        return int(stop["end_boottime_us"]) if stop and stop["boot_id"] == boot_id else None
    except (TornFile, LookupError, TypeError, ValueError):
        return None
