"""One meter per ledger: an epoch that every write of the service checks in its own transaction.

Two services on one database by mistake would bill everything twice. The second refuses to start
while the first one lives (on PostgreSQL it may wait as standby), and one that was replaced finds
its epoch gone and ends.

Whether a meter lives: on this machine its process says so, and where that cannot be seen (another
container's) its lock. On PostgreSQL it may run on another machine, or be stopped and hold on to
everything, so there only its beat counts, by the database's own clock. On SQLite all who have the
file are on one machine, and a meter that only waits does not beat: a lock that nobody else gets is
as good as its process.
"""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker.hostlock import HostLock
from gpuslice.ledger.database import LedgerError
from gpuslice.ledger.tables import Meter
from gpuslice.units import SECOND_US, boot_id

#: A meter that cannot be looked at and has not written for so long is taken for dead.
STALE_US = 15 * SECOND_US
#: How often a meter on PostgreSQL writes even when there is nothing to write.
BEAT_S = 2.0
#: PostgreSQL ends a write transaction of which it hears nothing for so long: a service that was
#: stopped in the middle of one would keep its locks, and nobody could take over.
_IDLE_MS = 8_000
#: How long a take-over waits for the lock of a transaction that still holds the meter's row.
_LOCK_TIMEOUT = "3s"
#: The process of a meter that was handed over in an orderly end.
_NOBODY = 0


class EpochLost(LedgerError):
    """Another service has taken over this ledger; this one must end."""


class MeterLives(LedgerError):
    """Another service meters this ledger now."""


def acquire(session: Session, *, now: int, lock: HostLock | None = None) -> int:
    """Become the meter of this ledger; returns the epoch to check with.

    Args:
        lock: Held from here on by this process, if it can be had, until it ends or gives it up.

    Raises:
        MeterLives: another service process meters it now.
    """
    held = lock.take() if lock is not None else None
    try:
        return _acquire(session, now, held)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _acquire(session: Session, now: int, held: str | None) -> int:
    if shared(session):
        session.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
    row = session.get(Meter, 1, with_for_update=True)
    if row is not None and not _left(row, held) and _lives(session, row, now):
        alone = "" if shared(session) else "; with SQLite there is no standby, only a restart"
        raise MeterLives(
            f"process {row.pid} meters this ledger already; stop that service first, "
            f"or give this one a database of its own{alone}"
        )
    epoch = 1 if row is None else row.epoch + 1
    pid = os.getpid()
    session.merge(
        Meter(id=1, epoch=epoch, boot_id=_place(held), pid=pid, pid_start=start_ticks(pid) or 0,
              beat_us=_clock(session, now))
    )  # fmt: skip
    return epoch


def lives(session: Session, *, now: int) -> bool:
    """Whether a service meters this ledger now; looks without a lock."""
    row = session.get(Meter, 1)
    return row is not None and _lives(session, row, now)


def check(session: Session, epoch: int, *, now: int) -> None:
    """Hold the epoch for this transaction.

    Raises:
        EpochLost: another service has taken over; nothing of this transaction is kept.
    """
    if shared(session):
        found = session.execute(_CHECK_SHARED, {"mine": epoch, "idle_ms": str(_IDLE_MS)}).first()
    else:
        found = session.execute(_CHECK, {"mine": epoch, "now": now}).first()
    if found is None:
        raise EpochLost("another service has taken over this ledger")


def hand_over(session: Session, epoch: int) -> None:
    """Say that this meter has ended, so that the next one need not wait; nothing if it is gone."""
    session.execute(
        sa.update(Meter)
        .where(Meter.id == 1, Meter.epoch == epoch)
        .values(pid=_NOBODY)
        .execution_options(synchronize_session=False)
    )


def void(session: Session, *, above: int) -> None:
    """No epoch up to ``above``, nor the one that is written here, is anybody's any more."""
    row = session.get(Meter, 1, with_for_update=True)
    epoch = max(above, row.epoch if row is not None else 0) + 1
    session.merge(Meter(id=1, epoch=epoch, boot_id=_place(), pid=_NOBODY, pid_start=0, beat_us=0))


def shared(session: Session) -> bool:
    """Whether services on several machines may use this ledger."""
    return session.get_bind().dialect.name == "postgresql"


def _left(row: Meter, held: str | None) -> bool:
    """Whether the lock that this process holds is the one that this meter held to its end."""
    boot, _, lock = _where(row)
    return held is not None and (boot, lock) == (boot_id(), held)


def _lives(session: Session, row: Meter, now: int) -> bool:
    if row.pid == _NOBODY:
        return False
    boot, processes, lock = _where(row)
    # Containers of one machine have its boot, but a pid means another process in each.
    if boot == boot_id() and processes == _processes():
        # A reused pid has another start time, so it is not taken for the old meter.
        runs = row.pid != os.getpid() and start_ticks(row.pid) == row.pid_start
        if not runs or not shared(session):
            return runs
    elif boot == boot_id() and lock and not shared(session):
        # `_left` would have known if it had been given up.
        return True
    return _clock(session, now) - row.beat_us < STALE_US


_DATABASE_CLOCK = sa.cast(
    sa.func.floor(sa.extract("epoch", sa.func.clock_timestamp()) * SECOND_US), sa.BigInteger
)


_CHECK = (
    sa.update(Meter)
    .where(Meter.id == 1, Meter.epoch == sa.bindparam("mine"))
    .values(beat_us=sa.bindparam("now"))
    .returning(Meter.__table__.c.epoch)
    .execution_options(synchronize_session=False)
)
_CHECK_SHARED = (
    sa.update(Meter)
    .where(Meter.id == 1, Meter.epoch == sa.bindparam("mine"))
    .values(beat_us=_DATABASE_CLOCK)
    # In the same statement, so that no write needs another round trip.
    .returning(
        sa.func.set_config("idle_in_transaction_session_timeout", sa.bindparam("idle_ms"), True)
    )
    .execution_options(synchronize_session=False)
)


def _clock(session: Session, now: int) -> int:
    """The clock that beats are written by: the database's where machines share it."""
    if not shared(session):
        return now
    return int(session.scalars(sa.select(_DATABASE_CLOCK)).one())


def _place(lock: str | None = None) -> str:
    """Where this process's pid means something: this boot, this table of processes; and its lock.

    With a lock that is all of the column's 64 characters.
    """
    return f"{boot_id()}/{_processes()}" + (f"/{lock}" if lock is not None else "")


def _where(row: Meter) -> tuple[str, str, str]:
    """Boot, table of processes and lock of a meter; what it did not say is empty."""
    boot, processes, lock = (*row.boot_id.split("/"), "", "")[:3]
    return boot, processes, lock


def _processes() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none (or a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command's name is in parentheses and may hold spaces and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])
