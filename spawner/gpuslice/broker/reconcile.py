"""What to do about each lease, given what the node lists: one pure function, no I/O.

The node's list is the truth for what runs; this says what follows from it. A list decides
nothing about a lease that changed its state after the list was asked for, and without a list
nothing is decided at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from gpuslice.units import MINUTE_US
from gpuslice.wire import LeaseState, ServerReport, ServerState

#: What was noted for so much later than now was noted before our clock was set back: no list
#: takes that long.
SET_BACK_US = MINUTE_US


@dataclass(frozen=True)
class LeaseFacts:
    """What the decision needs to know of a lease; times are UTC microseconds."""

    lease_id: str
    state: LeaseState
    state_us: int
    start_before_us: int
    started_us: int | None
    covered_us: int | None
    stop_requested_us: int | None


@dataclass(frozen=True)
class Timing:
    """When the reconciler acts, microseconds."""

    heartbeat_us: int
    node_stop_after_us: int


@dataclass(frozen=True)
class Wait:
    """Nothing to do now."""


@dataclass(frozen=True)
class Adopt:
    """A granted lease's server has started: it is running since ``started_us``."""

    started_us: int
    boot_id: str


@dataclass(frozen=True)
class Beat:
    """Seen alive up to ``covered_us``."""

    covered_us: int


@dataclass(frozen=True)
class Settle:
    """The server has ended. ``finished_us`` None: when is unknown, bill to the last heartbeat."""

    finished_us: int | None
    exit_code: int | None
    reason: str


@dataclass(frozen=True)
class Revoke:
    """Take back a lease whose server never started."""

    reason: str


@dataclass(frozen=True)
class StopServer:
    """The stop was asked for long enough ago: the node carries it out."""


@dataclass(frozen=True)
class Fence:
    """Make the node refuse any start of a revoking lease, then look again."""


@dataclass(frozen=True)
class Release:
    """Billing is final: the node may clear the slice, then it is free."""


Decision: TypeAlias = Wait | Adopt | Beat | Settle | Revoke | StopServer | Fence | Release


def decide(
    lease: LeaseFacts, report: ServerReport | None, *, asked_us: int, now: int, timing: Timing
) -> list[Decision]:
    """What follows for one lease from a complete list that was asked for at ``asked_us``."""
    if lease.state is LeaseState.SETTLED:
        return [Release()]
    if lease.state is LeaseState.REVOKING:
        return [Fence()]
    if lease.state_us >= asked_us and not _set_back(lease.state_us, asked_us, now):
        return [Wait()]
    if lease.state is LeaseState.GRANTED:
        return _granted(lease, report, now)
    if lease.state in (LeaseState.RUNNING, LeaseState.STOPPING):
        return _running(lease, report, asked_us, now, timing)
    return [Wait()]


def _set_back(noted_us: int, asked_us: int, now: int) -> bool:
    """Whether the clock was set back after something was noted, and before the list was taken."""
    return now >= asked_us and noted_us - now > SET_BACK_US


def _granted(lease: LeaseFacts, report: ServerReport | None, now: int) -> list[Decision]:
    if report is not None and report.started_us is not None:
        return [Adopt(report.started_us, report.boot_id)]
    if report is not None and report.state is ServerState.EXITED:
        return [Revoke(report.message or "the server did not start")]
    if lease.stop_requested_us is not None:
        return [Revoke("stopped before it started")]
    if now > lease.start_before_us:
        return [Revoke("the server did not start in time")]
    return [Wait()]


def _running(
    lease: LeaseFacts, report: ServerReport | None, asked_us: int, now: int, timing: Timing
) -> list[Decision]:
    if report is None:
        return [Settle(None, None, "the engine no longer knows the server")]
    if report.state is ServerState.CREATED:
        return [Wait()]  # between its permission to run and its first line of the record
    if report.state is ServerState.EXITED:
        return [Settle(report.finished_us, report.exit_code, end_reason(report))]
    return _alive(lease, report, asked_us, now, timing)


def _alive(
    lease: LeaseFacts, report: ServerReport, asked_us: int, now: int, timing: Timing
) -> list[Decision]:
    found: list[Decision] = []
    seen = report.alive_til_us
    covered = lease.covered_us or 0
    if seen is not None and seen - covered >= timing.heartbeat_us:
        found.append(Beat(seen))
    stop = lease.stop_requested_us
    if stop is not None and (
        now - stop >= timing.node_stop_after_us or _set_back(stop, asked_us, now)
    ):
        found.append(StopServer())
    return found or [Wait()]


def end_reason(report: ServerReport) -> str:
    """Why a server ended, for its user."""
    if report.message:
        return report.message[:500]
    if report.oom:
        return "oom: the server used more memory than it may"
    if report.exit_code is None:
        return "the server ended for an unknown reason"
    if report.exit_code < 0:
        return f"killed by signal {-report.exit_code}"
    return f"exited with code {report.exit_code}"
