"""Default prices of GPUs by model, and of a part of a GPU; an administrator's own price wins.

The table is section 8 of the facts on GPU slicing: what public clouds asked on demand between
September and November 2026, in US dollars per GPU-hour. Providers differ by a factor of 4.6, so
these are a starting point for a demo, not a recommendation. The numbers are taken unconverted in
the platform's currency, which is tolerable only for currencies near parity with the dollar; for any
other, slice types without a price of their own are not offered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from gpuslice.units import GIB, parse_money

#: Currencies in which a dollar figure is still a sensible default.
NEAR_PARITY = frozenset({"USD", "EUR", "GBP", "CHF"})

#: Model (a pattern over NVML's name, first match wins) and price per hour.
_TABLE: tuple[tuple[str, str], ...] = (
    (r"\bB200\b", "6.50"),
    (r"\bGH200\b", "2.30"),
    (r"\bH200\b", "4.50"),
    (r"\bH100\b.*\b(PCIe|NVL)\b", "3.00"),
    (r"\bH100\b", "3.50"),
    (r"\bA100\b.*\b40GB\b", "1.50"),
    (r"\bA100\b", "1.80"),
    (r"\bL40S\b", "1.10"),
    (r"\bL40\b", "0.90"),
    (r"\bL4\b", "0.60"),
    (r"\bA10G?\b", "0.90"),
    (r"\bRTX PRO 6000\b", "1.50"),
    (r"\bRTX 5090\b", "0.70"),
    (r"\bRTX 4090\b", "0.50"),
    (r"\bRTX 3090\b", "0.25"),
    (r"\bV100\b", "0.40"),
    (r"\bT4\b", "0.30"),
)
#: For a model that is not in the table: per GiB of memory and hour, about what the table's cheaper
#: half comes to. Without it nobody could try the platform on a laptop's GPU.
GENERIC_U_PER_GIB = parse_money("0.02")
#: The memory that a GPU counts with where NVML does not tell it.
GENERIC_GIB = 8


@dataclass(frozen=True)
class GpuPrice:
    """Micro-units per hour of a whole GPU, and whether ``table`` or ``generic`` says so."""

    rate_u_per_hour: int
    source: str


def gpu_price(model: str, memory_bytes: int | None) -> GpuPrice:
    """The default price of a whole GPU of this model (as NVML names it)."""
    if "laptop" not in model.lower():
        for pattern, price in _TABLE:
            if re.search(pattern, model):
                return GpuPrice(parse_money(price), "table")
    gib = GENERIC_GIB if memory_bytes is None else max(1, round(Fraction(memory_bytes, GIB)))
    return GpuPrice(gib * GENERIC_U_PER_GIB, "generic")


def part_price_u(gpu_rate_u: int, *parts: Fraction) -> int:
    """Micro-units per hour of a part of a GPU: the largest of its shares times the GPU's price.

    Whoever takes a quarter of the memory and half of the compute leaves half a GPU to sell. Exact,
    then rounded down to a whole micro-unit, in the customer's favour as everywhere.
    """
    share = max(parts)
    if not 0 < share <= 1:
        raise ValueError(f"{share} is no part of a GPU")
    return gpu_rate_u * share.numerator // share.denominator
