"""The orderly end: servers stopped, leases settled, told while it happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gpuslice.cli.parts import Plan
from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable
from gpuslice.spawners.client import ServiceClient
from gpuslice.spawners.configure import service_url
from gpuslice.spawners.errors import ServiceRefused, ServiceUnavailable
from gpuslice.wire import ServerState

_LOOK_AGAIN_S = 0.5


def drain(
    plan: Plan,
    timeout_s: float,
    say: Callable[[str], None],
    interrupted: Callable[[], bool],
) -> int | None:
    """Ask the service to end every lease until none is left; returns how many still are.

    None: the service does not answer, so nobody knows.
    """
    client = ServiceClient(service_url(plan.settings), plan.state.secrets / "broker_token", tries=1)
    deadline = time.monotonic() + timeout_s
    live: int | None = None
    while not interrupted():
        try:
            now = asyncio.run(client.drain("the platform is shutting down", actor="gpuslice up"))
        except (ServiceUnavailable, ServiceRefused):
            now = None
        if now:
            asyncio.run(_stop_at_node(plan))
        if now is not None and now != live:
            say(_told(now, first=live is None))
            live = now
        if live == 0 or time.monotonic() > deadline:
            return live
        time.sleep(_LOOK_AGAIN_S)
    return live


async def _stop_at_node(plan: Plan) -> None:
    """Ask the node for what is committed already: the hub, asked first otherwise, is ending too."""
    node = NodeClient(plan.state.node)
    try:
        for server in (await node.listing()).servers:
            if server.state is not ServerState.EXITED:
                await node.stop(server.lease_id, plan.settings.timing.stop_grace_s)
    except (NodeUnavailable, NodeRefused):
        return  # the service asks again, and goes on asking


def _told(live: int, *, first: bool) -> str:
    if live == 0:
        return "No servers were running." if first else "All servers stopped, all leases settled."
    noun = "lease" if live == 1 else "leases"
    return f"Stopping servers: {live} {noun} to settle."
