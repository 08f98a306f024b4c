"""Talks to the node daemon over its unix sockets; what service and spawner share of it.

A node has two sockets: ``control.sock`` for the service, and ``engine.sock``, which can do
nothing but start, stop and look at servers, for the spawner.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, ValidationError

from gpuslice import wire

CONTROL_SOCKET = "control.sock"
ENGINE_SOCKET = "engine.sock"

#: What the kernel accepts as the address of a unix socket, without the final zero byte.
_ADDRESS_LIMIT = 107
_Model = TypeVar("_Model", bound=BaseModel)


class NodeUnavailable(Exception):
    """The node did not answer, or could not: nothing is known, so nothing may be concluded."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class NodeRefused(Exception):
    """The node answered no; ``reason`` is for programs, ``message`` for people."""

    def __init__(self, reason: str, message: str, status: int) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.status = status


def node_sockets(state_dir: Path | str) -> tuple[Path, Path]:
    """The node's (control, engine) sockets. Their paths may be too long for ``connect``."""
    return Path(state_dir) / CONTROL_SOCKET, Path(state_dir) / ENGINE_SOCKET


@contextmanager
def short_address(path: Path | str) -> Iterator[str]:
    """An address for the socket that ``bind`` and ``connect`` accept, however long its path is.

    A path that is too long is reached through an open handle on its folder, so that no second
    place (with permissions of its own) is needed.
    """
    path = Path(path).absolute()
    if len(os.fsencode(path)) <= _ADDRESS_LIMIT:
        yield str(path)
        return
    handle = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{path.name}"
    finally:
        os.close(handle)


class NodeClient:
    """All calls to one node. Every call has a time limit and a connection of its own.

    Given the node's state folder it reaches both sockets; given a socket (``….sock``) only that
    one, so that a spawner can be handed ``engine.sock`` and nothing else.

    Raises :class:`NodeUnavailable` and :class:`NodeRefused`.
    """

    def __init__(self, path: Path | str, *, timeout_s: float = 10.0) -> None:
        path = Path(path)
        single = path.suffix == ".sock"
        self._control, self._engine = (path, path) if single else node_sockets(path)
        self._timeout_s = timeout_s

    # --- control.sock, for the service ------------------------------------------------------

    async def inventory(self) -> wire.Inventory:
        """The devices as NVML sees them now."""
        return _parse(wire.Inventory, await self._call(self._control, "GET", "/v1/inventory"))

    async def look(self, uuid: str) -> wire.DeviceCheck:
        """One device, looked at now: whether it is well, and nothing runs on it."""
        path = f"/v1/device?uuid={quote(uuid, safe='')}"
        return _parse(wire.DeviceCheck, await self._call(self._control, "GET", path))

    async def listing(self) -> wire.Listing:
        """The leased servers: fresh and complete, or NodeUnavailable."""
        return _parse(wire.Listing, await self._call(self._control, "GET", "/v1/servers"))

    async def prepare(self, piece: wire.PrepareSlice) -> None:
        """Makes a slice startable. Idempotent."""
        await self._call(self._control, "POST", "/v1/slices", piece)

    async def fence(self, lease_id: str) -> None:
        """When this returns, no start of the lease can ever succeed; a running server goes on."""
        await self._call(self._control, "DELETE", f"/v1/slices/{lease_id}", limit_s=30)

    async def release(self, lease_id: str) -> wire.ReleaseResult:
        """Gives a slice back after settlement; NodeRefused while anything of it runs."""
        path = f"/v1/slices/{lease_id}/release"
        return _parse(wire.ReleaseResult, await self._call(self._control, "POST", path, limit_s=45))

    async def stop(self, lease_id: str, grace_s: float = 10.0) -> None:
        """Asks the server to end and returns at once; the list tells the end. Idempotent.

        A server that has not started yet never will.
        """
        body = wire.StopServer(grace_s=grace_s)
        await self._call(self._control, "POST", f"/v1/servers/{lease_id}/stop", body)

    # --- engine.sock, for the spawner -------------------------------------------------------

    async def start(self, spec: wire.StartServer) -> None:
        """Launches the server's supervisor; ask :meth:`server` what became of it."""
        await self._call(self._engine, "POST", "/v1/servers", spec, limit_s=30)

    async def server(self, lease_id: str) -> wire.ServerReport | None:
        """One server as the engine states it; None when the node knows of none."""
        try:
            body = await self._call(self._engine, "GET", f"/v1/servers/{lease_id}")
        except NodeRefused as refused:
            if refused.status == 404:
                return None
            raise
        return _parse(wire.ServerReport, body)

    async def stop_server(self, lease_id: str, grace_s: float = 10.0) -> None:
        """Like :meth:`stop`, through the spawner's socket."""
        body = wire.StopServer(grace_s=grace_s)
        await self._call(self._engine, "POST", f"/v1/servers/{lease_id}/stop", body)

    async def log_tail(self, lease_id: str, lines: int = 50) -> str:
        """The last lines that the server wrote, bounded."""
        path = f"/v1/servers/{lease_id}/log?tail={lines}"
        return (await self._call(self._engine, "GET", path)).decode(errors="replace")

    # --- the wire ---------------------------------------------------------------------------

    async def _call(
        self,
        socket: Path,
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        limit_s: float | None = None,
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(total=max(limit_s or 0, self._timeout_s))
        data = body.model_dump_json().encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            with short_address(socket) as address:
                connector = aiohttp.UnixConnector(path=address)
                async with (
                    aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                    session.request(
                        method, f"http://node{path}", data=data, headers=headers
                    ) as answer,
                ):
                    status, content = answer.status, await answer.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as problem:
            text = f"the node does not answer ({type(problem).__name__}: {problem})"
            raise NodeUnavailable("node-unavailable", text) from problem
        if status < 400:
            return content
        reason, message = _refusal(status, content)
        if status >= 500:
            raise NodeUnavailable(reason, message)
        raise NodeRefused(reason, message, status)


def _refusal(status: int, content: bytes) -> tuple[str, str]:
    try:
        refusal = wire.Refusal.model_validate_json(content)
    except ValidationError:
        return "node-error", f"the node answered with status {status}"
    return refusal.reason, refusal.message


def _parse(model: type[_Model], content: bytes) -> _Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as problem:
        raise NodeUnavailable("node-error", "the node's answer is not understood") from problem
