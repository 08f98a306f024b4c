"""What a service does that finds another one on its ledger, step by step."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from service_world import closed_port, make_config

from gpuslice.broker.meter import MeterLives
from gpuslice.ledger.database import LedgerError
from gpuslice.service import run

LIVES, AWAY = MeterLives("process 7 meters this ledger already"), LedgerError("away")


class Steps:
    """Broker and door in one: what became of each start, and what was shown when."""

    def __init__(self, *starts: Exception | None, may_stand_by: bool = True) -> None:
        self._starts = list(starts)
        self.may_stand_by = may_stand_by
        self.did: list[str] = []
        self.is_open = False

    async def start(self) -> None:
        outcome = self._starts.pop(0)
        self.did.append("failed" if outcome else "started")
        if outcome is not None:
            raise outcome

    async def wait_for_meter(self) -> None:
        self.did.append("waited")

    async def run(self) -> None:
        self.did.append("ran")

    def show(self, app: Any) -> None:
        self.is_open = True
        self.did.append("app" if app.settings.get("xsrf_cookies") else "standby")


def outcome(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    monkeypatch.setattr(run, "_AGAIN_S", 0)
    job = run._work(steps, make_config(closed_port()), steps)  # type: ignore[arg-type]
    with pytest.raises((run.StartError, LedgerError)) as caught:
        asyncio.run(job)
    return caught.type


def test_a_standby_outlives_a_take_over_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(LIVES, AWAY, LIVES, None)
    assert outcome(steps, monkeypatch) is run.StartError
    assert steps.did == [
        "failed", "standby", "waited", "failed", "waited", "failed", "waited", "started", "app",
        "ran",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "said"),
    [(Steps(AWAY), LedgerError), (Steps(LIVES, may_stand_by=False), MeterLives)],
    ids=["a database that is away", "SQLite"],
)
def test_a_first_start_that_fails_is_an_end(
    steps: Steps, said: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcome(steps, monkeypatch) is said
    assert steps.did == ["failed"]
