"""Backup, restore and adoption as an administrator does them: by command, on real processes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_world import wait_until
from test_run import Platform

from gpuslice import wire
from gpuslice.nodeclient import NodeClient


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    state = tmp_path / "st ate"
    state.mkdir(mode=0o700)
    platform = Platform(state)
    try:
        yield platform
    finally:
        platform.close()


def gpuslice(platform: Platform, *words: str, fails: bool = False) -> str:
    """Run a command on this platform; what it says."""
    state = ["--state", str(platform.state), "--config", str(platform.config)]
    done = subprocess.run(
        [sys.executable, "-m", "gpuslice", *words, *state], capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == (1 if fails else 0), done.stderr + done.stdout
    return done.stderr if fails else done.stdout


def run_server(platform: Platform, user: str) -> str:
    """A server that really runs under a CPU lease."""
    request = {"attempt": uuid.uuid4().hex, "user": user, "slice": "cpu"}
    granted = platform.broker("POST", "leases", json=request)
    assert granted.status_code == 201, granted.text
    lease_id = str(granted.json()["lease_id"])
    start = wire.StartServer(
        lease_id=lease_id, argv=[sys.executable, "-c", "import time; time.sleep(600)"], env={},
        cwd=str(platform.state), url="http://127.0.0.1:1/",
    )  # fmt: skip
    asyncio.run(NodeClient(platform.state / "node").start(start))
    wait_until(lambda: state_of(platform, lease_id) == "running", platform.log("service"))
    return lease_id


def state_of(platform: Platform, lease_id: str) -> str:
    return str(platform.broker("GET", f"leases/{lease_id}").json().get("state"))


def test_a_ledger_saved_lost_and_restored(platform: Platform) -> None:
    saved = platform.state / "sa ved"
    platform.start_node()
    process = platform.start_service()
    known = run_server(platform, "ada")
    assert "lease 1" in gpuslice(platform, "backup", str(saved))
    assert "there already" in gpuslice(platform, "backup", str(saved), fails=True)
    bobs, eves = run_server(platform, "bob"), run_server(platform, "eve")

    back = ("restore", str(saved), "--reason", "a disk died")
    assert "--replace" in gpuslice(platform, *back, fails=True)
    assert "meters this ledger" in gpuslice(platform, *back, "--replace", fails=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = gpuslice(platform, *back, "--replace")
    assert f"not in the ledger: {bobs} of bob" in said
    assert f"to be billed anew: {known} of ada" in said
    assert "ledger.sqlite.before-" in said

    platform.start_service()
    assert state_of(platform, known) == "running"
    listed = json.loads(gpuslice(platform, "unaccounted", "list", "--json"))
    assert {one["lease_id"]: one["user"] for one in listed} == {bobs: "bob", eves: "eve"}
    gpuslice(platform, "unaccounted", "adopt", bobs, "--reason", "it is bob's")
    gpuslice(platform, "unaccounted", "stop", eves, "--reason", "nobody knows eve")
    wait_until(
        lambda: "has a lease" in gpuslice(platform, "unaccounted", "list"),
        platform.log("service"),
    )
    assert state_of(platform, bobs) == "running"
    body = {"reason": "enough", "actor": "test"}
    for lease_id in (known, bobs):
        assert platform.broker("POST", f"leases/{lease_id}/stop", json=body).status_code == 200
        asyncio.run(NodeClient(platform.state / "node").stop(lease_id, 1.0))
        settled = platform.broker("POST", f"leases/{lease_id}/settle", params={"wait_s": 60})
        assert settled.json()["state"] == "ended"
    said = gpuslice(platform, "restored")
    assert "a disk died" in said
    assert known[:8] in said
    assert bobs[:8] in said
    assert "in order" in gpuslice(platform, "ledger", "verify")


def test_what_cannot_be_saved_or_restored_is_one_sentence(platform: Platform) -> None:
    missing = platform.state / "nothing"
    assert "no ledger" in gpuslice(platform, "backup", str(missing), fails=True)
    assert not missing.exists()
    assert "two files" in gpuslice(
        platform, "restore", str(missing), "--reason", "why not", fails=True
    )
    assert "not a gpuslice ledger" in _with_empty_file(platform)


def _with_empty_file(platform: Platform) -> str:
    (platform.state / "ledger.sqlite").touch()
    return gpuslice(platform, "backup", str(platform.state / "saved"), fails=True)
