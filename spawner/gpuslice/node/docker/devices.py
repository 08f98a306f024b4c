"""One CDI device per live lease: what a container must have to see its slice, and nothing else."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.node.docker.cdi import Edits, Mount, slice_spec
from gpuslice.node.docker.environment import device_environment
from gpuslice.node.docker.hostfiles import CdiFolder
from gpuslice.node.docker.hostroot import HostRoot, as_on_host
from gpuslice.node.docker.nvidia import ADVICE, Toolkit
from gpuslice.node.environment import Simulation, simulated_environment
from gpuslice.node.leasedir import TornFile
from gpuslice.settings import DockerSettings

#: Where every dynamic linker looks, in Debian's images and in those made from them.
LIBRARY_IN_CONTAINER = "/usr/lib/libnvidia-ml.so.1"
STATE_IN_CONTAINER = Path("/usr/share/nvmlsim/fleet")

_SIMULATED_ADVICE = (
    "The folder docker.host_dir has to be the same on the host and for the node; then start the "
    "node again."
)


class SliceDevices:
    """The leases' CDI devices on this node. Nothing of it is kept in memory.

    Raises Refused (``device-unavailable``) with what is wrong and what to do.
    """

    def __init__(self, policy: DockerSettings, simulation: Simulation | None) -> None:
        self._folder = CdiFolder(Path(policy.cdi_dir))
        self._host = HostRoot(policy.host_root)
        self._toolkit = Toolkit(policy.nvidia_ctk)
        self._simulation = simulation
        self._user = policy.user
        self._advice = ADVICE if simulation is None else _SIMULATED_ADVICE

    async def write(self, piece: wire.PrepareSlice) -> None:
        """From now on a container with this lease's device can start. Writes it anew each time."""
        if piece.device_uuid is None:
            edits = Edits()
        elif self._simulation is None:
            edits = await self._toolkit.edits(piece.device_uuid)
        else:
            edits = simulated_edits(self._simulation)
        await asyncio.to_thread(self._write, piece, edits)

    async def check(self, piece: wire.PrepareSlice) -> None:
        """Just before a start: the device is there, and all it names is as it was."""
        await asyncio.to_thread(self._check, piece.lease_id)

    async def remove(self, lease_id: str) -> None:
        """From now on no container with this lease's device can start; a running one goes on."""
        await asyncio.to_thread(self._folder.remove, lease_id)

    def present(self) -> set[str]:
        """The leases with a device here, or with what a crash left of one; reads one folder."""
        return self._folder.present()

    def _write(self, piece: wire.PrepareSlice, edits: Edits) -> None:
        edits = for_user(as_on_host(edits, self._host, self._advice), self._user)
        env = lease_environment(piece, simulated=self._simulation is not None)
        self._folder.write(piece.lease_id, slice_spec(piece.lease_id, edits, env))

    def _check(self, lease_id: str) -> None:
        try:
            spec = self._folder.read(lease_id)
        except TornFile as torn:
            raise Refused("device-unavailable", f"{torn}. Start the server again.") from torn
        if spec is None:
            raise Refused(
                "device-unavailable",
                f"The device of this lease is gone from {self._folder.path}. Start the server "
                "again.",
            )
        as_on_host(spec.devices[0].container_edits, self._host, self._advice)


def lease_environment(piece: wire.PrepareSlice, *, simulated: bool) -> dict[str, str]:
    """The variables of a lease's device; nobody's else have the last word."""
    env = device_environment(piece)
    if simulated and piece.device_uuid is not None:
        env |= simulated_environment(piece, STATE_IN_CONTAINER)
    return env


def for_user(edits: Edits, user: str) -> Edits:
    """Nodes that are not for everybody belong to ``user`` (``uid:gid``) in the container.

    On the host they may be for a group only, such as ``video``.
    """
    uid, gid = (int(part) for part in user.split(":"))
    owner = {"uid": uid, "gid": gid}
    nodes = tuple(
        node if (node.file_mode or 0) & stat.S_IROTH else node.model_copy(update=owner)
        for node in edits.device_nodes
    )
    return edits.model_copy(update={"device_nodes": nodes})


def simulated_edits(simulation: Simulation) -> Edits:
    """The stand-in library where programs look for NVML, and the fleet that it shows."""
    return Edits(
        mounts=(
            Mount(
                host_path=str(simulation.library),
                container_path=LIBRARY_IN_CONTAINER,
                options=("ro", "nosuid", "nodev", "bind"),
            ),
            Mount(
                host_path=str(simulation.state),
                container_path=str(STATE_IN_CONTAINER),
                options=("ro", "nosuid", "nodev", "noexec", "bind"),
            ),
        )
    )
