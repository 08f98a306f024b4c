"""The stateful model must hold, must really do things, and must catch every planted bug."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import leasemodel
from gpuslice.ledger.database import LedgerError
from mutants import MUTANTS

#: Bugs that need a rare meeting of events, so many examples: minutes each on a slow machine.
RARE = {
    "free_at_settlement",
    "no_fence",
    "pay_twice",
    "round_each_interval",
    "trust_old_lists",
}


def _run(examples: int, *, fixed: bool = True, shrink: bool = True) -> None:
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    chosen = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        database=None,
        derandomize=fixed,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(leasemodel.LeaseModel, settings=chosen)


def _hold(examples: int, *, fixed: bool) -> None:
    leasemodel.COVERAGE.clear()
    _run(examples, fixed=fixed)
    did = leasemodel.COVERAGE
    print(f"model coverage over {examples} examples: {dict(did)}")
    for what in ("grant", "start", "stop", "death", "crash", "billed", "entries", "refused"):
        assert did[what] >= examples / 10, f"too few of {what}: {dict(did)}"


def test_the_model_holds_and_does_things() -> None:
    _hold(100, fixed=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_model_holds_with_many_new_seeds() -> None:
    _hold(1000, fixed=False)


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
        _run(300, shrink=False)
