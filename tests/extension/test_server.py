"""The extension in a real Jupyter server: login, true numbers, no activity, no damage."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuslice import wire
from gpuslice.units import GIB, now_us
from jupyterlab_gpuslice.routes import NAMESPACE, ROUTES
from notebookworld import Notebook, ServiceStub, a_lease, a_me, until
from nvmlsim import Fleet, SimProcess

Start = Callable[[dict[str, str]], Notebook]


@pytest.fixture
def simulated(fleet: Fleet, library: Path) -> dict[str, str]:
    return fleet.environment(library)


def _with_rows(server: Notebook) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        answer = server.sample()
        return answer if answer["rows"] else None

    answer = until(look, "a row")
    assert isinstance(answer, dict)
    return answer


def _methods() -> list[tuple[str, str]]:
    return [
        (name, method)
        for name, handler in ROUTES.items()
        for method in ("GET", "POST")
        if method.lower() in vars(handler)
    ]


def test_every_route_needs_a_login_and_a_cookie_needs_xsrf(notebook: Start) -> None:
    server = notebook({})
    assert len(_methods()) == len(ROUTES)
    for name, method in _methods():
        path = f"{NAMESPACE}/{name}"
        for headers in ({}, {"Authorization": "token wrong"}):
            status, _ = server.ask(path, method=method, headers=headers)
            assert status == 403, (method, path, headers)
        status, said = server.ask(path, method=method)
        assert status in (200, 404), (method, path, said)
    assert "Traceback" not in server.log.read_text()


def test_alone_it_shows_the_gpu_and_no_cost(
    notebook: Start, fleet: Fleet, simulated: dict[str, str]
) -> None:
    fleet.gpu(0).used = 6 * GIB
    server = notebook(simulated)
    first = _with_rows(server)
    assert first["device"]["label"] == "GPU 0"
    assert first["device"]["simulated"] is True
    assert first["device"]["problem"] is None
    assert first["rows"][-1][2] == 6 * GIB
    assert first["rows"][-1][4] is None
    assert first["bill"] is None and first["bill_problem"] is None
    assert not first["behind_hub"]
    last = first["rows"][-1][0]
    fleet.gpu(0).used = 7 * GIB
    fresh = until(lambda: server.sample(last)["rows"], "a newer row")
    assert all(row[0] > last for row in fresh)
    until(lambda: server.sample(last)["rows"][-1][2] == 7 * GIB, "the new number")
    assert server.ask("gpuslice/api/notices") == (200, [])


def test_looking_is_no_activity(notebook: Start, simulated: dict[str, str]) -> None:
    server = notebook(simulated)
    before = server.ask("api/status")[1]["last_activity"]
    last = 0
    for _ in range(3):
        last = until(lambda: server.sample(last)["rows"], "a row")[-1][0]  # noqa: B023
        server.ask("gpuslice/api/notices")
    assert server.ask("api/status")[1]["last_activity"] == before
    # The test can tell: what counts does move it.
    server.ask("api/contents")
    assert server.ask("api/status")[1]["last_activity"] != before


def test_a_since_that_is_no_number_is_refused(notebook: Start) -> None:
    server = notebook({})
    for path in ("sample", "notices"):
        for since in ("-1", "x", "1.5", "", "9" * 17, "%D9%A3"):
            status, said = server.ask(f"{NAMESPACE}/{path}?since={since}")
            assert (status, said["reason"]) == (400, "bad-request"), since


def test_no_gpu_at_all_is_one_sentence(notebook: Start) -> None:
    server = notebook({"LD_LIBRARY_PATH": "", "CUDA_VISIBLE_DEVICES": ""})
    answer = _with_rows(server)
    device = answer["device"]
    assert device["kind"] == "none"
    assert re.fullmatch(r"[A-Z][^.]*\.", device["problem"])
    assert answer["rows"][-1][2:] == [None, None, None]


def test_behind_a_hub_it_shows_the_own_part_and_the_cost(
    notebook: Start, fleet: Fleet, simulated: dict[str, str], service: ServiceStub
) -> None:
    uuid = fleet.gpu(0).uuid
    lease = a_lease(
        kind=wire.SliceKind.SHARED, device_uuid=uuid, share_milli=250, memory_bytes=20 * GIB,
        title="A quarter",
    )  # fmt: skip
    service.me = lambda: a_me(lease)
    service.extra = {"from_the_future": 1}
    server = notebook({**simulated, **service.environment})
    fleet.gpu(0).used = 60 * GIB
    fleet.gpu(0).set_processes([SimProcess(server.pid, 2 * GIB), SimProcess(1, 58 * GIB)])

    def settled() -> object:
        answer = server.sample()
        return answer if answer["rows"] and answer["rows"][-1][4] is not None else None

    answer = until(settled, "a row with a cost")
    assert answer["device"]["label"] == answer["bill"]["title"] == "A quarter"
    assert answer["device"]["memory_total"] == 20 * GIB
    assert answer["rows"][-1][2] == 2 * GIB
    assert answer["bill"]["ticking"] and answer["bill"]["simulated"]
    assert answer["rows"][-1][4] >= lease.cost_u


def test_the_service_away_leaves_the_gpu_and_says_so(
    notebook: Start, simulated: dict[str, str], service: ServiceStub
) -> None:
    service.broken = (502, b"<html>")
    server = notebook({**simulated, **service.environment})
    until(lambda: server.sample()["bill_problem"], "the sentence")
    answer = server.sample()
    assert answer["bill"] is None
    assert answer["bill_problem"].endswith(".")
    status, said = server.ask("gpuslice/api/keep", method="POST")
    assert status == 503 and said["message"].endswith(".")
    status, said = server.ask("gpuslice/api/notices")
    assert status == 503 and said["message"].endswith(".")


def test_notices_and_keep_go_through_with_the_servers_token(
    notebook: Start, service: ServiceStub
) -> None:
    service.notices = [
        wire.Notice(
            id=5, lease_id="a" * 32, kind="idle", severity="warning",
            message="Your GPU has been idle for 25 minutes.", created_us=now_us(),
        )
    ]  # fmt: skip
    server = notebook(service.environment)
    status, said = server.ask("gpuslice/api/notices?since=4")
    assert status == 200 and [notice["id"] for notice in said] == [5]
    assert server.ask("gpuslice/api/keep", method="POST") == (204, None)
    assert ("POST", "api/me/keep") in service.asked


def test_a_cookie_without_xsrf_cannot_keep(notebook: Start, service: ServiceStub) -> None:
    import http.cookiejar
    import urllib.error
    import urllib.request

    server = notebook(service.environment)
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    browser.open(f"{server.url}?token={server.token}", timeout=30).close()
    names = {cookie.name: cookie.value for cookie in jar}
    request = urllib.request.Request(f"{server.url}{NAMESPACE}/keep", data=b"", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        browser.open(request, timeout=30)
    assert refused.value.code == 403
    request.add_header("X-XSRFToken", str(names["_xsrf"]))
    with browser.open(request, timeout=30) as answer:
        assert answer.status == 204
