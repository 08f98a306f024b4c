"""The rows of the fault table that are about money and limits, each with its promised outcome.

Row 12 is in ``test_grants.py``, row 18 in ``test_time.py``.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from gpuslice.broker.moneyviews import SetPrice
from gpuslice.broker.peopleviews import CloseUser, ImportPeople, ImportRow
from gpuslice.errors import Refused
from gpuslice.ledger import database as database_module
from gpuslice.ledger.database import LedgerError
from gpuslice.ledger.tables import Entry, IdempotencyKey, Meter, Segment
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.service.app import make_app
from gpuslice.service.config import ServiceConfig
from gpuslice.units import HOUR_US, MINUTE_US, SECOND_US
from ledgerworld import CrashingDatabase, World, sqlite_ledger
from quotaworld import finish, notices, passes, refused, set_policy, spawn

RATE = 875_001


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    yield made
    assert made.problems() == []
    made.close()


# --- 14: a duplicate POST ------------------------------------------------------------------------


class Rest:
    """The real service over the world's broker, on the world's own loop."""

    def __init__(self, world: World) -> None:
        self.world, self.token = world, secrets.token_hex(32)
        config = ServiceConfig(
            prefix="/services/gpuslice/", hub_prefix="/hub/", hub_api_url="http://127.0.0.1:1/",
            service_token=secrets.token_hex(32), broker_token=secrets.token_hex(32),
            node_token=secrets.token_hex(32), operator_token=self.token,
            cookie_secret=secrets.token_bytes(32), cache_s=300,
        )  # fmt: skip
        world.do(self._listen(config))

    async def _listen(self, config: ServiceConfig) -> None:
        sock, port = bind_unused_port()
        self.url = f"http://127.0.0.1:{port}/services/gpuslice/api/admin/credits"
        self.server = HTTPServer(make_app(self.world.live(), config))
        self.server.add_sockets([sock])
        self.client = AsyncHTTPClient(force_instance=True, max_clients=32)

    async def post(self, key: str, amount_u: int) -> HTTPResponse:
        body = {"whose": "user", "name": "ada", "amount_u": amount_u, "reason": "a prize"}
        return await self.client.fetch(
            self.url, method="POST", body=json.dumps(body), raise_error=False,
            headers={"Authorization": f"token {self.token}", "Idempotency-Key": key,
                     "Content-Type": "application/json"},
        )  # fmt: skip

    async def close(self) -> None:
        self.client.close()
        self.server.stop()
        await self.server.close_all_connections()


@pytest.mark.parametrize("at_once", [False, True])
def test_row_14_a_duplicate_post_has_one_effect_and_one_answer(world: World, at_once: bool) -> None:
    rest = Rest(world)

    async def send() -> list[HTTPResponse]:
        if at_once:
            return list(await asyncio.gather(*(rest.post("k", 5_000_000) for _ in range(20))))
        return [await rest.post("k", 5_000_000) for _ in range(20)]

    answers = world.do(send())
    assert {answer.code for answer in answers} == {201}, answers[0].body
    assert len({answer.body for answer in answers}) == 1
    # Another body under the same key is refused; another key is another gift.
    assert world.do(rest.post("k", 5_000_001)).code == 422
    assert world.do(rest.post("another", 5_000_000)).code == 201
    world.do(rest.close())
    kinds = world.database.read(lambda s: s.scalars(sa.select(Entry.kind)).all())
    keys = world.database.read(lambda s: s.scalars(sa.select(IdempotencyKey.key)).all())
    assert (list(kinds), sorted(keys)) == (["credit", "credit"], ["another", "k"])
    assert world.do(world.live().money.usage("user", "ada")).credit_u == 10_000_000


# --- 15: the budget is exhausted -----------------------------------------------------------------


def test_row_15_a_budget_is_exhausted_while_it_runs(world: World) -> None:
    limit = 300_000
    set_policy(world, "user", "ada", {"each": {"money": [{"at_most": "0.3", "per": "day"}]}})
    lease_id = spawn(world, "ada", "quarter", [])
    start, tick = world.now, 30 * SECOND_US
    zero = start + limit * HOUR_US // RATE
    told: dict[str, int] = {}
    while world.now < zero + 5 * MINUTE_US:
        passes(world, tick, tick)
        for kind in notices(world, "ada"):
            told.setdefault(kind, world.now)
    # The user is told 10 and 2 minutes before, to the interval between two looks.
    for minutes in (10, 2):
        due = zero - minutes * MINUTE_US
        assert due <= told[f"ends-{minutes}"] <= due + tick
    view = world.view(lease_id)
    assert view.stop_requested_us is not None
    assert zero <= view.stop_requested_us <= zero + tick <= zero + MINUTE_US
    ended = world.node.history[lease_id].finished_us
    assert ended is not None and ended <= view.stop_requested_us + 10 * SECOND_US + tick
    finish(world, lease_id)
    view = world.view(lease_id)
    assert limit <= view.cost_u <= limit + RATE * tick // HOUR_US + 1
    # The stopping is the platform's.
    assert view.writeoff_u == RATE * (ended - start) // HOUR_US - view.cost_u


# --- 16: a quota is lowered below what is used ---------------------------------------------------


@pytest.mark.parametrize("lowered", ["grace", "next-start"])
def test_row_16_a_quota_is_lowered_below_what_is_used(world: World, lowered: str) -> None:
    def limit(hours: float) -> dict[str, Any]:
        return {"each": {"gpu_hours": [{"at_most": hours, "per": "day"}], "when_lowered": lowered}}

    set_policy(world, "user", "ada", limit(5))
    lease_id = spawn(world, "ada", "quarter", [])
    passes(world, 2 * HOUR_US, 10 * MINUTE_US)
    set_policy(world, "user", "ada", limit(0.25))
    at = world.now
    assert refused(lambda: spawn(world, "ada", "quarter", [], "two")).refusal.reason == (
        "gpu-hours-limit"
    )
    passes(world, MINUTE_US, 10 * SECOND_US)
    assert world.view(lease_id).state == "running"
    passes(world, 9 * MINUTE_US, 20 * SECOND_US)
    stop = world.view(lease_id).stop_requested_us
    if lowered == "next-start":
        assert stop is None
    else:
        assert stop is not None
        assert 2 * MINUTE_US <= stop - at <= 2 * MINUTE_US + 30 * SECOND_US


def test_row_16_what_is_raised_again_counts_at_once(world: World) -> None:
    """A limit that counts at the next start is no reason to stop what a higher one allows now."""

    def limit(hours: float) -> dict[str, Any]:
        hours_ = [{"at_most": hours, "per": "day"}]
        return {"each": {"gpu_hours": hours_, "when_lowered": "next-start"}}

    set_policy(world, "user", "ada", limit(0.25))
    lease_id = spawn(world, "ada", "quarter", [])
    passes(world, 30 * MINUTE_US, 10 * MINUTE_US)
    set_policy(world, "user", "ada", limit(0.5))
    passes(world, 80 * MINUTE_US)
    assert world.view(lease_id).state == "running"
    passes(world, 12 * MINUTE_US)
    assert world.view(lease_id).stop_requested_us is not None


# --- 17: the price changes in mid-lease ----------------------------------------------------------


def test_row_17_the_price_changes_in_mid_lease(world: World) -> None:
    lease_id = spawn(world, "ada", "quarter", [])
    start = world.now
    change = start + 20 * MINUTE_US + 1
    body = SetPrice(slice="quarter", rate_u_per_hour=2_000_003, from_us=change, reason="dearer")
    world.do(world.live().money.set_price(body, "root"))

    def due(til: int) -> int:
        old, new = min(til, change) - start, max(0, til - change)
        return RATE * old // HOUR_US + 2_000_003 * new // HOUR_US

    for _ in range(7):
        passes(world, 7 * MINUTE_US, 7 * MINUTE_US)
        assert abs(world.view(lease_id).cost_u - due(world.now)) <= 1
    world.node.finish(world.node.servers[lease_id])
    end = world.now
    finish(world, lease_id)
    rows = world.database.read(
        lambda s: s.execute(
            sa.select(Segment.from_us, Segment.til_us, Entry.amount_u)
            .join(Entry, Entry.segment_id == Segment.id)
            .order_by(Segment.from_us)
        ).all()
    )
    assert change in [row.from_us for row in rows]
    assert not [row for row in rows if row.from_us < change < row.til_us]
    assert sum(row.amount_u for row in rows) == due(end) == world.view(lease_id).cost_u


def test_row_17_a_price_of_an_administrator_outlives_the_next_look_at_the_settings(
    world: World,
) -> None:
    world.now += 1
    body = SetPrice(slice="quarter", rate_u_per_hour=2_000_003, reason="dearer")
    world.do(world.live().money.set_price(body, "root"))
    world.now += MINUTE_US
    world.restart()
    lease_id = spawn(world, "ada", "quarter", [])
    assert world.view(lease_id).rate_u_per_hour == 2_000_003


# --- 19: the clock jumps -------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [HOUR_US, -HOUR_US])
def test_row_19_the_clock_jumps(world: World, jump: int) -> None:
    set_policy(world, "user", "ada", {"each": {"money": [{"at_most": "1", "per": "life"}]}})
    lease_id = spawn(world, "ada", "quarter", [])
    start, lasted = world.now, 0
    before = world.live().errors.counts()["clock_jump"]
    for number in range(6):
        passes(world, 5 * MINUTE_US)
        lasted += 5 * MINUTE_US
        if number == 2:
            world.now += jump
            world.node.jumped_us += jump
        world.reconcile()
        view = world.view(lease_id)
        # No negative, no jump-sized charge, and nobody is stopped for an hour that was not.
        assert 0 <= RATE * lasted // HOUR_US - view.cost_u <= RATE * 2 // 3600
        assert view.state == "running"
    assert world.live().errors.counts()["clock_jump"] == before + 1
    world.stop(lease_id)
    world.node.finish(world.node.servers[lease_id])
    finish(world, lease_id)
    view = world.view(lease_id)
    assert view.finished_us == start + lasted
    assert view.cost_u + view.writeoff_u == RATE * lasted // HOUR_US


# --- 20: the ledger cannot be written ------------------------------------------------------------


def _locked(world: World, path: Path) -> Callable[[], None]:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def release() -> None:
        other.execute("ROLLBACK")
        other.close()

    _with_pragma(world, "busy_timeout=10")
    return release


def _with_pragma(world: World, pragma: str) -> Callable[[], None]:
    def checkout(raw: Any, *_: Any) -> None:
        raw.execute(f"PRAGMA {pragma}")

    world.database.engine.dispose()
    sa.event.listen(world.database.engine, "checkout", checkout)

    def release() -> None:
        sa.event.remove(world.database.engine, "checkout", checkout)
        world.database.engine.dispose()

    return release


def _full(world: World, path: Path) -> Callable[[], None]:
    world.database.engine.dispose()
    other = sqlite3.connect(path)
    other.execute("VACUUM")  # no free pages but those at hand
    other.close()
    return _with_pragma(world, "max_page_count=1")


FAULTS: dict[str, Callable[[World, Path], Callable[[], None]]] = {
    "locked": _locked,
    "disk full": _full,
    "read-only": lambda world, _: _with_pragma(world, "query_only=1"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_row_20_a_ledger_that_cannot_be_written(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "ledger.sqlite"
    world = World(sqlite_ledger(path))
    lease_id = spawn(world, "ada", "quarter", [])
    start = world.now
    release = FAULTS[fault](world, path)
    granted, no = 0, None  # type: int, Refused | None
    while no is None and granted < 40:  # a full disk has a few free pages left
        try:
            world.grant(f"u{granted}", "cpu")
            granted += 1
        except Refused as error:
            no = error
    assert no is not None
    assert (no.status, no.refusal.reason) == (503, "ledger-unavailable")
    assert no.refusal.retry_after_s and "nothing is started" in str(no)
    leases = len(world.node.slices)
    assert leases == 1 + granted, "something was prepared for a lease that was refused"
    for _ in range(6):
        world.now += 10 * SECOND_US
        try:
            world.reconcile()
        except LedgerError as error:
            assert fault != "read-only" or "write permission" in str(error)
    assert world.node.servers[lease_id].runs
    release()
    world.now += HOUR_US
    world.reconcile()
    assert world.view(lease_id).cost_u == RATE * (world.now - start) // HOUR_US
    assert world.problems() == []
    world.grant("bob", "quarter")
    world.close()


# On PostgreSQL it is not a file that fails but a server.


def _held_lock(_world: World, url: str) -> Callable[[], None]:
    other = sa.create_engine(url)
    connection = other.connect()
    connection.execute(sa.select(Meter).with_for_update())

    def release() -> None:
        connection.close()
        other.dispose()

    return release


def _altered(world: World, url: str, *statements: str) -> None:
    """What an administrator does to the server; it holds for connections from then on."""
    other = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with other.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    other.dispose()
    world.database.engine.dispose()


def _no_writes(world: World, url: str) -> Callable[[], None]:
    """As a server that has become a replica."""
    name = sa.engine.make_url(url).database
    set_to = f'ALTER DATABASE "{name}" SET default_transaction_read_only'
    _altered(world, url, f"{set_to} = on")
    off = "SET default_transaction_read_only = off"
    return lambda: _altered(world, url, off, f"{set_to} = off")


def _no_space(world: World, url: str) -> Callable[[], None]:
    """Every new row is answered as by a server whose disk is full."""
    _altered(
        world, url,
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'could not extend file: No space left on device' "
        "USING ERRCODE = 'disk_full'; END $$",
        *(f"CREATE TRIGGER full_disk BEFORE INSERT ON {table} EXECUTE FUNCTION full_disk()"
          for table in _FILLED),
    )  # fmt: skip
    return lambda: _altered(
        world, url, *(f"DROP TRIGGER full_disk ON {table}" for table in _FILLED)
    )


_FILLED = ("account", "lease", "segment", "entry")
ON_A_SERVER: dict[str, tuple[Callable[[World, str], Callable[[], None]], str]] = {
    "locked": (_held_lock, "find and end it"),
    "disk full": (_no_space, "free some disk space"),
    "read-only": (_no_writes, "takes no writes"),
}


@pytest.mark.postgres
@pytest.mark.parametrize("fault", sorted(ON_A_SERVER))
def test_row_20_a_server_that_cannot_write(
    postgres_url: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As long as another one's lock is waited for.
    monkeypatch.setattr(CrashingDatabase, "_last", None)
    monkeypatch.setattr(database_module.Database.__init__, "__kwdefaults__",
                        {"busy_timeout_s": 0.05})  # fmt: skip
    world = World(postgres_url)
    lease_id = spawn(world, "ada", "quarter", [])
    start = world.now
    begin, todo = ON_A_SERVER[fault]
    release = begin(world, postgres_url)
    no = refused(lambda: world.grant("eve", "cpu"))
    assert (no.status, no.refusal.reason) == (503, "ledger-unavailable")
    assert no.refusal.retry_after_s and "nothing is started" in str(no)
    assert [*world.node.slices] == [lease_id]
    with pytest.raises(LedgerError, match=todo):
        # An hour, so that a segment is due.
        world.now += HOUR_US
        world.reconcile()
    assert world.node.servers[lease_id].runs
    release()
    world.now += HOUR_US
    world.reconcile()
    assert world.view(lease_id).cost_u == RATE * (world.now - start) // HOUR_US
    assert world.problems() == []
    world.grant("bob", "quarter")
    world.close()


# --- the ledger is away for one transaction -------------------------------------------------------


def away(world: World, monkeypatch: pytest.MonkeyPatch, method: str, works: bool) -> list[int]:
    """From now on a read or a write of the ledger fails, all of them or (``works``) the next."""
    real, failed = getattr(world.database, method), []

    async def fails(work: Callable[..., Any]) -> Any:
        if works and failed:
            return await real(work)
        failed.append(1)
        raise LedgerError("the ledger is locked")

    monkeypatch.setattr(world.database, method, fails)
    return failed


def test_a_policy_that_was_committed_is_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at its time zone fails: the next comparison looks again."""
    failed = away(world, monkeypatch, "aread", works=True)
    document = PolicyDocument.model_validate({"timezone": "Asia/Tokyo"})
    stored = world.do(world.live().policies.set("user", "ada", document, None, "r", "root"))
    assert stored is not None and stored.version == 1 and failed
    assert "Asia/Tokyo" not in world.live()._billing.timezones
    assert world.live().errors.counts()["ledger"] == 1
    world.reconcile()
    assert "Asia/Tokyo" in world.live()._billing.timezones


def test_people_that_were_committed_are_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned = spawn(world, "ada", "cpu", [])
    finish(world, spawned)
    away(world, monkeypatch, "aread", works=False)
    rows = [ImportRow.model_validate({"user": "kim", "each": {"slices": 2}})]
    body = ImportPeople(rows=rows, reason="r", dry_run=False)
    assert world.do(world.live().people.import_(body, "root")).done
    closed = world.do(world.live().people.close("ada", CloseUser(version=1, reason="gone"), "root"))
    assert closed.closed_us is not None
    monkeypatch.undo()


def test_a_settle_without_a_ledger_is_refused_in_words(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_id = spawn(world, "ada", "cpu", [])
    away(world, monkeypatch, "awrite", works=False)
    with pytest.raises(Refused) as caught:
        world.do(world.live().settle(lease_id, 0))
    assert (caught.value.refusal.reason, caught.value.status) == ("ledger-unavailable", 503)
    monkeypatch.undo()
    finish(world, lease_id)
