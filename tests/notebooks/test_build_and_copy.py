"""The .ipynb files are the same bytes every time, and a copy never replaces somebody's file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import nbformat
import pytest

import gpuslice_starters
from gpuslice_starters import (
    NotebookSourceError,
    UnknownStarter,
    build,
    copies,
    copy_for,
    notebook,
    starters,
)
from gpuslice_starters.build import NAMES, render, source

STARTERS = Path(gpuslice_starters.__file__).parents[1]


def test_two_builds_are_byte_identical(tmp_path: Path) -> None:
    for folder, seed in (("one", "1"), ("two", "2")):
        subprocess.run(
            [sys.executable, "-m", "gpuslice_starters", str(tmp_path / folder)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(STARTERS)},
            check=True, capture_output=True,
        )  # fmt: skip
    for name in NAMES:
        one, two = ((tmp_path / folder / f"{name}.ipynb").read_bytes() for folder in ("one", "two"))
        assert one == two == notebook(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_has_no_outputs(name: str) -> None:
    found = nbformat.reads(notebook(name).decode(), as_version=4)
    nbformat.validate(found)
    assert len({cell["id"] for cell in found.cells}) == len(found.cells)
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    # Every line of the source is in it, once and in order.
    text = source(name)
    written = [line for line in text.splitlines() if line and not line.startswith("# %%")]
    read = [
        ("# " + line).rstrip() if cell.cell_type == "markdown" else line
        for cell in found.cells
        for line in cell.source.splitlines()
        if line or cell.cell_type == "markdown"
    ]
    assert read == written


def test_a_launcher_card_has_a_title_and_a_sentence() -> None:
    cards = starters()
    assert [card.title for card in cards] == ["Start here", "Image processing", "Train a CNN"]
    assert all(card.about.endswith(".") and "\n" not in card.about for card in cards)


def test_the_build_goes_over_its_own_files(tmp_path: Path) -> None:
    (first, *_) = build(tmp_path / "out")
    first.write_text("half")
    assert build(tmp_path / "out")[0].read_bytes() == notebook("start-here")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os\n# %%\n", "text before"),
        ("# %% [raw]\nx\n", "line 1 is not understood"),
        ("# %%\nx = 1\n# %%tags=[]\n", "line 3 is not understood"),
        ("# %% [markdown]\n# A text\nx = 1\n", "no comment: x = 1"),
    ],
)
def test_a_source_that_is_not_understood(text: str, said: str) -> None:
    with pytest.raises(NotebookSourceError, match=said):
        render("some", text)


def test_the_wheel_has_sources_helper_and_copies(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=STARTERS, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "inside")
    done = subprocess.run(
        [sys.executable, "-m", "gpuslice_starters", str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "inside")},
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == len(NAMES)
    for name in NAMES:
        assert (tmp_path / "out" / f"{name}.ipynb").read_bytes() == notebook(name)
    assert (tmp_path / "inside" / "gpulab" / "backend.py").exists()


# --------------------------------------------------------------------------------------- copies


def test_a_copy_and_the_same_again(tmp_path: Path) -> None:
    first = copy_for(tmp_path, "start-here")
    assert first == tmp_path / "start-here.ipynb"
    assert first.read_bytes() == notebook("start-here")
    assert copy_for(str(tmp_path), "start-here") == first
    assert len(list(tmp_path.iterdir())) == 1


def test_a_copy_that_was_only_run_is_opened_again(tmp_path: Path) -> None:
    """JupyterLab writes the kernel's notes and outputs into it; it is still this starter."""
    first = copy_for(tmp_path, "start-here")
    notebook = json.loads(first.read_bytes())
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3"}
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["seen"]}]
    code["source"] = code["source"] if isinstance(code["source"], str) else "".join(code["source"])
    first.write_text(json.dumps(notebook))
    assert copy_for(tmp_path, "start-here") == first
    assert "seen" in first.read_text()
    code["source"] += "\n# mine"
    first.write_text(json.dumps(notebook))
    assert copy_for(tmp_path, "start-here") == tmp_path / "start-here-2.ipynb"
    assert "# mine" in first.read_text()


def test_what_somebody_changed_is_left_alone(tmp_path: Path) -> None:
    first = copy_for(tmp_path, "start-here")
    first.write_text("mine")
    second = copy_for(tmp_path, "start-here")
    assert second == tmp_path / "start-here-2.ipynb"
    second.write_text("mine too")
    third = copy_for(tmp_path, "start-here")
    assert third == tmp_path / "start-here-3.ipynb" == copy_for(tmp_path, "start-here")
    assert (first.read_text(), second.read_text()) == ("mine", "mine too")


def test_nothing_is_written_through_a_link_or_into_a_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "start-here.ipynb").symlink_to(elsewhere)
    (tmp_path / "start-here-2.ipynb").mkdir()
    assert copy_for(tmp_path, "start-here") == tmp_path / "start-here-3.ipynb"
    assert not elsewhere.exists()


@pytest.mark.parametrize("name", ["", "nothing", "../start-here", "start-here.ipynb"])
def test_an_unknown_starter(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownStarter):
        copy_for(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_no_half_notebook_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> object:
        return 5  # not bytes: the write fails after the file was made

    monkeypatch.setattr(copies, "notebook", nothing)
    with pytest.raises(TypeError):
        copy_for(tmp_path, "start-here")
    assert list(tmp_path.iterdir()) == []


def test_a_thousand_copies_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_MOST_COPIES", 2)
    for _ in range(2):
        copy_for(tmp_path, "start-here").write_text("mine")
    with pytest.raises(copies.NoFreeName):
        copy_for(tmp_path, "start-here")


def test_many_at_once_replace_nothing(tmp_path: Path) -> None:
    mine = tmp_path / "start-here.ipynb"
    mine.write_text("mine")
    together = threading.Barrier(8)
    found: list[Path] = []

    def copy() -> None:
        together.wait()
        found.append(copy_for(tmp_path, "start-here"))

    threads = [threading.Thread(target=copy) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and mine not in found
    assert mine.read_text() == "mine"
    assert all(json.loads(path.read_bytes())["nbformat"] == 4 for path in found)
