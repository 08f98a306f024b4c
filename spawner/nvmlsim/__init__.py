"""Simulated GPUs: a stand-in libnvidia-ml.so.1 and `Fleet`, which says from Python what it shows.

Invariants: a reader never sees half a change; free + used + reserved is the total; MIG instances
lie where the model allows and never overlap; names that do not exist are refused when written.

Not owned here: what a lease uses (the node writes it in demo mode), CUDA (there is none), and
reading NVML (`gpuslice.nvml`, which tells that a library is this one by its extra symbol).

    library = build_library(folder)
    with demo_fleet(folder / "fleet") as fleet:
        fleet.gpu(0).used = 8 << 30
        subprocess.run(["nvitop", "-1"], env=os.environ | fleet.environment(library))
"""

from nvmlsim.build import LIBRARY_NAME, BuildError, build_library
from nvmlsim.fleet import (
    Call,
    CgroupLimit,
    Fleet,
    GpuSpec,
    MigSpec,
    NvmlCode,
    SimGpu,
    SimMig,
    SimProcess,
    UnknownName,
    demo_fleet,
)
from nvmlsim.layout import FleetFileError
from nvmlsim.profiles import MODELS, MigProfile, Model

__all__ = [
    "LIBRARY_NAME",
    "MODELS",
    "BuildError",
    "Call",
    "CgroupLimit",
    "Fleet",
    "FleetFileError",
    "GpuSpec",
    "MigProfile",
    "MigSpec",
    "Model",
    "NvmlCode",
    "SimGpu",
    "SimMig",
    "SimProcess",
    "UnknownName",
    "build_library",
    "demo_fleet",
]
