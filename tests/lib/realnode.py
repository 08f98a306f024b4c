"""A real node with real supervisors, and a real HTTP server in the service's place, for tests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

from gpuslice import wire
from gpuslice.node.leasedir import LeaseDir
from gpuslice.nodeclient import NodeClient, NodeUnavailable

SPAWNER = Path(__file__).parents[2] / "spawner"
DEADLINE_S = 30.0
T = TypeVar("T")


def until(look: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Looks until the answer is true; fails with ``what`` at the deadline."""
    deadline = time.monotonic() + deadline_s
    while not (answer := look()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)
    return answer


def call(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def lives(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text[text.rindex(")") + 2] not in "ZX"


@dataclass
class FakeService:
    """Answers ``started`` with what the test wants; remembers what it was asked."""

    status: int = 200
    body: dict[str, object] = field(default_factory=dict)
    #: Set: the answer waits for it.
    hold: threading.Event | None = None
    asked: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers["Content-Length"])
        sent = json.loads(handler.rfile.read(length))
        self.asked.append((handler.path, handler.headers.get("Authorization"), sent))
        if self.hold is not None:
            self.hold.wait(DEADLINE_S)
        body = json.dumps(self.body).encode()
        # Whoever asked may be dead by now.
        with suppress(ConnectionError):
            handler.send_response(self.status)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)


@contextmanager
def fake_service() -> Iterator[FakeService]:
    """A service on a port of its own, under a path with a blank in it."""
    fake = FakeService()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            fake.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        fake.url = f"http://127.0.0.1:{server.server_port}/services/gpu%20slice"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield fake
        if fake.hold is not None:
            fake.hold.set()
        server.shutdown()


class Node:
    """One node process on one state folder; can be killed and started again."""

    def __init__(self, folder: Path, service_url: str, *options: str) -> None:
        self.folder = folder
        self.state = folder / "node"
        self.client = NodeClient(self.state, timeout_s=20)
        self.token = folder / "token"
        self.token.write_text("secret-of-the-node\n")
        self.service_url = service_url
        self.options = options
        self.env: dict[str, str] = {}
        self.leases: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-P", "-m", "gpuslice.node",
                    "--state", self.state, "--service-url", self.service_url,
                    "--token-file", self.token, "--patience", "3", *self.options,
                ],
                env=self.environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        until(self._answers, f"the node answers: {self.log()[-2000:]}")

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(SPAWNER), "NODE_SECRET": "x", **self.env}

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()[-2000:]
        try:
            call(self.client.listing())
        except NodeUnavailable:
            return False
        return True

    def log(self) -> str:
        return (self.folder / "node.log").read_text()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    # --- leases -----------------------------------------------------------------------------

    def prepare(self, **changes: object) -> str:
        lease_id = uuid.uuid4().hex
        self.leases.append(lease_id)
        call(self.client.prepare(cpu_slice(lease_id, **changes)))
        return lease_id

    def run(self, code: str, piece: dict[str, object] | None = None, **changes: Any) -> str:
        """Prepares and starts a Python program as a leased server."""
        lease_id = self.prepare(**piece or {})
        call(self.client.start(self.spec(lease_id, code, **changes)))
        return lease_id

    def spec(self, lease_id: str, code: str, **changes: Any) -> wire.StartServer:
        home = self.folder / f"home of {lease_id}"
        home.mkdir(exist_ok=True)
        fields: dict[str, Any] = {
            "lease_id": lease_id,
            "argv": [sys.executable, "-u", "-c", code],
            "env": {"PATH": os.environ["PATH"], "HOME": str(home)},
            "cwd": str(home),
            "url": "http://127.0.0.1:1/",
        }
        return wire.StartServer(**fields | changes)

    def dir(self, lease_id: str) -> LeaseDir:
        return LeaseDir(self.state / "leases" / lease_id)

    def server(self, lease_id: str) -> wire.ServerReport | None:
        found = [s for s in call(self.client.listing()).servers if s.lease_id == lease_id]
        assert len(found) < 2
        return found[0] if found else None

    def wait(self, lease_id: str, state: wire.ServerState) -> wire.ServerReport:
        def look() -> wire.ServerReport | None:
            server = self.server(lease_id)
            return server if server is not None and server.state is state else None

        return until(look, f"server {state}: {self.server(lease_id)}")

    def said(self, lease_id: str, word: str) -> str:
        """Waits until the server has printed ``word``; returns all it printed."""
        log = self.dir(lease_id).log

        def look() -> str:
            text = log.read_text() if log.exists() else ""
            return text if word in text else ""

        return until(look, f"the server prints {word!r}")

    def clean(self) -> None:
        """Ends every process that this node's leases have started."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(DEADLINE_S)
        for name in Path("/proc").iterdir():
            if not name.name.isdecimal() or int(name.name) == os.getpid():
                continue
            try:
                environment = (name / "environ").read_bytes()
            except OSError:
                continue
            if any(f"GPUSLICE_LEASE={lease}".encode() in environment for lease in self.leases):
                os.kill(int(name.name), signal.SIGKILL)


def cpu_slice(lease_id: str, **changes: Any) -> wire.PrepareSlice:
    fields: dict[str, Any] = {
        "lease_id": lease_id,
        "user": "ada",
        "server": "",
        "slice_type": "cpu",
        "kind": wire.SliceKind.CPU,
        "device_uuid": None,
        "memory_bytes": None,
        "share_milli": None,
        "enforcement": wire.Enforcement.ADVISORY,
        "ram_bytes": 1 << 30,
    }
    return wire.PrepareSlice(**fields | changes)
