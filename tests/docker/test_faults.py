"""SIGKILL of hub and service, and of servers: rows 1 to 7, 23 and 26 of facts/faults.md section 3.

On a real hub, proxy, service and node, and real containers. After each test nobody has a server,
nothing of any lease is left, and every lease that ever was is paid for exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import docker
import pytest
import requests

from faultworld import START_TIMEOUT_S, FaultWorld, fault_world, pid_rss
from hubworld import until

pytestmark = [pytest.mark.docker, pytest.mark.hub, pytest.mark.timeout(600)]

CREATE = r"^/containers/create"
HUB_RESTARTED = "the hub restarted during the start"
MIB = 1 << 20
#: So many requests the hub remembers by itself, with all that was sent (``get_json_body``).
REMEMBERED = 128


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, client: docker.DockerClient, tiny: str
) -> Iterator[FaultWorld]:
    with fault_world(tmp_path_factory.mktemp("gpu faults"), client, tiny) as world:
        yield world


@pytest.fixture(autouse=True)
def tidy(world: FaultWorld) -> Iterator[None]:
    yield
    world.tidy()


def start_into_crash(world: FaultWorld, user: str, point: str) -> str:
    """A start in which the hub dies; the lease. Its hub is down."""
    hub = world.hub_dies_at(point)
    world.quietly("POST", user)
    hub.wait(60)
    lease = world.lease(user)
    assert lease is not None
    return str(lease["lease_id"])


def hub_again(world: FaultWorld) -> None:
    world.start_part("hub")
    until("a new hub answers", world._answers, patience_s=120)


# --- in a start -------------------------------------------------------------------------------


def test_1_hub_dies_after_the_lease_and_before_the_create(world: FaultWorld) -> None:
    created = world.engine.count("POST", CREATE)
    lease_id = start_into_crash(world, "ada", "before_create")
    # It is the user's until somebody knows that nobody will start it.
    assert world.lease_by_id(lease_id)["state"] == "granted"
    assert world.free("whole") == 0
    assert world.open_holds(lease_id) == 1
    hub_again(world)
    assert world.never_ran(lease_id)["stop_reason"] == HUB_RESTARTED
    assert world.free("whole") == 1
    world.no_server("ada")
    assert world.engine.count("POST", CREATE) == created


def test_2_hub_dies_between_create_and_start(world: FaultWorld) -> None:
    lease_id = start_into_crash(world, "bert", "created_not_started")
    container = world.container(lease_id)
    assert container is not None
    assert container.status == "created"
    hub_again(world)
    # Nobody will ever start it, which the new hub knows without waiting for an answer of it.
    assert world.never_ran(lease_id)["stop_reason"] == HUB_RESTARTED
    assert world.container(lease_id) is None
    world.no_server("bert")


def test_2_hub_dies_after_the_start_and_before_it_is_written_down(world: FaultWorld) -> None:
    lease_id = start_into_crash(world, "cleo", "started_not_returned")
    container = world.container(lease_id)
    assert container is not None
    hub_again(world)
    world.wait_ready("cleo")
    lease = world.lease("cleo")
    assert lease is not None
    assert (lease["lease_id"], lease["state"]) == (lease_id, "running")
    again = world.container(lease_id)
    assert again is not None
    assert again.id == container.id
    held = world.hold_removal()
    world.quietly("DELETE", "cleo")
    assert world.settled_exactly(lease_id, held)["state"] == "ended"
    assert world.lease_ids_of("cleo") == [lease_id]


# --- while it runs ----------------------------------------------------------------------------


def test_3_hub_dies_while_a_server_runs(world: FaultWorld) -> None:
    lease_id = world.spawn("dora", "whole")["lease_id"]
    before = world.container(lease_id)
    assert before is not None
    with world.reached_throughout("dora"):
        world.end_part("hub")
        # It is billed on and on, without a hub.
        covered = world.lease_by_id(lease_id)["covered_us"]
        until("beats go on", lambda: world.lease_by_id(lease_id)["covered_us"] > covered)
        until("and on", lambda: world.lease_by_id(lease_id)["covered_us"] > covered + 3_000_000)
        hub_again(world)
        world.wait_ready("dora")
    after = world.container(lease_id)
    assert after is not None
    assert (after.id, after.attrs["State"]) == (before.id, before.attrs["State"])
    held = world.hold_removal()
    world.quietly("DELETE", "dora")
    world.settled_exactly(lease_id, held)
    assert world.lease_ids_of("dora") == [lease_id]


# --- in a stop --------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["stop_before_kill", "killed_not_committed", "post_stop_hook"])
def test_4_5_hub_dies_in_a_stop(world: FaultWorld, point: str) -> None:
    lease_id = world.spawn("emil", "whole")["lease_id"]
    held = world.hold_removal()
    hub = world.hub_dies_at(point)
    world.in_background_stop("emil")
    # It ends whatever becomes of the hub.
    ended = world.settled_exactly(lease_id, held)
    assert (ended["state"], ended["stop_reason"]) == ("ended", "user")
    world.next_hub(hub)
    world.no_server("emil")
    assert world.free("whole") == 1


def test_4_hub_dies_before_the_stop_is_anybodys(world: FaultWorld) -> None:
    lease_id = world.spawn("emma", "whole")["lease_id"]
    hub = world.hub_dies_at("stop_before_commit")
    world.quietly("DELETE", "emma")
    hub.wait(60)
    hub_again(world)
    # Nobody was promised anything yet: the server goes on, and can be stopped.
    world.wait_ready("emma")
    assert world.lease_by_id(lease_id)["state"] == "running"
    world.stop_server("emma")
    assert world.wait_over(lease_id)["stop_reason"] == "user"


# --- the meter --------------------------------------------------------------------------------


def test_6_service_dies_around_beats(world: FaultWorld) -> None:
    lease_id = world.spawn("finn", "whole")["lease_id"]
    price = 36
    for point in ("beat-written", "beat-committed"):
        # With a new price the next beat closes a segment: there is something to be paid twice.
        world.end_part("service")
        world.setting("price", f'"{price}"', f'"{price + 1}"')
        price += 1
        (world.state / "crash-service").write_text(point)
        world.start_part("service")
        world.service_dies_at(point)
        covered, closed = covered_and_closed(world, lease_id)
        world.start_part("service")
        until("the next beat", lambda: covered_and_closed(world, lease_id)[0] > covered)  # noqa: B023
        assert covered_and_closed(world, lease_id)[1] >= closed
    world.wait_service()
    world.setting("price", f'"{price}"', '"36"')
    held = world.hold_removal()
    world.quietly("DELETE", "finn")
    world.settled_exactly(lease_id, held)
    found = world.segments(lease_id)
    # The prices that it has had, one after the other.
    assert [one.rate_u for one in found if one.payer == "user"] == [
        number * 1_000_000 for number in range(36, price + 1)
    ]
    world.restart_part("service")
    world.wait_service()


def covered_and_closed(world: FaultWorld, lease_id: str) -> tuple[int, int]:
    """As the ledger has it, with or without a service: seen alive till, and closed segments."""
    ((covered,),) = world.rows("SELECT covered_us FROM lease WHERE id = ?", lease_id)
    return int(covered), len(world.segments(lease_id))


# --- a server dies ----------------------------------------------------------------------------


def test_7_a_server_is_killed_by_root(world: FaultWorld) -> None:
    lease_id = world.spawn("gina", "quarter")["lease_id"]
    held = world.hold_removal()
    world.kill_container(lease_id)
    ended = world.settled_exactly(lease_id, held)
    assert ended["exit_code"] == 137
    assert "killed by signal 9" in ended["end_reason"]
    world.no_server("gina")
    assert any("killed by signal 9" in text for text in world.told("gina"))


def test_7_a_server_needs_more_memory_than_it_has(world: FaultWorld) -> None:
    world.behave("hugo", "hungry", "200")
    lease_id = world.spawn("hugo", "quarter")["lease_id"]
    held = world.hold_removal()
    with suppress(requests.RequestException):
        # Who eats it cannot answer any more.
        requests.get(f"{world.url}/user/hugo/eat", timeout=60)
    ended = world.settled_exactly(lease_id, held)
    assert ended["exit_code"] == 137
    assert ended["end_reason"].startswith("oom: ")
    assert "32 MiB" in ended["end_reason"]
    world.no_server("hugo")
    assert any("oom: " in text and "32 MiB" in text for text in world.told("hugo"))


# --- starts that never get anywhere -----------------------------------------------------------


@contextmanager
def starts_within(world: FaultWorld, limit_s: int) -> Iterator[None]:
    """Meanwhile a granted lease waits only so long for its server."""

    def change(old: int, new: int) -> None:
        world.end_part("service")
        world.setting("start_timeout_s", str(old), str(new))
        world.start_part("service")
        until("the service answers, and its node", world.grants)

    change(START_TIMEOUT_S, limit_s)
    try:
        yield
    finally:
        change(limit_s, START_TIMEOUT_S)


def test_23_a_start_that_hangs_holds_a_slice_no_longer_than_it_may(world: FaultWorld) -> None:
    with starts_within(world, 3):
        held = world.engine.hang("POST", CREATE)
        world.in_background("ida", "whole")
        held.wait_hit()
        lease = world.lease("ida")
        assert lease is not None
        # Nobody is there any more to give it up.
        world.end_part("hub")
        until("it is being taken back", lambda: world.lease_by_id(lease["lease_id"])["end_reason"])
        # But a container may still come of it: it is not free before that is certain.
        assert world.lease_by_id(lease["lease_id"])["state"] == "revoking"
        assert world.free("whole") == 0
        assert world.open_holds(lease["lease_id"]) == 1
        world.engine.remove(held)
        over = world.never_ran(lease["lease_id"])
        assert "did not start in time" in over["end_reason"]
    hub_again(world)
    world.no_server("ida")


def test_23_a_server_that_never_answers(world: FaultWorld) -> None:
    world.behave("jana", "mute", start_timeout=20)
    held = world.hold_removal()
    world.in_background("jana", "whole")
    lease = until("it has a slice", lambda: world.lease("jana"))
    assert lease is not None
    # Its container ran, on a GPU that nobody else could have: from its start to the stop that is
    # the user's, and the rest the platform's.
    ended = world.settled_exactly(lease["lease_id"], held)
    assert "did not get ready in time" in ended["stop_reason"]
    assert ended["stop_requested_us"] is not None
    assert world.open_holds(lease["lease_id"]) == 0
    world.no_server("jana")


# --- hostile options (what is answered to each is in test_spawner_experiments.py) --------------


@pytest.mark.long
def test_26_the_hub_keeps_nothing_of_what_it_refuses(world: FaultWorld) -> None:
    world.add_user("mallory")

    def ask(count: int) -> int:
        for number in range(count):
            options = {"slice": f"{number}" + "x" * MIB}
            assert world.ask_to_spawn("mallory", options).status_code == 400
        return pid_rss(world._processes["hub"].pid)

    first = ask(REMEMBERED + 20)
    # Were only a third of it kept, it would be more.
    assert ask(60) - first < 60 * MIB // 3
    assert world.lease_ids_of("mallory") == []
