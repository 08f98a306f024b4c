"""A course with one policy, set by command and by REST, and students who try to get round it.

The policy is the one that the documentation shows: students have one quarter slice each, 20
GPU-hours a week, 50 EUR a month for the whole course, and no whole GPUs. An hour of a quarter costs
so much here that what is set aside for the next ten minutes is 20 EUR: two servers, and the month
is full.
"""

from __future__ import annotations

import html
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from platform_world import Platform, until

pytestmark = pytest.mark.hub

CHANGES = {
    "hold_horizon_s = 10": "hold_horizon_s = 600\nlimit_grace_s = 3",
    'price = "3.6"': 'price = "120"',
}
NO_WHOLE = (
    "You may not take slices of type whole (each member of group students); you may take: quarter, "
    "cpu."
)
ONE_EACH = "You may hold 1 slice at a time (each member of group students) and hold as many already"
MONTH = "The limit is 50.00 EUR a month (group students in total)"
WEEK = "GPU-hours a week (each member of group students)"


class Course:
    """What the administrator of a platform, and whoever has an account on it, can do."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.service = f"{platform.url}/services/gpuslice"

    # --- the administrator ------------------------------------------------------------------

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command as it is typed on the platform's machine."""
        where = ["--state", str(self.platform.state), "--config", str(self.platform.config)]
        return subprocess.run(
            [sys.executable, "-m", "gpuslice", *words, *where],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def gpuslice(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def why(self, user: str, slice_name: str, *more: str) -> str:
        """What ``gpuslice quota explain`` says of somebody who is refused."""
        done = self.run("quota", "explain", user, slice_name, *more)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stdout

    def policy(self, *words: str) -> str:
        return self.gpuslice("quota", "set", "group", "students", *words, "--reason", "a test")

    def enrol(self, user: str, *groups: str) -> None:
        """An account in the hub, in these groups of the hub."""
        self.platform.add_user(user)
        for group in groups:
            made = self.platform.rest("POST", f"groups/{group}")
            assert made.status_code in (201, 409), made.text
            put = self.platform.rest("POST", f"groups/{group}/users", json={"users": [user]})
            assert put.ok, put.text

    def leases(self, *users: str) -> list[dict[str, Any]]:
        """All leases these users ever had."""
        found = json.loads(self.gpuslice("lease", "list", "--all", "--limit", "200", "--json"))
        return [lease for lease in found["leases"] if lease["user"] in users]

    def call(
        self, method: str, path: str, token: str | None = None, key: str | None = None, **more: Any
    ) -> requests.Response:
        """The service's REST, through the proxy as everybody reaches it."""
        headers = {**more.pop("headers", {})}
        if token is not None:
            headers["Authorization"] = f"token {token}"
        if key is not None:
            headers["Idempotency-Key"] = key
        return requests.request(
            method, f"{self.service}/{path}", headers=headers, timeout=60, **more
        )

    # --- a student --------------------------------------------------------------------------

    def token(self, user: str) -> str:
        """A token with all rights that a user may give away."""
        answer = self.platform.login(user).api("POST", f"users/{user}/tokens", json={})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    def refused(self, user: str, options: object, name: str = "") -> requests.Response:
        """A start over REST that has to be refused at once and lease nothing."""
        answer = self.platform.ask_to_spawn(user, options, name)
        assert 400 <= answer.status_code < 500, (options, answer.status_code, answer.text)
        assert self.platform.lease(user, name) is None
        return answer

    def settled(self, user: str) -> None:
        """Returns when no start or stop of a user is under way."""

        def quiet() -> bool:
            servers = self.platform.rest("GET", f"users/{user}").json()["servers"].values()
            return not any(server["pending"] for server in servers)

        until(f"nothing of {user} is pending", quiet)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Course]:
    world = Platform(tmp_path_factory.mktemp("a course"))
    text = world.config.read_text()
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new, 1)
    world.config.write_text(text)
    try:
        world.start()
        made = Course(world)
        yield made
        assert made.gpuslice("ledger", "verify") == "The ledger is in order.\n"
        world.stop()
        assert world.verify() == []
    finally:
        world.kill_everything()


def said(answer: requests.Response) -> str:
    return str(answer.json()["message"])


# --- by command ---------------------------------------------------------------------------------

STUDENTS = ("ada", "bob", "cleo", "dan", "eve", "finn")

#: What is asked for in a start, and the words of its refusal.
TRICKS: list[tuple[object, int, str]] = [
    ({"slice": "whole"}, 403, NO_WHOLE),
    ({"slice": "whole", "queue": "start"}, 403, NO_WHOLE),
    ({"slice": "whole", "hours": 0.01}, 403, NO_WHOLE),
    ({"slice": "whole", "charge": "friends"}, 403, "nothing is charged to it; choose students"),
    ({"slice": "quarter", "charge": "friends"}, 403, "nothing is charged to it; choose students"),
    ({"slice": "whole", "charge": "lab"}, 403, "You are not in the group 'lab'"),
    ({"slice": "whole", "groups": ["lab"]}, 400, "Unknown option 'groups'"),
    ({"slice": "quarter", "price": "0"}, 400, "Unknown option 'price'"),
    ({"slice": "quarter", "rate_u_per_hour": 0}, 400, "Unknown option 'rate_u_per_hour'"),
    ({"slice": "quarter", "user": "zoe"}, 400, "Unknown option 'user'"),
    ({"slice": "cpu", "profile": "whole"}, 400, "set by the platform"),
    ({"slice": "quarter", "hours": -1}, 400, "not a number of hours"),
    ({"slice": "quarter", "hours": 1e9}, 400, "not a number of hours"),
    ({"slice": ["quarter", "whole"]}, 400, "not a list"),
]


def test_a_course_by_command_holds_against_its_students(course: Course) -> None:
    shown = course.policy(
        "--slices", "1", "--types", "quarter,cpu", "--gpu-hours", "20/week",
        "--total-money", "50/month",
    )  # fmt: skip
    assert "each: slices 1" in shown and "in total: money 50 per month" in shown
    for user in STUDENTS:
        course.enrol(user, "students")
    course.enrol("ada", "friends")
    course.enrol("zoe", "lab")
    assert "ada, quarter, charged to group students: admits" in course.gpuslice(
        "quota", "explain", "ada", "quarter"
    )

    no_whole_gpu_and_no_way_round(course)
    winners = all_at_once(course)
    no_second_server(course, winners[0])
    the_month_is_full(course, winners)
    lowered_while_they_run(course, winners)
    the_week_is_full(course, winners)


def no_whole_gpu_and_no_way_round(course: Course) -> None:
    """By REST, by form, by a link, in line, as somebody else, and past the hub."""
    platform = course.platform
    for options, status, words in TRICKS:
        answer = course.refused("ada", options)
        assert (answer.status_code, words in said(answer)) == (status, True), (
            options,
            said(answer),
        )
    browser = platform.login("ada")
    for answer in (
        browser.post("/hub/spawn", {"slice": "whole"}),
        browser.get("/hub/spawn?opt-slice=whole"),
    ):
        assert answer.status_code == 403
        assert NO_WHOLE in html.unescape(answer.text)
    assert f"Refused: {NO_WHOLE}\n" in course.why("ada", "whole")

    token = course.token("ada")
    wait = course.call("POST", "api/queue", token, json={"slice": "whole"})
    assert (wait.status_code, wait.json()["reason"]) == (403, "slice-not-allowed")
    theirs = course.call("POST", "api/queue", token, json={"slice": "whole", "user": "zoe"})
    assert theirs.status_code == 400
    lease = {"attempt": uuid.uuid4().hex, "user": "ada", "slice": "whole", "groups": []}
    for shown in (None, token, "0" * 64):
        forged = course.call("POST", "api/broker/leases", shown, json=lease)
        assert forged.status_code in (401, 403), forged.text
    document = {"document": {}, "version": 1, "reason": "please"}
    credit = {"whose": "user", "name": "ada", "amount_u": 10**9, "reason": "please"}
    for method, path, body in (
        ("PUT", "api/admin/policies/groups/students", document),
        ("PUT", "api/admin/policies/users/ada", document | {"version": None}),
        ("POST", "api/admin/credits", credit),
    ):
        answer = course.call(method, path, token, json=body)
        assert answer.status_code == 403, (path, answer.text)
        # An administrator's name in the header of the commands is no token.
        named = course.call(method, path, json=body, headers={"X-Gpuslice-Actor": "root"})
        assert named.status_code in (401, 403), (path, named.text)
    assert course.leases(*STUDENTS) == []


def all_at_once(course: Course) -> list[tuple[str, str]]:
    """Each starts two servers at the same time; the winners as users with their servers."""
    wishes = [(user, name) for user in STUDENTS for name in ("", "two")]
    with ThreadPoolExecutor(len(wishes)) as pool:
        answers = list(
            pool.map(
                lambda wish: course.platform.ask_to_spawn(wish[0], {"slice": "quarter"}, wish[1]),
                wishes,
            )
        )
    for user in STUDENTS:
        course.settled(user)
    for answer in answers:
        if answer.status_code >= 400:
            assert answer.status_code == 409, answer.text
            assert MONTH in said(answer) or ONE_EACH in said(answer), said(answer)
    # Whatever came first: 20 EUR are set aside for each, so two servers, of two students.
    had = course.leases(*STUDENTS)
    assert len({lease["user"] for lease in had}) == len(had) == 2
    return [(lease["user"], lease["server"]) for lease in had]


def no_second_server(course: Course, winner: tuple[str, str]) -> None:
    """Whoever has one gets no other one: by name, of another type, by form, or in line."""
    user, _ = winner
    for options in (
        {"slice": "quarter"},
        {"slice": "cpu"},
        {"slice": "quarter", "queue": "tell"},
        {"slice": "quarter", "queue": "start"},
    ):
        answer = course.refused(user, options, "more")
        assert (answer.status_code, ONE_EACH in said(answer)) == (409, True), said(answer)
        assert "stop one of the servers first" in said(answer)
    form = course.platform.login(user).post(f"/hub/spawn/{user}/more", {"slice": "cpu"})
    assert form.status_code == 409 and ONE_EACH in html.unescape(form.text)
    assert ONE_EACH in course.why(user, "cpu")
    assert json.loads(course.gpuslice("queue", "list", "--json")) == []


def the_month_is_full(course: Course, winners: list[tuple[str, str]]) -> None:
    """What the others could spend is set aside already, whichever way they ask."""
    others = [user for user in STUDENTS if user not in dict(winners)]
    answer = course.refused(others[0], {"slice": "quarter"})
    assert answer.status_code == 409
    assert MONTH in said(answer) and "Try again after" in said(answer)
    assert int(answer.headers["Retry-After"]) > 0
    told = course.why(others[0], "quarter")
    assert f"Refused: {MONTH}" in told
    assert "REFUSES  50.00 EUR a month (group students in total): " in told
    # A shorter wish needs less, and is measured by what it needs.
    assert MONTH in said(course.refused(others[0], {"slice": "quarter", "hours": 0.1}))
    # What costs little still fits; and nobody outside the course is concerned.
    course.platform.spawn(others[0], "cpu")
    course.platform.stop_server(others[0])
    course.platform.spawn("zoe", "quarter")
    course.platform.stop_server("zoe")


def lowered_while_they_run(course: Course, winners: list[tuple[str, str]]) -> None:
    """They are told why, have a grace, and are stopped; then nobody of the course starts one."""
    course.policy("--total-money", "0.01/month")
    for lease in course.leases(*dict(winners)):
        ended = course.platform.wait_over(lease["lease_id"])
        assert "0.01 EUR a month (group students in total) are used up" in ended["stop_reason"]
        # A few seconds of 120 EUR an hour, and nothing of what was set aside.
        assert 0 < ended["cost_u"] < 20_000_000
    for user, _ in winners:
        course.settled(user)
    others = [user for user in STUDENTS if user not in dict(winners)]
    answer = course.refused(others[1], {"slice": "quarter"})
    assert "The limit is 0.01 EUR a month (group students in total)" in said(answer)
    assert "and this needs 20.00 to begin with. Try again after" in said(answer)


def the_week_is_full(course: Course, winners: list[tuple[str, str]]) -> None:
    """Who has used a week's hours is no other person under another name, or made anew."""
    platform = course.platform
    # The next ten minutes of a quarter, and next to nothing more.
    course.policy("--total-money", "50/month", "--gpu-hours", "0.0417/week")
    (first, _), (second, _) = winners
    limit = f"The limit is 0.04 {WEEK}"

    def full(user: str) -> None:
        answer = course.refused(user, {"slice": "quarter"})
        assert limit in said(answer) and "Try again after Mon " in said(answer), said(answer)
        assert limit in course.why(user, "quarter")

    full(first)
    # Deleted and made anew: the same name is the same account, for the next day at least.
    assert platform.rest("DELETE", f"users/{first}").status_code == 204
    course.enrol(first, "students")
    full(first)
    # Renamed in the hub, of which the service is told.
    renamed = f"{second}-2"
    answer = platform.rest("PATCH", f"users/{second}", json={"name": renamed})
    assert answer.status_code == 200, answer.text
    course.gpuslice("user", "rename", second, renamed, "--reason", "married")
    full(renamed)
    # Somebody else of the course has used nothing yet.
    other = next(user for user in STUDENTS if user not in dict(winners))
    platform.spawn(other, "quarter")
    platform.stop_server(other)


# --- by REST ------------------------------------------------------------------------------------

SEMINAR = {
    "each": {
        "slices": 1,
        "slice_types": ["quarter", "cpu"],
        "gpu_hours": [{"at_most": "20", "per": "week"}],
        "hold": "safe",
    },
    "total": {"money": [{"at_most": "50", "per": "month"}]},
}


def test_a_course_by_rest_holds_with_the_cost_of_whole_sessions_reserved(course: Course) -> None:
    platform = course.platform
    for user in ("gus", "hal", "ida"):
        course.enrol(user, "seminar")
    versions_and_keys(course)

    for hours, words in (
        (None, "say how many hours you need"),
        (81, "The limit is 20 GPU-hours a week (each member of group seminar)"),
        (0.5, "The limit is 50.00 EUR a month (group seminar in total): 0.00 used, and this needs"),
    ):
        options = {"slice": "quarter"} | ({} if hours is None else {"hours": hours})
        assert words in said(course.refused("gus", options)), hours
    assert platform.ask_to_spawn("gus", {"slice": "quarter", "hours": 0.25}).ok
    platform.wait_ready("gus")

    # 30 EUR are promised to gus. 30 more would be too much, 15 more are not.
    answer = course.refused("hal", {"slice": "quarter", "hours": 0.25})
    assert "reserved, and this needs 30.00 to begin with" in said(answer)
    assert "Try again after" in said(answer)
    assert "REFUSES" in course.why("hal", "quarter", "--hours", "0.25")
    # Less was said than is needed: the server ends with what was said, and with nothing to pay.
    assert platform.ask_to_spawn("ida", {"slice": "quarter", "hours": 0.003}).ok
    (lease,) = (one for one in course.leases("ida") if one["server"] == "")
    ended = platform.wait_over(lease["lease_id"])
    assert "The time that was asked for" in (ended["stop_reason"] or "")
    course.settled("ida")

    promised_is_promised(course)
    platform.stop_server("gus")
    # What gus did not use is there again.
    assert platform.ask_to_spawn("hal", {"slice": "quarter", "hours": 0.25}).ok
    platform.wait_ready("hal")
    platform.stop_server("hal")


def versions_and_keys(course: Course) -> None:
    """One policy by REST: once for each key, and never over somebody else's change."""
    path, admin = "api/admin/policies/groups/seminar", course.platform.token
    assert course.call("GET", f"{path}/history", admin).json()["versions"] == []
    body = {"document": SEMINAR, "version": None, "reason": "summer term"}
    assert course.call("PUT", path, course.token("gus"), json=body).status_code == 403
    key = uuid.uuid4().hex
    answers = [course.call("PUT", path, admin, key, json=body) for _ in range(3)]
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, answers[0].text)}
    made = answers[0].json()
    assert (made["kind"], made["name"], made["version"]) == ("group", "seminar", 1)
    assert (made["actor"], made["reason"]) == ("admin", "summer term")
    other = body | {"document": {}}
    reused = course.call("PUT", path, admin, key, json=other)
    assert (reused.status_code, reused.json()["reason"]) == (422, "key-reused")
    stale = course.call("PUT", path, admin, uuid.uuid4().hex, json=other)
    assert (stale.status_code, stale.json()["reason"]) == (409, "stale-version")
    assert len(course.call("GET", f"{path}/history", admin).json()["versions"]) == 1
    # The same in words, for whoever comes by the command line.
    shown = course.gpuslice("quota", "show", "group", "seminar")
    assert "each: slices 1" in shown and "in total: money 50 per month" in shown

    # A student's own key sent again is the first answer again, and no second place.
    token, key = course.token("ida"), uuid.uuid4().hex
    wish = {"slice": "quarter", "server": "later", "declared_us": 1_000_000}
    places = [course.call("POST", "api/queue", token, key, json=wish) for _ in range(3)]
    assert {answer.status_code for answer in places} == {201}
    assert len({answer.text for answer in places}) == 1
    more = course.call("POST", "api/queue", token, key, json=wish | {"server": "again"})
    assert (more.status_code, more.json()["reason"]) == (422, "key-reused")
    mine = course.call("GET", "api/queue", token).json()["requests"]
    assert len(mine) == 1
    place = f"api/queue/{mine[0]['request_id']}"
    better = course.call(
        "PUT", place, token, json={"slice": "whole", "version": mine[0]["version"]}
    )
    # What it waits for cannot become what it may not have; its turn may have come already.
    assert better.json()["reason"] in ("slice-not-allowed", "already-over", "stale-version")
    left = course.call("DELETE", place, token)
    assert left.status_code == 200, left.text
    until("nothing is kept for ida", lambda: course.platform.lease("ida", "later") is None)


def promised_is_promised(course: Course) -> None:
    """A budget that is lowered stops no session whose whole cost was reserved, but new ones."""
    path, admin = "api/admin/policies/groups/seminar", course.platform.token
    low = SEMINAR | {"total": {"money": [{"at_most": "1", "per": "month"}]}}
    for version, document in ((1, low), (2, SEMINAR)):
        body = {"document": document, "version": version, "reason": "a cut, and its end"}
        answer = course.call("PUT", path, admin, uuid.uuid4().hex, json=body)
        assert answer.json()["version"] == version + 1, answer.text
        if document is low:
            refused = course.refused("hal", {"slice": "quarter", "hours": 0.1})
            assert "The limit is 1.00 EUR a month (group seminar in total)" in said(refused)
            lease = course.platform.lease("gus")
            assert lease is not None and lease["state"] == "running"
            assert lease["stop_requested_us"] is None
