"""The hub of the compose deployment; edit it, or name a copy in .env (GPUSLICE_HUB_CONFIG).

It runs in a container of its own, not as root and without the engine's socket. What compose.yaml
decides (paths, sockets) comes by environment variables; the last line is all that gpuslice itself
needs.
"""

import os
from pathlib import Path

import gpuslice

secrets = Path(os.environ["GPUSLICE_STATE"]) / "secrets"


def secret(name):
    return (secrets / name).read_text(encoding="ascii").strip()


c = get_config()  # noqa: F821

# --- where things listen: in the containers' networks; only the proxy's port 8000 is published --
c.JupyterHub.bind_url = "http://0.0.0.0:8000"
c.JupyterHub.hub_bind_url = "http://0.0.0.0:8081"
# As the proxy and every notebook find it.
c.JupyterHub.hub_connect_url = "http://hub:8081"

# The proxy is a container of its own, so that notebooks stay reachable while the hub restarts.
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = "http://proxy-api:8001"
c.ConfigurableHTTPProxy.auth_token = secret("proxy_token")
# A proxy that was restarted knows no routes: look often, instead of every five minutes.
c.JupyterHub.last_activity_interval = 10

# --- what it keeps: in the volume `hub` ---------------------------------------------------------
c.JupyterHub.db_url = "sqlite:////var/lib/gpuslice/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = str(secrets / "hub_cookie_secret")

# --- who may log in: anybody who was told the password, under any name. A demo! ------------------
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = secret("demo_password")
c.SharedPasswordAuthenticator.admin_password = secret("admin_password")
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"admin"}

# For people of your own, put this in place of these five lines. Why each line is as it is stands in
# hub_config/oauth/jupyterhub_config.py and docs/administrators/login.md.
#
# c.JupyterHub.authenticator_class = "generic-oauth"
# provider = c.GenericOAuthenticator
# provider.authorize_url = "https://login.example.org/authorize"
# provider.token_url = "https://login.example.org/token"
# provider.userdata_url = "https://login.example.org/userinfo"
# provider.client_id = "gpuslice"
# provider.client_secret = secret("oidc_secret")
# provider.oauth_callback_url = "https://gpu.example.org/hub/oauth_callback"
# provider.scope = ["openid", "profile", "email", "groups"]
# provider.username_claim = "sub"
# c.Authenticator.manage_groups = True
# provider.auth_state_groups_key = "oauth_user.groups"
# provider.allowed_groups = {"students", "staff"}
# provider.admin_groups = {"gpu-admins"}  # and in the last line: admin_groups=["gpu-admins"]
#
# The client's secret goes into the volume of the hub's secrets, never into this file:
#   docker compose run --rm -T --user 0 --entrypoint sh init \
#     -c 'umask 077; cat >/parts/hub/oidc_secret; chown 10001 /parts/hub/oidc_secret' <secret.txt

# --- servers ------------------------------------------------------------------------------------
c.JupyterHub.allow_named_servers = True
# The node tells the service of every end at once; this is for the hub's own pages.
c.Spawner.poll_interval = 20

# --- GPU slices: the spawner, the service, scopes and roles --------------------------------------
# As notebooks reach the service: each has a network with the hub and the proxy alone.
c.GpuSpawner.notebook_service_url = "http://proxy:8000/services/gpuslice/"
gpuslice.configure(c, engine="docker")
