"""The Docker engine's HTTP interface: the few calls the node makes, each with a time limit.

Asynchronous and raw on purpose: the filter passes answers of the engine on byte by byte, and one
slow call must hold up no other.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

#: What every engine from Docker 25 on speaks; CDI needs that one at least.
API_VERSION = "1.44"
#: A call that changes something may wait for disks and hooks.
CHANGE_LIMIT_S = 60.0

Json = dict[str, Any]


class EngineDown(Exception):
    """The engine did not answer, or failed: nothing is known, so nothing may be concluded."""


class EngineFailed(EngineDown):
    """It answered, with a status from 500 on: what it says is why, and all that is known."""


class EngineSaysNo(Exception):
    """The engine answered with a status from 400 to 499."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class DockerApi:
    """Calls to one engine. Each has a connection of its own, so none waits for another.

    Raises :class:`EngineDown`, :class:`EngineFailed` among it, and :class:`EngineSaysNo`.
    """

    def __init__(self, socket: str, *, timeout_s: float = 5.0) -> None:
        self._socket = socket
        self._timeout_s = timeout_s

    # --- looking ----------------------------------------------------------------------------

    async def ping(self) -> None:
        await self._call("GET", "/_ping")

    async def version(self) -> Json:
        return await self._json("GET", "/version")

    async def info(self) -> Json:
        return await self._json("GET", "/info")

    async def containers(self, *labels: str) -> list[Json]:
        """All containers with these labels (``name`` or ``name=value``), created ones included."""
        query = {"all": "1", "filters": json.dumps({"label": list(labels)})}
        return await self._list("/containers/json", query=query)

    async def container(self, name: str) -> Json | None:
        """One container as ``docker inspect`` shows it; None when there is none."""
        return await self._found(f"/containers/{name}/json")

    async def image(self, reference: str) -> Json | None:
        return await self._found(f"/images/{reference}/json")

    async def network(self, name: str) -> Json | None:
        return await self._found(f"/networks/{name}")

    async def networks(self, label: str | None = None) -> list[Json]:
        query = {"filters": json.dumps({"label": [label]})} if label else None
        return await self._list("/networks", query=query)

    async def volume(self, name: str) -> Json | None:
        return await self._found(f"/volumes/{name}")

    async def log_tail(self, name: str, lines: int, *, limit: int = 64 * 1024) -> str:
        """The last lines that a container wrote, both streams; at most ``limit`` bytes."""
        query = {"stdout": "1", "stderr": "1", "tail": str(lines)}
        async with self.open("GET", f"/containers/{name}/logs", query=query) as answer:
            raw = await answer.content.read(4 * limit)
            while len(raw) < 4 * limit and (more := await answer.content.read(4 * limit)):
                raw += more
        return demultiplexed(raw)[-limit:].decode(errors="replace")

    async def events(self, label: str, *, since: float) -> AsyncIterator[Json]:
        """Events of containers with this label as they come; ends with EngineDown, never quietly.

        Args:
            since: UNIX seconds; older events are left out.
        """
        filters = {"type": ["container"], "label": [label]}
        query = {"since": f"{since:.9f}", "filters": json.dumps(filters)}
        async with self.open("GET", "/events", query=query, limit_s=None) as answer:
            try:
                async for line in answer.content:
                    if line.strip():
                        yield json.loads(line)
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as problem:
                raise EngineDown(f"the engine's events broke off ({problem!r})") from problem
        raise EngineDown("the engine's events ended")

    # --- changing ---------------------------------------------------------------------------

    async def create(self, name: str, body: Json) -> Json:
        return await self._json(
            "POST", "/containers/create", query={"name": name}, body=body, limit_s=CHANGE_LIMIT_S
        )

    async def start(self, name: str) -> None:
        await self._call("POST", f"/containers/{name}/start", limit_s=CHANGE_LIMIT_S)

    async def stop(self, name: str, grace_s: int) -> None:
        """SIGTERM now, SIGKILL after ``grace_s``; returns when the container has ended."""
        await self._call(
            "POST", f"/containers/{name}/stop", query={"t": str(grace_s)},
            limit_s=grace_s + CHANGE_LIMIT_S,
        )  # fmt: skip

    async def kill(self, name: str, signal: str = "SIGKILL") -> None:
        await self._call("POST", f"/containers/{name}/kill", query={"signal": signal})

    async def remove(self, name: str) -> None:
        """Removes a container that does not run; its named volumes stay. Gone already is well."""
        await self._gone(f"/containers/{name}", query={"v": "1"})

    async def create_network(self, body: Json) -> Json:
        return await self._json("POST", "/networks/create", body=body, limit_s=CHANGE_LIMIT_S)

    async def remove_network(self, name: str) -> None:
        await self._gone(f"/networks/{name}")

    async def connect(self, network: str, container: str, aliases: list[str]) -> None:
        body = {"Container": container, "EndpointConfig": {"Aliases": aliases}}
        await self._call("POST", f"/networks/{network}/connect", body=body, limit_s=CHANGE_LIMIT_S)

    async def disconnect(self, network: str, container: str) -> None:
        body = {"Container": container, "Force": True}
        await self._call(
            "POST", f"/networks/{network}/disconnect", body=body, limit_s=CHANGE_LIMIT_S
        )

    async def create_volume(self, body: Json) -> Json:
        return await self._json("POST", "/volumes/create", body=body, limit_s=CHANGE_LIMIT_S)

    # --- the wire ---------------------------------------------------------------------------

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
        limit_s: float | None = 0.0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One call with its answer still to be read; ``limit_s`` None: as long as it takes."""
        total = None if limit_s is None else max(limit_s, self._timeout_s)
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=self._timeout_s)
        try:
            connector = aiohttp.UnixConnector(path=self._socket)
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.request(
                    method, f"http://docker/v{API_VERSION}{path}", params=query, json=body,
                    headers=headers,
                ) as answer,
            ):  # fmt: skip
                if answer.status >= 500:
                    text = _message(await answer.read())
                    raise EngineFailed(f"the engine failed: {text}")
                if answer.status >= 400:
                    raise EngineSaysNo(answer.status, _message(await answer.read()))
                yield answer
        except (TimeoutError, aiohttp.ClientError, OSError) as problem:
            text = f"the Docker engine does not answer ({type(problem).__name__}: {problem})"
            raise EngineDown(text) from problem

    async def _call(self, method: str, path: str, **options: Any) -> bytes:
        async with self.open(method, path, **options) as answer:
            return await answer.read()

    async def _json(self, method: str, path: str, **options: Any) -> Json:
        found: Json = _parsed(await self._call(method, path, **options), dict)
        return found

    async def _list(self, path: str, **options: Any) -> list[Json]:
        found: list[Json] = _parsed(await self._call("GET", path, **options), list)
        return found

    async def _found(self, path: str) -> Json | None:
        try:
            return await self._json("GET", path)
        except EngineSaysNo as no:
            if no.status == 404:
                return None
            raise

    async def _gone(self, path: str, **options: Any) -> None:
        try:
            await self._call("DELETE", path, limit_s=CHANGE_LIMIT_S, **options)
        except EngineSaysNo as no:
            if no.status != 404:
                raise


def demultiplexed(raw: bytes) -> bytes:
    """Log text without the frame headers that the engine puts before each piece.

    A frame is ``[stream, 0, 0, 0, size (4 bytes, big endian)]`` and ``size`` bytes (Docker's
    "attach" format); the last one may be cut off.
    """
    text, at = bytearray(), 0
    while at + 8 <= len(raw) and raw[at] <= 2 and raw[at + 1 : at + 4] == b"\0\0\0":
        size = int.from_bytes(raw[at + 4 : at + 8], "big")
        text += raw[at + 8 : at + 8 + size]
        at += 8 + size
    return bytes(text) if at else raw


def _parsed(text: bytes, kind: type) -> Any:
    """An answer of another kind is none: an empty list says that nothing is there."""
    try:
        found = json.loads(text)
    except ValueError as problem:
        raise EngineDown("the engine's answer is not understood") from problem
    if not isinstance(found, kind):
        raise EngineDown("the engine's answer is not understood")
    return found


def _message(text: bytes) -> str:
    try:
        said = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        said = text.decode(errors="replace")
    return str(said).strip()[:500] or "no reason given"
