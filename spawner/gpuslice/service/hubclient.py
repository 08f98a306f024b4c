"""A small client of the hub's API, with the service's own token: servers and users."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from gpuslice.broker.core import HubUser
from gpuslice.units import UnitError, from_datetime

#: How the hub is asked for pages; without it a long list is cut off.
_PAGES = "application/jupyterhub-pagination+json"
_PAGE = 200


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
        status, _ = await self._call("DELETE", _server(user, server))
        if status not in (202, 204, 404):
            raise HubUnavailable(f"the hub answered {status}")

    async def start_server(self, user: str, server: str, options: Mapping[str, str]) -> None:
        """Ask the hub to start one server with these options. Returns when it has begun to.

        Raises:
            HubUnavailable: not reachable, too slow, or it said no.
        """
        # In their own field: as the whole body, an option could be read as a field of the hub's.
        body = {"user_options": dict(options)}
        status, answer = await self._call("POST", _server(user, server), body)
        if status not in (201, 202):
            said = answer.get("message") if isinstance(answer, dict) else None
            raise HubUnavailable(f"the hub answered {status}: {str(said or '')[:300]}")

    async def user(self, name: str) -> HubUser | None:
        """A user as the hub has them now; None: there is none.

        Raises:
            HubUnavailable: not reachable, too slow, or an answer that is no user.
        """
        status, answer = await self._call("GET", f"/users/{quote(name, safe='')}")
        if status == 404:
            return None
        if status != 200 or not isinstance(answer, dict):
            raise HubUnavailable(f"the hub answered {status}")
        return _user(answer)

    async def users(self) -> list[HubUser]:
        """All users the hub has: every page of them, or an error.

        Raises:
            HubUnavailable: not reachable, too slow, or the list changed while it was read.
        """
        return [_user(item) for item in await self._all("/users")]

    async def _all(self, path: str) -> list[dict[str, Any]]:
        """Every item of a list, in the hub's order, by its pages."""
        found: list[dict[str, Any]] = []
        offset: int | None = 0
        totals = set()
        while offset is not None:
            status, answer = await self._call(
                "GET", f"{path}?offset={offset}&limit={_PAGE}", accept=_PAGES
            )
            page = answer.get("_pagination") if isinstance(answer, dict) else None
            items = answer.get("items") if isinstance(answer, dict) else None
            if status != 200 or not isinstance(page, dict) or not isinstance(items, list):
                raise HubUnavailable(f"the hub answered {status}, and no page of {path}")
            found += items
            totals.add(page.get("total"))
            following = page.get("next")
            after = following.get("offset") if isinstance(following, dict) else None
            if after is not None and (not isinstance(after, int) or after <= offset):
                raise HubUnavailable(f"the hub's pages of {path} do not end")
            offset = after
        # Somebody who came or went in between moves all others: one could be missed.
        if totals != {len(found)}:
            raise HubUnavailable(f"{path} changed while it was read")
        return found

    async def _call(
        self, method: str, path: str, body: object = None, *, accept: str = "application/json"
    ) -> tuple[int, Any]:
        # encoded=True: the path is quoted already, and must not be "normalised" again.
        url = URL(self._api_url + path, encoded=True)
        try:
            async with self._open().request(
                method, url, json=body, allow_redirects=False, headers={"Accept": accept}
            ) as answer:
                is_json = answer.content_type == "application/json"
                return answer.status, await answer.json() if is_json else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise HubUnavailable(f"{type(exc).__name__}: {exc}"[:300]) from exc

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # trust_env stays off: a proxy from the environment must not see this token.
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout)
        return self._session


def _user(model: Mapping[str, Any]) -> HubUser:
    """The hub's model of a user; ``created`` is there if the service may read all of users."""
    try:
        servers = model.get("servers") or {}
        return HubUser(
            name=str(model["name"]),
            groups=tuple(map(str, model.get("groups") or ())),
            active_us={
                str(server): _moment(one.get("last_activity"))
                for server, one in servers.items()
                # Until it is ready, its activity is that of its own start.
                if one.get("ready") is not False
            },
            created_us=_moment(model.get("created")),
        )
    except (KeyError, AttributeError, TypeError) as exc:
        raise HubUnavailable(f"the hub's answer is no user: {exc!r}"[:300]) from exc


def _server(user: str, server: str) -> str:
    path = f"/users/{quote(user, safe='')}/server"
    return f"{path}s/{quote(server, safe='')}" if server else path


def _moment(text: object) -> int | None:
    """The hub's ISO time with its zone; None where it says none, or none that can be read."""
    try:
        return from_datetime(datetime.fromisoformat(str(text)))
    except (ValueError, UnitError):
        return None
