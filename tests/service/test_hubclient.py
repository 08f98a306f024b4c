"""The client that asks the hub to stop servers: quoting, and what each answer means."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from service_world import closed_port

from gpuslice.broker.core import HubUser
from gpuslice.service.hubclient import HubClient, HubUnavailable


class FakeHub:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.status = 204
        self.bodies: list[object] = []
        #: What is answered to a list from an offset on.
        self.pages: dict[int, object] = {}
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_DELETE(self) -> None:
                hub.seen.append((self.path, self.headers["Authorization"]))
                self.send_response(hub.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_POST(self) -> None:
                hub.seen.append((self.path, None))
                hub.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(hub.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                hub.seen.append((self.path, self.headers["Accept"]))
                query = parse_qs(urlsplit(self.path).query)
                body = json.dumps(hub.pages[int(query["offset"][0])]).encode()
                self.send_response(hub.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.api = f"http://127.0.0.1:{self.server.server_port}/@/space%20word/hub/api"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.server.serve_forever)
    thread.start()
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


def stop(api: str, user: str, server: str) -> None:
    async def run() -> None:
        client = HubClient(api, "secret", timeout_s=30)
        try:
            await client.stop_server(user, server)
        finally:
            await client.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("user", "server", "path"),
    [
        ("alice", "", "/users/alice/server"),
        ("alice", "gpu", "/users/alice/servers/gpu"),
        ("a/../b", "x?y", "/users/a%2F..%2Fb/servers/x%3Fy"),
        ("zoë@x y", "", "/users/zo%C3%AB%40x%20y/server"),
        ("a%2Fb", "", "/users/a%252Fb/server"),
        ("#", "#", "/users/%23/servers/%23"),
    ],
)
def test_names_are_quoted(hub: FakeHub, user: str, server: str, path: str) -> None:
    stop(hub.api, user, server)
    assert hub.seen == [(f"/@/space%20word/hub/api{path}", "token secret")]


@pytest.mark.parametrize("status", [202, 204, 404])
def test_stopping_stopped_and_gone_are_fine(hub: FakeHub, status: int) -> None:
    hub.status = status
    stop(hub.api, "alice", "")


@pytest.mark.parametrize("status", [302, 400, 401, 403, 429, 500, 503])
def test_every_other_answer_is_told(hub: FakeHub, status: int) -> None:
    hub.status = status
    with pytest.raises(HubUnavailable, match=str(status)):
        stop(hub.api, "alice", "")
    assert len(hub.seen) == 1


def test_a_hub_that_is_down_is_told_without_the_token() -> None:
    with pytest.raises(HubUnavailable) as error:
        stop(f"http://127.0.0.1:{closed_port()}/hub/api", "alice", "")
    assert "secret" not in str(error.value)


# --- lists --------------------------------------------------------------------------------------


def users(api: str) -> list[HubUser]:
    async def run() -> list[HubUser]:
        client = HubClient(api, "secret", timeout_s=30)
        try:
            return await client.users()
        finally:
            await client.close()

    return asyncio.run(run())


def page(names: str, total: int, following: object = None) -> dict[str, object]:
    """A page of the hub's, with a user for each letter."""
    pagination = {"offset": 0, "limit": 200, "total": total, "next": following}
    return {"items": [{"name": name} for name in names], "_pagination": pagination}


def test_a_list_is_read_to_its_last_page(hub: FakeHub) -> None:
    hub.status = 200
    hub.pages = {0: page("ab", 3, {"offset": 2, "limit": 200, "url": "http://x"}), 2: page("c", 3)}
    made = {"name": "c", "groups": ["lab"], "created": "2026-01-02T03:04:05.000006Z"}
    hub.pages[2]["items"] = [made]  # type: ignore[index]
    found = users(hub.api)
    assert [user.name for user in found] == ["a", "b", "c"]
    assert (found[2].groups, found[2].created_us) == (("lab",), 1_767_323_045_000_006)
    assert found[0].created_us is None
    (_, accept) = hub.seen[0]
    assert accept == "application/jupyterhub-pagination+json"
    assert [path.partition("?")[2] for path, _ in hub.seen] == [
        "offset=0&limit=200", "offset=2&limit=200",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        # A hub that knows no pages would cut the list off.
        ({0: [{"name": "a"}]}, "no page"),
        ({0: {"items": [], "_pagination": None}}, "no page"),
        ({0: page("ab", 3, {"offset": 2}), 2: page("c", 4)}, "changed"),
        # Somebody before this page was deleted, so that another one slipped through.
        ({0: page("ab", 4, {"offset": 2}), 2: page("d", 3)}, "changed"),
        ({0: page("ab", 3)}, "changed"),
        ({0: page("ab", 3, {"offset": 0})}, "do not end"),
        ({0: page("ab", 3, {"offset": "2"})}, "do not end"),
        ({0: {"items": ["a"], "_pagination": {"total": 1}}}, "no user"),
        ({0: {"items": [{"name": "a", "servers": 5}], "_pagination": {"total": 1}}}, "no user"),
    ],
)
def test_a_list_that_may_lack_somebody_is_none(
    hub: FakeHub, pages: dict[int, object], said: str
) -> None:
    hub.status, hub.pages = 200, pages
    with pytest.raises(HubUnavailable, match=said):
        users(hub.api)


def test_a_list_that_is_refused_is_none(hub: FakeHub) -> None:
    hub.status, hub.pages = 403, {0: page("a", 1)}
    with pytest.raises(HubUnavailable, match="403"):
        users(hub.api)


def test_options_of_a_start_are_no_fields_of_the_hub(hub: FakeHub) -> None:
    hub.status = 202

    async def run() -> None:
        client = HubClient(hub.api, "secret", timeout_s=30)
        try:
            await client.start_server("alice", "gpu", {"slice": "half"})
        finally:
            await client.close()

    asyncio.run(run())
    assert hub.bodies == [{"user_options": {"slice": "half"}}]
