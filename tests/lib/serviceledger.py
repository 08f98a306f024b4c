"""The real service over the real broker and ledger, a fake node and a hub of answers: real HTTP.

The world's clock stands still until a test moves it. Everything of the service runs on one event
loop in a thread; a test calls it over HTTP like anybody else, or asks the world as ever.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, create_signed_value

from gpuslice.broker.core import Hub
from gpuslice.service.app import make_app
from gpuslice.service.config import ServiceConfig
from gpuslice.settings import Settings
from ledgerworld import World, sqlite_ledger

T = TypeVar("T")
ACCESS = "access:services!service=gpuslice"
#: What a page of the service sends with what it asks for.
FETCH = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
NAVIGATE = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "same-origin"}


def _bind(app: Application) -> tuple[HTTPServer, int]:
    sockets = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(app, max_body_size=2 << 20, max_buffer_size=2 << 20)
    server.add_sockets(sockets)
    return server, int(sockets[0].getsockname()[1])


async def _shut(server: HTTPServer) -> None:
    server.stop()
    await server.close_all_connections()


class FakeHub:
    """What the hub says of tokens: ``GET user`` is all that the service asks to know a caller."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}

    def token(self, name: str, scopes: list[str], *, kind: str = "user", **more: Any) -> str:
        """A token with which somebody may do so much."""
        made = secrets.token_hex(16)
        self.models[made] = {"kind": kind, "name": name, "scopes": scopes, "groups": []} | more
        return made

    def app(self) -> Application:
        models = self.models

        class User(RequestHandler):
            def get(self) -> None:
                token = self.request.headers.get("Authorization", "").removeprefix("token ")
                model = models.get(token)
                if model is None:
                    self.set_status(403)
                self.finish(json.dumps(model or {"status": 403, "message": "Forbidden"}))

        return Application([("/hub/api/user", User)], log_function=lambda _handler: None)


class ServiceLedger(World):
    """A `ledgerworld.World` whose broker answers over HTTP at ``url``."""

    def __init__(self, url: str, *, settings: Settings | None = None, hub: Hub | None = None):
        super().__init__(url, settings=settings, hub=hub)
        self.people = FakeHub()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    @classmethod
    def on_sqlite(cls, folder: Path, **more: Any) -> ServiceLedger:
        return cls(sqlite_ledger(folder / "ledger.sqlite"), **more)

    def do(self, job: Coroutine[Any, Any, T]) -> T:
        if self.loop.is_running():
            return asyncio.run_coroutine_threadsafe(job, self.loop).result(60)
        return super().do(job)

    def close(self) -> None:
        self.do(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        super().close()

    def put_up_again(self) -> None:
        """A new service process on the same ledger."""
        self.do(self._take_down())
        self.restart()
        self.do(self._put_up())

    async def _end(self) -> None:
        await self._take_down()
        await _shut(self._hub_server)

    async def _take_down(self) -> None:
        await _shut(self._server)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._listen())
        self._ready.set()
        self.loop.run_forever()

    async def _listen(self) -> None:
        self._hub_server, hub_port = _bind(self.people.app())
        self.config = ServiceConfig(
            prefix="/services/gpuslice/", hub_prefix="/hub/",
            hub_api_url=f"http://127.0.0.1:{hub_port}/hub/api",
            service_token=secrets.token_hex(16), broker_token=secrets.token_hex(16),
            node_token=secrets.token_hex(16), operator_token=secrets.token_hex(16),
            cookie_secret=secrets.token_bytes(32),
        )  # fmt: skip
        await self._put_up()

    async def _put_up(self) -> None:
        self.app = make_app(self.live(), self.config)
        self._server, port = _bind(self.app)
        self.at = f"http://127.0.0.1:{port}{self.config.prefix}"

    # --- callers ------------------------------------------------------------------------------

    def person(self, name: str, *scopes: str, groups: tuple[str, ...] = ()) -> str:
        """A token of a user that reaches the service and has these scopes besides."""
        return self.people.token(name, [ACCESS, *scopes], groups=list(groups))

    def reader(self, name: str, groups: tuple[str, ...] = ()) -> str:
        """A token for all of a user's own leases, which may stop them, too."""
        own = (f"custom:gpuslice:lease!user={name}", f"custom:gpuslice:stop!user={name}")
        return self.person(name, *own, groups=groups)

    def notebook(self, name: str, server: str = "") -> str:
        """The token that a user's server has."""
        return self.person(name, f"custom:gpuslice:lease!server={name}/{server}")

    def admin(self, name: str = "root1") -> str:
        return self.person(name, "custom:gpuslice:admin", "custom:gpuslice:read-all")

    def browser(self, name: str, *scopes: str) -> httpx.Client:
        """A browser in which somebody is logged in at the hub, and has seen a page of ours."""
        token = self.people.token(name, [ACCESS, *scopes], session_id="s")
        cookie = f"service-{self.config.prefix.split('/')[2]}"
        signed = create_signed_value(self.config.cookie_secret, cookie, token).decode()
        client = httpx.Client(trust_env=False, timeout=60, verify=False)
        client.cookies.set(cookie, signed, domain="127.0.0.1", path=self.config.prefix)
        assert client.get(self.at, headers=NAVIGATE).status_code == 200
        return client

    def xsrf(self, browser: httpx.Client) -> str:
        """What a page of ours sends with a change."""
        return str(browser.cookies.get("_xsrf", path=self.config.prefix))

    def call(
        self, token: str | None, method: str, path: str, body: object = None, *,
        key: str | None = None, query: Mapping[str, Any] | None = None,
    ) -> httpx.Response:  # fmt: skip
        """One request with a token, and an idempotency key if there is one."""
        headers = {"Authorization": f"token {token}"} if token else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        return httpx.request(
            method, f"{self.at}{path}", headers=headers, params=dict(query or {}), timeout=60,
            json=body, trust_env=False, verify=False,
        )  # fmt: skip

    def ask(
        self, token: str | None, method: str, path: str, body: object = None, **more: Any
    ) -> Any:
        """The JSON of an answer that is no refusal."""
        answer = self.call(token, method, path, body, **more)
        assert answer.status_code < 400, answer.text
        return answer.json()
