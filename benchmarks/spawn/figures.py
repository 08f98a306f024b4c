"""From measured seconds to medians, spreads, ratios and a table; pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Seconds of the same thing, measured several times."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """The middle half, and the extremes; with less than four numbers all of them."""
        if len(self.seconds) < 4:
            return ", ".join(f"{one:.2f}" for one in sorted(self.seconds))
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return f"{low:.2f}-{high:.2f} ({min(self.seconds):.2f}-{max(self.seconds):.2f})"


def paired_ratio(ours: Sequence[float], stock: Sequence[float]) -> float:
    """The median of the ratios of each pair, which were measured one right after the other."""
    return statistics.median(mine / theirs for mine, theirs in zip(ours, stock, strict=True))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, with columns of equal width."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])
