"""A person's day on a platform, as a browser and a notebook would ask for it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
from yarl import URL

_CALL = aiohttp.ClientTimeout(total=300)
#: Between two looks at a place in line, and two readings of the meter.
_LOOK_S, _READ_S = 3.0, 2.0
#: A page that says *not now* is asked for again after so long, so often.
_AGAIN_S, _TRIES = 2.0, 10
_PAGE = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "same-origin"}


@dataclass
class Record:
    """Seconds of everything that was asked, by what it was; and what else happened."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)
    #: Whose day ended early, and why.
    failures: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def timed(self, what: str) -> AsyncIterator[None]:
        began = time.monotonic()
        yield
        self.seconds[what].append(time.monotonic() - began)


@dataclass(frozen=True)
class Day:
    """How long somebody works, and who may: where nobody keeps a line, so many at a time."""

    work_s: float
    seats: asyncio.Semaphore | None


class Person:
    """One browser with its cookies."""

    def __init__(self, url: str, name: str, password: str, record: Record) -> None:
        self.url, self.name, self.record = url, name, record
        self._password = password
        self._jar = aiohttp.CookieJar(unsafe=True)
        self._session = aiohttp.ClientSession(cookie_jar=self._jar, timeout=_CALL)
        self._token = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(
        self, method: str, path: str, *, ok: tuple[int, ...] = (200,), **more: Any
    ) -> tuple[int, str]:
        """One request, redirects followed; RuntimeError for an answer that nobody expects."""
        for left in reversed(range(_TRIES)):
            async with self._session.request(method, self.url + path, **more) as answer:
                text = await answer.text()
            self.record.counts["requests"] += 1
            if answer.status in ok:
                return answer.status, text
            if answer.status != 503 or method != "GET" or not left:
                break
            self.record.counts["not now"] += 1
            await asyncio.sleep(_AGAIN_S)
        said = re.sub(r"(?s)<head>.*?</head>|<[^>]*>", " ", text)
        raise RuntimeError(f"{method} {path}: {answer.status} {' '.join(said.split())[:300]}")

    def _xsrf(self) -> str:
        return self._jar.filter_cookies(URL(f"{self.url}/hub/"))["_xsrf"].value

    async def api(self, method: str, path: str, ok: tuple[int, ...], body: object) -> int:
        """The hub's REST as its own pages use it."""
        headers = {"X-XSRFToken": self._xsrf(), "Sec-Fetch-Mode": "cors"}
        path = f"/hub/api/users/{self.name}/{path}"
        status, _ = await self.ask(method, path, ok=ok, headers=headers, json=body)
        return status

    # --- the same on both platforms ---------------------------------------------------------

    async def log_in(self) -> None:
        await self.ask("GET", "/hub/login", headers=_PAGE)
        form = {"username": self.name, "password": self._password}
        # The page after it would start a server where no choice is needed; nobody follows.
        await self.ask(
            "POST", f"/hub/login?_xsrf={self._xsrf()}", ok=(302,), data=form, headers=_PAGE,
            allow_redirects=False,
        )  # fmt: skip
        await self.ask("GET", "/hub/home", headers=_PAGE)

    async def stop(self) -> None:
        if await self.api("DELETE", "server", (202, 204), None) == 202:
            raise RuntimeError("a stop took longer than the hub waits")

    async def day(self, day: Day) -> None:
        """Log in, look at what there is, start, work, stop."""
        async with self.record.timed("log in"):
            await self.log_in()
        async with self.record.timed("spawn page"):
            await self.ask("GET", "/hub/spawn", headers=_PAGE)
        if day.seats is None:
            await self._with_gpuslice(day)
            return
        async with day.seats:
            async with self.record.timed("start"):
                await self.api("POST", "server", (201,), {"user_options": {"slice": "quarter"}})
            await asyncio.sleep(day.work_s)
            async with self.record.timed("stop"):
                await self.stop()

    # --- with gpuslice ----------------------------------------------------------------------

    async def _with_gpuslice(self, day: Day) -> None:
        self._token = await self._make_token()
        wish = {"user_options": {"slice": "quarter", "queue": "tell"}}
        began, waited = time.monotonic(), False
        while True:
            asked = time.monotonic()
            if await self.api("POST", "server", (201, 503), wish) == 201:
                break
            self.record.seconds["refused, with a place in line"].append(time.monotonic() - asked)
            await self._turn()
            waited = True
        self.record.seconds["start"].append(time.monotonic() - asked)
        if waited:
            self.record.seconds["from the wish to the server"].append(time.monotonic() - began)
        await self._work(day.work_s)
        async with self.record.timed("stop"):
            await self.stop()

    async def _make_token(self) -> str:
        headers = {"X-XSRFToken": self._xsrf(), "Sec-Fetch-Mode": "cors"}
        path = f"/hub/api/users/{self.name}/tokens"
        async with self._session.post(self.url + path, json={}, headers=headers) as answer:
            answer.raise_for_status()
            return str((await answer.json())["token"])

    async def _turn(self) -> None:
        """Returns when a slice is reserved, or the place is gone."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            found = await self._service("look at the line", "api/queue?live=true")
            if not any(one["state"] == "waiting" for one in found["requests"]):
                break
        self.record.seconds["in line"].append(time.monotonic() - began)

    async def _work(self, work_s: float) -> None:
        """My GPU as a page, and the meter of the notebook again and again."""
        til = time.monotonic() + work_s
        async with self.record.timed("My GPU, with the service's login"):
            await self.ask("GET", "/services/gpuslice/", headers=_PAGE)
        async with self.record.timed("My GPU"):
            await self.ask("GET", "/services/gpuslice/", headers=_PAGE)
        while (left := til - time.monotonic()) > 0:
            me = await self._service("meter", "api/me")
            self.record.counts["meter readings"] += 1
            if not me["leases"]:
                raise RuntimeError(f"{self.name} has no lease while at work")
            await asyncio.sleep(min(_READ_S, left))

    async def _service(self, what: str, path: str) -> Any:
        headers = {"Authorization": f"token {self._token}"}
        async with self.record.timed(what):
            _, text = await self.ask("GET", f"/services/gpuslice/{path}", headers=headers)
        return json.loads(text)


async def everybody(
    url: str, names: list[str], password: str, day: Day, per_s: float
) -> tuple[Record, float]:
    """All of them, one after the other at so many a second; what was seen, and how long it took."""
    record = Record()

    async def one(number: int, name: str) -> None:
        await asyncio.sleep(number / per_s)
        async with Person(url, name, password, record) as person:
            try:
                await person.day(day)
            except (RuntimeError, aiohttp.ClientError, TimeoutError) as error:
                record.failures.append(f"{name}: {error or type(error).__name__}")

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number, name in enumerate(names):
            group.create_task(one(number, name))
    return record, time.monotonic() - began
