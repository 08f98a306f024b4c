"""Launches the supervisor of one server so that it outlives the node."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gpuslice.node
from gpuslice.node.leasedir import LeaseDir, tail
from gpuslice.node.procs import LEASE_VARIABLE

_LIMIT_S = 20.0
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ")


class LaunchError(Exception):
    """The supervisor did not come up; the text says what it said."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """What every supervisor is told: whom to ask, with what, and for how long."""

    service_url: str
    token_file: Path
    patience_s: float = 10.0

    def launch(self, lease: LeaseDir) -> None:
        """Returns when the supervisor has written its record; blocks for a tenth of a second.

        The process we start here detaches another one and ends, so that there is nothing to reap
        and nothing that ends with us.
        """
        log = lease.path / "supervisor.log"
        command = [
            sys.executable, "-P", "-m", "gpuslice.node.supervisor", str(lease.path),
            "--service-url", self.service_url,
            "--token-file", str(self.token_file),
            "--patience", str(self.patience_s),
        ]  # fmt: skip
        try:
            with log.open("ab") as output:
                ended = subprocess.run(
                    command,
                    check=False,
                    cwd="/",
                    env=_environment(lease.lease_id),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    timeout=_LIMIT_S,
                )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise LaunchError(f"the supervisor could not be launched: {problem}") from problem
        if ended.returncode != 0:
            last = tail(log, 1) or f"exit code {ended.returncode}"
            raise LaunchError(f"the supervisor did not come up: {last[:300]}")


def _environment(lease_id: str) -> dict[str, str]:
    """The supervisor's own: nothing of the node's that could leak, and the lease's mark."""
    package_root = Path(gpuslice.node.__file__).parents[2]
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PYTHONPATH": str(package_root), LEASE_VARIABLE: lease_id}
