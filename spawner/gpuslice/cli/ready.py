"""Whether the parts answer yet, asked from outside as their users would."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable

from gpuslice.cli.parts import Plan
from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable
from gpuslice.spawners.configure import service_url
from gpuslice.wire import Inventory

_CALL_S = 2.0


def checks(plan: Plan) -> dict[str, Callable[[], bool]]:
    """One question per part, in the order in which they are shown."""
    public = f"http://{plan.ports.public.host}:{plan.ports.public.number}"
    service = service_url(plan.settings)
    return {
        # Whatever it answers: routes come with the hub.
        "proxy": lambda: answers(public, any_status=True),
        "node": lambda: inventory(plan) is not None,
        "service": lambda: answers(f"{service}api/health"),
        # Through the proxy: from here on a browser gets in, and the service is routed too.
        "hub": lambda: (
            answers(f"http://{plan.ports.hub.host}:{plan.ports.hub.number}/hub/health")
            and answers(f"{public}/hub/health")
            and answers(f"{public}{plan.settings.service.public_prefix}api/health")
        ),
    }


def inventory(plan: Plan) -> Inventory | None:
    """The node's devices; None while it does not answer."""
    try:
        return asyncio.run(NodeClient(plan.state.node, timeout_s=_CALL_S * 5).inventory())
    except (NodeUnavailable, NodeRefused):
        return None


def answers(url: str, *, any_status: bool = False) -> bool:
    """Whether something at this URL says 200, or with ``any_status`` anything at all."""
    # No proxy of the environment: this never leaves the machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_CALL_S):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return any_status
    except (OSError, ValueError):
        return False
