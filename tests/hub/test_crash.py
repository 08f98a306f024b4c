"""SIGKILL of hub, service, node, and of everything, at each point of facts/faults.md section 1.

After every test: no lease without a server, no server without a lease, and the fixture verifies
the books at the end.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import requests
from platform_world import Platform, alive, until

pytestmark = pytest.mark.hub


@pytest.fixture
def user(request: pytest.FixtureRequest, platform: Platform) -> Iterator[str]:
    """A user of this test's own, who holds nothing at its end."""
    name = f"u{abs(hash(request.node.name)) % 10**8}"
    platform.add_user(name)
    yield name
    if platform.server(name):
        platform.stop_server(name)
    lease = platform.lease(name)
    if lease is not None:
        platform.wait_over(lease["lease_id"])
    until("everything is free again", lambda: platform.free("whole") == 1)


def ask_quietly(platform: Platform, user: str, method: str) -> None:
    """Ask for a start or stop; the hub may die while it answers."""
    try:
        if method == "POST":
            platform.ask_to_spawn(user, {"slice": "whole"})
        else:
            platform.rest("DELETE", f"users/{user}/server")
    except requests.RequestException:
        pass


def start_into_crash(platform: Platform, user: str, point: str) -> None:
    hub = platform.crash_at(point)
    ask_quietly(platform, user, "POST")
    platform.wait_for_new_hub(hub)


def stop_into_crash(platform: Platform, user: str, point: str) -> None:
    hub = platform.crash_at(point)
    ask_quietly(platform, user, "DELETE")
    platform.wait_for_new_hub(hub)


def assert_same_server(platform: Platform, user: str, lease_id: str, pid: int) -> None:
    """The hub knows the server, it is the same process, and it is reached through the proxy."""
    platform.wait_ready(user)
    lease = platform.lease(user)
    assert lease is not None
    assert (lease["lease_id"], lease["state"]) == (lease_id, "running")
    assert platform.server_pid(lease_id) == pid
    until("the proxy leads to it", lambda: ask(f"{platform.url}/user/{user}/api") == str(pid))


def ask(url: str) -> str:
    try:
        answer = requests.get(url, timeout=10)
    except requests.RequestException:
        return ""
    return answer.text if answer.status_code == 200 else ""


# --- in a start -----------------------------------------------------------------------------


def test_1_in_the_pre_spawn_hook(platform: Platform, user: str) -> None:
    start_into_crash(platform, user, "pre_spawn_hook")
    until("the hub has no such server", lambda: platform.server(user) is None)
    assert platform.lease(user) is None
    platform.spawn(user, "whole")


def test_2_leased_and_nothing_created(platform: Platform, user: str) -> None:
    start_into_crash(platform, user, "before_create")
    until("the hub has no such server", lambda: platform.server(user) is None)
    until("the lease is taken back", lambda: platform.lease(user) is None)
    assert platform.free("whole") == 1
    platform.spawn(user, "whole")


def test_3_created_and_nothing_saved(platform: Platform, user: str) -> None:
    start_into_crash(platform, user, "created_not_returned")
    platform.wait_ready(user)
    lease = platform.lease(user)
    assert lease is not None
    assert lease["state"] == "running"
    assert_same_server(platform, user, lease["lease_id"], platform.server_pid(lease["lease_id"]))


def test_3_created_and_the_service_comes_back_after_the_hub(platform: Platform, user: str) -> None:
    hub = platform.crash_at("created_not_returned")
    ask_quietly(platform, user, "POST")
    until("the hub has died", lambda: not alive(hub))
    platform.switch("service", on=False)
    try:
        # The new hub asks for the lease of a server that it has no state of, and asks again.
        until("the new hub looks", lambda: platform.pid("hub") != hub)
        until("a hub answers", platform._answers)
        assert (platform.server(user) or {}).get("pending") == "check"
    finally:
        platform.switch("service", on=True)
    platform.wait_ready(user)
    lease = platform.lease(user)
    assert lease is not None
    assert_same_server(platform, user, lease["lease_id"], platform.server_pid(lease["lease_id"]))


# --- while it runs --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_4_5_hub_ends_while_it_runs(platform: Platform, user: str, number: int) -> None:
    lease = platform.spawn(user, "whole")
    pid = platform.server_pid(lease["lease_id"])
    hub = platform.pid("hub")
    os.kill(hub, number)
    platform.wait_for_new_hub(hub)
    assert_same_server(platform, user, lease["lease_id"], pid)


def test_7_server_dies_while_the_hub_is_down(platform: Platform, user: str) -> None:
    lease = platform.spawn(user, "whole")
    platform.switch("hub", on=False)
    os.kill(platform.server_pid(lease["lease_id"]), signal.SIGKILL)
    ended = platform.wait_over(lease["lease_id"])
    assert not ended["finished_at_unknown"]
    platform.switch("hub", on=True)
    until("a hub answers", platform._answers)
    until("the hub has no such server", lambda: platform.server(user) is None)


def test_11_hub_restarts_while_the_node_is_down(platform: Platform, user: str) -> None:
    lease = platform.spawn(user, "whole")
    pid = platform.server_pid(lease["lease_id"])
    platform.switch("node", on=False)
    hub = platform.pid("hub")
    platform.kill("hub")
    platform.wait_for_new_hub(hub)
    platform.wait_ready(user)
    assert alive(pid)
    platform.switch("node", on=True)
    assert_same_server(platform, user, lease["lease_id"], pid)


def test_a_server_that_does_not_answer_when_the_hub_restarts_goes_on(
    platform: Platform, user: str
) -> None:
    lease = platform.spawn(user, "whole")
    pid = platform.server_pid(lease["lease_id"])
    os.kill(pid, signal.SIGUSR1)
    until("it does not answer", lambda: ask(f"{platform.url}/user/{user}/api") == "")
    hub = platform.pid("hub")
    platform.kill("hub")
    platform.wait_for_new_hub(hub)
    # Longer than the hub gives a server that it finds: http_timeout of crashing_hub.py.
    time.sleep(25)
    assert alive(pid)
    assert platform.server(user) is not None
    os.kill(pid, signal.SIGUSR1)
    assert_same_server(platform, user, lease["lease_id"], pid)


# --- in a stop ------------------------------------------------------------------------------


def test_8_stop_not_committed_yet(platform: Platform, user: str) -> None:
    lease = platform.spawn(user, "whole")
    pid = platform.server_pid(lease["lease_id"])
    stop_into_crash(platform, user, "stop_before_commit")
    # Nobody was promised anything yet: the server goes on, and can be stopped.
    assert_same_server(platform, user, lease["lease_id"], pid)


@pytest.mark.parametrize("point", ["stop_before_kill", "killed_not_committed", "post_stop_hook"])
def test_8_9_10_stop_committed(platform: Platform, user: str, point: str) -> None:
    lease = platform.spawn(user, "whole")
    pid = platform.server_pid(lease["lease_id"])
    stop_into_crash(platform, user, point)
    ended = platform.wait_over(lease["lease_id"])
    assert ended["stop_reason"] == "user"
    assert not ended["finished_at_unknown"]
    assert not alive(pid)
    until("the hub has no such server", lambda: platform.server(user) is None)
    platform.spawn(user, "whole")


# --- the other parts ------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["service", "node", "proxy"])
def test_a_part_dies_while_a_server_runs(platform: Platform, user: str, part: str) -> None:
    lease = platform.spawn(user, "whole")
    pid = platform.server_pid(lease["lease_id"])
    old = platform.pid(part)
    platform.kill(part)
    until("it was started again", lambda: platform.pid(part) != old and alive(platform.pid(part)))
    until("the hub answers", platform._answers)
    until("the service answers", lambda: ask(f"{platform.url}/services/gpuslice/api/health"))
    assert_same_server(platform, user, lease["lease_id"], pid)
    platform.stop_server(user)
    assert platform.wait_over(lease["lease_id"])["state"] == "ended"


def test_everything_dies_and_comes_back(platform: Platform, user: str) -> None:
    lease = platform.spawn(user, "whole")
    pid = platform.server_pid(lease["lease_id"])
    platform.kill_all()
    assert alive(pid)
    platform.start()
    assert_same_server(platform, user, lease["lease_id"], pid)
    platform.stop_server(user)
    ended = platform.wait_over(lease["lease_id"])
    assert (ended["state"], ended["stop_reason"]) == ("ended", "user")


# --- a part that stays down -----------------------------------------------------------------


def test_service_down(platform: Platform, user: str) -> None:
    lease = platform.spawn(user, "whole")
    pid = platform.server_pid(lease["lease_id"])
    browser = platform.login("somebody")
    platform.switch("service", on=False)
    try:
        # A start is refused in words, and the form says so before.
        answer = platform.ask_to_spawn("somebody", {"slice": "cpu"})
        assert answer.status_code == 503
        assert "does not answer" in answer.json()["message"]
        assert "does not answer" in browser.get("/hub/spawn").text
        # A running server goes on; its stop does not wait for the service.
        assert (platform.server(user) or {})["ready"]
        assert alive(pid)
        platform.stop_server(user)
        assert not alive(pid)
    finally:
        platform.switch("service", on=True)
    ended = platform.wait_over(lease["lease_id"])
    assert not ended["finished_at_unknown"]


def test_node_down(platform: Platform, user: str) -> None:
    platform.switch("node", on=False)
    try:
        answer = platform.ask_to_spawn(user, {"slice": "whole"})
        assert answer.status_code == 503
        assert "node" in answer.json()["message"] or "host" in answer.json()["message"]
    finally:
        platform.switch("node", on=True)
    until("no lease is left", lambda: platform.lease(user) is None)
    until("slices can be had again", lambda: platform.free("whole") == 1)


# --- cancelled and late starts ---------------------------------------------------------------


def test_a_cancelled_start_leaves_nothing(platform: Platform, user: str) -> None:
    home = platform.state / "homes" / user
    home.mkdir(exist_ok=True)
    (home / "never-answer").touch()
    answer = platform.ask_to_spawn(user, {"slice": "whole"})
    assert answer.status_code == 202
    lease = until("the server runs", lambda: platform.lease(user))
    assert lease is not None
    answer = platform.rest("DELETE", f"users/{user}/server")
    assert answer.status_code in (202, 204), answer.text
    over = platform.wait_over(lease["lease_id"])
    assert "cancelled" in (over["stop_reason"] or "")
    until("the hub has no such server", lambda: platform.server(user) is None)
    (home / "never-answer").unlink()
    platform.spawn(user, "whole")
