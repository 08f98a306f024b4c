"""The doctor for the compose deployment: its parts are examined where they are, in containers.

The node's container sees the engine and the host, the service's sees the ledger and the other
parts; each has gpuslice in it, so each is asked for its own findings.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

from gpuslice.cli.compose import Compose, folder, last_line
from gpuslice.cli.doctor.examine import Examined, Wishes, examine
from gpuslice.cli.doctor.findings import Finding, Level, Verdict, note, unknown
from gpuslice.cli.doctor.machine import run_program
from gpuslice.cli.state import State
from gpuslice.nodeclient import node_sockets

_LOG = logging.getLogger(__name__)
#: Paths and names inside the containers, as compose.yaml has them.
_OPTIONS = (
    "--engine", "docker",
    "--config", "/etc/gpuslice/gpuslice.toml",
    "--state", "/var/lib/gpuslice",
    "--node-socket", "/run/gpuslice/control/control.sock",
    "--url", "http://proxy:8000",
)  # fmt: skip
#: Which groups are looked at from which part. A container of its own has no clock of its own.
_BY_NODE = ("socket", "engine", "toolkit", "docker", "gpus", "host")
_BY_SERVICE = ("files", "database", "wiring")
#: Looks that hang are given up one by one, and then there is an answer; trying GPUs takes longer.
_LIMIT_S, _GPU_LIMIT_S = 600.0, 3600.0


def examine_deployment(wishes: Wishes) -> Examined | None:
    """The findings of a deployment on this machine; None when there is nothing of one to ask.

    That is so with another engine, when the node's socket is named, and where compose or its file
    are missing.
    """
    if wishes.engine != "docker" or wishes.node is not None:
        return None
    try:
        environment = {"GPUSLICE_CONFIG": str(wishes.config)} if wishes.config else {}
        compose = Compose(folder(), environment)
        deployment = compose.deployment()
        part = compose.parts(deployment.project).get("node")
    except Exception as error:  # noqa: BLE001 (then the machine is examined without it)
        _LOG.debug("no deployment: %r", error)
        return None
    if part is None or part.status != "running":
        state = State(wishes.state)
        installed = (state.secrets / "service_token").exists() or node_sockets(state.node)[
            0
        ].exists()
        return None if installed else _before_the_start(wishes, deployment.config)
    by_node = (*_BY_NODE, *(("gpu-test",) if wishes.gpu else ()))
    findings = _asked(f"{deployment.project}-node", by_node, wishes)
    findings += _asked(f"{deployment.project}-service", _BY_SERVICE, wishes)
    return Examined("docker", findings)


def _before_the_start(wishes: Wishes, config: Path) -> Examined:
    """What can be said of the machine alone; addresses and files of the parts are theirs."""
    by_machine = frozenset(_BY_NODE) | (frozenset({"gpu-test"}) if wishes.gpu else frozenset())
    only = wishes.only & by_machine if wishes.only else by_machine
    alone = examine(replace(wishes, config=config, only=only | {"settings"}))
    idle = note(
        "The deployment does not run, so its parts were not looked at.",
        "Start it (make run ENGINE=docker, or docker compose up -d) and ask again.",
    )
    return Examined("docker", [*alone.findings, Finding("wiring.running", idle)])


def _asked(container: str, groups: tuple[str, ...], wishes: Wishes) -> list[Finding]:
    """What the doctor in a container finds of these groups."""
    wanted = [name for name in groups if not wishes.only or name in wishes.only]
    if not wanted:
        return []
    words = [*_OPTIONS, "--json", *(word for name in wanted for word in ("--only", name))]
    if wishes.gpu and "gpu-test" in wanted:
        words.append("--gpu")
    limit_s = _GPU_LIMIT_S if wishes.gpu else _LIMIT_S
    answer = run_program(["docker", "exec", container, "gpuslice", "doctor", *words], limit_s)
    found = read_report(answer.out)
    if found is None:
        said = last_line(answer.err or answer.out)
        return [Finding(f"{wanted[0]}.look", _not_asked(container, said))]
    # Both read the same settings: the node says what is wrong with them.
    return [one for one in found if one.group != "settings" or groups is not _BY_SERVICE]


def _not_asked(container: str, said: str) -> Verdict:
    return unknown(
        f"The container {container} could not be asked: {said.rstrip('.')}.",
        f"Look at docker ps and docker logs {container}; build its image anew (make images) if it "
        "is older than this gpuslice.",
    )


def read_report(text: str) -> list[Finding] | None:
    """The findings in a report that another doctor printed; None when it is none."""
    try:
        found = [
            Finding(
                str(one["id"]),
                Verdict(Level(one["level"]), one["what"], one["do"], tuple(one["references"])),
            )
            for one in json.loads(text)["findings"]
        ]
    except (ValueError, KeyError, TypeError):
        return None
    return found
