"""A real Jupyter server with the extension, and a small stand-in for the service behind it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from gpuslice import wire
from gpuslice.units import now_us

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
MINUTE_US = 60_000_000


def a_lease(**changes: Any) -> wire.LeaseView:
    """A running lease of the whole first GPU; a minute old, billed up to 10 s ago."""
    now = now_us()
    values: dict[str, Any] = {
        "lease_id": "a" * 32, "user": "ada", "server": "", "slice": "whole",
        "title": "A whole GPU", "kind": wire.SliceKind.EXCLUSIVE, "node_id": "here",
        "device_uuid": None, "device_model": None, "memory_bytes": None, "share_milli": None,
        "enforcement": wire.Enforcement.ADVISORY, "simulated": True,
        "state": wire.LeaseState.RUNNING, "granted_us": now - MINUTE_US,
        "started_us": now - MINUTE_US, "covered_us": now - MINUTE_US // 6, "finished_us": None,
        "finished_at_unknown": False, "stop_requested_us": None, "stop_reason": None,
        "end_reason": None, "exit_code": None, "rate_u_per_hour": 3_600_000, "cost_u": 50_000,
        "writeoff_u": 0, "currency": "EUR",
    }  # fmt: skip
    return wire.LeaseView.model_validate({**values, **changes})


def a_me(*leases: wire.LeaseView, **changes: Any) -> wire.Me:
    values: dict[str, Any] = {
        "user": "ada", "server": "", "leases": list(leases), "leases_limit": 1,
        "currency": "EUR", "simulated": True, "now_us": now_us(),
    }  # fmt: skip
    return wire.Me.model_validate({**values, **changes})


class ServiceStub:
    """Answers like the service for one token; remembers what it was asked."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        self.me: Callable[[], wire.Me] = lambda: a_me(a_lease())
        self.notices: list[wire.Notice] = []
        #: Set: every answer is this status with this body.
        self.broken: tuple[int, bytes] | None = None
        #: Added to `me`: what a newer service may say.
        self.extra: dict[str, Any] = {}
        self.asked: list[tuple[str, str]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stub._answer(self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                stub._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/services/gpuslice/"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        return {"GPUSLICE_SERVICE_URL": self.url, "JUPYTERHUB_API_TOKEN": self.token}

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        path = parts.path.removeprefix("/services/gpuslice/")
        self.asked.append((request.command, path))
        status, body = self._content(path, parse_qs(parts.query), request)
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _content(
        self, path: str, query: dict[str, list[str]], request: BaseHTTPRequestHandler
    ) -> tuple[int, bytes]:
        if request.headers.get("Authorization") != f"token {self.token}":
            return 401, b"{}"
        if self.broken is not None:
            return self.broken
        match request.command, path:
            case "GET", "api/me":
                me = {**self.me().model_dump(mode="json"), **self.extra}
                return 200, json.dumps(me).encode()
            case "GET", "api/me/notices":
                since = int(query.get("since", ["0"])[0])
                found = [n.model_dump(mode="json") for n in self.notices if n.id > since]
                return 200, json.dumps(found).encode()
            case "POST", "api/me/keep":
                return 200, self.me().leases[0].model_dump_json().encode()
        return 404, b"{}"


class Notebook:
    """A Jupyter server with the extension, under a base URL with a space in it.

    Runs the checkout's code, or with ``python`` JupyterLab as it is installed there.
    """

    def __init__(
        self, folder: Path, environment: dict[str, str], python: Path | None = None
    ) -> None:
        for name in ("config", "data", "runtime", "work"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.token = secrets.token_hex(8)
        self.base = "/a%20user/ada/"
        self._runtime = folder / "runtime"
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JUPYTER", "NVMLSIM_", "GPUSLICE_", "CUDA_", "NVIDIA_"))
        }
        self.log = folder / "log"
        self.files = folder / "work"
        installed = python is not None
        checkout = os.pathsep.join([str(ROOT / "extensions"), str(ROOT / "spawner")])
        enable = "--ServerApp.jpserver_extensions={'jupyterlab_gpuslice': True}"
        self._process = subprocess.Popen(
            [
                str(python or sys.executable), "-m",
                "jupyterlab" if installed else "jupyter_server",
                "--no-browser", "--allow-root",
                "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0",
                f"--ServerApp.base_url={self.base}", f"--ServerApp.root_dir={self.files}",
                f"--IdentityProvider.token={self.token}",
                *([] if installed else [enable]),
            ],
            env={
                **clean,
                "PYTHONPATH": "" if installed else checkout,
                "HOME": str(folder),
                "JUPYTER_CONFIG_DIR": str(folder / "config"),
                "JUPYTER_DATA_DIR": str(folder / "data"),
                "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.pid = self._process.pid
        self.url = self._find()

    def _find(self) -> str:
        """Its address, which it writes to a file once it listens."""

        def look() -> str | None:
            assert self._process.poll() is None, self.log.read_text()
            for file in self._runtime.glob("jpserver-*.json"):
                port = json.loads(file.read_text() or "{}").get("port")
                if port and self._answers(f"http://127.0.0.1:{port}{self.base}"):
                    return f"http://127.0.0.1:{port}{self.base}"
            return None

        return until(look, "the Jupyter server listens")

    def _answers(self, url: str) -> bool:
        try:
            urllib.request.urlopen(f"{url}api/status?token={self.token}", timeout=5).close()
        except (OSError, urllib.error.URLError):
            return False
        return True

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> tuple[int, Any]:
        """Status and JSON; with the server's token unless ``headers`` are given."""
        if headers is None:
            headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(
            self.url + path, method=method, headers=headers, data=body if method == "POST" else None
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, said = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, said = error.code, error.read()
        try:
            return status, json.loads(said) if said else None
        except ValueError:
            return status, said

    def sample(self, since: int = 0) -> dict[str, Any]:
        status, answer = self.ask(f"gpuslice/api/sample?since={since}")
        assert status == 200, answer
        assert isinstance(answer, dict)
        return answer

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def until(look: Callable[[], Any], what: str) -> Any:
    """Looks until the answer is true; fails with ``what`` at a generous deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := look()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.05)
    return answer
