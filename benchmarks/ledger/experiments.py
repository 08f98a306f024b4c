"""The three experiments; each returns a table with its figures and what they are a multiple of."""

from __future__ import annotations

import asyncio
import random
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from figures import table
from sqlalchemy import event

from fakenode import FakeNode, gpu
from gpuslice.broker.broker import Broker
from gpuslice.broker.verify import cli_verify
from gpuslice.ledger.database import Database
from gpuslice.ledger.tables import AccountName, Device, Entry, Lease
from gpuslice.settings import load_settings
from gpuslice.units import HOUR_US, SECOND_US

T = TypeVar("T")

ROUNDS = 15
HOURS = 5
ASKED = 300
HEAD = ("median, ms", "all, ms", "processor, ms", "ratio")
_CHUNK = 5_000
_QUARTER = {"name": "quarter", "kind": "shared", "share": 0.25, "price": "0.875001"}


class Platform:
    """A broker on the books, with a node on which everything runs that runs in them."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.now = 0
        leases, devices = self.database.read(self._look)
        self.node = FakeNode(lambda: self.now, devices)
        for lease in leases:
            assert lease.started_us is not None and lease.covered_us is not None
            self.now = max(self.now, lease.covered_us)
            self.node.run(self.node.create(lease.id), lease.started_us)
        settings = load_settings(
            None,
            {
                "slice": [_QUARTER],
                "limits": {"leases_per_user": "unlimited"},
            },
        )
        self.live = [lease.id for lease in leases]
        self.loop = asyncio.new_event_loop()
        # The fake has the call signatures of NodeClient, not its type.
        self.broker = Broker(settings, self.database, self.node, None, lambda: self.now)  # type: ignore[arg-type]
        self.do(self.broker.start())

    @staticmethod
    def _look(session: sa.orm.Session) -> tuple[Sequence[Lease], list[Any]]:
        leases = session.scalars(sa.select(Lease).where(Lease.state == "running")).all()
        devices = session.scalars(
            sa.select(Device).where(Device.kind == "gpu").order_by(Device.position)
        )
        return leases, [gpu(one.id, one.position) for one in devices]

    def do(self, job: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(job)

    def end(self) -> None:
        self.do(self.broker.close())
        self.loop.close()


@contextmanager
def platform(url: str) -> Iterator[Platform]:
    made = Platform(url)
    try:
        yield made
    finally:
        made.end()


# --- heartbeat ----------------------------------------------------------------------------------


def heartbeat(url: str) -> str:
    """A whole comparison with the node's list, of all leases that run, beside writing one number
    into as many rows."""
    with platform(url) as there:
        count = len(there.live)
        if not count:
            raise SystemExit("these books have no lease that runs")
        there.do(there.broker.reconcile())  # statements are compiled once
        counter = Counter(there.database.engine)
        plain = [timed(lambda: _touch(there, together=True)) for _ in range(ROUNDS)]
        alone = [timed(lambda: _touch(there, together=False)) for _ in range(3)]
        beats, hours = [], []
        counted = counter.counted()
        for _ in range(ROUNDS):
            there.now += 30 * SECOND_US
            beats.append(timed(lambda: there.do(there.broker.reconcile())))
        each = [new - old for new, old in zip(counter.counted(), counted, strict=True)]
        counted = counter.counted()
        for _ in range(HOURS):
            there.now += HOUR_US
            hours.append(timed(lambda: there.do(there.broker.reconcile())))
        hourly = [new - old for new, old in zip(counter.counted(), counted, strict=True)]
    base = median(plain)
    rows = [
        row(f"one UPDATE of {count} rows, one transaction", plain, base, "1", "1"),
        row(f"{count} transactions of one such row", alone, base, str(count), str(count)),
        row(f"a comparison of {count} leases", beats, base, *per(each, ROUNDS)),
        row("the same when an hour is full: a segment each", hours, base, *per(hourly, HOURS)),
    ]
    return table(["heartbeat", *HEAD, "statements", "transactions"], rows)


class Counter:
    """Statements (one that is run for many rows is one) and transactions of an engine."""

    def __init__(self, engine: sa.Engine) -> None:
        self._statements = self._transactions = 0
        event.listen(engine, "before_cursor_execute", self._statement)
        event.listen(engine, "begin", self._transaction)

    def counted(self) -> tuple[int, int]:
        return self._statements, self._transactions

    def _statement(self, *_: object) -> None:
        self._statements += 1

    def _transaction(self, *_: object) -> None:
        self._transactions += 1


def _touch(there: Platform, *, together: bool) -> None:
    leases = Lease.__table__
    statement = (
        sa.update(leases)
        .where(leases.c.id == sa.bindparam("lease"))
        .values(covered_us=leases.c.covered_us)
    )
    rows = [{"lease": lease_id} for lease_id in there.live]
    for some in [rows] if together else [[one] for one in rows]:
        there.database.write(lambda session, some=some: session.execute(statement, some))


def per(counted: Sequence[int], rounds: int) -> list[str]:
    return [f"{one / rounds:.0f}" for one in counted]


# --- usage --------------------------------------------------------------------------------------


def usage(url: str) -> str:
    """What pages show a user of their own, beside reading one row by its key."""
    with platform(url) as there:
        users, groups = there.database.read(_names)
        chance = random.Random(5)  # noqa: S311 (no secret)
        names = [chance.choice(users) for _ in range(ASKED)]
        money, leases = there.broker.money, there.broker.leases
        asked: dict[str, Callable[[str], Awaitable[object]]] = {
            "one lease by its key": lambda _: there.broker.core.read(
                lambda s: s.execute(sa.select(Lease.id).where(Lease.id == there.live[0])).all()
            ),
            "own usage": lambda name: money.usage("user", name),
            "own entries, newest 50": lambda name: money.entries("user", name, None, 50),
            "own leases, newest 50": lambda name: leases(name, None, 50, None),
            "what runs now": lambda name: there.broker.me(name, None),
            "a group's usage": lambda name: money.usage("group", chance.choice(groups)),
            "a group's entries, newest 50": lambda name: money.entries(
                "group", chance.choice(groups), None, 50
            ),
        }
        found = {
            what: [timed(lambda: there.do(_run(ask(name)))) for name in names]  # noqa: B023
            for what, ask in asked.items()
        }
        entries = there.database.read(lambda s: s.scalar(sa.select(sa.func.max(Entry.id)))) or 0
    base = median(found["one lease by its key"])
    rows = [row(what, took, base, f"{_p99(took) * 1e3:.2f}") for what, took in found.items()]
    return table([f"of {entries:,} entries", *HEAD, "p99, ms"], rows)


def _names(session: sa.orm.Session) -> tuple[list[str], list[str]]:
    def of(source: str) -> list[str]:
        return list(
            session.scalars(sa.select(AccountName.name).where(AccountName.source == source))
        )

    return of("hub:user"), of("hub:group")


async def _run(job: Awaitable[T]) -> T:
    return await job


def _p99(took: Sequence[Took]) -> float:
    return sorted(one.clock for one in took)[int(len(took) * 0.99)]


# --- verify -------------------------------------------------------------------------------------


def verify(url: str) -> str:
    """``gpuslice ledger verify`` beside reading all entries and doing nothing with them."""
    database = Database(url)
    count = 0
    before = peak_mib()

    def read(session: sa.orm.Session) -> None:
        nonlocal count
        rows = session.execute(
            sa.select(*Entry.__table__.c).order_by(Entry.id).execution_options(yield_per=_CHUNK)
        )
        for _ in rows:
            count += 1

    plain = timed(lambda: database.read(read))
    database.close()
    after = peak_mib()
    problems: list[str] = []
    took = timed(lambda: problems.extend(cli_verify(url)))
    if problems:
        raise SystemExit(f"{len(problems)} problems, the first: {problems[0]}")
    rows = [
        [what, f"{one.clock:.1f}", f"{one.cpu:.1f}", f"{one.clock / plain.clock:.1f}",
         f"{one.clock / count * 1e6:.1f}", memory]
        for what, one, memory in (
            ("reading every entry", plain, f"{before:.0f} to {after:.0f}"),
            ("gpuslice ledger verify", took, f"to {peak_mib():.0f}"),
        )
    ]  # fmt: skip
    head = ["s", "processor, s", "ratio", "µs an entry", "peak of memory, MiB"]
    return table([f"{count:,} entries", *head], rows)


def peak_mib() -> float:
    """The most memory that this process has had until now."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 1024 if sys.platform != "darwin" else kib / 1024**2


# --- figures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of this process's processor time, which others disturb less."""

    clock: float
    cpu: float


def timed(work: Callable[[], object]) -> Took:
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - clock, time.process_time() - cpu)


def median(took: Sequence[Took]) -> float:
    return statistics.median(one.clock for one in took)


def row(what: str, took: Sequence[Took], base: float, *more: str) -> list[str]:
    """Median, extremes, processor time (ms each), and the ratio of the medians."""
    low, high = min(one.clock for one in took), max(one.clock for one in took)
    cpu = statistics.median(one.cpu for one in took)
    return [
        what, f"{median(took) * 1e3:.2f}", f"{low * 1e3:.2f}-{high * 1e3:.2f}", f"{cpu * 1e3:.2f}",
        f"{median(took) / base:.1f}", *more,
    ]  # fmt: skip
