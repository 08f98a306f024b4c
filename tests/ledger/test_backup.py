"""The ledger saved while it is used, and restored: what is missing is billed once, and no more."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from gpuslice import wire
from gpuslice.broker import meter
from gpuslice.broker.hostlock import HostLock
from gpuslice.broker.strangers import AdoptServer
from gpuslice.cli import lacks, pgtools
from gpuslice.cli import restore as restoring
from gpuslice.cli.backup import backup
from gpuslice.cli.backupfile import manifest_of, read_manifest
from gpuslice.cli.restore import Restored, Wish, restore
from gpuslice.cli.trouble import Trouble
from gpuslice.ledger import migrate
from gpuslice.ledger.database import Database, LedgerError, make_engine, sqlite_url
from gpuslice.ledger.tables import Audit, Entry, Lease, Meter
from gpuslice.units import HOUR_US, MINUTE_US, SECOND_US
from ledgerworld import World
from quotaworld import passes, refused, spawn, stop_all

QUARTER_U = 875_001


class Saved:
    """A world, and backups of its ledger."""

    def __init__(self, url: str, folder: Path) -> None:
        self.world = World(url)
        self.url = url
        self.file = folder / "sa ved"

    def backup(self) -> None:
        backup(self.url, self.file, clock=self.world.clock)

    def restore(self, *, replace: bool = True, lock: HostLock | None = None) -> Restored:
        return restore(
            Wish(
                url=self.url, source=self.file, replace=replace, actor="root", reason="a disk died",
                now=self.world.now, lock=lock,
            )
        )  # fmt: skip

    def stopped_and_restored(self) -> Restored:
        """The service ends, the ledger is restored, another service begins."""
        self.world.kill()
        done = self.restore()
        self.world.restart()
        return done

    def listing(self) -> wire.Listing:
        return self.world.do(self.world.node.listing())

    def lacks(self) -> list[str]:
        listing = self.listing()
        return lacks.read(self.url, lambda session: lacks.difference(session, listing))

    def read(self, statement: sa.Select[tuple[int]]) -> int:
        return self.world.database.read(lambda s: int(s.scalar(statement) or 0))

    def entries(self) -> int:
        return self.read(sa.select(sa.func.count()).select_from(Entry))


@pytest.fixture
def saved(database_url: str, tmp_path: Path) -> Iterator[Saved]:
    made = Saved(database_url, tmp_path)
    yield made
    assert made.world.problems() == []
    made.world.close()


def test_the_missing_hour_is_billed_once_and_what_is_unknown_is_adopted(saved: Saved) -> None:
    """Row 21 of the faults."""
    world = saved.world
    known = spawn(world, "ada", "quarter", [])
    passes(world, 2 * HOUR_US, 10 * MINUTE_US)
    saved.backup()
    assert saved.lacks()[1:] == [line for line in saved.lacks()[1:] if known in line]

    # An hour that the backup does not have: it is paid for, and somebody else begins.
    unknown = spawn(world, "bob", "half", [])
    bob_began = world.now
    passes(world, HOUR_US, 10 * MINUTE_US)
    before = {one: world.view(one).cost_u for one in (known, unknown)}
    paid = saved.entries()
    world.kill()
    done = saved.restore()
    assert done.aside is not None
    text = "\n".join(saved.lacks())
    assert f"not in the ledger: {unknown} of " in text
    assert f"to be billed anew: {known} of ada" in text

    # Before the first comparison already nothing is granted beside the unknown server.
    world.restart()
    assert refused(lambda: world.grant("eve", "cpu")).refusal.reason == "runtime-unavailable"
    world.reconcile()
    world.reconcile()
    assert "unaccounted" in refused(lambda: world.grant("eve", "cpu")).refusal.message
    assert world.view(known).cost_u == before[known]
    assert world.problems() == []

    desk = world.live().strangers
    [stranger] = world.do(desk.all())
    assert (stranger.lease_id, stranger.slice, stranger.ending) == (unknown, "half", False)
    assert stranger.started_us == bob_began
    world.do(desk.adopt(unknown, AdoptServer(reason="bob is right"), "root"))
    assert world.do(desk.all()) == []
    assert (
        refused(lambda: world.do(desk.adopt(unknown, AdoptServer(reason="again"), "root"))).status
        == 404
    )
    world.now += 1  # a list of the very moment of the adoption decides nothing
    world.reconcile()
    assert world.view(unknown).cost_u == before[unknown]
    assert world.grant("eve", "cpu").slice == "cpu"

    # Both go on and end like any other; the sums are those of servers that lived through it all.
    passes(world, 30 * MINUTE_US, 10 * MINUTE_US)
    stop_all(world)
    assert world.view(known).cost_u == QUARTER_U * 7 // 2
    assert world.view(unknown).cost_u == 1_750_000 * 3 // 2
    assert saved.entries() >= paid
    report = lacks.read(saved.url, lacks.recreated)
    assert "a disk died" in report[0]
    assert any(known[:8] in line for line in report)
    assert any(unknown[:8] in line for line in report)


def test_an_adopted_lease_holds_its_slice(saved: Saved) -> None:
    world = saved.world
    saved.backup()
    kinds = {name: spawn(world, f"user-{name}", name, []) for name in ("whole", "mig", "cpu")}
    shared = spawn(world, "user-half", "half", [])
    held = set(_claims(world))
    assert len(held) == 7  # one of the host each, and a device's but for the CPU lease
    saved.stopped_and_restored()
    assert _claims(world) == []
    desk = world.live().strangers
    for lease_id in (*kinds.values(), shared):
        world.do(desk.adopt(lease_id, AdoptServer(reason="all are right"), "root"))
    assert set(_claims(world)) == held
    world.reconcile()
    # The whole GPU is taken, and half of the other; so is one of two MIG instances.
    assert refused(lambda: world.grant("eve", "whole")).refusal.reason == "gpu-full"
    assert world.grant("eve", "half").device_uuid not in (
        None,
        world.view(kinds["whole"]).device_uuid,
    )
    assert refused(lambda: world.grant("fay", "half")).refusal.reason == "gpu-full"
    world.grant("gus", "mig")
    assert refused(lambda: world.grant("hal", "mig")).refusal.reason == "gpu-full"


def _claims(world: World) -> list[tuple[object, ...]]:
    columns = (
        "lease_id, device_id, whole, memory_bytes, share_milli, mig_id, mig_start, mig_size,"
        " cpu_milli, ram_bytes"
    )
    with world.database.engine.connect() as connection:
        rows = connection.execute(
            sa.text(f"SELECT {columns} FROM claim WHERE released_version IS NULL")
        )
        return [tuple(row) for row in rows]


def test_an_unknown_server_can_be_ended_instead(saved: Saved) -> None:
    world = saved.world
    saved.backup()
    unknown = spawn(world, "bob", "half", [])
    saved.stopped_and_restored()
    desk = world.live().strangers
    # The node does not do it at once: as long as it runs, nothing is granted beside it.
    server = world.node.servers[unknown]
    world.node.finish, real = (lambda _server: None), world.node.finish  # type: ignore[method-assign]
    assert world.do(desk.end(unknown, "nobody knows bob", "root")).ending
    world.reconcile()
    assert refused(lambda: world.grant("eve", "cpu")).refusal.reason == "runtime-unavailable"
    assert [one.ending for one in world.do(desk.all())] == [True]
    world.node.finish = real  # type: ignore[method-assign]
    for _ in range(3):
        world.reconcile()
    assert not server.runs
    assert world.node.servers == {}
    assert world.grant("eve", "whole")
    assert saved.entries() == 0
    with world.database.engine.connect() as connection:
        acts = sa.select(Audit.action, Audit.actor, Audit.reason).where(Audit.subject == unknown)
        assert connection.execute(acts).all() == [("unaccounted.stop", "root", "nobody knows bob")]


def test_what_the_ledger_knows_is_no_stranger(saved: Saved) -> None:
    world = saved.world
    mine = spawn(world, "ada", "quarter", [])
    desk = world.live().strangers
    for lease_id in (mine, "0" * 32):
        body = AdoptServer(reason="mine")
        assert refused(lambda i=lease_id, b=body: world.do(desk.adopt(i, b, "root"))).status == 404
        assert refused(lambda i=lease_id: world.do(desk.end(i, "no", "root"))).status == 404
    assert world.node.servers[mine].runs


def test_a_slice_that_was_given_away_is_not_adopted(saved: Saved) -> None:
    """The node was closed all the time, so this takes a mistake; even then nothing is doubled."""
    world = saved.world
    saved.backup()
    unknown = spawn(world, "bob", "whole", [])
    saved.stopped_and_restored()
    world.live()._closed.clear()
    for user in ("ada", "eve"):
        world.grant(user, "whole")
    body = AdoptServer(reason="bob is right")
    answer = refused(lambda: world.do(world.live().strangers.adopt(unknown, body, "root")))
    assert answer.refusal.reason == "no-room"


def test_a_second_server_under_the_same_name_is_not_adopted(saved: Saved) -> None:
    world = saved.world
    saved.backup()
    unknown = spawn(world, "bob", "quarter", [])
    saved.stopped_and_restored()
    world.live()._closed.clear()
    world.grant("bob", "cpu")
    body = AdoptServer(reason="bob is right")
    answer = refused(lambda: world.do(world.live().strangers.adopt(unknown, body, "root")))
    assert answer.refusal.reason == "already-leased"


def test_what_the_node_does_not_remember_is_not_adopted(saved: Saved) -> None:
    world = saved.world
    saved.backup()
    unknown = spawn(world, "bob", "quarter", [])
    saved.stopped_and_restored()
    del world.node.slices[unknown]
    body = AdoptServer(reason="bob is right")
    answer = refused(lambda: world.do(world.live().strangers.adopt(unknown, body, "root")))
    assert answer.refusal.reason == "not-adoptable"


def test_a_service_paused_over_a_restore_writes_nothing(saved: Saved) -> None:
    """Its epoch was the backup's: a restore makes all that were before it void."""
    world = saved.world
    epoch = world.live().core.epoch
    saved.backup()
    saved.stopped_and_restored()
    assert world.live().core.epoch > epoch + 1
    with pytest.raises(meter.EpochLost):
        world.database.write(lambda s: meter.check(s, epoch, now=world.now))


# --- what is refused ----------------------------------------------------------------------------


def test_a_backup_is_private_complete_and_never_over_another(saved: Saved) -> None:
    spawn(saved.world, "ada", "quarter", [])
    saved.backup()
    for path in (saved.file, manifest_of(saved.file)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read_manifest(saved.file)
    assert (found.revision, found.taken_us) == (migrate.head(), saved.world.now)
    assert found.counts["lease"] == 1
    assert {path.name for path in saved.file.parent.glob("*sa ved*")} == {
        "sa ved",
        "sa ved.manifest.json",
    }
    with pytest.raises(Trouble, match="there already"):
        saved.backup()
    saved.file.unlink()
    with pytest.raises(Trouble, match="there already"):
        saved.backup()


def test_a_copy_whose_manifest_cannot_be_written_is_not_left(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gpuslice.cli.backup.write_private", full)
        with pytest.raises(Trouble, match="No space left"):
            saved.backup()
    assert list(saved.file.parent.glob("*sa ved*")) == []
    saved.backup()


def test_a_restore_needs_the_word_for_it_and_a_stopped_service(saved: Saved) -> None:
    saved.backup()
    spawn(saved.world, "ada", "quarter", [])
    with pytest.raises(Trouble, match="--replace"):
        saved.restore(replace=False)
    with saved.world.database.engine.begin() as connection:
        here = connection.execute(sa.select(Meter.boot_id, Meter.pid)).one()
        connection.execute(
            sa.update(Meter).values(boot_id="another", beat_us=4 * 10**15)
        )  # a service that beats, elsewhere
    with pytest.raises(Trouble, match="meters this ledger"):
        saved.restore()
    with saved.world.database.engine.begin() as connection:
        connection.execute(sa.update(Meter).values(boot_id=here.boot_id, pid=here.pid))
    assert saved.read(sa.select(sa.func.count()).select_from(Lease)) == 1


def test_a_damaged_backup_is_refused_and_the_ledger_is_as_it_was(saved: Saved) -> None:
    world = saved.world
    lease_id = spawn(world, "ada", "quarter", [])
    saved.backup()
    world.kill()
    whole, beside = saved.file.read_bytes(), manifest_of(saved.file)
    saved.file.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(Trouble, match="damaged or exchanged"):
        saved.restore()
    saved.file.write_bytes(whole)
    said = beside.read_text()
    beside.write_text(said.replace('"lease": 1', '"lease": 2'))
    with pytest.raises(Trouble, match="what its manifest says"):
        saved.restore()
    beside.write_text("{}")
    with pytest.raises(Trouble, match="no manifest"):
        saved.restore()
    beside.unlink()
    with pytest.raises(Trouble, match="two files"):
        saved.restore()
    world.restart()
    assert world.view(lease_id).state == "running"


# --- on SQLite nobody else begins, and there is a ledger at every moment -------------------------

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def _names(saved: Saved) -> list[str]:
    return sorted(path.name for path in saved.file.parent.glob("*ledger*"))


@on_sqlite
def test_no_service_of_another_container_begins_while_a_restore_works(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the engine starts a container again: no process in sight, the folder is shared."""
    saved.backup()
    saved.world.kill()
    finish, tried = restoring._finish, []

    def begins(*arguments: object) -> None:
        other = Database(saved.url)
        place = other.read(lambda s: s.scalars(sa.select(Meter.boot_id)).one())
        seen_from_there = place.replace(str(Path("/proc/self/ns/pid").readlink()), "pid:[1]")
        with other.engine.begin() as connection:
            connection.execute(sa.update(Meter).values(boot_id=seen_from_there, beat_us=0))
        with pytest.raises(meter.MeterLives):
            other.write(lambda s: meter.acquire(s, now=1, lock=HostLock(tmp_path)))
        other.close()
        tried.append(place)
        finish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(restoring, "_finish", begins)
    saved.restore(lock=HostLock(tmp_path))
    assert len(tried) == 1
    assert HostLock(tmp_path).take() is not None
    saved.world.restart()


@on_sqlite
def test_a_ledger_that_somebody_opens_meanwhile_is_not_exchanged(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.backup()
    saved.world.kill()
    file, finish = tmp_path / "ledger.sqlite", restoring._finish
    with contextlib.closing(sqlite3.connect(file)) as other:

        def opened(*arguments: object) -> None:
            other.execute("SELECT count(*) FROM lease").fetchall()
            finish(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(restoring, "_finish", opened)
        number = file.stat().st_ino
        with pytest.raises(Trouble, match=r"has .*ledger\.sqlite open"):
            saved.restore()
        epoch = other.execute("SELECT epoch FROM meter").fetchone()
        # Now it is seen at once, and nobody is thrown out.
        with pytest.raises(Trouble, match=r"has .*ledger\.sqlite open"):
            saved.restore()
        assert other.execute("SELECT epoch FROM meter").fetchone() == epoch
    assert file.stat().st_ino == number
    monkeypatch.undo()
    saved.stopped_and_restored()


@on_sqlite
def test_a_log_that_another_ledger_left_is_not_mixed_into_the_restored_one(
    saved: Saved, tmp_path: Path
) -> None:
    saved.backup()
    saved.world.kill()
    (tmp_path / "ledger.sqlite").unlink()
    left = tmp_path / "ledger.sqlite-wal"
    left.write_bytes(b"of another one")
    with pytest.raises(Trouble, match=r"sqlite-wal belongs to a ledger that is gone"):
        saved.restore()
    left.unlink()
    assert saved.restore().aside is None
    saved.world.restart()


@on_sqlite
@pytest.mark.parametrize("step", ["sync", "link", "replace"])
def test_a_disk_that_fails_while_the_ledger_is_exchanged(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    lease_id = spawn(saved.world, "ada", "quarter", [])
    saved.backup()
    saved.world.kill()
    was = _names(saved)

    def fails(*names: object) -> None:
        assert (tmp_path / "ledger.sqlite").exists()
        raise OSError(errno.EIO, "Input/output error", str(names[0]))

    with monkeypatch.context() as patch:
        where: object = {"sync": restoring, "link": os, "replace": Path}[step]
        patch.setattr(where, step, fails)
        with pytest.raises(Trouble, match="Input/output error"):
            saved.restore()
    assert _names(saved) == was
    saved.world.restart()
    assert saved.world.view(lease_id).state == "running"


def test_into_an_empty_database_of_an_older_revision(
    database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A backup of the release before this one; its schema is brought up to date."""
    database = Database(database_url)
    migrate.upgrade(database.engine, "0001")
    database.close()
    source = tmp_path / "old"
    backup(database_url, source)
    if database_url.startswith("sqlite"):
        target = sqlite_url(tmp_path / "new.sqlite")
    else:
        target = request.getfixturevalue("postgres_database")()
    wish = Wish(url=target, source=source, replace=False, actor="a", reason="moved", now=SECOND_US)
    assert restore(wish).aside is None
    database = Database(target)
    assert migrate.current(database.engine) == migrate.head()
    with database.engine.connect() as connection:
        assert connection.scalars(sa.select(Audit.action)).all() == ["ledger.restore"]
    database.close()


def test_a_copy_of_a_ledger_that_is_being_written(tmp_path: Path) -> None:
    """What is committed is in it, and what is not yet is not."""
    world = World(sqlite_url(tmp_path / "ledger.sqlite"))
    spawn(world, "ada", "quarter", [])
    world.kill()
    writer = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE lease SET user_name = 'half written'")
    backup(world.url, tmp_path / "saved")
    writer.execute("ROLLBACK")
    writer.close()
    copy = sqlite3.connect(tmp_path / "saved")
    assert copy.execute("SELECT user_name FROM lease").fetchall() == [("ada",)]
    copy.close()
    world.close()


@pytest.mark.postgres
def test_other_peoples_tables_are_neither_saved_nor_moved(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(postgres_url)
    migrate.upgrade(database.engine)
    with monkeypatch.context() as patch:
        patch.setattr(pgtools.shutil, "which", lambda _program: None)
        with pytest.raises(Trouble, match="postgresql-client"):
            backup(postgres_url, tmp_path / "saved")
    with database.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE users (id int)"))
    with pytest.raises(Trouble, match=r"public\.users"):
        backup(postgres_url, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
    database.close()


# --- on PostgreSQL the old ledger is put back, or at least not forgotten --------------------------

on_postgres = pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)

#: Restores, says when the old ledger is aside, and then waits.
_SLOW_RESTORE = """
import sys, time
from pathlib import Path
from gpuslice.cli import pgtools
from gpuslice.cli.restore import Wish, restore

def wait(*_):
    print("aside", flush=True)
    time.sleep(60)

pgtools.load = wait
restore(Wish(sys.argv[1], Path(sys.argv[2]), True, "root", "a disk died", int(sys.argv[3])))
"""


def _interrupted(saved: Saved, number: signal.Signals) -> None:
    """The service ends, and a restore gets a signal while there is no ledger in its place."""
    saved.world.do(saved.world.live().close())
    saved.world.kill()
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW_RESTORE, saved.url, str(saved.file), str(saved.world.now)],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"aside\n"
        process.send_signal(number)
        assert process.wait(60) != 0


@on_postgres
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_restore_that_is_told_to_end_puts_the_ledger_back(
    saved: Saved, number: signal.Signals
) -> None:
    lease_id = spawn(saved.world, "ada", "quarter", [])
    saved.backup()
    _interrupted(saved, number)
    saved.world.restart()
    assert saved.world.view(lease_id).state == "running"


@on_postgres
@pytest.mark.parametrize("again", [True, False], ids=["restored", "put-back"])
def test_after_a_killed_restore_no_service_makes_an_empty_ledger(saved: Saved, again: bool) -> None:
    saved.backup()
    lease_id = spawn(saved.world, "ada", "quarter", [])
    _interrupted(saved, signal.SIGKILL)
    with pytest.raises(LedgerError, match="in the schema gpuslice_before_"):
        saved.world.restart()
    saved.world.kill()
    if again:
        assert saved.restore(replace=False).aside is None
    else:
        page = Path(__file__).parents[2] / "docs/administrators/backup.md"
        [block] = re.findall(r"<<'SQL'\n(.*?)SQL\n", page.read_text(), re.DOTALL)
        engine = make_engine(saved.url)
        with engine.begin() as connection:
            schemas = sa.inspect(connection).get_schema_names()
            [aside] = [name for name in schemas if name.startswith("gpuslice_before_")]
            block = re.sub(r"gpuslice_before_\d+_\d+", aside, block)
            connection.exec_driver_sql(block.replace("%", "%%"))
        engine.dispose()
    saved.world.restart()
    assert (saved.world.do(saved.world.live().lease(lease_id)) is None) == again


@on_postgres
@pytest.mark.parametrize("lacks_right", ["create", "owner"])
def test_a_role_that_may_not_restore_is_told_what_it_needs(saved: Saved, lacks_right: str) -> None:
    lease_id = spawn(saved.world, "ada", "quarter", [])
    saved.backup()
    saved.world.kill()
    engine = make_engine(saved.url)
    role, database = f"role_{lacks_right}", engine.url.database
    with engine.begin() as connection:
        run = connection.exec_driver_sql
        run(f"CREATE ROLE {role} LOGIN")
        run(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        if lacks_right == "owner":
            run(f'GRANT CREATE ON DATABASE "{database}" TO {role}')
    url = engine.url.set(username=role).render_as_string(hide_password=False)
    wish = Wish(url, saved.file, replace=True, actor="a", reason="r", now=saved.world.now)
    try:
        with pytest.raises(Trouble, match="CREATE on the database"):
            restore(wish)
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")
        engine.dispose()
    saved.world.restart()
    assert saved.world.view(lease_id).state == "running"
