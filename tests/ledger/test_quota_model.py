"""The model of limits must hold, must really do things, and must catch every planted bug."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import quotamodel
from gpuslice.ledger.database import LedgerError
from gpuslice.service import once
from mutants import MUTANTS as MUTANTS_OF_LEASES
from quotamutants import BY_TIME, MUTANTS

#: Bugs that need a rare meeting of events, so many examples: minutes each on a slow machine.
RARE: set[str] = set()
#: What has to happen in at least one of so many examples, or the model proves nothing.
AT_LEAST = {
    "grant": 1, "billed": 1, "tick": 1, "policy": 1, "crash": 2, "with a stop at a limit": 5,
    "budget-limit": 4, "gpu-hours-limit": 15, "leases-limit": 10, "offer": 5, "credit": 1,
    "paid by credit": 2, "refund": 15, "price": 10, "stop": 10, "death": 10, "warned": 10,
}  # fmt: skip


@pytest.fixture(autouse=True)
def waits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model waits for nobody's answer; other tests of this process do."""
    monkeypatch.setattr(once, "_WAIT_S", once._WAIT_S)


def _run(examples: int, *, fixed: bool = True, shrink: bool = True) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        database=None,
        derandomize=fixed,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(quotamodel.QuotaModel, settings=chosen)


def _hold(examples: int, *, fixed: bool) -> None:
    quotamodel.COVERAGE.clear()
    _run(examples, fixed=fixed)
    did = quotamodel.COVERAGE
    print(f"model coverage over {examples} examples: {dict(sorted(did.items()))}")
    for what, once_in in AT_LEAST.items():
        assert did[what] >= examples / once_in, f"too few of {what}: {dict(did)}"


def test_the_list_of_planted_bugs_is_what_is_planted() -> None:
    planted = MUTANTS_OF_LEASES | MUTANTS | BY_TIME
    rows = [f"| `{name}` | {' '.join((p.__doc__ or '').split())} |" for name, p in planted.items()]
    said = Path(__file__).with_name("BUGS.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in said if line.startswith("| `")] == rows


def test_the_model_holds_and_does_things() -> None:
    _hold(30, fixed=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_model_holds_with_many_new_seeds() -> None:
    _hold(500, fixed=False)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name in RARE)) for name in sorted(MUTANTS)],
)
def test_the_model_catches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that stays green with this bug in the product proves nothing about it."""
    MUTANTS[name](monkeypatch)
    # An assertion of the model, or the database's own constraints; a mutant that merely crashes
    # (a TypeError, say) proves nothing.
    with pytest.raises((AssertionError, LedgerError)):
        _run(100, shrink=False)
