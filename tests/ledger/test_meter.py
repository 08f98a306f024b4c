"""Who meters a ledger: what lives, what is dead, and that a service that was replaced writes
nothing any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker import meter
from gpuslice.broker.hostlock import HostLock
from gpuslice.ledger import migrate
from gpuslice.ledger.database import Database, LedgerError
from gpuslice.ledger.tables import Audit, Meter
from gpuslice.units import SECOND_US, boot_id, now_us
from ledgerworld import World

#: A process table that is not this one's, as in another container of this machine.
ELSEWHERE = f"{boot_id()}/pid:[1]"


def acquire(database: Database) -> int:
    return database.write(lambda s: meter.acquire(s, now=now_us()))


def lives(database: Database) -> bool:
    return database.read(lambda s: meter.lives(s, now=now_us()))


def change(database: Database, **values: object) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.update(Meter).values(values))


def note(session: Session) -> None:
    session.add(Audit(at_us=1, actor="a", action="noted", subject="s"))


def notes(database: Database) -> int:
    return database.read(lambda s: len(s.scalars(sa.select(Audit.id)).all()))


@pytest.fixture
def other(database: Database) -> Iterator[subprocess.Popen[bytes]]:
    """A process of this machine that says that it meters the ledger."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    acquire(database)
    change(database, pid=process.pid, pid_start=meter.start_ticks(process.pid))
    yield process
    process.kill()
    process.communicate()


def test_a_process_that_is_gone_is_replaced_at_once(
    database: Database, other: subprocess.Popen[bytes]
) -> None:
    assert lives(database)
    with pytest.raises(meter.MeterLives, match=str(other.pid)):
        acquire(database)
    other.kill()
    other.communicate()
    assert not lives(database)
    acquire(database)


def test_a_process_that_lives_but_does_not_beat(
    database: Database, other: subprocess.Popen[bytes]
) -> None:
    """On PostgreSQL a stopped service is replaced; SQLite has no standby, and says so."""
    change(database, beat_us=now_us() - meter.STALE_US - SECOND_US)
    if database.engine.dialect.name == "postgresql":
        assert acquire(database) == 2
    else:
        with pytest.raises(meter.MeterLives, match="no standby"):
            acquire(database)


def test_a_meter_that_cannot_be_seen_lives_while_it_beats(database: Database) -> None:
    first = acquire(database)
    for place in ("another-boot/pid:[1]", "another-boot"):
        change(database, boot_id=place, beat_us=now_us() - meter.STALE_US + 5 * SECOND_US)
        assert lives(database)
        with pytest.raises(meter.MeterLives):
            acquire(database)
    change(database, beat_us=now_us() - meter.STALE_US - SECOND_US)
    assert acquire(database) == first + 1


@pytest.mark.postgres
def test_the_same_pid_in_another_container_is_another_process(postgres_url: str) -> None:
    """Two containers of one machine have its boot, and each has a process 1."""
    database = Database(postgres_url)
    migrate.upgrade(database.engine)
    acquire(database)
    for pid in (os.getpid(), 2**22 + 1):
        change(database, boot_id=ELSEWHERE, pid=pid, beat_us=now_us())
        assert lives(database)
    database.close()


#: Becomes the meter with the lock of a folder, says so, and lives on.
_HOLDER = """
import sys
from pathlib import Path
from gpuslice.broker import meter
from gpuslice.broker.hostlock import HostLock
from gpuslice.ledger.database import Database
from gpuslice.units import now_us
lock = HostLock(Path(sys.argv[2]))
Database(sys.argv[1]).write(lambda s: meter.acquire(s, now=now_us(), lock=lock))
print("metering", flush=True)
input()
"""


def take_over(database: Database, folder: Path) -> HostLock:
    """Become the meter with the lock of a folder."""
    lock = HostLock(folder)
    database.write(lambda s: meter.acquire(s, now=now_us(), lock=lock))
    return lock


@pytest.fixture
def contained(database: Database, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A service that meters the ledger in another container of this machine, with our folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, database.url, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"metering\n"
    row = database.read(lambda s: s.scalars(sa.select(Meter.boot_id)).one())
    change(database, boot_id=f"{ELSEWHERE}/{row.rpartition('/')[2]}", pid=2**22 + 1)
    yield process
    process.kill()
    process.communicate()


def test_a_service_in_a_container_that_is_gone_is_replaced_at_once(
    database: Database, tmp_path: Path, contained: subprocess.Popen[bytes]
) -> None:
    """Its beat is fresh and its process in no table that we see: the lock alone tells."""
    contained.send_signal(signal.SIGSTOP)
    with pytest.raises(meter.MeterLives):
        take_over(database, tmp_path)
    contained.kill()
    contained.wait()
    other = tmp_path / "another"
    other.mkdir()
    # Another folder's lock proves nothing, nor does the same one after another boot.
    with pytest.raises(meter.MeterLives):
        take_over(database, other)
    place = database.read(lambda s: s.scalars(sa.select(Meter.boot_id)).one())
    change(database, boot_id=place.replace(boot_id(), "another-boot"))
    with pytest.raises(meter.MeterLives):
        take_over(database, tmp_path)
    change(database, boot_id=place)
    # What was refused keeps nobody else from it.
    lock = take_over(database, tmp_path)
    assert HostLock(tmp_path).take() is None
    lock.release()
    assert HostLock(tmp_path).take() is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_on_sqlite_a_service_in_a_container_lives_while_it_has_its_lock(
    database: Database, tmp_path: Path, contained: subprocess.Popen[bytes]
) -> None:
    """It has no standby to beat for, and a process with its number may be here or not."""
    change(database, beat_us=0)
    for pid in (2**22 + 1, os.getpid()):
        change(database, pid=pid)
        assert lives(database)
        with pytest.raises(meter.MeterLives):
            take_over(database, tmp_path)
        with pytest.raises(meter.MeterLives):
            acquire(database)
    contained.kill()
    contained.wait()
    take_over(database, tmp_path).release()


@pytest.mark.postgres
def test_a_service_whose_lock_another_one_has_is_not_taken_for_dead(
    postgres_url: str, tmp_path: Path
) -> None:
    """Who works without the lock says so: whoever gets it later learns nothing from that."""
    database = Database(postgres_url)
    migrate.upgrade(database.engine)
    holder = HostLock(tmp_path)
    assert holder.take()
    take_over(database, tmp_path)
    holder.release()
    place = database.read(lambda s: s.scalars(sa.select(Meter.boot_id)).one())
    change(database, boot_id=place.replace(str(Path("/proc/self/ns/pid").readlink()), "pid:[1]"))
    with pytest.raises(meter.MeterLives):
        take_over(database, tmp_path)
    assert HostLock(tmp_path / "missing").take() is None
    database.close()


@pytest.mark.postgres
def test_beats_are_of_the_databases_clock(postgres_url: str) -> None:
    """A machine whose clock is wrong by a year neither takes over nor is taken over."""
    database = Database(postgres_url)
    migrate.upgrade(database.engine)
    year = 365 * 24 * 3600 * SECOND_US
    for wrong in (-year, year):
        epoch = database.write(lambda s, w=wrong: meter.acquire(s, now=now_us() + w))
        database.write(lambda s, e=epoch, w=wrong: meter.check(s, e, now=now_us() + w))
        change(database, boot_id=ELSEWHERE)
        for asks in (-year, 0, year):
            assert database.read(lambda s, w=asks: meter.lives(s, now=now_us() + w))
        change(database, pid=0)
    database.close()


@pytest.mark.postgres
def test_a_service_stopped_in_mid_transaction_does_not_hold_on_to_the_ledger(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "_IDLE_MS", 50)
    database = Database(postgres_url)
    migrate.upgrade(database.engine)
    epoch = acquire(database)
    paused, next_one = database, Database(postgres_url)

    def stopped(session: Session) -> None:
        meter.check(session, epoch, now=now_us())
        note(session)
        session.flush()
        # Its transaction has the meter's row: this only ends when PostgreSQL ends that one.
        change_now = {"boot_id": ELSEWHERE, "beat_us": 0}
        with next_one.engine.begin() as connection:
            connection.execute(sa.update(Meter).values(change_now))
        assert acquire(next_one) == epoch + 1
        note(session)

    with pytest.raises((LedgerError, sa.exc.DBAPIError)):
        paused.write(stopped)
    assert notes(next_one) == 0
    with pytest.raises(meter.EpochLost):
        paused.write(lambda s: meter.check(s, epoch, now=now_us()))
    paused.close()
    next_one.close()


def test_nothing_of_a_transaction_without_the_epoch_is_kept(database: Database) -> None:
    epoch = acquire(database)

    def work(session: Session, held: int) -> None:
        note(session)
        session.flush()
        meter.check(session, held, now=now_us())

    database.write(lambda s: work(s, epoch))
    assert acquire(database) == epoch + 1
    with pytest.raises(meter.EpochLost):
        database.write(lambda s: work(s, epoch))
    assert notes(database) == 1


def test_an_orderly_end_hands_over(database: Database, other: subprocess.Popen[bytes]) -> None:
    database.write(lambda s: meter.hand_over(s, 99))
    assert lives(database)
    database.write(lambda s: meter.hand_over(s, 1))
    assert not lives(database)
    assert acquire(database) == 2


def test_epochs_before_a_restore_are_void(database: Database) -> None:
    acquire(database)
    database.write(lambda s: meter.void(s, above=7))
    for epoch in (1, 7):
        with pytest.raises(meter.EpochLost):
            database.write(lambda s, e=epoch: meter.check(s, e, now=now_us()))
    assert not lives(database)
    assert acquire(database) == 9


def test_a_service_that_was_replaced_ends(database_url: str) -> None:
    """Its next comparison finds out, and what it would have billed is billed once, by the other."""
    world = World(database_url)
    lease = world.grant("ada", "quarter")
    assert world.supervise(lease.lease_id)
    old, old_database = world.live(), world.database
    world.broker = None  # it is paused, not killed: its connections stay
    world.restart()
    world.now += 7_200 * SECOND_US
    for job in (old.reconcile, old._beat):
        with pytest.raises(meter.EpochLost):
            world.do(job())
    assert world.view(lease.lease_id).cost_u == 0
    world.reconcile()
    assert world.view(lease.lease_id).cost_u == 2 * 875_001
    assert world.problems() == []
    old_database.close()
    world.close()
