"""A backup on the disk: the copy, and beside it a manifest that says what it must be."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from gpuslice.cli.trouble import Trouble
from gpuslice.wire import Wire

#: Tables of which the manifest has the number of rows.
COUNTED = ("account", "lease", "segment", "entry", "audit")
_CHUNK = 1 << 20


class Manifest(Wire):
    """What a backup is: of which database, as of when, and how to know it again."""

    form: Literal[1] = 1
    database: Literal["sqlite", "postgresql"]
    revision: str
    taken_us: int
    counts: dict[str, int]
    sha256: str


def manifest_of(backup: Path) -> Path:
    """Where a backup's manifest is."""
    return backup.with_name(f"{backup.name}.manifest.json")


def read_manifest(backup: Path) -> Manifest:
    """The manifest of a backup, whose file is what it says.

    Raises:
        Trouble: one of the two is missing, or they do not belong together.
    """
    beside = manifest_of(backup)
    try:
        found = Manifest.model_validate_json(beside.read_bytes())
        digest = sha256(backup)
    except OSError as error:
        raise Trouble(
            f"Cannot read {error.filename}: {error.strerror}; a backup is two files, "
            f"{backup.name} and {beside.name}."
        ) from None
    except ValidationError:
        raise Trouble(f"{beside} is no manifest of a backup that this version knows.") from None
    if digest != found.sha256:
        raise Trouble(f"{backup} is not what its manifest says: it was damaged or exchanged.")
    return found


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def make_private(path: Path) -> None:
    """A new, empty file for its owner only. Raises FileExistsError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def give_name(part: Path, name: Path) -> None:
    """Give a complete file its name, on the disk before this returns; never over another one.

    Raises:
        FileExistsError: the name is taken.
    """
    sync(part)
    os.link(part, name)
    part.unlink()
    sync(name.parent)


def write_private(path: Path, text: str) -> None:
    """Write a new private file; it is complete or not there. Raises FileExistsError."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    make_private(part)
    try:
        part.write_text(text, encoding="utf-8")
        give_name(part, path)
    finally:
        part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk itself hold a file or a folder."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
