"""A whole platform in memory but for its ledger: the real broker on a real database, a fake node.

Time is a number that the tests move. A `Crash` at any commit or node call kills the service; a
restart builds a new broker on the same database and the same engine, as after ``kill -9``.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import tempfile
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from fakenode import Crash, FakeNode, gpu, mig
from gpuslice import wire
from gpuslice.broker import grant as grant_module
from gpuslice.broker import queue as queue_module
from gpuslice.broker.broker import Broker
from gpuslice.broker.core import Hub
from gpuslice.broker.verify import verify
from gpuslice.errors import Refused
from gpuslice.ledger import migrate
from gpuslice.ledger.database import Database, make_engine, sqlite_url
from gpuslice.settings import Settings, load_settings

T = TypeVar("T")
START = 1_790_000_000_000_000
_WITH_IDS = (grant_module, queue_module)

#: Slice types that overlap on one device, and one each of the other kinds.
SLICES = [
    {"name": "cpu", "kind": "cpu", "price": "0.05"},
    {"name": "whole", "kind": "exclusive", "model": "H100", "price": "3.5"},
    {"name": "half", "kind": "shared", "share": 0.5, "price": "1.75"},
    {"name": "quarter", "kind": "shared", "share": 0.25, "price": "0.875001"},
    {"name": "mig", "kind": "mig", "mig_profile": "1g.10gb", "price": "0.5"},
]


def world_settings(**overrides: Any) -> Settings:
    """Settings with those slices, no limit per user, and quick reactions."""
    return load_settings(
        None,
        {
            "slice": SLICES,
            "limits": {"leases_per_user": "unlimited"},
            "timing": {
                "heartbeat_s": 1,
                "start_timeout_s": 60,
                "node_stop_after_s": 10,
                "hold_horizon_s": 600,
            },
        }
        | overrides,
    )


def world_devices() -> list[wire.DeviceReport]:
    """Two shareable GPUs and one in MIG mode with two instances."""
    return [
        gpu("GPU-a", 0),
        gpu("GPU-b", 1),
        gpu("GPU-c", 2, mig_enabled=True),
        mig("MIG-c0", "GPU-c", 3, 0),
        mig("MIG-c1", "GPU-c", 4, 1),
    ]


class CrashingDatabase(Database):
    """A database whose process dies at the n-th commit from now, just before or just after it."""

    crash_in: int | None = None
    crash_after = False

    #: The engine that was used last, by its URL: it knows the statements that it has compiled,
    #: which is most of what a restart costs. Its connections are all closed in between.
    _last: ClassVar[tuple[str, Engine] | None] = None

    def __init__(self, url: str) -> None:
        super().__init__(url)
        if self._last is not None and self._last[0] == url:
            self.engine = self._last[1]
            self._sessions.configure(bind=self.engine)
            self._read_only.configure(bind=self.engine.execution_options(write=False))
            return
        CrashingDatabase._last = (url, self.engine)
        if self.engine.dialect.name == "sqlite":
            # The tests kill the service, not the machine: the page cache survives that.
            event.listen(
                self.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF")
            )

    def write(self, work: Callable[[Session], T]) -> T:
        due = False
        if self.crash_in is not None:
            self.crash_in -= 1
            due = self.crash_in <= 0
        if due:
            self.crash_in = None
        if due and not self.crash_after:

            def dies(session: Session) -> T:
                work(session)
                session.flush()
                raise Crash("before commit")

            return super().write(dies)
        result = super().write(work)
        if due:
            raise Crash("after commit")
        return result


@functools.cache
def _template() -> bytes:
    """An empty, migrated SQLite ledger: made once, copied for every example."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.sqlite"
        engine = make_engine(sqlite_url(path))
        migrate.upgrade(engine)
        engine.dispose()  # the last connection to close moves the log into the file
        return path.read_bytes()


def sqlite_ledger(path: Path) -> str:
    """The URL of a fresh, migrated ledger in this file."""
    path.write_bytes(_template())
    return sqlite_url(path)


class World:
    """The broker, its database, the fake node and the clock."""

    def __init__(
        self,
        url: str,
        *,
        settings: Settings | None = None,
        devices: list[wire.DeviceReport] | None = None,
        hub: Hub | None = None,
    ) -> None:
        self.url = url
        self.hub = hub
        self.settings = settings or world_settings()
        self.now = START
        self.loop = asyncio.new_event_loop()
        self.node = FakeNode(self.clock, devices or world_devices())
        # Leases and requests are worked through in the order of their ids: with ids by chance, the
        # same steps would have another outcome the next time.
        for module in _WITH_IDS:
            numbers = itertools.count(1)
            module.uuid = SimpleNamespace(  # type: ignore[attr-defined]
                UUID=uuid.UUID,
                uuid5=uuid.uuid5,
                uuid4=lambda numbers=numbers: uuid.uuid5(uuid.NAMESPACE_OID, str(next(numbers))),
            )
        self.broker: Broker | None = None
        self.database: CrashingDatabase
        self.restart()

    def clock(self) -> int:
        return self.now

    def restart(self) -> None:
        """A new service process on the same ledger."""
        self.kill()
        self.database = CrashingDatabase(self.url)
        self.node.crash_in = None
        was_up, self.node.up = self.node.up, True
        # The fake has the call signatures of NodeClient, not its type.
        self.broker = Broker(self.settings, self.database, self.node, self.hub, self.clock)  # type: ignore[arg-type]
        self.do(self.broker.start())
        self.node.up = was_up

    def kill(self) -> None:
        if self.broker is not None:
            self.broker = None
            self.database.close()

    def close(self) -> None:
        self.kill()
        for module in _WITH_IDS:
            module.uuid = uuid  # type: ignore[attr-defined]
        self.loop.close()

    def do(self, job: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(job)

    def live(self) -> Broker:
        assert self.broker is not None
        return self.broker

    # --- what people and machines do ----------------------------------------------------------

    def request(self, user: str, slice_name: str, server: str = "") -> wire.LeaseRequest:
        return wire.LeaseRequest(
            attempt=uuid.uuid4().hex, user=user, server=server, slice=slice_name
        )

    def grant(self, user: str, slice_name: str, server: str = "") -> wire.LeaseGrant:
        return self.do(self.live().grant(self.request(user, slice_name, server)))

    def supervise(self, lease_id: str, *, dies: bool = False) -> bool:
        """What the local engine's supervisor does; returns whether its server runs."""
        return self.do(self.supervise_async(lease_id, dies=dies))

    async def supervise_async(self, lease_id: str, *, dies: bool = False) -> bool:
        server = self.node.create(lease_id)
        body = wire.ServerStarted(started_us=self.now, boot_id=self.node.boot)
        try:
            await self.live().started(lease_id, body)
        except Refused:
            server.state = wire.ServerState.EXITED
            return False
        except Crash:
            # Nobody answers, and after a while the supervisor gives up: it never starts a server
            # that it has no word for, even if the word was committed.
            server.state = wire.ServerState.EXITED
            raise
        if dies:
            self.node.vanish(server)
            return False
        self.node.run(server, body.started_us)
        return True

    def engine_start(self, lease_id: str) -> None:
        """What a container engine does: it starts without asking; the list tells."""
        self.node.run(self.node.create(lease_id), self.now)

    def stop(self, lease_id: str, reason: str = "user") -> wire.LeaseView:
        return self.do(self.live().stop(lease_id, wire.StopLease(reason=reason, actor="u")))

    def reconcile(self) -> None:
        """One comparison and one round of the queue; the service does each in its own time."""
        self.do(self._round())

    async def _round(self) -> None:
        broker = self.live()
        await broker.reconcile()
        await broker.queue.serve_line()
        if broker.queue.under_way:
            await asyncio.wait(broker.queue.under_way)

    def view(self, lease_id: str) -> wire.LeaseView:
        view = self.do(self.live().lease(lease_id))
        assert view is not None
        return view

    def problems(self) -> list[str]:
        """What ``gpuslice ledger verify`` finds."""
        return self.database.read(verify)

    def settle_everything(self, rounds: int = 8) -> None:
        """Time passes with everything up until nothing changes any more."""
        self.node.up = True
        for _ in range(rounds):
            self.now += 100_000_000
            self.reconcile()
