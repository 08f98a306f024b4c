"""``gpuslice restore``: a backup becomes the ledger again, and what it lacks is said."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from gpuslice.broker import meter
from gpuslice.broker.hostlock import HostLock
from gpuslice.cli import pgtools
from gpuslice.cli.backup import read_postgres, read_sqlite
from gpuslice.cli.backupfile import Manifest, give_name, make_private, read_manifest, sync
from gpuslice.cli.trouble import Trouble
from gpuslice.ledger import migrate
from gpuslice.ledger.database import Database, LedgerError, make_engine, sqlite_url, unavailable
from gpuslice.ledger.migrate import ASIDE, SCHEMA_LOCK, VERSION_TABLE
from gpuslice.ledger.tables import Audit
from gpuslice.units import to_datetime

#: The audit's word for a restore; its ``before`` is as of when the backup was.
RESTORED = "ledger.restore"


@dataclass(frozen=True)
class Wish:
    """What is to be restored over what, and why."""

    url: str
    source: Path
    replace: bool
    actor: str
    reason: str
    #: The time that is noted, UTC microseconds.
    now: int
    #: The one that services of this machine take: on SQLite none begins while this has it.
    lock: HostLock | None = None


@dataclass(frozen=True)
class Restored:
    """What was done; ``aside`` is where the ledger that was there before is now."""

    manifest: Manifest
    aside: str | None


def restore(wish: Wish) -> Restored:
    """Make a backup the ledger at ``wish.url``.

    Raises:
        Trouble: a service uses the ledger, there is one already, or the backup is not sound; the
            ledger is as it was.
    """
    manifest = read_manifest(wish.source)
    try:
        engine = make_engine(wish.url)
    except LedgerError as error:
        raise Trouble(str(error)) from None
    kind = engine.dialect.name
    if kind != manifest.database:
        engine.dispose()
        raise Trouble(
            f"This is a backup of a ledger on {manifest.database}, and the settings name one on "
            f"{kind}."
        )
    try:
        with _told_to_end():
            if kind == "sqlite":
                engine.dispose()
                aside = _sqlite(wish, manifest, Path(engine.url.database or "").absolute())
            else:
                aside = _postgres(wish, manifest, engine)
    except LedgerError as error:
        raise Trouble(str(error)) from None
    except OSError as error:
        raise Trouble(f"Cannot restore: {error.filename}: {error.strerror}.") from None
    except DBAPIError as error:
        raise Trouble(str(unavailable(_name(engine), error))) from None
    finally:
        engine.dispose()
    return Restored(manifest, aside)


@contextmanager
def _told_to_end() -> Iterator[None]:
    """SIGTERM and SIGHUP end a restore like Ctrl-C: what was begun is taken back first, and a
    second signal does not interrupt that."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def told(_number: int, _frame: FrameType | None) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, told) for one in signals}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _name(engine: sa.Engine) -> str:
    return engine.url.render_as_string(hide_password=True)


def _aside(now: int) -> str:
    return f"{to_datetime(now):%Y%m%d_%H%M%S}"


def _must_replace(wish: Wish) -> None:
    if not wish.replace:
        raise Trouble(
            "There is a ledger already. With --replace it is moved aside, and this backup takes "
            "its place."
        )


def _check_counts(found: tuple[dict[str, int], str], manifest: Manifest) -> None:
    if found != (manifest.counts, manifest.revision):
        raise Trouble("The backup does not hold what its manifest says.")


def _finish(session: Session, wish: Wish, manifest: Manifest, old_epoch: int) -> None:
    """Nobody's epoch holds any more, and the audit says what was done."""
    meter.void(session, above=old_epoch)
    session.add(
        Audit(at_us=wish.now, actor=wish.actor[:255], action=RESTORED, subject="ledger",
              before=str(manifest.taken_us), after=manifest.sha256, reason=wish.reason[:500])
    )  # fmt: skip


# --- SQLite -----------------------------------------------------------------------------------


def _sqlite(wish: Wish, manifest: Manifest, ledger: Path) -> str | None:
    ledger.parent.stat()
    there = ledger.exists() and ledger.stat().st_size > 0
    if there:
        _must_replace(wish)
    part = ledger.with_name(f".{ledger.name}.{os.getpid()}")
    make_private(part)
    try:
        shutil.copyfile(wish.source, part)
        try:
            _check_counts(read_sqlite(part), manifest)
        except sqlite3.Error as error:
            raise Trouble(f"{wish.source} is no database: {error}.") from None
        old_epoch = _stopped_sqlite(ledger, wish) if there else 0
        with _database(sqlite_url(part)) as database:
            migrate.upgrade(database.engine)
            database.write(lambda s: _finish(s, wish, manifest, old_epoch))
        _give_owner(part, ledger.parent)
        aside = _take_its_place(part, ledger, wish.now)
    finally:
        if wish.lock is not None:
            wish.lock.release()
        for left in (part, *_companions(part)):
            left.unlink(missing_ok=True)
    return str(aside) if aside is not None else None


@contextmanager
def _database(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def _stopped_sqlite(ledger: Path, wish: Wish) -> int:
    """The epoch under which no service runs on this ledger, taken so that none begins to."""
    try:
        with _database(sqlite_url(ledger)) as database:
            revision = migrate.current_revision(database.engine)
        if revision is None:
            return 0
        open_elsewhere = _open_elsewhere(ledger)

        def work(session: Session) -> int:
            epoch = meter.acquire(session, now=wish.now, lock=wish.lock)
            if open_elsewhere is not None:
                # Nothing of this transaction is kept: nobody is thrown out for nothing.
                raise open_elsewhere
            return epoch

        with _database(sqlite_url(ledger)) as database:
            return database.write(work)
    except LedgerError:
        raise
    except DBAPIError as error:
        raise Trouble(
            f"The ledger {ledger} cannot be read ({error.orig}), so nobody can say whether a "
            "service uses it: stop all, move it away yourself, and restore again."
        ) from None


def _open_elsewhere(ledger: Path) -> Trouble | None:
    """What is wrong if a database has companions while this process does not have it open.

    The last one that has it open removes them, and this one had. Beside another database than
    their own they would become a part of it.
    """
    left = next((path for path in _companions(ledger) if path.exists()), None)
    if left is None:
        return None
    if ledger.exists() and ledger.stat().st_size > 0:
        return Trouble(f"Another process has {ledger} open: end it, and restore again.")
    return Trouble(f"{left} belongs to a ledger that is gone: move it away, and restore again.")


def _companions(ledger: Path) -> list[Path]:
    return [ledger.with_name(f"{ledger.name}{end}") for end in ("-wal", "-shm")]


def _take_its_place(part: Path, ledger: Path, now: int) -> Path | None:
    """The copy gets the ledger's name; where the one before it is now.

    There is a ledger under that name at every moment: a service that starts where there is none
    makes an empty one.
    """
    open_elsewhere = _open_elsewhere(ledger)
    if open_elsewhere is not None:
        raise open_elsewhere
    if not ledger.exists():
        give_name(part, ledger)
        return None
    aside = ledger.with_name(f"{ledger.name}.before-{_aside(now)}")
    os.link(ledger, aside)  # never over another one, which rename would be
    try:
        sync(part)
        sync(ledger.parent)
        part.replace(ledger)
    except BaseException:
        aside.unlink()
        raise
    sync(ledger.parent)
    return aside


def _give_owner(part: Path, folder: Path) -> None:
    """What root restores belongs to whoever has the folder, as the ledger before it did."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(part, owner.st_uid, owner.st_gid)


# --- PostgreSQL -------------------------------------------------------------------------------


def _postgres(wish: Wish, manifest: Manifest, engine: sa.Engine) -> str | None:
    with engine.connect() as guard:
        # A service that starts while there is no table waits for this lock.
        guard.execute(sa.select(sa.func.pg_advisory_lock(SCHEMA_LOCK)))
        guard.commit()
        strange = pgtools.strange_tables(guard)
        guard.rollback()
        if strange:
            raise Trouble(f"This database holds tables that are not the ledger's ({strange[0]}).")
        aside, home, old_epoch = _move_tables_aside(wish, engine)
        try:
            pgtools.load(engine, wish.source)
            with engine.connect() as connection:
                _check_counts(read_postgres(connection), manifest)
            with _database(wish.url) as database:
                database.write(lambda s: _finish(s, wish, manifest, old_epoch))
        except BaseException:
            _put_back(engine, aside, home)
            raise
        # The upgrade takes the same lock for itself.
        guard.execute(sa.select(sa.func.pg_advisory_unlock(SCHEMA_LOCK)))
        guard.commit()
    migrate.upgrade(engine)
    return None if aside is None else f"the schema {aside}"


def _move_tables_aside(wish: Wish, engine: sa.Engine) -> tuple[str | None, str, int]:
    """The schema with the tables that were there, the one that had them, and the old epoch."""
    with engine.connect() as connection:
        home = str(connection.scalar(sa.select(sa.func.current_schema())))
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None, home, 0
    _must_replace(wish)
    aside = f"{ASIDE}{_aside(wish.now)}"
    with _database(wish.url) as database:

        def work(session: Session) -> int:
            epoch = meter.acquire(session, now=wish.now)
            session.flush()
            connection = session.connection()
            connection.execute(sa.schema.CreateSchema(aside))
            _move(connection, home, aside)
            return epoch

        return aside, home, database.write(work)


def _put_back(engine: sa.Engine, aside: str | None, home: str) -> None:
    """The ledger is as it was before a restore that failed."""
    with engine.begin() as connection:
        _drop(connection, home)
        if aside is not None:
            _move(connection, aside, home)
            connection.execute(sa.schema.DropSchema(aside))


def _drop(connection: sa.Connection, home: str) -> None:
    """Remove what a restore has made whose content turned out to be wrong."""
    quote = connection.dialect.identifier_preparer.quote
    for table in _tables(connection, home):
        connection.execute(sa.text(f"DROP TABLE {quote(home)}.{quote(table)} CASCADE"))
    connection.execute(sa.text(f"DROP FUNCTION IF EXISTS {quote(home)}.gpuslice_immutable()"))


def _move(connection: sa.Connection, source: str, target: str) -> None:
    """All tables of the ledger, with what belongs to them, and the triggers' function."""
    quote = connection.dialect.identifier_preparer.quote
    for table in _tables(connection, source):
        connection.execute(
            sa.text(f"ALTER TABLE {quote(source)}.{quote(table)} SET SCHEMA {quote(target)}")
        )
    connection.execute(
        sa.text(f"ALTER FUNCTION {quote(source)}.gpuslice_immutable() SET SCHEMA {quote(target)}")
    )


def _tables(connection: sa.Connection, schema: str) -> list[str]:
    there = set(sa.inspect(connection).get_table_names(schema=schema))
    return sorted(there & pgtools.TABLES)
