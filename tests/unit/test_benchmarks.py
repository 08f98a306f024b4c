"""The benchmarks' own arithmetic, and that they can be called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "spawn"))

from figures import Sample, paired_ratio, table  # noqa: E402


def test_the_ratio_is_of_pairs_and_one_slow_start_does_not_decide() -> None:
    assert paired_ratio([1.1, 2.2, 30.0], [1.0, 2.0, 1.0]) == pytest.approx(1.1)
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_a_spread_is_the_middle_half_and_the_extremes() -> None:
    sample = Sample((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0))
    assert sample.median == 4.0
    assert sample.spread == "2.00-6.00 (1.00-7.00)"
    assert Sample((3.0, 1.0)).spread == "1.00, 3.00"


def test_the_table_is_markdown_with_equal_columns() -> None:
    assert table(["a", "bb"], [["long", "1"], ["c", "22"]]).splitlines() == [
        "| a    | bb |",
        "| ---- | -- |",
        "| long | 1  |",
        "| c    | 22 |",
    ]


def test_the_benchmark_of_starts_can_be_called() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/spawn", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--pairs" in done.stdout
