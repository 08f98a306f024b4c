"""A lock that the kernel takes from a process only by its end: it proves that a meter is gone.

A container has a process table of its own, so a service that is started again after a SIGKILL finds
nobody there under its forerunner's number, and that proves nothing. A lock on a folder that both
have (a volume) does: whoever gets it, on the same boot and the same folder, knows that no process
has it any more. One that is only stopped keeps it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path


class HostLock:
    """The lock of one folder, for all processes of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handle: int | None = None

    def take(self) -> str | None:
        """Take it, or keep it; its name on this machine, ten characters.

        None: another process has it, or the folder has no locks.
        """
        if self._handle is None:
            try:
                handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                return None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)
                return None
            self._handle = handle
        # No other folder has both numbers while this one is open, and it is while it is locked.
        info = os.fstat(self._handle)
        where = f"{info.st_dev}:{info.st_ino}".encode()
        return hashlib.blake2s(where, digest_size=5).hexdigest()

    def release(self) -> None:
        """Let others have it; nothing if it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
