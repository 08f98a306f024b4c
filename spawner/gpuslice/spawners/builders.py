"""Pure functions from a grant and the spawner's settings to what is sent: no I/O, plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyterhub.slugs import safe_slug

from gpuslice import containers
from gpuslice.units import format_memory, format_money
from gpuslice.wire import LeaseGrant, StartServer

#: Name of the hub service, of its route and of its custom scopes.
SERVICE_NAME = "gpuslice"
SCOPE_ADMIN = "custom:gpuslice:admin"
SCOPE_READ_ALL = "custom:gpuslice:read-all"
SCOPE_LEASE = "custom:gpuslice:lease"
SCOPE_STOP = "custom:gpuslice:stop"
#: Needed to open the service at all.
SCOPE_ACCESS = f"access:services!service={SERVICE_NAME}"

#: What a server's token may do: the hub's default (activity, itself), and its own lease.
SERVER_TOKEN_SCOPES = (
    "users:activity!user",
    "access:servers!server",
    SCOPE_ACCESS,
    f"{SCOPE_LEASE}!server",
)


def notebook_env(hub_env: Mapping[str, str], grant: LeaseGrant, service_url: str) -> dict[str, str]:
    """The hub's environment for a server, and which slice it is in (for people to read).

    Nothing trusts these values: the service reads the server's name from its token.
    """
    return {
        **hub_env,
        "GPUSLICE_SERVICE_URL": service_url,
        "GPUSLICE_LEASE": grant.lease_id,
        "GPUSLICE_SLICE": grant.slice,
        "GPUSLICE_SIMULATED": "1" if grant.simulated else "0",
    }


def local_env(env: Mapping[str, str], home: Path) -> dict[str, str]:
    """``env`` for a process of this machine that lives in ``home`` and sees no other HOME."""
    return {
        **env,
        "HOME": str(home),
        "SHELL": "/bin/bash",
        # A demo's notebooks must not write into, nor read from, the real user's folders.
        "JUPYTER_CONFIG_DIR": str(home / ".jupyter"),
        "JUPYTER_DATA_DIR": str(home / ".local" / "share" / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(home / ".local" / "share" / "jupyter" / "runtime"),
    }


def local_argv(cmd: Sequence[str], args: Sequence[str], *, as_root: bool) -> list[str]:
    """The single-user server's command; Jupyter refuses to run as root unless told to."""
    allow = ["--allow-root"] if as_root and "--allow-root" not in args else []
    return [*cmd, *args, *allow]


def start_server(
    grant: LeaseGrant, argv: Sequence[str], env: Mapping[str, str], cwd: Path, url: str
) -> StartServer:
    """The body that asks the node to start the server of ``grant``."""
    return StartServer(
        lease_id=grant.lease_id, argv=list(argv), env=dict(env), cwd=str(cwd), url=url
    )


def container_env(env: Mapping[str, str | None]) -> dict[str, str]:
    """``env`` for a container: its own home, and nothing of the hub's that is not set."""
    return {
        **{name: str(value) for name, value in env.items() if value is not None},
        "HOME": containers.HOME,
        "SHELL": "/bin/bash",
    }


def container_body(
    lease_id: str, image: str, command: Sequence[str], env: Mapping[str, str], base_url: str
) -> dict[str, Any]:
    """The body that asks the node for the container of a lease.

    These four fields and no other: limits, mounts, network, device and user are the node's, which
    refuses a body that says anything about them. An empty ``command`` is the image's own.
    """
    body: dict[str, Any] = {
        "Image": image,
        "Env": [f"{name}={value}" for name, value in sorted(env.items())],
        "Labels": {containers.LABEL_LEASE: lease_id, containers.LABEL_BASE_URL: base_url},
    }
    return {**body, "Cmd": list(command)} if command else body


def home_folder(homes: Path, user: str) -> Path:
    """A folder for ``user`` that no other name maps to, whatever characters the name has."""
    return homes / str(safe_slug(user))


def grant_text(grant: LeaseGrant) -> str:
    """One line for the progress page: what was granted and what it costs."""
    what = grant.title
    if grant.memory_bytes is not None:
        what += f", {format_memory(grant.memory_bytes)}"
    if grant.device_model is not None:
        what += f" on {grant.device_model}"
    if grant.simulated:
        what += " (SIMULATED)"
    price = format_money(grant.rate_u_per_hour, grant.currency)
    return f"Got {what} at {price} per hour"
