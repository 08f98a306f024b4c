"""How much RAM of the host a slice has that was derived from the hardware, not written down.

With the docker engine this is the limit of the server's container, so it must be of use: each GPU
gets an equal share of what the host has beside its reserve and one CPU slice, and a part of a GPU
the same part of that share. So all slices of all GPUs fit together, and one without a GPU beside
them. The local engine limits nothing and sets the same small amount aside for everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from gpuslice.fleet import mig
from gpuslice.units import GIB, MIB
from gpuslice.wire import DeviceReport, Inventory

#: With less no notebook can import a framework: smaller hosts run fewer servers at a time instead.
LEAST = GIB
_CPU_MOST = 4 * GIB
_CPU_PART = 4
_STEP = 256 * MIB


def cpu_ram(inventories: Sequence[Inventory], reserve: int) -> int:
    """RAM in bytes of a slice without a GPU: a quarter of the host's, at most 4 GiB."""
    rooms = [_room(inventory, reserve) for inventory in inventories if inventory.engine != "local"]
    return min((_cpu(room) for room in rooms), default=LEAST)


def gpu_ram(inventories: Sequence[Inventory], reserve: int, model: str, part: Fraction) -> int:
    """RAM in bytes of a slice that is this part of a GPU of this model, on whichever node."""
    found = []
    for inventory in inventories:
        gpus = [device.model for device in inventory.devices if device.kind == "gpu"]
        if inventory.engine != "local" and model in gpus:
            room = _room(inventory, reserve)
            found.append(max(LEAST, _rounded((room - _cpu(room)) * part / len(gpus))))
    return min(found, default=LEAST)


def mig_part(gpu: DeviceReport, instance: DeviceReport) -> Fraction:
    """The part of a GPU's memory that an instance has: those of all its instances sum to <= 1."""
    layout = mig.geometry(gpu.model, gpu.memory_bytes)
    profile = layout.profile(instance.mig_profile or "") if layout is not None else None
    if layout is not None and profile is not None:
        return Fraction(profile.size, layout.memory_slots)
    if instance.memory_bytes and gpu.memory_bytes:
        return min(Fraction(1), Fraction(instance.memory_bytes, gpu.memory_bytes))
    # The name states the compute slices, and a GPU has 7 of them.
    return Fraction(min(7, mig.profile_compute(instance.mig_profile or "") or 1), 7)


def _room(inventory: Inventory, reserve: int) -> int:
    return max(0, inventory.host.ram_bytes - reserve)


def _cpu(room: int) -> int:
    return max(LEAST, min(_CPU_MOST, _rounded(Fraction(room, _CPU_PART))))


def _rounded(size: Fraction) -> int:
    return int(size // _STEP) * _STEP
