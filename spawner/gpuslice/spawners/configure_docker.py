"""What ``gpuslice.configure(c)`` does for the ``docker`` engine, beside what every engine needs.

Servers are in containers, so a hub or service that listens on the hub's own machine only is out of
their reach: that is the first thing everybody runs into, and is said when the hub starts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from traitlets.config import Config

from gpuslice.settings import Settings
from gpuslice.spawners.errors import ConfigureError
from gpuslice.spawners.misplaced import misplaced_settings

SPAWNER = "gpuslice.spawners.docker.GpuDockerSpawner"
_NEEDED = ("docker", "dockerspawner")

#: Reads an option that the administrator may have set: section, key.
Given = Callable[[Config, str], Any]


def check_installed() -> None:
    """Say what to install instead of a traceback at the first spawn."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigureError(
            f"The docker engine needs {' and '.join(missing)} in the hub's environment; "
            "install them with: pip install 'gpuslice[docker]'"
        )


def images(settings: Settings) -> dict[str, str]:
    """The images on offer, reference to title, in the order of gpuslice.toml."""
    return {image.reference: image.title or image.reference for image in settings.docker.image}


def check_sections(c: Config, spawner_class: object) -> None:
    """Refuse options of DockerSpawner that gpuslice.toml decides."""
    for sentence in misplaced_settings(c, _section_names(spawner_class)):
        raise ConfigureError(sentence)


def _section_names(spawner_class: object) -> list[str]:
    """The sections that configure the spawner: its own class's and those of what it is made of."""
    from gpuslice.spawners.docker import GpuDockerSpawner

    own = spawner_class if isinstance(spawner_class, type) else GpuDockerSpawner
    return [one.__name__ for one in own.__mro__]


def check_reach(c: Config, given: Given, service_url: str) -> None:
    """Refuse addresses of hub and service that mean the container itself inside a container."""
    sections = ("GpuDockerSpawner", "GpuSpawner")
    told = next((url for name in sections if (url := given(c[name], "notebook_service_url"))), None)
    if _is_loopback(told or service_url):
        prefix = urlsplit(service_url).path
        raise ConfigureError(
            f"Containers cannot reach the gpuslice service at {told or service_url}; set "
            "c.GpuSpawner.notebook_service_url to where they can, for example "
            f"'http://proxy:8000{prefix}'."
        )
    hub = _hub_address(c, given)
    if _is_loopback(hub):
        raise ConfigureError(
            f"Containers cannot reach the hub at {hub}; set c.JupyterHub.hub_connect_url to where "
            "they can, for example 'http://hub:8081'."
        )


def _hub_address(c: Config, given: Given) -> str:
    """Where servers will look for the hub, as JupyterHub finds it."""
    spawners = ("GpuDockerSpawner", "GpuSpawner", "Spawner")
    for name, key in (
        *((name, "hub_connect_url") for name in spawners),
        ("JupyterHub", "hub_connect_url"),
        ("JupyterHub", "hub_connect_ip"),
        ("JupyterHub", "hub_bind_url"),
        ("JupyterHub", "hub_ip"),
    ):
        value = given(c[name], key)
        if value:
            return str(value)
    return "127.0.0.1"  # JupyterHub's default


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname if "//" in address else address
    if host is None or host == "localhost":
        return host == "localhost"
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def check_internal_ssl(hub: Mapping[str, Any]) -> None:
    """Certificates would have to be put into every container, which the node does not do."""
    if hub.get("internal_ssl"):
        raise ConfigureError(
            "c.JupyterHub.internal_ssl is not supported with the docker engine; remove the line. "
            "Every server has a network of its own that only hub and proxy share."
        )
