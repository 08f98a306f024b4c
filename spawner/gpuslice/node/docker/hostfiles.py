"""Files of ours on the host: the CDI devices of leases, and the library of simulated GPUs.

Both are read by others while they are written, so each is put in place in one step: an engine
that reads a folder of devices, containers that have a library mapped.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from pydantic import ValidationError

from gpuslice import containers
from gpuslice.node.docker.cdi import Spec
from gpuslice.node.environment import Simulation
from gpuslice.node.leasedir import TornFile, sync_dir, write_durably
from gpuslice.settings import DockerSettings
from nvmlsim import demo_fleet

#: Ours in a folder that others write to as well; with ``.tmp`` what a crash has left half-written,
#: which no engine reads.
_OURS = re.compile(r"gpuslice-([0-9a-f]{32})\.(?:json|tmp)")
_LIBRARY = re.compile(r"libnvidia-ml-[0-9a-f]{16}\.so\.1")
#: For the user in the container. The folders above are root's alone.
_READABLE = 0o644


class CdiFolder:
    """The leases' CDI devices: one file per lease, durable when a method returns.

    The files are root's alone, as engines are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, lease_id: str, spec: Spec) -> None:
        if not self.path.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
            # Others' devices may come here too, and those are for everybody.
            self.path.chmod(0o755)
        # In the same folder: engines that watch it see a file move away, not one arrive.
        temporary = self._temporary(lease_id)
        write_durably(temporary, json.dumps(spec.document(), indent=1).encode())
        temporary.replace(self.file(lease_id))
        sync_dir(self.path)

    def read(self, lease_id: str) -> Spec | None:
        """None when there is none. Raises :class:`TornFile`: it is not what was written."""
        try:
            spec = Spec.model_validate_json(self.file(lease_id).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise TornFile(f"{self.file(lease_id)} is unreadable") from error
        if (spec.kind, [device.name for device in spec.devices]) != (
            containers.CDI_KIND,
            [lease_id],
        ):
            raise TornFile(f"{self.file(lease_id)} is of another device")
        return spec

    def remove(self, lease_id: str) -> None:
        """From now on no container with this device can start. Idempotent."""
        if not self.path.is_dir():
            return
        self.file(lease_id).unlink(missing_ok=True)
        self._temporary(lease_id).unlink(missing_ok=True)
        sync_dir(self.path)

    def present(self) -> set[str]:
        """The leases that have a file here, whole or half-written."""
        if not self.path.is_dir():
            return set()
        names = (_OURS.fullmatch(entry.name) for entry in self.path.iterdir())
        return {name[1] for name in names if name is not None}

    def file(self, lease_id: str) -> Path:
        return self.path / f"gpuslice-{lease_id}.json"

    def _temporary(self, lease_id: str) -> Path:
        return self.path / f"gpuslice-{lease_id}.tmp"


def prepare_simulation(policy: DockerSettings, library: Path) -> Simulation:
    """Puts the library and the demo fleet where containers can be given them; call it at start.

    Args:
        library: As :func:`nvmlsim.build_library` made it.

    Returns:
        Where they are now: on the host, and by the same paths for the node.
    """
    folder = Path(policy.host_dir) / "nvmlsim"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    installed = install(library, folder)
    remove_unused(folder, keep=installed, devices=CdiFolder(Path(policy.cdi_dir)))
    state = folder / "fleet"
    demo_fleet(state).close()
    state.chmod(_READABLE)
    return Simulation(state, installed)


def install(library: Path, folder: Path) -> Path:
    """A copy named after its content, so that another version never takes this one's place."""
    body = library.read_bytes()
    installed = folder / f"libnvidia-ml-{hashlib.sha256(body).hexdigest()[:16]}.so.1"
    if not installed.exists() or installed.read_bytes() != body:
        temporary = folder / f"{installed.name}.tmp"
        write_durably(temporary, body)
        temporary.replace(installed)
    installed.chmod(_READABLE)
    sync_dir(folder)
    return installed


def remove_unused(folder: Path, *, keep: Path, devices: CdiFolder) -> None:
    """Removes libraries of earlier versions that no lease's device mounts."""
    try:
        mounted = mounted_files(devices)
    except TornFile:
        # What that one mounts is unknown.
        return
    for file in folder.iterdir():
        if _LIBRARY.fullmatch(file.name) and file != keep and str(file) not in mounted:
            file.unlink()
    sync_dir(folder)


def mounted_files(devices: CdiFolder) -> set[str]:
    """The host's files that leases' devices mount. Raises :class:`TornFile`."""
    return {
        mount.host_path
        for lease_id in devices.present()
        if (spec := devices.read(lease_id)) is not None
        for device in spec.devices
        for mount in device.container_edits.mounts
    }
