"""A running service on a thread of the test, and a real hub and proxy as processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from bs4 import BeautifulSoup
from service_stub import StubBroker
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from gpuslice.service import auth
from gpuslice.service.app import make_app
from gpuslice.service.config import ServiceConfig

ROOT = Path(__file__).resolve().parents[2]
NAVIGATE = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "same-origin"}
FETCH = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
ACCESS = "access:services!service=gpuslice"


def make_config(port_of_hub: int, base_url: str = "/", **changes: Any) -> ServiceConfig:
    fields: dict[str, Any] = {
        "prefix": f"{base_url}services/gpuslice/",
        "hub_prefix": f"{base_url}hub/",
        "hub_api_url": f"http://127.0.0.1:{port_of_hub}{base_url}hub/api",
        "service_token": secrets.token_hex(32),
        "broker_token": secrets.token_hex(32),
        "node_token": secrets.token_hex(32),
        "operator_token": secrets.token_hex(32),
        "cookie_secret": secrets.token_bytes(32),
        "cache_s": 300,
    }
    return ServiceConfig(**(fields | changes))


def closed_port() -> int:
    """A port on which nobody listens (a moment ago)."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class ServiceThread:
    """The real application over a stub broker, on an event loop of its own."""

    def __init__(self, config: ServiceConfig, port: int = 0) -> None:
        self.config = config
        self.broker = StubBroker()
        self._port = port
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ServiceThread:
        self._thread.start()
        assert self._ready.wait(30)
        self.url = f"http://127.0.0.1:{self.port}{self.config.prefix}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        sockets = bind_sockets(self._port, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        self.app = make_app(self.broker, self.config)  # type: ignore[arg-type]
        server = HTTPServer(self.app, max_body_size=2 << 20, max_buffer_size=2 << 20)
        server.add_sockets(sockets)
        self._ready.set()
        await self._end.wait()
        server.stop()
        await server.close_all_connections()

    def remember(
        self, token: str, scopes: list[str], name: str, kind: str = "user", **model: Any
    ) -> None:
        """Let the service believe that the hub said this of a token: for routing tests only."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        gate: auth.Gate = self.app.settings["parts"].gate
        gate.hub.cache[f"token::{digest}"] = {
            "kind": kind, "name": name, "scopes": scopes, **model,
        }  # fmt: skip


# --- a real hub -----------------------------------------------------------------------------

HUB_CONFIG = """
import json, sys
c = get_config()  # noqa: F821
w = json.loads({world!r})
c.JupyterHub.bind_url = w["public"]
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{{w['hub_port']}}"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {{"root1"}}
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = w["dir"] + "/home/{{username}}"
c.Spawner.cmd = [sys.executable, w["dir"] + "/server.py"]
c.Spawner.server_token_scopes = [
    "users:activity!user", "access:servers!server", w["access"], "custom:gpuslice:lease!server",
]
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.db_url = "sqlite:///" + w["dir"] + "/hub.sqlite"
c.JupyterHub.cookie_secret_file = w["dir"] + "/hub_cookie"
c.JupyterHub.oauth_require_pkce = True
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{{w['proxy_api_port']}}"
c.ConfigurableHTTPProxy.auth_token = w["proxy_token"]
c.JupyterHub.custom_scopes = {{
    "custom:gpuslice:admin": {{
        "description": "Administer", "subscopes": ["custom:gpuslice:read-all"],
    }},
    "custom:gpuslice:read-all": {{"description": "Read all"}},
    "custom:gpuslice:lease": {{"description": "Read and keep own leases"}},
    "custom:gpuslice:stop": {{"description": "Stop own leases"}},
}}
c.JupyterHub.extra_user_scopes = [
    w["access"], "custom:gpuslice:lease!user", "custom:gpuslice:stop!user",
]
c.JupyterHub.load_roles = [
    {{"name": "gpu-admin", "scopes": ["custom:gpuslice:admin"], "users": ["root1"]}},
    {{"name": "gpu-reader", "scopes": ["custom:gpuslice:read-all"], "users": ["ta1"]}},
    {{"name": "gpuslice-service", "services": ["gpuslice"],
      "scopes": ["list:users", "read:users:groups", "read:servers", "delete:servers"]}},
    {{"name": "scraper", "services": ["prometheus"], "scopes": ["read:metrics"]}},
    {{"name": "impostor", "services": ["alice"],
      "scopes": [w["access"], "custom:gpuslice:lease", "custom:gpuslice:stop"]}},
]
c.JupyterHub.services = [
    {{"name": "gpuslice", "url": w["service_url"], "api_token": w["service_token"],
      "oauth_client_allowed_scopes": ["custom:gpuslice:admin", "custom:gpuslice:read-all"],
      "oauth_no_confirm": True, "display": True}},
    {{"name": "prometheus", "api_token": w["scraper_token"]}},
    {{"name": "alice", "api_token": w["impostor_token"]}},
    {{"name": "tests", "api_token": w["tests_token"], "admin": True}},
]
"""

#: Stands for a notebook server: answers anything, and leaves its token where the test finds it.
NOTEBOOK = """
import http.server, os, pathlib, urllib.parse
here = pathlib.Path(__file__).parent
name = os.environ["JUPYTERHUB_USER"] + "-" + os.environ["JUPYTERHUB_SERVER_NAME"]
(here / f"{name}.token").write_text(os.environ["JUPYTERHUB_API_TOKEN"])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args):
        pass
url = urllib.parse.urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
http.server.HTTPServer((url.hostname, url.port), Answer).serve_forever()
"""


class HubWorld:
    """A proxy that stays, a hub that can be killed, and the service between them."""

    base_url = "/@/space%20word/"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = [closed_port() for _ in range(4)]
        self.public_port, self.hub_port, self.proxy_api_port, self.service_port = ports
        self.public = f"http://127.0.0.1:{self.public_port}{self.base_url}"
        self.config = make_config(self.hub_port, self.base_url)
        self.service = ServiceThread(self.config, self.service_port)
        self.tests_token, self.scraper_token, self.impostor_token, self.proxy_token = (
            secrets.token_hex(32) for _ in range(4)
        )
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """The service as a browser sees it."""
        return f"{self.public}services/gpuslice/"

    def __enter__(self) -> HubWorld:
        world = {
            "public": self.public,
            "hub_port": self.hub_port,
            "dir": str(self.folder),
            "proxy_api_port": self.proxy_api_port,
            "proxy_token": self.proxy_token,
            "service_url": f"http://127.0.0.1:{self.service_port}",
            "service_token": self.config.service_token,
            "scraper_token": self.scraper_token,
            "impostor_token": self.impostor_token,
            "tests_token": self.tests_token,
            "access": ACCESS,
        }
        (self.folder / "home").mkdir()
        (self.folder / "server.py").write_text(NOTEBOOK)
        (self.folder / "config.py").write_text(HUB_CONFIG.format(world=json.dumps(world)))
        self.service.__enter__()
        try:
            self._start_proxy()
            self.start_hub()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for process in reversed(self._processes):
            end(process)
        self.service.__exit__()

    def _start_proxy(self) -> None:
        path = f"{ROOT}/node_modules/.bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        proxy, node = (
            shutil.which("configurable-http-proxy", path=path),
            shutil.which("node", path=path),
        )
        assert proxy and node, "configurable-http-proxy or node is missing; run: make test"
        self._spawn(
            "proxy",
            [node, proxy, "--ip=127.0.0.1", f"--port={self.public_port}",
             "--api-ip=127.0.0.1", f"--api-port={self.proxy_api_port}"],
            {"CONFIGPROXY_AUTH_TOKEN": self.proxy_token},
        )  # fmt: skip

    def start_hub(self) -> None:
        self._hub = self._spawn(
            "hub", [sys.executable, "-m", "jupyterhub", "-f", str(self.folder / "config.py")], {}
        )
        # Through the proxy, and with the route to the service in place.
        wait_until(lambda: self._up(f"{self.public}hub/health"), self._log("hub"))
        wait_until(lambda: self._up(f"{self.url}api/health"), self._log("hub"))

    def kill_hub(self) -> None:
        os.killpg(self._hub.pid, signal.SIGKILL)
        self._hub.wait()

    def _spawn(self, name: str, argv: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                argv,
                cwd=self.folder,
                env={k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    @staticmethod
    def _up(url: str) -> bool:
        try:
            return httpx.get(url, timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    # --- people and tokens

    def api(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """The hub's API as an administrator."""
        return httpx.request(
            method,
            f"{self.public}hub/api/{path}",
            headers={"Authorization": f"token {self.tests_token}"},
            timeout=30,
            trust_env=False,
            **kwargs,
        )

    def token(self, user: str, scopes: list[str]) -> str:
        """A token that the hub made for a user with these scopes."""
        answer = self.api("POST", f"users/{user}/tokens", json={"scopes": scopes})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    def start_server(self, user: str, server: str) -> str:
        """Start a server through the hub; its own token."""
        path = f"users/{user}/servers/{server}" if server else f"users/{user}/server"
        answer = self.api("POST", path, json={})
        assert answer.status_code in (201, 202), answer.text
        file = self.folder / f"{user}-{server}.token"
        wait_until(file.exists, self._log("hub"))
        return file.read_text()

    def get(self, path: str, token: str | None = None, **kwargs: Any) -> httpx.Response:
        return self.request("GET", path, token, **kwargs)

    def post(self, path: str, token: str | None = None, **kwargs: Any) -> httpx.Response:
        return self.request("POST", path, token, **kwargs)

    def request(
        self, method: str, path: str, token: str | None = None, **kwargs: Any
    ) -> httpx.Response:
        headers = {"Authorization": f"token {token}"} if token else {}
        return httpx.request(
            method, f"{self.url}{path}", headers=headers, timeout=30, trust_env=False, **kwargs
        )

    def browser(self, user: str) -> httpx.Client:
        """A browser in which this user logged in at the hub."""
        client = httpx.Client(follow_redirects=True, timeout=30, headers=NAVIGATE, trust_env=False)
        page = client.get(f"{self.public}hub/login").text
        form = BeautifulSoup(page, "html.parser").find("form")
        assert form is not None, page
        data = {
            str(field["name"]): str(field.get("value", ""))
            for field in form.find_all("input")
            if field.get("name")
        }
        answer = client.post(
            f"{self.public}hub/login?next={self.base_url}hub/token",
            data=data | {"username": user, "password": "x"},
        )
        assert answer.status_code == 200, answer.text
        return client


def xsrf_cookie(client: httpx.Client, url: str) -> str:
    """The service's XSRF token, which a visit leaves in a cookie; the hub has one of its own."""
    assert client.get(url).status_code == 200
    path = urlsplit(url).path
    return next(c.value or "" for c in client.cookies.jar if (c.name, c.path) == ("_xsrf", path))


def xsrf_of(page: str) -> str:
    """The form's XSRF token on a page of ours."""
    found = re.search(r'name="_xsrf" value="([^"]+)"', page)
    assert found, page
    return found[1]


def until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    """Poll for what another thread does; the limit is only there to fail instead of hanging."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until(condition: Any, log: Path, limit_s: float = 90) -> None:
    """Poll; a limit only so that a broken start fails with the log instead of hanging."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(textwrap.shorten(log.read_text()[-3000:], 3000))
        time.sleep(0.1)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process group that we started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
