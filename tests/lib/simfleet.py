"""The simulated fleet that most tests of NVML use: every kind of device once."""

from __future__ import annotations

from pathlib import Path

from nvmlsim import Fleet, GpuSpec

H100, A100, L4 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA L4"
PROFILES = ["3g.40gb", "2g.20gb", "1g.10gb"]


def three_models(path: Path) -> Fleet:
    """An H100, an A100 cut in three by MIG, and an L4, which cannot do MIG."""
    return Fleet.create(path, [GpuSpec(H100), GpuSpec(A100, mig=PROFILES), GpuSpec(L4)])
