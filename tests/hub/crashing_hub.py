"""The demo's hub with a tiny notebook server and a spawner that can kill its hub where told."""

import os
import signal
import sys
from pathlib import Path

from gpuslice.spawners import LocalGpuSpawner

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "hub_config" / "local" / "jupyterhub_config.py"


def crash(point):
    """Die here as SIGKILL or a power cut would, if this point is armed; once."""
    armed = Path(os.environ["GPUSLICE_STATE"]) / "crash"
    if armed.exists() and armed.read_text() == point:
        armed.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class CrashingSpawner(LocalGpuSpawner):
    """Has the crash points of facts/faults.md section 1."""

    async def engine_start(self, grant):
        crash("before_create")
        url = await super().engine_start(grant)
        crash("created_not_returned")
        return url

    async def stop(self, now=False):
        crash("stop_before_commit")
        await super().stop(now)
        crash("killed_not_committed")

    async def engine_stop(self, lease_id, grace_s):
        crash("stop_before_kill")
        await super().engine_stop(lease_id, grace_s)


c = get_config()  # noqa: F821
load_subconfig(str(DEMO))  # noqa: F821
c.JupyterHub.spawner_class = CrashingSpawner
c.LocalGpuSpawner.cmd = [sys.executable, str(HERE / "tiny_server.py")]
c.Spawner.pre_spawn_hook = lambda spawner: crash("pre_spawn_hook")
c.Spawner.post_stop_hook = lambda spawner: crash("post_stop_hook")
c.Spawner.poll_interval = 1
c.Spawner.poll_jitter = 0
c.JupyterHub.last_activity_interval = 2
c.Spawner.http_timeout = 20
c.GpuSpawner.patience_s = 60
# A start that does not get ready is answered early, so that it can be cancelled.
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 3}
