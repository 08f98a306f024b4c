"""A node with the Docker engine, in this process and on the real engine: its leases, no sockets."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import docker

from dockerworld import cdi_file, containers_of, networks_of
from engineproxy import Fault
from gpuslice import wire
from gpuslice.containers import LABEL_BASE_URL, LABEL_LEASE, container_name
from gpuslice.node.docker.api import DockerApi, EngineDown
from gpuslice.node.docker.devices import SliceDevices
from gpuslice.node.docker.homes import Homes
from gpuslice.node.docker.leases import DockerLeases
from gpuslice.node.docker.life import Moment
from gpuslice.node.docker.live import ContainerServers
from gpuslice.node.docker.networks import Networks
from gpuslice.node.docker.started import ServiceDoor
from gpuslice.node.store import Store
from gpuslice.settings import DockerSettings
from gpuslice.units import MIB
from realnode import cpu_slice

DEADLINE_S = 60.0
T = TypeVar("T")


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test that is a coroutine function; what it leaves running is ended."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def until(look: Callable[[], Awaitable[T]], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Looks until the answer is true; fails with ``what`` at the deadline."""
    deadline = time.monotonic() + deadline_s
    while not (answer := await look()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.02)
    return answer


@dataclass
class SetClock:
    """The node's clocks, which a test can set: a machine that was restarted, a wall clock that
    steps."""

    wall_us: int = 0
    boottime_us: int = 0
    boot_id: str | None = None

    def __call__(self) -> Moment:
        now = Moment.now()
        return replace(
            now,
            now_us=now.now_us + self.wall_us,
            boottime_us=now.boottime_us + self.boottime_us,
            boot_id=self.boot_id or now.boot_id,
        )

    def restart_machine(self) -> None:
        """As if the machine had been started a moment ago."""
        self.boot_id = os.urandom(16).hex()
        self.boottime_us = -Moment.now().boottime_us


@dataclass
class PlannedDevices:
    """Devices as a test wants them; remembers which processes a release asked about."""

    trouble: str | None = None
    clean: wire.ReleaseResult = field(default_factory=lambda: wire.ReleaseResult(clean=True))
    checked: list[tuple[str, set[int]]] = field(default_factory=list)

    async def problem(self, uuid: str) -> str | None:
        return self.trouble

    async def check_clean(self, uuid: str, pids: set[int]) -> wire.ReleaseResult:
        self.checked.append((uuid, pids))
        return self.clean


class NoUse:
    def of(self, lease_id: str) -> wire.Use | None:
        return None


class ImpatientApi(DockerApi):
    """Gives a call up as soon as it hangs in ``hanging``; everything else may take its time."""

    hanging: Fault | None = None

    @asynccontextmanager
    async def open(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        fault = self.hanging
        if fault is None or fault.method not in ("", method) or not fault.path.search(path):
            async with super().open(method, path, **options) as answer:
                yield answer
            return
        try:
            async with asyncio.timeout(None) as limit:
                giving_up = asyncio.ensure_future(self._give_up(fault, limit))
                try:
                    async with super().open(method, path, **options) as answer:
                        yield answer
                finally:
                    giving_up.cancel()
        except TimeoutError as problem:
            raise EngineDown("the Docker engine does not answer (given up)") from problem

    async def _give_up(self, fault: Fault, limit: asyncio.Timeout) -> None:
        async def held() -> bool:
            return fault.held

        await until(held, "it hangs")
        limit.reschedule(asyncio.get_running_loop().time())


class DockerNode:
    """One node's leases; ``again()`` is the node after it was killed."""

    def __init__(
        self, folder: Path, node_id: str, policy: DockerSettings, service_url: str, user: str,
        new_lease: Callable[[], str],
    ) -> None:  # fmt: skip
        self.folder = folder
        self.node_id = node_id
        self.policy = policy
        self.service_url = service_url
        self.user = user
        self.new_lease = new_lease
        self.clock = SetClock()
        self.devices = PlannedDevices()
        #: So long a look at the engine may take, in seconds.
        self.look_limit_s = DEADLINE_S
        self.hanging: Fault | None = None
        (folder / "token").write_text("secret-of-the-node\n")
        self.open()

    def open(self) -> None:
        self.store = Store(self.folder / "node")
        self.store.open()
        self.api = ImpatientApi(self.policy.socket, timeout_s=self.look_limit_s)
        self.api.hanging = self.hanging
        self.cdi = SliceDevices(self.policy, None)
        self.networks = Networks(self.policy, self.api, self.node_id)
        self.servers = ContainerServers()
        self.leases = DockerLeases(
            self.node_id, self.store, self.api, self.policy,
            devices=self.devices, cdi=self.cdi, networks=self.networks,
            homes=Homes(self.policy, self.api),
            service=ServiceDoor(self.service_url, self.folder / "token", limit_s=20),
            uses=NoUse(), servers=self.servers, clock=self.clock,
        )  # fmt: skip

    async def again(self) -> None:
        """The node is killed and started again: its memory is gone, its disk is as it was."""
        await self.leases.close()
        self.unlock()
        self.open()

    def gives_up(self, fault: Fault | None) -> None:
        """Calls that hang in this fault are given up at once, also after ``again()``."""
        self.api.hanging = self.hanging = fault

    def unlock(self) -> None:
        """Lets another node have the folder, as a dead one does."""
        assert self.store._lock is not None
        os.close(self.store._lock)

    # --- leases -----------------------------------------------------------------------------

    def piece(self, **changes: Any) -> wire.PrepareSlice:
        wanted: dict[str, Any] = {"user": self.user, "ram_bytes": 64 * MIB, "cpu_milli": 500}
        return cpu_slice(changes.pop("lease_id", None) or self.new_lease(), **(wanted | changes))

    async def prepare(self, **changes: Any) -> wire.PrepareSlice:
        piece = self.piece(**changes)
        await self.leases.prepare(piece)
        return piece

    async def create(self, piece: wire.PrepareSlice, *cmd: str) -> str:
        """The created container's id. Without ``cmd``: the image's own."""
        answer = await self.leases.create(piece.lease_id, self.name(piece), self.wanted(piece, cmd))
        return str(answer["Id"])

    async def run(self, *cmd: str, **changes: Any) -> wire.PrepareSlice:
        """A running server."""
        piece = await self.prepare(**changes)
        await self.create(piece, *cmd)
        await self.leases.start(piece.lease_id)
        return piece

    def name(self, piece: wire.PrepareSlice) -> str:
        return container_name(piece.user, piece.server, piece.lease_id)

    def wanted(self, piece: wire.PrepareSlice, cmd: tuple[str, ...] = ()) -> dict[str, Any]:
        """What a spawner asks for."""
        return {
            "Image": self.policy.image[0].reference,
            "Cmd": list(cmd),
            "Env": ["JUPYTERHUB_USER=ada"],
            "Labels": {LABEL_LEASE: piece.lease_id, LABEL_BASE_URL: "/user/ada/"},
        }

    # --- looking ----------------------------------------------------------------------------

    async def listed(self, lease_id: str) -> wire.ServerReport | None:
        found = [s for s in (await self.leases.listing()).servers if s.lease_id == lease_id]
        assert len(found) < 2
        return found[0] if found else None

    async def wait(self, lease_id: str, state: wire.ServerState) -> wire.ServerReport:
        async def look() -> wire.ServerReport | None:
            server = await self.listed(lease_id)
            return server if server is not None and server.state is state else None

        try:
            return await until(look, f"server {state}")
        except AssertionError:
            raise AssertionError(f"never {state}: {await self.listed(lease_id)}") from None

    def marker(self, lease_id: str) -> str | None:
        lease = self.store.get(lease_id)
        return lease.marker() if lease is not None else None

    async def release(self, lease_id: str) -> wire.ReleaseResult:
        return await self.leases.release(lease_id)

    async def take_back(self, lease_id: str) -> wire.ServerReport | None:
        """What the service does to be rid of a lease, whatever has become of it."""
        await self.leases.fence(lease_id)

        async def ended() -> bool:
            server = await self.listed(lease_id)
            if server is None or server.state is wire.ServerState.EXITED:
                return True
            await self.leases.stop(lease_id, 0)
            return False

        await until(ended, "nothing runs")
        server = await self.listed(lease_id)
        assert (await self.leases.release(lease_id)).clean
        return server

    def leftovers(self, client: docker.DockerClient, *lease_ids: str) -> list[object]:
        """All that is still here of this node's leases; the CDI devices of these."""
        return [
            *containers_of(client, self.node_id),
            *networks_of(client, self.node_id),
            *(lease.lease_id for lease in self.store.all()),
            *(file for lease_id in lease_ids if (file := cdi_file(lease_id)).exists()),
        ]
