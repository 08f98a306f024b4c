"""What went wrong in a start, in words for its user and for the record."""

from __future__ import annotations

from gpuslice.spawners.errors import (
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    ServiceRefused,
    ServiceUnavailable,
)
from gpuslice.spawners.refusal import SpawnRefused
from gpuslice.wire import Refusal, RequestView, ServerReport

SERVICE_SILENT = "the service that leases GPU slices does not answer"
_NODE_SILENT = "the node that runs servers does not answer"


def as_refusal(error: BaseException) -> SpawnRefused | None:
    """An expected failure in words for its user; None for everything else."""
    match error:
        case SpawnRefused():
            return None
        case ServiceRefused():
            return SpawnRefused.from_refusal(error.status, error.refusal)
        case ServiceUnavailable():
            message = f"No server was started: {SERVICE_SILENT}"
            return SpawnRefused(
                message, reason="service-unavailable", status_code=503, retry_after_s=30
            )
        case EngineUnavailable():
            said = str(error) if isinstance(error, EngineFailed) else _NODE_SILENT
            message = f"No server was started: {said}"
            return SpawnRefused(
                message, reason="runtime-unavailable", status_code=503, retry_after_s=30
            )
        case EngineRefused():
            return SpawnRefused(
                f"The node did not start the server: {error}",
                reason="start-refused",
                status_code=503,
            )
    return None


def in_line(place: RequestView, refusal: Refusal, now: int) -> SpawnRefused:
    """The refusal of a start whose user waits in line now: the place, and what to expect."""
    if place.position is None:
        text = f"It is your turn: a slice {place.slice} is reserved for you; start again"
    else:
        why = "Others wait" if refusal.reason == "others-wait" else "Nothing is free now"
        text = (
            f"{why}. You are number {place.position} of {place.waiting} in line for "
            f"a slice {place.slice}. {place.outlook(now)} {_told(place)}"
        )
    return SpawnRefused(text, reason="in-line", status_code=503, alternatives=refusal.alternatives)


def _told(place: RequestView) -> str:
    if place.auto_start:
        return "Your server starts by itself then; My GPU shows your place."
    return "You are told when it is your turn; My GPU shows your place."


def error_words(error: BaseException) -> str:
    """An error for the record; the ``str`` of the hub's exceptions is for programs."""
    said = error.jupyterhub_message if isinstance(error, SpawnRefused) else str(error)
    return said or type(error).__name__


def exited_text(report: ServerReport) -> str:
    """Why a server ended before it was ready."""
    if report.started_us is None:
        text = "The server was not started"
    elif report.oom:
        text = "The server ran out of memory while starting"
    else:
        text = f"The server ended while starting, with exit code {report.exit_code}"
    return f"{text}: {report.message.removeprefix('oom: ')}" if report.message else text
