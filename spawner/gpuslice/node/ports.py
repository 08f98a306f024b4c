"""What the parts of the node need of each other; an engine fills in the first of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gpuslice import wire


class Engine(Protocol):
    """What runs the leased servers of this node, as the service sees it.

    Every method raises :class:`gpuslice.errors.Refused`; one with status 503 (or any other
    exception) means that nothing is known, so nothing may be concluded.
    """

    node_id: str

    async def listing(self) -> wire.Listing:
        """Everything leased on this node, fresh and complete."""

    async def prepare(self, piece: wire.PrepareSlice) -> None:
        """From now until it is fenced, one start of this lease may succeed. Idempotent."""

    async def fence(self, lease_id: str) -> None:
        """When this returns no start of the lease can succeed, ever; a running server goes on."""

    async def stop(self, lease_id: str, grace_s: float) -> None:
        """Asks the server to end and returns; one that has not started yet never will."""

    async def release(self, lease_id: str) -> wire.ReleaseResult:
        """Gives the slice back after settlement. Idempotent: the first answer is kept."""

    async def server(self, lease_id: str) -> wire.ServerReport | None:
        """One server as the list would state it; None when none is here."""

    async def log_tail(self, lease_id: str, lines: int) -> str | None:
        """The last lines of a server's output; None when none is here."""

    async def watch_once(self) -> None:
        """What nobody asks for: called every few seconds."""


class Devices(Protocol):
    """What an engine needs to know of devices."""

    async def problem(self, uuid: str) -> str | None:
        """Why this device cannot be prepared; None when it can."""

    async def check_clean(self, uuid: str, pids: set[int]) -> wire.ReleaseResult:
        """Whether none of these processes is left on the device.

        Raises Refused when the device cannot be asked.
        """


class Uses(Protocol):
    """What an engine needs to know of what its servers use."""

    def of(self, lease_id: str) -> wire.Use | None:
        """The newest sample, at once; None when there is none of now."""


@dataclass(frozen=True, slots=True)
class Live:
    """One running server that has a device, or a share of one."""

    lease_id: str
    kind: wire.SliceKind
    device_uuid: str
    #: Thousandths of the device; 1000 unless it is a share.
    share_milli: int
    #: All its processes as this machine numbers them.
    pids: frozenset[int]

    @property
    def shares(self) -> bool:
        return self.kind is wire.SliceKind.SHARED


class LiveServers(Protocol):
    """Which servers run now, for the samplers. Called from their threads; may block."""

    def live(self) -> Sequence[Live]:
        """The running servers that have a device, with their processes as they are now."""
