"""The environment of a container: the hub's, with what the node alone decides on top."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gpuslice import containers, wire
from gpuslice.node.environment import HOME_LIMIT_VARIABLE, is_the_nodes
from gpuslice.node.procs import LEASE_VARIABLE

#: Devices come by CDI. An image may say ``all`` here, to a runtime that would listen.
NO_DEVICES_BY_RUNTIME = "void"
#: Where programs find libraries. Hooks have inherited it from images (CVE-2025-23266 and its kin).
_LIBRARIES = "LD_LIBRARY_PATH"
#: Not in the home, which all servers of a user share: in each of them the same process ids recur.
_RUNTIME_DIR = "/tmp/jupyter-runtime"  # noqa: S108  (in the container, whose /tmp is its own)


def container_environment(
    wanted: Mapping[str, str],
    piece: wire.PrepareSlice,
    image: Sequence[str],
    home_limit: int | None,
) -> list[str]:
    """What the engine is told: ``NAME=value``, or ``NAME`` alone to drop what the image says.

    Args:
        wanted: What the hub asks for.
        image: The image's own environment; the engine adds what of it is not named here.
        home_limit: Bytes that the home may have.
    """
    env = {
        "JUPYTER_RUNTIME_DIR": _RUNTIME_DIR,
        **_threads(piece.cpu_milli),
        **{name: value for name, value in wanted.items() if not _dropped(name)},
        "HOME": containers.HOME,
        LEASE_VARIABLE: piece.lease_id,
        "GPUSLICE_SLICE": piece.slice_type,
        # The CDI device says these again, and has the last word.
        **device_environment(piece),
    }
    if home_limit is not None:
        env[HOME_LIMIT_VARIABLE] = str(home_limit)
    unset = [name for name in _unwelcome(image) if name not in env]
    return [*(f"{name}={value}" for name, value in env.items()), *unset]


def device_environment(piece: wire.PrepareSlice) -> dict[str, str]:
    """Which device the container's programs see."""
    return {
        "CUDA_VISIBLE_DEVICES": piece.device_uuid or "",
        "NVIDIA_VISIBLE_DEVICES": NO_DEVICES_BY_RUNTIME,
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    }


def _threads(cpu_milli: int) -> dict[str, str]:
    """Numerical libraries start a thread for each core they see, and they see the machine's."""
    return {"OMP_NUM_THREADS": str(math.ceil(cpu_milli / 1000))} if cpu_milli else {}


def _dropped(name: str) -> bool:
    """CUDA images find their libraries by the image's own path; the hub's has no use in it."""
    return is_the_nodes(name) or name == _LIBRARIES


def _unwelcome(image: Sequence[str]) -> list[str]:
    """The variables of an image that must not reach its containers."""
    pairs = dict(entry.partition("=")[::2] for entry in image)
    return [
        name
        for name, value in pairs.items()
        # A relative or empty part is a folder of whatever a program is started in.
        if is_the_nodes(name)
        or (name == _LIBRARIES and not all(part.startswith("/") for part in value.split(":")))
    ]
