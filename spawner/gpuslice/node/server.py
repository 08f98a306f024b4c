"""Runs the node: its two sockets, its watch over the servers, and its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.web import Application

from gpuslice.node.app import MAX_BODY, control_app, engine_app
from gpuslice.node.events import log_event
from gpuslice.node.inventory import NvmlDevices
from gpuslice.node.leases import Leases
from gpuslice.nodeclient import node_sockets, short_address

log = logging.getLogger("gpuslice.node")

#: How often the node looks for servers whose supervisor was killed, unasked.
WATCH_S = 5.0
_BACKLOG = 64


def bind(path: Path) -> socket.socket:
    """A listening socket that only this user can reach. Takes the place of a dead node's."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        with short_address(path) as address:
            listener.bind(address)
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


async def serve(state: Path, leases: Leases, devices: NvmlDevices) -> None:
    """Answers until SIGTERM or SIGINT. Servers go on; the next node finds them."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, ended.set)
    paths = node_sockets(state)
    apps = (control_app(leases, devices), engine_app(leases, devices))
    servers = [_listen(app, path) for app, path in zip(apps, paths, strict=True)]
    watch = asyncio.create_task(_watch(leases))
    log_event(log, "ready", node=leases.node_id, state=state, pid=os.getpid())
    await ended.wait()
    log_event(log, "ending", node=leases.node_id)
    watch.cancel()
    for server in servers:
        server.stop()
    for path in paths:
        path.unlink(missing_ok=True)


def _listen(app: Application, path: Path) -> HTTPServer:
    server = HTTPServer(app, max_body_size=MAX_BODY, max_buffer_size=2 * MAX_BODY)
    server.add_socket(bind(path))
    return server


async def _watch(leases: Leases) -> None:
    while True:
        try:
            await leases.watch_once()
        except OSError as problem:
            log_event(log, "watch-failed", logging.ERROR, problem=repr(problem))
        await asyncio.sleep(WATCH_S)
