"""The two wheels in an environment that has nothing else: JupyterLab finds them and they answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from notebookworld import Notebook

ROOT = Path(__file__).parents[2]


def _run(*command: str | Path, cwd: Path = ROOT) -> str:
    # Nothing of the environment that the tests run in.
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JUPYTER", "VIRTUAL"))
    }
    done = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_wheels_work_in_an_empty_environment(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    for folder in (ROOT, ROOT / "extensions"):
        _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels, cwd=folder)
    found = sorted(wheels.glob("*.whl"))
    assert [wheel.name.partition("-")[0] for wheel in found] == ["gpuslice", "jupyterlab_gpuslice"]

    python = tmp_path / "env" / "bin" / "python"
    _run(sys.executable, "-m", "venv", tmp_path / "env")
    # The versions that everything else is tested with; neither hub nor service comes along.
    _run(
        python, "-m", "pip", "install", "--quiet", "--constraint", _constraints(tmp_path), *found,
        "jupyterlab", "anywidget", "ipywidgets",
    )  # fmt: skip
    listed = _run(python, "-m", "jupyter", "labextension", "list", cwd=tmp_path)
    assert re.search(r"jupyterlab-gpuslice v\S+ .*enabled.*OK", listed), listed
    assert "jupyterhub" not in _run(python, "-m", "pip", "list").lower()

    server = Notebook(tmp_path / "notebook", {"CUDA_VISIBLE_DEVICES": ""}, python=python)
    try:
        answer = server.sample()
        assert answer["behind_hub"] is False and answer["bill"] is None
        status, page = server.ask("lab")
        assert status == 200 and b"jupyterlab-gpuslice" in page
    finally:
        server.stop()
    _run(python, "-c", "from jupyterlab_gpuslice import GpuMeter; GpuMeter().close()", cwd=tmp_path)


def _constraints(folder: Path) -> Path:
    """The lock's versions without its hashes, which our own wheels do not have."""
    lock = (ROOT / "requirements" / "run.txt").read_text()
    pinned = re.findall(r"(?m)^([A-Za-z0-9._-]+==[^\s;\\]+)((?: ;[^\\\n]*)?)", lock)
    file = folder / "constraints.txt"
    file.write_text("".join(f"{version}{marker}\n" for version, marker in pinned))
    return file
