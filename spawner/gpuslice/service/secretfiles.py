"""Private files: one secret each, refused when somebody else could read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

#: Shorter than this is no secret; ``openssl rand -hex 32`` gives 64 characters.
MIN_LENGTH = 32
_MAX_LENGTH = 4096


class SecretFileError(Exception):
    """A private file cannot be used; the text names the file and what to do."""


def read_secret(path: Path) -> str:
    """The secret in ``path``, without surrounding white space.

    Raises:
        SecretFileError: missing, no regular file, readable by others, not ours, too short.
    """
    try:
        # O_NONBLOCK: a fifo in its place must not hang the start. The checks are made on the
        # open file, so nobody can swap it in between.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise SecretFileError(
            f"{path}: {exc.strerror}; it must be a file with a secret in it, mode 0600 "
            "(gpuslice init makes those of the platform that are missing)"
        ) from None
    try:
        _check_private(path, os.fstat(handle))
        raw = os.read(handle, _MAX_LENGTH + 1)
    finally:
        os.close(handle)
    try:
        secret = raw.decode("ascii").strip()
    except UnicodeDecodeError:
        raise SecretFileError(f"{path}: holds something that is not ASCII text") from None
    if not MIN_LENGTH <= len(secret) <= _MAX_LENGTH or not secret.isprintable() or " " in secret:
        raise SecretFileError(
            f"{path}: must hold one word of {MIN_LENGTH} to {_MAX_LENGTH} characters"
        )
    return secret


def _check_private(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise SecretFileError(f"{path}: is not a regular file")
    if info.st_uid not in (os.geteuid(), 0):
        raise SecretFileError(
            f"{path}: belongs to another user (uid {info.st_uid}); chown it to this one"
        )
    if info.st_mode & 0o077:
        raise SecretFileError(
            f"{path}: others can read or write it (mode {stat.S_IMODE(info.st_mode):04o}); "
            f"run: chmod 600 '{path}'"
        )
