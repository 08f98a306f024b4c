"""A Docker engine of a test's own, in a network of its own, which may be ended and started again.

Everything that the thread starts within ``own_engine`` is in that network, so a platform under
test reaches its containers by their addresses there.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
from docker.errors import DockerException
from requests import RequestException

_CLONE_NEWNET = 0x40000000
_PATIENCE_S = 60.0


class OwnEngine:
    """One ``dockerd`` with its own containerd; live-restore is off, as it is beforehand."""

    def __init__(self) -> None:
        # Not the test's folder: containerd's sockets have long names, and a path of one is short.
        self._folder = folder = Path(tempfile.mkdtemp(prefix="gpuslice-engine-"))
        self.socket = str(folder / "d.sock")
        self._clients: list[docker.DockerClient] = []
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "daemon.json").write_text(json.dumps({"features": {"cdi": True}}))

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "dockerd", "--host", f"unix://{self.socket}", "--config-file", "daemon.json",
                    "--data-root", str(self._folder / "data"),
                    "--exec-root", str(self._folder / "x"),
                    "--pidfile", str(self._folder / "pid"), "--bridge", "none",
                ],
                stdout=log, stderr=subprocess.STDOUT, cwd=self._folder,
            )  # fmt: skip
        client, deadline = self.client(), time.monotonic() + _PATIENCE_S
        while True:
            try:
                client.ping()
            except (DockerException, RequestException):
                assert self._process.poll() is None, self._log()
                assert time.monotonic() < deadline, self._log()
                time.sleep(0.1)
            else:
                return

    def end(self, how: str) -> None:
        """End it by this signal and wait until it is gone."""
        assert self._process is not None
        self._process.send_signal(signal.Signals[how])
        self._process.wait(_PATIENCE_S)
        # One that was killed has left these; a machine's own start script removes them.
        (self._folder / "pid").unlink(missing_ok=True)

    def client(self) -> docker.DockerClient:
        made = docker.DockerClient(base_url=f"unix://{self.socket}", version="1.44", timeout=60)
        self._clients.append(made)
        return made

    def close(self) -> None:
        """End it, with its containers, and remove its folder."""
        for client in self._clients:
            client.close()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(_PATIENCE_S)
        # It leaves its folder mounted on itself.
        subprocess.run(["umount", str(self._folder / "data")], check=False, capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]


@contextmanager
def own_engine() -> Iterator[OwnEngine]:
    """An engine that answers. Needs root."""
    with _own_network():
        engine = OwnEngine()
        try:
            engine.start()
            yield engine
        finally:
            engine.close()


@contextmanager
def _own_network() -> Iterator[None]:
    """Puts this thread, and what it starts, into a new network; afterwards it is back."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(answer: int) -> None:
        if answer != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        check(libc.unshare(_CLONE_NEWNET))
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        check(libc.setns(before, _CLONE_NEWNET))
        os.close(before)
