"""The starter notebooks for the launcher: which there are, and a copy of one among one's files.

``GET starters`` lists them, ``POST starters`` with ``{"name": ...}`` answers where the copy is. A
file that is there is never changed. The package with the notebooks is optional; without it the
list is empty and says why.
"""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path
from typing import Any

from jupyter_server.services.contents.filemanager import FileContentsManager

from gpuslice.errors import Refused
from jupyterlab_gpuslice.routes import Handler, login, refusals

_NONE_HERE = "No starter notebooks are installed here (the package gpuslice-starters)."
_LONGEST = 500  # bytes of a request
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM)


def starters_answer() -> dict[str, Any]:
    """All starters in the order of the cards; without any, ``reason`` says why."""
    try:
        from gpuslice_starters import starters
    except ImportError:
        return {"starters": [], "reason": _NONE_HERE}
    found = [{"name": s.name, "title": s.title, "description": s.about} for s in starters()]
    return {"starters": found, "reason": None}


def copy_below(root: Path, start: str, name: str) -> str:
    """Copy a starter into the folder ``start`` of ``root``; the copy's path below ``root``."""
    try:
        from gpuslice_starters import NoFreeName, UnknownStarter, copy_for
    except ImportError:
        raise Refused("no-starters", _NONE_HERE, status=404) from None
    folder = root / start.strip("/")
    if not folder.resolve().is_relative_to(root.resolve()):
        raise Refused("outside", "The folder for new files is not among the files of this server.")
    try:
        return copy_for(folder, name).relative_to(root).as_posix()
    except UnknownStarter:
        raise Refused("unknown-starter", "There is no such starter notebook.", status=404) from None
    except NoFreeName:
        message = "There are too many copies of this notebook already: delete some of them."
        raise Refused("no-free-name", message) from None
    except OSError as error:
        raise not_copied(error) from error


def not_copied(error: OSError) -> Refused:
    """What went wrong with the person's folder, in a sentence."""
    if error.errno in _FULL:
        return Refused(
            "no-space", "The notebook could not be copied: there is no space left.", status=507
        )
    if error.errno in _LOCKED:
        message = "The notebook could not be copied: the folder for it cannot be written to."
        return Refused("read-only", message)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return Refused(
            "no-folder", "The notebook could not be copied: the folder for it is not there."
        )
    words = error.strerror or "the disk did not say why"
    return Refused("not-copied", f"The notebook could not be copied: {words}.", status=500)


class StartersHandler(Handler):
    """``GET starters`` and ``POST starters``. Both read files, so neither runs on the loop."""

    @login
    @refusals
    async def get(self) -> None:
        self.finish(json.dumps(await asyncio.to_thread(starters_answer)))

    @login
    @refusals
    async def post(self) -> None:
        name = _name(self.request.body)
        files = self.contents_manager
        if not isinstance(files, FileContentsManager):
            raise Refused("no-folder", "The files of this server are not in a folder.", status=501)
        # Where the person starts to browse: their home, also where the server shows all files.
        root, start = Path(files.root_dir), files.preferred_dir
        path = await asyncio.to_thread(copy_below, root, start, name)
        self.set_status(201)
        self.finish(json.dumps({"path": path}))


ROUTES: dict[str, type[Handler]] = {"starters": StartersHandler}


def _name(body: bytes) -> str:
    """The name in a request, which may be anybody's bytes."""
    try:
        said = json.loads(body) if len(body) <= _LONGEST else None
    except ValueError:
        said = None
    name = said.get("name") if isinstance(said, dict) else None
    if not isinstance(name, str):
        raise Refused("bad-request", "name: which starter notebook", status=400)
    return name
