"""Checks of the NVIDIA container toolkit, which says what a container needs for a GPU."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpuslice.cli.doctor.findings import (
    Group,
    Verdict,
    Verdicts,
    note,
    ok,
    problem,
    unknown,
    warning,
)
from gpuslice.cli.doctor.machine import Answer, Machine, run_program
from gpuslice.cli.doctor.versions import (
    TOOLKIT_CAPS,
    TOOLKIT_FLOOR,
    Version,
    open_advisories,
    shown,
    version_in,
)
from gpuslice.fleet.enforcement import CGROUP_DRIVER

_CONFIG = "/etc/nvidia-container-runtime/config.toml"
_ENVVAR = "accept-nvidia-visible-devices-envvar-when-unprivileged"
_INSTALL = (
    "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
)


@dataclass(frozen=True, slots=True)
class ToolkitFacts:
    """What the toolkit says of itself, and what its configuration says."""

    command: str
    answer: Answer
    #: The text of its config.toml; None without one.
    config: str | None = None
    real_gpus: bool = False
    default_runtime: str | None = None
    runtimes: tuple[str, ...] = ()
    driver: Version | None = None
    cgroup2: bool = False

    @property
    def version(self) -> Version | None:
        return version_in(self.answer.out) if self.answer.worked else None


def look(machine: Machine) -> ToolkitFacts:
    command = machine.settings.docker.nvidia_ctk
    info = machine.engine.info
    runtimes = info.get("Runtimes")
    return ToolkitFacts(
        command=" ".join(command),
        answer=run_program([*command, "--version"]),
        config=machine.host_text(_CONFIG),
        real_gpus=machine.real_gpus,
        default_runtime=info.get("DefaultRuntime"),
        runtimes=tuple(runtimes) if isinstance(runtimes, dict) else (),
        driver=version_in(machine.kernel_driver),
        cgroup2=info.get("CgroupVersion") == "2",
    )


def version(facts: ToolkitFacts) -> Verdict:
    """Whether it is there, and new enough to keep containers in."""
    if not facts.answer.worked:
        said = (facts.answer.err.strip().splitlines() or ["it ended with an error"])[-1]
        if facts.real_gpus:
            return problem(
                f"The NVIDIA container toolkit does not answer ({said}), so no lease of a real "
                "GPU can start.",
                "Install it on the host, or set docker.nvidia_ctk to its command.",
                _INSTALL,
            )
        return note(
            f"There is no NVIDIA container toolkit ({said}), and none is needed without a real "
            "GPU.",
            f"Before you add a GPU install version {shown(TOOLKIT_FLOOR)} or later.",
            _INSTALL,
        )
    if facts.version is None:
        return unknown(
            f"The version of the NVIDIA container toolkit is not understood: "
            f"{facts.answer.out.strip()[:100]!r}.",
            f"Compare it with {shown(TOOLKIT_FLOOR)}, the oldest that should be used.",
        )
    flaws = [advisory.cve for advisory in open_advisories(facts.version)]
    if facts.version < TOOLKIT_FLOOR:
        known = f", and has {len(flaws)} published flaws" if flaws else ""
        return problem(
            f"NVIDIA container toolkit {shown(facts.version)} is older than "
            f"{shown(TOOLKIT_FLOOR)}: below that a container that asked for no GPU could get "
            f"all{known}.",
            "Upgrade nvidia-container-toolkit and its libnvidia-container packages.",
            *flaws,
        )
    return ok(f"NVIDIA container toolkit {shown(facts.version)}.")


def advisories(facts: ToolkitFacts) -> list[Verdict]:
    """The published flaws that this version still has, each with what to install."""
    if facts.version is None or not (open_ones := open_advisories(facts.version)):
        return []
    fixed = max(advisory.fixed for advisory in open_ones)
    say = problem if any(one.fixed <= TOOLKIT_FLOOR for one in open_ones) else warning
    names = ", ".join(advisory.cve for advisory in open_ones)
    return [
        say(
            f"Published flaws of NVIDIA container toolkit {shown(facts.version)} let a container "
            f"reach its host: {names}.",
            f"Upgrade it to {shown(fixed)} or later; until then start only images that you trust.",
            *dict.fromkeys(advisory.source for advisory in open_ones),
        )
    ]


def environment(facts: ToolkitFacts) -> Verdict | None:
    """Whether an image gets GPUs by nothing but its environment, where the NVIDIA runtime runs."""
    if "nvidia" not in (*facts.runtimes, facts.default_runtime):
        return None  # without the runtime nobody reads that variable
    try:
        config = tomllib.loads(facts.config or "")
    except tomllib.TOMLDecodeError:
        return unknown(
            f"{_CONFIG} cannot be read.", f"Look for {_ENVVAR} in it; it should be false."
        )
    if config.get(_ENVVAR, True) is False:
        return ok("A container gets no GPU by its environment alone.")
    say = warning if facts.default_runtime == "nvidia" else note
    return say(
        "The NVIDIA runtime gives GPUs to any container whose image or environment asks for them.",
        f"Run: nvidia-ctk config --in-place --set {_ENVVAR}=false.",
    )


def caps(facts: ToolkitFacts) -> Verdict | None:
    """The driver can hold memory caps of shares from a certain branch on; so must the toolkit."""
    if facts.version is None or facts.driver is None or facts.driver[0] < CGROUP_DRIVER:
        return None
    if not facts.cgroup2 or facts.version >= TOOLKIT_CAPS:
        return None
    return note(
        f"The driver can hold memory caps of shares, and toolkit {shown(facts.version)} cannot "
        "set them.",
        f"Upgrade the toolkit to {shown(TOOLKIT_CAPS)} or later.",
        "https://github.com/NVIDIA/nvidia-container-toolkit/pull/2075",
    )


CHECKS: Mapping[str, Callable[[ToolkitFacts], Verdicts]] = {
    "version": version,
    "advisories": advisories,
    "environment": environment,
    "caps": caps,
}


def group(machine: Machine) -> Group[ToolkitFacts]:
    return Group("toolkit", lambda: look(machine), CHECKS)
