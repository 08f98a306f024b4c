"""The front end: its own tests, and what was built is of the sources as they are."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

EXTENSION = Path(__file__).parents[2] / "extensions"


@pytest.fixture(scope="module")
def hatch_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", EXTENSION / "hatch_build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_front_ends_own_tests() -> None:
    done = subprocess.run(
        [sys.executable, EXTENSION / "hatch_build.py", "test"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_built_is_of_these_sources(hatch_build: ModuleType) -> None:
    assert hatch_build.is_fresh(), "run: make setup"


def test_a_changed_source_is_noticed(
    hatch_build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("package.json", "yarn.lock", "tsconfig.json"):
        shutil.copy(EXTENSION / name, tmp_path)
    for name in ("src", "style"):
        shutil.copytree(EXTENSION / name, tmp_path / name)
    monkeypatch.setattr(hatch_build, "ROOT", tmp_path)
    assert hatch_build.is_fresh()
    with (tmp_path / "src" / "format.ts").open("a") as stream:
        stream.write("// a change")
    assert not hatch_build.is_fresh()


def test_the_lock_names_no_address() -> None:
    text = (EXTENSION / "yarn.lock").read_text()
    assert not re.search(r"://|__archiveUrl|\bregistry\.", text)


def test_react_and_the_lab_are_shared_and_not_bundled() -> None:
    built = EXTENSION / "jupyterlab_gpuslice" / "labextension" / "static"
    chunks = [path for path in built.glob("*.js") if not path.name.startswith("remoteEntry")]
    code = "".join(path.read_text() for path in chunks)
    assert "gpuslice/api" in code
    assert "react.production" not in code and "console.log" not in code
    # What every page loads before anybody opens the panel.
    assert sum(path.stat().st_size for path in chunks) < 25_000 + 10_000  # code, and the style
    assert max(path.stat().st_size for path in chunks) < 25_000


def test_the_wheel_has_both_sides(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=EXTENSION,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name.partition(".data/data/")[2] or name for name in archive.namelist()}
        metadata = next(n for n in archive.namelist() if n.endswith("/package.json"))
        package = json.loads(archive.read(metadata))
    lab = "share/jupyter/labextensions/jupyterlab-gpuslice"
    assert {
        "jupyterlab_gpuslice/extension.py",
        "jupyterlab_gpuslice/py.typed",
        "etc/jupyter/jupyter_server_config.d/jupyterlab_gpuslice.json",
        f"{lab}/install.json",
        f"{lab}/static/style.js",
    } <= inside
    entry = package["jupyterlab"]["_build"]["load"]
    assert f"{lab}/{entry}" in inside
    assert not any("node_modules" in name or name.endswith(".orig") for name in inside)
