"""The service as a process with the real broker, ledger and node; the hub is a socket here."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import secrets
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from service_world import closed_port, end, wait_until

from gpuslice import wire
from gpuslice.cli.app import main
from gpuslice.cli.ledger import problems

SECRETS = (
    "service_token", "broker_token", "node_token", "operator_token", "cookie_secret",
    "ledger_signing_key",
)  # fmt: skip


class SlowHub:
    """Knows the tokens it was told; of all others it says that it does not, when told to."""

    def __init__(self) -> None:
        asked, answer = self.asked, self.answer = threading.Event(), threading.Event()
        people = self.people = dict[str, dict[str, Any]]()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = people.get(self.headers.get("Authorization", "").partition(" ")[2])
                if known is not None:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(json.dumps(known).encode())
                    return
                asked.set()
                answer.wait(60)
                self.send_response(403)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.answer.set()
        self._server.shutdown()
        self._server.server_close()


class Platform:
    """A node and a service on a folder of their own."""

    def __init__(self, state: Path) -> None:
        self.state, self.hub, self.port = state, SlowHub(), closed_port()
        self.url = f"http://127.0.0.1:{self.port}/services/gpuslice/"
        self.config = state / "gpuslice.toml"
        self.config.write_text(
            f"[service]\nport = {self.port}\n[timing]\nreconcile_s = 1\nstart_timeout_s = 30\n"
            f'[hub]\napi_url = "http://127.0.0.1:{self.hub.port}/hub/api"\n'
        )
        (state / "secrets").mkdir(mode=0o700)
        for name in SECRETS:
            file = state / "secrets" / name
            file.touch(mode=0o600)
            file.write_text(secrets.token_hex(32) + "\n")
        self.broker_token = (state / "secrets" / "broker_token").read_text().strip()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start_node(self) -> None:
        node = self.state / "node"
        self.start(
            "node", "-m", "gpuslice.node", "--state", str(node), "--service-url", self.url,
            "--token-file", str(self.state / "secrets" / "node_token"),
        )  # fmt: skip
        wait_until((node / "control.sock").exists, self.log("node"))

    def start_service(self) -> subprocess.Popen[bytes]:
        process = self.start("service", *self.service_argv)
        wait_until(self.answers, self.log("service"))
        return process

    @property
    def service_argv(self) -> list[str]:
        return ["-m", "gpuslice.service", "--config", str(self.config), "--state", str(self.state)]

    def start(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *argv], stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def log(self, name: str) -> Path:
        return self.state / f"{name}.log"

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}api/health", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def digests(self) -> int:
        """How many days the service has closed."""
        with contextlib.closing(sqlite3.connect(self.state / "ledger.sqlite")) as ledger:
            return int(ledger.execute("SELECT COUNT(*) FROM digest").fetchone()[0])

    def broker(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        headers = {"Authorization": f"token {self.broker_token}"}
        return httpx.request(
            method, f"{self.url}api/broker/{path}", headers=headers, timeout=60,
            trust_env=False, **kwargs,
        )  # fmt: skip

    def fails(self, *changes: str) -> str:
        """Start a service that must not start; what it says."""
        done = subprocess.run(
            [sys.executable, *self.service_argv, *changes], capture_output=True, timeout=120
        )
        assert done.returncode == 1
        said = done.stderr.decode()
        assert "Traceback" not in said
        return said

    def close(self) -> None:
        for process in reversed(self._processes):
            end(process)
        self.hub.close()


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    # A folder with a space in its name, as in somebody's home.
    state = tmp_path / "st ate"
    state.mkdir(mode=0o700)
    platform = Platform(state)
    try:
        yield platform
    finally:
        platform.close()


def test_limits_stops_and_bills_through_the_real_broker(platform: Platform) -> None:
    """What an administrator does on the pages is what the broker then does, and the record says."""
    access = "access:services!service=gpuslice"
    for name, scopes, groups in (
        ("root1", [access, "custom:gpuslice:admin"], []),
        ("mia", [access, "custom:gpuslice:lease!user=mia"], ["lab"]),
    ):
        model = {"kind": "user", "name": name, "scopes": scopes, "groups": groups}
        platform.hub.people[f"token-of-{name}"] = model

    def ask(name: str, method: str, path: str, **kwargs: Any) -> httpx.Response:
        headers = {"Authorization": f"token token-of-{name}"}
        return httpx.request(
            method, f"{platform.url}{path}", headers=headers, trust_env=False, timeout=60, **kwargs
        )

    def set_limit(**form: str) -> int:
        return ask(
            "root1", "POST", "admin/limits", data={"reason": "<b>term</b>"} | form
        ).status_code

    platform.start_node()
    platform.start_service()
    limits = [
        wire.LimitView.model_validate(v)
        for v in ask("root1", "GET", "api/admin/limits").json()["limits"]
    ]
    assert [limit.scope for limit in limits] == ["default"]
    version = str(limits[0].version)
    assert set_limit(scope="default", value="0", version=version) == 303
    assert set_limit(scope="default", value="7", version=version) == 409
    request = {"attempt": uuid.uuid4().hex, "user": "mia", "slice": "cpu", "groups": ["lab"]}
    assert platform.broker("POST", "leases", json=request).status_code >= 400

    # A group's limit: what the page says is what the broker grants.
    assert "your limit is 0" in ask("mia", "GET", "").text
    assert set_limit(scope="group_member", name="lab", value="1") == 303
    assert ask("mia", "GET", "api/me").json()["leases_limit"] == 1
    granted = platform.broker("POST", "leases", json=request)
    assert granted.status_code == 201, granted.text
    lease_id = granted.json()["lease_id"]
    assert lease_id in ask("root1", "GET", "admin").text

    reason = {"reason": "<i>needed</i>"}
    assert ask("root1", "POST", f"admin/leases/{lease_id}/stop", data=reason).status_code == 303
    audit = ask("root1", "GET", "api/admin/audit").json()["rows"]
    assert [(row["actor"], row["action"], row["reason"]) for row in audit[:3]] == [
        ("root1", "lease.stop", "<i>needed</i>"),
        ("root1", "policy.set", "<b>term</b>"),
        ("root1", "policy.set", "<b>term</b>"),
    ]
    page = ask("root1", "GET", "admin/audit").text
    assert "&lt;b&gt;term&lt;/b&gt;" in page
    assert "<b>term" not in page

    bill = wire.Bill.model_validate(ask("mia", "GET", f"api/leases/{lease_id}/bill").json())
    assert (bill.lease.cost_u, bill.lines) == (0, [])
    assert "never, so nothing is billed" in ask("mia", "GET", f"leases/{lease_id}").text


def test_slices_are_reserved_by_the_command_line(platform: Platform) -> None:
    platform.start_node()
    platform.start_service()

    def gpuslice(*argv: str) -> str:
        where = ["--state", str(platform.state), "--config", str(platform.config)]
        done = CliRunner().invoke(main, [*argv, *where], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    def ask(user: str, groups: list[str]) -> httpx.Response:
        body = {"attempt": uuid.uuid4().hex, "user": user, "slice": "cpu", "groups": groups}
        return platform.broker("POST", "leases", json=body)

    assert gpuslice("reserve", "list") == "Nothing is reserved.\n"
    today, tomorrow = (datetime.now(UTC).date() + timedelta(days=n) for n in (0, 1))
    add = ("reserve", "add", "course", "cpu", "100000", "--from", "00:00", "--til", "00:00",
           "--first", str(today), "--last", str(tomorrow), "--timezone", "UTC", "--notice", "15m",
           "--title", "<b>Lab</b>", "--reason", "term")  # fmt: skip
    said = gpuslice(*add)
    assert "1: 100000 cpu for group course (<b>Lab</b>)" in said
    assert f"next: {today:%a %Y-%m-%d} 00:00" in said and "WARNING: The whole fleet holds" in said
    assert gpuslice("reserve", "list") == said

    refused = ask("eve", [])
    assert refused.status_code == 503
    assert wire.Refusal.model_validate_json(refused.content).reason == "reserved"
    assert ask("student", ["course"]).status_code == 201
    (offer,) = [wire.Offer.model_validate(o) for o in platform.broker("GET", "offers").json()]
    assert (offer.free, offer.reserved > 0) == (0, True)

    gpuslice("reserve", "cancel", "1", "--reason", "over")
    assert gpuslice("reserve", "list") == "Nothing is reserved.\n"
    assert "cancelled" in gpuslice("reserve", "list", "--all")
    assert ask("eve", []).status_code == 201


def test_a_lease_through_the_real_parts(platform: Platform) -> None:
    platform.start_node()
    process = platform.start_service()
    offers = [wire.Offer.model_validate(o) for o in platform.broker("GET", "offers").json()]
    cpu = next(offer for offer in offers if offer.kind is wire.SliceKind.CPU)

    unknown = {"attempt": uuid.uuid4().hex, "user": "alice", "slice": "../x"}
    refused = platform.broker("POST", "leases", json=unknown)
    assert 400 <= refused.status_code < 500
    wire.Refusal.model_validate_json(refused.content)

    request = {"attempt": uuid.uuid4().hex, "user": "alice", "server": "a", "slice": cpu.slice}
    answer = platform.broker("POST", "leases", json=request)
    assert answer.status_code == 201, answer.text
    lease_id = answer.json()["lease_id"]
    current = platform.broker("GET", "current", params={"user": "alice", "server": "a"})
    assert current.json()["lease_id"] == lease_id

    # The service goes and comes back; the lease is where it was.
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process = platform.start_service()
    assert platform.broker("GET", f"leases/{lease_id}").json()["state"] == "granted"

    body = {"reason": "enough", "actor": "test"}
    assert platform.broker("POST", f"leases/{lease_id}/stop", json=body).status_code == 200
    ended = platform.broker("POST", f"leases/{lease_id}/settle", params={"wait_s": 30}).json()
    assert (ended["state"], ended["cost_u"]) == ("cancelled", 0)
    # Housekeeping runs beside it, and has signed with the key that `init` makes.
    wait_until(lambda: platform.digests() >= 1, platform.log("service"))
    assert problems(platform.state, platform.config) == []
    drained = platform.broker("POST", "drain", json=body)
    assert drained.json() == {"live": 0}
    assert platform.broker("POST", "leases", json=request).status_code >= 400

    # One that uses the port already, and one told in the settings to use another database.
    assert "cannot listen" in platform.fails()

    for line in platform.log("service").read_text().splitlines():
        json.loads(line)
    everything = platform.log("service").read_text()
    for name in SECRETS:
        assert (platform.state / "secrets" / name).read_text().strip() not in everything


def test_sigterm_finishes_what_is_being_answered(platform: Platform) -> None:
    platform.start_node()
    process = platform.start_service()
    answers: list[httpx.Response] = []

    def ask() -> None:
        headers = {"Authorization": "token of-nobody"}
        url = f"{platform.url}api/me"
        answers.append(httpx.get(url, headers=headers, timeout=60, trust_env=False))

    thread = threading.Thread(target=ask)
    thread.start()
    assert platform.hub.asked.wait(60)
    # While the hub keeps somebody waiting, the spawner does not wait.
    assert platform.broker("GET", "offers").status_code == 200
    assert not answers

    process.send_signal(signal.SIGTERM)
    wait_until(lambda: not platform.answers(), platform.log("service"))
    platform.hub.answer.set()
    thread.join(60)
    assert [answer.status_code for answer in answers] == [401]
    assert process.wait(60) == 0
    assert '"event": "ended"' in platform.log("service").read_text()


def test_what_is_wrong_is_one_sentence(platform: Platform) -> None:
    token = platform.state / "secrets" / "broker_token"
    token.chmod(0o640)
    said = platform.fails()
    assert str(token) in said
    assert f"chmod 600 '{token}'" in said
    token.chmod(stat.S_IRUSR | stat.S_IWUSR)

    text = token.read_text()
    token.write_text("short")
    assert str(token) in platform.fails()
    token.unlink()
    assert str(token) in platform.fails()
    token.touch(mode=0o600)
    token.write_text(text)

    key = platform.state / "secrets" / "ledger_signing_key"
    text = key.read_text()
    key.write_text("no hexadecimal, but longer than thirty-two".replace(" ", "-"))
    assert f"{key}: must hold 32 bytes in hexadecimal" in platform.fails()
    key.write_text(text)

    platform.config.write_text("[service]\nprot = 1\n")
    assert "service.prot" in platform.fails()
    platform.config.write_text('[service]\npublic_prefix = "/elsewhere/"\n')
    assert "/services/gpuslice/" in platform.fails()
    platform.config.write_text(
        f'[service]\nport = {platform.port}\n[database]\nurl = "sqlite:////nowhere/at/all.sqlite"\n'
    )
    assert "nowhere" in platform.fails()
    assert str(platform.state / "secrets") not in platform.log("service").name
