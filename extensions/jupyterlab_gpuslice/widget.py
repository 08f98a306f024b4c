"""`GpuMeter`: memory, utilisation and cost of the own slice in the output of a cell.

The page asks the notebook server, like the status bar; then the kernel does nothing at all. Where
there is no such server (VS Code, a plain IPython) the kernel measures, while the meter is seen.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from gpuslice.nvml import NotAvailable
from jupyterlab_gpuslice.sampler import Sampler
from jupyterlab_gpuslice.slice import Meter, Sample

_HERE = Path(__file__).parent
#: The page says every some seconds that it looks. It cannot be heard while a cell runs, so silence
#: means that it is gone only after this long.
_GONE_AFTER_S = 600.0


class GpuMeter(anywidget.AnyWidget):
    """A meter of the own GPU slice.

    Display it as the last line of a cell. What it shows is what the status bar shows.
    """

    _esm = _HERE / "widget.js"
    _css = _HERE / "widget.css"

    #: What the kernel measured, only where the page has no server to ask.
    reading = traitlets.Dict().tag(sync=True)
    #: Counted up by the page while it looks and has nobody else to ask.
    looks = traitlets.Int(0).tag(sync=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sampler: Sampler[Sample] | None = None

    @traitlets.observe("looks")
    def _on_look(self, _change: object) -> None:
        if self._sampler is None:
            meter = Meter(
                os.environ,
                lambda: None,
                behind_hub="GPUSLICE_SERVICE_URL" in os.environ,
                # The notebook server, whose other kernels use the same slice.
                root_pid=os.getppid(),
            )
            self._sampler = Sampler(
                lambda: self._tell(meter.read()), keep=1, sleep_after_s=_GONE_AFTER_S
            )
        self._sampler.since(0)

    def _tell(self, sample: Sample) -> Sample:
        self.reading = as_reading(sample)
        return sample

    def close(self) -> None:
        """Stop measuring and remove it from the page."""
        if self._sampler is not None:
            self._sampler.close()
        super().close()


def as_reading(sample: Sample) -> dict[str, Any]:
    """A sample as the page shows it."""
    memory, busy = sample.memory_used, sample.utilisation
    return {
        "label": sample.device.label,
        "simulated": sample.device.simulated,
        "memory": None if isinstance(memory, NotAvailable) else memory,
        "memory_total": sample.device.memory_total,
        "memory_reason": memory.reason if isinstance(memory, NotAvailable) else None,
        "utilisation": None if isinstance(busy, NotAvailable) else round(busy, 1),
        "utilisation_reason": busy.reason if isinstance(busy, NotAvailable) else None,
        "problem": sample.problem,
    }
