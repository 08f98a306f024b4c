"""A platform on the docker engine under test: real hub, proxy, service and node as processes.

The node's engine is behind ``world.engine``, which fails on demand. What its containers do is said
per user with :meth:`DockerPlatform.behave` (see ``tiny.c``).
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import APIError
from docker.models.containers import Container

# The platform of the hub's tests has REST, logins and waiting; pytest does not put it on the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from platform_world import Platform, until

from dockerworld import cdi_file, containers_of, networks_of, new_node_id, own_pool, sweep
from engineproxy import ENGINE, EngineProxy, engine_proxy
from gpuslice.cli import parts, ports
from gpuslice.cli.proxy import proxy_command
from gpuslice.cli.secrets import ensure_secrets
from gpuslice.cli.state import State
from gpuslice.containers import home_name
from gpuslice.settings import load_settings
from nvmlsim import Fleet, GpuSpec

_HUB_CONFIG = Path(__file__).parents[1] / "docker" / "hub_config.py"

SETTINGS = """\
[service]
port = {service}
[hub]
api_url = "http://127.0.0.1:{hub}/hub/api"
[node]
id = "{node_id}"
[limits]
leases_per_user = 3
[timing]
reconcile_s = 0.5
heartbeat_s = 1
hold_horizon_s = 10
start_timeout_s = 60
stop_grace_s = {grace}
node_stop_after_s = 3
[docker]
socket = {socket}
home = {home}
host_dir = {host}
network_pool = "{pool}"
{images}
[[slice]]
name = "cpu"
kind = "cpu"
ram = "32 MiB"
price = "0.36"
[[slice]]
name = "quarter"
kind = "shared"
model = "L4"
share = "1/4"
ram = "32 MiB"
price = "3.6"
[[slice]]
name = "whole"
kind = "exclusive"
model = "H100"
ram = "32 MiB"
price = "36"
"""


class DockerPlatform(Platform):
    """Proxy, hub, service and node of one data folder, and one engine's containers.

    Args:
        images: Offered to users, the first beforehand.
        grace_s: Between SIGTERM and SIGKILL of a server.
        engine: The engine's socket; ``client`` is this engine's.
    """

    def __init__(
        self, folder: Path, client: docker.DockerClient, images: list[str], *,
        grace_s: float = 2.0, engine: str = ENGINE,
    ) -> None:  # fmt: skip
        super().__init__(folder)
        self.client = client
        self.node_id = new_node_id()
        self._stack = ExitStack()
        self.engine: EngineProxy = self._stack.enter_context(
            engine_proxy(folder / "e.sock", engine)
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._homes = folder / "homes"
        self._host = folder / "host"
        self._homes.mkdir()
        self._host.mkdir()
        self.config.write_text(
            SETTINGS.format(
                service=self.service_port,
                hub=self.hub_port,
                node_id=self.node_id,
                grace=grace_s,
                socket=json.dumps(self.engine.socket),
                home=json.dumps(str(self._homes)),
                host=json.dumps(str(self._host)),
                pool=own_pool(),
                images="".join(f'[[docker.image]]\nreference = "{one}"\n' for one in images),
            )
        )

    # --- its parts ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until it answers."""
        state = State(self.state)
        state.prepare()
        ensure_secrets(state.secrets)
        (self.state / "behaviour").mkdir(exist_ok=True)
        self._make_fleet()
        settings = load_settings(self.config)
        made = parts.parts(
            parts.Plan(
                state=state,
                settings=settings,
                config=self.config,
                ports=ports.choose(settings, self.port, self.proxy_api),
                hub_config=_HUB_CONFIG,
                proxy_command=proxy_command(),
                node_gpus=["--simulated", "--config", str(self.config)],
            )
        )
        node = made["node"].argv
        node[node.index("--engine") + 1] = "docker"
        made["hub"].env["GPUSLICE_ENGINE"] = "docker"
        parts.write_parts(state, made)
        for name in parts.PARTS:
            self.start_part(name)
        self.wait_until_it_answers()

    def _make_fleet(self) -> None:
        folder = self._host / "nvmlsim"
        folder.mkdir(mode=0o700)
        models = [GpuSpec("NVIDIA H100 80GB HBM3"), GpuSpec("NVIDIA L4")]
        Fleet.create(folder / "fleet", models).close()

    def wait_until_it_answers(self) -> None:
        until("the hub and its proxy answer", self._all_live_and_answer, patience_s=120)
        until("slices are on offer", self._offers, patience_s=120)
        self._token = ""

    def _all_live_and_answer(self) -> bool:
        ended = [name for name, process in self._processes.items() if process.poll() is not None]
        assert not ended, "\n".join(f"{name} ended:\n{self.log(name)[-4000:]}" for name in ended)
        return self._answers()

    def _offers(self) -> bool:
        try:
            return self.free("whole") == 1
        except (requests.RequestException, StopIteration, ValueError, TypeError):
            return False

    def start_part(self, name: str) -> None:
        with (self.state / "log" / f"{name}.log").open("ab") as out:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "gpuslice.cli.part", str(self.state), name],
                cwd=self.state,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end_part(self, name: str, number: int = signal.SIGKILL) -> None:
        """End a part and wait for it; it stays down."""
        process = self._processes.pop(name)
        process.send_signal(number)
        process.wait(60)

    def restart_part(self, name: str, number: int = signal.SIGKILL) -> None:
        self.end_part(name, number)
        self.start_part(name)

    def hub_dies_at(self, point: str) -> subprocess.Popen[bytes]:
        """Arm a crash point; the hub that will die there."""
        (self.state / "crash").write_text(point)
        return self._processes["hub"]

    def next_hub(self, dying: subprocess.Popen[bytes]) -> None:
        """Wait until the hub has died, start the next one, wait until it answers."""
        dying.wait(60)
        self.start_part("hub")
        until("a new hub answers", self._answers, patience_s=120)

    def end(self) -> None:
        """Everything of it is gone afterwards, whatever happened."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait(60)
        self._processes.clear()
        self._stack.close()
        leases = self.lease_ids()
        sweep(self.client, self.node_id)
        for lease_id in leases:
            cdi_file(lease_id).unlink(missing_ok=True)

    # --- its users ----------------------------------------------------------------------------

    def behave(self, user: str, *words: str, start_timeout: int | None = None) -> None:
        """What the user's containers do from now on, and how long a start may take."""
        wanted: dict[str, Any] = {"cmd": ["/tiny", *words]} if words else {}
        if start_timeout is not None:
            wanted["start_timeout"] = start_timeout
        self._behave(user, wanted)

    def behave_as(self, user: str, command: list[str]) -> None:
        """A command of any kind."""
        self._behave(user, {"cmd": command})

    def _behave(self, user: str, wanted: dict[str, Any]) -> None:
        (self.state / "behaviour" / home_name(user)).write_text(json.dumps(wanted))

    def spawn_answer(self, user: str, slice_name: str, **options: str) -> requests.Response:
        """What REST answers to a start."""
        self.add_user(user)
        return self.ask_to_spawn(user, {"slice": slice_name, **options})

    def stop_server_now(self, user: str) -> None:
        """Stop a server without its grace."""
        lease = self.lease(user)
        self.rest("DELETE", f"users/{user}/server")
        if lease is not None:
            self.kill_container(lease["lease_id"])
        until(f"the server of {user} is gone", lambda: self.server(user) is None)

    def message(self, user: str, name: str = "") -> str:
        """What the spawn page tells about a start that has failed."""
        until(f"the start of {user} is over", lambda: not self._pending(user, name))
        where = f"users/{user}/servers/{name}" if name else f"users/{user}/server"
        text = self.rest("GET", f"{where}/progress").text
        events = [json.loads(line[6:]) for line in text.splitlines() if line[:5] == "data:"]
        return str(events[-1]["message"]) if events else text

    def _pending(self, user: str, name: str) -> bool:
        return bool((self.server(user, name) or {}).get("pending"))

    def progress(self, user: str) -> list[str]:
        """What the spawn page has told so far about a start that goes on."""
        told: list[str] = []
        with suppress(requests.RequestException):
            answer = requests.get(
                f"{self.url}/hub/api/users/{user}/server/progress",
                headers={"Authorization": f"token {self.token}"},
                stream=True,
                # The stream stays open: what comes within a moment is what was told.
                timeout=(30, 1),
            )
            for raw in answer.iter_lines(chunk_size=1):
                if raw.startswith(b"data:"):
                    told.append(json.loads(raw[6:])["message"])
        return told

    def refusal(self, user: str, slice_name: str, **options: str) -> str:
        """Ask for a start that must fail; what its user is told, at once or on the spawn page."""
        answer = self.spawn_answer(user, slice_name, **options)
        if answer.status_code >= 400:
            return str(answer.json()["message"])
        return self.message(user)

    # --- what really is ---------------------------------------------------------------------

    def container(self, lease_id: str) -> Container | None:
        found = [one for one in containers_of(self.client, self.node_id)
                 if one.labels.get("gpuslice.lease") == lease_id]  # fmt: skip
        assert len(found) < 2, "two containers of one lease"
        return found[0] if found else None

    def running(self) -> set[str]:
        """Leases whose container runs, as the engine itself says."""
        return {
            one.labels["gpuslice.lease"]
            for one in containers_of(self.client, self.node_id)
            if one.status == "running"
        }

    def kill_container(self, lease_id: str) -> None:
        """By hand, as root would; one that has ended already is as well."""
        container = self.container(lease_id)
        if container is not None:
            with suppress(APIError):
                container.kill()

    def lease_ids(self) -> list[str]:
        """All leases there ever were."""
        path = self.state / "ledger.sqlite"
        if not path.exists():
            return []
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            return [row[0] for row in connection.execute("SELECT id FROM lease")]

    def leftovers(self) -> list[str]:
        """What is there of this platform beside its homes: nothing, when nobody has a server."""
        left = [f"container {one.name} {one.status}"
                for one in containers_of(self.client, self.node_id)]  # fmt: skip
        left += [f"network {one.name}" for one in networks_of(self.client, self.node_id)]
        left += [f"CDI device {one}" for one in self.lease_ids() if cdi_file(one).exists()]
        left += [f"volume {one.name}" for one in self.client.volumes.list(
            filters={"label": f"gpuslice.node={self.node_id}"})]  # fmt: skip
        return left

    def wait_clean(self) -> None:
        """Nothing is left, every slice is free, and the books agree."""
        until("nothing is left", lambda: not self.leftovers())
        until("every slice is free", lambda: self.free("whole") == 1 and self.free("quarter") == 4)
        assert self.verify() == []


__all__ = ["DockerPlatform", "until"]
