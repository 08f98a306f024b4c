"""The hub under test: on the docker engine, with a spawner that can kill its hub.

What a user's container does, and how long its start may take, is in ``behaviour/`` of the data
folder, one file per user.
"""

import json
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import gpuslice
from gpuslice.containers import home_name
from gpuslice.settings import load_settings
from gpuslice.spawners.docker import GpuDockerSpawner

STATE = Path(os.environ["GPUSLICE_STATE"])


def crash(point):
    """Die here as SIGKILL or a power cut would, if this point is armed; once."""
    armed = STATE / "crash"
    if armed.exists() and armed.read_text() == point:
        armed.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class CrashingSpawner(GpuDockerSpawner):
    """Has the crash points of facts/faults.md section 1."""

    async def create_object(self):
        crash("before_create")
        created = await super().create_object()
        crash("created_not_started")
        return created

    async def engine_start(self, grant):
        await super().engine_start(grant)
        crash("started_not_returned")

    async def stop(self, now=False):
        crash("stop_before_commit")
        await super().stop(now)
        crash("killed_not_committed")

    async def engine_stop(self, lease_id, grace_s):
        crash("stop_before_kill")
        await super().engine_stop(lease_id, grace_s)


def behave(spawner):
    """Before each start: what this user's container does."""
    crash("pre_spawn_hook")
    path = STATE / "behaviour" / home_name(spawner.user.name)
    wanted = json.loads(path.read_text()) if path.exists() else {}
    spawner.cmd = wanted.get("cmd", ["/tiny", "serve"])
    spawner.start_timeout = wanted.get("start_timeout", 60)


c = get_config()  # noqa: F821
settings = load_settings(Path(os.environ["GPUSLICE_CONFIG"]))
c.JupyterHub.bind_url = f"http://127.0.0.1:{os.environ['GPUSLICE_PORT']}"
c.JupyterHub.hub_ip = "127.0.0.1"
c.JupyterHub.hub_port = urlsplit(settings.hub.api_url).port
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{os.environ['GPUSLICE_PROXY_API_PORT']}"
c.JupyterHub.db_url = "sqlite:///jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = str(STATE / "secrets" / "hub_cookie_secret")
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = (STATE / "secrets/demo_password").read_text().strip()
c.SharedPasswordAuthenticator.admin_password = (
    (STATE / "secrets/admin_password").read_text().strip()
)
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"admin"}
c.JupyterHub.allow_named_servers = True
c.Spawner.hub_connect_url = "http://hub:8081"
c.GpuSpawner.notebook_service_url = "http://proxy:8000/services/gpuslice/"
c.JupyterHub.spawner_class = CrashingSpawner
c.Spawner.pre_spawn_hook = behave
c.Spawner.post_stop_hook = lambda spawner: crash("post_stop_hook")
c.Spawner.poll_interval = 1
c.Spawner.poll_jitter = 0
c.JupyterHub.last_activity_interval = 2
c.Spawner.http_timeout = 30
c.GpuSpawner.patience_s = 60
# A start that does not get ready is answered early, so that it can be cancelled.
slow_spawn_timeout = int(os.environ.get("TEST_SLOW_SPAWN_S", "2"))
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": slow_spawn_timeout}
gpuslice.configure(c)
