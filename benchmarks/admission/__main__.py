"""How long one admission takes on a ledger of any size, and how many there are in a second.

``python benchmarks/admission`` fills a ledger (`benchmarks/books.py`), gives it a fleet of nodes
with eight GPUs, half of it leased, and has the real broker grant and cancel. In turns with the
decisions it measures what a commit costs here at least: the smallest transaction of the same
database, and an fsync'd append to a file beside it. Full size, on SQLite in a folder of its own:

``python benchmarks/admission --devices 1000 --users 10000 --entries 10000000 --decisions 5000``

``--database`` names an empty PostgreSQL database instead, or one of these benchmarks' ledgers,
which is then used as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The books and the tables are those of the other benchmarks, the node a fake one of the tests.
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "benchmarks/spawn", "tests/lib")]

import books  # noqa: E402
import sqlalchemy as sa  # noqa: E402
from figures import table  # noqa: E402
from percentiles import Times, beyond  # noqa: E402

from fakenode import FakeNode, gpu  # noqa: E402
from gpuslice import wire  # noqa: E402
from gpuslice.broker import lifecycle  # noqa: E402
from gpuslice.broker.broker import Broker  # noqa: E402
from gpuslice.broker.devices import sync_inventory  # noqa: E402
from gpuslice.errors import Refused  # noqa: E402
from gpuslice.ledger.database import Database, sqlite_url  # noqa: E402
from gpuslice.ledger.tables import Account, Claim, Entry  # noqa: E402
from gpuslice.settings import load_settings  # noqa: E402

GOAL_MS, GOAL_A_SECOND = 5.0, 1000
GPUS_OF_A_NODE = 8
TOGETHER = 64
#: A user's limit in the books.
SLICES = 4
OFFERED = [
    {"name": "cpu", "kind": "cpu", "price": "0.05"},
    {"name": "whole", "kind": "exclusive", "model": "H100", "price": "3.5"},
    {"name": "half", "kind": "shared", "share": 0.5, "price": "1.75"},
    {"name": "quarter", "kind": "shared", "share": 0.25, "price": "0.875001"},
]
ASKED = ("quarter", "quarter", "quarter", "half", "whole", "cpu")


def main() -> int:
    options = _options()
    say(machine())
    size = books.Size(
        devices=max(1, options.devices // 4), users=options.users, entries=options.entries, live=0
    )
    with tempfile.TemporaryDirectory(prefix="gpuslice-bench-") as folder:
        url = options.database or sqlite_url(Path(folder) / "ledger.sqlite")
        began = time.monotonic()
        try:
            books.make(url, size)
        except ValueError as error:
            if options.database is None:
                raise
            say(f"Used as it is: {error}.")
        else:
            say(f"Made in {time.monotonic() - began:.0f} s.")
        asyncio.run(Bench(url, size, options).run())
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/admission", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--devices", type=int, default=200, help="GPUs that may be granted")
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--entries", type=int, default=50_000)
    parser.add_argument("--live", type=int, help="leases of them; default: two a GPU, half of all")
    parser.add_argument("--decisions", type=int, default=500, help="grants that are measured")
    parser.add_argument("--database", help="the URL; default: SQLite in a folder of its own")
    return parser.parse_args()


class Bench:
    """One broker on those books, and its measured decisions."""

    def __init__(self, url: str, size: books.Size, options: argparse.Namespace) -> None:
        self._size, self._devices, self._count = size, options.devices, options.decisions
        self._live = 2 * options.devices if options.live is None else options.live
        self._began = time.monotonic()
        settings = load_settings(
            None, {"slice": OFFERED, "limits": {"leases_per_user": SLICES}}
        )  # fmt: skip
        self._node = FakeNode(self._now, _gpus(0))
        self._database = Database(url)
        # The fake has the call signatures of NodeClient, not its type.
        self._broker = Broker(settings, self._database, self._node, None, self._now)  # type: ignore[arg-type]
        self._sync = Sync(self._database, url)
        #: Names of servers that no earlier run on this ledger has used.
        self._run = uuid.uuid4().hex[:8]
        self._chance = random.Random(1)  # noqa: S311 (no secret)

    def _now(self) -> int:
        return books.NOW_US + int((time.monotonic() - self._began) * 1e6)

    async def run(self) -> None:
        await self._broker.start()
        try:
            await self._fill()
            await self._measure()
        finally:
            await self._broker.close()

    async def _fill(self) -> None:
        """The fleet, half of it leased in quarters, and one user with all that a user may have."""
        first = await self._node.inventory()
        others = [
            first.model_copy(update={"node_id": f"node-{n + 1}", "devices": _gpus(n)})
            for n in range(1, -(-self._devices // GPUS_OF_A_NODE))
        ]

        def sync(session: sa.orm.Session, now: int) -> int:
            for one in others:
                sync_inventory(session, one, now=now)
            live = sa.select(sa.func.count()).where(Claim.released_version.is_(None))
            return (session.scalar(live) or 0) // 2

        live = await self._broker.core.write(sync)
        began = time.monotonic()
        for number in range(live, self._live):
            await self._grant(number % self._size.users, "quarter", f"live-{number}")
        for number in range(SLICES):
            try:
                await self._grant(self._size.users - 1, "cpu", f"all-{number}")
            except Refused:
                break  # some of them are of the fleet's leases
        took = time.monotonic() - began
        users, entries = await self._broker.core.read(
            lambda s: (
                s.scalar(sa.select(sa.func.count()).where(Account.kind == "user")),
                s.scalar(sa.select(sa.func.max(Entry.id))) or 0,
            )
        )
        say(
            f"\n{self._database.engine.dialect.name}: {self._devices} devices on {len(others) + 1} "
            f"nodes, {self._live} leases live (granted in {took:.0f} s); {users} users, "
            f"{entries} entries."
        )

    async def _grant(self, user: int, slice_name: str, server: str) -> str:
        request = wire.LeaseRequest(
            attempt=uuid.uuid4().hex, user=books.user(user), server=f"{self._run}-{server}",
            slice=slice_name, groups=[f"group{user % self._size.groups}"],
        )  # fmt: skip
        return (await self._broker.grant(request)).lease_id

    async def _cancel(self, lease_id: str) -> None:
        def work(session: sa.orm.Session, now: int) -> None:
            lifecycle.revoke(session, lease_id, "a benchmark", now=now)
            lifecycle.cancel(session, lease_id, None, now=now)

        await self._broker.core.write(work)
        self._node.slices.pop(lease_id, None)

    async def _measure(self) -> None:
        found = {"granted": Times(), "refused at a limit": Times(), "cancelled": Times()}
        commits, appends, computed = Times(), Times(), Times()
        for number in range(self._count):
            # Not the last one, who has everything already.
            user, wanted = self._chance.randrange(self._size.users - 1), self._chance.choice(ASKED)
            began, computing = time.perf_counter(), time.process_time()
            try:
                lease_id = await self._grant(user, wanted, f"b{number}")
            except Refused:
                continue  # whose leases of the fleet are as many as a user may have
            found["granted"].add(time.perf_counter() - began)
            computed.add(time.process_time() - computing)
            began = time.perf_counter()
            await self._cancel(lease_id)
            found["cancelled"].add(time.perf_counter() - began)
            began = time.perf_counter()
            try:
                await self._grant(self._size.users - 1, wanted, f"r{number}")
            except Refused:
                found["refused at a limit"].add(time.perf_counter() - began)
            commits.add(self._sync.commit())
            if self._sync.appends:
                appends.add(self._sync.append())
        together = await self._together()
        rows = [[name, *times.row()] for name, times in found.items()]
        rows.insert(1, ["its processor time", *computed.row()])
        rows.append(["the smallest transaction", *commits.row()])
        if self._sync.appends:
            rows.append(["an fsync'd append", *appends.row()])
        say("\n" + table(["decision", "n", "p50, ms", "p99, ms", "longest, ms"], rows))
        granted = found["granted"]
        half, most = beyond(granted, commits)
        say(
            f"\nA grant beyond the smallest transaction: p50 {half:.1f} ms, p99 {most:.1f} ms "
            f"(goal: at most {GOAL_MS:.0f}); {granted.p50 / commits.p50:.1f} times as long.\n"
            f"Grants a second in this process: {1000 / granted.mean:.0f} one after the other, "
            f"{together:.0f} with {TOGETHER} asked for at a time (goal: {GOAL_A_SECOND}).\n"
            f"Load: {load()}."
        )

    async def _together(self) -> float:
        """Grants a second when many ask at the same time."""
        took, done = 0.0, 0
        for number in range(max(1, self._count // TOGETHER // 2)):
            users = self._chance.choices(range(self._size.users - 1), k=TOGETHER)
            began = time.perf_counter()
            leases = await asyncio.gather(
                *(
                    self._grant(user, "quarter", f"t{number}-{place}")
                    for place, user in enumerate(users)
                ),
                return_exceptions=True,
            )
            took += time.perf_counter() - began
            for lease in leases:
                if isinstance(lease, str):
                    done += 1
                    await self._cancel(lease)
                elif not isinstance(lease, Refused):
                    raise lease
        return done / took


class Sync:
    """What a commit costs at least."""

    def __init__(self, database: Database, url: str) -> None:
        self._engine = database.engine
        parsed = sa.engine.make_url(url)
        #: Beside the database, if that is a file of this machine.
        self._file: Path | None = None
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            self._file = Path(parsed.database).with_suffix(".append")

    @property
    def appends(self) -> bool:
        return self._file is not None

    def commit(self) -> float:
        return _timed(self._commit)

    def append(self) -> float:
        return _timed(self._append)

    def _commit(self) -> None:
        with self._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE meter SET beat_us = beat_us + 1")

    def _append(self) -> None:
        assert self._file is not None
        with self._file.open("ab") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _gpus(node: int) -> list[wire.DeviceReport]:
    first = node * GPUS_OF_A_NODE
    return [gpu(f"GPU-{first + n}-bench", n) for n in range(GPUS_OF_A_NODE)]


def machine() -> str:
    """What it ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, SQLAlchemy {sa.__version__}; nice {os.nice(0)}, "
        f"load average at the start: {load()}."
    )


def load() -> str:
    return " ".join(f"{one:.1f}" for one in os.getloadavg())


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
