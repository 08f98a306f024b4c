"""What one lease's folder and ``/proc`` say together about its server: the truth that is billed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from pydantic import ValidationError

from gpuslice import wire
from gpuslice.node.leasedir import CLAIMED, STARTED, LeaseDir, Record, TornFile
from gpuslice.node.procs import is_alive
from gpuslice.units import boot_id, boottime_us

LOST = "its supervisor was killed, so nobody saw the end"
REBOOTED = "the machine was restarted, so nobody saw the end"
NEVER_STARTED = "its supervisor ended before the server started"


@dataclass(frozen=True, slots=True)
class Observation:
    """One lease as it is now."""

    lease: LeaseDir
    marker: str | None
    record: Record | None
    #: Exactly the recorded supervisor lives: same pid, same birth, same boot.
    supervised: bool
    #: A moment (boot clock) at which the server was certainly alive; None if that cannot be told.
    alive_at_us: int | None
    #: The one sentence when the folder is damaged.
    torn: str | None
    #: A start was asked for.
    asked: bool

    @property
    def lost(self) -> bool:
        """It may be running, and nobody watches it: what is left of it has to be ended."""
        if self.torn is not None:
            return True
        return not self.supervised and self.record is not None and self.record.state == "running"

    @property
    def busy(self) -> bool:
        """A supervisor lives that may start, or has started, the server."""
        return self.supervised and self.record is not None and self.record.state in _LIVE


_LIVE = ("created", "running")


def observe(lease: LeaseDir) -> Observation | None:
    """Reads the folder; None when it is gone meanwhile.

    An OSError means that nothing is known, and is the caller's to raise.
    """
    marker = lease.marker()
    asked = (lease.path / "spec.json").exists()
    record, torn, supervised, alive_at_us = None, None, False, None
    try:
        record, supervised = _settled_record(lease)
        if record is not None and supervised:
            alive_at_us = _alive_at_us(record)
    except TornFile as problem:
        torn = str(problem)
    if record is None and torn is None and marker in (CLAIMED, STARTED):
        torn = "the record is missing"
    if not lease.path.exists():
        return None
    return Observation(lease, marker, record, supervised, alive_at_us, torn, asked)


def _settled_record(lease: LeaseDir) -> tuple[Record | None, bool]:
    """The record, and whether its supervisor lives.

    A supervisor that ends between the two looks would be taken for a killed one: so a record
    whose supervisor is dead is read again, when it can no longer change.
    """
    record = lease.read_record()
    if record is None:
        return None, False
    if _supervised(record):
        return record, True
    return lease.read_record(), False


def _alive_at_us(record: Record) -> int | None:
    """Now, if the server itself lives. It may have ended and its end not be written down yet:
    then what is stated as alive would be later than the end.
    """
    now = boottime_us()
    if record.child_pid is None or record.child_ticks is None:
        return None
    return now if is_alive(record.child_pid, record.child_ticks) else None


def _supervised(record: Record) -> bool:
    return record.boot_id == boot_id() and is_alive(record.supervisor_pid, record.supervisor_ticks)


def report(seen: Observation) -> wire.ServerReport | None:
    """The server as the engine states it; None when none was ever started or refused."""
    if seen.record is None and seen.torn is None:
        return None
    piece, url = _prepared(seen.lease)
    state, facts = _facts(seen)
    return wire.ServerReport(
        lease_id=seen.lease.lease_id,
        state=state,
        # Empty where the folder does not say, because the server counts more.
        user=piece.user if piece else "",
        server=piece.server if piece else "",
        url=url,
        piece=piece,
        boot_id=seen.record.boot_id if seen.record else boot_id(),
        **facts,
    )


class _Facts(TypedDict, total=False):
    started_us: int | None
    alive_til_us: int | None
    finished_us: int | None
    exit_code: int | None
    message: str | None


def _facts(seen: Observation) -> tuple[wire.ServerState, _Facts]:
    """The state, and what is known of start and end. An unknown end has no ``finished_us``."""
    record = seen.record
    if record is None:
        return wire.ServerState.EXITED, {"message": f"{seen.torn}, so nobody saw the end"}
    facts = _Facts(message=record.message)
    if record.state == "created":
        if seen.supervised:
            return wire.ServerState.CREATED, facts
        return wire.ServerState.EXITED, {"message": NEVER_STARTED}
    facts["started_us"] = record.started_us
    if record.state == "running" and seen.supervised:
        assert record.started_us is not None and record.started_boottime_us is not None
        alive_us = (seen.alive_at_us or record.started_boottime_us) - record.started_boottime_us
        facts["alive_til_us"] = record.started_us + alive_us
        return wire.ServerState.RUNNING, facts
    if record.state == "running":
        facts["message"] = LOST if record.boot_id == boot_id() else REBOOTED
    else:
        facts["finished_us"], facts["exit_code"] = record.finished_us, record.exit_code
    return wire.ServerState.EXITED, facts


def _prepared(lease: LeaseDir) -> tuple[wire.PrepareSlice | None, str | None]:
    """What was prepared for a server, and where it answers, as far as the folder says."""
    url = None
    try:
        if (spec := lease.read_json("spec.json")) is not None:
            url = wire.StartServer.model_validate(spec).url
        return wire.PrepareSlice.model_validate(lease.read_json("slice.json")), url
    except (TornFile, ValidationError):
        return None, url
