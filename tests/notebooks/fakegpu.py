"""A stand-in for CuPy and cuCIM that computes on the CPU and is as strict as a GPU about arrays.

Its arrays refuse to be mixed with NumPy's or drawn without a copy back, and its functions exist
only if the committed table has them, with the arguments that the table says. So the GPU's path of a
notebook runs here from end to end; what it cannot show is whether a real GPU's results are right.
"""

from __future__ import annotations

import importlib
import json
import numbers
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpucontract
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

NAME = "Fake GPU of a test"
PARTS = ("feature", "filters", "measure", "morphology", "segmentation", "transform", "util")
_SIGNATURES: dict[str, str] = json.loads(gpucontract.TABLE.read_text())["signatures"]


def install(folder: Path) -> None:
    """Write the packages `cupy`, `cupyx` and `cucim` into a folder that is on Python's path."""

    def module(path: str, text: str) -> None:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def forwarding(real: str, stand_in: str) -> str:
        return f"import fakegpu\n__getattr__ = fakegpu.forward({real!r}, {stand_in!r})\n"

    module("cupy/__init__.py", "from fakegpu import arange, asarray, asnumpy, cuda, float32\n")
    for package in ("cupyx", "cupyx/scipy", "cucim", "cucim/skimage"):
        module(f"{package}/__init__.py", "")
    module("cupyx/scipy/ndimage.py", forwarding("cupyx.scipy.ndimage", "scipy.ndimage"))
    for part in PARTS:
        module(f"cucim/skimage/{part}.py", forwarding(f"cucim.skimage.{part}", f"skimage.{part}"))


class DeviceArray(NDArrayOperatorsMixin):
    """An array in the memory of the fake GPU."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
        return _wrapped(getattr(ufunc, method)(*map(_unwrapped, inputs), **keywords))

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"NumPy's {function.__name__} was called on an array of the GPU")

    def __getitem__(self, key: Any) -> DeviceArray:
        if isinstance(key, np.ndarray):
            raise TypeError("an array of the CPU cannot pick from an array of the GPU")
        return DeviceArray(self._values[key._values if isinstance(key, DeviceArray) else key])

    def __getattr__(self, name: str) -> Any:
        if name not in gpucontract.ARRAY:
            raise AttributeError(f"the table does not have cupy.ndarray.{name}")
        if name == "get":
            return lambda: self._values.copy()
        found = getattr(self._values, name)
        return _strict(found) if callable(found) and name != "dtype" else found

    def __float__(self) -> float:
        return float(self._values)

    def __int__(self) -> int:
        return int(self._values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def __format__(self, spec: str) -> str:
        raise TypeError("unsupported format of an array of the GPU")


def forward(real: str, stand_in: str) -> Callable[[str], Any]:
    """A module's `__getattr__`: a function of CPU library, called as the GPU's must be."""
    library = importlib.import_module(stand_in)

    def find(name: str) -> Any:
        signature = _SIGNATURES.get(f"{real}.{name}")
        if signature is None:
            raise AttributeError(f"the table does not have {real}.{name}")
        function = getattr(library, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            gpucontract.bind(signature, len(arguments), tuple(keywords))
            return _strict(function)(*arguments, **keywords)

        return call

    return find


def _strict(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **keywords: _wrapped(
        function(*map(_unwrapped, arguments), **{k: _unwrapped(v) for k, v in keywords.items()})
    )


def _unwrapped(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value._values
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_wrapped, value))
    # Even one number stays on the GPU until somebody asks for it.
    return DeviceArray(value) if isinstance(value, np.ndarray | np.generic) else value


# ----------------------------------------------------------------------------- the package `cupy`

float32 = np.float32
cuda = SimpleNamespace(
    is_available=lambda: True,
    get_current_stream=lambda: SimpleNamespace(synchronize=lambda: None),
    runtime=SimpleNamespace(getDeviceProperties=lambda number: {"name": NAME.encode()}),
)


def asarray(values: Any) -> DeviceArray:
    """To the GPU."""
    if isinstance(values, DeviceArray):
        return values
    assert isinstance(values, np.ndarray | list | numbers.Number)
    return DeviceArray(values)


def asnumpy(values: Any) -> Any:
    """From the GPU; what is not there is passed through, as CuPy does."""
    return values.get() if isinstance(values, DeviceArray) else np.asarray(values)


def arange(stop: int) -> DeviceArray:
    """The numbers from 0."""
    return DeviceArray(np.arange(stop))
