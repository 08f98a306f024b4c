"""The demo engine: servers are processes of this machine, all of one user, started by the node."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jupyterhub.utils import random_port
from traitlets import Unicode, default

from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable
from gpuslice.spawners.base import GpuSpawner
from gpuslice.spawners.builders import (
    home_folder,
    local_argv,
    local_env,
    notebook_env,
    start_server,
)
from gpuslice.spawners.errors import EngineRefused, EngineUnavailable
from gpuslice.wire import LeaseGrant, ServerReport


class LocalGpuSpawner(GpuSpawner):
    """Starts notebook servers through the node daemon's ``local`` engine.

    A demo: all servers run as the user that runs the node, so they are not private from each
    other, and no memory cap is held.
    """

    node_socket = Unicode(
        help="""
        The node daemon's ``engine.sock``, which can start, stop and look at servers and nothing
        else. Set by ``gpuslice.configure``.
        """
    ).tag(config=True)

    homes_dir = Unicode(
        help="""
        Folder in which every user gets a home folder of their own name (a safe form of it).
        Set by ``gpuslice.configure``.
        """
    ).tag(config=True)

    @default("cmd")
    def _default_cmd(self) -> list[str]:
        # This Python's, so that a PATH without the virtual environment does not matter.
        return [sys.executable, "-m", "jupyterhub.singleuser"]

    async def engine_start(self, grant: LeaseGrant) -> str:
        """Start the single-user server as a process under a supervisor of its own."""
        self.port = random_port()
        url = f"http://{self.ip}:{self.port}{self.server.base_url}"
        home = self._home()
        env = local_env(
            notebook_env(self.get_env(), grant, self.notebook_service_url or self.service_url), home
        )
        argv = local_argv(self.cmd, self.get_args(), as_root=os.geteuid() == 0)
        try:
            await self._node().start(start_server(grant, argv, env, home, url))
        except NodeUnavailable as error:
            raise EngineUnavailable(str(error)) from error
        except NodeRefused as error:
            raise EngineRefused(str(error)) from error
        return url

    async def engine_report(self, lease_id: str) -> ServerReport | None:
        """What the node says of the lease's process."""
        try:
            return await self._node().server(lease_id)
        except (NodeUnavailable, NodeRefused) as error:
            raise EngineUnavailable(str(error)) from error

    async def engine_stop(self, lease_id: str, grace_s: float) -> None:
        """SIGTERM now, SIGKILL after ``grace_s``."""
        try:
            await self._node().stop_server(lease_id, grace_s)
        except NodeUnavailable as error:
            raise EngineUnavailable(str(error)) from error
        except NodeRefused as error:
            raise EngineRefused(str(error)) from error

    async def engine_log_tail(self, lease_id: str) -> list[str]:
        """The last lines of the server's log."""
        try:
            return (await self._node().log_tail(lease_id)).splitlines()
        except (NodeUnavailable, NodeRefused):
            return []

    def _home(self) -> Path:
        home = home_folder(Path(self.homes_dir), self.user.name)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return home

    def _node(self) -> NodeClient:
        # Only the socket that can start, stop and look at servers.
        return NodeClient(Path(self.node_socket), timeout_s=self.service_timeout_s)
