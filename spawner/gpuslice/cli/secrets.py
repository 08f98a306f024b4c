"""The platform's secrets: one private file each, made once and then kept."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from gpuslice.cli.trouble import Trouble

#: Read aloud and typed, so without characters that are easily confused.
_READABLE = "abcdefghijkmnpqrstuvwxyz23456789"


def make_token() -> str:
    """A secret that no person has to read."""
    return secrets.token_hex(32)


def _password() -> str:
    return "-".join("".join(secrets.choice(_READABLE) for _ in range(4)) for _ in range(3))


#: Name of each file, and how its content is made.
SECRETS: Mapping[str, Callable[[], str]] = {
    # hub ↔ service
    "service_token": make_token,
    # spawner → service
    "broker_token": make_token,
    # node's supervisors → service
    "node_token": make_token,
    # administrators on this machine (gpuslice quota …) → service
    "operator_token": make_token,
    # signs the ledger's daily digests
    "ledger_signing_key": make_token,
    # hub → proxy
    "proxy_token": make_token,
    # cookies of service and hub
    "cookie_secret": make_token,
    "hub_cookie_secret": make_token,
    # the demo's logins
    "demo_password": _password,
    "admin_password": make_token,
}


def ensure_secrets(folder: Path, more: Mapping[str, Callable[[], str]] | None = None) -> None:
    """Make the secrets that are missing, and ``more``, readable by their owner only.

    Raises:
        Trouble: the folder cannot be written, or somebody else can read a secret.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, make in {**SECRETS, **(more or {})}.items():
            _ensure(folder / name, make)
    except OSError as error:
        raise Trouble(f"Cannot make the secrets in {folder}: {error.strerror or error}.") from None


def read_secret(folder: Path, name: str) -> str:
    """One secret's text."""
    return (folder / name).read_text(encoding="ascii").strip()


def _ensure(path: Path, make: Callable[[], str]) -> None:
    if path.exists():
        if path.stat().st_mode & 0o077:
            raise Trouble(f"Others can read the secret {path}; run: chmod 600 '{path}'")
        return
    # Complete before it has its name: a crash leaves no half a secret, and of two commands at
    # once one wins and the other uses what it made.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(make() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink()
