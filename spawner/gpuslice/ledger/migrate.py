"""Brings a ledger's schema to this version with Alembic, from the migrations packaged here."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from gpuslice.ledger.database import UNUSABLE, LedgerError, unavailable

#: Our own, so that a hub that shares the server never mistakes our head for its own.
VERSION_TABLE = "gpuslice_version"
#: The advisory lock of PostgreSQL under which the schema is made, changed or restored.
SCHEMA_LOCK = 0x6770_7573_6C69_6365
#: How the schema's name begins into which a restore on PostgreSQL moves the ledger that was there.
ASIDE = "gpuslice_before_"


def config() -> Config:
    """Alembic's configuration, without an ini file."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return made


def head() -> str:
    """The revision this code needs."""
    revision = ScriptDirectory.from_config(config()).get_current_head()
    if revision is None:
        raise LedgerError("this installation has no ledger migrations; reinstall gpuslice")
    return revision


def current(engine: sa.Engine) -> str | None:
    """The revision a database is at, None for an empty one."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()


def current_revision(engine: sa.Engine) -> str | None:
    """`current`, with what a database can do wrong in words.

    Raises:
        LedgerError: the database cannot be reached or read.
    """
    try:
        return current(engine)
    except UNUSABLE as error:
        raise unavailable(engine.url.render_as_string(hide_password=True), error) from error


def upgrade(engine: sa.Engine, revision: str = "head") -> None:
    """Create or upgrade the schema, in one transaction; nothing to do at the head.

    On PostgreSQL of two that do so at once the second waits, and finds it done.

    Raises:
        LedgerError: the database cannot be written, is of a newer gpuslice, or was left without a
            ledger by a restore that was killed.
    """
    made = config()
    try:
        if revision == "head" and current(engine) == head():
            return
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                # However long the other one needs.
                connection.execute(sa.text("SET LOCAL lock_timeout = 0"))
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
                _refuse_beside_one_moved_aside(connection)
            made.attributes["connection"] = connection
            command.upgrade(made, revision)
    except UNUSABLE as error:
        raise unavailable(engine.url.render_as_string(hide_password=True), error) from error
    except CommandError as error:
        raise LedgerError(
            f"the ledger {engine.url.render_as_string(hide_password=True)} was written by another "
            f"version of gpuslice ({error}); install that version or restore a backup"
        ) from error


def _refuse_beside_one_moved_aside(connection: sa.Connection) -> None:
    """A ledger that a killed restore has moved away is not gone; an empty one would hide it."""
    look = sa.inspect(connection)
    if look.has_table(VERSION_TABLE):
        return
    aside = [
        name
        for name in look.get_schema_names()
        if name.startswith(ASIDE) and look.has_table(VERSION_TABLE, schema=name)
    ]
    if aside:
        raise LedgerError(
            f"a restore did not end, and the ledger that was here is in the schema {max(aside)}: "
            "run gpuslice restore again, or put that one back as the page on backups says"
        )
