"""Runs a starter in a fresh kernel and reads what its cells said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from gpuslice_starters.build import render, source

HERE = Path(__file__).parent
TIMEOUT_S = 120
_NOT_PASSED = ("GPUSLICE_", "GPULAB_", "JUPYTERHUB_", "CUDA_VISIBLE_DEVICES", "NVMLSIM_")


@dataclass(frozen=True)
class Ran:
    """A starter after it ran; `error` is the name of what stopped it, None if nothing did."""

    cells: list[Any]
    error: str | None

    def said(self, *, stderr: bool = False) -> str:
        """All that its cells printed."""
        return "".join(_said(cell, "stderr" if stderr else "stdout") for cell in self.cells)

    @property
    def pictures(self) -> int:
        """How many pictures are in it."""
        outputs = [output for cell in self.cells for output in cell.get("outputs", [])]
        return sum("image/png" in output.get("data", {}) for output in outputs)

    @property
    def checks(self) -> dict[str, list[bool]]:
        """Heading to whether each of its check cells ran to its end and said so."""
        found: dict[str, list[bool]] = {}
        for heading, cell in sections(self.cells):
            if is_check(cell):
                done = cell["execution_count"] is not None and "✓" in _said(cell, "stdout")
                found.setdefault(heading, []).append(done)
        return found

    @property
    def stopped_in(self) -> tuple[str, bool]:
        """The heading of the cell that stopped it, and whether that was a check."""
        for heading, cell in sections(self.cells):
            if any(output["output_type"] == "error" for output in cell.get("outputs", [])):
                return heading, is_check(cell)
        raise AssertionError("nothing stopped it")


def run(
    name: str,
    home: Path,
    *,
    text: str | None = None,
    env: Mapping[str, str] | None = None,
    path: Iterable[Path] = (),
) -> Ran:
    """Run a starter, or another text of it, from its first cell to its last or to an error.

    Args:
        home: HOME and working folder of its kernel.
        env: Added to the environment; nothing of a slice is in it by itself.
        path: Folders that Python looks into before all others.
    """
    notebook = nbformat.reads(render(name, text or source(name)).decode(), as_version=4)
    nbformat.validate(notebook)
    passed = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_PASSED)}
    folders = [str(folder) for folder in path]
    passed |= {
        "HOME": str(home),
        "IPYTHONDIR": str(home / ".ipython"),
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(home / ".matplotlib")),
        "PYTHONPATH": os.pathsep.join(folders),
    }
    client = NotebookClient(notebook, timeout=TIMEOUT_S, kernel_name="python3")
    error = None
    try:
        client.execute(cwd=str(home), env=passed | dict(env or {}))
    except CellExecutionError as stopped:
        error = stopped.ename
    return Ran(notebook.cells, error)


def sections(cells: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    """Each code cell with the heading above it."""
    heading = ""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                if line.startswith("#"):
                    heading = line.lstrip("# ")
        else:
            yield heading, cell


def is_check(cell: Any) -> bool:
    """Whether a cell checks a result."""
    return "check" in cell["metadata"].get("tags", [])


def cells_of(name: str) -> list[Any]:
    """The cells of a starter that has not run."""
    cells: list[Any] = json.loads(render(name, source(name)))["cells"]
    return cells


def _said(cell: Any, stream: str) -> str:
    outputs = [o for o in cell.get("outputs", []) if o["output_type"] == "stream"]
    return "".join(output["text"] for output in outputs if output["name"] == stream)
