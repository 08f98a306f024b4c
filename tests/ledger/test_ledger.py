"""The ledger as a database: migrations, immutable facts, one meter, faults, verification."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from fakenode import GIB
from gpuslice import wire
from gpuslice.broker import meter
from gpuslice.broker.verify import cli_verify
from gpuslice.errors import Refused
from gpuslice.ledger import migrate, triggers
from gpuslice.ledger.database import Database, LedgerError, make_engine, sqlite_url
from gpuslice.ledger.prices import set_price
from gpuslice.ledger.tables import Base
from gpuslice.units import now_us
from ledgerworld import World, sqlite_ledger, world_settings
from quotaworld import set_policy

FACTS = {"entry": "id", "segment": "id", "price": "id", "audit": "id", "lease_account": "depth"}


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    yield made
    made.close()


def a_bill(world: World) -> str:
    """One settled lease of 90 minutes with a stop in it; returns its id."""
    granted = world.grant("alice", "quarter")
    world.now += 5_000_000
    assert world.supervise(granted.lease_id)
    world.now += 5_400_000_000
    world.reconcile()
    world.stop(granted.lease_id)
    world.now += 3_000_000
    world.node.finish(world.node.servers[granted.lease_id])
    world.settle_everything(3)
    return granted.lease_id


# --- schema ------------------------------------------------------------------------------------


def test_the_migrations_make_exactly_the_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": migrate.VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, Base.metadata) == []
    migrate.upgrade(database.engine)  # again: nothing to do


def test_a_newer_ledger_is_refused_in_words(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(LedgerError, match="another version of gpuslice"):
        migrate.upgrade(database.engine)


@pytest.mark.parametrize("verb", ["UPDATE", "DELETE"])
@pytest.mark.parametrize("table", FACTS)
def test_facts_cannot_be_changed(world: World, table: str, verb: str) -> None:
    a_bill(world)
    column = FACTS[table]
    text = f"UPDATE {table} SET {column} = {column}" if verb == "UPDATE" else f"DELETE FROM {table}"
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), world.database.engine.begin() as c:
        c.execute(sa.text(text))
    assert world.problems() == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("table", FACTS)
def test_facts_cannot_be_replaced(world: World, table: str) -> None:
    """In an administrator's shell, where no pragma of ours holds; PostgreSQL has no REPLACE."""
    a_bill(world)
    url = world.database.engine.url
    columns = [column.name for column in Base.metadata.tables[table].columns]
    shell = sqlite3.connect(str(url.database))
    try:
        before = shell.execute(f"SELECT * FROM {table}").fetchall()
        for key in _keys(table):
            # All of it anew but its other keys.
            other = {name for one in _keys(table) if one != key for name in one} - set(key)
            made = [
                "NULL" if name in other and name in ("id", "segment_id", "leg")
                else f"'new'||{name}" if name in other and name == "idem_key"
                else f"{name}+1" if name in other and name.endswith("_us")
                else name
                for name in columns
            ]  # fmt: skip
            where = "" if "segment_id" not in key else " WHERE segment_id IS NOT NULL"
            text = f"REPLACE INTO {table} SELECT {', '.join(made)} FROM {table}{where} LIMIT 1"
            with pytest.raises(sqlite3.DatabaseError, match="append-only"):
                shell.execute(text)
            shell.rollback()
        assert shell.execute(f"SELECT * FROM {table}").fetchall() == before
    finally:
        shell.close()
    assert world.problems() == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_key_of_facts_is_guarded(database: Database) -> None:
    with database.engine.connect() as connection:
        found = connection.execute(
            sa.text("SELECT tbl_name, sql FROM sqlite_master WHERE type = 'trigger'")
        ).all()
    kept = {name for name, _ in found}
    assert kept >= {*FACTS, "allowance", "digest"}
    for table in kept:
        (text,) = [sql for name, sql in found if name == table and "no_replace" in sql]
        for key in _keys(table):
            assert " AND ".join(f"{name} = NEW.{name}" for name in key) in text, (table, key)


def _keys(table: str) -> list[tuple[str, ...]]:
    """All that a row of a table is known by."""
    found = Base.metadata.tables[table]
    unique = [one for one in found.constraints if isinstance(one, sa.UniqueConstraint)]
    indexes = [one for one in found.indexes if one.unique]
    return [
        tuple(column.name for column in one.columns)
        for one in (found.primary_key, *unique, *indexes)
    ]


def test_a_price_never_begins_in_the_past(database: Database) -> None:
    def at(moment: int, rate: int) -> Callable[[sa.orm.Session], bool]:
        return lambda s: set_price(s, "x", rate, now=100, effective_from_us=moment, actor="t")

    assert database.write(at(100, 1))
    with pytest.raises(ValueError, match="past"):
        database.write(at(99, 2))
    assert database.write(at(200, 2))
    with pytest.raises(ValueError, match="already set"):
        database.write(at(200, 3))


# --- one meter ---------------------------------------------------------------------------------


def test_a_second_meter_is_refused_while_the_first_lives(database: Database) -> None:
    database.write(lambda s: meter.acquire(s, now=now_us()))
    url = database.engine.url.render_as_string(hide_password=False)
    code = (
        "import sys\n"
        "from gpuslice.broker import meter\n"
        "from gpuslice.ledger.database import Database, LedgerError\n"
        "from gpuslice.units import now_us\n"
        "try:\n"
        "    Database(sys.argv[1]).write(lambda s: meter.acquire(s, now=now_us()))\n"
        "except LedgerError as error:\n"
        "    sys.exit(f'refused: {error}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert "meters this ledger already" in done.stderr, done.stderr
    assert str(os.getpid()) in done.stderr


def test_a_dead_meter_is_replaced_at_once_and_its_epoch_is_void(database: Database) -> None:
    first = database.write(lambda s: meter.acquire(s, now=now_us()))
    second = database.write(lambda s: meter.acquire(s, now=now_us()))
    assert second == first + 1
    with pytest.raises(meter.EpochLost):
        database.write(lambda s: meter.check(s, first, now=now_us()))
    database.write(lambda s: meter.check(s, second, now=now_us()))


def test_a_reused_pid_is_not_the_old_meter(database: Database) -> None:
    database.write(lambda s: meter.acquire(s, now=now_us()))
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE meter SET pid = 1, pid_start = pid_start + 1"))
    database.write(lambda s: meter.acquire(s, now=now_us()))


# --- faults ------------------------------------------------------------------------------------


def test_a_locked_database_refuses_in_words_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    world = World(sqlite_ledger(path))
    try:
        first = world.grant("alice", "quarter")
        assert world.supervise(first.lease_id)
        world.database.engine.dispose()
        with world.database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=10")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        sa.event.listen(
            world.database.engine,
            "checkout",
            lambda raw, *_: raw.execute("PRAGMA busy_timeout=10"),
        )
        with pytest.raises(Refused) as refused:
            world.grant("bob", "quarter")
        assert refused.value.refusal.reason == "ledger-unavailable"
        assert refused.value.status == 503
        assert refused.value.refusal.retry_after_s
        other.execute("ROLLBACK")
        other.close()
        world.now += 7_200_000_000
        world.reconcile()
        assert world.view(first.lease_id).cost_u == 2 * 875_001
        assert world.problems() == []
    finally:
        world.close()


def test_a_read_only_ledger_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    sqlite_ledger(path)
    database = Database(f"sqlite:///file:{path}?mode=ro&uri=true")
    with pytest.raises(LedgerError, match="write permission"):
        database.write(lambda s: meter.acquire(s, now=1))
    database.close()


def test_no_ledger_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="unable to open database file"):
        migrate.upgrade(make_engine(sqlite_url(tmp_path / "no" / "folder" / "x.sqlite")))
    for url in ("sqlite://", "mysql://x/y"):
        with pytest.raises(LedgerError):
            make_engine(url)


def test_two_openings_of_one_account_make_one(database: Database) -> None:
    from gpuslice.ledger import accounts

    barrier, ids = threading.Barrier(16), []

    def work() -> None:
        barrier.wait()
        ids.append(
            database.write(lambda s: accounts.find_or_open(s, accounts.HUB_USER, "alice", 1))
        )

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 16 and len(set(ids)) == 1


# --- verify ------------------------------------------------------------------------------------


CORRUPTIONS = {
    "a changed amount": "UPDATE entry SET amount_u = amount_u + 1",
    "a lost entry": "DELETE FROM entry WHERE id = (SELECT min(id) FROM entry)",
    "a changed segment": "UPDATE segment SET amount_u = amount_u + 1",
    "a gap": "UPDATE segment SET from_us = from_us + 1 WHERE id = (SELECT max(id) FROM segment)",
    "another payer": "UPDATE segment SET payer = 'writeoff' WHERE payer = 'user'",
    "another price": "UPDATE price SET rate_u_per_hour = rate_u_per_hour + 1",
    "another end": "UPDATE lease SET finished_us = finished_us + 1, covered_us = covered_us + 1",
    "a changed balance": "UPDATE account_period SET spent_u = spent_u + 1",
    "a forgotten hold": "UPDATE hold SET state = 'open'",
    "a miscounted lease": "UPDATE account_period SET active = active + 1",
    "a claim that was not given back": "UPDATE claim SET released_version = NULL",
    "money from the wrong account": "UPDATE entry SET debit_id = credit_id, credit_id = debit_id",
    "an entry too many": (
        "INSERT INTO entry (idem_key, kind, debit_id, credit_id, amount_u, segment_id, leg, actor, "
        "memo, created_us) SELECT 'twice', kind, debit_id, credit_id, amount_u, segment_id, 1, "
        "actor, memo, created_us FROM entry WHERE id = (SELECT min(id) FROM entry)"
    ),
    "a lost segment": (
        "UPDATE entry SET segment_id = NULL WHERE segment_id = (SELECT max(id) FROM segment)"
    ),
    "another user's": "UPDATE lease_account SET account_id = (SELECT max(id) FROM account)",
    "charged to nobody": "DELETE FROM lease_account",
    "a bucket that moved": (
        "UPDATE account_period SET start_us = start_us + 900000000 WHERE period = 'bucket' "
        "AND start_us = (SELECT max(start_us) FROM account_period)"
    ),
    "a bucket of nobody": (
        "INSERT INTO account_period (account_id, slice_type, period, start_us, spent_u, held_u, "
        "active, gpu_us, held_gpu_us) SELECT min(id), '', 'bucket', 0, 1, 0, 0, 0, 0 FROM account"
    ),
    "other totals": "UPDATE slice_total SET us = us + 1",
    "a lost bucket": "DELETE FROM account_period WHERE period = 'bucket'",
}


@pytest.mark.parametrize("what", sorted(CORRUPTIONS))
def test_verify_sees(world: World, what: str) -> None:
    """With the triggers off, every kind of tampering and every such bug shows."""
    a_bill(world)
    assert world.problems() == []
    with world.database.engine.begin() as connection:
        for statement in triggers.drop(connection.dialect.name, FACTS, first=False):
            connection.execute(sa.text(statement))
        connection.execute(sa.text(CORRUPTIONS[what]))
    assert world.problems(), what


def test_verify_sees_a_double_lease(world: World) -> None:
    granted = world.grant("alice", "whole")
    with world.database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE claim SET whole = :no, memory_bytes = :much, "
            "share_milli = 1001 WHERE device_id <> 'host'"),
            {"no": False, "much": 90 * GIB},
        )  # fmt: skip
    assert any("GPU-a" in problem for problem in world.problems()), granted


def test_the_command_verifies_and_refuses_what_is_no_ledger(
    world: World, database_url: str, tmp_path: Path
) -> None:
    a_bill(world)
    assert cli_verify(database_url) == []
    with pytest.raises(LedgerError, match="not a gpuslice ledger"):
        cli_verify(sqlite_url(tmp_path / "empty.sqlite"))


# --- what administrators change -----------------------------------------------------------------


def set_limit(world: World, value: int | None, **more: object) -> wire.LimitView:
    body = {"scope": "default", "value": value, "version": None, "reason": "a test"} | more
    return world.do(world.live().set_limit(wire.SetLimit.model_validate(body), "root"))


def everybodys(world: World) -> wire.LimitView:
    found, following = world.do(world.live().limits(None, None, 1))
    assert following in (None, 0)
    return found[0]


def test_limits_are_found_page_by_page(world: World) -> None:
    """What a group has in total is not a limit of leases per user."""
    totals: dict[str, Any] = {"each": {"priority": 3}, "total": {"slices": 9}}
    for number in range(9):
        set_policy(world, "group", f"lab{number}", totals)
    for name in ("ada", "bob", "Bobby"):
        set_limit(world, 1, scope="user", name=name)
    found: list[str | None] = []
    after = None
    while True:
        shown, after = world.do(world.live().limits(None, after, 2))
        found += [limit.name for limit in shown]
        if after is None:
            break
        assert len(shown) == 2
    assert found == [None, "ada", "bob", "Bobby"]
    some, after = world.do(world.live().limits("bob", None, 2))
    assert ([limit.name for limit in some], after) == (["bob", "Bobby"], None)
    assert world.do(world.live().limits("lab", None, 2)) == ([], None)
    assert world.do(world.live().limits("%", None, 2)) == ([], None)


def test_limits_are_versioned_audited_and_hold(world: World) -> None:
    default = everybodys(world)
    assert (default.scope, default.value) == ("default", None)
    set_limit(world, 1, version=default.version)
    with pytest.raises(Refused, match="somebody else"):
        set_limit(world, 5, version=default.version)
    world.grant("alice", "quarter")
    with pytest.raises(Refused, match="1 slice at a time") as refused:
        world.grant("alice", "quarter", "two")
    assert refused.value.refusal.reason == "leases-limit"
    set_limit(world, 2, scope="user", name="alice")
    world.grant("alice", "quarter", "two")
    rows = world.do(world.live().audit(10, None))
    assert [(row.actor, row.reason, row.after) for row in rows[:2]] == [
        ("root", "a test", '{"each":{"slices":2}}'),
        ("root", "a test", '{"each":{"slices":1}}'),
    ]
    assert world.problems() == []


def test_a_restart_changes_no_limit(world: World) -> None:
    default = everybodys(world)
    set_limit(world, 3, version=default.version)
    world.restart()
    assert everybodys(world).value == 3
    world.settings = world_settings(limits={"leases_per_user": 4})
    world.restart()
    assert everybodys(world).value == 4


def test_the_most_generous_group_counts_and_ones_own_limit_before_it(world: World) -> None:
    default = everybodys(world)
    set_limit(world, 0, version=default.version)
    set_limit(world, 1, scope="group_member", name="course")
    set_limit(world, 2, scope="group_member", name="lab")

    def may(groups: list[str], server: str) -> bool:
        request = world.request("alice", "cpu", server).model_copy(update={"groups": groups})
        try:
            world.do(world.live().grant(request))
        except Refused:
            return False
        return True

    assert not may([], "a")
    assert may(["course"], "a")
    assert not may(["course"], "b")
    assert may(["course", "lab"], "b")
    assert not may(["course", "lab"], "c")
    set_limit(world, None, scope="user", name="alice")
    assert may([], "c")
    me = world.do(world.live().me("bob", None, ["course", "lab"]))
    assert me.leases_limit == 2


def test_a_bill_lists_every_segment_with_its_entry(world: World) -> None:
    lease_id = a_bill(world)
    bill = world.do(world.live().bill(lease_id))
    assert bill is not None
    user = [line for line in bill.lines if line.payer == "user"]
    assert sum(line.amount_u for line in user) == bill.lease.cost_u > 0
    assert sum(line.amount_u for line in bill.lines) == bill.lease.cost_u + bill.lease.writeoff_u
    assert all(line.entry_id for line in bill.lines if line.amount_u)
    assert bill.lines[0].from_us == bill.lease.started_us
    assert bill.lines[-1].til_us == bill.lease.finished_us
    assert world.do(world.live().bill("0" * 32)) is None
