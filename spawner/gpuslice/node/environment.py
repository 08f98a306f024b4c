"""The environment of a leased server: the spawner's, with what the node alone decides on top."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpuslice import wire
from gpuslice.node.procs import LEASE_VARIABLE

#: Variables by which a user could reach another device, or switch a cap off.
_STRIPPED = ("LD_PRELOAD", "CUDA_VISIBLE_DEVICES", LEASE_VARIABLE)
_STRIPPED_PREFIXES = ("NVIDIA_", "CUDA_MPS_", "CUDA_DEVICE_", "NVMLSIM_")

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


def server_environment(
    wanted: dict[str, str], piece: wire.PrepareSlice, simulation: Simulation | None
) -> dict[str, str]:
    """``wanted`` without what is the node's to say, plus the device of this lease and no other."""
    env = {
        name: value
        for name, value in wanted.items()
        if name not in _STRIPPED and not name.startswith(_STRIPPED_PREFIXES)
    }
    env[LEASE_VARIABLE] = piece.lease_id
    env["CUDA_VISIBLE_DEVICES"] = piece.device_uuid or ""
    env["NVIDIA_VISIBLE_DEVICES"] = piece.device_uuid or "void"
    if simulation is not None:
        found_first = [str(simulation.library.parent)]
        if wanted.get("LD_LIBRARY_PATH"):
            found_first.append(wanted["LD_LIBRARY_PATH"])
        env["LD_LIBRARY_PATH"] = ":".join(found_first)
        env["NVMLSIM_STATE"] = str(simulation.state)
        env["NVMLSIM_VIEW"] = _VIEWS[piece.kind]
        env["NVMLSIM_VISIBLE"] = piece.device_uuid or ""
    return env
