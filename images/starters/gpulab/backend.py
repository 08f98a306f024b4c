"""Which libraries compute: CuPy and cuCIM where a real GPU works, else NumPy and scikit-image.

The choice is made once, by a kernel that really ran on the GPU, and the reason is kept and printed.
`cucim.is_available()` is no help here: it is True on a machine without any GPU.
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

#: What of scikit-image a notebook may use: these parts exist in cuCIM too.
PARTS = ("feature", "filters", "measure", "morphology", "segmentation", "transform", "util")
VARIABLE = "GPULAB_BACKEND"


class GpuRequired(RuntimeError):
    """A GPU was asked for by name and there is none that works."""


@dataclass(frozen=True, slots=True)
class Lab:
    """The libraries to compute with; the same calls work on both.

    Attributes:
        on: Where it computes.
        why: The GPU's name, or why it is not a GPU.
        xp: `numpy`, or `cupy`.
        ndi: `scipy.ndimage`, or `cupyx.scipy.ndimage`.
        ski: `skimage`, or `cucim.skimage`.
    """

    on: Literal["GPU", "CPU"]
    why: str
    xp: Any
    ndi: Any
    ski: Any

    def to_device(self, array: Any) -> Any:
        """Copy an array to where it is computed with."""
        return self.xp.asarray(array)

    def to_host(self, array: Any) -> Any:
        """Copy an array back to where it can be drawn."""
        return self.xp.asnumpy(array) if self.on == "GPU" else array

    def seconds(self, work: Callable[[], object], repeat: int = 5) -> float:
        """How long `work` takes: the median, after a first run that does not count.

        A GPU works in the background, so the clock stops only when it has finished.
        """
        work()
        self._finish()
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            work()
            self._finish()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def _finish(self) -> None:
        if self.on == "GPU":
            self.xp.cuda.get_current_stream().synchronize()

    def __str__(self) -> str:
        if self.on == "GPU":
            return f"Computing on the GPU ({self.why}) with CuPy and cuCIM."
        return f"Computing on the CPU with NumPy and scikit-image, because {self.why}."

    __repr__ = __str__


def open_lab(want: str | None = None) -> Lab:
    """Pick the libraries.

    Args:
        want: "auto", "gpu" or "cpu"; default: the variable GPULAB_BACKEND, else "auto".

    Raises:
        GpuRequired: "gpu" was asked for, and there is none that works.
        ValueError: `want` is something else.
    """
    want = want or os.environ.get(VARIABLE) or "auto"
    if want not in ("auto", "gpu", "cpu"):
        raise ValueError(f"{VARIABLE} must be auto, gpu or cpu, not {want!r}")
    if want == "cpu":
        return _cpu("the CPU was asked for")
    found = _gpu()
    if isinstance(found, Lab):
        return found
    if want == "gpu":
        raise GpuRequired(f"A GPU was asked for, but {found}.")
    return _cpu(found)


def _gpu() -> Lab | str:
    """The GPU's libraries after they have computed something, or why not."""
    if os.environ.get("GPUSLICE_SIMULATED") == "1":
        return "the GPU of this slice is SIMULATED"
    try:
        cupy = importlib.import_module("cupy")
        if not cupy.cuda.is_available():
            return "no GPU is visible here"
        found = Lab(
            on="GPU",
            why=_name(cupy),
            xp=cupy,
            ndi=importlib.import_module("cupyx.scipy.ndimage"),
            ski=_parts("cucim.skimage"),
        )
        if int(cupy.arange(10).sum()) != 45:
            return "the GPU computes wrongly"
    except ImportError as error:
        return f"{error.name or error} is not installed"
    except Exception as error:  # noqa: BLE001  an old driver, a lost GPU, no memory: all mean CPU
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"the GPU does not work ({reason[:200]})"
    return found


def _cpu(why: str) -> Lab:
    return Lab(
        on="CPU",
        why=why,
        xp=importlib.import_module("numpy"),
        ndi=importlib.import_module("scipy.ndimage"),
        ski=_parts("skimage"),
    )


def _name(cupy: Any) -> str:
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def _parts(package: str) -> SimpleNamespace:
    return SimpleNamespace(**{part: importlib.import_module(f"{package}.{part}") for part in PARTS})
