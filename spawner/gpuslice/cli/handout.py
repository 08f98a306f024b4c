"""What each container of the compose deployment is handed of the secrets, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gpuslice.cli.secrets import ensure_secrets, make_token
from gpuslice.cli.trouble import Trouble

#: The secrets of each part. Nothing that a part does not need: a hub that is taken over must not
#: find the node's token, nor a proxy the ledger's password.
HANDED_OUT: Mapping[str, tuple[str, ...]] = {
    "hub": (
        "service_token",
        "broker_token",
        "proxy_token",
        "hub_cookie_secret",
        "demo_password",
        "admin_password",
    ),
    "proxy": ("proxy_token",),
    "service": (
        "service_token",
        "broker_token",
        "node_token",
        "operator_token",
        "ledger_signing_key",
        "cookie_secret",
        "database_password",
    ),
    "node": ("node_token",),
    "postgres": ("database_password",),
}


def hand_out(secrets: Path, parts: Path, owners: Mapping[str, tuple[int, int]]) -> None:
    """Make the secrets that are missing in ``secrets``, and copy each part's into ``parts/PART``.

    Args:
        secrets: The folder with all of them.
        parts: A folder with one folder per part, whose owner it becomes.
        owners: User and group id of each part.

    Raises:
        Trouble: a folder cannot be written.
    """
    ensure_secrets(secrets, {"database_password": make_token})
    try:
        for part, names in HANDED_OUT.items():
            folder = parts / part
            folder.mkdir(mode=0o700, exist_ok=True)
            for name in names:
                _copy(secrets / name, folder / name, owners[part])
            # Last: from here on only the part itself, and root, gets in.
            _give(folder, 0o700, owners[part])
    except OSError as error:
        raise Trouble(f"Cannot hand out the secrets to {parts}: {error}.") from None


def _copy(source: Path, target: Path, owner: tuple[int, int]) -> None:
    """In one step, so that a part which starts meanwhile reads the old text or the new one."""
    temporary = target.with_name(f".{target.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(source.read_bytes())
        stream.flush()
        os.fsync(stream.fileno())
    _give(temporary, 0o600, owner)
    temporary.replace(target)


def _give(path: Path, mode: int, owner: tuple[int, int]) -> None:
    path.chmod(mode)
    os.chown(path, *owner)
