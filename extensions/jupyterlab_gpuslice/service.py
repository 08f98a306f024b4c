"""The service as a notebook server sees it: asked seldom, answers kept, one sentence when away.

Who one is, the service reads from the server's token. The environment says where it is, no more.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse

from gpuslice.errors import Refused
from gpuslice.units import now_us
from gpuslice.wire import Me, Notice, Refusal
from jupyterlab_gpuslice.budget import Bill, bill_of

URL_VARIABLE = "GPUSLICE_SERVICE_URL"
TOKEN_VARIABLE = "JUPYTERHUB_API_TOKEN"  # noqa: S105 - its name

#: How long an answer is good: short where the shown use of a shared GPU comes from it.
KEEP_S = 15.0
KEEP_SHORT_S = 5.0
#: After failures the next try waits longer and longer, up to this.
LONGEST_WAIT_S = 60.0
TIMEOUT_S = 8.0
#: Notices kept for tabs that come back.
NOTICES = 100

AWAY = "The gpuslice service does not answer."
NO_LEASE = "The gpuslice service knows no live lease of this server."
NOT_ONE_SERVER = "This server's token is not for one server, so its slice cannot be told."
NOT_ACCEPTED = "The gpuslice service does not accept this server's token."
NOT_UNDERSTOOD = "The gpuslice service gave an answer that this extension does not understand."

_NOTICES = TypeAdapter(list[Notice])

Fetch = Callable[[HTTPRequest], Awaitable[HTTPResponse]]


class Answer:
    """A part of the service's state that is asked for again when it is old, never twice at once."""

    def __init__(
        self, load: Callable[[], Awaitable[None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load = load
        self._clock = clock
        self._due = 0.0
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self.keep_s = KEEP_S
        self.problem: str | None = None

    def refresh(self) -> asyncio.Task[None] | None:
        """Starts asking if it is time; the task for who wants to wait for it."""
        if self._task is None and self._clock() >= self._due:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return self._task

    def expire(self) -> None:
        """Asks again at the next occasion."""
        self._due = 0.0

    async def _run(self) -> None:
        try:
            await self._load()
        except Refused as refused:
            self.problem = str(refused)
            self._failures += 1
            wait = min(LONGEST_WAIT_S, KEEP_SHORT_S * 2 ** (self._failures - 1))
            self._due = self._clock() + wait
        else:
            self.problem = None
            self._failures = 0
            self._due = self._clock() + self.keep_s
        finally:
            self._task = None


class Service:
    """Asks the service with the server's own token."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = now_us,
    ) -> None:
        self._url = url.rstrip("/") + "/"
        self._token = token
        self._fetch = fetch
        self._wall = wall
        self._me = Answer(self._load_me, clock)
        self._box = Answer(self._load_notices, clock)
        self._notices: deque[Notice] = deque(maxlen=NOTICES)
        #: The newest bill, also when it is old; None before the first and without a lease.
        self.bill: Bill | None = None
        self.heard = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Service | None:
        """The service that the environment names; None on a workstation."""
        url, token = environment.get(URL_VARIABLE), environment.get(TOKEN_VARIABLE)
        return cls(url, token) if url and token else None

    @property
    def problem(self) -> str | None:
        """One sentence when what is known is old or missing."""
        if self._me.problem is not None:
            return self._me.problem
        return None if self.bill is not None or not self.heard else NO_LEASE

    def refresh(self) -> asyncio.Task[None] | None:
        """Asks for the bill if it is time to; does not wait."""
        return self._me.refresh()

    async def notices(self, since: int) -> list[Notice]:
        """Notices with an id above ``since``, as of at most some seconds ago.

        Raises:
            Refused: the service is away and nothing newer is known.
        """
        task = self._box.refresh()
        if task is not None:
            await asyncio.shield(task)
        found = [notice for notice in self._notices if notice.id > since]
        if not found and self._box.problem is not None:
            raise Refused("service-away", self._box.problem, status=503)
        return found

    async def keep(self) -> None:
        """Asks that the slice is not taken away because it is idle. Raises Refused."""
        await self._ask("api/me/keep", method="POST", body="{}")
        self._me.expire()

    # -- inside ------------------------------------------------------------------------------------

    async def _load_me(self) -> None:
        me: Me = _understood(lambda raw: Me.model_validate_json(raw, extra="ignore"),
                             await self._ask("api/me"))  # fmt: skip
        if me.server is None:
            raise Refused("not-one-server", NOT_ONE_SERVER, status=409)
        self.bill = bill_of(me, self._wall())
        self.heard = True
        urgent = self.bill is None or self.bill.share_milli is not None
        self._me.keep_s = KEEP_SHORT_S if urgent else KEEP_S

    async def _load_notices(self) -> None:
        last = self._notices[-1].id if self._notices else 0
        answer = await self._ask(f"api/me/notices?since={last}")
        self._notices.extend(
            _understood(lambda raw: _NOTICES.validate_json(raw, extra="ignore"), answer)
        )

    async def _ask(self, path: str, method: str = "GET", body: str | None = None) -> bytes:
        """The body of a good answer; everything else is a Refused with one sentence."""
        request = HTTPRequest(
            self._url + path,
            method=method,
            body=body,
            headers={"Authorization": f"token {self._token}", "Content-Type": "application/json"},
            connect_timeout=TIMEOUT_S,
            request_timeout=TIMEOUT_S,
            # A redirect would be a login page, and must not be followed with the token.
            follow_redirects=False,
        )
        try:
            response = await (self._fetch or AsyncHTTPClient().fetch)(request)
        except HTTPClientError as error:
            raise _refusal(error) from error
        except OSError as error:
            raise Refused("service-away", AWAY, status=503) from error
        return response.body


def _refusal(error: HTTPClientError) -> Refused:
    """What to tell: the service's own words where there are some."""
    if error.code in (401, 403):
        return Refused("not-accepted", NOT_ACCEPTED, status=502)
    try:
        said = Refusal.model_validate(json.loads(error.response.body), extra="ignore")  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        return Refused("service-away", AWAY, status=503)
    # 5xx of theirs is theirs: ours stays apart from "this server is broken".
    status = error.code if 400 <= error.code < 500 else 503
    return Refused(said.reason, said.message, status=status)


def _understood(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    # Unknown fields are let pass: a service is often newer than the images of its notebooks.
    try:
        return parse(raw)
    except ValidationError as error:
        raise Refused("not-understood", NOT_UNDERSTOOD, status=502) from error
