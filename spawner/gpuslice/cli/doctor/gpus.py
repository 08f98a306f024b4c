"""Checks of the GPUs: driver, MIG, device files, and whether the node sees what the driver sees."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuslice.cli.doctor.findings import (
    Group,
    Verdict,
    Verdicts,
    named,
    note,
    ok,
    problem,
    warning,
)
from gpuslice.cli.doctor.machine import Answer, Machine, text_of
from gpuslice.cli.doctor.versions import Version, shown, version_in
from gpuslice.fleet.enforcement import CGROUP_DRIVER, may_share
from gpuslice.wire import Enforcement, Inventory

#: The oldest driver branch that runs CUDA 13, which our CUDA image has.
_CUDA13_DRIVER = 580
#: Where the toolkit leaves the CDI devices of all GPUs, in the folders that the engine reads.
_TOOLKIT_CDI = ("nvidia.yaml", "nvidia.json")
_REFRESH = "nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml"
_MIG_GUIDE = "https://docs.nvidia.com/datacenter/tesla/mig-user-guide/"


@dataclass(frozen=True, slots=True)
class SmiGpu:
    """One GPU as nvidia-smi lists it; the MIG modes are ``""`` where there is no MIG."""

    index: int
    uuid: str
    name: str
    driver: str
    mig: str = ""
    mig_pending: str = ""
    #: UUIDs of its MIG instances.
    instances: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What node, driver, kernel and files say of the GPUs."""

    #: The node's, or why it does not say.
    inventory: Inventory | str
    gpus: tuple[SmiGpu, ...] = ()
    #: Why nvidia-smi lists nothing.
    smi_problem: str | None = None
    #: The version of the loaded kernel module.
    kernel: Version | None = None
    #: Names below ``/dev``, as in ``nvidia0`` or ``nvidia-caps/nvidia-cap1``.
    device_files: frozenset[str] = frozenset()
    #: The toolkit's CDI files, and the UUIDs of the devices in each.
    cdi_files: Mapping[str, frozenset[str]] = field(default_factory=dict)
    minimum: Enforcement = Enforcement.WATCHDOG

    @property
    def simulated(self) -> bool:
        return isinstance(self.inventory, Inventory) and self.inventory.simulated


def look(machine: Machine) -> GpuFacts:
    listed = machine.nvidia_smi
    gpus = smi_gpus(listed.out, machine.nvidia_smi_list.out) if listed.worked else ()
    return GpuFacts(
        inventory=machine.inventory,
        gpus=gpus,
        smi_problem=None if gpus else _why(listed),
        kernel=version_in(machine.kernel_driver),
        device_files=_device_files(machine.host("/dev")),
        cdi_files=_cdi_files(machine),
        minimum=machine.settings.fleet.minimum_enforcement,
    )


def _why(answer: Answer) -> str:
    lines = f"{answer.err}\n{answer.out}".strip().splitlines()
    return lines[0].strip()[:200] if lines else "it lists no GPU"


def smi_gpus(query: str, listing: str) -> tuple[SmiGpu, ...]:
    """The GPUs in nvidia-smi's CSV, with the MIG instances in ``nvidia-smi -L``.

    Lines that are not understood are left out.
    """
    instances: dict[str, list[str]] = {}
    gpu = ""
    for line in listing.splitlines():
        if found := re.match(r"GPU \d+:.*\(UUID: (GPU-[0-9a-fA-F-]+)\)", line):
            gpu = found[1]
        elif found := re.match(r"\s+MIG .*\(UUID: (MIG-[0-9a-zA-Z/-]+)\)", line):
            instances.setdefault(gpu, []).append(found[1])
    gpus = []
    for line in query.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 6 and parts[0].isdigit() and parts[1].startswith("GPU-"):
            uuid, name, driver_version, *modes = parts[1:]
            mig, pending = ("" if "N/A" in mode else mode for mode in modes)
            here = tuple(instances.get(uuid, ()))
            gpus.append(SmiGpu(int(parts[0]), uuid, name, driver_version, mig, pending, here))
    return tuple(gpus)


def _device_files(folder: Path) -> frozenset[str]:
    found = {path.name for path in folder.glob("nvidia*")}
    found |= {f"nvidia-caps/{path.name}" for path in folder.glob("nvidia-caps/*")}
    return frozenset(found)


def _cdi_files(machine: Machine) -> dict[str, frozenset[str]]:
    folders = machine.engine.info.get("CDISpecDirs") if machine.kind == "docker" else None
    found = {}
    for folder in folders if isinstance(folders, list) else ():
        for name in _TOOLKIT_CDI:
            path = f"{folder}/{name}"
            if (text := text_of(machine.host(path))) is not None:
                found[path] = cdi_uuids(text)
    return found


def cdi_uuids(text: str) -> frozenset[str]:
    """The UUIDs under which a CDI file, YAML or JSON, has devices."""
    return frozenset(re.findall(r"""name["']?\s*:\s*["']?((?:GPU|MIG)-[0-9a-zA-Z-]+)""", text))


# --- the judgements -------------------------------------------------------------------------


def present(facts: GpuFacts) -> Verdict:
    """Whether there are GPUs at all, and real ones."""
    if facts.simulated:
        return note(
            "All GPUs are SIMULATED: what is leased computes nothing.",
            "Install the NVIDIA driver and restart the node to lease real GPUs.",
        )
    if facts.gpus:
        return ok(f"{len(facts.gpus)} real GPUs: {named(sorted({g.name for g in facts.gpus}))}.")
    if isinstance(facts.inventory, Inventory) and facts.inventory.devices:
        return ok(f"The node sees {len(facts.inventory.devices)} real devices.")
    if facts.kernel is not None:
        return problem(
            f"The NVIDIA driver is loaded, and its nvidia-smi lists no GPU ({facts.smi_problem}).",
            "Look at dmesg for NVRM and Xid lines.",
        )
    return note(
        f"No GPU is seen ({facts.smi_problem}).",
        "With a GPU in this machine install its driver; without one gpuslice leases CPU slices, "
        "or simulated GPUs.",
    )


def driver(facts: GpuFacts) -> Verdict | None:
    """Whether the driver is one driver, and what it can."""
    versions = {gpu.driver for gpu in facts.gpus}
    found = version_in(next(iter(versions), None)) or facts.kernel
    if found is None:
        return None  # no real GPU
    if facts.kernel is not None and facts.kernel != found:
        return problem(
            f"The kernel has loaded driver {shown(facts.kernel)}, and its libraries are "
            f"{shown(found)}: NVML and CUDA do not work.",
            "Restart the machine, or unload and load the nvidia modules.",
        )
    if found[0] < _CUDA13_DRIVER:
        return warning(
            f"Driver {shown(found)} is too old for CUDA 13, which the CUDA notebook image has.",
            f"Install driver {_CUDA13_DRIVER} or later, or an image with an older CUDA.",
            "https://docs.nvidia.com/deploy/cuda-compatibility/",
        )
    if found[0] < CGROUP_DRIVER:
        return note(
            f"Driver {shown(found)} holds no memory caps of shares; from branch {CGROUP_DRIVER} "
            "on drivers do.",
            "Upgrade the driver if you lease shares of GPUs.",
            "https://docs.nvidia.com/deploy/mps/mpsv3-memory-partitioning.html",
        )
    return ok(f"Driver {shown(found)}.")


def node(facts: GpuFacts) -> list[Verdict]:
    """Whether the node sees the GPUs that the driver sees, all of them well."""
    seen = facts.inventory
    if isinstance(seen, str):
        return []  # the group `wiring` says that it does not answer
    found: list[Verdict] = []
    if seen.gpu_problem:
        found.append(
            problem(f"The node cannot use the GPUs: {seen.gpu_problem}.".replace("..", "."),
                    "Put right what it says, and restart the node.")
        )  # fmt: skip
    known = {device.uuid for device in seen.devices}
    missing = [gpu for gpu in facts.gpus if gpu.uuid not in known]
    if missing and not seen.simulated and not seen.gpu_problem:
        found.append(
            warning(
                f"nvidia-smi lists GPUs that the node does not: "
                f"{named([gpu.uuid for gpu in missing])}.",
                "Restart the node; in a container it sees the GPUs that it was given.",
            )
        )
    if facts.gpus and seen.simulated:
        found.append(
            warning(
                "The node leases simulated GPUs although nvidia-smi lists real ones.",
                "Start the node without its simulated devices.",
            )
        )
    for device in seen.devices:
        if not device.healthy:
            found.append(
                problem(
                    f"{device.uuid} is not well: {device.health_reason or 'no reason given'}.",
                    "Look at nvidia-smi and dmesg; it is not leased until it is well.",
                )
            )
    return found or [ok("The node sees all GPUs, and all are well.")]


def mig(facts: GpuFacts) -> list[Verdict]:
    """Per GPU: is MIG mode what it is going to be, and is there anything to lease."""
    found: list[Verdict] = []
    for gpu in facts.gpus:
        if gpu.mig != gpu.mig_pending:
            found.append(
                warning(
                    f"GPU {gpu.index}: MIG mode is {gpu.mig} and will be {gpu.mig_pending} after a "
                    "reset.",
                    f"End what uses it and run: nvidia-smi --gpu-reset -i {gpu.index}; or restart "
                    "the machine.",
                    _MIG_GUIDE,
                )
            )
        if gpu.mig == "Enabled" and not gpu.instances:
            found.append(
                warning(
                    f"GPU {gpu.index} is in MIG mode without any instance, so nothing of it can "
                    "be leased.",
                    f"Make instances (nvidia-smi mig -i {gpu.index} -cgi PROFILE,… -C; they do "
                    f"not outlive a restart), or end MIG mode (nvidia-smi -i {gpu.index} -mig 0).",
                    _MIG_GUIDE,
                )
            )
    with_mig = [gpu for gpu in facts.gpus if gpu.mig == "Enabled"]
    if with_mig and not found:
        count = sum(len(gpu.instances) for gpu in with_mig)
        return [ok(f"{count} MIG instances on {len(with_mig)} GPUs.")]
    return found


def cdi(facts: GpuFacts) -> list[Verdict]:
    """Whether the toolkit's own CDI file fits the GPUs. Leases do not need it: theirs are fresh."""
    if not facts.gpus:
        return []
    wanted = {gpu.uuid for gpu in facts.gpus if gpu.mig != "Enabled"}
    wanted |= {instance for gpu in facts.gpus for instance in gpu.instances}
    if not facts.cdi_files:
        return [
            note(
                "The toolkit's list of CDI devices (nvidia.yaml) is not there; leases do not need "
                "it, gpuslice doctor --gpu and docker run --device do.",
                f"Run: {_REFRESH}.",
            )
        ]
    listed = frozenset().union(*facts.cdi_files.values())
    gone = {uuid for uuid in listed if uuid.startswith("MIG-")} - wanted
    missing = wanted - listed
    if gone or missing:
        parts = [
            f"lacks {named(sorted(missing))}" if missing else "",
            f"has {named(sorted(gone))}, which is gone" if gone else "",
        ]
        return [
            warning(
                f"{named(sorted(facts.cdi_files))} is old: it "
                f"{' and '.join(part for part in parts if part)}. Leases do not use it.",
                f"Run: {_REFRESH}.",
                "https://github.com/NVIDIA/nvidia-container-toolkit/issues/1828",
            )
        ]
    return [ok("The toolkit's list of CDI devices fits the GPUs.")]


def device_files(facts: GpuFacts) -> Verdict | None:
    """The files through which CUDA reaches the driver."""
    if not facts.gpus:
        return None
    needed = {"nvidiactl", "nvidia-uvm"}
    missing = sorted(needed - facts.device_files)
    numbered = {name for name in facts.device_files if re.fullmatch(r"nvidia\d+", name)}
    if len(numbered) < len(facts.gpus):
        missing.append(f"one of nvidia0 … for each of {len(facts.gpus)} GPUs")
    if any(gpu.mig == "Enabled" for gpu in facts.gpus) and not any(
        name.startswith("nvidia-caps/nvidia-cap") for name in facts.device_files
    ):
        missing.append("nvidia-caps/nvidia-cap…")
    if missing:
        return problem(
            f"Below /dev is missing: {', '.join(missing)}; no container can use the GPUs.",
            "Run: nvidia-modprobe -u -c=0, and nvidia-ctk system create-device-nodes "
            "--control-devices; have nvidia-persistenced started at boot.",
        )
    return ok("The GPUs' device files are there.")


def shares(facts: GpuFacts) -> Verdict | None:
    """Whether shares of a real GPU may be offered at all."""
    seen = facts.inventory
    if isinstance(seen, str) or seen.simulated:
        return None
    whole = [device for device in seen.devices if device.kind == "gpu" and not device.mig_enabled]
    weak = [d for d in whole if not may_share(d, seen.enforcement_ceiling, facts.minimum)]
    if not whole:
        return None
    if weak:
        held = min(min(device.share_enforcement for device in weak), seen.enforcement_ceiling)
        return note(
            f"Shares of {len(weak)} of {len(whole)} GPUs are not offered: their memory caps are "
            f"held at the level '{held.label}', and '{facts.minimum.label}' is the minimum.",
            "Lease whole GPUs or MIG instances, or set fleet.minimum_enforcement lower if all "
            "users trust each other.",
        )
    return ok("Memory caps of shares are held as the settings ask for.")


CHECKS: Mapping[str, Callable[[GpuFacts], Verdicts]] = {
    "present": present,
    "driver": driver,
    "node": node,
    "mig": mig,
    "cdi": cdi,
    "device-files": device_files,
    "shares": shares,
}


def group(machine: Machine) -> Group[GpuFacts]:
    return Group("gpus", lambda: look(machine), CHECKS)
