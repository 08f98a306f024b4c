"""The hub of the demo that `gpuslice up` starts on this machine; copy and edit it.

`gpuslice up --hub-config FILE` starts a copy of yours instead. What `gpuslice up` decides (ports,
data folder) comes by environment variables; the last line is all that gpuslice itself needs.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

import gpuslice
from gpuslice.settings import load_settings

state = Path(os.environ["GPUSLICE_STATE"])
config = os.environ.get("GPUSLICE_CONFIG") or None
settings = load_settings(Path(config) if config else None)
hub = urlsplit(settings.hub.api_url)

c = get_config()  # noqa: F821

# --- where things listen: this machine only ---------------------------------------------------
c.JupyterHub.bind_url = f"http://127.0.0.1:{os.environ['GPUSLICE_PORT']}"
c.JupyterHub.hub_ip = "127.0.0.1"
c.JupyterHub.hub_port = hub.port or 80

# The proxy is a process of its own, so that notebooks stay reachable while the hub restarts. Its
# token comes as CONFIGPROXY_AUTH_TOKEN.
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{os.environ['GPUSLICE_PROXY_API_PORT']}"
# A proxy that was restarted knows no routes: look often, instead of every five minutes.
c.JupyterHub.last_activity_interval = 10

# --- what it keeps: in the data folder, which is also its working folder -----------------------
c.JupyterHub.db_url = "sqlite:///jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = str(state / "secrets" / "hub_cookie_secret")

# --- who may log in: anybody who was told the demo's password ----------------------------------
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = (state / "secrets/demo_password").read_text().strip()
c.SharedPasswordAuthenticator.admin_password = (
    (state / "secrets/admin_password").read_text().strip()
)
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"admin"}

# --- servers -----------------------------------------------------------------------------------
c.JupyterHub.allow_named_servers = True
# Nobody's first sight of a slice is a question about JupyterLab's news.
c.Spawner.args = ["--LabApp.news_url=None"]
# Look often whether a server has ended: polling a process costs nothing.
c.Spawner.poll_interval = 10

# --- GPU slices: the spawner, the service, scopes and roles ------------------------------------
gpuslice.configure(c, config=config, state=state)
