"""A platform under test: ``gpuslice up`` as a process, its REST, its logins and its parts."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from xmlrpc.client import ServerProxy

import requests

from gpuslice.cli.ledger import problems
from gpuslice.cli.secrets import read_secret
from hublogin import Session
from nvmlsim import Fleet, GpuSpec

HERE = Path(__file__).parent
PATIENCE_S = 60.0
T = TypeVar("T")

SETTINGS = """\
[service]
port = {service}
[hub]
api_url = "http://127.0.0.1:{hub}/hub/api"
[limits]
leases_per_user = 3
[timing]
reconcile_s = 0.5
heartbeat_s = 1
hold_horizon_s = 10
start_timeout_s = 20
stop_grace_s = 2
node_stop_after_s = 3
[[slice]]
name = "cpu"
kind = "cpu"
ram = "64 MiB"
price = "0.36"
[[slice]]
name = "quarter"
kind = "shared"
model = "L4"
share = "1/4"
ram = "64 MiB"
price = "3.6"
[[slice]]
name = "whole"
kind = "exclusive"
model = "H100"
ram = "64 MiB"
price = "36"
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
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Platform:
    """Proxy, hub, service and node of one data folder."""

    def __init__(self, folder: Path, *, real_notebooks: bool = False) -> None:
        self.state = folder / "state"
        self.config = folder / "gpuslice.toml"
        self.port, self.proxy_api, self.hub_port, self.service_port = free_ports(4)
        self.config.write_text(SETTINGS.format(service=self.service_port, hub=self.hub_port))
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = folder / "up.log"
        self._up: subprocess.Popen[bytes] | None = None
        self._hub_config = None if real_notebooks else HERE / "crashing_hub.py"
        self._token = ""

    # --- gpuslice up ------------------------------------------------------------------------

    def command(self) -> list[str]:
        hub_config = ["--hub-config", str(self._hub_config)] if self._hub_config else []
        return [
            sys.executable, "-m", "gpuslice", "up", "--state", str(self.state),
            "--config", str(self.config), "--port", str(self.port),
            "--proxy-api-port", str(self.proxy_api), "--simulated", *hub_config,
        ]  # fmt: skip

    def launch(self) -> None:
        self._make_fleet()
        with self.output.open("ab") as out:
            self._up = subprocess.Popen(
                self.command(), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _make_fleet(self) -> None:
        """GPUs of the tests' own, so that the demo's may change: one of each kind."""
        path = self.state / "nvmlsim" / "fleet"
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True)
            models = [GpuSpec("NVIDIA H100 80GB HBM3"), GpuSpec("NVIDIA L4")]
            Fleet.create(path, models).close()

    def start(self) -> None:
        """Start it and wait until it says that it runs."""
        told = self.text().count("gpuslice runs.")
        self.launch()

        def runs() -> bool:
            assert self._up is not None
            if self._up.poll() is not None:
                raise AssertionError(f"gpuslice up ended:\n{self.text()}")
            return self.text().count("gpuslice runs.") > told

        until("gpuslice up says that it runs", runs, patience_s=150)
        self._token = ""

    def stop(self, number: int = signal.SIGINT) -> int:
        """End it in order, as Ctrl-C does; the exit code."""
        assert self._up is not None
        self._up.send_signal(number)
        return self._up.wait(120)

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    # --- its parts --------------------------------------------------------------------------

    def pid(self, part: str) -> int:
        return int((self.state / "run" / f"{part}.pid").read_text())

    def kill(self, part: str) -> None:
        """SIGKILL; the supervisor starts it again."""
        os.kill(self.pid(part), signal.SIGKILL)

    def kill_all(self) -> None:
        """SIGKILL of everything but the notebooks and their supervisors, all at once."""
        assert self._up is not None
        pids = [self.pid(part) for part in ("supervisord", "hub", "service", "node", "proxy")]
        for pid in [self._up.pid, *pids]:
            os.kill(pid, signal.SIGKILL)
        self._up.wait()
        until("all parts are gone", lambda: not any(alive(pid) for pid in pids))

    def switch(self, part: str, *, on: bool) -> None:
        """Have the supervisor stop or start a part, and wait for it."""
        from gpuslice.cli.supervise import _transport

        sock = self.state / "run" / "supervisor.sock"
        if not sock.exists():
            # Its folder's path was too long; the configuration names the short one.
            found = re.search(r"^file=(.*)$", (self.state / "supervisord.conf").read_text(), re.M)
            assert found
            sock = Path(found[1])
        rpc: Any = ServerProxy("http://localhost", transport=_transport(sock))
        (rpc.supervisor.startProcess if on else rpc.supervisor.stopProcess)(part)

    def crash_at(self, point: str) -> int:
        """Arm a crash point of the hub under test; answers which hub will die there."""
        (self.state / "crash").write_text(point)
        return self.pid("hub")

    def wait_for_new_hub(self, old: int) -> None:
        """The hub died and its successor answers."""
        until("the hub has died", lambda: not alive(old) or self.pid("hub") != old)
        until("a new hub answers", lambda: self.pid("hub") != old and self._answers())

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/hub/api/", timeout=5).ok
        except requests.RequestException:
            return False

    # --- the hub's REST, as an administrator ------------------------------------------------

    def login(self, user: str) -> Session:
        """A browser of somebody who logs in."""
        name = "admin_password" if user == "admin" else "demo_password"
        return Session(self.url, user, read_secret(self.state / "secrets", name))

    @property
    def token(self) -> str:
        if not self._token:
            answer = self.login("admin").api("POST", "users/admin/tokens", json={})
            assert answer.status_code == 201, answer.text
            self._token = answer.json()["token"]
        return self._token

    def rest(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        return requests.request(
            method,
            f"{self.url}/hub/api/{path}",
            headers={"Authorization": f"token {self.token}", **kwargs.pop("headers", {})},
            timeout=60,
            **kwargs,
        )

    def server(self, user: str, name: str = "") -> dict[str, Any] | None:
        """The hub's model of a server; None: it knows of none."""
        answer = self.rest("GET", f"users/{user}")
        if answer.status_code == 404:
            return None
        assert answer.ok, answer.text
        found: dict[str, Any] | None = answer.json()["servers"].get(name)
        return found

    def add_user(self, user: str) -> None:
        answer = self.rest("POST", f"users/{user}")
        assert answer.status_code in (201, 409), answer.text

    def spawn(self, user: str, slice_name: str, name: str = "") -> dict[str, Any]:
        """Start a server and wait until it is ready; its lease."""
        self.add_user(user)
        answer = self.ask_to_spawn(user, {"slice": slice_name}, name)
        assert answer.status_code in (201, 202), answer.text
        self.wait_ready(user, name)
        lease = self.lease(user, name)
        assert lease is not None
        return lease

    def ask_to_spawn(self, user: str, options: object, name: str = "") -> requests.Response:
        path = f"users/{user}/servers/{name}" if name else f"users/{user}/server"
        return self.rest("POST", path, data=json.dumps({"user_options": options}))

    def wait_ready(self, user: str, name: str = "") -> None:
        until(
            f"the server of {user} is ready",
            lambda: (self.server(user, name) or {}).get("ready"),
        )

    def stop_server(self, user: str, name: str = "") -> None:
        path = f"users/{user}/servers/{name}" if name else f"users/{user}/server"
        answer = self.rest("DELETE", path)
        assert answer.status_code in (202, 204), answer.text
        until(f"the server of {user} is gone", lambda: self.server(user, name) is None)

    # --- the service, as the spawner ---------------------------------------------------------

    def broker(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        token = read_secret(self.state / "secrets", "broker_token")
        return requests.request(
            method,
            f"http://127.0.0.1:{self.service_port}/services/gpuslice/api/broker/{path}",
            headers={"Authorization": f"token {token}"},
            timeout=60,
            **kwargs,
        )

    def lease(self, user: str, name: str = "") -> dict[str, Any] | None:
        """The live lease of a server."""
        answer = self.broker("GET", "current", params={"user": user, "server": name})
        if answer.status_code == 404:
            return None
        assert answer.ok, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def lease_by_id(self, lease_id: str) -> dict[str, Any]:
        answer = self.broker("GET", f"leases/{lease_id}")
        assert answer.ok, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait_over(self, lease_id: str) -> dict[str, Any]:
        """Wait until a lease has ended or was cancelled; the lease."""

        def over() -> dict[str, Any] | None:
            try:
                lease = self.lease_by_id(lease_id)
            except requests.RequestException:
                return None  # the service is just starting
            return lease if lease["state"] in ("ended", "cancelled") else None

        return until(f"lease {lease_id} is over", over)  # type: ignore[return-value]

    def free(self, slice_name: str) -> int:
        offers = self.broker("GET", "offers").json()
        return next(int(offer["free"]) for offer in offers if offer["slice"] == slice_name)

    # --- what really runs -------------------------------------------------------------------

    def server_pid(self, lease_id: str) -> int:
        """The process of a lease's notebook server."""

        def find() -> int | None:
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit():
                    continue
                try:
                    variables = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                # The server's own supervisor has the lease in its environment too.
                theirs = {entry.partition(b"=")[0] for entry in variables}
                mine = f"GPUSLICE_LEASE={lease_id}".encode() in variables
                if mine and b"JUPYTERHUB_API_TOKEN" in theirs:
                    return int(entry.name)
            return None

        found = until(f"a process of lease {lease_id}", find)
        assert found is not None
        return found

    def kill_everything(self) -> None:
        """After a failed test too: nothing of this platform survives it."""
        pids = [self._up.pid] if self._up is not None and self._up.poll() is None else []
        mine = os.fsencode(self.state)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                except OSError:
                    continue
                if mine in told and int(entry.name) != os.getpid():
                    pids.append(int(entry.name))
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self._up is not None:
            self._up.wait()

    def verify(self) -> list[str]:
        """What ``gpuslice ledger verify`` finds wrong."""
        return problems(self.state, self.config)

    def log(self, part: str) -> str:
        return (self.state / "log" / f"{part}.log").read_text(errors="replace")


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
