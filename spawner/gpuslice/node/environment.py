"""The environment of a leased server: the spawner's, with what the node alone decides on top."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpuslice import wire
from gpuslice.node.procs import LEASE_VARIABLE

#: In bytes: where there is a limit, the notebook shows how much of it is used.
HOME_LIMIT_VARIABLE = "GPUSLICE_HOME_LIMIT"

#: Variables by which a user or an image could reach another device, switch a cap off, or put code
#: into a hook that runs as root before the container does.
_THE_NODES = frozenset({
    "CUDA_DISABLE_CONTROL",
    "CUDA_OVERSUBSCRIBE",
    "CUDA_TASK_PRIORITY",
    "CUDA_VISIBLE_DEVICES",
    "GLIBC_TUNABLES",
    "GPU_CORE_UTILIZATION_POLICY",
    HOME_LIMIT_VARIABLE,
    LEASE_VARIABLE,
    "LD_AUDIT",
    "LD_PRELOAD",
})  # fmt: skip
#: ``DOCKER_RESOURCE_``: what the NVIDIA runtime can be told to read instead of its own.
_THE_NODES_PREFIXES = ("CUDA_DEVICE_", "CUDA_MPS_", "DOCKER_RESOURCE_", "NVIDIA_", "NVMLSIM_")

_VIEWS = {
    wire.SliceKind.EXCLUSIVE: "shared-container",
    wire.SliceKind.SHARED: "shared-container",
    wire.SliceKind.CPU: "shared-container",
    wire.SliceKind.MIG: "mig-container",
}


@dataclass(frozen=True, slots=True)
class Simulation:
    """The simulated devices: their state file, and the stand-in library that reads it."""

    state: Path
    library: Path


def is_the_nodes(variable: str) -> bool:
    """Whether the node alone decides this variable, whatever users, hub or image say."""
    return variable in _THE_NODES or variable.startswith(_THE_NODES_PREFIXES)


def server_environment(
    wanted: dict[str, str], piece: wire.PrepareSlice, simulation: Simulation | None
) -> dict[str, str]:
    """``wanted`` without what is the node's to say, plus the device of this lease and no other."""
    env = {name: value for name, value in wanted.items() if not is_the_nodes(name)}
    env[LEASE_VARIABLE] = piece.lease_id
    env["CUDA_VISIBLE_DEVICES"] = piece.device_uuid or ""
    env["NVIDIA_VISIBLE_DEVICES"] = piece.device_uuid or "void"
    if simulation is not None:
        found_first = [str(simulation.library.parent)]
        if wanted.get("LD_LIBRARY_PATH"):
            found_first.append(wanted["LD_LIBRARY_PATH"])
        env["LD_LIBRARY_PATH"] = ":".join(found_first)
        env |= simulated_environment(piece, simulation.state)
    return env


def simulated_environment(piece: wire.PrepareSlice, state: Path) -> dict[str, str]:
    """What makes a server see the device of this lease, and no other, of a simulated fleet.

    Args:
        state: The fleet's file as the server finds it.
    """
    return {
        "NVMLSIM_STATE": str(state),
        "NVMLSIM_VIEW": _VIEWS[piece.kind],
        "NVMLSIM_VISIBLE": piece.device_uuid or "",
    }
