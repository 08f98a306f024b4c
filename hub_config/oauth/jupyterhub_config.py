"""The demo's hub, but people log in at an OpenID Connect provider; copy and edit it.

`gpuslice up --hub-config hub_config/oauth/jupyterhub_config.py` starts it. The provider is named by
environment variables; nothing secret stands in this file:

    OIDC_AUTHORIZE_URL, OIDC_TOKEN_URL, OIDC_USERDATA_URL
        as the provider's `/.well-known/openid-configuration` says (`authorization_endpoint`,
        `token_endpoint`, `userinfo_endpoint`); they are not fetched, so that the hub starts while
        the provider is down
    OIDC_CLIENT_ID, OIDC_CLIENT_SECRET_FILE
        what the provider knows this hub by; the secret is in a file that only the hub can read
    OIDC_CALLBACK_URL
        `https://YOUR.HUB/hub/oauth_callback`, as registered at the provider
    OIDC_ALLOWED_GROUPS, OIDC_ADMIN_GROUPS
        groups, separated by commas, whose members may log in, and who are administrators. Without
        the first nobody may: a forgotten rule must not open the hub to everybody.
    OIDC_LOGIN_SERVICE
        what the login button says, for example the university's name (default: OpenID)
"""

import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821

# Everything but the login is the demo's configuration, which stands beside this folder.
load_subconfig(str(Path(__file__).resolve().parent.parent / "local" / "jupyterhub_config.py"))  # noqa: F821

NEEDED = (
    "OIDC_AUTHORIZE_URL",
    "OIDC_TOKEN_URL",
    "OIDC_USERDATA_URL",
    "OIDC_CLIENT_ID",
    "OIDC_CLIENT_SECRET_FILE",
    "OIDC_CALLBACK_URL",
    "OIDC_ALLOWED_GROUPS",
)
missing = [name for name in NEEDED if not os.environ.get(name)]
if missing:
    sys.exit(f"{Path(__file__).name}: set {', '.join(missing)}; the top of that file says to what")


def groups(variable: str) -> set[str]:
    """A variable's comma-separated names."""
    return {name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()}


c.JupyterHub.authenticator_class = "generic-oauth"
provider = c.GenericOAuthenticator
provider.login_service = os.environ.get("OIDC_LOGIN_SERVICE", "OpenID")
provider.authorize_url = os.environ["OIDC_AUTHORIZE_URL"]
provider.token_url = os.environ["OIDC_TOKEN_URL"]
provider.userdata_url = os.environ["OIDC_USERDATA_URL"]
provider.client_id = os.environ["OIDC_CLIENT_ID"]
provider.client_secret = Path(os.environ["OIDC_CLIENT_SECRET_FILE"]).read_text().strip()
provider.oauth_callback_url = os.environ["OIDC_CALLBACK_URL"]
provider.scope = ["openid", "profile", "email", "groups"]

# `sub` never changes and is never given to somebody else; an e-mail address or a nickname may be.
provider.username_claim = "sub"

# The provider's groups become the hub's: limits per group follow them (`group_member` policies).
c.Authenticator.manage_groups = True
provider.auth_state_groups_key = lambda state: state.get("oauth_user", {}).get("groups", [])

# Who may log in, and who administers. The demo let everybody in; here nobody without a rule.
c.Authenticator.allow_all = False
c.Authenticator.admin_users = set()
provider.allowed_groups = groups("OIDC_ALLOWED_GROUPS")
provider.admin_groups = groups("OIDC_ADMIN_GROUPS")
# The same groups administer slices: limits, leases, devices.
for role in c.JupyterHub.load_roles:
    if role["name"] == "gpuslice-admin":
        role["groups"] = sorted(groups("OIDC_ADMIN_GROUPS"))
