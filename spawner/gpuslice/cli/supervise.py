"""``supervisord`` as a child of ours, and what it says about the parts."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gpuslice.cli.parts import SUPERVISOR
from gpuslice.cli.state import State

#: A unix socket's address is at most 107 bytes, and supervisor first binds "<name>.<pid>".
_ADDRESS_LIMIT = 107 - len(".4194304")
_END_S = 30.0
#: What supervisor calls a part that it has given up on.
GAVE_UP = ("FATAL", "UNKNOWN")


@dataclass(frozen=True)
class PartState:
    """One part: supervisor's word for its state, and its process id (0: none)."""

    word: str
    pid: int


class Supervisor:
    """Starts the parts, restarts them when they die, and ends them with us."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._short_folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = state.run / "supervisor.sock"
        if len(os.fsencode(self.socket)) > _ADDRESS_LIMIT:
            # Private: mkdtemp makes it for us alone.
            self._short_folder = Path(tempfile.mkdtemp(prefix="gpuslice-"))
            self.socket = self._short_folder / "supervisor.sock"

    def start(self) -> None:
        """Start it in a session of its own: a terminal's Ctrl-C is for ``gpuslice up`` alone."""
        with (self._state.log / "supervisord.out").open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gpuslice.cli.part", str(self._state.root), SUPERVISOR],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def states(self) -> dict[str, PartState]:
        """The state of every part; empty while the supervisor does not answer."""
        transport = _transport(self.socket)
        server = xmlrpc.client.ServerProxy("http://localhost", transport=transport)
        try:
            infos = cast(list[dict[str, Any]], server.supervisor.getAllProcessInfo())
        except (OSError, xmlrpc.client.Error, http.client.HTTPException):
            return {}
        finally:
            transport.close()
        return {
            str(info["name"]): PartState(str(info["statename"]), int(info["pid"])) for info in infos
        }

    def stop(self) -> None:
        """End all parts, and wait for it. Whatever does not end in time is killed."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                # The kernel then ends the parts: they asked for it at their start.
                self._process.kill()
                self._process.wait()
        # Its absence tells the next start that this one ended in order.
        self._state.pid_file(SUPERVISOR).unlink(missing_ok=True)
        if self._short_folder is not None:
            shutil.rmtree(self._short_folder, ignore_errors=True)


def end_leftovers(state: State, patience_s: float) -> None:
    """Wait for a supervisor whose ``gpuslice up`` was killed; it is ending its parts right now."""
    pid = _running_supervisor(state)
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while _running_supervisor(state) == pid:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline += patience_s
        time.sleep(0.1)


def _running_supervisor(state: State) -> int | None:
    """Its process id if it is really ours: a process id may have been given to somebody else."""
    try:
        pid = int(state.pid_file(SUPERVISOR).read_text(encoding="ascii"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(state.supervisor_conf) in command else None


def log_tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; none if it cannot be read."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 64_000))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[-lines:]


def _transport(socket: Path) -> Any:
    from supervisor.xmlrpc import SupervisorTransport

    return SupervisorTransport(None, None, serverurl=f"unix://{socket}")
