"""Becomes one part of the platform: ``python -m gpuslice.cli.part STATE NAME``.

It reads what to start from ``run/parts.json``, so that no configuration language has to quote a
path. It makes the kernel end the part when whoever started it dies: a killed supervisor then
leaves no parts behind that hold ports. Notebook servers are not its children and go on.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main(root: str, name: str) -> None:
    """Replace this process by the part."""
    parent = os.getppid()
    _end_with_parent()
    if os.getppid() != parent:
        sys.exit(1)  # it died before the kernel was told to tell us
    state = Path(root)
    spec = json.loads((state / "run" / "parts.json").read_text(encoding="utf-8"))[name]
    env = {**os.environ, **spec["env"]}
    for variable, file in spec["secret_env"].items():
        env[variable] = (state / "secrets" / file).read_text(encoding="ascii").strip()
    _write_pid(state / "run" / f"{name}.pid")
    os.chdir(state)
    # Ledger, logs and sockets are nobody else's, even in a data folder that others can enter.
    os.umask(0o077)
    argv = spec["argv"]
    os.execvpe(argv[0], argv, env)


def _write_pid(path: Path) -> None:
    # In one step: whoever reads it finds a number. It stays ours, since exec keeps the process.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(f"{os.getpid()}\n", encoding="ascii")
    temporary.replace(path)


def _end_with_parent() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
