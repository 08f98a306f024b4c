"""Checks of the Docker engine: what it can, and how it is set up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gpuslice.cli.doctor.findings import (
    Group,
    NotLooked,
    Verdict,
    Verdicts,
    named,
    note,
    ok,
    problem,
    unknown,
    warning,
)
from gpuslice.cli.doctor.machine import Machine
from gpuslice.cli.doctor.versions import Version, shown, version_in
from gpuslice.node.docker.api import API_VERSION, Json

_CDI_POSSIBLE: Version = (25, 0)
_CDI_BY_DEFAULT: Version = (28, 2)
#: 29 is the first without promises for cgroup v1, which it keeps until May 2029 at least.
_CGROUP1_LEAVES: Version = (29, 0)
_DAEMON_JSON = "/etc/docker/daemon.json"
_CDI_MANUAL = "https://docs.docker.com/build/building/cdi/"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What ``/version``, ``/info`` and ``daemon.json`` say; None where they do not say it."""

    version: Version | None = None
    version_text: str | None = None
    api: Version | None = None
    api_least: Version | None = None
    cdi_dirs: tuple[str, ...] = ()
    live_restore: bool | None = None
    swarm: bool = False
    log_driver: str | None = None
    log_options: tuple[str, ...] = ()
    default_runtime: str | None = None
    runtimes: tuple[str, ...] = ()
    cgroup_driver: str | None = None
    cgroup_version: str | None = None
    #: ``name=…`` of each security option, with what follows it.
    security: tuple[str, ...] = ()
    #: Limits that the kernel does not hold: of MemoryLimit, SwapLimit, PidsLimit, CpuCfsQuota.
    missing_limits: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    #: From the settings and from other groups.
    cdi_dir: str = "/var/run/cdi"
    real_gpus: bool = False
    #: What ``--gpu`` found out: whether a container that was given nothing sees a GPU.
    void_sees_gpus: bool | None = None


_LIMITS = ("MemoryLimit", "SwapLimit", "PidsLimit", "CpuCfsQuota")


def engine_facts(version: Json, info: Json, daemon: str | None, **more: Any) -> EngineFacts:
    """The facts from what the engine answered; what is not of the expected type is left out."""
    options = _mapping(_mapping(_parsed(daemon)).get("log-opts"))
    swarm = _mapping(info.get("Swarm")).get("LocalNodeState")
    return EngineFacts(
        version=version_in(_text(version.get("Version"))),
        version_text=_text(version.get("Version")),
        api=version_in(_text(version.get("ApiVersion"))),
        api_least=version_in(_text(version.get("MinAPIVersion"))),
        cdi_dirs=_texts(info.get("CDISpecDirs")),
        live_restore=_bool(info.get("LiveRestoreEnabled")),
        swarm=swarm == "active",
        log_driver=_text(info.get("LoggingDriver")),
        log_options=tuple(sorted(str(option) for option in options)),
        default_runtime=_text(info.get("DefaultRuntime")),
        runtimes=tuple(sorted(str(name) for name in _mapping(info.get("Runtimes")))),
        cgroup_driver=_text(info.get("CgroupDriver")),
        cgroup_version=_text(info.get("CgroupVersion")),
        security=_texts(info.get("SecurityOptions")),
        missing_limits=tuple(name for name in _LIMITS if info.get(name) is False),
        warnings=_texts(info.get("Warnings")),
        **more,
    )


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}


def _mapping(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item)[:300] for item in value) if isinstance(value, list) else ()


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def look(machine: Machine) -> EngineFacts:
    seen = machine.engine
    socket = machine.settings.docker.socket
    if seen.problem is not None:
        if Path(socket).exists() and not os.access(socket, os.W_OK):
            raise NotLooked(
                unknown(f"This user may not use the engine ({socket}).", "Run it again as root.")
            )
        raise NotLooked(
            problem(
                f"{seen.problem[0].upper()}{seen.problem[1:]}.",
                "Look at systemctl status docker and journalctl -u docker.",
            )
        )
    return engine_facts(
        seen.version,
        seen.info,
        machine.host_text(_DAEMON_JSON),
        cdi_dir=machine.settings.docker.cdi_dir,
        real_gpus=machine.real_gpus,
        void_sees_gpus=machine.void_sees_gpus,
    )


def version(facts: EngineFacts) -> Verdict:
    if facts.version is None:
        return unknown(
            f"The engine's version is not understood ({facts.version_text!r}).",
            f"Compare docker version with {shown(_CDI_POSSIBLE)}, the oldest that can be used.",
        )
    if facts.version < _CDI_POSSIBLE:
        return problem(
            f"Docker {shown(facts.version)} knows no CDI devices, by which leases get their GPUs.",
            f"Install Docker {shown(_CDI_BY_DEFAULT)} or later.",
            _CDI_MANUAL,
        )
    return ok(f"Docker {shown(facts.version)}.")


def api(facts: EngineFacts) -> Verdict:
    """Whether the engine speaks the version of its interface that the node speaks."""
    ours = version_in(API_VERSION)
    if facts.api is None or ours is None:
        return unknown(
            "The engine does not say which versions of its interface it speaks.",
            f"Check that docker version shows an API version of at least {API_VERSION}.",
        )
    if facts.api < ours or (facts.api_least is not None and facts.api_least > ours):
        least = f" to {shown(facts.api_least)}" if facts.api_least else ""
        return problem(
            f"The engine speaks API {shown(facts.api)}{least}, and the node needs {API_VERSION}.",
            "Install another version of Docker, or of gpuslice.",
        )
    return ok(f"The engine speaks API {API_VERSION}.")


def cdi(facts: EngineFacts) -> Verdict | None:
    """Whether the engine reads CDI devices where the node writes them."""
    if facts.version is not None and facts.version < _CDI_POSSIBLE:
        return None  # said already
    if not facts.cdi_dirs:
        return problem(
            "The engine reads no CDI devices: the feature is off.",
            f'Put "features": {{"cdi": true}} into {_DAEMON_JSON} and restart the engine; from '
            f"Docker {shown(_CDI_BY_DEFAULT)} on it is the default.",
            _CDI_MANUAL,
        )
    if _plain(facts.cdi_dir) not in {_plain(folder) for folder in facts.cdi_dirs}:
        return problem(
            f"The node writes CDI devices to {facts.cdi_dir}, and the engine reads "
            f"{named(facts.cdi_dirs)}.",
            "Set docker.cdi_dir to one of these, or add it to cdi-spec-dirs in "
            f"{_DAEMON_JSON} and restart the engine.",
            _CDI_MANUAL,
        )
    return ok(f"The engine reads CDI devices in {facts.cdi_dir}.")


def _plain(path: str) -> str:
    """One spelling for a folder; ``/var/run`` is ``/run`` on every system that has both."""
    parts = PurePosixPath(os.path.normpath(path)).parts
    if parts[:3] == ("/", "var", "run"):
        parts = ("/", "run", *parts[3:])
    return str(PurePosixPath(*parts)) if parts else path


def live_restore(facts: EngineFacts) -> Verdict | None:
    if facts.live_restore is None:
        return unknown(
            "The engine does not say whether containers outlive its restart.",
            f'Look for "live-restore" in {_DAEMON_JSON}.',
        )
    if facts.live_restore:
        return ok("Containers outlive a restart of the engine.")
    if facts.swarm:
        return warning(
            "A restart of the engine ends all notebook servers; in swarm mode it cannot be "
            "otherwise.",
            "Leave swarm mode (docker swarm leave), which gpuslice does not use, and set "
            f'"live-restore": true in {_DAEMON_JSON}.',
        )
    return warning(
        "A restart of the engine (an upgrade of its package, say) ends all notebook servers.",
        f'Put "live-restore": true into {_DAEMON_JSON} and run: systemctl reload docker.',
        "https://docs.docker.com/engine/daemon/live-restore/",
    )


def log_driver(facts: EngineFacts) -> Verdict | None:
    """Notebook servers have their own limits; other containers have the engine's."""
    if facts.log_driver == "json-file" and "max-size" not in facts.log_options:
        return note(
            "The engine sets no limit on logs: those of notebook servers have gpuslice's, those "
            "of other containers can fill the disk.",
            f'Put "log-driver": "local" into {_DAEMON_JSON}, or a "max-size" into its "log-opts".',
        )
    return ok(f"Logs go to {facts.log_driver}.") if facts.log_driver else None


def runtime(facts: EngineFacts) -> Verdict | None:
    """With the NVIDIA runtime as the default, an image can ask for GPUs by its environment."""
    if facts.default_runtime is None:
        return unknown(
            "The engine does not say what its default runtime is.",
            "Run: docker info --format '{{.DefaultRuntime}}'; it should not be nvidia.",
        )
    if facts.default_runtime != "nvidia":
        return ok(f"The default runtime is {facts.default_runtime}.")
    what = "The default runtime is nvidia, which gives GPUs to whatever asks by its environment"
    if facts.void_sees_gpus:
        return problem(
            f"{what}; a container that was told to have none sees them.",
            f'Remove "default-runtime" from {_DAEMON_JSON} and restart the engine.',
        )
    if facts.void_sees_gpus is None:
        return warning(
            f"{what}.",
            "Run gpuslice doctor --gpu, which tries it, or remove "
            f'"default-runtime" from {_DAEMON_JSON}: leases need no special runtime.',
        )
    return ok(f"{what}; a container that was told to have none sees none.")


def cgroup_driver(facts: EngineFacts) -> Verdict | None:
    if facts.cgroup_driver == "none":
        return problem(
            "The engine has no control groups, so no limit of a slice (RAM, processors, "
            "processes) is held.",
            "Run the engine as root, or give its user a delegated cgroup v2 tree.",
        )
    if facts.cgroup_driver == "systemd" and facts.real_gpus:
        return note(
            "With the systemd cgroup driver a `systemctl daemon-reload` takes the GPUs from "
            "containers that got them by --gpus; leases get theirs by CDI and keep them.",
            "Start other GPU containers of this machine by CDI too (--device nvidia.com/gpu=…).",
            "https://github.com/NVIDIA/nvidia-container-toolkit/issues/48",
        )
    return ok(f"The cgroup driver is {facts.cgroup_driver}.") if facts.cgroup_driver else None


def cgroup_version(facts: EngineFacts) -> Verdict:
    if facts.cgroup_version == "2":
        return ok("Control groups are of version 2.")
    if facts.cgroup_version != "1":
        return unknown(
            f"The version of the control groups is not known ({facts.cgroup_version!r}).",
            "Run: stat -fc %T /sys/fs/cgroup; cgroup2fs is version 2.",
        )
    leaves = facts.version is not None and facts.version >= _CGROUP1_LEAVES
    why = ", and Docker is going to drop it" if leaves else ""
    say = warning if leaves else note
    return say(
        "This machine runs control groups of version 1: drivers hold memory caps of shares only "
        f"with version 2{why}.",
        "Boot with systemd.unified_cgroup_hierarchy=1, the default from Debian 11 and Ubuntu "
        "21.10 on.",
    )


def limits(facts: EngineFacts) -> Verdict:
    if "MemoryLimit" in facts.missing_limits:
        return problem(
            "The kernel holds no memory limit of a container, so one notebook can take all RAM.",
            "Boot with cgroup_enable=memory.",
        )
    if facts.missing_limits:
        return warning(
            f"The kernel does not hold these limits of a container: "
            f"{', '.join(facts.missing_limits)}.",
            "Boot with swapaccount=1 (for SwapLimit), or a kernel with these controllers.",
        )
    return ok("The kernel holds limits of memory, swap, processes and processors.")


def seccomp(facts: EngineFacts) -> Verdict:
    option = next((one for one in facts.security if one.startswith("name=seccomp")), None)
    if option is None:
        return warning(
            "The engine filters no system calls of containers (no seccomp).",
            "Use a kernel and an engine with seccomp.",
            "https://docs.docker.com/engine/security/seccomp/",
        )
    if "unconfined" in option:
        return problem(
            "The engine's seccomp profile is unconfined: containers may make every system call.",
            f'Remove "seccomp-profile" from {_DAEMON_JSON} and restart the engine.',
            "https://docs.docker.com/engine/security/seccomp/",
        )
    return ok("System calls of containers are filtered.")


def userns(facts: EngineFacts) -> Verdict:
    if "name=rootless" in facts.security:
        return warning(
            "The engine is rootless, with which gpuslice was never tried: limits, networks and "
            "devices may not be held.",
            "Use an engine that runs as root; the node is the only one that talks to it.",
        )
    if "name=userns" in facts.security:
        return warning(
            "The engine maps user ids (userns-remap), with which gpuslice was never tried: homes "
            "and GPU device files may be closed to notebooks.",
            f'Remove "userns-remap" from {_DAEMON_JSON}, or try a lease before you rely on it.',
        )
    return ok("User ids are not mapped.")


def exposed(facts: EngineFacts) -> Verdict:
    """The engine itself warns where its interface is open to a network."""
    said = [text for text in facts.warnings if "API is accessible" in text]
    if said:
        return problem(
            f"The engine says: {said[0]}",
            "Remove the tcp:// address from the engine's hosts; gpuslice uses the unix socket.",
            "https://docs.docker.com/engine/security/protect-access/",
        )
    return ok("The engine listens on no open network address.")


CHECKS: Mapping[str, Callable[[EngineFacts], Verdicts]] = {
    "version": version,
    "api": api,
    "cdi": cdi,
    "live-restore": live_restore,
    "logs": log_driver,
    "runtime": runtime,
    "cgroup-driver": cgroup_driver,
    "cgroup": cgroup_version,
    "limits": limits,
    "seccomp": seccomp,
    "userns": userns,
    "exposed": exposed,
}


def group(machine: Machine) -> Group[EngineFacts]:
    return Group("engine", lambda: look(machine), CHECKS)
