"""``gpuslice backup``: a complete copy of the ledger while everything runs."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from gpuslice.cli import pgtools
from gpuslice.cli.backupfile import (
    COUNTED,
    Manifest,
    give_name,
    make_private,
    manifest_of,
    sha256,
    write_private,
)
from gpuslice.cli.trouble import Trouble
from gpuslice.ledger.database import LedgerError, make_engine, unavailable
from gpuslice.ledger.migrate import VERSION_TABLE
from gpuslice.units import now_us

#: How long a copy waits for a lock on a SQLite ledger.
_BUSY_S = 30.0


def backup(url: str, target: Path, *, clock: Callable[[], int] = now_us) -> Manifest:
    """Copy the ledger at ``url`` to the new file ``target``, with its manifest beside it.

    Raises:
        Trouble: it cannot be read or written, or the copy is not sound; nothing is left behind.
    """
    target = target.absolute()
    for path in (target, manifest_of(target)):
        if path.exists():
            raise Trouble(f"{path} is there already; a backup never writes over another one.")
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        make_private(part)
        try:
            manifest = _copy(url, part, clock())
            give_name(part, target)
            try:
                write_private(manifest_of(target), manifest.model_dump_json(indent=2) + "\n")
            except BaseException:
                target.unlink()
                raise
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise Trouble(f"Cannot write {target}: {error.strerror or error}.") from None
    except LedgerError as error:
        raise Trouble(str(error)) from None
    return manifest


def _copy(url: str, part: Path, taken_us: int) -> Manifest:
    engine = make_engine(url)
    try:
        kind: Literal["sqlite", "postgresql"]
        if engine.dialect.name == "sqlite":
            kind = "sqlite"
            counts, revision = _copy_sqlite(Path(engine.url.database or ""), part)
        else:
            kind = "postgresql"
            counts, revision = _copy_postgres(engine, part)
    finally:
        engine.dispose()
    return Manifest(
        database=kind, revision=revision, taken_us=taken_us, counts=counts, sha256=sha256(part)
    )


def _copy_sqlite(source: Path, part: Path) -> tuple[dict[str, int], str]:
    if not source.is_file():
        raise Trouble(f"There is no ledger at {source}.")
    try:
        with (
            closing(
                sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_S)
            ) as ledger,
            closing(sqlite3.connect(part)) as copy,
        ):
            # All of it in one step: a reader does not hold up a writer, but a copy in many steps
            # begins anew whenever somebody writes.
            ledger.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
        return read_sqlite(part)
    except sqlite3.Error as error:
        raise Trouble(f"The ledger {source} cannot be copied: {error}.") from None


def read_sqlite(path: Path) -> tuple[dict[str, int], str]:
    """Rows of each counted table, and the revision, of a copy that is sound.

    Raises:
        Trouble: it is damaged, or no ledger.
        sqlite3.Error: it is no database.
    """
    with closing(sqlite3.connect(path)) as copy:
        found = [str(row[0]) for row in copy.execute("PRAGMA integrity_check")]
        if found != ["ok"]:
            raise Trouble(f"{path} is damaged: {found[0]}.")
        tables = {row[0] for row in copy.execute("SELECT name FROM sqlite_master")}
        if not {VERSION_TABLE, *COUNTED} <= tables:
            raise Trouble("This database is not a gpuslice ledger: it lacks its tables.")
        counts = {
            name: int(copy.execute(f"SELECT count(*) FROM {name}").fetchone()[0])  # noqa: S608
            for name in COUNTED
        }
        revision = copy.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()[0]  # noqa: S608
        return counts, str(revision)


def _copy_postgres(engine: sa.Engine, part: Path) -> tuple[dict[str, int], str]:
    try:
        with engine.connect() as plain:
            connection = plain.execution_options(isolation_level="REPEATABLE READ")
            if not sa.inspect(connection).has_table(VERSION_TABLE):
                raise Trouble("This database is not a gpuslice ledger: it lacks its tables.")
            strange = pgtools.strange_tables(connection)
            if strange:
                raise Trouble(
                    f"This database holds tables that are not the ledger's ({strange[0]}): save "
                    "it with pg_dump, or give the ledger a database of its own."
                )
            found = read_postgres(connection)
            # The dump and the counts see the same moment.
            snapshot = connection.scalar(sa.select(sa.func.pg_export_snapshot()))
            pgtools.dump(engine, str(snapshot), part)
            return found
    except OperationalError as error:
        raise unavailable(engine.url.render_as_string(hide_password=True), error) from error


def read_postgres(connection: sa.Connection) -> tuple[dict[str, int], str]:
    """Rows of each counted table, and the revision."""
    counts = {
        name: int(connection.scalar(sa.select(sa.func.count()).select_from(sa.table(name))) or 0)
        for name in COUNTED
    }
    version = sa.table(VERSION_TABLE, sa.column("version_num", sa.String))
    return counts, str(connection.scalar(sa.select(version.c.version_num)))
