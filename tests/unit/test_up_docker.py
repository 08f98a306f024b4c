"""`gpuslice up --engine docker`: what it refuses, in one sentence that says what to do.

Docker's command line is a stand-in here; `tests/docker/test_compose.py` has the real one.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gpuslice.cli import main
from gpuslice.cli.compose import (
    Deployment,
    PartState,
    engine_problems,
    last_line,
    read_deployment,
    read_part,
)

ROOT = Path(__file__).parents[2]
GOOD = {"ServerVersion": "26.1.5+dfsg1", "CDISpecDirs": ["/etc/cdi"], "OSType": "linux"}
IMAGES = ("gpuslice/hub:latest", "gpuslice/node:latest")

#: Answers from files in its own folder: what each call prints, and fails where told to.
DOCKER = """#!/bin/sh
here=$(dirname "$0")
answer() {
    if [ -e "$here/$1.err" ]; then cat "$here/$1.err" >&2; exit 1; fi
    cat "$here/$1" 2>/dev/null || true
}
case "$*" in
    "info --format {{json .}}") answer info ;;
    "compose version") answer plugin ;;
    *' config --format json') answer config ;;
    *' up --detach') answer up ;;
    "image inspect"*) for name; do :; done; grep -qx "$name" "$here/images" ;;
    "ps "*) answer ps ;;
    "inspect "*) answer inspect ;;
    "logs "*) answer logs ;;
    *' down') : >"$here/was-ended" ;;
    *) echo "not expected: $*" >&2; exit 9 ;;
esac
"""


class World:
    """A machine with a stand-in for Docker."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        docker = self.bin / "docker"
        docker.write_text(DOCKER)
        docker.chmod(0o755)
        self.toml, self.hub = folder / "gpuslice.toml", folder / "jupyterhub_config.py"
        for file in (self.toml, self.hub):
            file.write_text("")
            file.chmod(0o644)
        self._states = (folder / f"state{number}" for number in itertools.count())
        self.say("info", json.dumps(GOOD))
        self.say("config", json.dumps(config(self.toml, self.hub, port=1)))
        self.say("images", "\n".join(IMAGES))
        # What is not refused goes on to here, and would wait for parts that never come.
        self.fail("up", "started\n")

    def say(self, what: str, text: str) -> None:
        (self.bin / what).write_text(text)

    def fail(self, what: str, text: str) -> None:
        (self.bin / f"{what}.err").write_text(text)

    def up(self, *more: str) -> Result:
        # Another folder each time: a run holds its own until its process ends.
        command = ["up", "--engine", "docker", "--state", str(next(self._states)), *more]
        return CliRunner().invoke(main, command)

    def refused(self, *more: str) -> str:
        done = self.up(*more)
        assert done.exit_code == 1, done.output
        assert isinstance(done.exception, SystemExit)
        assert done.stderr.startswith("gpuslice: ")
        return done.stderr


def config(toml: Path, hub: Path, *, port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    """What `docker compose config --format json` says, as far as it is read."""
    targets = {
        "/etc/gpuslice/gpuslice.toml": toml,
        "/etc/gpuslice/jupyterhub_config.py": hub,
    }
    binds = [{"type": "bind", "source": str(s), "target": t} for t, s in targets.items()]
    volume = {"type": "volume", "source": "hub", "target": "/var/lib/gpuslice"}
    ports = [{"host_ip": host, "published": str(port), "target": 8000}]
    return {
        "name": "gpuslice",
        "services": {
            "hub": {"image": IMAGES[0], "volumes": [volume, *binds]},
            "proxy": {"image": IMAGES[0], "ports": ports},
            "node": {"image": IMAGES[1]},
        },
    }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setenv("PATH", f"{world.bin}:{os.environ['PATH']}")
    # Ctrl-C is pytest's here.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    return world


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


# --- what it refuses ----------------------------------------------------------------------------


def test_no_docker(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    said = world.refused()
    assert "Docker is not installed" in said and "docker.io" in said


def test_an_engine_that_does_not_answer(world: World) -> None:
    world.fail("info", "ERROR: Cannot connect to the Docker daemon\n")
    assert "does not answer: ERROR: Cannot connect to the Docker daemon" in world.refused()


def test_an_engine_that_says_its_errors_in_its_answer(world: World) -> None:
    world.say("info", json.dumps({"ServerErrors": ["permission denied"]}))
    assert "does not answer: permission denied" in world.refused()


def test_an_old_engine(world: World) -> None:
    world.say("info", json.dumps({**GOOD, "ServerVersion": "20.10.24"}))
    assert "20.10.24, and CDI devices need 25" in world.refused()


def test_an_engine_without_cdi(world: World) -> None:
    world.say("info", json.dumps({**GOOD, "CDISpecDirs": []}))
    assert '{"features": {"cdi": true}}' in world.refused()


def test_no_compose_plugin(world: World) -> None:
    world.fail("plugin", "docker: 'compose' is not a docker command.\n")
    assert "compose plugin is not installed" in world.refused()


def test_a_compose_file_that_cannot_be_read(world: World) -> None:
    world.fail("config", "a warning\ninvalid interpolation format\n")
    assert "cannot be used: invalid interpolation format" in world.refused()


def test_images_that_are_not_built(world: World) -> None:
    world.say("images", IMAGES[0])
    said = world.refused()
    assert f"The image {IMAGES[1]} is not built yet; run 'make images'" in said
    world.say("images", "")
    assert f"The images {', '.join(IMAGES)} are not built yet" in world.refused()


def test_a_port_in_use(world: World, taken: int) -> None:
    world.say("config", json.dumps(config(world.toml, world.hub, port=taken)))
    said = world.refused()
    assert f"Port {taken} for browsers is in use" in said and "--port" in said


def test_settings_that_are_wrong(world: World) -> None:
    world.toml.write_text("[limits]\nleases_per_usr = 1\n")
    assert "limits.leases_per_usr: unknown key" in world.refused()


def test_files_that_the_containers_cannot_read(world: World) -> None:
    world.hub.chmod(0o600)
    assert f"chmod o+r '{world.hub}'" in world.refused()
    world.hub.unlink()
    assert f"Cannot read {world.hub}: No such file" in world.refused()


def test_an_option_of_the_other_engine(world: World) -> None:
    done = world.up("--proxy-api-port", "8001")
    assert done.exit_code == 2
    assert "--proxy-api-port does nothing with --engine docker" in done.stderr


# --- a start that fails ---------------------------------------------------------------------------


def inspected(part: str, status: str, **more: Any) -> dict[str, Any]:
    return {
        "Name": f"/gpuslice-{part}",
        "RestartCount": more.get("restarts", 0),
        "Config": {"Labels": {"com.docker.compose.service": part}},
        "State": {
            "Status": status,
            "ExitCode": more.get("exit_code", 0),
            "Health": {"Status": more.get("health", "starting")},
        },
    }


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (inspected("init", "exited", exit_code=1), "The secrets cannot be made."),
        (inspected("node", "restarting", restarts=9), "node keeps ending at its start."),
        (inspected("postgres", "running", health="unhealthy"), "postgres does not become ready."),
    ],
)
def test_a_part_that_fails_is_shown(world: World, broken: dict[str, Any], words: str) -> None:
    world.say("ps", "abc")
    world.say("inspect", json.dumps([broken]))
    world.say("logs", "the last words of it\n")
    world.fail("up", "dependency failed to start\n")
    said = world.refused()
    assert words in said
    assert f"docker logs {broken['Name'].lstrip('/')}" in said
    assert "the last words of it" in said


def test_only_what_it_started_itself_is_ended(world: World) -> None:
    world.fail("up", "no such volume\n")
    assert "docker compose up failed.\n    no such volume" in world.refused()
    assert (world.bin / "was-ended").exists()
    (world.bin / "was-ended").unlink()
    world.say("ps", "abc")
    world.say("inspect", json.dumps([inspected("proxy", "running", health="healthy")]))
    assert "docker compose up failed." in world.refused()
    assert not (world.bin / "was-ended").exists()


# --- what is read of Docker's answers -----------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "count"),
    [
        (GOOD, 0),
        ({**GOOD, "ServerVersion": "25.0.0"}, 0),
        ({**GOOD, "ServerVersion": "24.0.9"}, 1),
        ({**GOOD, "ServerVersion": ""}, 1),
        ({**GOOD, "ServerVersion": "dev"}, 1),
        ({**GOOD, "CDISpecDirs": None}, 1),
        ({**GOOD, "OSType": "windows"}, 1),
    ],
)
def test_what_an_engine_lacks(info: dict[str, Any], count: int) -> None:
    assert len(engine_problems(info)) == count


def test_what_a_deployment_is() -> None:
    made = config(Path("/a.toml"), Path("/b.py"), port=8100, host="")
    assert read_deployment(made) == Deployment(
        project="gpuslice", images=IMAGES, host="0.0.0.0", port=8100,
        config=Path("/a.toml"), hub_config=Path("/b.py"),
    )  # fmt: skip


def test_how_a_part_is() -> None:
    name, part = read_part(inspected("hub", "running", health="healthy"))
    assert name == "hub"
    assert part == PartState("gpuslice-hub", "running", "healthy", 0, 0)
    assert part.ready and not part.failed
    # Well again after it had ended.
    assert not read_part(inspected("hub", "running", health="healthy", restarts=2))[1].failed
    for broken in (
        inspected("hub", "running", health="unhealthy"),
        inspected("hub", "restarting", restarts=1),
        inspected("hub", "exited", exit_code=1, health="healthy"),
    ):
        part = read_part(broken)[1]
        assert part.failed and not part.ready
    without = inspected("init", "exited")
    del without["State"]["Health"]
    assert read_part(without)[1].health == ""


def test_what_went_wrong_is_the_last_line() -> None:
    assert last_line("one\n two \n\n") == "two"
    assert last_line("\n") == "no reason given"


def test_the_compose_file_is_in_the_checkout_and_in_the_wheel() -> None:
    from gpuslice.cli.compose import folder

    assert folder() == ROOT / "hub_config" / "docker"
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert '"hub_config/docker" = "gpuslice/hub_config/docker"' in pyproject
