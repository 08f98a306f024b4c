"""A small client of the hub's API, with the service's own token: it asks to stop servers."""

from __future__ import annotations

from urllib.parse import quote

import aiohttp
from yarl import URL


class HubUnavailable(Exception):
    """The hub did not do what it was asked; the text says what it did. Try again, or the node."""


class HubClient:
    """Implements the broker's hub port. One session, opened by the first call."""

    def __init__(self, api_url: str, token: str, *, timeout_s: float = 15.0) -> None:
        self._api_url = api_url.rstrip("/")
        self._headers = {"Authorization": f"token {token}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def stop_server(self, user: str, server: str) -> None:
        """Ask the hub to stop one server. Returns when the hub has begun to, or had no such server
        (the hub also says that when the token lacks ``delete:servers``: the end is observed at the
        node, never taken from here).

        Raises:
            HubUnavailable: not reachable, too slow, or an answer that is none of these.
        """
        path = f"/users/{quote(user, safe='')}/server"
        if server:
            path += f"s/{quote(server, safe='')}"
        # encoded=True: the path is quoted already, and must not be "normalised" again.
        url = URL(self._api_url + path, encoded=True)
        try:
            async with self._open().delete(url, allow_redirects=False) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise HubUnavailable(f"{type(exc).__name__}: {exc}"[:300]) from exc
        if status not in (202, 204, 404):
            raise HubUnavailable(f"the hub answered {status}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # trust_env stays off: a proxy from the environment must not see this token.
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout)
        return self._session
