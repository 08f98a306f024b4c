"""gpuslice doctor and a compose deployment: asked part by part, by a ``docker`` of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuslice.cli.doctor import examine, report
from gpuslice.cli.doctor.deployed import examine_deployment
from gpuslice.cli.doctor.findings import Finding, Level, ok, problem
from gpuslice.cli.state import State
from pyscript import write_script

DOCKER = """\
import json, sys
from pathlib import Path
folder = Path({folder!r})
words = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
if words[0] == "compose":
    print((folder / "compose.json").read_text())
elif words[:1] == ["ps"]:
    print("id1")
elif words[:1] == ["inspect"]:
    print((folder / "parts.json").read_text())
elif words[:1] == ["exec"]:
    answer = folder / f"{{words[1]}}.json"
    if not answer.exists():
        sys.exit("Usage: gpuslice [OPTIONS] COMMAND\\nError: No such command 'doctor'.")
    print(answer.read_text())
    sys.exit(json.loads(answer.read_text()).get("exit_code", 0))
else:
    sys.exit(f"not expected: {{words}}")
"""


class Deployed:
    """A deployment as docker's command line shows it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.state = State(folder / "state")
        config = folder / "gpuslice.toml"
        config.write_text('[docker]\nsocket = "/no/such.sock"\n')
        program = folder / "bin" / "docker"
        program.parent.mkdir()
        write_script(program, DOCKER.format(folder=str(folder)))
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        volumes = [
            {"type": "bind", "target": f"/etc/gpuslice/{name}", "source": str(config)}
            for name in ("gpuslice.toml", "jupyterhub_config.py")
        ]
        services = {
            "proxy": {"image": "i", "ports": [{"published": "8000"}]},
            "hub": {"image": "i", "volumes": volumes},
        }
        (folder / "compose.json").write_text(json.dumps({"name": "lab", "services": services}))
        self.node_is("running")

    def node_is(self, status: str) -> None:
        labels = {"com.docker.compose.service": "node"}
        part = {"Name": "/lab-node", "Config": {"Labels": labels},
                "State": {"Status": status, "ExitCode": 0}}  # fmt: skip
        (self.folder / "parts.json").write_text(json.dumps([part]))

    def says(self, part: str, *findings: Finding) -> None:
        (self.folder / f"lab-{part}.json").write_text(report.as_json(findings, "docker"))

    def examine(self, **wishes: Any) -> examine.Examined | None:
        asked = {"config": None, "state": self.state.root, "engine": "docker"} | wishes
        return examine_deployment(examine.Wishes(**asked))

    def asked(self) -> dict[str, list[str]]:
        """The words of each container's doctor."""
        lines = (self.folder / "calls").read_text().splitlines()
        calls = [json.loads(line) for line in lines]
        return {words[1]: words[2:] for words in calls if words[0] == "exec"}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    return Deployed(tmp_path, monkeypatch)


def groups_in(words: list[str]) -> set[str]:
    return {words[number + 1] for number, word in enumerate(words) if word == "--only"}


def test_each_part_is_asked_for_what_it_can_see(lab: Deployed) -> None:
    cdi, ledger = Finding("engine.cdi", ok("It is on.")), Finding("database.schema", ok("New."))
    read = Finding("settings.file", ok("It is understood."))
    lab.says("node", read, cdi)
    lab.says("service", read, ledger)
    examined = lab.examine()
    assert examined
    assert (examined.engine, examined.findings) == ("docker", [read, cdi, ledger])
    asked = lab.asked()
    everything = set(examine.TITLES) - {"settings", "gpu-test"}
    assert groups_in(asked["lab-node"]) | groups_in(asked["lab-service"]) == everything
    assert groups_in(asked["lab-node"]).isdisjoint(groups_in(asked["lab-service"]))
    for words in asked.values():
        assert words[:2] == ["gpuslice", "doctor"]
        assert {"--json", "--node-socket"} <= set(words)
        assert "--gpu" not in words


def test_gpus_are_tried_by_the_node(lab: Deployed) -> None:
    lab.says("node")
    lab.says("service")
    lab.examine(gpu=True)
    assert "--gpu" in lab.asked()["lab-node"]
    assert "gpu-test" in groups_in(lab.asked()["lab-node"])
    assert "--gpu" not in lab.asked()["lab-service"]


def test_only_some_groups(lab: Deployed) -> None:
    lab.says("service", Finding("database.schema", problem("Old.", "Upgrade.")))
    examined = lab.examine(only=frozenset({"database"}))
    assert examined
    assert [one.id for one in examined.findings] == ["database.schema"]
    assert set(lab.asked()) == {"lab-service"}


def test_a_part_whose_gpuslice_knows_no_doctor(lab: Deployed) -> None:
    lab.says("service")
    examined = lab.examine()
    assert examined
    (finding,) = examined.findings
    assert finding.level is Level.UNKNOWN
    assert "No such command 'doctor'" in finding.verdict.what
    assert "make images" in finding.verdict.do


def test_before_the_start_the_machine_is_looked_at_alone(lab: Deployed) -> None:
    lab.node_is("exited")
    examined = lab.examine()
    assert examined
    found = {finding.group for finding in examined.findings}
    assert {"settings", "socket", "engine", "host", "wiring"} <= found
    assert found.isdisjoint({"database", "files"})
    # By the deployment's own settings.
    said = next(one for one in examined.findings if one.id == "socket.access")
    assert "/no/such.sock" in said.verdict.what
    assert lab.asked() == {}


def test_another_installation_on_this_machine_is_examined_as_it_is(lab: Deployed) -> None:
    lab.node_is("exited")
    lab.state.prepare()
    (lab.state.secrets / "service_token").write_text("x")
    assert lab.examine() is None


@pytest.mark.parametrize(
    "wishes", [{"engine": "local"}, {"engine": None}, {"node": Path("/run/control.sock")}]
)
def test_who_says_what_to_look_at_gets_that(lab: Deployed, wishes: dict[str, Any]) -> None:
    assert lab.examine(**wishes) is None


@pytest.mark.parametrize("broken", ["compose.json", "parts.json"])
def test_a_compose_that_fails_is_no_reason_to_give_up(lab: Deployed, broken: str) -> None:
    (lab.folder / broken).write_text('{"no": "deployment"}')
    assert lab.examine() is None


def test_without_docker_there_is_no_deployment(
    lab: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(lab.folder))
    assert lab.examine() is None
