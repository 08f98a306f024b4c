"""One folder per lease on the node's disk: what was asked, what happened, and the one-start marker.

``slice.json``  the prepared slice (a ``wire.PrepareSlice``)
``spec.json``   what to start (a ``wire.StartServer``, its environment as the node decided it)
``stop.json``   how patient a stop is
``record.json`` what happened to the server, written durably by its supervisor
``server.log``  the server's output

and exactly one of the empty marker files ``prepared → claimed → started`` or ``fenced``. A marker
moves by ``rename``, which exactly one of two racing processes wins: the supervisor needs
``prepared → claimed`` and ``claimed → started`` before it starts anything, the fence takes either
of the two away. Whoever wins, wins for ever.

Standard library only: the supervisor imports this, and it has to start fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

LEASE_ID = re.compile(r"[0-9a-f]{32}")

PREPARED, CLAIMED, STARTED, FENCED = MARKERS = ("prepared", "claimed", "started", "fenced")


class TornFile(Exception):
    """A file of a lease is there, but its content is not what was written."""


@dataclass(frozen=True, slots=True)
class Record:
    """What happened to one server so far. The node trusts it only as far as ``/proc`` agrees.

    ``created`` the supervisor lives, nothing is started; ``refused`` it never will be;
    ``running`` written *before* the child exists; ``exited`` the child has ended, as stated;
    ``lost`` the supervisor died first, the node has killed what was left, the end is unknown.
    """

    state: str
    boot_id: str
    supervisor_pid: int
    supervisor_ticks: int
    started_us: int | None = None
    started_boottime_us: int | None = None
    child_pid: int | None = None
    child_ticks: int | None = None
    finished_us: int | None = None
    exit_code: int | None = None
    message: str | None = None


#: What each state must carry besides the supervisor.
_NEEDS: dict[str, tuple[str, ...]] = {
    "created": (),
    "refused": ("message",),
    "running": ("started_us", "started_boottime_us"),
    "exited": ("started_us", "finished_us"),
    "lost": ("message",),
}
_TEXTS = {"state", "boot_id", "message"}
_REQUIRED = ("state", "boot_id", "supervisor_pid", "supervisor_ticks")


def parse_record(data: dict[str, Any]) -> Record:
    """Raises :class:`TornFile` unless ``data`` is a record as :class:`Record` describes."""
    names = {f.name for f in fields(Record)}
    if set(data) - names:
        raise TornFile("the record has unknown parts")
    for name, value in data.items():
        if value is not None and type(value) is not (str if name in _TEXTS else int):
            raise TornFile(f"the record's {name} is of the wrong kind")
    state = data.get("state")
    if state not in _NEEDS:
        raise TornFile("the record's state is unknown")
    if any(data.get(name) is None for name in (*_REQUIRED, *_NEEDS[state])):
        raise TornFile("the record has missing parts")
    return Record(**data)


class LeaseDir:
    """The folder of one lease. Every write is durable when the method returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lease_id = path.name

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    # --- the marker -------------------------------------------------------------------------

    def marker(self) -> str | None:
        """Where this lease stands between ``prepared`` and ``started`` or ``fenced``."""
        # In the order in which it moves, so that one that moves while we look is not missed.
        for name in MARKERS:
            if (self.path / name).exists():
                return name
        return None

    def claim(self) -> bool:
        """The supervisor's first step; False: it was fenced, or another one has claimed it."""
        return self._move(PREPARED, CLAIMED)

    def start(self) -> bool:
        """The supervisor's last step before the child exists; False: it was fenced meanwhile."""
        return self._move(CLAIMED, STARTED)

    def fence(self) -> bool:
        """From now on no start can succeed. False: it has started already, and goes on.

        The markers move one way only, so trying them in that order misses none.
        """
        if self._move(PREPARED, FENCED) or self._move(CLAIMED, FENCED):
            return True
        return not (self.path / STARTED).exists()

    def _move(self, old: str, new: str) -> bool:
        try:
            (self.path / old).rename(self.path / new)
        except FileNotFoundError:
            return False
        sync_dir(self.path)
        return True

    # --- files ------------------------------------------------------------------------------

    def read_record(self) -> Record | None:
        """None before there is one. Raises :class:`TornFile`."""
        data = self.read_json("record.json")
        return None if data is None else parse_record(data)

    def write_record(self, record: Record) -> None:
        self.write_json("record.json", asdict(record))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in the file, None when there is no such file. Raises :class:`TornFile`."""
        try:
            data = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except (IsADirectoryError, ValueError) as error:
            raise TornFile(f"{name} is unreadable") from error
        if not isinstance(data, dict):
            raise TornFile(f"{name} is unreadable")
        return data

    def write_json(self, name: str, data: object, *, exclusive: bool = False) -> None:
        """Replaces the file atomically. With ``exclusive``, FileExistsError when it is there."""
        body = json.dumps(data).encode()
        temporary = self.path / f"{name}.{os.getpid()}.tmp"
        try:
            write_durably(temporary, body)
            if exclusive:
                (self.path / name).hardlink_to(temporary)
            else:
                temporary.replace(self.path / name)
        finally:
            temporary.unlink(missing_ok=True)
        sync_dir(self.path)


def write_durably(path: Path, body: bytes) -> None:
    """Writes a private file and waits until it is on the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(handle)


def sync_dir(path: Path) -> None:
    """Waits until what was created, renamed or removed in this folder is on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tail(path: Path, lines: int, limit: int = 64 * 1024) -> str:
    """The last lines of a log, at most ``limit`` bytes; what was cut off it is looked at too."""
    text = _last_bytes(path, limit)
    if len(text) < limit:
        text = _last_bytes(cut_off(path), limit - len(text)) + text
    return "\n".join(text.decode(errors="replace").splitlines()[-lines:])


def cut_off(log: Path) -> Path:
    """Where the end of a log is kept when the log is emptied because it was too long."""
    return log.with_name(f"{log.name}.1")


def _last_bytes(path: Path, limit: int) -> bytes:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limit))
        return file.read(limit)
    return b""
