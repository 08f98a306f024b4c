"""What every call of the filtered Docker API has in common: strict reading, docker's errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from tornado.web import HTTPError

from gpuslice.errors import Refused
from gpuslice.node.app import Handler
from gpuslice.node.docker.api import EngineDown, EngineFailed, EngineSaysNo

_NUMBER = re.compile(r"[0-9]{1,9}")
_SHOWN = 200


class Call(Handler):
    """Refuses what is not understood. Errors are ``{message, reason}``; docker-py reads the first.

    ``QUERY`` are the parameters that a call may have, each once; ``BODY`` says whether it has one.
    """

    QUERY: frozenset[str] = frozenset()
    BODY = False

    def initialize(self) -> None:  # type: ignore[override]
        """Nothing here: each family of calls says what it works with."""

    def prepare(self) -> None:
        if self.request.version != "HTTP/1.1" or "Upgrade" in self.request.headers:
            # The engine turns such a connection into a raw stream to a process.
            raise self.not_allowed("is not allowed here: plain HTTP/1.1 only")
        for name in self.request.query_arguments:
            if name not in self.QUERY:
                raise self.not_allowed(f"is not allowed here with the parameter {clean(name)}")
        if self.request.body and not self.BODY:
            raise self.not_allowed("is not allowed here with a body")

    def parameter(self, name: str) -> str | None:
        """A query parameter; it may be there once only."""
        values = self.get_query_arguments(name, strip=False)
        if len(values) > 1:
            raise self.not_allowed(f"has the parameter {name} twice")
        return values[0] if values else None

    def switch_off(self, name: str) -> None:
        """Refuses the parameter unless the engine reads it as false."""
        value = self.parameter(name) or ""
        if value.strip().lower() not in ("", "0", "no", "false", "none"):
            raise self.not_allowed(f"is not allowed here with {name}={clean(value)}")

    def number(self, name: str, least: int, most: int, default: int | None = None) -> int:
        value = self.parameter(name)
        if value is None and default is not None:
            return default
        if value is None or not _NUMBER.fullmatch(value) or not least <= int(value) <= most:
            raise Refused("bad-body", f"{name} is a number from {least} to {most}", status=400)
        return int(value)

    def not_allowed(self, why: str = "is not allowed here") -> Refused:
        method, path = self.request.method or "", self.request.path
        text = f"gpuslice: {clean(method)} {clean(path)} {why}"
        return Refused("not-allowed", text, status=HTTPStatus.FORBIDDEN)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        problem = kwargs.get("exc_info", (None, None, None))[1]
        unknown = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
        if isinstance(problem, HTTPError) and problem.status_code in unknown:
            refused = self.not_allowed()
            kwargs["exc_info"] = (Refused, refused, None)
        super().send_error(status_code, **kwargs)


class NotAllowed(Call):
    """Every path that no other call has."""

    def prepare(self) -> None:
        raise self.not_allowed()


@contextmanager
def engine_refusals() -> Iterator[None]:
    """What the engine says, as refusals: who does not answer is not *not there*."""
    try:
        yield
    except EngineFailed as problem:
        # Also what a failing hook says about a start: its words must reach the user.
        raise Refused("engine-failed", str(problem)[:500], status=500) from problem
    except EngineDown as problem:
        text = str(problem)[:500]
        raise Refused("runtime-unavailable", text, status=503, retry_after_s=10) from problem
    except EngineSaysNo as no:
        raise Refused("engine-refused", no.message, status=no.status) from no


def clean(text: str) -> str:
    """Somebody else's text, bounded and printable."""
    shown = text if text.isascii() and text.isprintable() else ascii(text)
    return shown[:_SHOWN]
