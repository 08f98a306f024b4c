"""``gpuslice up`` itself: what it refuses, how it ends, and a real JupyterLab in it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from platform_world import Platform, alive, until

pytestmark = pytest.mark.hub


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Platform]:
    """A platform that is not started yet."""
    world = Platform(tmp_path)
    yield world
    world.kill_everything()


def run(platform: Platform, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*platform.command(), *more], capture_output=True, text=True, timeout=120, check=False
    )


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("gpuslice: ")
    return done.stderr


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("port", ["browsers", "--port"]),
        ("proxy_api", ["routes", "--proxy-api-port"]),
        ("hub_port", ["the hub", "hub.api_url"]),
        ("service_port", ["service", "service.port"]),
    ],
)
def test_a_port_in_use_is_named(fresh: Platform, which: str, words: list[str]) -> None:
    number = getattr(fresh, which)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", number))
        taken.listen()
        said = one_sentence(run(fresh))
    assert said.count("\n") == 1
    for word in [str(number), *words]:
        assert word in said


def test_one_port_for_two_parts(fresh: Platform) -> None:
    said = one_sentence(run(fresh, "--port", str(fresh.service_port)))
    assert "asked for twice" in said


def test_bad_settings_are_named(fresh: Platform) -> None:
    fresh.config.write_text("[limits]\nleases_per_usr = 2\n")
    said = one_sentence(run(fresh))
    assert str(fresh.config) in said
    assert "limits.leases_per_usr" in said
    assert not (fresh.state / "run" / "supervisord.pid").exists()


def test_a_part_that_keeps_ending_is_shown(fresh: Platform, tmp_path: Path) -> None:
    broken = tmp_path / "broken_config.py"
    broken.write_text("raise SystemExit('this hub is misconfigured')\n")
    done = run(fresh, "--hub-config", str(broken))
    said = one_sentence(done)
    assert "hub keeps ending at its start" in said
    assert "this hub is misconfigured" in said
    for part in ("supervisord", "proxy", "node", "service"):
        path = fresh.state / "run" / f"{part}.pid"
        assert not path.exists() or not alive(int(path.read_text()))


def test_the_life_of_a_platform(fresh: Platform) -> None:
    fresh.start()

    # A second one says where the first is.
    said = one_sentence(run(fresh))
    assert fresh.url in said and said.count("\n") == 1

    # What it has printed, and how it keeps its secrets.
    text = fresh.text()
    password = (fresh.state / "secrets" / "demo_password").read_text().strip()
    for words in (fresh.url, password, "SIMULATED", "NVIDIA H100", "not private from each other"):
        assert words in text
    for secret in (fresh.state / "secrets").iterdir():
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert secret.name == "demo_password" or secret.read_text().strip() not in text
    for name in ("ledger.sqlite", "jupyterhub.sqlite", "run", "log", "node", "homes"):
        assert stat.S_IMODE((fresh.state / name).stat().st_mode) & 0o077 == 0, name

    # Ctrl-C drains.
    lease = fresh.spawn("drained", "quarter")
    pid = fresh.server_pid(lease["lease_id"])
    parts = [fresh.pid(part) for part in ("supervisord", "hub", "service", "node", "proxy")]
    assert fresh.stop() == 0
    assert not alive(pid)
    assert not any(alive(part) for part in parts)
    assert "1 lease to settle" in fresh.text()
    assert "all leases settled" in fresh.text()
    assert fresh.verify() == []

    # The same folder again: same passwords, the hub has forgotten the server too.
    fresh.start()
    assert (fresh.state / "secrets" / "demo_password").read_text().strip() == password
    assert fresh.lease_by_id(lease["lease_id"])["state"] == "ended"
    until("the hub has no such server", lambda: fresh.server("drained") is None)

    # SIGKILL of `up` alone: the parts end by themselves, the notebook goes on and is found again.
    lease = fresh.spawn("drained", "quarter")
    pid = fresh.server_pid(lease["lease_id"])
    parts = [fresh.pid(part) for part in ("supervisord", "hub", "service", "node", "proxy")]
    assert fresh._up is not None
    fresh._up.kill()
    fresh._up.wait()
    until("the parts have ended", lambda: not any(alive(part) for part in parts))
    assert alive(pid)
    fresh.start()
    fresh.wait_ready("drained")
    found = fresh.lease("drained")
    assert found is not None
    assert found["lease_id"] == lease["lease_id"]
    assert alive(pid)

    # A second Ctrl-C ends the parts at once; the notebook goes on here too.
    assert fresh._up is not None
    fresh._up.send_signal(signal.SIGSTOP)
    fresh._up.send_signal(signal.SIGINT)
    fresh._up.send_signal(signal.SIGTERM)
    fresh._up.send_signal(signal.SIGCONT)
    assert fresh._up.wait(60) == 130
    assert alive(pid)
    assert "servers go on" in fresh.text()
    os.kill(pid, signal.SIGKILL)


def test_a_real_jupyterlab(tmp_path: Path) -> None:
    folder = tmp_path / "really with a space # and ; more %s"
    folder.mkdir()
    platform = Platform(folder, real_notebooks=True)
    try:
        platform.start()
        lease = platform.spawn("élodie o'neil", "quarter")
        browser = platform.login("élodie o'neil")
        page = browser.get("/user/%C3%A9lodie%20o%27neil/lab")
        assert page.status_code == 200, page.url
        assert "jupyter-config-data" in page.text
        kernels = requests.get(
            f"{platform.url}/user/%C3%A9lodie%20o%27neil/api/kernelspecs",
            headers={"Authorization": f"token {platform.token}"},
            timeout=30,
        )
        assert "python3" in kernels.json()["kernelspecs"]
        assert lease["state"] == "running"
        assert platform.stop() == 0
        assert platform.verify() == []
    finally:
        platform.kill_everything()
