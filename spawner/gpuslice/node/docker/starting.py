"""A lease's way to its running container: prepared, created, started, each once."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from gpuslice import containers, wire
from gpuslice.errors import Refused
from gpuslice.node.docker import reports
from gpuslice.node.docker.api import EngineDown, EngineSaysNo, Json
from gpuslice.node.docker.book import Book, Entry, engine_must_answer
from gpuslice.node.docker.homes import HomeMount
from gpuslice.node.docker.reports import Container
from gpuslice.node.docker.template import container_body
from gpuslice.node.docker.wanted import read_wanted
from gpuslice.node.events import log_event
from gpuslice.node.leasedir import CLAIMED, FENCED, PREPARED
from gpuslice.node.ports import Devices
from gpuslice.node.prepared import already_prepared, check_slice, prepared_slice, startable
from gpuslice.settings import DockerSettings

log = logging.getLogger("gpuslice.node")

#: So long the engine may take to show that it is there, before a lease is refused.
ANSWER_LIMIT_S = 2.0


class SliceDevices(Protocol):
    """The leases' CDI devices. Raises Refused."""

    async def write(self, piece: wire.PrepareSlice) -> None: ...
    async def check(self, piece: wire.PrepareSlice) -> None: ...
    async def remove(self, lease_id: str) -> None: ...
    def present(self) -> set[str]: ...


class Networks(Protocol):
    """The leases' networks. Raises Refused, EngineDown or EngineSaysNo."""

    async def ensure(self, lease_id: str) -> str: ...
    async def remove(self, lease_id: str) -> None: ...
    async def connect_gates(self) -> None: ...
    async def present(self) -> set[str]: ...


class Homes(Protocol):
    """The users' homes. Raises Refused, EngineDown or EngineSaysNo."""

    async def ensure(self, user: str) -> HomeMount: ...


class Starting:
    """Raises Refused, and what the engine says where its words are for who asked."""

    def __init__(
        self,
        book: Book,
        policy: DockerSettings,
        devices: Devices,
        cdi: SliceDevices,
        networks: Networks,
        homes: Homes,
    ) -> None:
        self._book = book
        self._policy = policy
        self._devices = devices
        self._cdi = cdi
        self._networks = networks
        self._homes = homes

    # --- prepare ----------------------------------------------------------------------------

    async def prepare(self, piece: wire.PrepareSlice) -> None:
        """From now until it is fenced, one start of this lease may succeed. Idempotent.

        The folder comes first: whatever else there is of a lease has one, so that after a crash
        nothing is left that nobody knows of. Nothing can be started meanwhile: that takes the
        lease's lock, and looks whether the device is there.
        """
        store = self._book.store
        async with self._book.lock(piece.lease_id):
            again = already_prepared(store, piece)
            if again and self._marker(piece.lease_id) != PREPARED:
                return
            check_slice(piece)
            await self._engine_answers()
            if piece.device_uuid is not None:
                problem = await self._devices.problem(piece.device_uuid)
                if problem is not None:
                    raise Refused("device-unavailable", problem)
            if again:
                # A killed node may not have come to it.
                await self._cdi.write(piece)
                return
            await asyncio.to_thread(store.add, piece)
            try:
                await self._cdi.write(piece)
            except BaseException:
                await self._cdi.remove(piece.lease_id)
                await asyncio.to_thread(store.discard, piece.lease_id)
                raise
        log_event(log, "prepared", lease=piece.lease_id, user=piece.user, device=piece.device_uuid)

    def _marker(self, lease_id: str) -> str | None:
        lease = self._book.store.get(lease_id)
        return None if lease is None else lease.marker()

    async def _engine_answers(self) -> None:
        with engine_must_answer():
            try:
                await asyncio.wait_for(self._book.api.ping(), ANSWER_LIMIT_S)
            except TimeoutError:
                text = f"the Docker engine has not answered for {ANSWER_LIMIT_S:g} s"
                raise EngineDown(text) from None

    async def prepared(self, lease_id: str) -> wire.PrepareSlice:
        """The slice that a server may still be created in. Asks nothing of the engine."""
        return prepared_slice(startable(self._book.store, lease_id))

    # --- create -----------------------------------------------------------------------------

    async def create(self, lease_id: str, name: str, wanted: Json) -> Json:
        """Creates the lease's one container; the engine's answer.

        What the caller wants is judged before the engine is asked for anything.
        """
        book = self._book
        async with book.lock(lease_id):
            piece = prepared_slice(startable(book.store, lease_id))
            if name != containers.container_name(piece.user, piece.server, lease_id):
                raise Refused("wrong-name", "the container of a lease has its name", status=403)
            image = await self._image(read_wanted(wanted, piece, self._policy).image)
            entry = await book.read(lease_id)
            assert entry is not None
            network = await self._networks.ensure(lease_id)
            home = await self._homes.ensure(piece.user)
            body = container_body(
                wanted, piece, self._policy, image,
                node_id=book.node_id, network=network, home=home,
            )  # fmt: skip
            life = entry.life.model_copy(update={"name": name})
            await book.save(entry, life)
            if not await asyncio.to_thread(entry.lease.claim):
                raise Refused("fenced", "this lease was taken back")
            try:
                answer = await book.api.create(name, body)
            except EngineSaysNo:
                # It is certain that there is none, and one of this name is somebody else's.
                await book.save(entry, entry.life)
                raise
            await book.save(entry, life.model_copy(update={"container_id": str(answer["Id"])}))
        log_event(log, "created", lease=lease_id, user=piece.user, container=answer["Id"])
        return answer

    async def _image(self, reference: str) -> Json:
        image = await self._book.api.image(reference)
        if image is None:
            raise Refused("no-image", f"No such image: {reference}", status=404)
        return image

    # --- start ------------------------------------------------------------------------------

    async def start(self, lease_id: str) -> Container | None:
        """Starts the lease's container: one attempt per lease, ever.

        Returns the container as the engine states it; None when it was started, and the engine
        does not say more.
        """
        book = self._book
        async with book.lock(lease_id):
            entry, container = await self._created(lease_id)
            await self._cdi.check(prepared_slice(entry.lease))
            asked = book.clock()
            life = entry.life.model_copy(
                update={
                    "container_id": container.id,
                    "boot_id": asked.boot_id,
                    "asked_boottime_us": asked.boottime_us,
                }
            )
            await book.save(entry, life)
            # The point of no return, durable before the engine is asked.
            if not await asyncio.to_thread(entry.lease.start):
                raise Refused("fenced", "this lease was taken back")
            started = await self._ask_to_start(container.id)
            if started is not None:
                entry = await book.read(lease_id) or entry
                life = reports.with_start(life, started, asked, book.clock())
                await book.save(entry, life)
        log_event(log, "started", lease=lease_id, started_us=started and started.started_us)
        return started

    async def _created(self, lease_id: str) -> tuple[Entry, Container]:
        entry = await self._book.read(lease_id)
        if entry is None or entry.marker == PREPARED:
            raise Refused("no-container", "no container of this lease is here", status=404)
        if entry.marker == FENCED:
            raise Refused("fenced", "this lease was taken back")
        if entry.marker != CLAIMED:
            raise Refused("already-started", "this lease was started before")
        container = await self._book.own_container(entry)
        if container is None:
            raise Refused("no-container", "the container of this lease is gone", status=404)
        if container.started_us is not None:
            raise Refused("already-started", "somebody else has started this container")
        return entry, container

    async def _ask_to_start(self, container_id: str) -> Container | None:
        """The started container. An engine that fails may have started it all the same."""
        problem: EngineDown | EngineSaysNo | None = None
        try:
            await self._book.api.start(container_id)
        except (EngineDown, EngineSaysNo) as raised:
            problem = raised
        try:
            container = await self._book.view.look_at(container_id)
        except (EngineDown, EngineSaysNo):
            if problem is not None:
                raise problem from None
            return None
        if container is not None and container.started_us is not None:
            return container
        if container is not None and container.error:
            raise Refused("start-failed", reports.start_problem(container.error)) from problem
        if problem is not None:
            raise problem
        raise Refused("start-failed", "the engine says that it has started it, and has not")
