"""Runs the node: its sockets, its watch over the servers, and its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.web import Application

from gpuslice.errors import Refused
from gpuslice.node.app import MAX_BODY
from gpuslice.node.events import log_event
from gpuslice.node.ports import Engine
from gpuslice.nodeclient import short_address

log = logging.getLogger("gpuslice.node")

#: How often the node does what nobody asks for.
WATCH_S = 5.0
_BACKLOG = 64


@dataclass(frozen=True, slots=True)
class Owner:
    """Who may reach a socket besides root; None: whoever runs the node."""

    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Door:
    """One of the node's sockets, and what answers there."""

    path: Path
    app: Application
    owner: Owner = Owner()


def bind(path: Path, owner: Owner = Owner()) -> socket.socket:
    """A listening socket that only its owner can reach, and the owner's group if one is named.

    Takes the place of a dead node's.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        with short_address(path) as address:
            listener.bind(address)
    finally:
        os.umask(before)
    if owner != Owner():
        unchanged = -1
        uid = unchanged if owner.uid is None else owner.uid
        os.chown(path, uid, unchanged if owner.gid is None else owner.gid)
    if owner.gid is not None:
        path.chmod(0o660)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


async def serve(engine: Engine, doors: Sequence[Door]) -> None:
    """Answers until SIGTERM or SIGINT. Servers go on; the next node finds them."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, ended.set)
    servers = [_listen(door) for door in doors]
    watch = asyncio.create_task(_watch(engine))
    log_event(log, "ready", node=engine.node_id, state=doors[0].path.parent, pid=os.getpid())
    await ended.wait()
    log_event(log, "ending", node=engine.node_id)
    watch.cancel()
    for server in servers:
        server.stop()
    for door in doors:
        door.path.unlink(missing_ok=True)


def _listen(door: Door) -> HTTPServer:
    server = HTTPServer(door.app, max_body_size=MAX_BODY, max_buffer_size=2 * MAX_BODY)
    server.add_socket(bind(door.path, door.owner))
    return server


async def _watch(engine: Engine) -> None:
    """One bad round must not end all others."""
    problem: str | None = None
    while True:
        try:
            await engine.watch_once()
            problem = None
        except (OSError, Refused) as raised:
            # What is known already is not told every few seconds.
            if repr(raised) != problem:
                log_event(log, "watch-failed", logging.ERROR, problem=repr(raised))
            problem = repr(raised)
        await asyncio.sleep(WATCH_S)
