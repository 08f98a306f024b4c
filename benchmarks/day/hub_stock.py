"""JupyterHub with its own spawner of local processes, and a form to choose on as we have one."""

import os
from pathlib import Path

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).with_name("hub_common.py")))  # noqa: F821

c.JupyterHub.bind_url = os.environ["BENCH_URL"]
c.JupyterHub.hub_ip = "127.0.0.1"
c.JupyterHub.hub_port = int(os.environ["BENCH_HUB_PORT"])
c.JupyterHub.db_url = "sqlite:///jupyterhub.sqlite"
c.JupyterHub.cookie_secret = os.urandom(32)
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = os.environ["BENCH_PROXY_API"]

c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = os.environ["BENCH_HOMES"] + "/{username}"
c.Spawner.options_form = '<label><input type="radio" name="slice" value="quarter"> quarter</label>'
# What JupyterHub asks of spawners since version 5; without it every start logs a warning.
c.Spawner.apply_user_options = lambda spawner, options: None
