"""Two real service processes on one PostgreSQL ledger: one works, the other waits for its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from service_world import closed_port, wait_until
from test_run import Platform

from gpuslice.broker.verify import verify
from gpuslice.ledger.database import Database
from gpuslice.ledger.tables import Lease, Meter, Segment

pytestmark = pytest.mark.postgres


class Pair(Platform):
    """A node and two services, each on a port of its own."""

    first: subprocess.Popen[bytes]
    other: subprocess.Popen[bytes]

    def __init__(self, state: Path, url: str) -> None:
        super().__init__(state)
        text = self.config.read_text()
        self.config.write_text(f'{text}[database]\nurl = "{url}"\n')
        self.database = Database(url)
        self.second = closed_port()

    def start_at(self, port: int, name: str) -> subprocess.Popen[bytes]:
        """A service on a port of its own, as an administrator sets it: by the environment."""
        os.environ["GPUSLICE__SERVICE__PORT"] = str(port)
        try:
            return self.start(name, *self.service_argv)
        finally:
            del os.environ["GPUSLICE__SERVICE__PORT"]

    def ask(self, port: int, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return httpx.request(
            method, f"http://127.0.0.1:{port}/services/gpuslice/{path}", timeout=30,
            headers={"Authorization": f"token {self.broker_token}"}, trust_env=False, **kwargs,
        )  # fmt: skip

    def status(self, port: int) -> str:
        try:
            return str(self.ask(port, "GET", "api/health").json().get("status"))
        except httpx.HTTPError:
            return "away"

    def until(self, port: int, *wanted: str) -> None:
        log = self.log("second" if port == self.second else "first")
        wait_until(lambda: self.status(port) in wanted, log)

    def grant(self, port: int, user: str) -> httpx.Response:
        body = {"attempt": uuid.uuid4().hex, "user": user, "slice": "cpu"}
        return self.ask(port, "POST", "api/broker/leases", json=body)

    def active(self, port: int) -> str:
        """The gauge of one service, as Prometheus reads it."""
        scopes = ["access:services!service=gpuslice", "read:metrics"]
        model = {"kind": "service", "name": "prometheus", "scopes": scopes}
        self.hub.people["token-of-prometheus"] = model
        answer = httpx.get(
            f"http://127.0.0.1:{port}/services/gpuslice/metrics", trust_env=False,
            headers={"Authorization": "token token-of-prometheus"}, timeout=30,
        )  # fmt: skip
        values = re.findall(r"(?m)^gpuslice_service_active_success (.*)$", answer.text)
        return str(values[0]) if values else answer.text

    def pretend_elsewhere(self) -> None:
        """Have the active one run where nobody here can look whether it lives."""
        with self.database.engine.begin() as connection:
            connection.execute(sa.update(Meter).values(boot_id="another/pid:[1]"))

    def close(self) -> None:
        super().close()
        assert self.database.read(verify) == []
        with self.database.engine.connect() as connection:
            twice = sa.select(Segment.lease_id).group_by(Segment.lease_id, Segment.from_us)
            assert connection.execute(twice.having(sa.func.count() > 1)).all() == []
        self.database.close()


@pytest.fixture
def pair(tmp_path: Path, postgres_url: str) -> Iterator[Pair]:
    state = tmp_path / "st ate"
    state.mkdir(mode=0o700)
    made = Pair(state, postgres_url)
    try:
        made.start_node()
        made.first = made.start_at(made.port, "first")
        made.until(made.port, "ok", "degraded")
        made.other = made.start_at(made.second, "second")
        made.until(made.second, "standby")
        yield made
    finally:
        made.close()


def test_a_standby_says_so_and_takes_over_from_the_dead(pair: Pair) -> None:
    granted = pair.grant(pair.port, "ada")
    assert granted.status_code == 201
    for method, path in (("GET", "api/broker/offers"), ("GET", ""), ("POST", "api/broker/drain")):
        answer = pair.ask(pair.second, method, path)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert pair.grant(pair.second, "bob").json()["reason"] == "standby"
    assert [pair.active(port) for port in (pair.port, pair.second)] == ["1.0", "0.0"]

    # It is where nobody can see whether it lives: only its beat says so.
    pair.pretend_elsewhere()
    pair.first.send_signal(signal.SIGKILL)
    pair.first.wait()
    pair.until(pair.second, "ok", "degraded")
    lease_id = granted.json()["lease_id"]
    assert pair.ask(pair.second, "GET", f"api/broker/leases/{lease_id}").status_code == 200
    assert pair.grant(pair.second, "bob").status_code == 201

    # Whoever died comes back and waits in turn.
    pair.start_at(pair.port, "first")
    pair.until(pair.port, "standby")
    lines = [json.loads(line) for line in pair.log("second").read_text().splitlines()]
    happened = [line["event"] for line in lines]
    assert happened.index("standby") < happened.index("taking-over")


def test_a_service_that_is_started_again_in_its_container_goes_on_at_once(pair: Pair) -> None:
    """After a SIGKILL: nobody it could ask sees the process before it, and the beat is fresh."""
    pair.other.send_signal(signal.SIGTERM)
    assert pair.other.wait(60) == 0
    table = str(Path("/proc/self/ns/pid").readlink())
    with pair.database.engine.begin() as connection:
        connection.execute(
            sa.update(Meter).values(boot_id=sa.func.replace(Meter.boot_id, table, "pid:[1]"))
        )
    pair.first.send_signal(signal.SIGKILL)
    pair.first.wait()
    pair.start_at(pair.port, "again")
    wait_until(lambda: pair.status(pair.port) in ("ok", "degraded"), pair.log("again"))
    lines = [json.loads(line) for line in pair.log("again").read_text().splitlines()]
    assert "standby" not in [line["event"] for line in lines]


def test_a_paused_service_is_replaced_and_ends(pair: Pair) -> None:
    pair.first.send_signal(signal.SIGSTOP)
    pair.until(pair.second, "ok", "degraded")
    assert pair.grant(pair.second, "ada").status_code == 201
    pair.first.send_signal(signal.SIGCONT)
    # It answers no more, or refuses: what it writes is not kept.
    with contextlib.suppress(httpx.HTTPError):
        assert pair.grant(pair.port, "bob").status_code == 503
    assert pair.first.wait(60) == 1
    assert "taken over" in pair.log("first").read_text()
    with pair.database.engine.connect() as connection:
        assert connection.scalars(sa.select(Lease.user_name)).all() == ["ada"]
    assert pair.status(pair.second) in ("ok", "degraded")


def test_an_orderly_end_hands_over_at_once(pair: Pair) -> None:
    pair.pretend_elsewhere()
    pair.first.send_signal(signal.SIGTERM)
    assert pair.first.wait(60) == 0
    with pair.database.engine.connect() as connection:
        row = connection.execute(sa.select(Meter.pid, Meter.boot_id)).one()
    # Handed over, or taken already; in neither case did anybody wait for a stale beat.
    assert row.pid in (0, pair.other.pid)
    pair.until(pair.second, "ok", "degraded")
    pair.other.send_signal(signal.SIGTERM)
    assert pair.other.wait(60) == 0


def test_a_standby_ends_when_it_is_told(pair: Pair) -> None:
    pair.other.send_signal(signal.SIGTERM)
    assert pair.other.wait(60) == 0
    assert pair.status(pair.port) in ("ok", "degraded")
