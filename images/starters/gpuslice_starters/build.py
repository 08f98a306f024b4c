"""Makes .ipynb files from the py:percent sources in `notebooks/`; the same bytes every time.

`python -m gpuslice_starters FOLDER` writes them all. A source is cells that begin with `# %%`
(code) or `# %% [markdown]`; `tags=["check"]` after it marks a cell that checks a result.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

#: The order in which a newcomer meets them.
NAMES = ("start-here", "image-processing", "train-a-cnn")

_CELL = re.compile(r"# %%(?P<markdown> \[markdown\])?(?: tags=(?P<tags>\[[^\]]*\]))?")
_TITLE = re.compile(r"# (?P<title>[^\n]+)\n\n(?P<about>[^\n]+(?:\n[^\n]+)*)")
_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class NotebookSourceError(ValueError):
    """A source is not what this module reads.

    Attributes:
        name: Which starter.
        reason: What is wrong, with the line.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Starter:
    """A starter as a launcher card shows it.

    Attributes:
        name: For `copy_for`; also the file's name without its ending.
        title: The notebook's heading.
        about: The paragraph under it, in one line.
    """

    name: str
    title: str
    about: str


@dataclass(frozen=True, slots=True)
class _Cell:
    markdown: bool
    tags: list[str]
    text: str


def starters() -> tuple[Starter, ...]:
    """All starters, in the order in which a newcomer meets them."""
    return tuple(_starter(name) for name in NAMES)


def notebook(name: str) -> bytes:
    """The .ipynb file of one starter.

    Raises:
        KeyError: There is no starter of this name.
    """
    return render(name, source(name))


def build(folder: Path) -> list[Path]:
    """Write every starter's .ipynb into `folder`, over what is there; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in NAMES:
        path = folder / f"{name}.ipynb"
        path.write_bytes(notebook(name))
        written.append(path)
    return written


def source(name: str) -> str:
    """The py:percent source of one starter."""
    if name not in NAMES:
        raise KeyError(name)
    found: Traversable = files("gpuslice_starters") / "notebooks" / f"{name}.py"
    return found.read_text(encoding="utf-8")


def render(name: str, text: str) -> bytes:
    """A py:percent source as an .ipynb file.

    Raises:
        NotebookSourceError: A line is not understood.
    """
    cells = [_as_json(number, cell) for number, cell in enumerate(_cells(name, text))]
    whole = {"cells": cells, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}
    return (json.dumps(whole, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def _starter(name: str) -> Starter:
    first = next(_cells(name, source(name)))
    found = _TITLE.match(first.text) if first.markdown else None
    if found is None:
        raise NotebookSourceError(name, "its first cell is not a heading and a paragraph")
    return Starter(name, found["title"], found["about"].replace("\n", " "))


def _cells(name: str, text: str) -> Iterator[_Cell]:
    head: re.Match[str] | None = None
    lines: list[str] = []
    for number, line in enumerate([*text.splitlines(), "# %%"], start=1):
        if not line.startswith("# %%"):
            lines.append(line)
            continue
        if head is None and any(lines):
            raise NotebookSourceError(name, "there is text before its first cell")
        if head is not None:
            yield _cell(name, head, lines)
        head = _CELL.fullmatch(line)
        if head is None:
            raise NotebookSourceError(name, f"line {number} is not understood: {line}")
        lines = []


def _cell(name: str, head: re.Match[str], lines: list[str]) -> _Cell:
    markdown = head["markdown"] is not None
    if markdown:
        bad = [line for line in lines if line and line != "#" and not line.startswith("# ")]
        if bad:
            raise NotebookSourceError(name, f"this line of a text cell is no comment: {bad[0]}")
        lines = [line[2:] for line in lines]
    return _Cell(markdown, json.loads(head["tags"] or "[]"), "\n".join(lines).strip("\n"))


def _as_json(number: int, cell: _Cell) -> dict[str, Any]:
    # A random id would make every build another file.
    identity = hashlib.sha256(f"{number}\n{cell.text}".encode()).hexdigest()[:8]
    common = {
        "id": identity,
        "metadata": {"tags": cell.tags} if cell.tags else {},
        "source": cell.text.splitlines(keepends=True),
    }
    if cell.markdown:
        return common | {"cell_type": "markdown"}
    return common | {"cell_type": "code", "execution_count": None, "outputs": []}
