"""Puts a starter into a person's home as a copy that never replaces a file of theirs."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

from gpuslice_starters.build import NAMES, notebook

_MOST_COPIES = 1000


class UnknownStarter(LookupError):
    """There is no starter of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no starter {name!r}")
        self.name = name


class NoFreeName(OSError):
    """The home has a thousand files of this starter's names already."""


def copy_for(user_home: str | os.PathLike[str], name: str) -> Path:
    """Put a starter into a home folder and return where it is.

    A file that is there is never changed. If its cells say what this starter says it is returned
    as it is, run or not; if somebody has written in it, the next name is taken
    (`start-here-2.ipynb`).

    Raises:
        UnknownStarter: There is no starter of this name.
        NoFreeName: All names are taken.
        OSError: The home cannot be written to.
    """
    if name not in NAMES:
        raise UnknownStarter(name)
    home = Path(user_home)
    content = notebook(name)
    for number in itertools.islice(itertools.count(1), _MOST_COPIES):
        path = home / (f"{name}.ipynb" if number == 1 else f"{name}-{number}.ipynb")
        if _create(path, content) or _is(path, content):
            return path
    raise NoFreeName(f"{home} has {_MOST_COPIES} copies of {name}")


def _create(path: Path, content: bytes) -> bool:
    """Write a new file; False when anything of that name is there, a broken link included."""
    try:
        stream = path.open("xb")
    except FileExistsError:
        return False
    try:
        with stream:
            stream.write(content)
    except BaseException:
        # A full disk: no half notebook stays behind.
        path.unlink(missing_ok=True)
        raise
    return True


def _is(path: Path, content: bytes) -> bool:
    """Whether this file's cells are exactly these; outputs and the kernel's notes do not count."""
    try:
        return path.is_file() and _cells(path.read_bytes()) == _cells(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # not a notebook any more


def _cells(content: bytes) -> list[tuple[str, str]]:
    """Kind and source of each cell; a source may be one text or its lines."""
    cells = json.loads(content)["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
