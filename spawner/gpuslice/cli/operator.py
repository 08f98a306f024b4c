"""The service as an administrator's command reaches it: over REST, with the operator's token."""

from __future__ import annotations

import asyncio
import getpass
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gpuslice.cli.secrets import read_secret
from gpuslice.cli.state import State
from gpuslice.cli.trouble import Trouble
from gpuslice.service.auth import ACTOR_HEADER
from gpuslice.settings import SettingsError, load_settings
from gpuslice.spawners.configure import service_url

_TIMEOUT_S = 60.0
#: An export may take hours; it is broken off when nothing comes for so long.
_SILENCE_S = 120.0
#: A write whose answer was lost is sent again under the same key, so it is done once.
_TRIES = 3
_PAUSE_S = 1.0


@dataclass(frozen=True)
class Operator:
    """One platform's service. Every method raises Trouble: refused, or not reached."""

    url: str
    token: str
    #: What the platform's money is, for people.
    currency: str

    def get(self, path: str, **query: str | int | None) -> Any:
        """An answer's JSON."""
        return asyncio.run(self._call("GET", path, None, _asked(query)))

    def stream(
        self, path: str, write: Callable[[bytes], object], **query: str | int | None
    ) -> None:
        """An answer of any size, in pieces as they come. Nothing is repeated."""
        asyncio.run(self._stream(path, write, _asked(query)))

    def pages(self, path: str, rows: str, cursor: str, **query: str | int | None) -> list[Any]:
        """All rows of a list that comes in pages; ``cursor`` is what the next one is asked by."""
        found: list[Any] = []
        at: Any = None
        while True:
            page = self.get(path, **query, **{cursor: at})
            found += page[rows]
            at = page["next"]
            if at is None:
                return found

    def send(self, method: str, path: str, body: object, *, key: str | None = None) -> Any:
        """Change something, once; ``key`` names this very change (else a new one is made)."""
        return asyncio.run(self._call(method, path, body, {}, key or uuid.uuid4().hex))

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}", ACTOR_HEADER: login()}

    async def _stream(
        self, path: str, write: Callable[[bytes], object], query: dict[str, str]
    ) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_S, sock_read=_SILENCE_S)
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers()) as session:
            try:
                async with session.get(
                    self.url + path, params=query, allow_redirects=False
                ) as answer:
                    if answer.status != 200:
                        _read(answer.status, await answer.text())
                    async for piece in answer.content.iter_any():
                        write(piece)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise Trouble(
                    f"The service at {self.url} does not answer, or broke off "
                    f"({type(error).__name__}): what came is not complete."
                ) from None

    async def _call(
        self, method: str, path: str, body: object, query: dict[str, str], key: str | None = None
    ) -> Any:
        headers = self._headers()
        if key is not None:
            headers["Idempotency-Key"] = key
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            for left in reversed(range(_TRIES)):
                try:
                    async with session.request(
                        method, self.url + path, json=body, params=query, allow_redirects=False
                    ) as answer:
                        return _read(answer.status, await answer.text())
                except (aiohttp.ClientError, TimeoutError) as error:
                    if not left:
                        raise Trouble(
                            f"The service at {self.url} does not answer "
                            f"({type(error).__name__}); is it running?"
                        ) from None
                await asyncio.sleep(_PAUSE_S)
        raise AssertionError("unreachable")


def _read(status: int, text: str) -> Any:
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        raise Trouble(f"The service answered {status}, and no JSON.") from None
    if status < 400:
        return answer
    raise Trouble(str(answer.get("message", f"The service answered {status}.")))


def _asked(query: dict[str, str | int | None]) -> dict[str, str]:
    return {name: str(value) for name, value in query.items() if value is not None}


def login() -> str:
    """Who calls, for the audit."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def operator(state: Path, config: Path | None) -> Operator:
    """The service of a data folder.

    Raises:
        Trouble: the settings or the token cannot be read.
    """
    try:
        settings = load_settings(config)
        token = read_secret(State(state.absolute()).secrets, "operator_token")
    except SettingsError as error:
        raise Trouble(str(error)) from None
    except OSError as error:
        raise Trouble(
            f"Cannot read the operator's token in {state} ({error.strerror}); name the platform's "
            "data folder with --state, as its owner."
        ) from None
    return Operator(service_url(settings).rstrip("/") + "/", token, settings.currency)
