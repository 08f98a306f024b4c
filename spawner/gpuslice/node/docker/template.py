"""The create body of a notebook server's container: hardened, and made anew from typed values.

Nothing of the caller's body is passed on. What the hub may say at all is in ``wanted``.
"""

from __future__ import annotations

from typing import Any

from gpuslice import containers, wire
from gpuslice.errors import Refused
from gpuslice.node.docker.api import Json
from gpuslice.node.docker.environment import container_environment
from gpuslice.node.docker.homes import HomeMount
from gpuslice.node.docker.wanted import read_wanted
from gpuslice.settings import DockerSettings
from gpuslice.units import MIB

#: Enough for data loaders, and below what a restricted engine may hand on.
OPEN_FILES = 16_384
#: Where the host itself runs out of memory, a notebook ends before the engine or the hub does.
OOM_SCORE = 500
#: Few programs use it beside ``/tmp``.
_VAR_TMP_BYTES = 64 * MIB
_NANO_CPUS_PER_MILLI = 1_000_000
_TMP, _VAR_TMP = "/tmp", "/var/tmp"  # noqa: S108  (the container's)


def container_body(
    wanted: dict[str, Any],
    piece: wire.PrepareSlice,
    policy: DockerSettings,
    image: Json,
    *,
    node_id: str,
    network: str,
    home: HomeMount,
) -> Json:
    """What the engine is asked to create for a prepared slice.

    Args:
        wanted: The body that the hub sent.
        image: The wanted image as the engine inspects it. The container is made from exactly this
            one, even when its name has moved on since.
        network: The lease's own.

    Raises:
        Refused: ``wanted`` says something that is not the hub's to say, or the image cannot be
            used; the text names the field.
    """
    asked = read_wanted(wanted, piece, policy)
    config = image.get("Config") or {}
    writable = _writable(policy, piece)
    _check_image(asked.image, config, {containers.HOME, *writable})
    body: Json = {
        "Image": image["Id"],
        "User": policy.user,
        "WorkingDir": containers.HOME,
        "Env": container_environment(
            asked.env, piece, config.get("Env") or [], home.limit_bytes
        ),
        "Labels": {
            containers.LABEL_LEASE: piece.lease_id,
            containers.LABEL_USER: piece.user,
            containers.LABEL_SERVER: piece.server,
            containers.LABEL_SLICE: piece.slice_type,
            containers.LABEL_NODE: node_id,
            containers.LABEL_BASE_URL: asked.base_url,
        },
        "ExposedPorts": {f"{containers.NOTEBOOK_PORT}/tcp": {}},
        # How long it may take is said with each stop.
        "StopSignal": "SIGTERM",
        "HostConfig": _host_config(piece, policy, network, home, writable),
        "NetworkingConfig": {"EndpointsConfig": {network: {}}},
    }  # fmt: skip
    if asked.cmd:
        body["Cmd"] = list(asked.cmd)
    return body


def _host_config(
    piece: wire.PrepareSlice,
    policy: DockerSettings,
    network: str,
    home: HomeMount,
    writable: dict[str, str],
) -> Json:
    """Seccomp, AppArmor, and what of ``/proc`` is masked stay the engine's defaults."""
    if piece.ram_bytes <= 0:
        # The engine reads 0 as "no limit".
        raise Refused("no-memory-limit", f"The slice {piece.slice_type} states no RAM.")
    return {
        # --- limits
        "Memory": piece.ram_bytes,
        # Of memory and swap together: no swap.
        "MemorySwap": piece.ram_bytes,
        "NanoCpus": piece.cpu_milli * _NANO_CPUS_PER_MILLI,
        "PidsLimit": policy.pids,
        "ShmSize": policy.shm if policy.shm is not None else piece.ram_bytes // 2,
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES},
        ],
        "OomScoreAdj": OOM_SCORE,
        # --- rights
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "IpcMode": "private",
        "CgroupnsMode": "private",
        # --- files
        "ReadonlyRootfs": policy.read_only,
        "Tmpfs": writable,
        "Mounts": _mounts(policy, home),
        # --- the slice
        "DeviceRequests": [
            {"Driver": "cdi", "DeviceIDs": [containers.cdi_device(piece.lease_id)]}
        ],
        "NetworkMode": network,
        # --- its life: one start, and it stays until its end is settled
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        # The images have an init of their own.
        "Init": False,
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(policy.log_size), "max-file": str(policy.log_files)},
        },
    }  # fmt: skip


def _mounts(policy: DockerSettings, home: HomeMount) -> list[Json]:
    """Unlike ``Binds`` these are not parsed, and make no folder that is missing."""
    mount: Json = {"Type": home.kind, "Source": home.source, "Target": containers.HOME}
    if home.kind == "volume":
        # The image's files there would come with the image's owner of that folder.
        mount["VolumeOptions"] = {"NoCopy": True}
    if policy.shared is None:
        return [mount]
    shared = {
        "Type": "bind", "Source": policy.shared, "Target": containers.SHARED, "ReadOnly": True
    }  # fmt: skip
    return [mount, shared]


def _writable(policy: DockerSettings, piece: wire.PrepareSlice) -> dict[str, str]:
    """Folders in memory, which count as the server's RAM: none may take all of it.

    Programs run from ``/tmp``: compilers of kernels, and packages that are built, put them there;
    the home allows it anyway.
    """
    most = piece.ram_bytes // 2
    folders = {_TMP: _tmpfs(min(policy.tmp, most), "exec")}
    if policy.read_only:
        folders[_VAR_TMP] = _tmpfs(min(_VAR_TMP_BYTES, most), "noexec")
    return folders


def _tmpfs(size: int, programs: str) -> str:
    return f"rw,nosuid,nodev,{programs},mode=1777,size={size}"


def _check_image(name: str, config: Json, covered: set[str]) -> None:
    """A volume of the image's would be a folder of the host's disk without any limit."""
    for folder in config.get("Volumes") or {}:
        if folder.rstrip("/") not in covered:
            raise Refused(
                "image-refused",
                f"The image {name} declares the volume {folder[:200]!r}; servers keep files in "
                f"{containers.HOME} and nowhere else. Take VOLUME out of its Dockerfile.",
            )
