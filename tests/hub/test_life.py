"""Servers from choice to settlement on a real platform, and everything that is refused."""

from __future__ import annotations

import html
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import requests
from platform_world import Platform, Session, alive, until

pytestmark = pytest.mark.hub


# --- the good case --------------------------------------------------------------------------


@pytest.mark.parametrize("slice_name", ["cpu", "quarter"])
def test_a_server_runs_in_its_lease_and_the_lease_ends_with_it(
    platform: Platform, slice_name: str
) -> None:
    user = f"good-{slice_name}"
    lease = platform.spawn(user, slice_name)
    assert (lease["state"], lease["slice"]) == ("running", slice_name)
    server = platform.server(user)
    assert server is not None
    assert server["user_options"] == {"slice": slice_name, "profile": slice_name}
    pid = platform.server_pid(lease["lease_id"])

    platform.stop_server(user)

    assert not alive(pid)
    ended = platform.wait_over(lease["lease_id"])
    assert (ended["state"], ended["stop_reason"]) == ("ended", "user")
    assert not ended["finished_at_unknown"]


def test_a_new_start_right_after_a_stop_gets_a_slice(platform: Platform) -> None:
    first = platform.spawn("again", "whole")
    platform.stop_server("again")
    second = platform.spawn("again", "whole")
    assert first["lease_id"] != second["lease_id"]
    platform.stop_server("again")


def test_named_servers_have_leases_of_their_own(platform: Platform) -> None:
    one = platform.spawn("names", "cpu", "one")
    two = platform.spawn("names", "cpu", "two")
    assert one["lease_id"] != two["lease_id"]
    assert platform.server_pid(one["lease_id"]) != platform.server_pid(two["lease_id"])
    platform.stop_server("names", "one")
    assert platform.lease_by_id(two["lease_id"])["state"] == "running"
    platform.stop_server("names", "two")


def test_the_server_gets_its_environment_and_no_secret(platform: Platform) -> None:
    lease = platform.spawn("environ", "quarter")
    pid = platform.server_pid(lease["lease_id"])
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode()
    env = dict(entry.partition("=")[::2] for entry in raw.split("\0") if entry)
    assert env["GPUSLICE_LEASE"] == lease["lease_id"]
    assert env["GPUSLICE_SLICE"] == "quarter"
    assert env["GPUSLICE_SIMULATED"] == "1"
    assert env["HOME"] == str(platform.state / "homes" / "environ")
    for secret in (platform.state / "secrets").iterdir():
        assert secret.read_text().strip() not in raw, secret.name
    platform.stop_server("environ")


def test_the_servers_token_reads_its_own_lease_and_no_other(platform: Platform) -> None:
    mine = platform.spawn("token", "cpu", "mine")
    other = platform.spawn("token", "cpu", "other")
    pid = platform.server_pid(mine["lease_id"])
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode()
    env = dict(entry.partition("=")[::2] for entry in raw.split("\0") if entry)
    headers = {"Authorization": f"token {env['JUPYTERHUB_API_TOKEN']}"}

    def get(path: str) -> requests.Response:
        return requests.get(f"{env['GPUSLICE_SERVICE_URL']}{path}", headers=headers, timeout=30)

    me = get("api/me")
    assert me.status_code == 200, me.text
    assert me.json()["server"] == "mine"
    assert [lease["lease_id"] for lease in me.json()["leases"]] == [mine["lease_id"]]
    assert get(f"api/leases/{mine['lease_id']}").status_code == 200
    assert get(f"api/leases/{other['lease_id']}").status_code in (403, 404)
    assert get("api/devices").status_code == 403
    stopped = requests.post(
        f"{env['GPUSLICE_SERVICE_URL']}api/leases/{mine['lease_id']}/stop",
        headers=headers,
        json={},
        timeout=30,
    )
    assert stopped.status_code == 403
    scopes = set(requests.get(f"{env['JUPYTERHUB_API_URL']}/user", headers=headers, timeout=30)
                 .json()["scopes"])  # fmt: skip
    assert "custom:gpuslice:lease!server=token/mine" in scopes
    assert "users:activity!user=token" in scopes
    platform.stop_server("token", "mine")
    platform.stop_server("token", "other")


def test_a_server_that_dies_is_noticed_and_settled(platform: Platform) -> None:
    lease = platform.spawn("dies", "quarter")
    os.kill(platform.server_pid(lease["lease_id"]), signal.SIGKILL)
    ended = platform.wait_over(lease["lease_id"])
    assert ended["exit_code"] == -signal.SIGKILL
    assert not ended["finished_at_unknown"]
    until("the hub has noticed", lambda: platform.server("dies") is None)


# --- the spawn page -------------------------------------------------------------------------


def test_the_form_offers_slices_with_price_and_says_that_they_are_simulated(
    platform: Platform,
) -> None:
    page = platform.login("form").get("/hub/spawn").text
    assert re.findall(r'type="radio" name="slice"', page) == ['type="radio" name="slice"'] * 3
    assert "3.60 EUR per hour" in page
    assert "SIMULATED" in page
    assert page.count("<label") >= 3


def test_a_spawn_by_form_and_a_link(platform: Platform) -> None:
    browser = platform.login("byform")
    answer = browser.post("/hub/spawn", {"slice": "cpu"})
    assert answer.ok
    platform.wait_ready("byform")
    platform.stop_server("byform")
    assert browser.get("/hub/spawn?opt-slice=cpu").ok
    platform.wait_ready("byform")
    platform.stop_server("byform")


def test_a_link_on_another_site_starts_nothing(platform: Platform) -> None:
    browser = platform.login("victim")
    answer = browser.get("/hub/spawn?opt-slice=whole", **{"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert "another site" in answer.text
    assert platform.lease("victim") is None


# --- bad input ------------------------------------------------------------------------------

BAD: list[tuple[str, Any]] = [
    ("is not the name of a slice", {"slice": "../../etc/passwd"}),
    ("is not the name of a slice", {"slice": "gpu \u202e\U0001f4a9"}),
    ("is not the name of a slice", {"slice": "x" * 1_000_000}),
    ("no slice type", {"slice": "no-such-slice"}),
    ("is not a number of hours", {"slice": "cpu", "hours": -3}),
    ("is not a number of hours", {"slice": "cpu", "hours": float("nan")}),
    ("'hours' is a number", {"slice": "cpu", "hours": [3]}),
    ("'charge' is a group's name", {"slice": "cpu", "charge": 7}),
    ("is no, tell or start", {"slice": "cpu", "queue": "maybe"}),
    ("Unknown option", {"slice": "cpu", "price": "0"}),
    ("Unknown option", {"lease_id": "0" * 32}),
    ("not a number", {"slice": float("nan")}),
    ("not a number", {"slice": -1}),
    ("not a number", {"slice": 1e308}),
    ("not true or false", {"slice": True}),
    ("not a list", {"slice": ["cpu", "whole"]}),
    ("not an object", {"slice": {"slice": {"slice": "cpu"}}}),
    ("set by the platform", {"slice": "cpu", "profile": "whole"}),
    ("No slice was chosen", {}),
    ("No slice was chosen", {"slice": ""}),
]


@pytest.mark.parametrize(("words", "options"), BAD, ids=range(len(BAD)))
def test_bad_options_by_rest(platform: Platform, words: str, options: Any) -> None:
    platform.add_user("mallory")
    seen = len(platform.log("hub"))
    answer = platform.ask_to_spawn("mallory", options)
    assert 400 <= answer.status_code < 500
    assert words in answer.json()["message"]
    assert len(answer.content) < 2000
    assert platform.lease("mallory") is None
    assert "Traceback" not in platform.log("hub")[seen:]
    # Nothing of it is kept, to be shown to an administrator or used by the next start.
    model = platform.rest("GET", "users/mallory?include_stopped_servers=1").json()
    assert "NaN" not in json.dumps(model)
    assert len(json.dumps(model)) < 5000


def form_refusal(answer: requests.Response) -> str:
    """What the form page says, as a reader sees it."""
    found = re.search(r'<p class="spawn-error-msg[^>]*>(.*?)</p>', answer.text, re.S)
    assert found, answer.text[:2000]
    return html.unescape(found[1])


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ("no slice type", {"slice": "no-such-slice"}),
        ("is not the name of a slice", {"slice": "<script>alert(1)</script>"}),
        ("not a list", {"slice": ["cpu", "whole"]}),
        ("Unknown option", {"slice": "cpu", "rate": "nan"}),
        ("No slice was chosen", {}),
    ],
)
def test_bad_options_by_form_and_query(
    platform: Platform, words: str, form: dict[str, Any]
) -> None:
    browser = platform.login("eve")
    by_form = browser.post("/hub/spawn", form)
    assert by_form.status_code == 400
    assert words in form_refusal(by_form)
    assert "<script>alert" not in by_form.text
    assert "SpawnRefused" not in by_form.text
    query = requests.models.RequestEncodingMixin._encode_params(
        {f"opt-{key}": value for key, value in form.items()}
    )
    if query:
        by_query = browser.get(f"/hub/spawn?{query}")
        assert by_query.status_code == 400
        assert words in form_refusal(by_query)
        assert "<script>alert" not in by_query.text
    assert platform.lease("eve") is None


# --- refusals -------------------------------------------------------------------------------


def test_a_refusal_reads_the_same_on_the_form_in_rest_and_in_progress(platform: Platform) -> None:
    platform.spawn("holder", "whole")
    browser = platform.login("late")
    answer = browser.post("/hub/spawn", {"slice": "whole"})
    said = form_refusal(answer)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"].isdigit()
    assert "quarter" in said and "cpu" in said, said
    assert "again" in said

    rest = platform.ask_to_spawn("late", {"slice": "whole"})
    assert rest.status_code == 503
    assert rest.headers["Retry-After"].isdigit()
    assert rest.json()["message"] in said

    progress = browser.api("GET", "users/late/server/progress")
    events = [json.loads(line[6:]) for line in progress.text.splitlines() if line[:5] == "data:"]
    assert events[-1]["failed"]
    assert rest.json()["message"] in events[-1]["message"]
    assert platform.lease("late") is None
    platform.stop_server("holder")


def test_progress_tells_what_a_start_is_doing(platform: Platform) -> None:
    platform.add_user("watch")
    assert platform.ask_to_spawn("watch", {"slice": "quarter"}).status_code in (201, 202)
    text = platform.rest("GET", "users/watch/server/progress").text
    last = [json.loads(line[6:]) for line in text.splitlines() if line[:5] == "data:"][-1]
    assert last["ready"]
    platform.stop_server("watch")


def test_the_stop_button_of_a_starting_server_is_about_that_server(platform: Platform) -> None:
    browser = platform.login("pending")
    home = platform.state / "homes" / "pending"
    home.mkdir(exist_ok=True)
    (home / "never-answer").touch()
    answer = platform.ask_to_spawn("pending", {"slice": "cpu"}, "mine")
    assert answer.status_code == 202
    page = browser.get("/hub/spawn-pending/pending/mine").text
    found = re.search(r'const server = "([^"]+)";', page)
    assert found
    assert found[1] == "/hub/api/users/pending/servers/mine"
    assert browser.api("DELETE", found[1].removeprefix("/hub/api/")).status_code in (202, 204)
    until("nothing is left of it", lambda: platform.lease("pending", "mine") is None)


def test_the_limit_is_named(platform: Platform) -> None:
    for name in ("a", "b", "c"):
        platform.spawn("greedy", "cpu", name)
    answer = platform.ask_to_spawn("greedy", {"slice": "cpu"}, "d")
    assert 400 <= answer.status_code < 500
    assert "3" in answer.json()["message"]
    for name in ("a", "b", "c"):
        platform.stop_server("greedy", name)


def test_a_server_that_ends_while_starting_says_why_and_keeps_nothing(platform: Platform) -> None:
    platform.add_user("broken")
    home = platform.state / "homes" / "broken"
    home.mkdir(exist_ok=True)
    (home / "refuse-to-start").touch()
    answer = platform.ask_to_spawn("broken", {"slice": "whole"})
    if answer.status_code == 202:
        until("the start has failed", lambda: not (platform.server("broken") or {}).get("pending"))
    else:
        assert answer.status_code == 500
        assert answer.headers["Content-Type"].startswith("application/json")
    events = platform.rest("GET", "users/broken/server/progress").text
    (event,) = [json.loads(line[6:]) for line in events.splitlines() if line[:5] == "data:"]
    message = event["message"]
    # Its own last words too, if the reconciler has not put everything away already.
    assert "exit code 3" in message or "exited with code 3" in message
    assert "<b>" not in event["html_message"]
    until("the slice is free again", lambda: platform.free("whole") == 1)
    assert platform.lease("broken") is None


def test_a_start_that_takes_too_long_says_so_and_keeps_nothing(platform: Platform) -> None:
    platform.add_user("slow")
    home = platform.state / "homes" / "slow"
    home.mkdir(exist_ok=True)
    (home / "never-answer").write_text("waiting for a disk")
    assert platform.ask_to_spawn("slow", {"slice": "whole"}).status_code == 202
    until("the start was given up", lambda: platform.server("slow") is None)
    message = platform.rest("GET", "users/slow/server/progress").text
    assert "not get ready in time" in message
    assert "waiting for a disk" in message
    until("the slice is free again", lambda: platform.free("whole") == 1)


def test_another_users_server_is_not_startable(platform: Platform) -> None:
    platform.add_user("somebody")
    browser: Session = platform.login("nobody")
    answer = browser.api("POST", "users/somebody/server", json={"user_options": {"slice": "cpu"}})
    assert answer.status_code in (403, 404)
    assert platform.lease("somebody") is None
