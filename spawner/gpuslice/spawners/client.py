"""The spawner's calls to the gpuslice service: bounded in time, repeated only where that is safe.

The service checks the broker token itself, without the hub: these calls work while the hub is
starting, and must.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from pydantic import TypeAdapter, ValidationError

from gpuslice.spawners.errors import ServiceRefused, ServiceUnavailable
from gpuslice.wire import (
    Choices,
    ChoicesRequest,
    JoinFor,
    LeaseGrant,
    LeaseRequest,
    LeaseView,
    Offer,
    Refusal,
    RequestView,
    StopLease,
    Wire,
)

#: Refusals of our token; any other 401 or 403 is about what the user asked for.
_TOKEN_REFUSED = ("login-needed", "forbidden")
_OFFERS = TypeAdapter(list[Offer])
_Answer = TypeVar("_Answer", bound=Wire)


class Drain(Wire):
    """Stop everything, and why."""

    reason: str
    actor: str


class ServiceClient:
    """Typed calls to ``/api/broker``.

    A session per call: they are few, local and rare, and nothing is left open when a hub ends.
    """

    def __init__(
        self,
        url: str,
        token_file: Path,
        *,
        timeout_s: float = 5.0,
        tries: int = 3,
        pause_s: float = 0.2,
    ) -> None:
        self._api = f"{url.rstrip('/')}/api/broker"
        self._token_file = token_file
        self._timeout_s = timeout_s
        self._tries = tries
        self._pause_s = pause_s

    async def lease(self, request: LeaseRequest) -> LeaseGrant:
        """Ask for a slice. Safe to repeat: the same ``attempt`` gets the same lease."""
        answer = await self._call("POST", "leases", json=request)
        return self._parsed(LeaseGrant, answer)

    async def current(self, user: str, server: str) -> LeaseView | None:
        """The live lease of a named server, if it has one."""
        query = {"user": user, "server": server}
        return await self._view("GET", "current", params=query)

    async def get(self, lease_id: str) -> LeaseView | None:
        """A lease, live or ended; None if there never was one of that id."""
        return await self._view("GET", f"leases/{lease_id}")

    async def stop(self, lease_id: str, reason: str, actor: str) -> None:
        """Commit that a lease is to end, and why. Safe to repeat: the first reason stays."""
        body = StopLease(reason=reason, actor=actor)
        await self._call("POST", f"leases/{lease_id}/stop", json=body)

    async def settle(self, lease_id: str, wait_s: float) -> None:
        """Ask the service to settle a lease now; returns when it has, or after ``wait_s``.

        Asked once: its silence means that an engine keeps it waiting, as it would again.
        """
        await self._call(
            "POST",
            f"leases/{lease_id}/settle",
            params={"wait_s": f"{wait_s:g}"},
            extra_s=wait_s,
            tries=1,
        )

    async def join_queue(self, body: JoinFor) -> RequestView:
        """Wait for a slice. Safe to repeat: the same server keeps its place."""
        return self._parsed(RequestView, await self._call("POST", "queue", json=body))

    async def choices(self, user: str, groups: list[str], server: str) -> Choices:
        """What ``user`` may choose from now, for the spawn page of one server."""
        body = ChoicesRequest(user=user, groups=groups, server=server)
        return self._parsed(Choices, await self._call("POST", "choices", json=body))

    async def offers(self, user: str) -> list[Offer]:
        """What ``user`` could have now."""
        answer = await self._call("GET", "offers", params={"user": user})
        if isinstance(answer, dict):
            answer = answer.get("offers", answer)
        try:
            return _OFFERS.validate_python(answer)
        except ValidationError as error:
            raise ServiceUnavailable(f"its list of offers is not understood: {error}") from error

    async def drain(self, reason: str, actor: str) -> int:
        """Stop all leases and grant no more; how many are still live. Safe to repeat."""
        answer = await self._call("POST", "drain", json=Drain(reason=reason, actor=actor))
        live = answer.get("live") if isinstance(answer, dict) else None
        if not isinstance(live, int):
            raise ServiceUnavailable("its answer to a drain is not understood")
        return live

    async def _view(
        self, method: str, path: str, params: dict[str, str] | None = None
    ) -> LeaseView | None:
        try:
            answer = await self._call(method, path, params=params)
        except ServiceRefused as error:
            if error.status == 404:
                return None
            raise
        return self._parsed(LeaseView, answer)

    def _parsed(self, model: type[_Answer], answer: Any) -> _Answer:
        try:
            return model.model_validate(answer)
        except ValidationError as error:
            raise ServiceUnavailable(f"its answer is not understood: {error}") from error

    async def _call(
        self,
        method: str,
        path: str,
        *,
        json: Wire | None = None,
        params: dict[str, str] | None = None,
        extra_s: float = 0.0,
        tries: int | None = None,
    ) -> Any:
        """One call. All of ours may be repeated; only silence and 5xx without words are."""
        tries = tries or self._tries
        for attempt in range(1, tries + 1):
            try:
                return await self._once(method, path, json, params, extra_s)
            except ServiceUnavailable:
                if attempt == tries:
                    raise
            await asyncio.sleep(self._pause_s * attempt)
        raise AssertionError("unreachable")

    async def _once(
        self,
        method: str,
        path: str,
        json: Wire | None,
        params: dict[str, str] | None,
        extra_s: float,
    ) -> Any:
        timeout = aiohttp.ClientTimeout(total=self._timeout_s + extra_s)
        try:
            async with (
                # trust_env is off: a proxy for the internet must not see this.
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(
                    method,
                    f"{self._api}/{path}",
                    params=params,
                    headers=self._headers(),
                    json=None if json is None else json.model_dump(mode="json"),
                    allow_redirects=False,
                ) as answer,
            ):
                return _read(answer.status, await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServiceUnavailable(str(error) or type(error).__name__) from error

    def _headers(self) -> dict[str, str]:
        # Read each time: a changed token works without a restart of the hub.
        try:
            token = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceUnavailable(f"cannot read the broker token: {error}") from error
        return {"Authorization": f"token {token}"}


def _read(status: int, raw: bytes) -> Any:
    """The body of a success, or the refusal as an exception."""
    if status == 204 or (status < 300 and not raw):
        return None
    try:
        body = TypeAdapter(Any).validate_json(raw)
    except ValidationError:
        body = None
    if status < 300 and body is not None:
        return body
    try:
        refusal = Refusal.model_validate(body)
    except ValidationError:
        raise ServiceUnavailable(f"it answered {status}") from None
    if refusal.reason in _TOKEN_REFUSED:
        # Our own token is wrong: nothing that the user asked for was refused.
        raise ServiceUnavailable(f"it does not accept the broker token: {refusal.message}")
    raise ServiceRefused(status, refusal)
