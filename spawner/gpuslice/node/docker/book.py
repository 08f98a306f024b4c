"""What is known of each lease: its folder, and its one container in the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from gpuslice import containers, wire
from gpuslice.errors import Refused
from gpuslice.node.deadline import deadline_us
from gpuslice.node.docker import reports
from gpuslice.node.docker.api import DockerApi, EngineDown, EngineSaysNo
from gpuslice.node.docker.life import Clock, Life, Moment, read_life, write_life
from gpuslice.node.docker.reports import Container
from gpuslice.node.docker.watch import EngineView
from gpuslice.node.events import log_event
from gpuslice.node.leasedir import LeaseDir, TornFile
from gpuslice.node.store import Store, slice_of

log = logging.getLogger("gpuslice.node")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the disk says of one lease."""

    lease: LeaseDir
    marker: str | None
    piece: wire.PrepareSlice | None
    life: Life
    #: Its end of patience on the boot clock, if it was asked to stop.
    deadline_us: int | None

    @property
    def lease_id(self) -> str:
        return self.lease.lease_id

    def owns(self, container: Container) -> bool:
        """Whether this is the container that the node made for this lease.

        It is known by the id that the engine answered with. Labels are no proof: whoever has the
        engine can put them on anything. Only while that answer is missing, because the node died
        or the engine broke off, the one container with our name *and* labels is taken for it;
        the engine gives a name to one container at a time.
        """
        if self.life.container_id is not None:
            return container.id == self.life.container_id
        return container.name == self.life.name and container.lease_id == self.lease_id


class Book:
    """The leases' folders and containers. Nothing of it is cached but what the engine confirms."""

    def __init__(
        self, node_id: str, store: Store, api: DockerApi, *, clock: Clock = Moment.now
    ) -> None:
        self.node_id = node_id
        self.store = store
        self.api = api
        self.view = EngineView(api, node_id)
        self.clock = clock
        #: Until when each server was last seen alive, UTC µs. A help only.
        self.alive_us: dict[str, int] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    def lock(self, lease_id: str) -> asyncio.Lock:
        """Held over every change of one lease, until the engine has answered."""
        return self._locks.setdefault(lease_id, asyncio.Lock())

    # --- reading ----------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Every lease that has a folder; reads the disk."""
        found = (self.entry(lease) for lease in self.store.all())
        return [entry for entry in found if entry is not None]

    def entry(self, lease: LeaseDir) -> Entry | None:
        """None when the folder is gone meanwhile; reads the disk."""
        marker, piece = lease.marker(), slice_of(lease)
        try:
            life = read_life(lease)
        except TornFile as torn:
            # What the engine says still holds; the node's own clock is lost.
            log_event(log, "torn", logging.ERROR, lease=lease.lease_id, problem=torn)
            name = None
            if piece is not None:
                name = containers.container_name(piece.user, piece.server, piece.lease_id)
            life = Life(name=name)
        deadline = deadline_us(lease, self.clock().boot_id)
        return Entry(lease, marker, piece, life, deadline) if lease.path.exists() else None

    async def read(self, lease_id: str) -> Entry | None:
        """One lease; None when nothing of it is here."""
        lease = self.store.get(lease_id)
        return None if lease is None else await asyncio.to_thread(self.entry, lease)

    async def own_container(self, entry: Entry) -> Container | None:
        """The lease's container as it is now. Raises EngineDown."""
        name = entry.life.container_id or entry.life.name
        if name is None:
            return None
        found = await self.view.look_at(name)
        return found if found is not None and entry.owns(found) else None

    def report(
        self, entry: Entry, container: Container | None, asked: Moment, seen: Moment
    ) -> wire.ServerReport | None:
        """The server as the list states it, without its use."""
        return reports.report(
            entry.piece, entry.lease_id, entry.life, container, asked=asked, seen=seen,
            alive_us=self.alive_us.get(entry.lease_id, 0),
            asked_to_stop=entry.deadline_us is not None,
        )  # fmt: skip

    # --- writing ----------------------------------------------------------------------------

    async def save(self, entry: Entry, life: Life) -> None:
        """Durable when it returns."""
        await asyncio.to_thread(write_life, entry.lease, life)

    async def settle(self, lease_id: str) -> None:
        """Writes down the id, the start and the end of a container as the engine states them.

        An end is dated the sooner the better: no clock that is set later can move it then.
        """
        async with self.lock(lease_id):
            entry = await self.read(lease_id)
            if entry is None or entry.life.end is not None:
                return
            container = await self.own_container(entry)
            if container is not None:
                life = self.settled(entry, container, self.clock())
                if life != entry.life:
                    await self.save(entry, life)

    def settled(self, entry: Entry, container: Container, seen: Moment) -> Life:
        """The life with all that the engine states of it now.

        Args:
            seen: After the engine stated it.
        """
        life = entry.life.model_copy(update={"container_id": container.id})
        if container.started_us is None:
            return life
        if life.started_us is None:
            life = reports.with_start(life, container, None, seen)
        if reports.is_over(life, container):
            end = reports.end_of(
                life, container, seen, alive_us=self.alive_us.get(entry.lease_id, 0),
                ram_bytes=entry.piece.ram_bytes if entry.piece else None,
                asked_to_stop=entry.deadline_us is not None,
            )  # fmt: skip
            life = life.model_copy(update={"end": end})
        return life

    # --- in the background ------------------------------------------------------------------

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """What nobody waits for; what goes wrong in it is logged, and tried again by the watch."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            known = isinstance(problem, (Refused, EngineDown, EngineSaysNo))
            level = logging.WARNING if known else logging.ERROR
            log_event(log, "background-failed", level, problem=repr(problem))

    async def close(self) -> None:
        """Ends what runs in the background. Servers go on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def engine_must_answer() -> Iterator[None]:
    """What the engine does not say, as a refusal with which nothing is freed."""
    try:
        yield
    except EngineDown as problem:
        raise Refused(
            "runtime-unavailable", str(problem)[:500], status=503, retry_after_s=10
        ) from problem
    except EngineSaysNo as no:
        raise Refused("engine-refused", no.message[:500], status=no.status) from no


def by_lease(found: Iterable[Container]) -> dict[str, list[Container]]:
    """Containers by the lease that their label names."""
    groups: dict[str, list[Container]] = {}
    for container in found:
        if container.lease_id is not None:
            groups.setdefault(container.lease_id, []).append(container)
    return groups
