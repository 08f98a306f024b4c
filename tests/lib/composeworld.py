"""A compose deployment under test: ``gpuslice up --engine docker`` as a process, and what it made.

Everything has names, addresses and a port of the test's own, so several deployments and other
tests share one engine.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
from docker.errors import NotFound
from docker.models.containers import Container

from dockerworld import containers_of, networks_of, new_node_id, own_pool, sweep
from gpuslice.containers import LABEL_LEASE, LABEL_USER, home_volume
from hublogin import Session

PARTS = ("postgres", "proxy", "node", "service", "hub")
PATIENCE_S = 180.0
SECRETS = "/var/lib/gpuslice/secrets"
_COMPOSE = Path(__file__).parents[2] / "hub_config" / "docker"
T = TypeVar("T")

#: Run in a container as its server's own processes are, with their environment: ``docker exec``
#: alone knows nothing of what a CDI device has put there.
_AS_THE_SERVER = """
import os, sys
env = dict(e.split("=", 1) for e in open("/proc/1/environ").read().split("\\0") if "=" in e)
os.execvpe("python3", ["python3", "-c", sys.argv[1], *sys.argv[2:]], env)
"""


def until(what: str, look: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Look until the answer is true; no test asserts how long that takes."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience_s:g} s: {what}; last seen: {answer!r}")
        time.sleep(0.2)


class Deployment:
    """One deployment, started and ended as an administrator does."""

    def __init__(self, client: docker.DockerClient, folder: Path) -> None:
        self.client = client
        self.node_id = new_node_id()
        self.project = f"gpuslice-{self.node_id}"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = folder / "state"
        self.output = folder / "up.log"
        self.environment = {
            **os.environ,
            "GPUSLICE_PROJECT": self.project,
            "GPUSLICE_NODE_ID": self.node_id,
            "GPUSLICE_HOST_DIR": str(folder / "host"),
            "GPUSLICE_NETWORK_POOL": own_pool(),
        }
        self.users: set[str] = set()
        self._up: subprocess.Popen[bytes] | None = None
        self._token = ""

    # --- gpuslice up ------------------------------------------------------------------------

    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "gpuslice", "up", "--engine", "docker", "--simulated",
            "--state", str(self.state), "--port", str(self.port),
        ]  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it says that it runs."""
        told = self.text().count("gpuslice runs.")
        with self.output.open("ab") as out:
            self._up = subprocess.Popen(
                self.command(), stdout=out, stderr=subprocess.STDOUT, env=self.environment,
                start_new_session=True,
            )  # fmt: skip

        def runs() -> bool:
            assert self._up is not None
            if self._up.poll() is not None:
                raise AssertionError(f"gpuslice up ended:\n{self.text()}")
            return self.text().count("gpuslice runs.") > told

        until("gpuslice up says that it runs", runs, patience_s=300)

    def signal(self, number: int = signal.SIGINT) -> None:
        assert self._up is not None
        self._up.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        assert self._up is not None
        return self._up.wait(300)

    def stop(self) -> int:
        """End it in order, as Ctrl-C does; the exit code."""
        self.signal()
        return self.wait()

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def compose(self, *words: str) -> str:
        """``docker compose`` in the deployment's own folder, as an administrator calls it."""
        environment = {**self.environment, "GPUSLICE_PORT": str(self.port)}
        done = subprocess.run(
            ["docker", "compose", *words], cwd=_COMPOSE, env=environment, capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def remove(self) -> None:
        """After a failed test too: nothing of this deployment survives it."""
        if self._up is not None and self._up.poll() is None:
            self._up.kill()
            self._up.wait()
        self.compose("down", "--volumes", "--timeout", "1")
        sweep(self.client, self.node_id)
        for user in self.users:
            with suppress(NotFound):
                self.client.volumes.get(home_volume(user)).remove(force=True)

    # --- its containers ---------------------------------------------------------------------

    def container(self, part: str) -> Container:
        return self.client.containers.get(f"{self.project}-{part}")

    def wait_healthy(self, part: str) -> None:
        def healthy() -> bool:
            state = self.container(part).attrs["State"]
            return bool(state.get("Health", {}).get("Status") == "healthy")

        until(f"{part} is healthy", healthy)

    def run_in(self, container: str | Container, *command: str) -> str:
        """What a command in a container prints."""
        found = self.container(container) if isinstance(container, str) else container
        code, output = found.exec_run(list(command))
        assert code == 0, output.decode(errors="replace")
        return output.decode()

    def ask_from(self, part: str, code: str, *arguments: str) -> Any:
        """What code prints as JSON in one of the deployment's own containers."""
        return json.loads(self.run_in(part, "python", "-c", code, *arguments))

    def addresses(self, part: str) -> dict[str, str]:
        return addresses_of(self.container(part))

    def networks(self, part: str) -> set[str]:
        return set(self.container(part).attrs["NetworkSettings"]["Networks"])

    def left_over(self) -> list[str]:
        """Containers and networks of the deployment and of its leases."""
        mine = {"label": f"com.docker.compose.project={self.project}"}
        found = [
            *self.client.containers.list(all=True, filters=mine, ignore_removed=True),
            *self.client.networks.list(filters=mine),
            *containers_of(self.client, self.node_id),
            *networks_of(self.client, self.node_id),
        ]
        return sorted(one.name for one in found)

    def secret(self, part: str, name: str) -> str:
        return self.run_in(part, "cat", f"{SECRETS}/{name}").strip()

    # --- the hub, as people and as an administrator -----------------------------------------

    def login(self, user: str) -> Session:
        name = "admin_password" if user == "admin" else "demo_password"
        if user != "admin":
            self.users.add(user)
        return Session(self.url, user, self.secret("hub", name))

    def rest(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        if not self._token:
            answer = self.login("admin").api("POST", "users/admin/tokens", json={})
            assert answer.status_code == 201, answer.text
            self._token = answer.json()["token"]
        return requests.request(
            method, f"{self.url}/hub/api/{path}", timeout=60,
            headers={"Authorization": f"token {self._token}"}, **kwargs,
        )  # fmt: skip

    def new_user(self, name: str) -> str:
        """A name that nobody else on this engine has, so that its home is the test's own."""
        user = f"{name}-{uuid.uuid4().hex[:8]}"
        self.users.add(user)
        return user

    def server(self, user: str) -> dict[str, Any] | None:
        """The hub's model of a server; None: it knows of none."""
        answer = self.rest("GET", f"users/{user}")
        assert answer.ok, answer.text
        found: dict[str, Any] | None = answer.json()["servers"].get("")
        return found

    def spawn(self, session: Session, slice_name: str) -> Container:
        """Start somebody's server as they do it, and wait until it is ready."""
        answer = session.api(
            "POST",
            f"users/{session.user}/server",
            data=json.dumps({"user_options": {"slice": slice_name}}),
        )
        assert answer.status_code in (201, 202), answer.text
        until(
            f"the server of {session.user} is ready",
            lambda: self._ready_or_failed(session.user),
        )
        # As browsers do, which the hub then lets in.
        page = self.notebook(session, "lab")
        assert page.ok, page.url
        return self.container_of(session.user)

    def end_all(self, *sessions: Session) -> None:
        """Stop these people's servers, and wait until the hub has none of them."""
        for session in sessions:
            answer = session.api("DELETE", f"users/{session.user}/server")
            assert answer.status_code in (202, 204), answer.text
        for session in sessions:
            user = session.user
            until(f"the server of {user} is gone", lambda user=user: self.server(user) is None)

    def _ready_or_failed(self, user: str) -> bool:
        found = self.server(user)
        if found is None:
            raise AssertionError(f"the server of {user} did not start:\n{self.logs()}")
        return bool(found["ready"])

    def container_of(self, user: str) -> Container:
        """The container that runs for somebody."""
        found = self.client.containers.list(filters={"label": f"{LABEL_USER}={user}"})
        (container,) = [one for one in found if one in containers_of(self.client, self.node_id)]
        return container

    def notebook(self, session: Session, path: str) -> requests.Response:
        """A call to somebody's server through the proxy, as their browser makes it."""
        return session.get(f"/user/{session.user}/{path}")

    def python(self, container: Container, code: str, *arguments: str) -> Any:
        """What code prints as JSON that runs as the server's own processes do."""
        found = self.run_in(container, "python3", "-c", _AS_THE_SERVER, code, *arguments)
        return json.loads(found)

    def ends_of(self, containers: list[Container]) -> Callable[[], list[str]]:
        """Watches these containers from now on; called, the engine's FinishedAt of each.

        They are removed soon after their end, so somebody has to look all the time.
        """
        seen: dict[str, str] = {}

        def watch(container_id: str) -> None:
            api = docker.APIClient(base_url="unix:///var/run/docker.sock")
            with suppress(NotFound):
                while True:
                    state = api.inspect_container(container_id)["State"]
                    if state["Status"] == "exited":
                        seen[container_id] = state["FinishedAt"]
                    time.sleep(0.01)

        ids = [str(container.id) for container in containers]
        threads = [threading.Thread(target=watch, args=(one,), daemon=True) for one in ids]
        for thread in threads:
            thread.start()

        def ended() -> list[str]:
            for thread in threads:
                thread.join(PATIENCE_S)
            return [seen[one] for one in ids]

        return ended

    # --- the ledger --------------------------------------------------------------------------

    def verify(self) -> str:
        """What ``gpuslice ledger verify`` says in the service's container."""
        return self.run_in(
            "service", "gpuslice", "ledger", "verify", "--state", "/var/lib/gpuslice",
            "--config", "/etc/gpuslice/gpuslice.toml",
        )  # fmt: skip

    def lease(self, lease_id: str) -> dict[str, Any]:
        """A lease as the spawner sees it, live or over."""
        found = self.run_in("service", "python", "-c", _LEASE, lease_id)
        lease: dict[str, Any] = json.loads(found)
        return lease

    def bill(self, lease_id: str) -> dict[str, Any]:
        """A lease's bill, as an administrator reads it."""
        self.rest("GET", "user")  # has a token from here on
        answer = requests.get(
            f"{self.url}/services/gpuslice/api/leases/{lease_id}/bill", timeout=60,
            headers={"Authorization": f"token {self._token}"},
        )  # fmt: skip
        assert answer.ok, answer.text
        bill: dict[str, Any] = answer.json()
        return bill

    def logs(self) -> str:
        """The ends of the parts' logs, for a failed test."""
        tails = [
            f"--- {part}\n{self.container(part).logs(tail=40).decode(errors='replace')}"
            for part in ("hub", "service", "node")
        ]
        return "\n".join(tails)


_LEASE = """
import http.client, sys
token = open("/var/lib/gpuslice/secrets/broker_token").read().strip()
c = http.client.HTTPConnection("127.0.0.1", 8085, timeout=30)
c.request("GET", f"/services/gpuslice/api/broker/leases/{sys.argv[1]}",
          headers={"Authorization": f"token {token}"})
print(c.getresponse().read().decode())
"""


def lease_of(container: Container) -> str:
    return str(container.labels[LABEL_LEASE])


def addresses_of(container: Container) -> dict[str, str]:
    """Its address in each of its networks."""
    found = container.attrs["NetworkSettings"]["Networks"]
    return {name: network["IPAddress"] for name, network in found.items()}


def micros(stamp: str) -> int:
    """The engine's time in whole microseconds, as bills have it."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    seconds = datetime.fromisoformat(f"{whole}+00:00").timestamp()
    return int(seconds) * 1_000_000 + int(fraction[:6].ljust(6, "0"))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
