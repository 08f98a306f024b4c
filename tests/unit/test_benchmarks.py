"""The benchmarks' own arithmetic, and that they can be called."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / folder) for folder in ("spawn", "admission")]

from figures import Sample, paired_ratio, table  # noqa: E402
from percentiles import Times, beyond  # noqa: E402


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


BENCHMARKS = sorted(path.parent.name for path in (ROOT / "benchmarks").glob("*/__main__.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_can_be_called_and_says_what_it_takes(name: str) -> None:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    page = (ROOT / "docs" / "developers" / "benchmarks.md").read_text()
    assert f"## `benchmarks/{name}`" in page
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.stdout))
    named = re.findall(rf"BENCH={name} BENCH_ARGS='([^']*)'", page)
    assert {word for line in named for word in line.split() if word[:2] == "--"} <= options
    assert f"BENCH={name} " in page or name == "spawn"


def test_make_names_every_benchmark() -> None:
    found = re.search(r"(?m)^bench: ## .*BENCH=([\w, ]+);", (ROOT / "Makefile").read_text())
    assert found
    assert set(re.split(r", | or ", found[1])) >= set(BENCHMARKS)


def test_a_percentile_is_a_time_that_was_measured() -> None:
    times = Times([one / 1000 for one in range(100, 0, -1)])
    assert (times.p50, times.p99, times.percentile(100)) == pytest.approx((50, 99, 100))
    assert times.mean == pytest.approx(50.5)
    assert Times([0.003]).p99 == pytest.approx(3)
    assert times.row() == ["100", "50.00", "99.00", "100.00"]
    assert Times().row() == ["0", "-", "-", "-"]
    assert beyond(times, Times([0.001, 0.002])) == pytest.approx((49, 97))


def test_the_benchmark_of_admission_grants_and_refuses() -> None:
    """Small as it is here it says nothing about speed; the figures are for a quiet machine."""
    done = subprocess.run(
        [sys.executable, "benchmarks/admission", "--devices", "16", "--users", "40",
         "--entries", "200", "--decisions", "5"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=200,
    )  # fmt: skip
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    counts = {row[1].strip(): row[2].strip() for row in rows}
    assert counts["granted"] == counts["refused at a limit"] == counts["cancelled"] != "0"
    assert int(counts["the smallest transaction"]) > 0
    assert "goal" in done.stdout
