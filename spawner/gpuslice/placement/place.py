"""Deterministic best fit: the fullest device that still has room, then a fixed order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gpuslice.fleet.slice_types import SliceType
from gpuslice.placement.snapshot import FleetSnapshot, NoPlace, Placement
from gpuslice.wire import Enforcement


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
    """Where one slice of this type goes in this fleet; claims carry ``lease_id``."""
    raise NotImplementedError


def capacity(
    fleet: FleetSnapshot,
    slice_type: SliceType,
    *,
    reserve_bytes: int,
    ceilings: Mapping[str, Enforcement],
) -> Capacity:
    """How many of this type could be granted if only this type were granted."""
    raise NotImplementedError
