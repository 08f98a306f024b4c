"""Which device a slice goes on: pure functions from a snapshot of the fleet to a place or a reason.

Invariants:

- No I/O, no clock, no randomness: the same snapshot gives the same answer.
- Whole, shared and MIG claims on one device exclude each other; one whole claim is alone; shared
  caps sum to at most the memory less the reserve and shares to at most 1000 milli; MIG claims
  overlap in no memory slot and stay inside the compute budget.
- Only devices, instances and hosts in state ``ok`` are granted.
- :func:`overlaps` says the same from the other side, in code of its own, for ``ledger verify``.

Not owned here: the claim's row and the raising of the device's version (:mod:`gpuslice.ledger`
and :mod:`gpuslice.broker`; a place is a proposal until that update hits), making or destroying MIG
instances, what is on offer (:mod:`gpuslice.fleet`).
"""

from gpuslice.placement.check import host_overlaps, overlaps
from gpuslice.placement.nodes import NodeAnswers
from gpuslice.placement.place import Capacity, capacity, place
from gpuslice.placement.snapshot import (
    Claim,
    DeviceSnapshot,
    FleetSnapshot,
    HostSnapshot,
    MigInstance,
    NodeSnapshot,
    NoPlace,
    Placement,
)

__all__ = [
    "Capacity",
    "Claim",
    "DeviceSnapshot",
    "FleetSnapshot",
    "HostSnapshot",
    "MigInstance",
    "NoPlace",
    "NodeAnswers",
    "NodeSnapshot",
    "Placement",
    "capacity",
    "host_overlaps",
    "overlaps",
    "place",
]
