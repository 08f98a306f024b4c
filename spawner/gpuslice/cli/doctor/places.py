"""Folders and files as checks see them: owners, modes, file systems; looked at and judged apart."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

_MOST_LINKS = 40
_NETWORK_FILES = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.sshfs", "9p"})
_QUOTA_OPTIONS = frozenset({"prjquota", "pquota"})


@dataclass(frozen=True, slots=True)
class Mount:
    """The file system that a path lies on."""

    point: str
    kind: str
    options: frozenset[str] = frozenset()

    @property
    def network(self) -> bool:
        return self.kind in _NETWORK_FILES

    @property
    def project_quotas(self) -> bool:
        """Whether it can limit the size of one folder."""
        return self.kind in ("xfs", "ext4") and bool(self.options & _QUOTA_OPTIONS)


@dataclass(frozen=True, slots=True)
class Place:
    """One path as it is; ``kind`` ``hidden`` means that it may not be looked at by this user."""

    path: str
    kind: Literal["folder", "file", "socket", "other", "missing", "hidden"]
    mode: int = 0
    owner: int = 0
    #: Whether a symbolic link is on the way.
    by_link: bool = False
    #: Whom this place, or a folder above it, belongs to or may be changed by, apart from root and
    #: its own owner: one short phrase each.
    weak: tuple[str, ...] = ()
    mount: Mount | None = None

    @property
    def there(self) -> bool:
        return self.kind not in ("missing", "hidden")

    @property
    def shown_mode(self) -> str:
        return f"{stat.S_IMODE(self.mode):04o}"

    @property
    def others_read(self) -> bool:
        return bool(self.mode & (stat.S_IRGRP | stat.S_IROTH))

    @property
    def others_write(self) -> bool:
        return bool(self.mode & (stat.S_IWGRP | stat.S_IWOTH))


def look_at(path: str, *, root: str = "/", mounts: str = "") -> Place:
    """A path of the machine whose root folder is ``root`` here.

    Args:
        mounts: The text of a mountinfo file of that machine, for the file system.
    """
    there = followed(root, path)
    real, mount = _at(root, there), mount_of(mounts, str(there))
    by_link = there != PurePosixPath(os.path.normpath(path))
    try:
        seen = real.stat()
    except FileNotFoundError:
        return Place(path, "missing", by_link=by_link, mount=mount)
    except OSError:
        return Place(path, "hidden", by_link=by_link, mount=mount)
    weak = weak_spots(root, there, seen.st_uid)
    return Place(path, _kind(seen.st_mode), seen.st_mode, seen.st_uid, by_link, weak, mount)


def _kind(mode: int) -> Literal["folder", "file", "socket", "other"]:
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode):
        return "file"
    return "socket" if stat.S_ISSOCK(mode) else "other"


def weak_spots(root: str, path: PurePosixPath, owner: int) -> tuple[str, ...]:
    """Folders above a place in which somebody else could put another one into its place."""
    found = []
    for folder in path.parents:
        try:
            seen = _at(root, folder).stat()
        except OSError:
            continue
        if seen.st_uid not in (0, owner):
            found.append(f"{folder} belongs to user {seen.st_uid}")
        elif seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not seen.st_mode & stat.S_ISVTX:
            found.append(f"{folder} can be changed by others ({stat.S_IMODE(seen.st_mode):04o})")
    return tuple(found)


def below(root: str, path: str) -> Path:
    """Where a path of the machine is found whose root folder is ``root`` here."""
    return _at(root, followed(root, path))


def _at(root: str, path: PurePosixPath) -> Path:
    return Path(root, *path.parts[1:])


def followed(root: str, path: str) -> PurePosixPath:
    """A path without symbolic links on the way, on the machine whose root folder is ``root``.

    Links lead where they lead on that machine: ``/var/run`` to its own ``/run``, never to ours.
    """
    todo = list(reversed(PurePosixPath(path).parts[1:]))
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            done = done[:-1]
            continue
        try:
            target = PurePosixPath(Path(root, *done, part).readlink())
        except OSError:
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            return PurePosixPath("/", *done, part, *reversed(todo))
        if target.is_absolute():
            done = []
        todo += reversed([piece for piece in target.parts if piece != "/"])
    return PurePosixPath("/", *done)


def mount_of(mountinfo: str, path: str) -> Mount | None:
    """The mount that a path lies on, of those in a ``/proc/PID/mountinfo``; the last one wins."""
    wanted, best = PurePosixPath(os.path.normpath(path)), None
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        first, rest = left.split(" "), right.split(" ")
        if not separator or len(first) < 6 or len(rest) < 3:
            continue
        point = _plain(first[4])
        if not wanted.is_relative_to(point):
            continue
        if best is None or len(point) >= len(best.point):
            options = frozenset([*first[5].split(","), *rest[2].split(",")])
            best = Mount(point, rest[0], options)
    return best


def _plain(text: str) -> str:
    """The kernel writes white space in mountinfo as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
