"""One meter per ledger: an epoch that every write of the service checks in its own transaction.

Two services on one database by mistake would bill everything twice. The second refuses to start
while the first one lives, and one that was replaced finds its epoch gone and ends.
"""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger.database import LedgerError
from gpuslice.ledger.tables import Meter
from gpuslice.units import SECOND_US, boot_id

#: A meter on another machine (or boot) that has not written for so long is taken for dead.
STALE_US = 30 * SECOND_US


class EpochLost(LedgerError):
    """Another service has taken over this ledger; this one must end."""


def acquire(session: Session, *, now: int) -> int:
    """Become the meter of this ledger; returns the epoch to check with.

    Raises:
        LedgerError: another service process meters it now.
    """
    row = session.get(Meter, 1, with_for_update=True)
    if row is not None and _lives(row, now):
        raise LedgerError(
            f"process {row.pid} meters this ledger already; stop that service first, "
            "or give this one a database of its own"
        )
    epoch = 1 if row is None else row.epoch + 1
    pid = os.getpid()
    session.merge(
        Meter(id=1, epoch=epoch, boot_id=boot_id(), pid=pid, pid_start=start_ticks(pid) or 0,
              beat_us=now)
    )  # fmt: skip
    return epoch


def check(session: Session, epoch: int, *, now: int) -> None:
    """Hold the epoch for this transaction.

    Raises:
        EpochLost: another service has taken over; nothing of this transaction is kept.
    """
    held = session.execute(
        sa.update(Meter)
        .where(Meter.id == 1, Meter.epoch == epoch)
        .values(beat_us=now)
        .execution_options(synchronize_session=False)
    )
    if held.rowcount != 1:  # type: ignore[attr-defined]
        raise EpochLost("another service has taken over this ledger")


def _lives(row: Meter, now: int) -> bool:
    if row.boot_id == boot_id():
        # A reused pid has another start time, so it is not taken for the old meter.
        return row.pid != os.getpid() and start_ticks(row.pid) == row.pid_start
    return now - row.beat_us < STALE_US


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none (or a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command's name is in parentheses and may hold spaces and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])
