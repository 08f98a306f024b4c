"""GPU slices for JupyterHub, each leased once and billed exactly.

Importing this package imports nothing else: the notebook side shares its core (``nvml``,
``units``, ``wire``) and must not pay for the hub's dependencies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuslice.spawners.configure import configure as configure

__all__ = ["configure"]


def __getattr__(name: str) -> Any:
    if name == "configure":
        from gpuslice.spawners.configure import configure

        return configure
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("gpuslice")
        except PackageNotFoundError:
            return "0+unknown"  # run from a checkout that was not installed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
