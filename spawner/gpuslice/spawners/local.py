"""The demo engine: servers are processes of this machine, all of one user, started by the node."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jupyterhub.utils import random_port
from traitlets import Unicode, default

from gpuslice.spawners.builders import (
    home_folder,
    local_argv,
    local_env,
    notebook_env,
    start_server,
)
from gpuslice.spawners.nodeengine import NodeSpawner, node_errors
from gpuslice.wire import LeaseGrant


class LocalGpuSpawner(NodeSpawner):
    """Starts notebook servers through the node daemon's ``local`` engine.

    A demo: all servers run as the user that runs the node, so they are not private from each
    other, and no memory cap is held.
    """

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

    async def engine_start(self, grant: LeaseGrant) -> None:
        """Start the single-user server as a process under a supervisor of its own."""
        self.port = random_port()
        url = f"http://{self.ip}:{self.port}{self.server.base_url}"
        home = self._home()
        env = local_env(
            notebook_env(self.get_env(), grant, self.notebook_service_url or self.service_url), home
        )
        argv = local_argv(self.cmd, self.get_args(), as_root=os.geteuid() == 0)
        with node_errors():
            await self.node().start(start_server(grant, argv, env, home, url))

    def _home(self) -> Path:
        home = home_folder(Path(self.homes_dir), self.user.name)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return home
