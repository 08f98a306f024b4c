"""The service as an administrator's command reaches it: over REST, with the operator's token."""

from __future__ import annotations

import asyncio
import getpass
import json
import uuid
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
#: A write whose answer was lost is sent again under the same key, so it is done once.
_TRIES = 3
_PAUSE_S = 1.0


@dataclass(frozen=True)
class Operator:
    """One platform's service. Every method raises Trouble: refused, or not reached."""

    url: str
    token: str

    def get(self, path: str, **query: str | int | None) -> Any:
        """An answer's JSON."""
        asked = {name: str(value) for name, value in query.items() if value is not None}
        return asyncio.run(self._call("GET", path, None, asked))

    def send(self, method: str, path: str, body: object, *, key: str | None = None) -> Any:
        """Change something, once; ``key`` names this very change (else a new one is made)."""
        return asyncio.run(self._call(method, path, body, {}, key or uuid.uuid4().hex))

    async def _call(
        self, method: str, path: str, body: object, query: dict[str, str], key: str | None = None
    ) -> Any:
        headers = {"Authorization": f"token {self.token}", ACTOR_HEADER: login()}
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
    return Operator(service_url(settings).rstrip("/") + "/", token)
