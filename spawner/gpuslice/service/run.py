"""The service as a process: settings, secrets, broker and HTTP server from start to SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import logging
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from gpuslice.broker import Broker
from gpuslice.broker.hostlock import HostLock
from gpuslice.broker.meter import MeterLives
from gpuslice.ledger.database import LedgerError
from gpuslice.ledger.digest import KeyFormError, Signer
from gpuslice.service.app import make_app
from gpuslice.service.config import SERVICE_NAME, ServiceConfig
from gpuslice.service.databaseurl import database_url
from gpuslice.service.handlers import InFlight
from gpuslice.service.hubclient import HubClient
from gpuslice.service.log import configure_logging, event
from gpuslice.service.secretfiles import SecretFileError, read_secret
from gpuslice.service.standby import Front, make_standby
from gpuslice.settings import Settings, SettingsError, load_settings

_LOG = logging.getLogger("gpuslice.service")

#: Bodies up to this size are read and then refused in words; larger ones end the connection.
_MAX_READ = 2 * 1024 * 1024
#: A client may take so long to send a request, or leave a connection idle.
_BODY_S, _IDLE_S = 30.0, 300.0
#: How long an orderly end waits for requests that are being answered.
_FINISH_S = 20.0
#: A standby whose take-over failed tries again after so long.
_AGAIN_S = 2.0


class StartError(Exception):
    """The service cannot start; the text says why and what to do."""


@dataclass(frozen=True)
class Place:
    """Where the service finds its files: below one private folder, and the node's socket.

    ``node`` is the node's folder, or its ``control.sock`` alone.
    """

    state: Path
    node: Path

    def secret(self, name: str) -> str:
        return read_secret(self.state / "secrets" / name)

    def signer(self) -> Signer:
        """The key of the ledger's digests.

        Raises:
            SecretFileError: it is missing, not private, or no key.
        """
        name = "ledger_signing_key"
        try:
            return Signer(self.secret(name))
        except KeyFormError as error:
            raise SecretFileError(f"{self.state / 'secrets' / name}: {error}") from None


def build_config(
    settings: Settings, place: Place, *, base_url: str | None = None, hub_api: str | None = None
) -> ServiceConfig:
    """The configuration from settings and private files.

    Raises:
        StartError: prefix and base URL do not fit.
        SecretFileError: a private file is missing or not private.
    """
    tail = f"services/{SERVICE_NAME}/"
    prefix = settings.service.public_prefix
    if base_url is not None:
        prefix = f"/{base_url.strip('/')}/{tail}".replace("//", "/")
    if not prefix.endswith(f"/{tail}"):
        # The hub serves a service nowhere else, and its own prefix is derived from ours.
        raise StartError(f"service.public_prefix must end with '/{tail}', not be {prefix!r}")
    return ServiceConfig(
        prefix=prefix,
        hub_prefix=f"{prefix.removesuffix(tail)}hub/",
        hub_api_url=hub_api or settings.hub.api_url,
        service_token=place.secret("service_token"),
        broker_token=place.secret("broker_token"),
        node_token=place.secret("node_token"),
        operator_token=place.secret("operator_token"),
        # Hashed to the 32 bytes that signing wants, whatever the file's form.
        cookie_secret=hashlib.sha256(place.secret("cookie_secret").encode()).digest(),
    )


async def serve(settings: Settings, place: Place, config: ServiceConfig) -> None:
    """Run until SIGTERM or SIGINT; then finish what is being answered, and end.

    Raises:
        StartError, LedgerError, SettingsError, SecretFileError: in words; nothing was changed.
    """
    address = (settings.service.host, settings.service.port)
    ledger = database_url(settings, place.state)
    signer = place.signer()
    try:
        # First, so that a second service stops here, before it touches the ledger.
        sockets = bind_sockets(address[1], address[0])
    except OSError as exc:
        raise StartError(
            f"cannot listen on {address[0]}:{address[1]} ({exc.strerror}); "
            "change service.port, or end what uses it"
        ) from None
    told = _told_to_end()
    hub = HubClient(config.hub_api_url, config.service_token)
    # Of what a service has, the folder with its secrets is a volume in each deployment.
    lock = HostLock(place.state / "secrets")
    broker = Broker.create(settings, ledger, place.node, hub, signer, lock)
    door = _Door(sockets, address)
    try:
        await _until(_work(broker, config, door), told)
    finally:
        await door.close()
        await broker.close()
        await hub.close()
        event(_LOG, logging.INFO, "ended")


async def _work(broker: Broker, config: ServiceConfig, door: _Door) -> None:
    """Be the one service of this ledger, after another one's end if need be."""
    while True:
        try:
            await broker.start()
            break
        except MeterLives as other:
            if not broker.may_stand_by:
                raise
            if not door.is_open:
                event(_LOG, logging.WARNING, "standby", message=str(other))
                door.show(make_standby(broker, config))
        except LedgerError as error:
            # Whoever stands by outlives a database that is away for a while.
            if not door.is_open:
                raise
            event(_LOG, logging.ERROR, "take-over-failed", message=str(error))
            await asyncio.sleep(_AGAIN_S)
        await broker.wait_for_meter()
        event(_LOG, logging.WARNING, "taking-over")
    door.show(make_app(broker, config))
    await broker.run()
    raise StartError("the broker ended by itself")


class _Door:
    """The HTTP server on sockets that are bound already, open from the first `show` on."""

    def __init__(self, sockets: list[socket.socket], address: tuple[str, int]) -> None:
        self._sockets, self._address = sockets, address
        self._front: Front | None = None
        self._server: HTTPServer | None = None

    @property
    def is_open(self) -> bool:
        return self._server is not None

    def show(self, app: Application) -> None:
        """Answer with this application from now on."""
        if self._front is not None:
            self._front.application = app
            return
        self._front = Front(app)
        self._server = HTTPServer(
            self._front,
            max_body_size=_MAX_READ,
            max_buffer_size=_MAX_READ,
            body_timeout=_BODY_S,
            idle_connection_timeout=_IDLE_S,
        )
        self._server.add_sockets(self._sockets)
        event(_LOG, logging.INFO, "listening", host=self._address[0], port=self._address[1])

    async def close(self) -> None:
        """Accept nothing more, finish what is being answered, and hang up."""
        if self._server is not None and self._front is not None:
            self._server.stop()
            await _finish(self._front.application.settings["parts"].in_flight)
            await self._server.close_all_connections()
        for sock in self._sockets:
            sock.close()


def _told_to_end() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    return told


async def _until(job: Coroutine[Any, Any, None], told: asyncio.Event) -> None:
    """Returns on a signal; raises what ended the job, if that comes first."""
    work = asyncio.create_task(job)
    waiting = asyncio.create_task(told.wait())
    try:
        await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        for task in (work, waiting):
            task.cancel()
        await asyncio.gather(work, waiting, return_exceptions=True)


async def _finish(in_flight: InFlight) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FINISH_S):
            await in_flight.wait_for_none()


def _socket(text: str) -> Path:
    # By its name the client knows a socket from a folder.
    if not text.endswith(".sock"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .sock")
    return Path(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpuslice service", description=__doc__)
    parser.add_argument("--config", type=Path, help="gpuslice.toml; without it, the defaults")
    parser.add_argument("--state", type=Path, required=True, help="folder of secrets and ledger")
    node = parser.add_mutually_exclusive_group()
    node.add_argument("--node-dir", type=Path, help="the node's folder (default: STATE/node)")
    node.add_argument("--node-socket", type=_socket, help="the node's control.sock alone")
    parser.add_argument("--hub-api", help="URL of the hub's API (default: from the settings)")
    parser.add_argument("--base-url", help="the hub's base URL (default: from the settings)")
    options = parser.parse_args(arguments)
    configure_logging()
    node_at = options.node_socket or options.node_dir or options.state / "node"
    place = Place(state=options.state, node=node_at)
    try:
        settings = load_settings(options.config)
        config = build_config(settings, place, base_url=options.base_url, hub_api=options.hub_api)
        asyncio.run(serve(settings, place, config))
    except (StartError, SecretFileError, SettingsError, LedgerError) as exc:
        sys.stderr.write(f"gpuslice service: {exc}\n")
        return 1
    except BaseExceptionGroup as group:
        # The broker's work runs in a task group; when it loses the ledger, that is one sentence.
        lost, other = group.split(LedgerError)
        if lost is None or other is not None:
            raise
        sys.stderr.write(f"gpuslice service: {lost.exceptions[0]}\n")
        return 1
    return 0
