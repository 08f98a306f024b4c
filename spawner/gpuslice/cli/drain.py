"""The orderly end: servers stopped, leases settled, told while it happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable
from gpuslice.spawners.client import ServiceClient
from gpuslice.spawners.errors import ServiceRefused, ServiceUnavailable
from gpuslice.wire import ServerState

_LOOK_AGAIN_S = 0.5


@dataclass(frozen=True)
class Doors:
    """Where a drain is asked for: the service, and the node (its folder or ``control.sock``)."""

    service_url: str
    token_file: Path
    node: Path
    #: Between SIGTERM and SIGKILL of a server, seconds.
    stop_grace_s: float


def drain(
    doors: Doors,
    timeout_s: float,
    say: Callable[[str], None],
    interrupted: Callable[[], bool],
    *,
    actor: str,
) -> int | None:
    """Ask the service to end every lease until none is left; returns how many still are.

    None: the service does not answer, so nobody knows. It grants no more until its next start.
    """
    client = ServiceClient(doors.service_url, doors.token_file, tries=1)
    deadline = time.monotonic() + timeout_s
    live: int | None = None
    while not interrupted():
        try:
            now = asyncio.run(client.drain("the platform is shutting down", actor=actor))
        except (ServiceUnavailable, ServiceRefused):
            now = None
        if now:
            asyncio.run(_stop_at_node(doors))
        if now is not None and now != live:
            say(_told(now, first=live is None))
            live = now
        if live == 0 or time.monotonic() > deadline:
            return live
        time.sleep(_LOOK_AGAIN_S)
    return live


async def _stop_at_node(doors: Doors) -> None:
    """Ask the node for what is committed already: the hub, asked first otherwise, is ending too."""
    node = NodeClient(doors.node)
    try:
        for server in (await node.listing()).servers:
            if server.state is not ServerState.EXITED:
                await node.stop(server.lease_id, doors.stop_grace_s)
    except (NodeUnavailable, NodeRefused):
        return  # the service asks again, and goes on asking


def _told(live: int, *, first: bool) -> str:
    if live == 0:
        return "No servers were running." if first else "All servers stopped, all leases settled."
    noun = "lease" if live == 1 else "leases"
    return f"Stopping servers: {live} {noun} to settle."
