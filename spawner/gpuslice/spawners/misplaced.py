"""Options of DockerSpawner that would say what a container is: gpuslice.toml says that.

An option that does nothing is an error. Each is refused with a sentence that names it and where
the same is said, when the hub starts (``gpuslice.configure``) or, if it comes by another way, when
a server does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_HOMES = "homes and shared data are `home` and `shared` in [docker] of gpuslice.toml"
_SIZES = "a slice's `cpu` and `ram` in [[slice]] of gpuslice.toml are its limits"
_BODY = "the node makes every container from [docker] of gpuslice.toml"
_NETWORK = (
    "every server has a network of its own; `gates` and `internet` in [docker] of gpuslice.toml "
    "say what is on it"
)
_PORT = "notebook servers listen on one fixed port of their own container"
_NAMES = "a container is named after its user, server and lease"
_IMAGES = "images are listed as [[docker.image]] in gpuslice.toml"
_SOCKET = "the spawner talks to the node only, at GpuDockerSpawner.node_socket"
_REMOVE = "a container is removed by the node once its end is settled"
_EXEC = "the node runs nothing in a container; put it into the image"
_CERTS = "JupyterHub.internal_ssl is not supported"

#: Option -> where the same is said, or why it cannot be.
MISPLACED: Mapping[str, str] = {
    "volumes": _HOMES,
    "read_only_volumes": _HOMES,
    "mounts": _HOMES,
    "format_volume_name": _HOMES,
    "mem_limit": _SIZES,
    "mem_guarantee": _SIZES,
    "cpu_limit": _SIZES,
    "cpu_guarantee": _SIZES,
    "extra_host_config": _BODY,
    "extra_create_kwargs": _BODY,
    "network_name": _NETWORK,
    "links": _NETWORK,
    "use_internal_ip": _NETWORK,
    "use_internal_hostname": _NETWORK,
    "host_ip": _NETWORK,
    "container_ip": _NETWORK,
    "ip": _PORT,
    "port": _PORT,
    "container_port": _PORT,
    "prefix": _NAMES,
    "container_prefix": _NAMES,
    "name_template": _NAMES,
    "container_name_template": _NAMES,
    "escape": _NAMES,
    "image": _IMAGES,
    "container_image": _IMAGES,
    "allowed_images": _IMAGES,
    "image_whitelist": _IMAGES,
    "pull_policy": "an image is pulled when it is not there",
    "client_kwargs": _SOCKET,
    "tls_config": _SOCKET,
    "tls": _SOCKET,
    "tls_verify": _SOCKET,
    "tls_ca": _SOCKET,
    "tls_cert": _SOCKET,
    "tls_key": _SOCKET,
    "tls_assert_hostname": _SOCKET,
    "use_docker_client_env": _SOCKET,
    "remove": _REMOVE,
    "remove_containers": _REMOVE,
    "post_start_cmd": _EXEC,
    "certs_volume_name": _CERTS,
    "move_certs_image": _CERTS,
    "hub_ip_connect": "use JupyterHub.hub_connect_url",
}

#: The spawner itself gives these a value at every start.
_OURS = ("image", "ip", "port")


def misplaced_settings(sections: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    """A sentence for each misplaced option in these sections of a hub's configuration."""
    for name in names:
        section = sections.get(name)
        if isinstance(section, Mapping):
            yield from (_sentence(f"c.{name}.{key}", key) for key in section if key in MISPLACED)


def misplaced_values(spawner: Any) -> list[str]:
    """A sentence for each misplaced option that a spawner has, whichever way it got it."""
    return [
        _sentence(f"{type(spawner).__name__}.{key}", key)
        for key in MISPLACED
        if key not in _OURS and getattr(spawner, key) != spawner.trait_defaults(key)
    ]


def _sentence(shown: str, key: str) -> str:
    return f"{shown} is set, but does nothing with gpuslice: {MISPLACED[key]}; remove it."
