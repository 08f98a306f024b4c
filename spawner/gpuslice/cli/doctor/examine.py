"""All groups of checks in their order, and the command that runs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from gpuslice.cli.doctor import (
    access,
    database,
    dockersettings,
    engine,
    gpus,
    gputest,
    host,
    privatefiles,
    toolkit,
    wiring,
)
from gpuslice.cli.doctor.findings import Finding, Group, Verdict, bounded, ok, problem
from gpuslice.cli.doctor.machine import NODE_LIMIT_S, EngineKind, Machine
from gpuslice.cli.doctor.report import as_json, as_text, exit_code
from gpuslice.cli.state import State
from gpuslice.settings import NO_FILE, Settings, SettingsError, load_settings
from gpuslice.wire import Inventory

#: Each container of the GPU test has its own limit; this one is for all together.
_GPU_TEST_LIMIT_S = 1800.0

#: The groups in the order in which they are shown, and what people call them.
TITLES = {
    "settings": "Settings",
    "gpu-test": "GPUs in containers",
    "socket": "Engine socket",
    "engine": "Docker engine",
    "toolkit": "NVIDIA container toolkit",
    "docker": "Settings of [docker]",
    "gpus": "GPUs",
    "files": "Private files",
    "database": "Ledger",
    "wiring": "Parts",
    "host": "Machine",
}
#: What concerns the ``docker`` engine only.
_DOCKER_ONLY = frozenset({"gpu-test", "socket", "engine", "toolkit", "docker"})


@dataclass(frozen=True)
class Wishes:
    """The command line.

    Attributes:
        engine: None for the one that the running node has, or else the local one.
        only: Names of groups; empty for all.
    """

    config: Path | None
    state: Path
    node: Path | None = None
    engine: EngineKind | None = None
    url: str | None = None
    gpu: bool = False
    only: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Examined:
    engine: EngineKind
    findings: list[Finding]


def examine(wishes: Wishes) -> Examined:
    """Looks and judges on this machine. Raises nothing."""
    try:
        settings = load_settings(wishes.config)
    except SettingsError as error:
        return Examined(wishes.engine or "local", [Finding("settings.file", _wrong(error))])
    machine = Machine(settings, State(wishes.state), wishes.engine or "local", wishes.node)
    if wishes.engine is None:
        machine.kind = _engine_of_the_node(machine)
    findings = [Finding("settings.file", _read(settings))]
    for name in TITLES:
        wanted = not wishes.only or name in wishes.only
        concerned = machine.kind == "docker" or name not in _DOCKER_ONLY
        if wanted and concerned and name in _GROUPS:
            group = _GROUPS[name](machine, wishes)
            findings += group.findings() if group is not None else []
    return Examined(machine.kind, findings)


def _engine_of_the_node(machine: Machine) -> EngineKind:
    try:
        seen = bounded(lambda: machine.inventory, NODE_LIMIT_S + 2)
    except Exception:  # noqa: BLE001 (the group `wiring` says what is wrong with it)
        return "local"
    return seen.engine if isinstance(seen, Inventory) else "local"


def _gpu_test(machine: Machine, wishes: Wishes) -> Group[Any] | None:
    if not wishes.gpu:
        return None

    def look() -> gputest.TrialFacts:
        facts = gputest.look(machine)
        machine.void_sees_gpus = facts.sees_gpus("void")
        return facts

    return Group("gpu-test", look, gputest.CHECKS, _GPU_TEST_LIMIT_S)


_GROUPS: dict[str, Callable[[Machine, Wishes], Group[Any] | None]] = {
    "gpu-test": _gpu_test,
    "socket": lambda machine, _: access.group(machine),
    "engine": lambda machine, _: engine.group(machine),
    "toolkit": lambda machine, _: toolkit.group(machine),
    "docker": lambda machine, _: dockersettings.group(machine),
    "gpus": lambda machine, _: gpus.group(machine),
    "files": lambda machine, _: privatefiles.group(machine),
    "database": lambda machine, _: database.group(machine),
    "wiring": lambda machine, wishes: wiring.group(machine, wishes.url),
    "host": lambda machine, _: host.group(machine),
}


def _wrong(error: SettingsError) -> Verdict:
    lines = str(error).splitlines()
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return problem(
        f"The settings cannot be used: {lines[0]}{more}.", "Correct it; nothing else was looked at."
    )


def _read(settings: Settings) -> Verdict:
    if settings.source == NO_FILE:
        return ok("The defaults are used.")
    return ok(f"{settings.source} is understood.")


def run(wishes: Wishes, *, as_json_text: bool, out: TextIO | None = None) -> int:
    """Examines this machine, or the parts of the deployment that runs on it; prints; returns the
    exit code."""
    from gpuslice.cli.doctor.deployed import examine_deployment

    out = out or sys.stdout
    examined = examine_deployment(wishes) or examine(wishes)
    if as_json_text:
        out.write(as_json(examined.findings, examined.engine) + "\n")
    else:
        colours = out.isatty() and not os.environ.get("NO_COLOR")
        out.write(as_text(examined.findings, TITLES, colours=colours))
    return exit_code(examined.findings)
