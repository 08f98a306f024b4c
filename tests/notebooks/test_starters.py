"""The starters run from top to bottom in a fresh kernel, and their checks find planted bugs."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import fakegpu
import pytest
from plantedbugs import BUGS, Bug
from starterworld import HERE, Ran, cells_of, is_check, run, sections

from gpuslice_starters.build import source
from notebookworld import ServiceStub, a_lease, a_me

without_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch's CPU build is not installed: pip found no wheel of requirements/torch.txt",
)


@pytest.fixture(scope="session", autouse=True)
def _fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Matplotlib looks for fonts once for all kernels."""
    os.environ.setdefault("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))


def ran_well(ran: Ran, name: str) -> None:
    """It ran to its end, said nothing in red, and every check in it said that it is content."""
    assert ran.error is None
    assert ran.said(stderr=True) == ""
    expected: dict[str, list[bool]] = {}
    for heading, cell in sections(cells_of(name)):
        if is_check(cell):
            expected.setdefault(heading, []).append(True)
    assert expected
    assert ran.checks == expected


def test_start_here(tmp_path: Path) -> None:
    ran = run("start-here", tmp_path)
    ran_well(ran, "start-here")
    assert "Slice: none, this notebook was not started by gpuslice" in ran.said()
    assert "✓ the CPU computes" in ran.said()
    assert (tmp_path / "hello-from-start-here.txt").read_text() == "This file survives a stop.\n"


def test_start_here_leaves_a_note_that_is_there(tmp_path: Path) -> None:
    note = tmp_path / "hello-from-start-here.txt"
    note.write_text("mine")
    ran_well(run("start-here", tmp_path), "start-here")
    assert note.read_text() == "mine"


def test_start_here_in_a_simulated_slice(tmp_path: Path) -> None:
    with ServiceStub() as service:
        service.me = lambda: a_me(a_lease(lease_id="b" * 32, cost_u=123_456))
        env = {
            "GPUSLICE_SLICE": "whole", "GPUSLICE_LEASE": "b" * 32, "GPUSLICE_SIMULATED": "1",
            **service.environment,
        }  # fmt: skip
        ran = run("start-here", tmp_path, env=env)
    ran_well(ran, "start-here")
    assert "Slice: A whole GPU (SIMULATED: there is no real GPU)" in ran.said()
    assert "0.1235 EUR so far, at 3.60 EUR per hour (SIMULATED, no real money)" in ran.said()
    assert "because the GPU of this slice is SIMULATED" in ran.said()


def test_image_processing_on_the_cpu(tmp_path: Path) -> None:
    ran = run("image-processing", tmp_path)
    ran_well(ran, "image-processing")
    assert len(ran.checks) == 10
    assert ran.pictures == 11
    assert "Computing on the CPU" in ran.said() and "coins: 24" in ran.said()


def test_image_processing_keeps_apart_what_is_on_a_gpu(tmp_path: Path) -> None:
    fakegpu.install(tmp_path / "fake")
    ran = run("image-processing", tmp_path, path=[tmp_path / "fake", HERE])
    ran_well(ran, "image-processing")
    assert ran.pictures == 11
    assert f"Computing on the GPU ({fakegpu.NAME})" in ran.said() and "coins: 24" in ran.said()


@without_torch
def test_train_a_cnn(tmp_path: Path) -> None:
    with ServiceStub() as service:
        ran = run("train-a-cnn", tmp_path, env=service.environment)
    ran_well(ran, "train-a-cnn")
    assert ran.pictures == 3
    accuracy = re.search(r"test accuracy: ([\d.]+)%", ran.said())
    assert accuracy and 98 < float(accuracy[1]) <= 100
    assert re.search(r"Cost of this training: about 0\.\d{4} EUR", ran.said())


def test_train_a_cnn_without_pytorch_says_what_to_do(tmp_path: Path) -> None:
    hidden = "import sys\nimport time\n\nsys.modules['torch'] = None\n"
    ran = run("train-a-cnn", tmp_path, text=source("train-a-cnn").replace("import time\n", hidden))
    assert ran.error == "ImportError"
    assert ran.stopped_in == ("Train a CNN", False)


# ----------------------------------------------------------------------------------- planted bugs


def _finds(bug: Bug, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    ran = run(bug.starter, home, text=bug.text(), path=bug.path(tmp_path / "broken"))
    assert ran.error == "AssertionError"
    assert ran.stopped_in == (bug.section, True)


@pytest.mark.parametrize("name", [name for name, bug in BUGS.items() if bug.quick])
def test_a_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    _finds(BUGS[name], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[without_torch] if bug.starter == "train-a-cnn" else [])
        for name, bug in BUGS.items()
        if not bug.quick
    ],
)
def test_any_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    _finds(BUGS[name], tmp_path)
