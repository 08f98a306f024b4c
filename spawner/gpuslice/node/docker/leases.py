"""The ``docker`` engine's leases, as service and spawner know them; the work is done elsewhere.

The engine's own fresh list is the truth for what runs. An engine that does not answer is a refusal
with status 503 and the reason ``runtime-unavailable``, and nothing is concluded from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import dataclass

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.node.docker.api import DockerApi, Json
from gpuslice.node.docker.book import Book, Entry, by_lease, engine_must_answer
from gpuslice.node.docker.ending import Ending
from gpuslice.node.docker.life import Clock, Moment
from gpuslice.node.docker.live import ContainerServers, Running
from gpuslice.node.docker.reports import Container, foreign_report
from gpuslice.node.docker.started import ServiceDoor, StartRefusedError
from gpuslice.node.docker.starting import Homes, Networks, SliceDevices, Starting
from gpuslice.node.events import log_event
from gpuslice.node.leasedir import CLAIMED, LEASE_ID, PREPARED, STARTED
from gpuslice.node.ports import Devices, Uses
from gpuslice.node.store import Store
from gpuslice.settings import DockerSettings

log = logging.getLogger("gpuslice.node")

_STARTABLE = (PREPARED, CLAIMED, STARTED)


@dataclass(frozen=True, slots=True)
class _Look:
    """Disk and engine, compared: what was found between two moments."""

    asked: Moment
    seen: Moment
    #: All of the engine's containers with this node's label.
    found: list[Container]
    own: list[tuple[Entry, Container | None]]
    servers: list[wire.ServerReport]


class DockerLeases:
    """All leases of this node: ``ports.Engine``, and what the filtered Docker API is the gate of.

    Args:
        uses: What the servers use of their devices.
        servers: Is told what runs.
    """

    def __init__(
        self,
        node_id: str,
        store: Store,
        api: DockerApi,
        policy: DockerSettings,
        *,
        devices: Devices,
        cdi: SliceDevices,
        networks: Networks,
        homes: Homes,
        service: ServiceDoor,
        uses: Uses,
        servers: ContainerServers,
        clock: Clock = Moment.now,
    ) -> None:
        self.node_id = node_id
        self._book = Book(node_id, store, api, clock=clock)
        self._starting = Starting(self._book, policy, devices, cdi, networks, homes)
        self._ending = Ending(self._book, devices, cdi, networks, servers)
        self._networks = networks
        self._service = service
        self._uses = uses
        self._servers = servers
        self._followed = False
        #: Containers that were told of once.
        self._strange: set[str] = set()

    # --- looking ----------------------------------------------------------------------------

    async def listing(self) -> wire.Listing:
        """Everything leased on this node, fresh and complete."""
        with engine_must_answer():
            look = await self._look()
        for entry, container in look.own:
            if container is not None and self._unsettled(entry, container, look.seen):
                self._book.in_background(self._book.settle(entry.lease_id))
        return wire.Listing(
            node_id=self.node_id,
            boot_id=look.seen.boot_id,
            now_us=look.asked.now_us,
            boottime_us=look.asked.boottime_us,
            servers=look.servers,
            slices=[entry.lease_id for entry, _ in look.own if entry.marker in _STARTABLE],
        )

    async def _look(self) -> _Look:
        """The disk first, then the engine: whatever is in there then has a folder by now."""
        book = self._book
        entries = {entry.lease_id: entry for entry in await asyncio.to_thread(book.entries)}
        asked = book.clock()
        found = await book.view.look()
        seen = book.clock()
        groups = by_lease(found)
        for lease_id, group in groups.items():
            known = entries.get(lease_id)
            if known is not None and any(map(known.owns, group)):
                continue
            # Perhaps it was made since the disk was read.
            if (entry := await book.read(lease_id)) is not None:
                entries[lease_id] = entry
        own: list[tuple[Entry, Container | None]] = []
        servers = []
        for lease_id, entry in sorted(entries.items()):
            container = next((one for one in groups.pop(lease_id, ()) if entry.owns(one)), None)
            own.append((entry, container))
            if (server := book.report(entry, container, asked, seen)) is not None:
                servers.append(self._with_use(server))
        for lease_id, unknown in sorted(groups.items()):
            # One of several is told of: one that runs, if any does.
            shown = max(unknown, key=lambda one: one.runs)
            servers.append(foreign_report(shown, lease_id, seen))
        ours = {container.id for _, container in own if container is not None}
        self._tell_strangers([one for one in found if one.id not in ours])
        self._servers.update([one for pair in own if (one := _with_device(*pair)) is not None])
        return _Look(asked, seen, found, own, servers)

    def _with_use(self, server: wire.ServerReport) -> wire.ServerReport:
        if server.state is not wire.ServerState.RUNNING:
            return server
        alive = self._book.alive_us
        alive[server.lease_id] = max(alive.get(server.lease_id, 0), server.alive_til_us or 0)
        return server.model_copy(update={"use": self._uses.of(server.lease_id)})

    def _unsettled(self, entry: Entry, container: Container, seen: Moment) -> bool:
        if entry.life.end is not None:
            return False
        return self._book.settled(entry, container, seen) != entry.life

    def _tell_strangers(self, strangers: list[Container]) -> None:
        """Logs, once each, containers with our label that no lease of ours has made.

        They are left alone while their lease lives, and never taken for its server: whoever made
        them has the engine, and may know why. At the lease's end everything with its label goes.
        """
        for one in strangers:
            if one.id not in self._strange:
                log_event(log, "strange-container", logging.WARNING, container=one.name,
                          lease=one.lease_id, status=one.status)  # fmt: skip
        self._strange = {one.id for one in strangers}

    async def server(self, lease_id: str) -> wire.ServerReport | None:
        """One server as the list would state it; None when none is here."""
        entry = await self._book.read(lease_id)
        if entry is None:
            return None
        asked = self._book.clock()
        with engine_must_answer():
            container = await self._book.own_container(entry)
        server = self._book.report(entry, container, asked, self._book.clock())
        return None if server is None else self._with_use(server)

    async def log_tail(self, lease_id: str, lines: int) -> str | None:
        """The last lines of a server's output; None when none is here."""
        entry = await self._book.read(lease_id)
        if entry is None:
            return None
        with engine_must_answer():
            container = await self._book.own_container(entry)
            return "" if container is None else await self._book.api.log_tail(container.id, lines)

    async def lease_of(self, container: str) -> str | None:
        """Whose container this is, by its name or id; None when it is none of ours."""

        def find() -> str | None:
            for lease in self._book.store.all():
                entry = self._book.entry(lease)
                if entry is not None and _is_called(entry, container):
                    return lease.lease_id
            return None

        return await asyncio.to_thread(find)

    # --- from prepare to start --------------------------------------------------------------

    async def prepare(self, piece: wire.PrepareSlice) -> None:
        """From now until it is fenced, one start of this lease may succeed. Idempotent."""
        await self._starting.prepare(piece)

    async def prepared(self, lease_id: str) -> wire.PrepareSlice:
        """The slice that a server may still be created in. Asks nothing of the engine."""
        return await self._starting.prepared(lease_id)

    async def create(self, lease_id: str, name: str, wanted: Json) -> Json:
        """Creates the lease's one container; the engine's answer."""
        return await self._starting.create(lease_id, name, wanted)

    async def start(self, lease_id: str) -> None:
        """Starts the lease's container, once, and tells the service.

        A service that says no has it stopped; one that does not answer finds it in the list.
        """
        container = await self._starting.start(lease_id)
        entry = await self._book.read(lease_id)
        if entry is not None and entry.deadline_us is not None:
            # Asked to stop while it was starting.
            self._book.in_background(self._ending.carry_out_stop(lease_id))
        if container is None or container.started_us is None:
            return
        boot_id = self._book.clock().boot_id
        try:
            await self._service.tell_started(lease_id, container.started_us, boot_id)
        except StartRefusedError as refused:
            log_event(log, "start-refused", lease=lease_id, reason=refused)
            await self._ending.stop(lease_id, 0)
            raise Refused("start-refused", str(refused)) from refused

    # --- to the end -------------------------------------------------------------------------

    async def fence(self, lease_id: str) -> None:
        """When this returns no start of the lease can succeed, ever; a running server goes on."""
        await self._ending.fence(lease_id)

    async def stop(self, lease_id: str, grace_s: float) -> None:
        """Asks the server to end and returns; one that has not started yet never will."""
        await self._ending.stop(lease_id, grace_s)

    async def release(self, lease_id: str) -> wire.ReleaseResult:
        """Gives the slice back after settlement. Idempotent: the first answer is kept."""
        return await self._ending.release(lease_id)

    async def remove(self, lease_id: str) -> None:
        """Nobody but the release removes a container: with it goes the proof of what is billed."""
        if self._book.store.get(lease_id) is not None:
            raise Refused("not-settled", "this lease is not settled yet; its container stays")

    # --- what nobody asks for ---------------------------------------------------------------

    async def watch_once(self) -> None:
        """Dates starts and ends, carries out stops, clears up, connects gates."""
        if not self._followed:
            self._followed = True
            self._book.in_background(self._book.view.follow(self._changed))
        with engine_must_answer():
            look = await self._look()
        await asyncio.to_thread(self._servers.live)
        for entry, container in look.own:
            if container is not None and container.runs:
                self._book.in_background(self._ending.look_after(entry, container))
        unsettled = [
            self._book.settle(entry.lease_id)
            for entry, container in look.own
            if container is not None and self._unsettled(entry, container, look.seen)
        ]
        await _all(*unsettled, self._ending.sweep(look.found), self._networks.connect_gates())

    def _changed(self, lease_id: str) -> None:
        if LEASE_ID.fullmatch(lease_id):
            self._book.in_background(self._book.settle(lease_id))

    async def close(self) -> None:
        """Ends what this object does by itself. Servers go on."""
        await self._book.close()


async def _all(*steps: Awaitable[None]) -> None:
    """Takes every step, whatever becomes of the others; then raises the first problem."""
    problem: Exception | None = None
    for step in steps:
        try:
            with engine_must_answer():
                await step
        except (Refused, OSError) as raised:
            problem = problem or raised
    if problem is not None:
        raise problem


def _with_device(entry: Entry, container: Container | None) -> Running | None:
    """For the samplers: a container that runs and has a device."""
    piece = entry.piece
    if container is None or not container.runs or piece is None or piece.device_uuid is None:
        return None
    return Running(piece, piece.device_uuid, container.pid)


def _is_called(entry: Entry, container: str) -> bool:
    return container in (entry.life.name, entry.life.container_id)
