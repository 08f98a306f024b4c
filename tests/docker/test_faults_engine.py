"""An engine that fails, a machine that loses its power, hands that meddle, and a crowd.

Rows 8 to 11 of facts/faults.md section 3 and what belongs to them, on a real hub, proxy, service
and node, and real containers. After each test nobody has a server, nothing of any lease is left,
and every lease that ever was is paid for exactly once.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest

from dockerworld import tiny_image
from faultworld import FaultWorld, fault_world
from gpuslice.node.docker.reports import parse_time
from hubworld import until
from ownengine import own_engine

pytestmark = [pytest.mark.docker, pytest.mark.hub, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, client: docker.DockerClient, tiny: str
) -> Iterator[FaultWorld]:
    with fault_world(tmp_path_factory.mktemp("gpu engine"), client, tiny) as world:
        yield world


@pytest.fixture
def tidied(world: FaultWorld) -> Iterator[FaultWorld]:
    yield world
    world.tidy()


# --- the engine's own process -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGTERM", pytest.param("SIGKILL", marks=pytest.mark.long)])
def test_8_the_engine_is_restarted_without_live_restore(tmp_path: Path, how: str) -> None:
    with own_engine() as engine:
        client = engine.client()
        with fault_world(tmp_path, client, tiny_image(client), engine=engine.socket) as world:
            leases = [
                world.spawn(user, one)["lease_id"]
                for user, one in (("ada", "whole"), ("bert", "quarter"), ("cleo", "cpu"))
            ]
            held = world.hold_removal()
            engine.end(how)
            until("the service has noticed", world.refuses)
            # Whatever was seen of their ends before: nothing is freed without an engine.
            assert world.free("whole") == 0
            assert all(world.lease_by_id(one)["state"] != "ended" for one in leases)
            engine.start()
            for lease_id in leases:
                until("its end is known", lambda: world.lease_by_id(lease_id)["state"] == "settled")  # noqa: B023
                container = world.container(lease_id)
                assert container is not None
                lease = world.lease_by_id(lease_id)
                # The engine has stated an end, and nothing is billed after it.
                assert not lease["finished_at_unknown"]
                assert lease["finished_us"] == parse_time(container.attrs["State"]["FinishedAt"])
            world.engine.remove(held)
            for user in ("ada", "bert", "cleo"):
                world.no_server(user)
            world.tidy()
            assert world.spawn("ada", "whole")["state"] == "running"
            world.tidy()


# --- an engine that does not answer -----------------------------------------------------------


@pytest.mark.parametrize("trouble", ["down", "500", "hang"])
def test_9_an_engine_that_does_not_answer(tidied: FaultWorld, trouble: str) -> None:
    world = tidied
    users = {"dora": "whole", "emil": "quarter"}
    leases = {user: world.spawn(user, one)["lease_id"] for user, one in users.items()}
    running = world.running()
    match trouble:
        case "down":
            world.engine.down()
        case "500":
            world.engine.answer("", "", 500, "the engine is not well")
        case "hang":
            world.engine.hang("", "")
    with world.reached_throughout("dora"):
        until("the service has noticed", world.refuses)
        before = world.node_errors()
        until("it has tried again and again", lambda: world.node_errors() > before + 4)
        # The hub has polled them all the time, too.
        for user in users:
            assert (world.server(user) or {}).get("ready")
        for slice_name in ("whole", "quarter", "cpu"):
            refused = world.spawn_answer("finn", slice_name)
            assert refused.status_code == 503
            assert refused.reason == "runtime-unavailable"
            assert world.lease("finn") is None
        # A stop is promised and waits; nothing is freed for it.
        world.in_background_stop("emil")
        until("the stop is committed", lambda: world.lease_by_id(
            leases["emil"])["stop_requested_us"])  # fmt: skip
        assert world.free("whole") == 0
        assert all(world.open_holds(lease_id) == 1 for lease_id in leases.values())
        states = {user: world.lease_by_id(lease_id)["state"] for user, lease_id in leases.items()}
        assert states == {"dora": "running", "emil": "stopping"}
        assert world.running() == running
        world.engine.up()
        world.engine.clear()
        assert world.wait_over(leases["emil"])["stop_reason"] == "user"
        world.wait_ready("dora")
        covered = world.lease_by_id(leases["dora"])["covered_us"]
        until("beats go on", lambda: world.lease_by_id(leases["dora"])["covered_us"] > covered)
    held = world.hold_removal()
    world.in_background_stop("dora")
    # All of it, with the time in which nobody could see it.
    world.settled_exactly(leases["dora"], held)


#: In which call, and what of it: an answer 500, a silence, an engine that is restarted meanwhile.
CALLS = [
    ("POST", r"^/containers/create", "500"),
    ("POST", r"^/containers/create", "restart"),
    ("POST", r"^/containers/[^/]+/start", "hang"),
    ("POST", r"^/containers/[^/]+/start", "restart"),
    ("GET", r"^/containers/[^/]+/json", "500"),
    ("GET", r"^/containers/[^/]+/json", "hang"),
    ("POST", r"^/containers/[^/]+/stop", "500"),
    ("POST", r"^/containers/[^/]+/stop", "hang"),
    ("POST", r"^/containers/[^/]+/stop", "restart"),
]


@pytest.mark.parametrize(
    ("method", "path", "trouble"),
    CALLS,
    ids=[f"{path.rpartition('/')[2]} {trouble}" for _, path, trouble in CALLS],
)
def test_9_an_engine_that_fails_in_one_call(
    tidied: FaultWorld, method: str, path: str, trouble: str
) -> None:
    world = tidied
    stops = path.endswith("/stop")
    before = len(world.lease_ids_of("gina"))
    if stops:
        world.spawn("gina", "whole")
    match trouble:
        case "500":
            fault = world.engine.answer(method, path, 500, "the engine is not well")
        case "hang":
            fault = world.engine.hang(method, path)
        case _:
            # It has done it, and is gone before it could say so.
            fault = world.engine.reset(method, path, after=True)
    world.in_background_stop("gina") if stops else world.in_background("gina")
    fault.wait_hit()
    if trouble == "restart":
        world.engine.down()
    (lease_id,) = world.lease_ids_of("gina")[before:]
    # Whatever the engine does of it: the slice is nobody else's before that is known.
    assert world.free("whole") == 0
    world.engine.up()
    world.engine.remove(fault)
    if stops:
        world.no_server("gina")
        assert world.wait_over(lease_id)["state"] == "ended"
    else:
        until("the start is over", lambda: not (world.server("gina") or {}).get("pending"))
        lease = world.lease_by_id(lease_id)
        ready = bool((world.server("gina") or {}).get("ready"))
        # A server that runs and is the user's, or nothing of it; no third thing.
        assert ready == (lease["state"] == "running")
        if not ready:
            assert world.wait_over(lease_id)["cost_u"] == 0


# --- the machine ------------------------------------------------------------------------------


def test_10_power_is_lost(tidied: FaultWorld) -> None:
    world = tidied
    users = {"hugo": "whole", "ida": "quarter", "jana": "cpu"}
    leases = {user: world.spawn(user, one)["lease_id"] for user, one in users.items()}
    for lease_id in leases.values():
        covered = world.lease_by_id(lease_id)["covered_us"]
        until("beats", lambda: world.lease_by_id(lease_id)["covered_us"] > covered)  # noqa: B023
    world.power_cut()
    question = "SELECT covered_us FROM lease WHERE id = ?"
    last_beat = {one: world.rows(question, one)[0][0] for one in leases.values()}
    world.start_node_in_another_boot()
    world.start_again()
    for lease_id in leases.values():
        lease = world.wait_over(lease_id)
        # When they really ended nobody can know: it is paid until somebody last saw them.
        assert lease["finished_us"] == last_beat[lease_id]
        assert lease["finished_at_unknown"]
        assert "restarted" in lease["end_reason"]
    for user in users:
        world.no_server(user)
    assert world.spawn("hugo", "whole")["state"] == "running"
    world.tidy()
    world.end_part("node")
    # What it said before it was killed is not what the next test starts on.
    until("the service has noticed", world.refuses)
    world.start_part("node")
    until("the service has noticed that too", world.grants)


# --- by hand ----------------------------------------------------------------------------------


def test_11_a_container_is_removed_while_nobody_looks(tidied: FaultWorld) -> None:
    world = tidied
    lease_id = world.spawn("karl", "whole")["lease_id"]
    world.end_part("node")
    until("the service has noticed", world.refuses)
    last_beat = world.lease_by_id(lease_id)["covered_us"]
    container = world.container(lease_id)
    assert container is not None
    container.remove(force=True)
    world.start_part("node")
    lease = world.wait_over(lease_id)
    assert lease["finished_at_unknown"]
    assert lease["finished_us"] == last_beat
    world.no_server("karl")


def test_11_a_container_is_removed_under_the_eyes_of_the_node(tidied: FaultWorld) -> None:
    world = tidied
    lease_id = world.spawn("lena", "whole")["lease_id"]
    # It does not get to ask when the container ended before that is gone.
    container = world.container(lease_id)
    assert container is not None
    silent = world.engine.answer("GET", rf"^/containers/{container.id}/json", 500)
    container.remove(force=True)
    gone_us = until("the engine tells", lambda: world.died_us(lease_id))
    world.engine.remove(silent)
    lease = world.wait_over(lease_id)
    assert lease["finished_at_unknown"]
    assert lease["started_us"] <= lease["finished_us"] <= gone_us
    world.no_server("lena")


def test_a_container_that_names_a_lease_that_is_not_its_own(tidied: FaultWorld) -> None:
    world = tidied
    lease_id = world.spawn("mona", "whole")["lease_id"]
    theirs = world.by_hand(lease_id)
    before = world.rows("SELECT count(*) FROM lease")
    world.looks_again()
    # It changes nothing: neither while it runs nor when it ends.
    assert world.lease_by_id(lease_id)["state"] == "running"
    theirs.kill()
    world.looks_again()
    assert world.lease_by_id(lease_id)["state"] == "running"
    assert world.free("whole") == 0
    assert world.rows("SELECT count(*) FROM lease") == before
    own = next(one for one in world.containers() if one.id != theirs.id)
    lease = world.lease_by_id(lease_id)
    assert lease["started_us"] == parse_time(own.attrs["State"]["StartedAt"])
    # With the lease everything goes that names it: it may hold the device.
    world.stop_server("mona")
    world.wait_over(lease_id)
    assert world.containers() == []


def test_a_container_of_a_lease_that_is_over(tidied: FaultWorld) -> None:
    world = tidied
    lease_id = world.spawn("nils", "whole")["lease_id"]
    world.stop_server("nils")
    ended = world.wait_over(lease_id)
    world.by_hand(lease_id)
    until("it is gone", lambda: world.containers() == [])
    assert world.lease_by_id(lease_id) == ended


def test_a_container_of_a_lease_that_never_was(tidied: FaultWorld) -> None:
    world = tidied
    world.add_user("olga")
    before = world.rows("SELECT count(*) FROM lease")
    theirs = world.by_hand(uuid.uuid4().hex)
    until("the service has noticed", world.refuses)
    # It may use any device: nobody is given one before somebody has looked.
    refused = world.spawn_answer("olga", "whole")
    assert refused.status_code == 503
    assert "does not know" in refused.json()["message"]
    theirs.remove(force=True)
    until("the service has noticed that too", world.grants)
    assert world.rows("SELECT count(*) FROM lease") == before
    assert world.spawn("olga", "whole")["state"] == "running"


# --- a crowd ----------------------------------------------------------------------------------


def test_twenty_users_start_and_stop_at_once(tidied: FaultWorld) -> None:
    world = tidied
    users = [f"user{number}" for number in range(20)]
    for user in users:
        world.add_user(user)
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            most[0] = max(most[0], len(world.running()))

    looking = threading.Thread(target=look)
    looking.start()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda one: world.spawn_answer(one, "quarter"), users))
        won = [user for user, answer in zip(users, answers, strict=True) if answer.ok]
        lost = [answer for answer in answers if not answer.ok]
        assert len(won) == 4
        assert {answer.status_code for answer in lost} <= {409, 503}
        for user in won:
            world.wait_ready(user)
        assert len(world.running()) == 4
        # And now those who have one give it up while everybody else wants it, twice.
        for _ in range(2):
            held = [user for user in users if world.lease(user)]
            stops = [pool.submit(world.stop_server, user) for user in held]
            starts = [
                pool.submit(world.spawn_answer, user, "quarter")
                for user in users
                if user not in held
            ]
            assert all(start.result().status_code < 600 for start in starts)
            for stop in stops:
                stop.result()
            for user in users:
                until("its start is over", lambda: not (world.server(user) or {}).get("pending"))  # noqa: B023
            assert len(world.running()) <= 4
    over.set()
    looking.join()
    assert most[0] == 4
