"""The seven experiments of facts/faults.md section 2, on a real hub and engine, against ours.

Stock DockerSpawner fails every one of them. No assertion here is about seconds: each is about
what is true before what.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest
import requests

from gpuslice.node.docker.reports import parse_time
from hubworld import DockerPlatform, until
from registrystub import RegistryImage, RegistryStub, payload, registry_stub, saved_layers

pytestmark = [pytest.mark.docker, pytest.mark.hub, pytest.mark.timeout(600)]

#: Long enough that a test is over before a stubborn server is killed.
GRACE_S = 120.0


class World(DockerPlatform):
    """With two images that only a registry has."""

    registry: RegistryStub
    slow: RegistryImage
    silent: RegistryImage


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, client: docker.DockerClient, tiny: str
) -> Iterator[World]:
    layers = saved_layers(tiny)
    with registry_stub() as registry:
        slow = registry.add("slow", [*layers, payload(4 << 20)])
        silent = registry.add("silent", [*layers, payload(4 << 20)])
        images = [tiny, slow.reference, silent.reference]
        folder = tmp_path_factory.mktemp("gpu docker")
        world = World(folder, client, images, grace_s=GRACE_S)
        world.registry, world.slow, world.silent = registry, slow, silent
        try:
            world.start()
            yield world
        finally:
            world.end()
            registry.forget(client)


@pytest.fixture(autouse=True)
def clean(world: World) -> Iterator[None]:
    """After every experiment the engine is well, and nothing of it is left."""
    world.engine.clear()
    yield
    world.engine.clear()
    for user in [one["name"] for one in world.rest("GET", "users").json()]:
        if world.server(user):
            world.rest("DELETE", f"users/{user}/server")
    for lease_id in world.running():
        world.kill_container(lease_id)
    world.wait_clean()


def ask_to_spawn(world: World, user: str, slice_name: str = "cpu", **options: str) -> None:
    """Ask for a start without waiting for what becomes of it."""
    world.add_user(user)
    threading.Thread(
        target=world.ask_to_spawn, args=(user, {"slice": slice_name, **options}), daemon=True
    ).start()


def no_server(world: World, user: str) -> None:
    until(f"the hub has no server of {user}", lambda: world.server(user) is None)


# --- A ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["not yet made", "made, unanswered"])
def test_a_a_user_cancels_while_the_container_is_being_created(world: World, after: bool) -> None:
    held = world.engine.hang("POST", r"^/containers/create", after=after)
    ask_to_spawn(world, "anna", "whole")
    held.wait_hit()
    answer = world.rest("DELETE", "users/anna/server")
    assert answer.status_code in (202, 204), answer.text
    # Whatever the engine does late is noticed and undone.
    held.release()
    no_server(world, "anna")
    world.wait_clean()
    assert world.spawn("anna", "whole")["state"] == "running"


# --- B ----------------------------------------------------------------------------------------

HOOK = "OCI runtime create failed: nvidia-container-cli: initialization error: driver not loaded"


def test_b_a_start_that_the_engine_refuses_says_why(world: World) -> None:
    world.engine.answer("POST", r"^/containers/[^/]+/start", 500, HOOK)
    told = world.refusal("berta", "whole")
    assert "nvidia-container-cli: initialization error" in told
    world.wait_clean()
    no_server(world, "berta")


def test_b_a_command_that_the_image_does_not_have(world: World) -> None:
    world.behave_as("bernd", ["/no/such/program"])
    told = world.refusal("bernd", "quarter")
    assert "/no/such/program" in told
    assert "no such file or directory" in told
    assert "OCI runtime" not in told
    world.wait_clean()


def test_b_a_server_that_ends_at_once_shows_its_code_and_its_last_words(world: World) -> None:
    world.behave("boris", "exit", "3")
    told = world.refusal("boris", "quarter")
    assert re.search(r"exit(ed with)? code 3", told), told
    world.wait_clean()


def test_b_a_server_that_needs_too_much_memory_is_told_so(world: World) -> None:
    world.behave("bella", "eat", "200")
    told = world.refusal("bella", "quarter")
    assert "32 MiB" in told
    assert re.search("memory|RAM", told), told
    world.wait_clean()


# --- C ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "killed while the hub is down"])
def test_c_a_container_that_dies_is_settled_to_the_engines_own_moment(
    world: World, how: str
) -> None:
    lease = world.spawn("carla", "whole")
    lease_id = lease["lease_id"]
    # So that the container is still there to be asked when it ended.
    held = world.engine.hang("DELETE", r"^/containers/")
    if "down" in how:
        world.end_part("hub")
    world.kill_container(lease_id)
    held.wait_hit()
    container = world.container(lease_id)
    assert container is not None
    state = container.attrs["State"]
    settled = world.lease_by_id(lease_id)
    assert settled["state"] == "settled"
    assert settled["started_us"] == parse_time(state["StartedAt"])
    assert settled["finished_us"] == parse_time(state["FinishedAt"])
    assert settled["covered_us"] == settled["finished_us"]
    assert settled["exit_code"] == 137
    assert not settled["finished_at_unknown"]
    # 36 an hour is a hundredth of it per second: exact to the microsecond, rounded down once.
    ran_us = settled["finished_us"] - settled["started_us"]
    assert settled["cost_u"] + settled["writeoff_u"] == 36_000_000 * ran_us // 3_600_000_000
    held.release()
    if "down" in how:
        world.start_part("hub")
        until("the hub answers", world._answers)
    no_server(world, "carla")
    world.wait_clean()


# --- D ----------------------------------------------------------------------------------------


def test_d_a_start_that_times_out_while_the_container_is_being_created(world: World) -> None:
    world.behave("dora", start_timeout=6)
    held = world.engine.hang("POST", r"^/containers/create", after=True)
    ask_to_spawn(world, "dora", "whole")
    held.wait_hit()
    told = world.message("dora")
    assert "did not get ready in time" in told
    # The engine is slower than the start was patient.
    held.release()
    world.wait_clean()
    no_server(world, "dora")


# --- E ----------------------------------------------------------------------------------------


def test_e_eight_users_stop_with_full_grace_while_a_ninth_starts(world: World) -> None:
    users = [f"emil{number}" for number in range(8)]
    for user in users:
        world.behave(user, "stubborn")
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda user: world.spawn(user, "cpu")["lease_id"], users))
        stops = [pool.submit(world.rest, "DELETE", f"users/{user}/server") for user in users]
        until("all of them are stopping", lambda: all(
            world.lease_by_id(lease)["stop_requested_us"] for lease in leases))  # fmt: skip
        ninth = world.spawn("erna", "cpu")
        # Its server was ready while all eight still had their grace.
        assert set(leases) <= world.running()
        assert all(world.lease_by_id(lease)["state"] != "ended" for lease in leases)
        assert ninth["state"] == "running"
        for lease in leases:
            world.kill_container(lease)
        assert all(stop.result().status_code in (202, 204) for stop in stops)
    for user in users:
        no_server(world, user)
    world.stop_server("erna")


# --- F ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["503", "500", "down", "hang"])
def test_f_a_hub_that_restarts_while_the_engine_does_not_answer(world: World, trouble: str) -> None:
    users = {"fred": "whole", "frieda": "quarter", "franz": "cpu"}
    leases = {user: world.spawn(user, one)["lease_id"] for user, one in users.items()}
    running = world.running()
    match trouble:
        case "down":
            world.engine.down()
        case "hang":
            world.engine.hang("", "")
        case status:
            world.engine.answer("", "", int(status), "the engine is not well")
    world.restart_part("hub")
    until("a hub answers", world._answers, patience_s=120)
    for user, lease in leases.items():
        # Known, and reached: the server itself is well.
        world.wait_ready(user)
        assert world.lease_by_id(lease)["state"] == "running"
    # Nobody gets what is in use, nor anything else, and everybody is told why.
    told = world.refusal("fritz", "whole")
    assert "No server was started" in told
    assert "does not answer" in told or "the engine is not well" in told
    assert world.free("whole") == 0
    assert world.running() == running
    assert world.lease("fritz") is None
    if trouble == "down":
        world.engine.up()
    world.engine.clear()
    for user, lease in leases.items():
        world.wait_ready(user)
        found = world.lease(user)
        assert found is not None
        assert found["lease_id"] == lease
    for user in users:
        world.stop_server_now(user)
    no_server(world, "fritz")


# --- G ----------------------------------------------------------------------------------------


def test_g_a_slow_pull_holds_up_no_other_start(world: World) -> None:
    gate = world.registry.hold(world.slow.layers[-1])
    ask_to_spawn(world, "gerd", "whole", image=world.slow.reference)
    gate.wait_hit()
    # Nobody holds a slice, nor is billed, for an image that is still on its way.
    assert world.lease("gerd") is None
    assert world.free("whole") == 1
    other = world.spawn("greta", "whole")
    assert other["state"] == "running"
    until("the page tells how far the pull is", lambda: any(
        re.search(r"Pulling the image .* layers, .* of ", line)
        for line in world.progress("gerd")))  # fmt: skip
    assert (world.server("gerd") or {}).get("pending") == "spawn"
    world.stop_server("greta")
    gate.release()
    world.wait_ready("gerd")
    lease = world.lease("gerd")
    assert lease is not None
    container = world.container(lease["lease_id"])
    assert container is not None
    image = world.client.images.get(world.slow.reference)
    assert container.image.id == image.id
    world.stop_server("gerd")


def test_g_a_pull_that_is_cancelled_costs_nothing_and_is_not_lost(world: World) -> None:
    gate = world.registry.hold(world.silent.layers[-1])
    ask_to_spawn(world, "gero", "whole", image=world.silent.reference)
    gate.wait_hit()
    assert world.rest("DELETE", "users/gero/server").status_code in (202, 204)
    no_server(world, "gero")
    assert world.lease("gero") is None
    before = world.registry.asked.count(f"/v2/silent/blobs/{world.silent.layers[-1]}")
    ask_to_spawn(world, "gesa", "whole", image=world.silent.reference)
    until("another start joins the pull", lambda: any(
        "another start's pull" in line for line in world.progress("gesa")))  # fmt: skip
    gate.release()
    world.wait_ready("gesa")
    assert world.registry.asked.count(f"/v2/silent/blobs/{world.silent.layers[-1]}") == before
    world.stop_server("gesa")


# --- more of what must hold -------------------------------------------------------------------


def test_two_starts_of_one_user_at_once_get_one_server(world: World) -> None:
    world.add_user("hans")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: world.ask_to_spawn("hans", {"slice": "whole"}), range(6)))
    assert {answer.status_code for answer in answers} <= {201, 202, 400}
    world.wait_ready("hans")
    assert len(world.running()) == 1
    assert world.free("whole") == 0
    world.stop_server("hans")


def test_named_servers_have_containers_of_their_own(world: World) -> None:
    one, two = (world.spawn("ida", "cpu", name)["lease_id"] for name in ("one", "two"))
    first, second = world.container(one), world.container(two)
    assert first is not None and second is not None
    assert first.name == f"gpuslice-ida--one-{one[:12]}"
    assert second.name == f"gpuslice-ida--two-{two[:12]}"
    world.stop_server("ida", "one")
    assert world.running() == {two}
    world.stop_server("ida", "two")


AWKWARD = "ü ..%2f'\"$(id)`&<b>;{x}名@example.org"


def test_a_user_with_every_awkward_character(world: World) -> None:
    user = requests.utils.quote(AWKWARD, safe="")
    world.add_user(user)
    assert world.ask_to_spawn(user, {"slice": "quarter"}).status_code in (201, 202)
    world.wait_ready(user)
    lease = world.lease(AWKWARD)
    assert lease is not None
    assert lease["user"] == AWKWARD
    container = world.container(lease["lease_id"])
    assert container is not None
    assert re.fullmatch(r"gpuslice-[a-z0-9-]+", container.name)
    assert container.labels["gpuslice.user"] == AWKWARD
    # The hub's proxy leads to it: what it checked before it said "ready", and we do again.
    url = str((world.server(user) or {})["url"])
    assert requests.get(f"{world.url}{url}api", timeout=30).text == "{}"
    world.stop_server(user)


HOSTILE = [
    ("no image 'evil:latest'", {"slice": "cpu", "image": "evil:latest"}),
    ("There is no image", {"slice": "cpu", "image": "../../../etc/passwd"}),
    ("There is no image", {"slice": "cpu", "image": "x" * 1_000_000}),
    ("There is no image", {"slice": "cpu", "image": "gpu \u202e\U0001f4a9"}),
    ("not a list", {"slice": "cpu", "image": ["a", "b"]}),
    ("not an object", {"slice": "cpu", "image": {"$ne": 1}}),
    ("not a number", {"slice": "cpu", "image": float("nan")}),
    ("not a number", {"slice": "cpu", "image": -1}),
    ("not true or false", {"slice": "cpu", "image": True}),
    ("Unknown option", {"slice": "cpu", "mem_limit": "1T"}),
    ("Unknown option", {"slice": "cpu", "volumes": {"/": "/host"}}),
    ("Unknown option", {"slice": "cpu", "lease_id": "0" * 32}),
    ("no slice type", {"slice": "no-such-slice"}),
    ("is not the name of a slice", {"slice": "../x"}),
    ("not a number", {"slice": 1e308}),
]


@pytest.mark.parametrize(("words", "options"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_options(world: World, words: str, options: dict[str, object]) -> None:
    world.add_user("mallory")
    log = Path(world.state / "log" / "hub.log")
    seen = log.stat().st_size
    answer = world.ask_to_spawn("mallory", options)
    assert 400 <= answer.status_code < 500
    assert words in answer.json()["message"]
    assert len(answer.content) < 2000
    assert world.lease("mallory") is None
    assert "Traceback" not in log.read_bytes()[seen:].decode(errors="replace")


def test_the_form_offers_the_images_and_a_choice_is_kept(world: World, tiny: str) -> None:
    browser = world.login("nora")
    page = browser.get("/hub/spawn").text
    assert re.findall(r'<option value="([^"]+)"', page) == [
        tiny, world.slow.reference, world.silent.reference,
    ]  # fmt: skip
    assert browser.post("/hub/spawn", {"slice": "cpu", "image": tiny}).ok
    world.wait_ready("nora")
    server = world.server("nora")
    assert server is not None
    assert server["user_options"] == {"slice": "cpu", "profile": "cpu", "image": tiny}
    world.stop_server("nora")
