"""What both hubs of the benchmark have in common: people, servers, and the same waits and looks."""

import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821

c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = os.environ["BENCH_PASSWORD"]
c.Authenticator.allow_all = True
c.JupyterHub.load_groups = {"course": {"users": os.environ["BENCH_PEOPLE"].split()}}

c.Spawner.cmd = [sys.executable, str(Path(__file__).with_name("light_server.py"))]
c.Spawner.args = []
# The answer to a start comes when the server is ready, and to a stop when it is gone: so nobody
# has to ask again and again, which would cost the hub time.
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 300, "slow_stop_timeout": 300}
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.last_activity_interval = 60
c.Spawner.poll_interval = 30
c.Spawner.start_timeout = 60
