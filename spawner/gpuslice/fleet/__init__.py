"""Which slices the hardware can be leased as, what they cost, and how well their caps are held.

Invariants:

- Everything here is a pure function of settings and inventories; nothing opens NVML, a file or a
  socket, and the same input gives the same names, order and prices.
- A slice type is on offer, or stands in ``SliceCatalogue.not_offered`` with the reason. None
  disappears without a word.
- A share of a real GPU is on offer only where its cap is held at ``minimum_enforcement`` or better.
- What is not available (``None``) is never taken for zero.

Not owned here: reading devices (:mod:`gpuslice.nvml` and the node), which device a lease goes on
(:mod:`gpuslice.placement`), who holds what and what was paid (:mod:`gpuslice.ledger`).
"""

from gpuslice.fleet.enforcement import achieved, share_level
from gpuslice.fleet.slice_types import NotOffered, SliceCatalogue, SliceType, slice_types

__all__ = [
    "NotOffered",
    "SliceCatalogue",
    "SliceType",
    "achieved",
    "share_level",
    "slice_types",
]
