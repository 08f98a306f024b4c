"""The notebook's side of gpuslice: what the own GPU slice does and what it costs.

Invariants: nothing here counts as activity of the person; NVML is called in one thread and never
on the event loop; a number that is not known is ``None`` with a reason, never 0; a neighbour's
use of a shared GPU is never shown.

Not owned here: who one is and what one pays. Both come from the gpuslice service, which reads
them from the server's token. Alone on a workstation there is no service, and no cost.

    from jupyterlab_gpuslice import GpuMeter  # needs jupyterlab-gpuslice[widget]
    GpuMeter()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jupyterlab_gpuslice.widget import GpuMeter as GpuMeter

__version__ = "0.1.0.dev0"


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "jupyterlab-gpuslice"}]


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "jupyterlab_gpuslice.extension"}]


def __getattr__(name: str) -> Any:
    # Only who asks for the widget pays for it, and needs its packages.
    if name == "GpuMeter":
        from jupyterlab_gpuslice.widget import GpuMeter

        return GpuMeter
    raise AttributeError(name)
