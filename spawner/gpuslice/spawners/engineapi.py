"""docker-py on the node's filtered Docker API: one client per call, each call bounded in time.

A docker-py client is a ``requests.Session``, which is not made for use by several threads at once;
making one costs a tenth of a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException
from docker.transport import UnixHTTPAdapter

from gpuslice.nodeclient import short_address
from gpuslice.spawners.errors import (
    EngineFailed,
    EngineRefused,
    EngineSilent,
    EngineUnavailable,
)

#: What every engine that knows CDI devices speaks; a fixed one needs no call to find out.
API_VERSION = "1.44"
#: What a wait that was too long is in these libraries; the last one is asyncio's.
_SILENCE = (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)


class EngineApi(docker.APIClient):
    """A docker-py client of one unix socket, whatever its path; no wait of it is longer than
    ``timeout_s`` seconds."""

    def __init__(self, address: str, timeout_s: float) -> None:
        super().__init__(base_url="unix:///docker.sock", version=API_VERSION, timeout=timeout_s)
        # docker-py reads the socket's path as a URL, in which `#`, `?` and `;` mean something.
        self.mount("http+docker://", UnixHTTPAdapter(f"http+unix://{address}", timeout_s))
        # Neither a proxy nor a netrc file of the hub's user has to do with this.
        self.trust_env = False

    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        # docker-py gives a pull no limit at all, so that a dead registry would hold its thread.
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout
        return kwargs


@contextmanager
def engine_api(socket: Path, timeout_s: float) -> Iterator[EngineApi]:
    """A client for one call. Blocking: use it in a thread."""
    with short_address(socket) as address, closing(EngineApi(address, timeout_s)) as api:
        yield api


@contextmanager
def engine_errors() -> Iterator[None]:
    """What docker-py raises as what the base knows: silence, or a refusal with its reason."""
    try:
        yield
    except APIError as error:
        raise _api_problem(error) from error
    except _SILENCE as error:
        raise EngineSilent("the node took the call, but did not answer in time") from error
    except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError,
            OSError) as error:  # fmt: skip
        raise EngineUnavailable(f"the node does not answer ({type(error).__name__})") from error


def _api_problem(error: APIError) -> EngineUnavailable | EngineRefused:
    """503 is the node's word for an engine that does not answer, 500 for one that failed."""
    status = error.response.status_code if error.response is not None else 0
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineFailed(api_message(error))
    if status > HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineUnavailable(api_message(error))
    return EngineRefused(api_message(error))


def api_message(error: APIError) -> str:
    """What an answer with an error status says, in the engine's or the node's words."""
    return " ".join(str(error.explanation or "").split())[:500] or "no reason given"
