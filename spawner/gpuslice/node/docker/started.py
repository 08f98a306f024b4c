"""Tells the service that a lease's server has started, as the engine states it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import aiohttp

from gpuslice import wire
from gpuslice.node.ask import reason_of

_ANSWER_BYTES = 64 * 1024


class StartRefusedError(Exception):
    """The service says that this server must not run; the text is one sentence that says why."""


@dataclass(frozen=True, slots=True)
class ServiceDoor:
    """Where the service answers, and what the node identifies itself with."""

    url: str
    token_file: Path
    #: How long it may take. Nothing depends on it: the service also sees the start in the list.
    limit_s: float = 5.0

    async def tell_started(self, lease_id: str, started_us: int, boot_id: str) -> bool:
        """Whether the service has heard of it; if not, it will find the server in the node's list.

        Raises:
            StartRefusedError: it has, and the server must not run.
        """
        body = wire.ServerStarted(started_us=started_us, boot_id=boot_id)
        url = f"{self.url.rstrip('/')}/api/node/leases/{lease_id}/started"
        try:
            token = (await asyncio.to_thread(self.token_file.read_text, encoding="utf-8")).strip()
            timeout = aiohttp.ClientTimeout(total=self.limit_s)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(
                    url, json=body.model_dump(mode="json"), allow_redirects=False,
                    headers={"Authorization": f"token {token}"},
                ) as answer,
            ):  # fmt: skip
                text = await answer.content.read(_ANSWER_BYTES)
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False
        if HTTPStatus.BAD_REQUEST <= answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise StartRefusedError(reason_of(answer.status, text))
        return answer.status == HTTPStatus.OK
