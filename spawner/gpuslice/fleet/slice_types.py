"""The slice types on offer: those of ``gpuslice.toml``, or without any, what the hardware has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuslice.settings import Settings
from gpuslice.wire import Enforcement, Inventory, SliceKind


@dataclass(frozen=True)
class SliceType:
    """One offering. What it needs on a device is decided by ``kind``.

    ``memory_bytes`` of a share is its cap; with None the cap is ``share_milli`` of the memory (less
    the reserve) of whichever device it is placed on. For the other kinds it only informs.
    """

    name: str
    title: str
    kind: SliceKind
    #: Only devices whose model contains this text, in any case.
    model: str | None
    memory_bytes: int | None
    share_milli: int | None
    mig_profile: str | None
    cpu_milli: int
    ram_bytes: int
    rate_u_per_hour: int
    minimum_enforcement: Enforcement
    #: Where the rate comes from: ``configured``, ``table``, ``generic`` or ``free``.
    price_source: str = "configured"


@dataclass(frozen=True)
class NotOffered:
    """A slice type that could be, but is not, on offer here, and why, in words."""

    name: str
    reason: str


@dataclass(frozen=True)
class SliceCatalogue:
    """What is offered and what is not, both in a fixed order."""

    types: tuple[SliceType, ...]
    not_offered: tuple[NotOffered, ...]

    def get(self, name: str) -> SliceType | None:
        """The offered type of this name."""
        return next((offered for offered in self.types if offered.name == name), None)


def slice_types(
    settings: Settings, inventories: Sequence[Inventory], *, strict: bool = True
) -> SliceCatalogue:
    """What can be leased on these nodes.

    Raises:
        SettingsError: a ``[[slice]]`` is larger than any device or host (``strict``: at the start;
            otherwise it is listed as not offered).
    """
    raise NotImplementedError
