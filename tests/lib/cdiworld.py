"""What tests of CDI devices share: recorded machines, a fake host with their files, leases."""

from __future__ import annotations

import json
import os
import stat
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuslice import wire
from gpuslice.node.docker.cdi import Edits, Spec
from gpuslice.settings import DockerSettings

RECORDED = Path(__file__).parents[1] / "data" / "cdi"
H100S = "h100x2"
MIGS = "a100-mig"
FAKE_CTK = Path(__file__).with_name("fake_nvidia_ctk.py")

GPU_0 = "GPU-2f1cb9a4-6e0d-44f1-9f0c-7d0b6b3f5a10"
GPU_1 = "GPU-83d2e7c1-0b5a-4c33-8a57-5e1f0c94d2b6"
MIG_3G = "MIG-0a4c6e1b-58d2-5f07-9b3e-6c1d2f4a8b90"
MIG_2G = "MIG-5b9d3f70-12ce-5a68-8d41-f07e9a6c3b25"
MIG_1G = "MIG-e6f1a2c8-7d34-5be9-a0f5-4b8c1d3e6f72"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make device nodes")


def recorded_file(machine: str) -> Path:
    return RECORDED / f"{machine}.json"


def recorded(machine: str) -> Spec:
    return Spec.model_validate_json(recorded_file(machine).read_bytes())


def document(machine: str) -> dict[str, Any]:
    """The recorded answer as plain data, to be changed by a test."""
    data: dict[str, Any] = json.loads(recorded_file(machine).read_bytes())
    return data


def all_edits(spec: Spec) -> list[Edits]:
    return [spec.container_edits, *(device.container_edits for device in spec.devices)]


def build_host(root: Path, spec: Spec) -> None:
    """Makes all that a machine's specification names, under a root folder of its own."""
    for edits in all_edits(spec):
        for node in edits.device_nodes:
            make_node(below(root, node.on_host), node.major, node.minor, node.file_mode or 0o666)
        for mount in edits.mounts:
            make_file(below(root, mount.host_path))
        for hook in edits.hooks:
            make_program(below(root, hook.path))


def below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def make_node(path: Path, major: int, minor: int, mode: int = 0o666) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.mknod(path, stat.S_IFCHR | mode, os.makedev(major, minor))
        path.chmod(mode)


def make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(path.name)


def make_program(path: Path, text: str = "#!/bin/sh\nexit 0\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def ctk(how: str, file: Path) -> tuple[str, ...]:
    """A value for ``docker.nvidia_ctk``; see ``fake_nvidia_ctk``."""
    return (sys.executable, str(FAKE_CTK), how, str(file))


def node_settings(folder: Path, **changes: Any) -> DockerSettings:
    """A node whose folders are all below one of the test's own."""
    values: dict[str, Any] = {
        "cdi_dir": str(folder / "cdi"),
        "host_dir": str(folder / "host"),
        "host_root": str(folder / "root"),
        **changes,
    }
    return DockerSettings(**values)


def new_piece(
    device: str | None,
    *,
    kind: wire.SliceKind | None = None,
    lease_id: str | None = None,
) -> wire.PrepareSlice:
    """A prepared slice on this device; the kind follows from the device unless it is given."""
    if kind is None:
        if device is None:
            kind = wire.SliceKind.CPU
        else:
            mig = device.startswith("MIG-")
            kind = wire.SliceKind.MIG if mig else wire.SliceKind.EXCLUSIVE
    return wire.PrepareSlice(
        lease_id=lease_id or uuid.uuid4().hex,
        user="ada",
        server="",
        slice_type="some",
        kind=kind,
        device_uuid=device,
        memory_bytes=None,
        share_milli=None,
        enforcement=wire.Enforcement.ADVISORY,
        ram_bytes=1 << 30,
    )


def rewritten(data: Any, change: Callable[[str], str]) -> Any:
    """The data with every host path changed: of nodes, mounts and hooks."""
    if isinstance(data, list):
        return [rewritten(item, change) for item in data]
    if not isinstance(data, dict):
        return data
    new = {name: rewritten(value, change) for name, value in data.items()}
    if "hostPath" in new:
        new["hostPath"] = change(new["hostPath"])
    elif "hookName" in new:
        new["path"] = change(new["path"])
    elif "major" in new:
        new["hostPath"] = change(new["path"])
    return new
