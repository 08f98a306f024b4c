"""``gpuslice doctor --gpu``: uses each device in a container, and looks into one without any."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpuslice.cli.doctor import cudaprobe
from gpuslice.cli.doctor.findings import (
    NotLooked,
    Verdict,
    Verdicts,
    named,
    ok,
    problem,
    unknown,
)
from gpuslice.cli.doctor.gpus import smi_gpus
from gpuslice.cli.doctor.machine import Machine
from gpuslice.node.docker.api import DockerApi, EngineDown, EngineSaysNo, Json
from gpuslice.units import GIB, MIB
from gpuslice.wire import Inventory

#: The kind of the toolkit's own CDI devices.
TOOLKIT_KIND = "nvidia.com/gpu"
LABEL = "gpuslice.doctor"
#: A first CUDA context on a machine without persistence daemon takes many seconds.
CONTAINER_LIMIT_S = 120.0
_POLL_S = 0.2
#: CUDA's codes for no memory left, and for a device that one process has for itself.
_IN_USE = ("CUDA error 2", "CUDA error 46")
_GENERATE = "Run: nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml."


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one container found.

    Attributes:
        given: The UUID of its device, or what its environment asked for.
        files: Names below ``/dev`` of the GPUs it sees.
        uuids: Devices that CUDA sees, 32 hex digits each.
        tried_bytes: How much memory was written and read back on each.
        error: Why CUDA did not work.
        refused: Why it could not be run.
    """

    given: str
    files: tuple[str, ...] = ()
    uuids: tuple[str, ...] = ()
    tried_bytes: int = 0
    error: str | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class TrialFacts:
    #: One attempt per device, given by its UUID.
    devices: tuple[Attempt, ...]
    #: Attempts without any device, by what their environment asks for: ``void`` and ``all``.
    without: tuple[Attempt, ...]
    #: Why no device was tried; empty if some were.
    nothing: str
    #: Whether the host has device files of a GPU at all.
    gpu_files: bool

    def sees_gpus(self, asked: str) -> bool | None:
        """Whether a container without a device saw one; None if that was not found out."""
        for attempt in self.without:
            if attempt.given == asked and attempt.refused is None and self.gpu_files:
                return bool(attempt.files)
        return None


def look(machine: Machine, kind: str = TOOLKIT_KIND) -> TrialFacts:
    """Runs the containers, one after the other, and removes each."""
    if machine.engine.problem is not None:
        raise NotLooked(
            unknown("No device was tried, since the engine does not answer.", "Start it.")
        )
    uuids, nothing = _devices(machine)
    policy = machine.settings.docker
    image = policy.image[0].reference
    gpu_files = _has_gpu_files(machine)

    async def run() -> TrialFacts:
        api = DockerApi(policy.socket)
        await _sweep(api)
        found = []
        for device in uuids:
            body = container_body(image, policy.user, device=f"{kind}={device}")
            found.append(await _attempt(api, device, body))
        without = []
        for asked in ("void", "all"):
            body = container_body(image, policy.user, visible=asked)
            without.append(await _attempt(api, asked, body))
        return TrialFacts(tuple(found), tuple(without), nothing, gpu_files)

    return asyncio.run(run())


def _has_gpu_files(machine: Machine) -> bool:
    """Whether the host has anything that a container could see."""
    return any(machine.host("/dev").glob("nvidia*"))


def _devices(machine: Machine) -> tuple[list[str], str]:
    """The UUIDs of what can be leased, or why there is nothing to try."""
    if machine.simulated:
        return [], "the GPUs are simulated, so there is nothing to allocate on"
    listed = machine.nvidia_smi
    if listed.worked:
        gpus = smi_gpus(listed.out, machine.nvidia_smi_list.out)
        whole = [gpu.uuid for gpu in gpus if gpu.mig != "Enabled"]
        found = whole + [instance for gpu in gpus for instance in gpu.instances]
    elif isinstance(machine.inventory, Inventory):
        found = [device.uuid for device in machine.inventory.devices if not device.mig_enabled]
    else:
        found = []
    return found, "" if found else "no GPU is seen on this machine"


def container_body(image: str, user: str, *, device: str = "", visible: str = "void") -> Json:
    """A container like a lease's, as far as it matters for GPUs.

    Args:
        device: A CDI device; empty for none.
        visible: What the environment asks the NVIDIA runtime for, where there is one.
    """
    request = {"Driver": "cdi", "DeviceIDs": [device]}
    return {
        "Image": image,
        "User": user,
        "Entrypoint": ["python3"],
        "Cmd": ["-c", Path(str(cudaprobe.__file__)).read_text("utf-8"), *(["cuda"] * bool(device))],
        "Env": [f"NVIDIA_VISIBLE_DEVICES={visible}", "HOME=/tmp", "CUDA_VISIBLE_DEVICES"],
        "WorkingDir": "/",
        "Labels": {LABEL: "1"},
        "HostConfig": {
            "NetworkMode": "none",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": f"rw,nosuid,nodev,size={64 * MIB}"},  # noqa: S108 (the container's)
            "Memory": 8 * GIB,
            "PidsLimit": 512,
            "DeviceRequests": [request] if device else [],
        },
    }


async def _attempt(api: DockerApi, given: str, body: Json) -> Attempt:
    name = f"gpuslice-doctor-{uuid.uuid4().hex[:12]}"
    try:
        code, log = await _run(api, name, body)
    except (EngineDown, EngineSaysNo) as error:
        return Attempt(given, refused=str(error))
    except TimeoutError:
        return Attempt(given, refused=f"it did not end in {CONTAINER_LIMIT_S:g} s")
    return attempt_of(given, code, log)


def attempt_of(given: str, code: int | None, log: str) -> Attempt:
    """What the container's one line says."""
    for line in log.splitlines():
        if line.startswith(cudaprobe.MARK):
            with suppress(ValueError, KeyError, TypeError):
                found = json.loads(line.removeprefix(cudaprobe.MARK))
                error = found.get("error")
                return Attempt(
                    given,
                    files=tuple(str(name) for name in found["devices"]),
                    uuids=tuple(str(uuid) for uuid in found.get("uuids", ())),
                    tried_bytes=int(found.get("bytes", 0)),
                    error=None if error is None else str(error)[:300],
                )
    last = (log.strip().splitlines() or ["it said nothing"])[-1]
    return Attempt(given, refused=f"it ended with code {code}: {last[:200]}")


async def _run(api: DockerApi, name: str, body: Json) -> tuple[int | None, str]:
    try:
        await api.create(name, body)
        await api.start(name)
        deadline = time.monotonic() + CONTAINER_LIMIT_S
        while True:
            state = ((await api.container(name)) or {}).get("State") or {}
            if not state.get("Running"):
                return state.get("ExitCode"), await api.log_tail(name, 200)
            if time.monotonic() > deadline:
                raise TimeoutError
            await asyncio.sleep(_POLL_S)
    finally:
        await _remove(api, name)


async def _remove(api: DockerApi, name: str) -> None:
    with suppress(EngineDown, EngineSaysNo):
        await api.kill(name)
    with suppress(EngineDown, EngineSaysNo):
        await api.remove(name)


async def _sweep(api: DockerApi) -> None:
    """Removes what an earlier run was not let remove."""
    with suppress(EngineDown, EngineSaysNo):
        for container in await api.containers(LABEL):
            if container.get("State") in ("exited", "dead"):
                await _remove(api, str(container.get("Id")))


# --- the judgements -------------------------------------------------------------------------


def devices(facts: TrialFacts) -> list[Verdict]:
    """Whether each device works in a container, and is the only one there."""
    if facts.nothing:
        return [
            unknown(
                f"No device was tried: {facts.nothing}.",
                "Run it on a machine with a real GPU and its driver.",
            )
        ]
    return [_device(attempt) for attempt in facts.devices]


def _device(attempt: Attempt) -> Verdict:
    if attempt.refused is not None:
        return _refused(attempt.given, attempt.refused)
    wanted = attempt.given.partition("-")[2].replace("-", "").lower()
    if attempt.error is not None and attempt.error.endswith(_IN_USE):
        return unknown(
            f"{attempt.given} is in use, so nothing could be tried on it: {attempt.error}.",
            "Try again when it is free; GPU admin shows who has it.",
        )
    if attempt.error is not None:
        return problem(
            f"{attempt.given} does not work in a container: {attempt.error}.",
            "Compare nvidia-smi on the host with docker run --device nvidia.com/gpu=UUID.",
        )
    if attempt.uuids != (wanted,):
        return problem(
            f"A container that was given {attempt.given} alone sees these devices: "
            f"{named(attempt.uuids) or 'none'}.",
            f"The list of CDI devices is wrong. {_GENERATE}",
        )
    return ok(
        f"{attempt.given}: {attempt.tried_bytes // MIB} MiB allocated, written and read back, no "
        "other device seen."
    )


def _refused(given: str, said: str) -> Verdict:
    if "unresolvable CDI devices" in said:
        return unknown(f"{given} was not tried: the engine knows no CDI device of it.", _GENERATE)
    if "No such image" in said or "python3" in said:
        return unknown(
            f"{given} was not tried: {said}.".replace("..", "."),
            "The first docker.image must be here and have python3: make images, or docker pull.",
        )
    return problem(
        f"A container with {given} cannot be run: {said}.".replace("..", "."),
        "Look at nvidia-ctk cdi list and at the engine's log.",
    )


def without(facts: TrialFacts) -> list[Verdict]:
    """A container that was given no device must see none, whatever its image asks for."""
    if not facts.gpu_files:
        return [
            unknown(
                "What a container sees that was given no GPU was not found out: this machine has "
                "no device files of a GPU.",
                "Run it on a machine with a real GPU and its driver.",
            )
        ]
    found = []
    for attempt in facts.without:
        if attempt.refused is not None:
            found.append(_refused(f"A container with NVIDIA_VISIBLE_DEVICES={attempt.given}",
                                  attempt.refused))  # fmt: skip
        elif attempt.files:
            found.append(
                problem(
                    f"A container that was given no GPU, with NVIDIA_VISIBLE_DEVICES="
                    f"{attempt.given}, sees {named(attempt.files)}.",
                    "Remove the nvidia default runtime from /etc/docker/daemon.json, and run: "
                    "nvidia-ctk config --in-place --set "
                    "accept-nvidia-visible-devices-envvar-when-unprivileged=false.",
                    "https://github.com/NVIDIA/k8s-device-plugin/issues/87",
                )
            )
    return found or [ok("A container that was given no GPU sees none, whatever it asks for.")]


CHECKS: Mapping[str, Callable[[TrialFacts], Verdicts]] = {"devices": devices, "without": without}
