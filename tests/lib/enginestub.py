"""A node's ``engine.sock`` that records what it is asked and answers as a test wants it to.

::

    with engine_stub(folder / "engine.sock") as stub:
        stub.answer("GET", r"/images/.*/json", 200, {"Config": {"Cmd": ["serve"]}})
        stub.answer("POST", r"/start$", 500, {"message": "no"})
        stub.stream("POST", r"/images/create", [{"status": "Pulling"}, hold, {"status": "done"}])
        held = stub.hold("GET", r"/json")       # silent until held.set()

The newest rule that fits acts. ``stub.calls`` has every request, in order. An ``Event`` in a stream
is waited for.
"""

from __future__ import annotations

import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from gpuslice.nodeclient import short_address

_LIMIT_S = 60.0


@dataclass(frozen=True)
class Asked:
    """One request; the path without the API's version, with its query."""

    method: str
    path: str
    body: Any
    headers: dict[str, str]


@dataclass
class EngineStub:
    """The rules and what was asked; all of it may be used from any thread."""

    socket: Path
    calls: list[Asked] = field(default_factory=list)
    rules: list[tuple[str, re.Pattern[str], Callable[[Handler], None]]] = field(
        default_factory=list
    )

    def answer(self, method: str, path: str, status: int, body: object = None) -> None:
        self._rule(method, path, lambda handler: handler.reply(status, body))

    def stream(self, method: str, path: str, lines: Sequence[object]) -> None:
        """An answer in pieces, one JSON line each; an ``Event`` among them is waited for."""
        self._rule(method, path, lambda handler: handler.reply_in_pieces(lines))

    def hold(
        self, method: str, path: str, status: int = 200, body: object = None
    ) -> threading.Event:
        """No answer until the event is set, then this one."""
        event = threading.Event()

        def later(handler: Handler) -> None:
            event.wait(_LIMIT_S)
            handler.reply(status, body)

        self._rule(method, path, later)
        return event

    def asked(self, method: str, path: str) -> list[Asked]:
        return [one for one in self.calls if one.method == method and re.search(path, one.path)]

    def _rule(self, method: str, path: str, act: Callable[[Handler], None]) -> None:
        self.rules.insert(0, (method, re.compile(path), act))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: EngineStub

    def do_GET(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(size)
        path = re.sub(r"^/v[0-9.]+(?=/)", "", self.path)
        body = json.loads(raw) if raw else None
        self.stub.calls.append(Asked(self.command, path, body, dict(self.headers)))
        for method, pattern, act in self.stub.rules:
            if method == self.command and pattern.search(path):
                act(self)
                return
        self.reply(404, {"message": f"the stub has no {self.command} {path}"})

    do_POST = do_GET
    do_DELETE = do_GET

    def reply(self, status: int, body: object = None) -> None:
        raw = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def reply_in_pieces(self, lines: Sequence[object]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            if isinstance(line, threading.Event):
                line.wait(_LIMIT_S)
                continue
            raw = json.dumps(line).encode() + b"\r\n"
            self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *args: object) -> None:
        pass


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no trouble."""


@contextmanager
def engine_stub(socket: Path) -> Iterator[EngineStub]:
    stub = EngineStub(socket)
    socket.parent.mkdir(parents=True, exist_ok=True)
    handler = type("BoundHandler", (Handler,), {"stub": stub})
    with short_address(socket) as address, _Server(address, handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()
            with suppress(FileNotFoundError):
                socket.unlink()
