"""A filtered Docker API on a socket of its own, in front of whatever engine a test wants.

::

    with served_filter(tmp_path / "engine.sock", gate, policy) as filtered:
        filtered.client()                # docker-py, as the hub has it
        filtered.raw(b"GET /_ping ...")  # what no client library would send
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import docker
from tornado.httpserver import HTTPServer

from gpuslice import containers, wire
from gpuslice.errors import Refused
from gpuslice.node.docker.api import DockerApi
from gpuslice.node.docker.filter import Gate, filter_app
from gpuslice.node.docker.homes import HomeMount
from gpuslice.node.docker.template import container_body
from gpuslice.node.server import bind
from gpuslice.settings import DockerSettings

_LIMIT_S = 60
T = TypeVar("T")


@dataclass
class PlainGate:
    """Leases without a disk: what the filter needs of the node, and nothing to get wrong."""

    api: DockerApi
    policy: DockerSettings
    node_id: str
    network: str
    home: HomeMount
    pieces: dict[str, wire.PrepareSlice] = field(default_factory=dict)
    #: Lease to the container's id.
    made: dict[str, str] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)

    async def prepared(self, lease_id: str) -> wire.PrepareSlice:
        if lease_id not in self.pieces:
            raise Refused("not-prepared", "no slice is prepared for this lease")
        return self.pieces[lease_id]

    async def create(self, lease_id: str, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
        image = await self.api.image(wanted["Image"])
        assert image is not None
        body = container_body(
            wanted, self.pieces[lease_id], self.policy, image,
            node_id=self.node_id, network=self.network, home=self.home,
        )  # fmt: skip
        answer = await self.api.create(name, body)
        self.made[lease_id] = answer["Id"]
        return answer

    async def start(self, lease_id: str) -> None:
        await self.api.start(self.made[lease_id])

    async def stop(self, lease_id: str, grace_s: float) -> None:
        await self.api.stop(self.made[lease_id], int(grace_s))

    async def lease_of(self, container: str) -> str | None:
        for lease_id, made in self.made.items():
            if container in (made, self.name(lease_id)):
                return lease_id
        return None

    async def remove(self, lease_id: str) -> None:
        if lease_id not in self.settled:
            raise Refused("not-settled", "the end of this lease is not settled yet")
        await self.api.remove(self.made.pop(lease_id))

    # --- the node's own calls ---------------------------------------------------------------

    async def server(self, lease_id: str) -> wire.ServerReport | None:
        piece = self.pieces.get(lease_id)
        if piece is None:
            return None
        return wire.ServerReport(
            lease_id=lease_id, state=wire.ServerState.CREATED, user=piece.user,
            server=piece.server, boot_id="b",
        )  # fmt: skip

    async def log_tail(self, lease_id: str, lines: int) -> str | None:
        return f"{lines} lines of {lease_id}" if lease_id in self.pieces else None

    # --- for tests --------------------------------------------------------------------------

    def prepare(self, piece: wire.PrepareSlice) -> str:
        """Makes the slice startable; the name that its container will have."""
        self.pieces[piece.lease_id] = piece
        return self.name(piece.lease_id)

    def name(self, lease_id: str) -> str:
        piece = self.pieces[lease_id]
        return containers.container_name(piece.user, piece.server, lease_id)


@dataclass
class Filtered:
    socket: Path
    loop: asyncio.AbstractEventLoop

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs something of the node where the filter runs."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_LIMIT_S)

    def client(self, version: str = "1.44") -> docker.APIClient:
        return docker.APIClient(base_url=f"unix://{self.socket}", version=version, timeout=_LIMIT_S)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_LIMIT_S)
        connection.connect(str(self.socket))
        return connection

    def raw(self, request: bytes, answers: int = 1) -> bytes:
        """So many answers to these bytes, or what came of them before the connection ended."""
        with self.connect() as connection:
            connection.sendall(request)
            got = b""
            while _complete(got, request) < answers and (piece := connection.recv(65536)):
                got += piece
            return got


def _complete(got: bytes, request: bytes) -> int:
    """How many answers are in these bytes, whole."""
    count = 0
    while b"\r\n\r\n" in got:
        head, got = got.split(b"\r\n\r\n", 1)
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        size = int(length[1]) if length and not request.startswith(b"HEAD ") else 0
        if len(got) < size:
            break
        got = got[size:]
        count += 1
    return count


@contextmanager
def served_filter(
    path: Path, gate: Gate, api: DockerApi, policy: DockerSettings
) -> Iterator[Filtered]:
    """The filter with its own event loop in a thread, as the node has it in its process."""
    loop = asyncio.new_event_loop()
    app = filter_app(gate, api, policy, gate)  # type: ignore[arg-type]

    async def listen() -> HTTPServer:
        server = HTTPServer(app, max_body_size=1 << 20, max_buffer_size=2 << 20)
        server.add_socket(bind(path))
        return server

    async def end(server: HTTPServer) -> None:
        server.stop()
        await server.close_all_connections()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(_LIMIT_S)
    try:
        yield Filtered(path, loop)
    finally:
        asyncio.run_coroutine_threadsafe(end(server), loop).result(_LIMIT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_LIMIT_S)
        loop.close()
