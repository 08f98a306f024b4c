"""What the engine says of a container becomes exact times, a state, and a reason in words."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuslice import wire
from gpuslice.containers import LABEL_BASE_URL, LABEL_LEASE, network_name
from gpuslice.node.docker.api import EngineDown
from gpuslice.node.docker.book import Entry
from gpuslice.node.docker.life import End, Life, Moment
from gpuslice.node.docker.reports import (
    CLOCK_STEP_US,
    Container,
    alive_til_us,
    end_of,
    foreign_report,
    parse_container,
    parse_time,
    report,
    start_problem,
    with_start,
)
from gpuslice.node.leasedir import LeaseDir
from gpuslice.wire import ServerState

LEASE = "0123456789abcdef0123456789abcdef"
#: When the container started, on the wall clock and on the boot clock.
START, BOOT = 1_800_000_000_000_001, 5_000_000_003
SECOND = 1_000_000
NOW = Moment(START + 60 * SECOND, BOOT + 60 * SECOND, "this boot")

INSPECTED: dict[str, Any] = {
    "Id": "c" * 64,
    "Name": "/gpuslice-ada",
    "Config": {"Labels": {LABEL_LEASE: LEASE, LABEL_BASE_URL: "/user/ada%20l/"}},
    "State": {
        "Status": "running", "Running": True, "Paused": False, "Restarting": False,
        "OOMKilled": False, "Dead": False, "Pid": 4711, "ExitCode": 0, "Error": "",
        "StartedAt": "2027-01-15T08:00:00.000001999Z", "FinishedAt": "0001-01-01T00:00:00Z",
    },
    "NetworkSettings": {"Networks": {network_name(LEASE): {"IPAddress": "10.9.8.7"}}},
}  # fmt: skip


def container(**changes: Any) -> Container:
    return replace(parse_container(INSPECTED), **changes)


def ended(**changes: Any) -> Container:
    return container(
        **{"status": "exited", "pid": 0, "finished_us": START + 10 * SECOND, "addresses": {}}
        | changes
    )


def life(**changes: Any) -> Life:
    known = {
        "name": "gpuslice-ada", "container_id": "c" * 64, "boot_id": "this boot",
        "asked_boottime_us": BOOT - 1000, "started_us": START, "started_boottime_us": BOOT,
    }  # fmt: skip
    return Life(**known | changes)


def stated(
    life: Life, container: Container | None, asked: Moment = NOW, seen: Moment = NOW, **more: Any
) -> wire.ServerReport | None:
    return report(None, LEASE, life, container, asked=asked, seen=seen, **more)


# --- what the engine says -------------------------------------------------------------------


def test_a_container_is_read_from_what_the_engine_inspects() -> None:
    assert container() == Container(
        id="c" * 64, name="gpuslice-ada",
        labels={LABEL_LEASE: LEASE, LABEL_BASE_URL: "/user/ada%20l/"},
        status="running", pid=4711, started_us=START, finished_us=None, exit_code=0, oom=False,
        error="", addresses={network_name(LEASE): "10.9.8.7"},
    )  # fmt: skip


_PARTS = [
    ("Id",), ("Config",), ("Config", "Labels"), ("State",), ("State", "Status"), ("State", "Pid"),
    ("State", "StartedAt"), ("State", "FinishedAt"), ("State", "OOMKilled"),
    ("NetworkSettings",), ("NetworkSettings", "Networks"),
]  # fmt: skip
#: Whose kind does not matter.
_TEXTS = {("Id",), ("State", "Status"), ("State", "Pid"), ("State", "OOMKilled")}


@pytest.mark.parametrize("path", _PARTS)
def test_an_answer_with_a_part_missing_is_no_answer(path: tuple[str, ...]) -> None:
    answer = copy.deepcopy(INSPECTED)
    inner = answer
    for part in path[:-1]:
        inner = inner[part]
    del inner[path[-1]]
    with pytest.raises(EngineDown, match="not understood"):
        parse_container(answer)


@pytest.mark.parametrize("path", [path for path in _PARTS if path not in _TEXTS])
def test_an_answer_with_a_part_of_a_wrong_kind_is_no_answer(path: tuple[str, ...]) -> None:
    answer = copy.deepcopy(INSPECTED)
    inner = answer
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = 7
    with pytest.raises(EngineDown, match="not understood"):
        parse_container(answer)


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("0001-01-01T00:00:00Z", None),
        ("1970-01-01T00:00:01Z", SECOND),
        ("1970-01-01T00:00:01.5Z", 1_500_000),
        ("1970-01-01T00:00:00.000000999Z", 0),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("1970-01-01T02:00:00.123456789+02:00", 123_456),
        ("1969-12-31T18:30:00.000001-05:30", 1),
        ("2026-11-23T04:19:06.589963694Z", 1_795_407_546_589_963),
    ],
)
def test_times_are_cut_off_at_the_microsecond(text: str, us: int | None) -> None:
    assert parse_time(text) == us


@given(
    nanos=st.integers(min_value=0, max_value=(1 << 33) * 10**9),
    offset=st.integers(min_value=-14 * 60, max_value=14 * 60),
    digits=st.integers(min_value=0, max_value=9),
)
def test_every_time_that_go_writes_is_read_exactly(nanos: int, offset: int, digits: int) -> None:
    seconds, part = divmod(nanos, 10**9)
    part -= part % 10 ** (9 - digits)
    zone = timezone(timedelta(minutes=offset))
    text = datetime.fromtimestamp(seconds, UTC).astimezone(zone).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{part:09}"[:digits]
    text += f".{fraction}" if fraction else ""
    sign = "-" if offset < 0 else "+"
    text += f"{sign}{abs(offset) // 60:02}:{abs(offset) % 60:02}" if offset else "Z"
    assert parse_time(text) == (seconds * 10**9 + part) // 1_000


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-23", "2026-11-23T04:19:06", "２026"])
def test_what_is_no_time_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no time"):
        parse_time(text)


# --- while it runs --------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["running", "paused", "restarting"])
def test_a_running_server(status: str) -> None:
    server = stated(life(), container(status=status))
    assert server is not None
    assert server.state is ServerState.RUNNING
    assert (server.started_us, server.alive_til_us) == (START, START + 60 * SECOND)
    assert (server.boot_id, server.finished_us) == ("this boot", None)
    assert server.url == "http://10.9.8.7:8888/user/ada%20l/"


def test_a_server_without_an_address_yet_has_no_url() -> None:
    server = stated(life(), container(addresses={"bridge": "172.17.0.2"}))
    assert server is not None
    assert server.url is None


@pytest.mark.parametrize("step_s", [-7200, -1, 0, 1, 7200])
def test_a_wall_clock_that_is_set_does_not_change_how_long_it_was_alive(step_s: int) -> None:
    stepped = replace(NOW, now_us=NOW.now_us + step_s * SECOND)
    assert alive_til_us(life(), container(), stepped) == START + 60 * SECOND


def test_alive_is_until_the_engine_was_asked_and_never_before_the_start() -> None:
    asked = Moment(START - 5, BOOT - 5, "this boot")
    server = stated(life(), container(), asked, NOW)
    assert server is not None
    assert server.alive_til_us == START


def test_without_the_boot_clock_of_the_start_the_wall_clock_tells() -> None:
    lost = life(started_us=None, started_boottime_us=None)
    assert alive_til_us(lost, container(), NOW) == START + 60 * SECOND
    # It cannot have started before it was asked to.
    back = replace(NOW, now_us=NOW.now_us + 3600 * SECOND)
    assert alive_til_us(lost, container(), back) == START + 60 * SECOND + 1000


# --- the start ------------------------------------------------------------------------------


def test_the_start_is_the_engines_moment_and_the_same_on_the_boot_clock() -> None:
    asked = Moment(START - 200, BOOT - 200, "this boot")
    seen = Moment(START + 300, BOOT + 300, "this boot")
    found = with_start(Life(boot_id="this boot", asked_boottime_us=asked.boottime_us),
                       container(), asked, seen)  # fmt: skip
    assert (found.started_us, found.started_boottime_us, found.boot_id) == (
        START, BOOT, "this boot"
    )  # fmt: skip


@pytest.mark.parametrize(("step_us", "boottime_us"), [(3600 * SECOND, -200), (-3600 * SECOND, 300)])
def test_a_clock_set_during_the_start_moves_it_no_further_than_the_start_took(
    step_us: int, boottime_us: int
) -> None:
    asked = Moment(START - 200, BOOT - 200, "this boot")
    seen = Moment(START + 300 + step_us, BOOT + 300, "this boot")
    found = with_start(Life(), container(), asked, seen)
    assert found.started_boottime_us == BOOT + boottime_us


def test_a_start_found_later_in_the_same_boot_is_dated_like_one_that_was_seen() -> None:
    assert with_start(Life(), container(), None, NOW).started_boottime_us == BOOT
    assert with_start(Life(), container(), None, NOW).boot_id == "this boot"


def test_a_start_before_the_machine_was_started_was_in_another_boot() -> None:
    young = Moment(NOW.now_us, 30 * SECOND, "this boot")
    found = with_start(Life(), container(), None, young)
    assert found.boot_id not in (None, "this boot")
    end = end_of(found, ended(finished_us=NOW.now_us - SECOND), young)
    assert end.finished_us is None


# --- the end --------------------------------------------------------------------------------


def test_the_end_is_the_engines() -> None:
    server = stated(life(), ended(exit_code=3))
    assert server is not None
    assert server.state is ServerState.EXITED
    assert (server.started_us, server.finished_us) == (START, START + 10 * SECOND)
    assert (server.exit_code, server.oom, server.message) == (3, False, None)
    assert (server.alive_til_us, server.url) == (None, None)


@pytest.mark.parametrize("status", ["exited", "dead", "removing"])
def test_whatever_the_engine_calls_it_when_it_does_not_run(status: str) -> None:
    server = stated(life(), ended(status=status))
    assert server is not None
    assert server.state is ServerState.EXITED


@given(
    ran_us=st.integers(min_value=0, max_value=10**13),
    late_us=st.integers(min_value=0, max_value=10**12),
    step_us=st.integers(min_value=-(10**13), max_value=10**13),
    beat_us=st.integers(min_value=0, max_value=10**13),
)
def test_no_clock_that_is_set_lengthens_or_inverts_a_bill(
    ran_us: int, late_us: int, step_us: int, beat_us: int
) -> None:
    """The wall clock is set while it runs: the engine dates the end by it."""
    alive = START + min(ran_us, beat_us)
    stepped = ended(finished_us=max(0, START + ran_us + step_us))
    seen = Moment(START + ran_us + late_us + step_us, BOOT + ran_us + late_us, "this boot")
    finished = end_of(life(), stepped, seen, alive_us=alive).finished_us
    assert finished is not None
    assert finished >= START
    assert alive - CLOCK_STEP_US <= finished <= START + ran_us + late_us + CLOCK_STEP_US
    if step_us == 0:
        assert finished == START + ran_us


@pytest.mark.parametrize("by_us", [-500_000, -1, 0, 1, 500_000])
def test_what_the_engine_states_is_exact_although_clocks_are_read_one_after_the_other(
    by_us: int,
) -> None:
    over = ended(finished_us=NOW.now_us)
    seen = replace(NOW, boottime_us=NOW.boottime_us + by_us)
    alive = NOW.now_us + by_us
    assert end_of(life(), over, seen, alive_us=alive).finished_us == NOW.now_us


def test_a_life_so_short_that_the_engine_states_its_end_before_its_start_was_free() -> None:
    end = end_of(life(), ended(finished_us=START - 1200), NOW)
    assert end.finished_us == START


def test_an_end_that_was_written_down_is_kept_whatever_the_engine_says_later() -> None:
    written = life(end=End(finished_us=START + 7, exit_code=9, oom=False, message="why"))
    for later in (None, ended(), container(), container(started_us=START + SECOND)):
        server = stated(written, later)
        assert server is not None
        assert (server.state, server.started_us, server.finished_us) == (
            ServerState.EXITED, START, START + 7
        )  # fmt: skip
        assert (server.exit_code, server.message) == (9, "why")


def test_an_end_without_a_time_is_an_unknown_one() -> None:
    server = stated(life(), ended(finished_us=None))
    assert server is not None
    assert (server.state, server.finished_us) == (ServerState.EXITED, None)


def test_after_a_restart_of_the_machine_only_an_end_before_it_is_believed() -> None:
    seen = Moment(START + 3600 * SECOND, 60 * SECOND, "the next boot")
    before = seen.boot_began_us - 1
    assert end_of(life(), ended(finished_us=before), seen).finished_us == before
    for stamped in (seen.boot_began_us, seen.now_us, None):
        end = end_of(life(), ended(finished_us=stamped), seen)
        assert end.finished_us is None
        assert end.message is not None
        assert "restarted" in end.message
    server = stated(life(), ended(finished_us=seen.now_us), seen, seen)
    assert server is not None
    assert server.boot_id == "this boot"


def test_a_second_start_by_hand_is_not_the_leases() -> None:
    """While it runs the engine still states the first end; when it has ended, nobody knows it."""
    first_end, second = START + 10 * SECOND, START + 20 * SECOND
    runs = container(started_us=second, finished_us=first_end)
    server = stated(life(), runs)
    assert server is not None
    assert (server.state, server.started_us, server.finished_us) == (
        ServerState.EXITED, START, first_end
    )  # fmt: skip
    over = ended(started_us=second, finished_us=START + 30 * SECOND)
    end = end_of(life(), over, NOW)
    assert end.finished_us is None
    assert end.message is not None
    assert "by hand" in end.message


# --- why ------------------------------------------------------------------------------------

KILLED = "killed by signal 9: by somebody, or by the machine when its memory ran out"
OOM = "oom: the server used more than the 2 GiB of RAM of its slice"


@pytest.mark.parametrize(
    ("state", "asked", "oom", "message"),
    [
        ({"exit_code": 0}, False, False, None),
        ({"exit_code": 1}, False, False, None),
        ({"exit_code": 137}, False, False, KILLED),
        ({"exit_code": 137}, True, False, None),
        ({"exit_code": 139}, False, False, "killed by signal 11"),
        ({"exit_code": 143}, True, False, None),
        ({"exit_code": 192}, False, False, "killed by signal 64"),
        ({"exit_code": 193}, False, False, None),
        ({"exit_code": 255}, False, False, None),
        ({"exit_code": 137, "oom": True}, False, True, OOM),
        ({"exit_code": 137, "oom": True}, True, True, OOM),
        ({"exit_code": 1, "oom": True}, False, True, f"{OOM} (then it ended with code 1)"),
        # Some process of it did, and the server itself came to its own end.
        ({"exit_code": 0, "oom": True}, False, False, None),
        ({"exit_code": 128, "error": "the\ndisk  is full"}, False, False, "the disk is full"),
    ],
)  # fmt: skip
def test_the_reason(state: dict[str, Any], asked: bool, oom: bool, message: str | None) -> None:
    end = end_of(life(), ended(**state), NOW, ram_bytes=2 << 30, asked_to_stop=asked)
    assert (end.exit_code, end.oom, end.message) == (state["exit_code"], oom, message)


def test_a_long_reason_fits_into_a_message() -> None:
    end = end_of(life(), ended(error="x" * 5000), NOW)
    assert end.message is not None
    assert len(end.message) <= 500
    assert len(start_problem("y" * 5000)) <= 500


# --- before it runs -------------------------------------------------------------------------


def test_a_created_container() -> None:
    server = stated(Life(), container(status="created", started_us=None, pid=0))
    assert server is not None
    assert (server.state, server.started_us, server.message) == (ServerState.CREATED, None, None)


def test_a_container_that_could_not_be_started_never_ran() -> None:
    error = (
        "failed to create task for container: failed to create shim task: OCI runtime create "
        'failed: runc create failed: unable to start container process: exec: "/nope": no such file'
    )
    failed = container(status="created", started_us=None, pid=0, exit_code=127, error=error)
    server = stated(life(started_us=None, started_boottime_us=None), failed)
    assert server is not None
    assert (server.state, server.started_us, server.finished_us, server.exit_code) == (
        ServerState.EXITED, None, None, 127
    )  # fmt: skip
    assert server.message == (
        "the container could not be started: unable to start container process: "
        'exec: "/nope": no such file'
    )


def test_no_container_is_no_server() -> None:
    assert stated(Life(), None) is None
    assert stated(life(), None) is None


# --- whose it is ----------------------------------------------------------------------------


def entry(life: Life) -> Entry:
    return Entry(LeaseDir(Path("/nowhere") / LEASE), "claimed", None, life, None)


def test_a_lease_owns_the_container_whose_id_the_engine_has_answered_with() -> None:
    mine = entry(life())
    assert mine.owns(container())
    # The same name and labels on another one: somebody else's.
    assert not mine.owns(container(id="d" * 64))
    # Ours, whatever it is called by now.
    assert mine.owns(container(name="renamed"))


def test_without_that_answer_name_and_label_together_tell() -> None:
    waiting = entry(Life(name="gpuslice-ada"))
    assert waiting.owns(container())
    assert not waiting.owns(container(name="gpuslice-ada-2"))
    assert not waiting.owns(container(labels={}))
    assert not waiting.owns(container(labels={LABEL_LEASE: "f" * 32}))
    assert not entry(Life()).owns(container())


def test_a_strangers_container_has_no_times_that_could_be_billed() -> None:
    for one, state in ((container(), ServerState.RUNNING), (ended(), ServerState.EXITED)):
        server = foreign_report(one, LEASE, NOW)
        assert server.state is state
        assert (server.started_us, server.alive_til_us, server.finished_us) == (None, None, None)
        assert server.url is None
