"""From measured seconds to percentiles."""

from __future__ import annotations

from collections.abc import Sequence


class Times:
    """How long the same thing took, many times; given in seconds, told in milliseconds."""

    def __init__(self, seconds: Sequence[float] = ()) -> None:
        self._ms = [1000 * one for one in seconds]

    def add(self, seconds: float) -> None:
        self._ms.append(1000 * seconds)

    @property
    def mean(self) -> float:
        return sum(self._ms) / len(self._ms)

    @property
    def p50(self) -> float:
        return self.percentile(50)

    @property
    def p99(self) -> float:
        return self.percentile(99)

    def percentile(self, percent: int) -> float:
        """The smallest time that so many percent of all do not exceed."""
        ordered = sorted(self._ms)
        return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]

    def row(self) -> list[str]:
        """Cells of a table: how many, p50, p99 and the longest."""
        if not self._ms:
            return ["0", "-", "-", "-"]
        return [
            str(len(self._ms)), f"{self.p50:.2f}", f"{self.p99:.2f}", f"{max(self._ms):.2f}",
        ]  # fmt: skip


def beyond(ours: Times, least: Times) -> tuple[float, float]:
    """By how much p50 and p99 are above those of what is measured beside it."""
    return ours.p50 - least.p50, ours.p99 - least.p99
