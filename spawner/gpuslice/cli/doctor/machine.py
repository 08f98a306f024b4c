"""What several groups of checks look at, looked at once: engine, node, nvidia-smi, host files."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Literal

from gpuslice.cli.doctor.places import Place, below, look_at
from gpuslice.cli.state import State
from gpuslice.node.docker.api import DockerApi, Json
from gpuslice.node.docker.hostroot import reachable_root
from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable
from gpuslice.settings import Settings
from gpuslice.wire import Inventory

EngineKind = Literal["local", "docker"]

#: How long a program that is asked for a version or a list may take.
PROGRAM_LIMIT_S = 20.0
ENGINE_LIMIT_S = 5.0
NODE_LIMIT_S = 8.0
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program said: its exit code and texts, or why it could not be asked."""

    code: int | None
    out: str = ""
    err: str = ""

    @property
    def worked(self) -> bool:
        return self.code == 0


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """What the Docker engine said of itself; ``problem`` is why it said nothing."""

    version: Json
    info: Json
    problem: str | None = None


class Machine:
    """One machine with its settings; every look is made once and its answer kept.

    Paths of the host are seen from ``docker.host_root``, so that the doctor may run in the
    node's container.
    """

    def __init__(
        self, settings: Settings, state: State, kind: EngineKind, node: Path | None = None
    ) -> None:
        self.settings = settings
        self.state = state
        self.kind = kind
        #: The node's folder, or one of its sockets.
        self.node = node or state.node
        #: What ``--gpu`` has found out: whether a container without a device sees one.
        self.void_sees_gpus: bool | None = None
        self.docker = DockerApi(settings.docker.socket, timeout_s=ENGINE_LIMIT_S)

    # --- the host's files -------------------------------------------------------------------

    def host(self, path: str) -> Path:
        """Where a path of the host is found from here; with the local engine this is the host."""
        return below(self.root, path)

    @cached_property
    def root(self) -> str:
        """The host's root folder, as seen from here."""
        docker = self.settings.docker
        if self.kind == "local":
            return "/"
        try:
            return reachable_root(docker.host_root, docker.socket)
        except OSError:
            return docker.host_root  # what cannot be seen there is told as such

    def place(self, path: str) -> Place:
        """A path of the host, looked at."""
        return look_at(path, root=self.root, mounts=self.mounts)

    @cached_property
    def mounts(self) -> str:
        """The host's file systems, as its first process sees them."""
        return self.host_text("/proc/1/mountinfo") or ""

    def host_text(self, path: str) -> str | None:
        """A small file of the host; None when there is none, or it may not be read."""
        return text_of(self.host(path))

    # --- those who answer -------------------------------------------------------------------

    @cached_property
    def engine(self) -> EngineAnswer:
        """Asked without the version of its interface that the node wants: it may be too old."""
        socket = self.settings.docker.socket
        try:
            version = engine_object(socket, "/version", ENGINE_LIMIT_S)
            return EngineAnswer(version, engine_object(socket, "/info", ENGINE_LIMIT_S))
        except (OSError, HTTPException, ValueError) as error:
            said = str(error) or type(error).__name__
            return EngineAnswer({}, {}, f"the Docker engine does not answer ({said})")

    @cached_property
    def inventory(self) -> Inventory | str:
        """The node's devices, or why it does not say."""
        client = NodeClient(self.node, timeout_s=NODE_LIMIT_S)
        try:
            return asyncio.run(client.inventory())
        except (NodeUnavailable, NodeRefused) as problem:
            return problem.message

    @cached_property
    def nvidia_smi(self) -> Answer:
        """GPUs as the driver's own program lists them, one line each."""
        return self._ask_nvidia_smi(
            "--query-gpu=index,uuid,name,driver_version,mig.mode.current,mig.mode.pending",
            "--format=csv,noheader",
        )

    @cached_property
    def nvidia_smi_list(self) -> Answer:
        """GPUs with their MIG instances."""
        return self._ask_nvidia_smi("-L")

    def _ask_nvidia_smi(self, *words: str) -> Answer:
        # It comes with the driver, which a container of ours does not have: the host's is asked.
        there = self.root == "/" or shutil.which("nvidia-smi") is not None
        return run_program([*(() if there else ("chroot", self.root)), "nvidia-smi", *words])

    @cached_property
    def simulated(self) -> bool:
        return isinstance(self.inventory, Inventory) and self.inventory.simulated

    @cached_property
    def real_gpus(self) -> bool:
        """Whether there is anything of a real GPU here: by the node, the driver, or the kernel."""
        seen = self.inventory
        if isinstance(seen, Inventory) and not seen.simulated and seen.devices:
            return True
        return self.kernel_driver is not None or self.nvidia_smi.worked

    @cached_property
    def kernel_driver(self) -> str | None:
        """What the loaded kernel module says of itself; None without one."""
        return self.host_text("/proc/driver/nvidia/version")


def run_program(argv: Sequence[str], limit_s: float = PROGRAM_LIMIT_S) -> Answer:
    """Runs a program that only answers."""
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Answer(None, err=f"{argv[0]} did not answer in {limit_s:g} s")
    except OSError as error:
        return Answer(None, err=f"{argv[0]}: {error.strerror or error}")
    return Answer(done.returncode, done.stdout[:_MOST_BYTES], done.stderr[:_MOST_BYTES])


def text_of(path: Path) -> str | None:
    """A small file's text; None when it is not there or may not be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        return None


class _Unix(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, limit_s: float) -> None:
        super().__init__("docker", timeout=limit_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def engine_object(path: str, question: str, limit_s: float) -> Json:
    """What an engine of any version answers to ``GET question``, a JSON object.

    Raises:
        OSError, HTTPException, ValueError: it does not answer, or not with that.
    """
    with closing(_Unix(path, limit_s)) as connection:
        connection.request("GET", question)
        answer = connection.getresponse()
        text = answer.read(_MOST_BYTES)
    if answer.status != 200:
        raise ValueError(f"it answered {question} with status {answer.status}")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"its answer to {question} is not understood")
    return found
