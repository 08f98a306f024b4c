"""Closes days: writes the signed digest of what was written since the last one, and checks them.

Digests cover entries by number and not by time: each goes on where the one before it ended. So
every entry is in exactly one, whatever a clock did, and none can come into a day that is closed.
Of a clock that was wrong only the names of the days tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger import digest
from gpuslice.ledger.digest import NOTHING_BEFORE, Hasher, Signer, Statement, Value, VerifyKey
from gpuslice.ledger.tables import Digest, Entry, Segment
from gpuslice.units import HOUR_US, MINUTE_US, from_datetime, to_datetime

#: A day is closed so long after its end.
CLOSE_AFTER_US = 10 * MINUTE_US
#: A service that has written for so long after that has missed to close it.
_MISSED_AFTER_US = HOUR_US
_CHUNK = 2_000

_ENTRY = [getattr(Entry, name).label(f"e_{name}") for name in digest.ENTRY]
_SEGMENT = [getattr(Segment, name).label(f"s_{name}") for name in digest.SEGMENT]


def last_over(now: int) -> str:
    """The newest UTC day that may be closed."""
    return (to_datetime(now - CLOSE_AFTER_US).date() - timedelta(days=1)).isoformat()


def _end_us(day: str) -> int:
    after = date.fromisoformat(day) + timedelta(days=1)
    return from_datetime(datetime(after.year, after.month, after.day, tzinfo=UTC))


def _day(us: int) -> str:
    return to_datetime(us).date().isoformat()


# --- closing ------------------------------------------------------------------------------------


def next_digest(session: Session, signer: Signer, now: int) -> Digest | None:
    """The digest that is due next, not yet written; None: all days that are over are closed.

    A day without entries has one only if it is the newest: else the next digest tells enough.
    """
    newest = session.scalar(sa.select(Digest).order_by(Digest.number.desc()).limit(1))
    til = last_over(now)
    if newest is not None and newest.day == til:
        return None
    mark = _mark(session)
    day = _next_day(session, newest, mark, til)
    last = session.scalar(
        sa.select(sa.func.max(Entry.id)).where(*_after(mark), Entry.created_us < _end_us(day))
    )
    number = 1 if newest is None else newest.number + 1
    previous = NOTHING_BEFORE if newest is None else newest.sha256
    found = Hasher(number, day, previous)
    if last is not None:
        _feed(session, found, mark, last)
    statement = Statement(
        number=number, day=day, first_entry=found.first, last_entry=found.last,
        entries=found.entries, sha256=found.hexdigest(), previous=previous,
        key_id=signer.public.key_id, created_us=now,
    )  # fmt: skip
    return Digest(
        number=number, day=day, first_entry=found.first, last_entry=found.last,
        entries=found.entries, sha256=statement.sha256, previous=previous,
        key_id=statement.key_id, signature=signer.sign(statement), created_us=now,
    )  # fmt: skip


def _next_day(session: Session, newest: Digest | None, mark: int | None, til: str) -> str:
    """The day to close: that of the first entry which no digest covers, ``til`` at the latest."""
    first = session.scalar(
        sa.select(Entry.created_us).where(*_after(mark)).order_by(Entry.id).limit(1)
    )
    if first is None:
        return til
    day = _day(first)
    if newest is not None and day <= newest.day:
        # It was written after its day was closed: by a clock that was set back.
        day = (date.fromisoformat(newest.day) + timedelta(days=1)).isoformat()
    return min(day, til)


def add(session: Session, made: Digest) -> bool:
    """Write a digest, unless there is one of its number by now."""
    if session.get(Digest, made.number) is not None:
        return False
    session.add(made)
    session.flush()
    return True


# --- checking -----------------------------------------------------------------------------------


def check(session: Session, keys: Sequence[VerifyKey]) -> Iterator[str]:
    """What does not fit what was signed, one sentence each; nothing is held in memory.

    Without keys the hashes and their chain are checked, but not who made them.
    """
    by_id = {key.key_id: key for key in keys}
    before: Digest | None = None
    mark: int | None = None
    #: Whether ``mark`` is where the digest before ended; after a missing one nobody knows.
    known = True
    for row in session.scalars(sa.select(Digest).order_by(Digest.number)):
        expected = 1 if before is None else before.number + 1
        if row.number != expected:
            since = "from the beginning" if before is None else f"after {before.day}"
            yield (
                f"digest{_span(expected, row.number - 1)} missing {since}, before that of {row.day}"
            )
            known = False
        elif row.previous != (NOTHING_BEFORE if before is None else before.sha256):
            yield f"digest of {row.day}: it does not follow the one before it"
        if not known and row.first_entry is not None:
            mark = row.first_entry - 1
        yield from _covers(session, row, mark)
        if keys:
            yield from _signed(row, by_id)
        before = row
        if row.last_entry is not None:
            mark, known = row.last_entry, True
    yield from _unclosed(session, before, mark)


def _span(first: int, last: int) -> str:
    return f" {first} is" if first == last else f"s {first} to {last} are"


def _covers(session: Session, row: Digest, mark: int | None) -> Iterator[str]:
    found = Hasher(row.number, row.day, row.previous)
    if row.last_entry is not None:
        _feed(session, found, mark, row.last_entry)
    if found.hexdigest() == row.sha256:
        return
    where = f"digest of {row.day}"
    if found.entries != row.entries:
        yield f"{where}: {row.entries} entries were signed, there are {found.entries}"
    else:
        yield f"{where}: its entries or their segments are not those that were signed"


def _signed(row: Digest, keys: dict[str, VerifyKey]) -> Iterator[str]:
    key = keys.get(row.key_id)
    if key is None:
        yield f"digest of {row.day}: signed with key {row.key_id}, which is not among those given"
    elif not key.fits(_statement(row), row.signature):
        yield f"digest of {row.day}: its signature does not fit what it says"


def _statement(row: Digest) -> Statement:
    return Statement(
        number=row.number, day=row.day, first_entry=row.first_entry, last_entry=row.last_entry,
        entries=row.entries, sha256=row.sha256, previous=row.previous, key_id=row.key_id,
        created_us=row.created_us,
    )  # fmt: skip


def _unclosed(session: Session, newest: Digest | None, mark: int | None) -> Iterator[str]:
    """Entries that should have been signed long ago.

    A service that did not run has signed nothing, and that is right; so it is a problem only if
    entries were written over some time after the day could have been closed.
    """
    after = _after(mark)
    oldest = session.scalar(sa.select(sa.func.min(Entry.created_us)).where(*after))
    if oldest is None:
        return
    due = _end_us(_day(oldest)) + CLOSE_AFTER_US
    late = (*after, Entry.created_us >= due)
    low = session.scalar(sa.select(sa.func.min(Entry.created_us)).where(*late))
    high = session.scalar(sa.select(sa.func.max(Entry.created_us)).where(*late))
    if low is not None and high is not None and high - low >= _MISSED_AFTER_US:
        since = "no digest" if newest is None else f"no digest after that of {newest.day}"
        yield (
            f"{since}: what was written from {_day(oldest)} to {_day(high)} is not signed; digests "
            "were removed, or the service failed to write them"
        )


# --- rows ---------------------------------------------------------------------------------------


def _mark(session: Session) -> int | None:
    """The newest entry that a digest covers."""
    return session.scalar(sa.select(sa.func.max(Digest.last_entry)))


def _after(mark: int | None) -> list[sa.ColumnElement[bool]]:
    return [] if mark is None else [Entry.id > mark]


def _feed(session: Session, into: Hasher, mark: int | None, last: int) -> None:
    """Every entry after ``mark`` up to ``last``, a part at a time."""
    at = mark
    while True:
        # Of the connection, not the session: nothing is made of these many rows.
        rows = (
            session.connection()
            .execute(
                sa.select(*_ENTRY, *_SEGMENT)
                .outerjoin(Segment, Segment.id == Entry.segment_id)
                .where(*_after(at), Entry.id <= last)
                .order_by(Entry.id)
                .limit(_CHUNK)
            )
            .all()
        )
        for row in rows:
            values: tuple[Value, ...] = tuple(row)
            entry, segment = values[: len(_ENTRY)], values[len(_ENTRY) :]
            into.add(entry, None if segment[0] is None else segment)
        if len(rows) < _CHUNK:
            return
        at = rows[-1].e_id
