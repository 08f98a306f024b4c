"""The folder of all leases of a node: which there are, and which have ended for good."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from gpuslice import wire
from gpuslice.node.leasedir import (
    FENCED,
    LEASE_ID,
    PREPARED,
    LeaseDir,
    TornFile,
    sync_dir,
    write_durably,
)

#: How long the end of a lease is remembered, so that a delayed ``prepare`` cannot revive it.
_REMEMBER_S = 7 * 86_400
#: What an engine writes before it can have a server of a lease: ``local``, ``docker``.
_ASKED = ("spec.json", "life.json")


class StateInUseError(Exception):
    """Another node works on the same folder."""


class Store:
    """``STATE/leases/<id>/`` while anything of a lease is here, ``STATE/ended/<id>`` after it.

    Changes of one lease must come one at a time (the caller holds a lock per lease); readers need
    no lock, because a folder comes and goes by one rename.
    """

    def __init__(self, state: Path) -> None:
        self.leases = state / "leases"
        self.ended = state / "ended"
        self._state = state
        self._lock: int | None = None

    def open(self) -> None:
        """Takes the folder for this process and finishes what a killed node has left half-done.

        Leases are left as they are: they are the service's to release.
        """
        for folder in (self._state, self.leases, self.ended):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(
            self._state / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateInUseError(f"another node is using {self._state}") from None
        for half_done in self.leases.glob(".*"):
            shutil.rmtree(half_done, ignore_errors=True)
        for lease in self.all():
            if lease.marker() == FENCED and not was_asked(lease):
                self.bury(lease.lease_id, wire.ReleaseResult(clean=True))
        self.forget_old()

    def all(self) -> Iterator[LeaseDir]:
        """Every lease that has anything here, in a stable order."""
        for name in sorted(os.listdir(self.leases)):  # noqa: PTH208
            if LEASE_ID.fullmatch(name):
                yield LeaseDir(self.leases / name)

    def get(self, lease_id: str) -> LeaseDir | None:
        path = self.leases / lease_id
        return LeaseDir(path) if path.exists() else None

    def add(self, piece: wire.PrepareSlice) -> None:
        """Makes the lease's folder, startable once, in one step."""
        draft = LeaseDir(self.leases / f".new-{piece.lease_id}-{secrets.token_hex(4)}")
        draft.path.mkdir(mode=0o700)
        draft.write_json("slice.json", piece.model_dump(mode="json"))
        write_durably(draft.path / PREPARED, b"")
        sync_dir(draft.path)
        draft.path.rename(self.leases / piece.lease_id)
        sync_dir(self.leases)

    def bury(self, lease_id: str, result: wire.ReleaseResult) -> None:
        """The lease's end: its folder goes, and it can never be prepared again."""
        write_durably(self.ended / lease_id, result.model_dump_json().encode())
        sync_dir(self.ended)
        self.discard(lease_id)

    def discard(self, lease_id: str) -> None:
        """Takes back :meth:`add`: as if the lease had never been prepared here."""
        gone = self.leases / f".gone-{lease_id}-{secrets.token_hex(4)}"
        try:
            (self.leases / lease_id).rename(gone)
        except FileNotFoundError:
            return
        sync_dir(self.leases)
        shutil.rmtree(gone, ignore_errors=True)

    def result(self, lease_id: str) -> wire.ReleaseResult | None:
        """How the lease ended; None while it has not."""
        try:
            text = (self.ended / lease_id).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return wire.ReleaseResult.model_validate_json(text)
        except ValueError:
            return wire.ReleaseResult(clean=False, reason="how the device was left is unreadable")

    def forget_old(self) -> None:
        """Lets go of ends so old that no request about them can still be under way."""
        for path in self.ended.iterdir():
            if time.time() - path.stat().st_mtime > _REMEMBER_S:
                path.unlink(missing_ok=True)


def was_asked(lease: LeaseDir) -> bool:
    """A server was asked for, so that one may be in the engine."""
    return any((lease.path / name).exists() for name in _ASKED)


def slice_of(lease: LeaseDir) -> wire.PrepareSlice | None:
    """What was prepared; None where the folder does not say."""
    try:
        return wire.PrepareSlice.model_validate(lease.read_json("slice.json"))
    except (TornFile, ValueError):
        return None
