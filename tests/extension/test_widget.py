"""GpuMeter: the kernel measures only while a page that has nobody else to ask is looking."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gpuslice.nvml import NotAvailable
from gpuslice.units import GIB
from jupyterlab_gpuslice import GpuMeter
from jupyterlab_gpuslice.slice import Device, Kind, Sample
from jupyterlab_gpuslice.widget import as_reading
from nvmlsim import Fleet


@pytest.fixture
def simulated(fleet: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    for name, value in fleet.environment(library).items():
        monkeypatch.setenv(name, value)
    for name in ("GPUSLICE_SERVICE_URL", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return fleet


def test_nobody_looks_and_nothing_is_measured(simulated: Fleet) -> None:
    before = threading.active_count()
    meter = GpuMeter()
    assert meter.reading == {}
    assert threading.active_count() == before
    meter.close()


def test_a_page_that_looks_gets_readings_until_it_is_closed(
    simulated: Fleet, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated.gpu(0).used = 5 * GIB
    from gpuslice.nvml import Nvml
    from jupyterlab_gpuslice import widget

    original = widget.Meter
    monkeypatch.setattr(
        widget,
        "Meter",
        lambda *a, **k: original(*a, open_nvml=lambda: Nvml.open(library), **k),
    )
    meter = GpuMeter()
    heard = threading.Event()
    meter.observe(lambda change: heard.set(), "reading")
    meter.looks += 1
    assert heard.wait(30)
    assert meter.reading["memory"] == 5 * GIB
    assert meter.reading["simulated"] is True
    meter.close()


def test_what_is_not_available_has_its_reason_and_is_not_zero() -> None:
    sample = Sample(
        1, Device(Kind.SHARED, "A quarter"), NotAvailable("shared"), NotAvailable("why")
    )
    reading = as_reading(sample)
    assert reading["memory"] is None and reading["utilisation"] is None
    assert (reading["memory_reason"], reading["utilisation_reason"]) == ("shared", "why")


def test_its_page_side_is_in_the_package() -> None:
    folder = Path(__file__).parents[2] / "extensions" / "jupyterlab_gpuslice"
    assert "export default" in (folder / "widget.js").read_text()
    # Colours are the theme's; other pages get a value behind the variable.
    css = (folder / "widget.css").read_text()
    assert "var(--jp-" in css and "!important" not in css
