"""An engine and node in memory, to inject faults that a real one shows once a year."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gpuslice import wire
from gpuslice.nodeclient import NodeRefused, NodeUnavailable

GIB = 1 << 30
NODE = "node-1"


class Crash(BaseException):
    """The service process was killed here."""


@dataclass
class Server:
    """One server as the engine has it: the truth that the ledger must agree with."""

    lease_id: str
    state: wire.ServerState = wire.ServerState.CREATED
    started_us: int | None = None
    finished_us: int | None = None
    finish_known: bool = True
    #: Removed with its record, so no list ever shows it again.
    vanished: bool = False
    #: By how much the wall clock had been set when it started.
    jumped_us: int = 0

    @property
    def runs(self) -> bool:
        return self.state is wire.ServerState.RUNNING


def gpu(uuid: str, index: int, **more: object) -> wire.DeviceReport:
    """A simulated 80 GB GPU."""
    return wire.DeviceReport.model_validate(
        {
            "uuid": uuid,
            "kind": "gpu",
            "index": index,
            "model": "NVIDIA H100 80GB HBM3",
            "memory_bytes": 80 * GIB,
            "simulated": True,
        }
        | more
    )


def mig(uuid: str, parent: str, index: int, start: int) -> wire.DeviceReport:
    """A 1g.10gb instance of it at a memory slot."""
    return gpu(
        uuid,
        index,
        kind="mig",
        parent_uuid=parent,
        mig_profile="1g.10gb",
        mig_start=start,
        mig_size=1,
        mig_compute=1,
        memory_bytes=10 * GIB,
    )


class FakeNode:
    """Duck-typed `gpuslice.nodeclient.NodeClient`; faults are set as attributes."""

    def __init__(self, clock: Callable[[], int], devices: list[wire.DeviceReport]) -> None:
        self.clock = clock
        self.devices = devices
        self.boot = "boot-1"
        self.slices: dict[str, wire.PrepareSlice] = {}
        self.fenced: set[str] = set()
        self.servers: dict[str, Server] = {}
        #: Everything that ever ran, also after it was released.
        self.history: dict[str, Server] = {}
        self.up = True
        self.unclean: str | None = None
        #: What is wrong with a device that somebody looks at, by its UUID.
        self.wrong: dict[str, str] = {}
        #: By how much the wall clock was set; what has really passed is the clock's without it.
        self.jumped_us = 0
        #: Raise Crash at the n-th call from now, before or after its effect.
        self.crash_in: int | None = None
        self.crash_after = False
        #: Runs after a list was taken and before it is answered: a race.
        self.after_listing: Callable[[], Awaitable[None]] | None = None
        self.calls: list[str] = []

    def _enter(self, call: str) -> bool:
        """Count a call; returns whether to crash after its effect."""
        self.calls.append(call)
        if not self.up:
            raise NodeUnavailable("no-answer", "the node does not answer")
        if self.crash_in is None:
            return False
        self.crash_in -= 1
        if self.crash_in > 0:
            return False
        self.crash_in = None
        if not self.crash_after:
            raise Crash(call)
        return True

    async def inventory(self) -> wire.Inventory:
        self._enter("inventory")
        return wire.Inventory(
            node_id=NODE,
            boot_id=self.boot,
            engine="local",
            now_us=self.clock(),
            boottime_us=self.clock() - self.jumped_us,
            simulated=True,
            driver_version="580.0",
            gpu_problem=None,
            host=wire.HostReport(cpu_milli=64_000, ram_bytes=512 * GIB),
            devices=self.devices,
            enforcement_ceiling=wire.Enforcement.ADVISORY,
        )

    async def look(self, uuid: str) -> wire.DeviceCheck:
        self._enter("look")
        return wire.DeviceCheck(problem=self.wrong.get(uuid))

    async def listing(self) -> wire.Listing:
        self._enter("listing")
        listing = wire.Listing(
            node_id=NODE,
            boot_id=self.boot,
            now_us=self.clock(),
            boottime_us=self.clock() - self.jumped_us,
            servers=[self._report(server) for server in self.servers.values()],
            slices=sorted(set(self.slices) - self.fenced),
        )
        if self.after_listing is not None:
            race, self.after_listing = self.after_listing, None
            await race()
        return listing

    def _report(self, server: Server) -> wire.ServerReport:
        known = server.finish_known
        return wire.ServerReport(
            lease_id=server.lease_id,
            state=server.state,
            user="u",
            server="",
            boot_id=self.boot,
            started_us=server.started_us,
            alive_til_us=self._true_time(server) if server.runs else None,
            finished_us=server.finished_us if known else None,
            exit_code=0 if server.finished_us is not None and known else None,
            piece=self.slices.get(server.lease_id),
        )

    async def prepare(self, piece: wire.PrepareSlice) -> None:
        crash = self._enter("prepare")
        if piece.lease_id in self.fenced:
            raise NodeRefused("fenced", "this lease was fenced", 409)
        self.slices[piece.lease_id] = piece
        if crash:
            raise Crash("prepare")

    async def fence(self, lease_id: str) -> None:
        crash = self._enter("fence")
        self.fenced.add(lease_id)
        server = self.servers.get(lease_id)
        if server is not None and server.state is wire.ServerState.CREATED:
            server.state = wire.ServerState.EXITED
        if crash:
            raise Crash("fence")

    async def stop(self, lease_id: str, grace_s: float = 10.0) -> None:
        crash = self._enter("stop")
        server = self.servers.get(lease_id)
        if server is not None and server.runs:
            self.finish(server)
        if crash:
            raise Crash("stop")

    async def release(self, lease_id: str) -> wire.ReleaseResult:
        crash = self._enter("release")
        server = self.servers.get(lease_id)
        if server is not None and server.state is not wire.ServerState.EXITED:
            raise NodeRefused("still-running", "the server still runs", 409)
        self.servers.pop(lease_id, None)
        self.slices.pop(lease_id, None)
        if crash:
            raise Crash("release")
        return wire.ReleaseResult(clean=self.unclean is None, reason=self.unclean)

    # --- what happens on the machine -----------------------------------------------------------

    def startable(self, lease_id: str) -> bool:
        """Whether the engine would start this lease's server now: prepared and not fenced."""
        return (
            lease_id in self.slices and lease_id not in self.fenced and lease_id not in self.history
        )

    def create(self, lease_id: str) -> Server:
        server = Server(lease_id)
        self.servers[lease_id] = self.history[lease_id] = server
        return server

    def run(self, server: Server, started_us: int) -> None:
        server.state, server.started_us = wire.ServerState.RUNNING, started_us
        server.jumped_us = self.jumped_us

    def _true_time(self, server: Server) -> int:
        """The server's start and the time that has really passed since, as the node says it."""
        return self.clock() - (self.jumped_us - server.jumped_us)

    def finish(self, server: Server, *, known: bool = True) -> None:
        server.state = wire.ServerState.EXITED
        server.finished_us, server.finish_known = self._true_time(server), known

    def vanish(self, server: Server) -> None:
        """Removed by hand with its record, as ``docker rm -f`` does."""
        self.finish(server, known=False)
        server.vanished = True
        self.servers.pop(server.lease_id, None)
