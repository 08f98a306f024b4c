"""The stateful model must hold, must really do things, and must catch every planted bug."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import leasemodel
from mutants import MUTANTS


def _settings(examples: int, *, shrink: bool = True) -> settings:
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    return settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        database=None,
        derandomize=True,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )


def _run(examples: int, **more: bool) -> None:
    run_state_machine_as_test(leasemodel.LeaseModel, settings=_settings(examples, **more))


def test_the_model_holds_and_does_things() -> None:
    leasemodel.COVERAGE.clear()
    examples = int(os.environ.get("GPUSLICE_MODEL_EXAMPLES", "120"))
    _run(examples)
    did = leasemodel.COVERAGE
    print(f"model coverage over {examples} examples: {dict(did)}")
    for what in ("grant", "start", "stop", "death", "crash", "billed", "entries", "refused"):
        assert did[what] >= examples / 10, f"too few of {what}: {dict(did)}"


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_the_model_catches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that stays green with this bug in the product proves nothing about it."""
    MUTANTS[name](monkeypatch)
    with pytest.raises(BaseException) as caught:
        _run(300, shrink=False)
    assert not isinstance(caught.value, KeyboardInterrupt | pytest.fail.Exception)
