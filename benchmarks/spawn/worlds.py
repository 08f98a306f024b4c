"""Two platforms on one engine: gpuslice's, and a JupyterHub with DockerSpawner as it comes."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import APIError, NotFound
from platform_world import free_ports

from dockerworld import new_node_id, own_pool, sweep
from gpuslice.cli import parts, ports
from gpuslice.cli.proxy import proxy_command
from gpuslice.cli.secrets import ensure_secrets
from gpuslice.cli.state import State
from gpuslice.containers import LABEL_HOME, LABEL_NODE
from gpuslice.settings import load_settings

HERE = Path(__file__).parent
PATIENCE_S = 120.0
#: Longer than any start or stop that is waited for.
_CALL_S = 300.0

SETTINGS = """\
[service]
port = {service}
[hub]
api_url = "http://127.0.0.1:{hub}/hub/api"
[node]
id = "{node_id}"
[limits]
leases_per_user = 1
[timing]
start_timeout_s = 60
[docker]
host_dir = {host}
network_pool = "{pool}"
{images}
[[slice]]
name = "cpu"
kind = "cpu"
ram = "64 MiB"
price = "0"
[[slice]]
name = "whole"
kind = "exclusive"
ram = "64 MiB"
price = "1"
"""


def until(what: str, look: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Returns when ``look`` is true.

    Raises:
        TimeoutError: it was not for so long.
    """
    deadline = time.monotonic() + patience_s
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience_s:g} s: {what}")
        time.sleep(0.05)


class World:
    """One hub behind its proxy, asked over REST."""

    name: str

    def __init__(self, folder: Path, client: docker.DockerClient, images: Sequence[str]) -> None:
        folder.mkdir()
        self.folder = folder
        self.client = client
        self.images = list(images)
        self.port, self.proxy_api, self.hub_port = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port}"
        self._token = secrets.token_hex(32)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    # --- its processes ----------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        return {
            "BENCH_URL": self.url,
            "BENCH_HUB_PORT": str(self.hub_port),
            "BENCH_PROXY_API": f"http://127.0.0.1:{self.proxy_api}",
            "BENCH_TOKEN": self._token,
        }

    def run(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                argv, cwd=self.folder, env={**os.environ, **env}, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def start(self, first: str) -> None:
        """Returns when a server of the user ``first`` has started, and ended."""
        raise NotImplementedError

    def wait_until_it_answers(self) -> None:
        def answers() -> bool:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} of {self.name} ended:\n{self.log(name)}")
            with suppress(requests.RequestException):
                return requests.get(f"{self.url}/hub/api/", timeout=5).ok
            return False

        until(f"the hub of {self.name} answers", answers)

    def log(self, name: str) -> str:
        """The end of what one of its processes said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def end(self) -> None:
        """Ends the processes, and takes from the engine all that they made."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(30)
        self.sweep()

    def sweep(self) -> None:
        raise NotImplementedError

    # --- its users --------------------------------------------------------------------------

    def options(self, *, gpu: bool, image: str | None) -> dict[str, str]:
        """What is asked for with a server."""
        raise NotImplementedError

    def rest(self, method: str, path: str, **body: Any) -> requests.Response:
        return requests.request(
            method,
            f"{self.url}/hub/api/{path}",
            headers={"Authorization": f"token {self._token}"},
            timeout=_CALL_S,
            **body,
        )

    def add(self, user: str) -> None:
        answer = self.rest("POST", f"users/{user}")
        if answer.status_code not in (201, 409):
            raise RuntimeError(f"{self.name}: no user {user}: {answer.text}")

    def ask(self, user: str, *, gpu: bool = False, image: str | None = None) -> tuple[float, str]:
        """Asks for a server; the seconds until the hub says that it is ready, or why it is not."""
        data = json.dumps(self.options(gpu=gpu, image=image))
        began = time.monotonic()
        answer = self.rest("POST", f"users/{user}/server", data=data)
        seconds = time.monotonic() - began
        return seconds, "" if answer.status_code == 201 else _said(answer)

    def ready(self, user: str, *, gpu: bool = False, image: str | None = None) -> float:
        """The same, when nothing else is expected."""
        seconds, problem = self.ask(user, gpu=gpu, image=image)
        if problem:
            raise RuntimeError(f"{self.name}: {user} has no server: {problem}")
        return seconds

    def stop(self, user: str) -> None:
        """Asks for the end, and returns when nothing of it is left."""
        self.rest("DELETE", f"users/{user}/server")
        until(f"{self.name}: the server of {user} is gone", lambda: not self.has(user))
        until(f"{self.name}: its container is gone", lambda: not self.containers(user))

    def stopping(self, user: str) -> bool:
        return self._server(user).get("pending") == "stop"

    def has(self, user: str) -> bool:
        return bool(self._server(user))

    def _server(self, user: str) -> dict[str, Any]:
        servers = self.rest("GET", f"users/{user}").json().get("servers") or {}
        found: dict[str, Any] = servers.get("") or {}
        return found

    def containers(self, user: str = "") -> list[Any]:
        """This world's containers, of one user or all, ended ones too."""
        raise NotImplementedError

    def kill(self) -> None:
        """Ends all its containers at once, so that nobody has to wait for their grace."""
        for container in self.containers():
            with suppress(APIError):
                container.kill()


def _said(answer: requests.Response) -> str:
    try:
        said = str(answer.json()["message"])
    except (ValueError, KeyError):
        said = answer.text
    return f"{answer.status_code} {' '.join(said.split())[:120]}"


class Ours(World):
    """Proxy, hub, service and node of gpuslice, with simulated GPUs."""

    name = "gpuslice"

    def __init__(self, folder: Path, client: docker.DockerClient, images: Sequence[str]) -> None:
        super().__init__(folder, client, images)
        (service_port,) = free_ports(1)
        self.node_id = new_node_id()
        self.state = State(folder / "state")
        self.config = folder / "gpuslice.toml"
        listed = "".join(f'[[docker.image]]\nreference = "{one}"\n' for one in images)
        self.config.write_text(
            SETTINGS.format(
                service=service_port, hub=self.hub_port, node_id=self.node_id, pool=own_pool(),
                host=json.dumps(str(folder / "host")), images=listed,
            )
        )  # fmt: skip

    def start(self, first: str) -> None:
        self.state.prepare()
        ensure_secrets(self.state.secrets)
        settings = load_settings(self.config)
        made = parts.parts(
            parts.Plan(
                state=self.state,
                settings=settings,
                config=self.config,
                ports=ports.choose(settings, self.port, self.proxy_api),
                hub_config=HERE / "hub_ours.py",
                proxy_command=proxy_command(),
                node_gpus=[],
            )
        )
        made["node"] = parts.Part(
            [
                sys.executable, "-m", "gpuslice.node", "--engine", "docker", "--simulated",
                "--config", str(self.config), "--state", str(self.state.node),
                "--token-file", str(self.state.secrets / "node_token"),
            ]
        )  # fmt: skip
        made["hub"].env.update(self.environment())
        parts.write_parts(self.state, made)
        for name in parts.PARTS:
            self.run(name, [sys.executable, "-m", "gpuslice.cli.part", str(self.state.root), name],
                     {})  # fmt: skip
        self.wait_until_it_answers()
        self.add(first)

        def grants() -> bool:
            return self.ask(first, gpu=True)[1] == ""

        # The service grants nothing before it has looked at the node.
        until("gpuslice grants slices", grants)
        self.stop(first)

    def options(self, *, gpu: bool, image: str | None) -> dict[str, str]:
        chosen = {"slice": "whole" if gpu else "cpu"}
        return {**chosen, "image": image} if image else chosen

    def containers(self, user: str = "") -> list[Any]:
        labels = [f"{LABEL_NODE}={self.node_id}", *([f"gpuslice.user={user}"] if user else [])]
        found = self.client.containers.list(
            all=True, filters={"label": labels}, ignore_removed=True
        )
        return list(found)

    def sweep(self) -> None:
        sweep(self.client, self.node_id)


class Stock(World):
    """Proxy and hub, with DockerSpawner."""

    name = "DockerSpawner"

    def __init__(self, folder: Path, client: docker.DockerClient, images: Sequence[str]) -> None:
        super().__init__(folder, client, images)
        self.names = f"gpuslice-bench-{secrets.token_hex(4)}"

    def start(self, first: str) -> None:
        env = self.environment()
        proxy = [
            *proxy_command(), "--ip", "127.0.0.1", "--port", str(self.port),
            "--api-ip", "127.0.0.1", "--api-port", str(self.proxy_api),
            "--default-target", f"http://127.0.0.1:{self.hub_port}",
        ]  # fmt: skip
        token = {"CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(32)}
        self.run("proxy", proxy, token)
        hub = {**env, **token, "BENCH_IMAGES": " ".join(self.images), "BENCH_NAMES": self.names}
        self.run("hub", [sys.executable, "-m", "jupyterhub", "-f", str(HERE / "hub_stock.py")], hub)
        self.wait_until_it_answers()
        self.add(first)
        self.ready(first)
        self.stop(first)

    def options(self, *, gpu: bool, image: str | None) -> dict[str, str]:
        return {"image": image} if image else {}

    def containers(self, user: str = "") -> list[Any]:
        wanted = f"^/?{self.names}-{user or '.*'}$"
        found = self.client.containers.list(all=True, filters={"name": wanted}, ignore_removed=True)
        return list(found)

    def sweep(self) -> None:
        for container in self.containers():
            with suppress(NotFound, APIError):
                container.remove(force=True, v=True)
        for volume in self.client.volumes.list(filters={"name": self.names}):
            with suppress(APIError):
                volume.remove(force=True)


def remove_homes(client: docker.DockerClient, users: Sequence[str]) -> None:
    """Takes away the volumes that gpuslice keeps for ever: the homes of the benchmark's users."""
    for user in users:
        for volume in client.volumes.list(filters={"label": f"{LABEL_HOME}={user}"}):
            with suppress(APIError):
                volume.remove(force=True)
