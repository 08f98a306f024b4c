"""All groups of checks in their order, and the command that runs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
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
from gpuslice.cli.doctor.findings import Finding, Group, Verdict, ok, problem
from gpuslice.cli.doctor.machine import EngineKind, Machine
from gpuslice.cli.doctor.report import as_json, as_text, exit_code
from gpuslice.cli.state import State
from gpuslice.settings import NO_FILE, Settings, SettingsError, load_settings
from gpuslice.wire import Inventory

#: Each container of the GPU test has its own limit; this one is for all together.
_GPU_TEST_LIMIT_S = 1800.0


@dataclass(frozen=True)
class Wishes:
    """The command line; ``engine`` None: the one that the running node has."""

    config: Path | None
    state: Path
    node: Path | None
    engine: EngineKind | None
    url: str | None
    gpu: bool


@dataclass(frozen=True)
class Examined:
    engine: EngineKind
    findings: list[Finding]
    #: Titles of the groups, in their order.
    titles: dict[str, str]


def examine(wishes: Wishes) -> Examined:
    """Looks and judges. Raises nothing."""
    titles = {"settings": "Settings"}
    try:
        settings = load_settings(wishes.config)
    except SettingsError as error:
        return Examined(wishes.engine or "local", [Finding("settings.file", _wrong(error))], titles)
    findings = [Finding("settings.file", _read(settings))]
    machine = Machine(settings, State(wishes.state), wishes.engine or "local", wishes.node)
    if wishes.engine is None and isinstance(machine.inventory, Inventory):
        machine.kind = machine.inventory.engine
    for group in groups(machine, wishes):
        titles[group.name] = group.title
        findings += group.findings()
    return Examined(machine.kind, findings, titles)


def groups(machine: Machine, wishes: Wishes) -> Iterator[Group[Any]]:
    """The groups that concern this engine, what others need first."""
    void_sees_gpus = None
    if machine.kind == "docker":
        if wishes.gpu:
            test = _Once(lambda: gputest.look(machine))
            tried = gputest.group(test)
            yield Group(tried.name, tried.title, test, tried.checks, _GPU_TEST_LIMIT_S)
            void_sees_gpus = test.facts.sees_gpus("void") if test.facts else None
        yield access.group(machine)
        yield engine.group(machine, void_sees_gpus)
        yield toolkit.group(machine)
        yield dockersettings.group(machine)
    yield gpus.group(machine)
    yield privatefiles.group(machine)
    yield database.group(machine)
    yield wiring.group(machine, wishes.url)
    yield host.group(machine)


class _Once:
    """A look whose facts another group needs too."""

    def __init__(self, look: Callable[[], gputest.TrialFacts]) -> None:
        self._look = look
        self.facts: gputest.TrialFacts | None = None

    def __call__(self) -> gputest.TrialFacts:
        self.facts = self._look()
        return self.facts


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


def run(wishes: Wishes, *, as_json_text: bool, out: TextIO = sys.stdout) -> int:
    """Examines, prints, and returns the exit code."""
    examined = examine(wishes)
    if as_json_text:
        text = as_json(examined.findings, examined.engine) + "\n"
    else:
        colours = out.isatty() and not os.environ.get("NO_COLOR")
        text = as_text(examined.findings, examined.titles, colours=colours)
    out.write(text)
    return exit_code(examined.findings)
