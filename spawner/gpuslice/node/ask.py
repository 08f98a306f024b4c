"""The supervisor's one question to the service: may this lease's server start?

Standard library only: the supervisor imports this, and it has to start fast.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from gpuslice.units import boot_id, boottime_us, now_us

_PAUSE_S = 0.3
_ATTEMPT_S = 4.0
_ANSWER_BYTES = 64 * 1024
_SCHEMES: dict[str, type[http.client.HTTPConnection]] = {
    "http": http.client.HTTPConnection,
    "https": http.client.HTTPSConnection,
}


@dataclass(frozen=True, slots=True)
class Start:
    """The moment a server starts, on both clocks: the bill's, and the one that never steps."""

    started_us: int
    boottime_us: int

    @classmethod
    def now(cls) -> Start:
        return cls(now_us(), boottime_us())


class StartRefusedError(Exception):
    """The server must not start; the text is one sentence that says why."""


@dataclass(frozen=True, slots=True)
class Service:
    """Where the service answers, and what the node identifies itself with."""

    url: str
    token_file: Path
    #: How long an unreachable service is asked again before the start is given up.
    patience_s: float = 10.0

    def ask_to_start(self, lease_id: str, interrupted: Callable[[], bool]) -> Start:
        """Moves the lease ``granted → running``; returns the moment from which it is billed.

        Raises :class:`StartRefusedError` when the service says no, or does not say yes in time.
        """
        deadline = time.monotonic() + self.patience_s
        start = Start.now()
        while True:
            try:
                return self._ask(lease_id, start, deadline)
            except _NotReachedError as problem:
                # It cannot have heard of this moment: take a later one, time waited is free.
                start, reason = Start.now(), str(problem)
            except (OSError, http.client.HTTPException) as problem:
                # It may have: the next question must be the same one, so that it is answered
                # like the first.
                reason = f"the service did not answer ({type(problem).__name__})"
            if interrupted():
                raise StartRefusedError("stopped before it started")
            if time.monotonic() + _PAUSE_S >= deadline:
                raise StartRefusedError(f"{reason}; gave up after {self.patience_s:.0f} s")
            time.sleep(_PAUSE_S)

    def _ask(self, lease_id: str, start: Start, deadline: float) -> Start:
        body = json.dumps({"started_us": start.started_us, "boot_id": boot_id()})
        url = urlsplit(self.url)
        path = f"{url.path.rstrip('/')}/api/node/leases/{lease_id}/started"
        connection = self._connect(deadline)
        try:
            headers = {
                "Authorization": f"token {self.token_file.read_text(encoding='utf-8').strip()}",
                "Content-Type": "application/json",
            }
            connection.request("POST", path, body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read(_ANSWER_BYTES)
        finally:
            connection.close()
        if answer.status == http.HTTPStatus.OK:
            return start
        if answer.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise http.client.HTTPException(f"status {answer.status}")
        raise StartRefusedError(reason_of(answer.status, text))

    def _connect(self, deadline: float) -> http.client.HTTPConnection:
        url = urlsplit(self.url)
        if url.hostname is None or url.scheme not in _SCHEMES:
            raise StartRefusedError("the node's service address is no http address")
        timeout = max(0.1, min(_ATTEMPT_S, deadline - time.monotonic()))
        connection = _SCHEMES[url.scheme](url.hostname, url.port, timeout=timeout)
        try:
            connection.connect()
        except OSError as problem:
            raise _NotReachedError(f"the service cannot be reached ({problem})") from problem
        return connection


class _NotReachedError(Exception):
    """No connection: nothing was said to the service."""


def reason_of(status: int, text: bytes) -> str:
    """The service's own sentence, or its status."""
    try:
        said = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        said = None
    if not isinstance(said, str) or not said:
        return f"the service refused the start (status {status})"
    return f"the service refused the start: {said[:300]}"
