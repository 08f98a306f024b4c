"""What both hubs of the benchmark have in common: the same waits, looks and rights."""

import os
from urllib.parse import urlsplit

c = get_config()  # noqa: F821
public = urlsplit(os.environ["BENCH_URL"])

c.JupyterHub.bind_url = os.environ["BENCH_URL"]
c.JupyterHub.hub_ip = "127.0.0.1"
c.JupyterHub.hub_port = int(os.environ["BENCH_HUB_PORT"])
c.JupyterHub.db_url = "sqlite:///jupyterhub.sqlite"
c.JupyterHub.cookie_secret = os.urandom(32)
c.JupyterHub.cleanup_servers = False
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = os.environ["BENCH_PROXY_API"]

# The answer to the request for a server comes when it is ready, however long that takes: so
# nobody has to ask again and again, which would cost the hub time.
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 300}
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.last_activity_interval = 60
c.Spawner.poll_interval = 30
c.Spawner.start_timeout = 60

c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [{"name": "bench", "api_token": os.environ["BENCH_TOKEN"]}]
c.JupyterHub.load_roles = [
    {"name": "bench", "scopes": ["admin:users", "admin:servers"], "services": ["bench"]}
]


def command(spawner):
    """Servers of users of this kind do not end at SIGTERM, as a busy kernel may not."""
    stubborn = "stubborn" in spawner.user.name
    spawner.cmd = ["/tiny", "stubborn" if stubborn else "serve"]


c.Spawner.pre_spawn_hook = command
