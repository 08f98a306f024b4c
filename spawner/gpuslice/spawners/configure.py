"""``gpuslice.configure(c)``: everything that an existing ``jupyterhub_config.py`` needs.

It adds to what the administrator has set and never replaces it. Where both cannot be true it
says so in one sentence and the hub does not start.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from traitlets.config import Config
from traitlets.config.loader import LazyConfigValue

from gpuslice.nodeclient import ENGINE_SOCKET
from gpuslice.settings import Settings, SettingsError, load_settings
from gpuslice.spawners import configure_docker
from gpuslice.spawners.builders import (
    SCOPE_ACCESS,
    SCOPE_ADMIN,
    SCOPE_LEASE,
    SCOPE_READ_ALL,
    SCOPE_STOP,
    SERVICE_NAME,
)
from gpuslice.spawners.errors import ConfigureError

#: Used where ``configure`` is not told: set by ``gpuslice up`` for the hub that it starts.
STATE_VARIABLE = "GPUSLICE_STATE"
CONFIG_VARIABLE = "GPUSLICE_CONFIG"
ENGINE_VARIABLE = "GPUSLICE_ENGINE"
SOCKET_VARIABLE = "GPUSLICE_ENGINE_SOCKET"
#: How often the hub is to note which servers are used, unless the administrator says.
ACTIVITY_EVERY_S = 10
_TEMPLATES = Path(__file__).parent / "templates" / "hub"
#: Engine -> the names under which a hub's configuration may have its spawner.
_SPAWNERS: Mapping[str, tuple[str, ...]] = {
    "local": ("gpuslice.spawners.LocalGpuSpawner", "gpuslice-local"),
    "docker": (configure_docker.SPAWNER, "gpuslice-docker"),
}

CUSTOM_SCOPES: Mapping[str, Mapping[str, Any]] = {
    SCOPE_ADMIN: {
        "description": "Administer GPU slices: leases, quotas, prices, credit, reservations, "
        "accounts and the queue; read everything",
        "subscopes": [SCOPE_READ_ALL, SCOPE_STOP],
    },
    SCOPE_READ_ALL: {
        "description": "Read everybody's GPU leases, money, limits and accounts, the queue and all "
        "devices"
    },
    SCOPE_LEASE: {
        "description": "Read one's own GPU leases, money and places in the queue, and ask to keep "
        "leases"
    },
    SCOPE_STOP: {"description": "Stop one's own GPU leases, and wait for slices in the queue"},
}

#: What the service does in the hub in its own name, and nothing more.
SERVICE_SCOPES = (
    "list:users",
    "read:users:groups",
    "read:servers",
    "delete:servers",
    "start:servers",
)


def configure(
    c: Config,
    *,
    config: str | os.PathLike[str] | None = None,
    state: str | os.PathLike[str] | None = None,
    engine: str | None = None,
    node_socket: str | os.PathLike[str] | None = None,
    admins: Iterable[str] = (),
    admin_groups: Iterable[str] = (),
) -> None:
    """Make a hub lease GPU slices.

    Args:
        c: The hub's configuration object. Call this after your own settings.
        config: ``gpuslice.toml``; default: ``$GPUSLICE_CONFIG``, or the defaults.
        state: The platform's data folder, with ``secrets/``; default: ``$GPUSLICE_STATE``.
        engine: ``local`` or ``docker``; default: that of ``c.JupyterHub.spawner_class`` if it is
            one of ours, else ``$GPUSLICE_ENGINE``, else ``local``.
        node_socket: The node's ``engine.sock``; default: ``$GPUSLICE_ENGINE_SOCKET``, or the one
            in the data folder.
        admins: Users who administer slices, beside ``Authenticator.admin_users``.
        admin_groups: Hub groups whose members administer slices.

    Raises:
        ConfigureError: something is missing, or contradicts what ``c`` says already.
    """
    settings = _settings(config)
    folder = _state_folder(state)
    secrets = folder / "secrets"
    service_token = _secret(secrets / "service_token")
    broker_token = secrets / "broker_token"
    _secret(broker_token)  # fails here, not at the first spawn
    _check_prefix(c, settings)

    hub, spawner = c.JupyterHub, c.GpuSpawner
    engine = _engine(hub, engine)
    _set_spawner_class(hub, engine)
    _set(hub, "JupyterHub", "cleanup_servers", False, "a hub's end must not stop the servers")
    # Whether a server that the queue started was opened is known from this.
    _default(hub, "last_activity_interval", ACTIVITY_EVERY_S)
    _set(hub, "JupyterHub", "oauth_require_pkce", True, "the service's login uses PKCE")
    _merge_dict(hub, "custom_scopes", {key: dict(value) for key, value in CUSTOM_SCOPES.items()})
    # What users may give to a token of theirs; the tokens of their servers have none of the last.
    own = (SCOPE_ACCESS, f"{SCOPE_LEASE}!user", f"{SCOPE_STOP}!user")
    _add_to_set(hub, "extra_user_scopes", own)
    _add_named(hub, "services", [service_entry(settings, service_token)])
    # Last, so that templates of the administrator's win.
    hub["template_paths"] = [*(_given(hub, "template_paths") or ()), str(_TEMPLATES)]
    people = {"users": [*_admin_users(c), *admins], "groups": [*admin_groups]}
    _add_named(hub, "load_roles", roles(people))

    _default(spawner, "service_url", service_url(settings))
    _default(spawner, "broker_token_file", str(broker_token))
    _default(spawner, "stop_grace_s", settings.timing.stop_grace_s)
    # The hub gives up no later than the service does, so that a late start finds its lease.
    _default(c.Spawner, "start_timeout", int(settings.timing.start_timeout_s))
    socket = node_socket or os.environ.get(SOCKET_VARIABLE) or folder / "node" / ENGINE_SOCKET
    _default(c.NodeSpawner, "node_socket", str(Path(socket).absolute()))
    _default(c.LocalGpuSpawner, "homes_dir", str(folder / "homes"))
    if engine == "docker":
        _configure_docker(c, settings)


def _configure_docker(c: Config, settings: Settings) -> None:
    configure_docker.check_sections(c, c.JupyterHub.spawner_class)
    configure_docker.check_internal_ssl(c.JupyterHub)
    configure_docker.check_reach(c, _given, service_url(settings))
    why = "they are listed as [[docker.image]] in gpuslice.toml"
    images = configure_docker.images(settings)
    _set(c.GpuDockerSpawner, "GpuDockerSpawner", "images", images, why)


def service_url(settings: Settings) -> str:
    """Where the service listens, prefix included, not through the proxy."""
    return settings.service.address


def service_entry(settings: Settings, token: str) -> dict[str, Any]:
    """The service as the hub knows it. No ``command``: a hub must neither start nor stop it."""
    return {
        "name": SERVICE_NAME,
        "url": settings.service.root,
        "api_token": token,
        # Its links stand in the navigation itself (templates/hub/page.html).
        "display": False,
        "oauth_no_confirm": True,
        # Without these a browser's token would not carry them, whoever logs in.
        "oauth_client_allowed_scopes": [
            SCOPE_ADMIN,
            SCOPE_READ_ALL,
            f"{SCOPE_LEASE}!user",
            # Only for the hub's own link in the navigation of our pages.
            "admin-ui",
        ],
    }


def roles(admins: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Roles of the service and of those who administer slices.

    The hub's own role ``admin`` cannot be extended, so its holders are named in one of ours.
    """
    people = {kind: sorted(set(names)) for kind, names in admins.items() if names}
    return [
        {
            "name": "gpuslice-service",
            "description": "What the gpuslice service does in the hub",
            "scopes": list(SERVICE_SCOPES),
            "services": [SERVICE_NAME],
        },
        {
            "name": "gpuslice-admin",
            "description": "Administers GPU slices",
            "scopes": [SCOPE_ADMIN, SCOPE_ACCESS],
            **people,
        },
    ]


# --- what is given --------------------------------------------------------------------------


def _settings(config: str | os.PathLike[str] | None) -> Settings:
    path = config or os.environ.get(CONFIG_VARIABLE)
    try:
        return load_settings(Path(path) if path else None)
    except SettingsError as error:
        raise ConfigureError(str(error)) from None


def _state_folder(state: str | os.PathLike[str] | None) -> Path:
    path = state or os.environ.get(STATE_VARIABLE)
    if not path:
        raise ConfigureError(
            "gpuslice.configure does not know the data folder: pass state='/var/lib/gpuslice' "
            f"or set {STATE_VARIABLE}."
        )
    return Path(path).absolute()


def _secret(path: Path) -> str:
    try:
        secret = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not ASCII text"
        raise ConfigureError(
            f"gpuslice cannot read the secret {path} ({why}); "
            f"make the secrets with: gpuslice init --state '{path.parent.parent}'"
        ) from None
    if not secret:
        raise ConfigureError(f"The secret {path} is empty; remove it and run gpuslice init again.")
    return secret


def _check_prefix(c: Config, settings: Settings) -> None:
    base_url = _given(c.JupyterHub, "base_url") or "/"
    wanted = urljoin(f"/{base_url.strip('/')}/".replace("//", "/"), f"services/{SERVICE_NAME}/")
    if settings.service.public_prefix != wanted:
        raise ConfigureError(
            f"The hub's base_url {base_url!r} puts the service at {wanted!r}, but "
            f"{settings.source} says service.public_prefix = {settings.service.public_prefix!r}; "
            f"set it to {wanted!r}."
        )


def _admin_users(c: Config) -> list[str]:
    """Admins named for any authenticator class, since they hold the hub's role ``admin``."""
    names: set[str] = set()
    for section, values in c.items():
        if section.endswith("Authenticator") and isinstance(values, Config):
            names.update(_given(values, "admin_users") or ())
    return sorted(names)


# --- merging into the hub's configuration ---------------------------------------------------


def _given(section: Config, key: str) -> Any:
    """What the administrator has set, or None; reading ``section[key]`` would create it."""
    value = section.get(key) if key in section else None
    if isinstance(value, LazyConfigValue):
        added = value.to_dict()
        return added.get("update") or [*added.get("prepend", []), *added.get("extend", [])] or None
    return value


def _set(section: Config, name: str, key: str, value: object, why: str) -> None:
    given = _given(section, key)
    if given is not None and given != value:
        raise ConfigureError(
            f"c.{name}.{key} is {given!r}, but gpuslice needs {value!r}: {why}; remove the line."
        )
    section[key] = value


def _default(section: Config, key: str, value: object) -> None:
    if _given(section, key) is None:
        section[key] = value


def _engine(hub: Config, told: str | None) -> str:
    """Which engine runs the servers."""
    given = _given(hub, "spawner_class")
    engine = told or _engine_of(given) or os.environ.get(ENGINE_VARIABLE) or "local"
    if engine not in _SPAWNERS:
        raise ConfigureError(f"There is no engine {engine!r}; there is {' and '.join(_SPAWNERS)}.")
    return engine


def _engine_of(spawner_class: object) -> str | None:
    """The engine of one of our spawners; None for anything else."""
    for engine, names in _SPAWNERS.items():
        if spawner_class in names:
            return engine
    if not isinstance(spawner_class, type):
        return None
    # By name: importing the class needs packages that a hub with another engine may not have.
    bases = [f"{base.__module__}.{base.__qualname__}" for base in spawner_class.__mro__]
    if configure_docker.SPAWNER in bases:
        return "docker"
    return "local" if "gpuslice.spawners.local.LocalGpuSpawner" in bases else None


def _set_spawner_class(hub: Config, engine: str) -> None:
    if engine == "docker":
        configure_docker.check_installed()
    given = _given(hub, "spawner_class")
    if given is None:
        hub.spawner_class = _SPAWNERS[engine][0]
        return
    if not _is_ours(given):
        raise ConfigureError(
            f"c.JupyterHub.spawner_class is {given!r}, but gpuslice brings its own; remove the "
            "line, or use a subclass of gpuslice.spawners.GpuSpawner."
        )
    if _engine_of(given) not in (engine, None):
        raise ConfigureError(
            f"c.JupyterHub.spawner_class is {given!r}, which is not of the engine {engine!r}; "
            "remove the line, or say the other engine."
        )


def _is_ours(given: object) -> bool:
    from gpuslice.spawners.base import GpuSpawner

    if isinstance(given, type):
        return issubclass(given, GpuSpawner)
    return any(given in names for names in _SPAWNERS.values())


def _merge_dict(section: Config, key: str, ours: dict[str, Any]) -> None:
    given = _given(section, key) or {}
    for name, value in ours.items():
        if name in given and given[name] != value:
            raise ConfigureError(
                f"c.JupyterHub.{key} defines {name!r} differently from gpuslice; remove it."
            )
    section[key] = {**given, **ours}


def _add_to_set(section: Config, key: str, ours: Iterable[str]) -> None:
    section[key] = {*(_given(section, key) or ()), *ours}


def _add_named(section: Config, key: str, ours: list[dict[str, Any]]) -> None:
    """Append entries that have a name; one of the administrator's of that name is an error."""
    given = list(_given(section, key) or ())
    taken = {entry.get("name") for entry in given if isinstance(entry, Mapping)}
    for entry in ours:
        if entry["name"] in taken:
            raise ConfigureError(
                f"c.JupyterHub.{key} has an entry named {entry['name']!r} already, which is "
                "gpuslice's; rename or remove it."
            )
    section[key] = [*given, *ours]


__all__ = [
    "CONFIG_VARIABLE",
    "CUSTOM_SCOPES",
    "ENGINE_VARIABLE",
    "SERVICE_SCOPES",
    "SOCKET_VARIABLE",
    "STATE_VARIABLE",
    "ConfigureError",
    "configure",
    "roles",
    "service_entry",
    "service_url",
]
