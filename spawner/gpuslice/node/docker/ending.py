"""A lease's way back: fenced, stopped, released; and what is left of leases that are over."""

from __future__ import annotations

import asyncio
import logging
import math

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.node.deadline import write_deadline
from gpuslice.node.docker.api import EngineSaysNo
from gpuslice.node.docker.book import Book, Entry, engine_must_answer
from gpuslice.node.docker.live import ContainerServers
from gpuslice.node.docker.reports import Container, started_again
from gpuslice.node.docker.starting import Networks, SliceDevices
from gpuslice.node.events import log_event
from gpuslice.node.leasedir import FENCED, LEASE_ID
from gpuslice.node.ports import Devices
from gpuslice.units import SECOND_US

log = logging.getLogger("gpuslice.node")

#: How long what was killed may take to be gone before the caller is told that it is not.
KILL_LIMIT_S = 5.0
#: How long after the end of its grace the engine may take to kill a server before we do.
OVERDUE_US = 5 * SECOND_US
_POLL_S = 0.05


class Ending:
    """Nothing is given back before the engine has shown in a fresh answer that nothing runs.

    Every method raises Refused; with status 503 nothing is known.
    """

    def __init__(
        self,
        book: Book,
        devices: Devices,
        cdi: SliceDevices,
        networks: Networks,
        servers: ContainerServers,
    ) -> None:
        self._book = book
        self._devices = devices
        self._cdi = cdi
        self._networks = networks
        self._servers = servers
        #: The containers that the engine is stopping for us now.
        self._stopping: set[str] = set()

    # --- fence ------------------------------------------------------------------------------

    async def fence(self, lease_id: str) -> None:
        """When this returns no start of the lease can succeed, ever; a running server goes on.

        The device goes first, which needs no engine: with it gone a container that was created
        cannot start, whoever asks for it.
        """
        store = self._book.store
        async with self._book.lock(lease_id):
            if store.result(lease_id) is not None:
                return
            lease = store.get(lease_id)
            fenced = lease is None or await asyncio.to_thread(lease.fence)
            await self._cdi.remove(lease_id)
            with engine_must_answer():
                left = await self._remove_unstarted(lease_id)
                if fenced and not left:
                    # It never ran, and nothing of it is left: that was all of it.
                    await self._networks.remove(lease_id)
                    result = wire.ReleaseResult(clean=True)
                    await asyncio.to_thread(store.bury, lease_id, result)
        log_event(log, "fenced", lease=lease_id)

    async def _remove_unstarted(self, lease_id: str) -> list[Container]:
        """Removes the lease's containers that never ran; returns the others."""
        left = []
        for container in await self._book.view.of_lease(lease_id):
            if container.started_us is not None or container.runs:
                left.append(container)
                continue
            try:
                await self._book.api.remove(container.id)
            except EngineSaysNo:
                # It runs by now, or the engine is still removing it for somebody else.
                left.append(container)
        return left

    # --- stop -------------------------------------------------------------------------------

    async def stop(self, lease_id: str, grace_s: float) -> None:
        """Asks the server to end and returns; one that has not started yet never will."""
        lease = self._book.store.get(lease_id)
        if lease is None:
            self._book.in_background(self._stop_strangers(lease_id, grace_s))
            return
        if await asyncio.to_thread(lease.fence):
            self._book.in_background(self.fence(lease_id))
            return
        moment = self._book.clock()
        await asyncio.to_thread(
            write_deadline, lease, grace_s,
            boot_id=moment.boot_id, boottime_us=moment.boottime_us,
        )  # fmt: skip
        log_event(log, "stop-asked", lease=lease_id, grace_s=grace_s)
        self._book.in_background(self.carry_out_stop(lease_id))

    async def carry_out_stop(self, lease_id: str) -> None:
        """Has the engine stop what was asked to stop; returns when it has ended.

        The engine itself kills it at the end of its patience, even if this node dies meanwhile.
        """
        entry = await self._book.read(lease_id)
        if entry is None or entry.deadline_us is None:
            return
        with engine_must_answer():
            container = await self._book.own_container(entry)
            if container is None:
                return
            if container.started_us is None:
                # Its start failed, or is still to come: then this waits for it.
                await self.fence(lease_id)
            elif container.runs:
                await self._stop_running(entry, container)

    async def _stop_running(self, entry: Entry, container: Container) -> None:
        assert entry.deadline_us is not None
        patience_s = (entry.deadline_us - self._book.clock().boottime_us) / SECOND_US
        if container.id in self._stopping:
            # It has been told. This stop is perhaps less patient than the one it was told by.
            await asyncio.sleep(max(0.0, patience_s))
            again = await self._book.view.look_at(container.id)
            if again is not None and again.runs:
                await self._kill(again)
            return
        self._stopping.add(container.id)
        try:
            if patience_s > 0:
                await self._book.api.stop(container.id, math.ceil(patience_s))
            else:
                await self._kill(container)
        except EngineSaysNo as no:
            # It has ended meanwhile.
            log_event(log, "stop-refused", lease=entry.lease_id, reason=no.message)
        finally:
            self._stopping.discard(container.id)
        await self._book.settle(entry.lease_id)

    async def _stop_strangers(self, lease_id: str, grace_s: float) -> None:
        """Containers that name a lease which this node does not have (any more)."""
        with engine_must_answer():
            for container in await self._book.view.of_lease(lease_id):
                if container.runs:
                    log_event(log, "stranger-stopped", logging.WARNING, lease=lease_id,
                              container=container.name)  # fmt: skip
                    await self._book.api.stop(container.id, math.ceil(grace_s))

    async def look_after(self, entry: Entry, container: Container) -> None:
        """What a running container of a lease needs that nobody asks for (any more)."""
        if entry.marker == FENCED or started_again(entry.life, container):
            # It must not run: only the one start that the node has made is anybody's.
            log_event(log, "killed", logging.WARNING, lease=entry.lease_id, marker=entry.marker)
            await self._kill(container)
        elif entry.deadline_us is not None:
            overdue = self._book.clock().boottime_us > entry.deadline_us + OVERDUE_US
            if container.id not in self._stopping:
                await self.carry_out_stop(entry.lease_id)
            elif overdue:
                log_event(log, "stop-overdue", logging.WARNING, lease=entry.lease_id)
                await self._kill(container)

    async def _kill(self, container: Container) -> None:
        try:
            await self._book.api.kill(container.id)
        except EngineSaysNo as no:
            log_event(log, "not-killed", container=container.name, reason=no.message)

    # --- release ----------------------------------------------------------------------------

    async def release(self, lease_id: str) -> wire.ReleaseResult:
        """Gives the slice back after settlement. Idempotent: the first answer is kept."""
        store = self._book.store
        async with self._book.lock(lease_id):
            result = store.result(lease_id)
            entry = await self._book.read(lease_id)
            with engine_must_answer():
                ran = await self._clear(lease_id, entry)
            if result is None:
                result = await self._judge(lease_id, entry, ran=ran)
            await asyncio.to_thread(store.bury, lease_id, result)
            await asyncio.to_thread(store.forget_old)
            self._servers.forget(lease_id)
            self._book.alive_us.pop(lease_id, None)
        log_event(log, "released", lease=lease_id, clean=result.clean, reason=result.reason)
        return result

    async def _clear(self, lease_id: str, entry: Entry | None) -> bool:
        """Removes what the engine has of the lease; whether anything of it had run.

        Everything with the lease's label goes, also what somebody made by hand: it may hold the
        device, which the next lease gets.
        """
        found = await self._book.view.of_lease(lease_id)
        for container in found:
            if container.runs and not self._is_stranger(entry, container):
                raise Refused("still-running", "the server of this lease is still there")
        if entry is not None:
            await asyncio.to_thread(entry.lease.fence)
        await self._cdi.remove(lease_id)
        for container in found:
            if container.runs:
                await self._end(container)
        for container in found:
            await self._remove(container)
        await self._networks.remove(lease_id)
        return any(container.started_us is not None for container in found)

    def _is_stranger(self, entry: Entry | None, container: Container) -> bool:
        """Runs with the label of the lease, and is not the server that the node has started.

        Without the lease's folder nothing tells them apart: then none is ended on a suspicion.
        """
        if entry is None:
            return False
        return not entry.owns(container) or started_again(entry.life, container)

    async def _end(self, container: Container) -> None:
        log_event(log, "stranger-killed", logging.WARNING, container=container.name)
        await self._kill(container)
        deadline = self._book.clock().boottime_us + int(KILL_LIMIT_S * SECOND_US)
        while (now := await self._book.view.look_at(container.id)) is not None and now.runs:
            if self._book.clock().boottime_us > deadline:
                raise Refused("still-running", f"the container {container.name} does not end")
            await asyncio.sleep(_POLL_S)

    async def _remove(self, container: Container) -> None:
        try:
            await self._book.api.remove(container.id)
        except EngineSaysNo as no:
            # Somebody has started it just now, or the engine is still at it for somebody else.
            text = f"the container {container.name} cannot be removed now: {no.message}"
            raise Refused("not-removed", text[:500]) from no

    async def _judge(self, lease_id: str, entry: Entry | None, *, ran: bool) -> wire.ReleaseResult:
        """Whether the device is clean. Raises Refused when it cannot be asked."""
        if entry is None and not ran:
            return wire.ReleaseResult(clean=True)
        if entry is None or entry.piece is None:
            return wire.ReleaseResult(clean=False, reason="which device it had is unreadable")
        if entry.piece.device_uuid is None:
            return wire.ReleaseResult(clean=True)
        pids = self._servers.remembered(lease_id)
        return await self._devices.check_clean(entry.piece.device_uuid, pids)

    # --- leftovers --------------------------------------------------------------------------

    async def sweep(self, containers: list[Container]) -> None:
        """Clears away what is left in the engine and on the disk of leases that are over.

        Only what is this node's own by its labels, or by its own records; and only of leases that
        have nothing on the disk any more: those that do are the service's to release.

        Args:
            containers: A fresh look at the engine.
        """
        store = self._book.store
        held = {c.lease_id for c in containers if c.lease_id is not None}
        for lease_id in sorted(held):
            over = store.get(lease_id) is None and store.result(lease_id) is not None
            if over and await self._sweep_containers(lease_id):
                held.discard(lease_id)
        for lease_id in sorted(filter(LEASE_ID.fullmatch, await self._networks.present())):
            if lease_id not in held and store.get(lease_id) is None:
                log_event(log, "network-swept", lease=lease_id)
                await self._networks.remove(lease_id)
        for lease_id in sorted(await asyncio.to_thread(self._cdi.present)):
            # Another node may keep its devices in the same folder, so these must be known as ours.
            lease = store.get(lease_id)
            over = lease is None and store.result(lease_id) is not None
            if over or (lease is not None and lease.marker() == FENCED):
                log_event(log, "device-swept", lease=lease_id)
                await self._cdi.remove(lease_id)

    async def _sweep_containers(self, lease_id: str) -> bool:
        """Such as one that the engine made after the node had stopped waiting for it.

        Returns whether none is left: one that runs is for the service to have stopped.
        """
        async with self._book.lock(lease_id):
            found = await self._book.view.of_lease(lease_id)
            for container in found:
                if not container.runs:
                    log_event(log, "container-swept", lease=lease_id, container=container.name)
                    await self._remove(container)
        return not any(container.runs for container in found)
