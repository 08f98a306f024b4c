"""MIG geometry: which profiles a GPU model has, where they may start, and how large they are.

Source: the placements that ``nvidia-smi mig -lgipp`` prints (facts on GPU slicing, section 4).
Starts and sizes are memory slots. A100, H100 and H200 have 8 of them and 7 compute slices, an A30
has 4 and 4. NVML's mock libraries have other tables for Hopper; those are wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpuslice.units import GIB


@dataclass(frozen=True)
class MigProfile:
    """One profile on one GPU model: compute slices, size and possible starts in memory slots."""

    name: str
    compute: int
    size: int
    starts: tuple[int, ...]
    #: How many fit on one GPU; a profile with media extensions (``+me``) exists once.
    most: int


@dataclass(frozen=True)
class MigGeometry:
    """What one GPU model can be cut into."""

    memory_slots: int
    compute_slices: int
    profiles: tuple[MigProfile, ...]

    def profile(self, name: str) -> MigProfile | None:
        return next((profile for profile in self.profiles if profile.name == name), None)


def geometry(model: str, memory_bytes: int | None) -> MigGeometry | None:
    """The geometry of a model as NVML names it; None for a model that is not in the table.

    ``memory_bytes`` tells an A100 of 40 GB from one of 80 GB, on which the same profile name means
    another size; without it the model's text must say.
    """
    if re.search(r"\bA30\b", model):
        return _A30
    if re.search(r"\bH200\b", model):
        return _H200
    if re.search(r"\b[AH]100\b", model):
        size = _memory_gib(model, memory_bytes)
        if size is not None:
            return _GB40 if size < 48 else _GB80 if size < 88 else _GB94
    return None


def profile_compute(name: str) -> int | None:
    """Compute slices of a profile, which its name states: 3 for ``3g.40gb``."""
    match = re.match(r"([1-9])g\.\d+gb", name)
    return int(match[1]) if match else None


def slot_preference(compute: int | None, start: int | None) -> int:
    """Sort key of the slots for one profile: 1g and 3g take the highest, the rest the lowest.

    So small instances stay out of the way of those that can only start at slot 0. With best fit
    over GPUs it was as good as anything tried (facts on placement, section 2: HAMi's order).
    """
    start = start or 0
    return -start if compute in (1, 3) else start


# --- the table ------------------------------------------------------------------------------


def _eight_slots(one: int, two: int, three: int, four: int, seven: int) -> MigGeometry:
    """The layout of A100, H100 and H200, given the gigabytes in each profile's name."""
    ones = (0, 1, 2, 3, 4, 5, 6)
    return MigGeometry(
        memory_slots=8,
        compute_slices=7,
        profiles=(
            MigProfile(f"1g.{one}gb", 1, 1, ones, 7),
            MigProfile(f"1g.{one}gb+me", 1, 1, ones, 1),
            # One compute slice with double memory (profile id 15): named by the memory of a 2g.
            MigProfile(f"1g.{two}gb", 1, 2, (0, 2, 4, 6), 4),
            MigProfile(f"2g.{two}gb", 2, 2, (0, 2, 4), 3),
            MigProfile(f"3g.{three}gb", 3, 4, (0, 4), 2),
            MigProfile(f"4g.{four}gb", 4, 4, (0,), 1),
            MigProfile(f"7g.{seven}gb", 7, 8, (0,), 1),
        ),
    )


_GB40 = _eight_slots(5, 10, 20, 20, 40)
_GB80 = _eight_slots(10, 20, 40, 40, 80)
_GB94 = _eight_slots(12, 24, 47, 47, 94)
_H200 = _eight_slots(18, 35, 71, 71, 141)
_A30 = MigGeometry(
    memory_slots=4,
    compute_slices=4,
    profiles=(
        MigProfile("1g.6gb", 1, 1, (0, 1, 2, 3), 4),
        MigProfile("1g.6gb+me", 1, 1, (0, 1, 2, 3), 1),
        MigProfile("2g.12gb", 2, 2, (0, 2), 2),
        MigProfile("2g.12gb+me", 2, 2, (0, 2), 1),
        MigProfile("4g.24gb", 4, 4, (0,), 1),
    ),
)


def _memory_gib(model: str, memory_bytes: int | None) -> int | None:
    if memory_bytes is not None:
        return memory_bytes // GIB
    match = re.search(r"\b(\d{2,3})GB\b", model)
    return int(match[1]) if match else None
