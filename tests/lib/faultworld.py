"""A platform on the docker engine that is made to fail, and what its ledger says afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import docker
import requests
from docker.models.containers import Container

from dockerworld import containers_of
from engineproxy import ENGINE, Fault
from gpuslice.containers import LABEL_LEASE, LABEL_NODE
from gpuslice.node.docker.reports import parse_time
from gpuslice.units import HOUR_US
from hubworld import DockerPlatform, until

_SERVICE = Path(__file__).parents[1] / "docker" / "crashing_service.py"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
#: Longer than any test: what ends a lease here is what is tested, and not its start's time limit.
START_TIMEOUT_S = 900


@dataclass(frozen=True)
class Segment:
    """A paid interval; the price it has is that of an hour."""

    from_us: int
    til_us: int
    rate_u: int
    payer: str
    amount_u: int
    #: What the entries of this segment sum to.
    paid_u: int


class FaultWorld(DockerPlatform):
    """With crash points in its service, and machines that are started anew."""

    def __init__(
        self, folder: Path, client: docker.DockerClient, images: list[str], *, engine: str = ENGINE
    ) -> None:
        super().__init__(folder, client, images, engine=engine)
        self.setting("start_timeout_s", "60", str(START_TIMEOUT_S))
        self.tiny = images[0]

    def setting(self, key: str, old: str, new: str) -> None:
        """Change a line of gpuslice.toml; a part reads it when it starts."""
        text = self.config.read_text()
        assert f"\n{key} = {old}\n" in text
        self.config.write_text(text.replace(f"\n{key} = {old}\n", f"\n{key} = {new}\n"))

    # --- its parts ----------------------------------------------------------------------------

    def start_part(self, name: str) -> None:
        path = self.state / "run" / "parts.json"
        made = json.loads(path.read_text())
        argv = made["service"]["argv"]
        if "-m" in argv:
            place = argv.index("-m")
            argv[place : place + 2] = [str(_SERVICE)]
            # What becomes of a start is told as its answer, also by an engine that is silent.
            made["hub"]["env"]["TEST_SLOW_SPAWN_S"] = "20"
            path.write_text(json.dumps(made))
        super().start_part(name)

    def service_dies_at(self, point: str) -> None:
        """Arm a crash point of the service and wait until it has died there; it stays down."""
        (self.state / "crash-service").write_text(point)
        assert self._processes["service"].wait(60) == -signal.SIGKILL

    def wait_service(self) -> None:
        until("the service answers", lambda: self.health() is not None)

    def health(self) -> dict[str, Any] | None:
        """What the service says of itself; None while it says nothing."""
        with suppress(requests.RequestException):
            path = f"http://127.0.0.1:{self.service_port}/services/gpuslice/api/health"
            found: dict[str, Any] = requests.get(path, timeout=10).json()
            return found
        return None

    def grants(self) -> bool:
        """Whether the service would grant something to somebody, as far as the node goes."""
        return (self.health() or {}).get("status") == "ok"

    def refuses(self) -> bool:
        """Whether the service is there, and grants nobody anything."""
        return (self.health() or {}).get("status") == "degraded"

    def node_errors(self) -> float:
        """How often the service has asked the node in vain."""
        answer = requests.get(
            f"{self.url}/services/gpuslice/metrics",
            headers={"Authorization": f"token {self.token}"}, timeout=30,
        )  # fmt: skip
        found = re.search(r'^gpuslice_error_raise_total\{what="node"\} (\S+)$', answer.text, re.M)
        assert found, answer.text
        return float(found[1])

    def looks_again(self) -> None:
        """Returns when node and service have looked at the engine some times more."""
        before = self.engine.count("GET", r"^/containers/json")
        until("it is looked at", lambda: (
            self.engine.count("GET", r"^/containers/json") > before + 6))  # fmt: skip

    def power_cut(self) -> None:
        """Everything is killed at once: parts, and containers without a word to anybody."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(60)
        self._processes.clear()
        for lease_id in self.running():
            self.kill_container(lease_id)

    def start_again(self, parts: Sequence[str] = ("proxy", "service", "hub")) -> None:
        for name in parts:
            self.start_part(name)
        self.wait_until_it_answers()

    def start_node_in_another_boot(self) -> None:
        """The node on a machine that says that it was started anew."""
        fake = self.state.parent / "boot_id"
        fake.write_text(f"{uuid.uuid4()}\n")
        script = f'mount --bind "$0" {_BOOT_ID} && exec "$@"'
        with (self.state / "log" / "node.log").open("ab") as out:
            self._processes["node"] = subprocess.Popen(
                [
                    "unshare", "--mount", "sh", "-c", script, str(fake),
                    sys.executable, "-m", "gpuslice.cli.part", str(self.state), "node",
                ],
                cwd=self.state, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    # --- its users ----------------------------------------------------------------------------

    def quietly(self, method: str, user: str, slice_name: str = "whole") -> None:
        """Ask for a start or a stop; the hub may die while it answers."""
        with suppress(requests.RequestException):
            if method == "POST":
                self.add_user(user)
                self.ask_to_spawn(user, {"slice": slice_name})
            else:
                self.rest("DELETE", f"users/{user}/server")

    def in_background(self, user: str, slice_name: str = "whole") -> None:
        """Ask for a start without waiting for what becomes of it."""
        self.add_user(user)
        threading.Thread(target=self.quietly, args=("POST", user, slice_name), daemon=True).start()

    def in_background_stop(self, user: str) -> None:
        """Ask for a stop without waiting for it."""
        threading.Thread(target=self.quietly, args=("DELETE", user), daemon=True).start()

    def no_server(self, user: str) -> None:
        until(f"the hub has no server of {user}", lambda: self.server(user) is None)

    @contextmanager
    def reached_throughout(self, user: str) -> Iterator[None]:
        """All the time, and again and again, the user's server answers through the proxy."""
        over = threading.Event()
        answers: list[str] = []

        def ask() -> None:
            while not over.is_set():
                try:
                    found = requests.get(f"{self.url}/user/{user}/api", timeout=30)
                    answers.append(f"{found.status_code} {found.text}")
                except requests.RequestException as problem:
                    answers.append(repr(problem))
                over.wait(0.1)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            yield
        finally:
            over.set()
            asking.join()
        assert len(answers) > 5
        assert set(answers) == {"200 {}"}

    # --- the engine ---------------------------------------------------------------------------

    def containers(self) -> list[Container]:
        """All of this platform's, and what says that it is."""
        return containers_of(self.client, self.node_id)

    def died_us(self, lease_id: str) -> int:
        """When the engine told everybody that a lease's container had ended; 0: it has not yet."""
        filters = {"type": "container", "event": "die", "label": f"{LABEL_LEASE}={lease_id}"}
        events = self.client.events(since=0, until=int(time.time()) + 1, filters=filters)
        told = [json.loads(line) for line in b"".join(events).splitlines()]
        return int(told[-1]["timeNano"]) // 1000 if told else 0

    def by_hand(self, lease_id: str, *command: str) -> Container:
        """A container that root makes, which says that it is this lease's."""
        labels = {LABEL_NODE: self.node_id, LABEL_LEASE: lease_id}
        return self.client.containers.run(
            self.tiny, list(command) or ["/tiny", "serve"], detach=True, labels=labels,
            network_mode="none",
        )  # fmt: skip

    def hold_removal(self) -> Fault:
        """Ended containers stay for the time being, so that they can be asked when they ended."""
        return self.engine.hang("DELETE", r"^/containers/")

    def settled_exactly(self, lease_id: str, held: Fault) -> dict[str, Any]:
        """The lease has ended at the very moment that the engine states, and is paid so, once.

        Returns:
            The lease; its container is removed from now on.
        """
        held.wait_hit(60)
        container = self.container(lease_id)
        assert container is not None
        state = container.attrs["State"]
        lease = self.lease_by_id(lease_id)
        assert lease["state"] == "settled"
        assert lease["started_us"] == parse_time(state["StartedAt"])
        assert lease["finished_us"] == parse_time(state["FinishedAt"])
        assert not lease["finished_at_unknown"]
        self.engine.remove(held)
        self.paid_once(lease)
        return self.wait_over(lease_id)

    # --- the ledger ---------------------------------------------------------------------------

    def rows(self, question: str, *values: object) -> list[Any]:
        path = self.state / "ledger.sqlite"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(question, values).fetchall()

    def segments(self, lease_id: str) -> list[Segment]:
        return [
            Segment(*row)
            for row in self.rows(
                "SELECT s.from_us, s.til_us, p.rate_u_per_hour, s.payer, s.amount_u,"
                " coalesce((SELECT sum(e.amount_u) FROM entry e WHERE e.segment_id = s.id), 0)"
                " FROM segment s JOIN price p ON p.id = s.price_id"
                " WHERE s.lease_id = ? ORDER BY s.from_us",
                lease_id,
            )
        ]

    def paid_once(self, lease: dict[str, Any]) -> list[Segment]:
        """From its start to its end every µs of a lease is paid for exactly once, and no other."""
        found = self.segments(lease["lease_id"])
        if lease["started_us"] is None or lease["started_us"] == lease["finished_us"]:
            assert found == []
            return found
        assert found[0].from_us == lease["started_us"]
        assert found[-1].til_us == lease["finished_us"]
        for one, following in pairwise(found):
            assert one.til_us == following.from_us
        for rate_u, group in groupby(found, lambda one: one.rate_u):
            run = list(group)
            ran_us = run[-1].til_us - run[0].from_us
            assert sum(one.amount_u for one in run) == rate_u * ran_us // HOUR_US
        assert all(one.paid_u == one.amount_u for one in found)
        asked = lease["stop_requested_us"]
        for one in found:
            stopping = asked is not None and one.from_us >= asked
            assert one.payer == ("writeoff" if stopping else "user")
        return found

    def never_ran(self, lease_id: str) -> dict[str, Any]:
        """The lease is over, has cost nothing, and nothing is held for it."""
        lease = self.wait_over(lease_id)
        assert lease["state"] == "cancelled"
        assert (lease["started_us"], lease["cost_u"], lease["writeoff_u"]) == (None, 0, 0)
        assert self.segments(lease_id) == []
        assert self.open_holds(lease_id) == 0
        return lease

    def open_holds(self, lease_id: str) -> int:
        question = "SELECT count(*) FROM hold WHERE lease_id = ? AND state = 'open'"
        return int(self.rows(question, lease_id)[0][0])

    def lease_ids_of(self, user: str) -> list[str]:
        """All leases that a user has ever had, the oldest first."""
        question = "SELECT id FROM lease WHERE user_name = ? ORDER BY granted_us"
        return [row[0] for row in self.rows(question, user)]

    def told(self, user: str) -> list[str]:
        """What a user who looks at the service's pages is told of servers that have ended."""
        browser = self.login(user)
        assert browser.get("/services/gpuslice/").ok
        answer = browser.get("/services/gpuslice/api/me/notices?since=0")
        assert answer.ok, answer.text
        return [one["message"] for one in answer.json()]

    # --- afterwards ---------------------------------------------------------------------------

    def tidy(self) -> None:
        """Nobody has a server, nothing is left, and the books agree; for all that ever ran."""
        self.engine.up()
        self.engine.clear()
        for name in ("crash", "crash-service"):
            (self.state / name).unlink(missing_ok=True)
        for user in [one["name"] for one in self.rest("GET", "users").json()]:
            if self.server(user):
                self.rest("DELETE", f"users/{user}/server")
        for lease_id in self.running():
            self.kill_container(lease_id)
        self.wait_clean()
        over = [self.wait_over(lease_id) for lease_id in self.lease_ids()]
        for lease in over:
            self.paid_once(lease)
            assert self.open_holds(lease["lease_id"]) == 0
        assert self.rows("SELECT sum(held_u), sum(active) FROM account_period") in (
            [(0, 0)], [(None, None)],
        )  # fmt: skip


@contextmanager
def fault_world(
    folder: Path, client: docker.DockerClient, tiny: str, *, engine: str = ENGINE
) -> Iterator[FaultWorld]:
    """A platform that runs; everything of it is gone afterwards."""
    world = FaultWorld(folder, client, [tiny], engine=engine)
    try:
        world.start()
        yield world
    finally:
        world.end()


def pid_rss(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
