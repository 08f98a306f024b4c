"""What the engine says of a container, as the node states it: pure functions, exact times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from signal import Signals
from typing import Any

from gpuslice import containers, wire
from gpuslice.node.docker.api import EngineDown, Json
from gpuslice.node.docker.life import End, Life, Moment
from gpuslice.node.leasedir import LEASE_ID
from gpuslice.node.observe import REBOOTED
from gpuslice.units import SECOND_US, format_memory, from_datetime

#: Longer texts are of a program, not for a person.
_LONGEST = 400
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII
)
#: The engine's word for "never".
_NEVER = "0001-01-01T"
#: What shells and engines add to the number of the signal that ended a program.
_SIGNALLED = 128
_KILLED, _LAST = _SIGNALLED + Signals.SIGKILL, _SIGNALLED + Signals.SIGRTMAX
#: Times of the wall and the boot clock that disagree by more than this: somebody set the former.
#: By less, they were only read one after the other, and what the engine states is exact.
CLOCK_STEP_US = 2 * SECOND_US
_RUNS = frozenset({"running", "paused", "restarting"})
#: What the engine wraps the reason in when it cannot start something, outermost first.
_WRAPPINGS = (
    "failed to create task for container: ",
    "failed to create shim task: ",
    "OCI runtime create failed: ",
    "runc create failed: ",
)


@dataclass(frozen=True, slots=True)
class Container:
    """One container as the engine inspects it; times are UTC µs, cut off, None for *never*."""

    id: str
    name: str
    labels: Mapping[str, str]
    status: str
    pid: int
    started_us: int | None
    finished_us: int | None
    exit_code: int
    oom: bool
    error: str
    #: Its address in each network that it has one in.
    addresses: Mapping[str, str]

    @property
    def runs(self) -> bool:
        """Its processes are there, also while they are paused."""
        return self.status in _RUNS

    @property
    def lease_id(self) -> str | None:
        """What its label names; None where that is no lease's id, and could be a path instead."""
        lease_id = self.labels.get(containers.LABEL_LEASE, "")
        return lease_id if LEASE_ID.fullmatch(lease_id) else None


def parse_container(inspected: Json) -> Container:
    """Raises EngineDown for an answer that is not understood: then nothing is known."""
    try:
        state, networks = inspected["State"], inspected["NetworkSettings"]["Networks"] or {}
        return Container(
            id=str(inspected["Id"]),
            name=str(inspected["Name"]).removeprefix("/"),
            labels=dict(inspected["Config"]["Labels"] or {}),
            status=str(state["Status"]),
            pid=int(state["Pid"]),
            started_us=parse_time(state["StartedAt"]),
            finished_us=parse_time(state["FinishedAt"]),
            exit_code=int(state["ExitCode"]),
            oom=state["OOMKilled"] is True,
            error=str(state["Error"] or ""),
            addresses={
                str(name): str(network["IPAddress"])
                for name, network in networks.items()
                if network.get("IPAddress")
            },
        )
    except (LookupError, TypeError, ValueError, AttributeError) as problem:
        raise EngineDown(f"the engine's answer is not understood ({problem!r})") from problem


def parse_time(text: Any) -> int | None:
    """The engine's time with its nine decimals as µs, cut off; None for *never*."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no time")
    if found[1].startswith(_NEVER):
        return None
    whole = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
    if found[3] is not None:
        offset = timedelta(hours=int(found[4]), minutes=int(found[5]))
        whole -= offset if found[3] == "+" else -offset
    return from_datetime(whole) + int((found[2] or "").ljust(9, "0")) // 1_000


def with_start(life: Life, container: Container, asked: Moment | None, seen: Moment) -> Life:
    """The life with its start in it: the engine's moment, and the boot clock's of the same.

    Args:
        asked: Before the engine was asked to start it, if that was in this boot.
        seen: After the engine stated the start.
    """
    assert container.started_us is not None
    boottime = seen.boottime_of(container.started_us)
    earliest = asked.boottime_us if asked is not None else life.asked_boottime_us or 0
    return life.model_copy(
        update={
            "boot_id": life.boot_id or _boot_of(container.started_us, seen),
            "started_us": container.started_us,
            # However the wall clock was set meanwhile, it started between these two.
            "started_boottime_us": min(max(boottime, earliest), seen.boottime_us),
        }
    )


def _boot_of(started_us: int, seen: Moment) -> str:
    return seen.boot_id if started_us >= seen.boot_began_us else "an earlier one"


def alive_til_us(life: Life, container: Container, asked: Moment) -> int:
    """Until when it certainly ran, by the clock that nobody sets.

    Args:
        asked: Before the engine said that it runs.
    """
    assert container.started_us is not None
    since = life.started_boottime_us
    if since is None or life.started_us != container.started_us:
        since = max(asked.boottime_of(container.started_us), life.asked_boottime_us or 0)
    return container.started_us + max(0, asked.boottime_us - since)


def end_of(
    life: Life,
    container: Container,
    seen: Moment,
    *,
    alive_us: int = 0,
    ram_bytes: int | None = None,
    asked_to_stop: bool = False,
) -> End:
    """The end of a server that has ended.

    Args:
        seen: After the engine said so.
        alive_us: Until when it was seen alive.
        ram_bytes: Of its slice, for the text.
        asked_to_stop: Then being killed needs no explanation.
    """
    message = _end_message(container, ram_bytes, asked_to_stop=asked_to_stop)
    finished = container.finished_us
    if started_again(life, container):
        # Only its first start was ours. While it runs, the engine still states that one's end.
        if not container.runs or finished is None or finished > (container.started_us or 0):
            finished = None
        message = "it was started again by hand, which no lease allows"
    start = life.started_us if life.started_us is not None else container.started_us
    if life.boot_id is not None and life.boot_id != seen.boot_id:
        if finished is None or finished >= seen.boot_began_us:
            # Stamped by an engine that found it dead.
            finished, message = None, REBOOTED
    elif finished is not None and start is not None:
        if life.started_boottime_us is not None:
            latest = start + seen.boottime_us - life.started_boottime_us
            finished = latest if finished > latest + CLOCK_STEP_US else finished
        # The engine hears of an end some time after it, and calls dead servers alive until then.
        finished = alive_us if finished < alive_us - CLOCK_STEP_US else finished
        # Of a short life it states the end before the start.
        finished = max(finished, start)
    return End(
        finished_us=finished,
        exit_code=container.exit_code,
        oom=container.oom and container.exit_code != 0,
        message=message,
    )


def started_again(life: Life, container: Container) -> bool:
    """Somebody has started the container a second time."""
    return life.started_us is not None and container.started_us != life.started_us


def is_over(life: Life, container: Container) -> bool:
    """The server that was started in this container has ended."""
    if container.started_us is None:
        return False
    return not container.runs or started_again(life, container)


def report(
    piece: wire.PrepareSlice | None,
    lease_id: str,
    life: Life,
    container: Container | None,
    *,
    asked: Moment,
    seen: Moment,
    alive_us: int = 0,
    asked_to_stop: bool = False,
) -> wire.ServerReport | None:
    """One lease's server as the engine states it; None when the engine has none.

    Args:
        piece: What was prepared; None where that is unreadable.
        asked: Before the engine was asked.
        seen: After it answered.
        alive_us: Until when it was seen alive.
    """
    base = wire.ServerReport(
        lease_id=lease_id,
        state=wire.ServerState.CREATED,
        user=piece.user if piece else "",
        server=piece.server if piece else "",
        boot_id=life.boot_id or seen.boot_id,
        piece=piece,
    )
    started = life.started_us
    if started is None and container is not None:
        started = container.started_us
    end = life.end
    if end is None and container is not None and is_over(life, container):
        end = end_of(
            life, container, seen, alive_us=alive_us,
            ram_bytes=piece.ram_bytes if piece else None, asked_to_stop=asked_to_stop,
        )  # fmt: skip
    if end is not None:
        return base.model_copy(
            update={
                **dict(end), "state": wire.ServerState.EXITED, "started_us": started
            }
        )  # fmt: skip
    if container is None:
        return None
    if container.runs:
        return base.model_copy(
            update={
                "state": wire.ServerState.RUNNING,
                "started_us": started,
                "alive_til_us": alive_til_us(life, container, asked),
                "url": url_of(container, lease_id),
            }
        )
    if container.error or container.status != "created":
        return base.model_copy(
            update={
                "state": wire.ServerState.EXITED,
                "exit_code": container.exit_code,
                "message": start_problem(container.error),
            }
        )
    return base


def foreign_report(container: Container, lease_id: str, seen: Moment) -> wire.ServerReport:
    """A container with this node's label that the node has no lease for.

    Without any times: whose it is nobody knows, so nobody is billed by it. But it is told of,
    because it may hold a device.
    """
    return wire.ServerReport(
        lease_id=lease_id,
        state=wire.ServerState.RUNNING if container.runs else wire.ServerState.EXITED,
        user=container.labels.get(containers.LABEL_USER, "")[:255],
        server=container.labels.get(containers.LABEL_SERVER, "")[:255],
        boot_id=seen.boot_id,
        message=f"the container {container.name} is none that this node has made",
    )


def url_of(container: Container, lease_id: str) -> str | None:
    """Where the server answers; None while it has no address."""
    address = container.addresses.get(containers.network_name(lease_id))
    if address is None:
        return None
    path = container.labels.get(containers.LABEL_BASE_URL, "/")
    return f"http://{address}:{containers.NOTEBOOK_PORT}{path}"


def start_problem(error: str) -> str:
    """Why a start failed: the engine's reason without what it is wrapped in."""
    for wrapping in _WRAPPINGS:
        error = error.removeprefix(wrapping)
    error = " ".join(error.split())[:_LONGEST]
    return f"the container could not be started: {error or 'the engine gives no reason'}"


def _end_message(container: Container, ram_bytes: int | None, *, asked_to_stop: bool) -> str | None:
    """In words, where the exit code does not say it; None where it does."""
    code = container.exit_code
    if container.oom and code != 0:
        of = f"{format_memory(ram_bytes)} of RAM" if ram_bytes else "RAM"
        killed = "" if code == _KILLED else f" (then it ended with code {code})"
        return f"oom: the server used more than the {of} of its slice{killed}"
    if container.error:
        return " ".join(container.error.split())[:_LONGEST]
    if code == _KILLED and not asked_to_stop:
        return "killed by signal 9: by somebody, or by the machine when its memory ran out"
    if _SIGNALLED < code <= _LAST and not asked_to_stop:
        return f"killed by signal {code - _SIGNALLED}"
    return None
