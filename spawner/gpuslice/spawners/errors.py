"""What can go wrong when a hub is configured, or between a spawner and service or engine."""

from __future__ import annotations

from gpuslice.wire import Refusal


class ConfigureError(Exception):
    """The hub cannot be configured; the text is one sentence that says what to change."""


class ServiceUnavailable(Exception):
    """The service did not answer, or not in its own words: nothing is known."""


class ServiceRefused(Exception):
    """The service said no, and why."""

    def __init__(self, status: int, refusal: Refusal) -> None:
        super().__init__(f"{status} {refusal.reason}: {refusal.message}")
        self.status = status
        self.refusal = refusal


class EngineUnavailable(Exception):
    """The engine did not answer: nothing is known."""


class EngineSilent(EngineUnavailable):
    """The call was taken, and no answer came in time."""


class EngineFailed(EngineUnavailable):
    """The engine answered that it failed; the text is its own, and its users may read it."""


class EngineRefused(Exception):
    """The engine said no; the text is why."""
