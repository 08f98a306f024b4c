"""The compose deployment as Docker's own command line sees it: what it is, how its parts are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gpuslice
from gpuslice.cli.trouble import Trouble

#: In the order in which they become ready.
PARTS = ("postgres", "proxy", "node", "service", "hub")
#: Makes the secrets and ends.
INIT = "init"
_PROJECT = "com.docker.compose.project"
_SERVICE = "com.docker.compose.service"
#: CDI came with 25, and with it the API that the node speaks.
_ENGINE_LEAST = 25
_CALL_S = 60.0


@dataclass(frozen=True)
class Deployment:
    """What compose.yaml and .env say together."""

    project: str
    images: tuple[str, ...]
    #: Where the proxy is published on this machine.
    host: str
    port: int
    config: Path
    hub_config: Path


@dataclass(frozen=True)
class PartState:
    """One container, as ``docker inspect`` states it."""

    container: str
    #: ``running``, ``restarting``, ``exited``, …
    status: str
    #: Empty while nothing is known of it.
    health: str
    restarts: int
    exit_code: int

    @property
    def ready(self) -> bool:
        return self.status == "running" and self.health == "healthy"

    @property
    def failed(self) -> bool:
        """Whether it has ended at least once, or does not answer, and is not well again."""
        ended = self.restarts > 0 or self.exit_code != 0 or self.health == "unhealthy"
        return ended and not self.ready


class Compose:
    """One deployment. Every call is one of ``docker``, in the deployment's folder as a person calls
    it there, and in a session of its own: a terminal's Ctrl-C is for us alone."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = {**os.environ, **environment}

    def deployment(self) -> Deployment:
        """What is to be run.

        Raises:
            Trouble: compose cannot read its files.
        """
        done = self._run(*self._compose("config", "--format", "json"))
        if done.returncode:
            raise Trouble(
                f"The compose files in {self._folder} cannot be used: {last_line(done.stderr)}"
            )
        return read_deployment(json.loads(done.stdout))

    def missing_images(self, images: Sequence[str]) -> list[str]:
        """Those that the engine does not have."""
        return [
            image
            for image in images
            if self._run("docker", "image", "inspect", "--format", "{{.Id}}", image).returncode
        ]

    def parts(self, project: str) -> dict[str, PartState]:
        """The containers that there are, by the name of their part."""
        label = f"label={_PROJECT}={project}"
        listed = self._run("docker", "ps", "--all", "--quiet", "--filter", label)
        ids = listed.stdout.split()
        if not ids:
            return {}
        # One that goes away in between is left out, and the rest is told all the same.
        inspected = self._run("docker", "inspect", *ids)
        try:
            found = json.loads(inspected.stdout or "[]")
        except ValueError:
            return {}
        return dict(read_part(container) for container in found)

    def answers(self) -> bool:
        """Whether the engine does."""
        return self._run("docker", "info", "--format", "{{.ServerVersion}}").returncode == 0

    def start(self, output: IO[str]) -> subprocess.Popen[str]:
        """``docker compose up -d``: it ends when what must be ready for the hub is."""
        return self._begin(self._compose("up", "--detach"), output)

    def down(self) -> bool:
        """End the parts and take their containers and networks away; volumes stay."""
        return self._run(*self._compose("down"), limit_s=300).returncode == 0

    def log(self, container: str, lines: int) -> list[str]:
        """The last lines that a container wrote, both streams."""
        done = self._run("docker", "logs", "--tail", str(lines), container, both=True)
        return done.stdout.splitlines()[-lines:]

    def ask(self, container: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container."""
        return self._run("docker", "exec", container, *command)

    def begin(self, container: str, *command: str) -> subprocess.Popen[str]:
        """Start a command in a container; read what it prints."""
        return self._begin(["docker", "exec", container, *command], subprocess.PIPE)

    def _compose(self, *words: str) -> list[str]:
        return ["docker", "compose", "--progress", "plain", *words]

    def _run(
        self, *command: str, limit_s: float = _CALL_S, both: bool = False
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if both else subprocess.PIPE,
                cwd=self._folder,
                env=self._environment,
                text=True,
                errors="replace",
                timeout=limit_s,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise Trouble(
                f"The Docker engine did not answer in {limit_s:g} s: {' '.join(command[:3])}"
            ) from None

    def _begin(self, command: list[str], output: IO[str] | int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            env=self._environment,
            text=True,
            errors="replace",
            start_new_session=True,
        )


def folder() -> Path:
    """Where compose.yaml is: in a wheel beside this package, in a checkout on top.

    Raises:
        Trouble: it is in neither.
    """
    package = Path(str(gpuslice.__file__)).resolve().parent
    for base in (package, package.parents[1]):
        found = base / "hub_config" / "docker"
        if (found / "compose.yaml").exists():
            return found
    raise Trouble("The deployment's compose.yaml is missing; run this in a checkout.")


def check_engine() -> None:
    """Make sure that there is an engine that can run the deployment.

    Raises:
        Trouble: there is none, or it lacks something; the text says what to do.
    """
    if shutil.which("docker") is None:
        raise Trouble(
            "Docker is not installed on this machine; install the engine, its command line and "
            "the compose plugin (on Debian: apt-get install docker.io docker-cli docker-compose)."
        )
    info = _docker("info", "--format", "{{json .}}")
    told = json.loads(info.stdout) if info.returncode == 0 else {}
    problem = (
        last_line(info.stderr) if info.returncode else "; ".join(told.get("ServerErrors") or ())
    )
    if problem:
        raise Trouble(f"The Docker engine does not answer: {problem}")
    for sentence in engine_problems(told):
        raise Trouble(sentence)
    if _docker("compose", "version").returncode:
        raise Trouble(
            "Docker's compose plugin is not installed (on Debian: apt-get install docker-compose)."
        )


def engine_problems(info: Mapping[str, Any]) -> list[str]:
    """What an engine lacks, from its own ``info``; one sentence each."""
    problems = []
    version = str(info.get("ServerVersion", ""))
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < _ENGINE_LEAST:
        problems.append(
            f"The Docker engine is {version or 'of unknown version'}, and CDI devices need "
            f"{_ENGINE_LEAST} or newer; install a newer one."
        )
    elif not info.get("CDISpecDirs"):
        problems.append(
            "The Docker engine's CDI devices are off, and every slice is one: put "
            '{"features": {"cdi": true}} into /etc/docker/daemon.json and restart the engine.'
        )
    if info.get("OSType", "linux") != "linux":
        problems.append("The Docker engine runs Windows containers; gpuslice needs Linux ones.")
    return problems


def read_deployment(config: Mapping[str, Any]) -> Deployment:
    """From ``docker compose config --format json``."""
    services = config["services"]
    published = services["proxy"]["ports"][0]
    binds = {
        volume["target"]: Path(volume["source"])
        for volume in services["hub"]["volumes"]
        if volume["type"] == "bind"
    }
    return Deployment(
        project=config["name"],
        images=tuple(sorted({service["image"] for service in services.values()})),
        host=published.get("host_ip") or "0.0.0.0",  # what compose binds
        port=int(published["published"]),
        config=binds["/etc/gpuslice/gpuslice.toml"],
        hub_config=binds["/etc/gpuslice/jupyterhub_config.py"],
    )


def read_part(inspected: Mapping[str, Any]) -> tuple[str, PartState]:
    """The part's name and state, from ``docker inspect``."""
    state = inspected["State"]
    name = inspected["Config"]["Labels"].get(_SERVICE, "")
    return name, PartState(
        container=inspected["Name"].lstrip("/"),
        status=state["Status"],
        health=(state.get("Health") or {}).get("Status", ""),
        restarts=int(inspected.get("RestartCount", 0)),
        exit_code=int(state["ExitCode"]),
    )


def last_line(text: str) -> str:
    """The last line with anything in it; where commands put what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _docker(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["docker", *words], capture_output=True, text=True, timeout=_CALL_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Trouble(f"The Docker engine did not answer in {_CALL_S:g} s.") from None
