"""The GPUs that containers can be given: the host's, or simulated ones where there are none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpuslice.node.docker.hostfiles import prepare_simulation
from gpuslice.node.docker.hostroot import HostRoot
from gpuslice.node.environment import Simulation
from gpuslice.settings import DockerSettings
from nvmlsim import build_library

_LIBRARY = "libnvidia-ml.so.1"
#: Where distributions, NVIDIA's installer and WSL put it.
_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
)
_DRIVER = "/proc/driver/nvidia/version"


@dataclass(frozen=True, slots=True)
class Gpus:
    """Which NVML the node opens (None: what the loader finds), and what is simulated by it."""

    library: Path | None
    simulation: Simulation | None = None
    #: Why they are simulated.
    because: str | None = None


def choose(policy: DockerSettings, library: Path | None, folder: Path, *, simulated: bool) -> Gpus:
    """Simulated GPUs if ``simulated``, or where this host has neither NVIDIA's driver nor its NVML.

    A driver that is there and does not work is no reason: that is reported, not covered up.

    Args:
        library: The NVML library to open instead of the host's.
        folder: Where the simulated library may be built.

    Raises:
        BuildError: there is no compiler for the simulated library.
    """
    host = HostRoot(policy.host_root)
    because = "asked for"
    if not simulated:
        found = library or host_library(host)
        if found is not None or _exists(host, _DRIVER):
            return Gpus(found)
        because = f"this host has no NVIDIA driver ({_DRIVER}) and no {_LIBRARY}"
    simulation = prepare_simulation(policy, library or build_library(folder))
    return Gpus(simulation.library, simulation, because)


def host_library(host: HostRoot) -> Path | None:
    """The host's own NVML, which fits its driver; None when it is in none of the usual folders."""
    for folder in _FOLDERS:
        path = f"{folder}/{_LIBRARY}"
        if _exists(host, path):
            return host.find(path)
    return None


def _exists(host: HostRoot, path: str) -> bool:
    try:
        host.stat(path)
    except OSError:
        return False
    return True
