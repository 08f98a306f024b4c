"""Fixtures: the simulated library, a stand-in for the service, and a real Jupyter server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuslice.nvml import Nvml
from notebookworld import Notebook, ServiceStub
from nvmlsim import Fleet
from simfleet import three_models


@pytest.fixture(autouse=True)
def doors_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Samplers of this process end with it; their doors to NVML must not outlive their test."""
    opened: list[Nvml] = []
    really = Nvml.open

    def open_door(library: Path | None = None) -> Nvml:
        opened.append(really(library))
        return opened[-1]

    monkeypatch.setattr(Nvml, "open", open_door)
    yield
    for door in opened:
        door.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with three_models(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def service() -> Iterator[ServiceStub]:
    with ServiceStub() as stub:
        yield stub


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Callable[..., Notebook]]:
    """Starts a Jupyter server with the extension and these variables; ended at the end."""
    running: list[Notebook] = []

    def start(environment: dict[str, str]) -> Notebook:
        running.append(Notebook(tmp_path / f"notebook {len(running)}", environment))
        return running[-1]

    yield start
    for one in running:
        one.stop()
