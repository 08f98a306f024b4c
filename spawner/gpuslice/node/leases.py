"""What the node does with leases: prepare, start, stop, fence, release, list."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.node import hunt
from gpuslice.node.deadline import deadline_us, write_deadline
from gpuslice.node.environment import Simulation, server_environment
from gpuslice.node.events import log_event
from gpuslice.node.launch import Launcher, LaunchError
from gpuslice.node.leasedir import CLAIMED, PREPARED, STARTED, LeaseDir, tail
from gpuslice.node.observe import LOST, REBOOTED, Observation, observe, report
from gpuslice.node.ports import Devices, Uses
from gpuslice.node.prepared import already_prepared, check_slice, prepared_slice, startable
from gpuslice.node.procs import all_processes, descendants, send_signal
from gpuslice.node.store import Store, slice_of
from gpuslice.units import SECOND_US, boot_id, boottime_us, now_us

log = logging.getLogger("gpuslice.node")

#: How long killing may take before the caller is told that it has not worked yet.
KILL_LIMIT_S = 10.0
#: How long a supervisor may clean up after its server before it is helped.
CLEAN_UP_LIMIT_S = 5.0
#: How long after the end of its grace a server may live before its supervisor is bypassed.
OVERDUE_US = 5 * SECOND_US
_POLL_S = 0.05


class Leases:
    """All leases of this node. What is true is on the disk and in ``/proc``; nothing is cached."""

    def __init__(
        self,
        node_id: str,
        store: Store,
        launcher: Launcher,
        devices: Devices,
        uses: Uses,
        simulation: Simulation | None = None,
    ) -> None:
        self.node_id = node_id
        self.store = store
        self.memory = hunt.Memory()
        self._launcher = launcher
        self._devices = devices
        self._uses = uses
        self._simulation = simulation
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Damaged folders whose processes were ended; there is no record to write that into.
        self._swept: set[str] = set()

    def _lock(self, lease_id: str) -> asyncio.Lock:
        return self._locks.setdefault(lease_id, asyncio.Lock())

    # --- looking ----------------------------------------------------------------------------

    async def listing(self) -> wire.Listing:
        """Everything leased on this node, fresh and complete. Raises OSError rather than guess."""
        now, boottime, seen = await asyncio.to_thread(self._look)
        for one in seen:
            if one.lost and one.lease.lease_id not in self._swept:
                self._in_background(self.end_lost(one.lease.lease_id))
        startable = (PREPARED, CLAIMED, STARTED)
        return wire.Listing(
            node_id=self.node_id,
            boot_id=boot_id(),
            now_us=now,
            boottime_us=boottime,
            servers=[server for one in seen if (server := self._report(one)) is not None],
            slices=[one.lease.lease_id for one in seen if one.marker in startable],
        )

    def _look(self) -> tuple[int, int, list[Observation]]:
        """What is here now, with the time before the first look."""
        now, boottime = now_us(), boottime_us()
        seen = [one for lease in self.store.all() if (one := observe(lease)) is not None]
        self._remember([one for one in seen if one.busy])
        return now, boottime, seen

    def _remember(self, busy: list[Observation]) -> None:
        """Notes which processes belong to which lease while their supervisors hold them."""
        if not busy:
            return
        table = all_processes()
        for one in busy:
            assert one.record is not None
            pid = one.record.supervisor_pid
            self.memory.note(one.lease.lease_id, descendants(table, [pid]))

    async def server(self, lease_id: str) -> wire.ServerReport | None:
        """One server as the list would state it."""
        seen = await self._observe(lease_id)
        return self._report(seen) if seen is not None else None

    def _report(self, seen: Observation) -> wire.ServerReport | None:
        server = report(seen)
        if server is None or server.state is not wire.ServerState.RUNNING:
            return server
        return server.model_copy(update={"use": self._uses.of(server.lease_id)})

    async def log_tail(self, lease_id: str, lines: int) -> str | None:
        """The last lines of a server's output; None for an unknown lease."""
        lease = self.store.get(lease_id)
        return None if lease is None else await asyncio.to_thread(tail, lease.log, lines)

    async def _observe(self, lease_id: str) -> Observation | None:
        lease = self.store.get(lease_id)
        return None if lease is None else await asyncio.to_thread(observe, lease)

    # --- before the start -------------------------------------------------------------------

    async def prepare(self, piece: wire.PrepareSlice) -> None:
        """From now until it is fenced, one start of this lease may succeed. Idempotent."""
        async with self._lock(piece.lease_id):
            if already_prepared(self.store, piece):
                return
            check_slice(piece)
            if piece.device_uuid is not None:
                problem = await self._devices.problem(piece.device_uuid)
                if problem is not None:
                    raise Refused("device-unavailable", problem)
            await asyncio.to_thread(self.store.add, piece)
        log_event(log, "prepared", lease=piece.lease_id, user=piece.user, device=piece.device_uuid)

    async def start(self, spec: wire.StartServer) -> None:
        """Launches the supervisor, which then asks the service. One attempt per lease, ever."""
        async with self._lock(spec.lease_id):
            lease = startable(self.store, spec.lease_id)
            piece = prepared_slice(lease)
            env = server_environment(spec.env, piece, self._simulation)
            body = {**spec.model_dump(mode="json"), "env": env}
            try:
                await asyncio.to_thread(lease.write_json, "spec.json", body, exclusive=True)
            except FileExistsError:
                raise Refused("already-started", "this lease was started before") from None
            try:
                await asyncio.to_thread(self._launcher.launch, lease)
            except LaunchError:
                # It may still come up late: then it must not start anything.
                await asyncio.to_thread(lease.fence)
                raise
        log_event(log, "launched", lease=spec.lease_id, user=piece.user)

    async def fence(self, lease_id: str) -> None:
        """When this returns no start of the lease can succeed, ever; a running server goes on."""
        async with self._lock(lease_id):
            if self.store.result(lease_id) is not None:
                return
            lease = self.store.get(lease_id)
            if lease is not None and not await asyncio.to_thread(lease.fence):
                return
            if lease is None or not (lease.path / "spec.json").exists():
                # Never asked to start, so nothing of it is here and nothing will be.
                result = wire.ReleaseResult(clean=True)
                await asyncio.to_thread(self.store.bury, lease_id, result)
            else:
                await self._end_unstarted(lease)
        log_event(log, "fenced", lease=lease_id)

    async def _end_unstarted(self, lease: LeaseDir) -> None:
        """Kills a supervisor that can no longer start anything, and waits for its end."""
        seen = await asyncio.to_thread(observe, lease)
        if seen is None or (seen.record is not None and not seen.busy):
            return
        await self._end_all(seen, status=503)
        if seen.record is not None:
            text = "taken back before the server started"
            refused = replace(seen.record, state="refused", message=text)
            await asyncio.to_thread(lease.write_record, refused)

    # --- stopping ---------------------------------------------------------------------------

    async def stop(self, lease_id: str, grace_s: float) -> None:
        """Asks the server to end and returns; one that has not started yet never will."""
        lease = self.store.get(lease_id)
        if lease is None:
            return
        if await asyncio.to_thread(lease.fence):
            self._in_background(self.fence(lease_id))
            return
        seen = await asyncio.to_thread(observe, lease)
        if seen is None or seen.record is None or not seen.busy:
            return
        await asyncio.to_thread(self._remember, [seen])
        await asyncio.to_thread(_write_stop, lease, grace_s)
        send_signal(seen.record.supervisor_pid, seen.record.supervisor_ticks, signal.SIGTERM)
        log_event(log, "stop-asked", lease=lease_id, grace_s=grace_s)

    # --- the end ----------------------------------------------------------------------------

    async def release(self, lease_id: str) -> wire.ReleaseResult:
        """Gives the slice back after settlement. Idempotent: the first answer is kept."""
        async with self._lock(lease_id):
            result = self.store.result(lease_id)
            if result is not None:
                # A killed node may have left the folder.
                await asyncio.to_thread(self.store.bury, lease_id, result)
                return result
            seen = await self._observe(lease_id)
            result = await self._collect(seen) if seen else wire.ReleaseResult(clean=True)
            await asyncio.to_thread(self.store.bury, lease_id, result)
            await asyncio.to_thread(self.store.forget_old)
            self.memory.forget(lease_id)
            self._swept.discard(lease_id)
        log_event(log, "released", lease=lease_id, clean=result.clean, reason=result.reason)
        return result

    async def _collect(self, seen: Observation) -> wire.ReleaseResult:
        if seen.busy:
            raise Refused("still-running", "the server of this lease is still there")
        await asyncio.to_thread(seen.lease.fence)
        await self._wait_for_clean_up(seen)
        pids = {process.pid for process in self.memory.of(seen.lease.lease_id)}
        if seen.record is not None:
            pids |= {seen.record.supervisor_pid, seen.record.child_pid or 0}
        await self._end_all(seen)
        piece = slice_of(seen.lease)
        if piece is None:
            return wire.ReleaseResult(clean=False, reason="which device it had is unreadable")
        if piece.device_uuid is None:
            return wire.ReleaseResult(clean=True)
        return await self._devices.check_clean(piece.device_uuid, pids)

    async def _wait_for_clean_up(self, seen: Observation) -> None:
        """An exited server's supervisor may still be ending what the server left."""
        for _ in range(int(CLEAN_UP_LIMIT_S / _POLL_S)):
            again = await asyncio.to_thread(observe, seen.lease)
            if again is None or not again.supervised:
                return
            await asyncio.sleep(_POLL_S)

    async def _end_all(self, seen: Observation, status: int = 409) -> None:
        lease_id = seen.lease.lease_id
        left = await hunt.end_all(lease_id, seen.record, self.memory.of(lease_id), KILL_LIMIT_S)
        if left:
            pids = sorted(process.pid for process in left)
            log_event(log, "not-ended", logging.ERROR, lease=lease_id, pids=pids)
            raise Refused(
                "still-running", f"processes of this lease do not end: {pids}", status=status
            )

    # --- what nobody asks for ---------------------------------------------------------------

    async def watch_once(self) -> None:
        """Ends what lost its supervisor, and bypasses a supervisor that does not do its part."""
        for server in (await self.listing()).servers:
            if server.state is wire.ServerState.RUNNING:
                lease = self.store.get(server.lease_id)
                if lease is not None and await asyncio.to_thread(_overdue, lease):
                    self._in_background(self.end_overdue(server.lease_id))

    async def end_lost(self, lease_id: str) -> None:
        """Ends what is left of a server whose supervisor was killed, and writes down that it was.

        The end stays unknown: nobody saw it.
        """
        async with self._lock(lease_id):
            seen = await self._observe(lease_id)
            if seen is None or not seen.lost:
                return
            await self._end_all(seen)
            if seen.record is not None:
                text = LOST if seen.record.boot_id == boot_id() else REBOOTED
                lost = replace(seen.record, state="lost", message=text)
                await asyncio.to_thread(seen.lease.write_record, lost)
            else:
                self._swept.add(lease_id)
        log_event(log, "server-lost", logging.WARNING, lease=lease_id)

    async def end_overdue(self, lease_id: str) -> None:
        """Kills a supervisor that does not carry out its stop, with all that it holds."""
        async with self._lock(lease_id):
            seen = await self._observe(lease_id)
            if seen is None or not seen.busy:
                return
            log_event(log, "stop-overdue", logging.WARNING, lease=lease_id)
            await self._end_all(seen)
        await self.end_lost(lease_id)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log_event(log, "background-failed", logging.ERROR, problem=repr(problem))


def _write_stop(lease: LeaseDir, grace_s: float) -> None:
    write_deadline(lease, grace_s, boot_id=boot_id(), boottime_us=boottime_us())


def _overdue(lease: LeaseDir) -> bool:
    end_us = deadline_us(lease, boot_id())
    return end_us is not None and boottime_us() > end_us + OVERDUE_US
