"""What every engine behind a node daemon has in common: looking at a server, and stopping it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from traitlets import Unicode

from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable
from gpuslice.spawners.base import GpuSpawner
from gpuslice.spawners.errors import EngineRefused, EngineUnavailable
from gpuslice.wire import ServerReport


class NodeSpawner(GpuSpawner):
    """A spawner whose servers are run by the node daemon; only how they are started differs."""

    node_socket = Unicode(
        help="""
        The node daemon's ``engine.sock``, which can start, stop and look at servers and nothing
        else. Set by ``gpuslice.configure``.
        """
    ).tag(config=True)

    async def engine_report(self, lease_id: str) -> ServerReport | None:
        """What the node says of the lease's server."""
        try:
            return await self.node().server(lease_id)
        except (NodeUnavailable, NodeRefused) as error:
            # Even a refusal says nothing about whether the server runs.
            raise EngineUnavailable(str(error)) from error

    async def engine_stop(self, lease_id: str, grace_s: float) -> None:
        """SIGTERM now, SIGKILL after ``grace_s``."""
        with node_errors():
            await self.node().stop_server(lease_id, grace_s)

    async def engine_log_tail(self, lease_id: str) -> list[str]:
        """The last lines of the server's log."""
        try:
            return (await self.node().log_tail(lease_id)).splitlines()
        except (NodeUnavailable, NodeRefused):
            return []

    def node(self) -> NodeClient:
        """Calls to the node, through the socket that can start, stop and look at servers."""
        return NodeClient(Path(self.node_socket), timeout_s=self.service_timeout_s)


@contextmanager
def node_errors() -> Iterator[None]:
    """The node client's errors as the base knows them."""
    try:
        yield
    except NodeUnavailable as error:
        raise EngineUnavailable(str(error)) from error
    except NodeRefused as error:
        raise EngineRefused(str(error)) from error
