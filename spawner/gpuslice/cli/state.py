"""Where things are in the data folder, and who is using it."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuslice.cli.trouble import Trouble


@dataclass(frozen=True)
class State:
    """Paths in the data folder of one platform."""

    root: Path

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def node(self) -> Path:
        """The node's own folder."""
        return self.root / "node"

    @property
    def homes(self) -> Path:
        """Home folders of the local engine's users."""
        return self.root / "homes"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def run(self) -> Path:
        """What is only true while the platform runs."""
        return self.root / "run"

    @property
    def nvmlsim(self) -> Path:
        return self.root / "nvmlsim"

    @property
    def supervisor_conf(self) -> Path:
        return self.root / "supervisord.conf"

    @property
    def parts(self) -> Path:
        """What ``gpuslice.cli.part`` starts, by name."""
        return self.run / "parts.json"

    def pid_file(self, part: str) -> Path:
        return self.run / f"{part}.pid"

    def prepare(self) -> None:
        """Make the folders, for their owner only.

        Raises:
            Trouble: they cannot be made or written.
        """
        try:
            for folder in (self.root, self.secrets, self.node, self.homes, self.log, self.run):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Trouble(
                f"Cannot use {self.root} as the data folder: {error.strerror or error}; "
                "choose another with --state."
            ) from None
        if not os.access(self.root, os.W_OK):
            raise Trouble(f"Cannot write to {self.root}; choose another folder with --state.")


class Running:
    """The claim of one ``gpuslice up`` on its data folder; the kernel ends it with the process."""

    def __init__(self, state: State) -> None:
        self._path = state.run / "up.lock"
        self._descriptor = -1

    def claim(self, **facts: Any) -> None:
        """Take the folder and say who has it.

        Raises:
            Trouble: another one runs here; the text has its address.
        """
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Trouble(self._taken()) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps({"pid": os.getpid(), **facts}).encode(), 0)

    def _taken(self) -> str:
        try:
            facts = json.loads(os.pread(self._descriptor, 4096, 0))
            who = f"at {facts['address']} (process {facts['pid']})"
        except (ValueError, KeyError, TypeError):
            who = "and is just starting"
        return f"gpuslice already runs with this data folder, {who}."
