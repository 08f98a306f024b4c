"""One door to the database: engines set up right for SQLite and PostgreSQL, and transactions.

SQLite: WAL, ``synchronous=FULL``, foreign keys, and ``BEGIN IMMEDIATE`` for writers, because the
driver's deferred BEGIN upgrades in mid-transaction and fails at once when another writer is there.
PostgreSQL: READ COMMITTED; the guarded updates of grant and settle do the rest. On both a lock that
another process holds is waited for so long and no longer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

T = TypeVar("T")

#: How long a writer waits for another process's lock before it gives up, seconds.
BUSY_TIMEOUT_S = 10.0
READERS = 4
RETRIES = 20
#: What a driver raises when the database cannot be used, as apart from being used wrongly.
#: PostgreSQL's for one that is read-only is an *internal* error.
UNUSABLE = (OperationalError, InternalError)


class LedgerError(Exception):
    """The database cannot be used now; the message says why and what to do."""


class Conflict(Exception):
    """A guarded update found that somebody else was first; the transaction is tried again."""


def make_engine(url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> sa.Engine:
    """An engine for ``url`` (``sqlite:///FILE`` or ``postgresql+psycopg://…``).

    Raises:
        LedgerError: the URL names another database, or SQLite in memory (it would be lost).
    """
    parsed = sa.engine.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise LedgerError("the ledger needs a file: sqlite:///PATH, not SQLite in memory")
        return _sqlite_engine(parsed, busy_timeout_s)
    if parsed.get_backend_name() == "postgresql":
        return _postgres_engine(parsed, busy_timeout_s)
    raise LedgerError(f"the ledger runs on sqlite or postgresql, not {parsed.get_backend_name()}")


def _postgres_engine(url: sa.URL, busy_timeout_s: float) -> sa.Engine:
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"), pool_size=READERS + 2, pool_pre_ping=True
    )

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        # In a transaction of its own, so that it outlasts whatever is rolled back later.
        connection.autocommit = True
        connection.execute(f"SET lock_timeout = {int(busy_timeout_s * 1000)}")
        connection.autocommit = False

    return engine


def _sqlite_engine(url: sa.URL, busy_timeout_s: float) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"timeout": busy_timeout_s})

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we emit BEGIN ourselves, below
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        # Rows that a REPLACE takes away ask the triggers, too.
        cursor.execute("PRAGMA recursive_triggers=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


class Database:
    """Transactions on one ledger: ``write`` and ``read``, and the same for an event loop.

    From the loop all writes go through one thread (they would only wait for each other in the
    database) and reads through a few, so a slow query never blocks the loop.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.url = url
        self.engine = make_engine(url, busy_timeout_s=busy_timeout_s)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._read_only = sessionmaker(
            self.engine.execution_options(write=False), expire_on_commit=False
        )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-reader")

    @property
    def name(self) -> str:
        """The database without its password, for messages."""
        return sa.engine.make_url(self.url).render_as_string(hide_password=True)

    def write(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in one transaction; a conflict or deadlock is tried again from the start.

        Raises:
            LedgerError: the database is locked, read-only, full or away. Nothing was written.
        """
        for attempt in range(RETRIES):
            try:
                with self._sessions.begin() as session:
                    return work(session)
            except Conflict as conflict:
                last: Exception = conflict
            except UNUSABLE as error:
                if not _may_be_tried_again(error):
                    raise unavailable(self.name, error) from error
                last = error
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise unavailable(self.name, error) from error
                if not _is_race(error):
                    raise
                last = error
            time.sleep(random.uniform(0, 0.005 * (attempt + 1)))  # noqa: S311 (no secret)
        raise LedgerError(f"gave up after {RETRIES} conflicts in {self.name}") from last

    def read(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` on one consistent snapshot, without taking the writer's lock.

        Raises:
            LedgerError: the database is away.
        """
        try:
            with self._read_only.begin() as session:
                if self.engine.dialect.name == "postgresql":
                    session.execute(
                        sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    )
                return work(session)
        except UNUSABLE as error:
            raise unavailable(self.name, error) from error

    async def awrite(self, work: Callable[[Session], T]) -> T:
        """`write` in the writer's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self.write, work)

    async def aread(self, work: Callable[[Session], T]) -> T:
        """`read` in a reader's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read, work)

    def close(self) -> None:
        """Wait for running work and close all connections."""
        self._writer.shutdown()
        self._readers.shutdown()
        self.engine.dispose()


def _may_be_tried_again(error: DBAPIError) -> bool:
    # 40P01 deadlock_detected, 40001 serialization_failure, 25P03: the server has not heard from us
    # for too long, on a machine with more to do than it can (PostgreSQL's documented codes).
    return getattr(error.orig, "sqlstate", None) in {"40P01", "40001", "25P03"}


def _is_race(error: DBAPIError) -> bool:
    """A unique key that another transaction took between our look and our insert."""
    if getattr(error.orig, "sqlstate", None) == "23505":
        return True
    # Of a table of facts the trigger that stands before its keys says it.
    return any(said in str(error.orig) for said in ("UNIQUE constraint failed", "REPLACE refused"))


#: What to do, by what SQLite says or by PostgreSQL's code.
_HINTS = {
    "database is locked": "another process holds its lock; find and end it",
    "55P03": "another process holds a lock on it; find and end it",
    "attempt to write a readonly database": "give the service's user write permission",
    "25006": "it takes no writes now; name the primary server, or let it take them again",
    "unable to open database file": "create its folder and check the permissions",
    "database or disk is full": "free some disk space",
    "53100": "free some disk space",
    "42501": "have its role own the database, or own its tables and have CREATE on the database",
}


def unavailable(name: str, error: DBAPIError) -> LedgerError:
    """What a driver's error means for a person: one sentence with what to do."""
    text = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "no answer"
    code = getattr(error.orig, "sqlstate", None)
    hint = _HINTS.get(code or text, "check that it runs and can be reached")
    return LedgerError(f"the ledger {name} cannot be used: {text}; {hint}")


def sqlite_url(path: Path) -> str:
    """The URL of a ledger file; a relative path is made absolute."""
    return f"sqlite:///{path.resolve()}"
