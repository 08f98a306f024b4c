"""Real GPUs if this machine has any that work, else simulated ones."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from gpuslice.cli.state import State
from gpuslice.cli.trouble import Trouble

#: Asked in a process of its own: a broken driver may hang or crash whoever opens it.
_PROBE = """
import sys
from gpuslice.nvml import Nvml, NvmlUnavailable
try:
    with Nvml.open() as nvml:
        if nvml.simulated:
            sys.exit("the NVML library that is found is the simulated one")
        if not nvml.devices():
            sys.exit("NVML lists no GPU")
except NvmlUnavailable as error:
    sys.exit(str(error))
"""
_PROBE_S = 30.0


@dataclass(frozen=True)
class Gpus:
    """Which GPUs the node is to lease."""

    #: Why they are simulated; None for real ones.
    simulated_because: str | None
    #: What the node is told.
    node_arguments: list[str]


def choose(state: State, *, simulated: bool) -> Gpus:
    """Look for real GPUs unless ``simulated``; make the simulated fleet where there are none.

    Raises:
        Trouble: the simulated library cannot be compiled.
    """
    why = "asked for with --simulated" if simulated else _no_real_gpus()
    if why is None:
        return Gpus(None, [])
    return Gpus(why, _simulated_fleet(state))


def _no_real_gpus() -> str | None:
    """Why no real GPU can be used, or None if there is one."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"NVML did not answer in {_PROBE_S:g} s"
    if probe.returncode == 0:
        return None
    return (probe.stderr.strip().splitlines() or ["NVML cannot be opened"])[-1]


def _simulated_fleet(state: State) -> list[str]:
    from nvmlsim import BuildError, build_library, demo_fleet

    state.nvmlsim.mkdir(mode=0o700, exist_ok=True)
    try:
        library = build_library(state.nvmlsim)
    except BuildError as error:
        raise Trouble(str(error)) from None
    with demo_fleet(state.nvmlsim / "fleet") as fleet:
        path = fleet.path.resolve()
    return ["--demo", str(path), "--nvml", str(library)]
