"""The client that asks the hub to stop servers: quoting, and what each answer means."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator

import pytest
from service_world import closed_port

from gpuslice.service.hubclient import HubClient, HubUnavailable


class FakeHub:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.status = 204
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_DELETE(self) -> None:
                hub.seen.append((self.path, self.headers["Authorization"]))
                self.send_response(hub.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

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
