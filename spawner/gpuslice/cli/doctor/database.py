"""Checks of the ledger's database: reachable, durable, of the right version."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

from gpuslice.cli.doctor.findings import (
    Group,
    NotLooked,
    Verdict,
    Verdicts,
    note,
    ok,
    problem,
    unknown,
    warning,
)
from gpuslice.cli.doctor.machine import Machine, text_of
from gpuslice.cli.doctor.places import Place, look_at
from gpuslice.ledger import migrate
from gpuslice.ledger.database import LedgerError, make_engine
from gpuslice.service.databaseurl import database_url
from gpuslice.service.secretfiles import SecretFileError
from gpuslice.settings import SettingsError

_ANSWER_S = 5
#: The oldest PostgreSQL that the ledger may be kept in, as ``server_version_num`` states it.
_POSTGRES_FLOOR = 130000
#: Settings of PostgreSQL without which a committed bill may be gone after a crash.
_DURABLE = ("fsync", "full_page_writes", "synchronous_commit")


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What the database says; ``problem`` is why it says nothing."""

    kind: str
    #: Without a password.
    name: str
    problem: str | None = None
    #: The schema's revision; None for an empty database.
    revision: str | None = None
    head: str = ""
    known: frozenset[str] = frozenset()
    # SQLite
    file: Place | None = None
    journal: str | None = None
    # PostgreSQL
    server: int | None = None
    durable: Mapping[str, str] | None = None

    @property
    def fresh(self) -> bool:
        """Whether there is nothing yet."""
        return self.file is not None and self.file.kind == "missing"


def look(machine: Machine) -> DatabaseFacts:
    try:
        url = sa.make_url(database_url(machine.settings, machine.state.root))
    except (SettingsError, SecretFileError, SQLAlchemyError) as error:
        raise NotLooked(
            problem(f"The database cannot be named: {error}.", "Correct [database].")
        ) from None
    head = migrate.head()
    scripts = ScriptDirectory.from_config(migrate.config())
    known = frozenset(script.revision for script in scripts.walk_revisions())
    if url.get_backend_name() == "sqlite":
        return _look_at_sqlite(Path(url.database or ""), head, known)
    return _look_at_server(url, head, known)


def _look_at_sqlite(path: Path, head: str, known: frozenset[str]) -> DatabaseFacts:
    mounts = text_of(Path("/proc/self/mountinfo")) or ""
    place = look_at(str(path.absolute()), mounts=mounts)
    name = f"the SQLite file {place.path}"
    revision = journal = said = None
    if place.kind == "file":
        try:
            journal, revision = _ask_sqlite(path)
        except sqlite3.Error as error:
            said = str(error)
    elif place.kind != "missing":
        said = "it may not be looked at by this user" if place.kind == "hidden" else "it is no file"
    return DatabaseFacts("sqlite", name, said, revision, head, known, file=place, journal=journal)


def _ask_sqlite(path: Path) -> tuple[str, str | None]:
    # Read-only: looking must not make a file, nor wait for the service's writer.
    where = f"file:{quote(str(path.absolute()))}?mode=ro"
    connection = sqlite3.connect(where, uri=True, timeout=_ANSWER_S)
    try:
        journal = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
        table = connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = ?", (migrate.VERSION_TABLE,)
        ).fetchone()
        if table is None:
            return journal, None
        question = f"SELECT version_num FROM {migrate.VERSION_TABLE}"  # noqa: S608  (our own name)
        row = connection.execute(question).fetchone()
        return journal, None if row is None else str(row[0])
    finally:
        connection.close()


def _look_at_server(url: sa.URL, head: str, known: frozenset[str]) -> DatabaseFacts:
    name = f"the database {url.render_as_string(hide_password=True)}"
    try:
        engine = make_engine(
            url.update_query_dict({"connect_timeout": str(_ANSWER_S)}).render_as_string(
                hide_password=False
            )
        )
    except (LedgerError, ImportError) as error:
        return DatabaseFacts("postgresql", name, str(error), None, head, known)
    try:
        with engine.connect() as connection:
            server = int(connection.scalar(sa.text("SHOW server_version_num")) or 0)
            durable = {
                setting: str(connection.scalar(sa.text(f"SHOW {setting}"))) for setting in _DURABLE
            }
        return DatabaseFacts(
            "postgresql", name, None, migrate.current(engine), head, known,
            server=server, durable=durable,
        )  # fmt: skip
    except SQLAlchemyError as error:
        first = (str(getattr(error, "orig", None) or error).strip().splitlines() or [""])[0]
        return DatabaseFacts("postgresql", name, first[:300], None, head, known)
    finally:
        engine.dispose()


# --- the judgements -------------------------------------------------------------------------


def reachable(facts: DatabaseFacts) -> Verdict:
    if facts.file is not None and facts.file.kind == "hidden":
        return unknown(f"{facts.name} may not be looked at by this user.", "Run it again as root.")
    if facts.fresh:
        return note(
            f"There is no ledger yet: {facts.name}.", "The service makes it when it starts."
        )
    if facts.problem is not None:
        return problem(
            f"The ledger cannot be read, {facts.name}: {facts.problem}.".replace("..", "."),
            "Start it, or correct [database]; while it is away nothing is granted.",
        )
    return ok(f"The ledger is {facts.name}.")


def schema(facts: DatabaseFacts) -> Verdict | None:
    if facts.problem is not None or facts.fresh:
        return None
    if facts.revision == facts.head:
        return ok(f"The schema is of this version ({facts.head}).")
    if facts.revision is None or facts.revision in facts.known:
        return note(
            f"The schema is older than this gpuslice ({facts.revision or 'empty'}, not "
            f"{facts.head}).",
            "Make a backup; the service brings it up to date when it starts.",
        )
    return problem(
        f"The ledger was written by a newer gpuslice (its schema is {facts.revision}).",
        "Install that version, or restore a backup of this one's.",
    )


def books(facts: DatabaseFacts) -> Verdict | None:
    """What is in it is checked by another command, which takes longer."""
    if facts.problem is not None or facts.revision != facts.head:
        return None
    return note(
        "Whether the books are in order was not checked.", "Run: gpuslice ledger verify, daily."
    )


def server(facts: DatabaseFacts) -> Verdict | None:
    if facts.server is None:
        return None
    shown = f"PostgreSQL {facts.server // 10000}.{facts.server % 10000}"
    if facts.server < _POSTGRES_FLOOR:
        return problem(
            f"{shown} is too old.",
            f"Upgrade to PostgreSQL {_POSTGRES_FLOOR // 10000} or later.",
            "https://www.postgresql.org/support/versioning/",
        )
    return ok(f"{shown}.")


def durable(facts: DatabaseFacts) -> Verdict | None:
    """Whether what is committed is still there after a crash."""
    if facts.problem is not None or facts.fresh:
        return None
    if facts.kind == "postgresql":
        off = sorted(key for key, value in (facts.durable or {}).items() if value == "off")
        if off:
            return problem(
                f"PostgreSQL may lose what it has committed when it crashes ({', '.join(off)} is "
                "off): bills and leases with it.",
                "Set it to on in postgresql.conf.",
                "https://www.postgresql.org/docs/current/runtime-config-wal.html",
            )
        return ok("PostgreSQL keeps what it has committed.")
    if facts.file is not None and facts.file.mount is not None and facts.file.mount.network:
        return problem(
            f"{facts.file.path} is on the network ({facts.file.mount.kind}), where SQLite's locks "
            "do not hold: the ledger may be destroyed.",
            "Move it to a local disk, or use PostgreSQL.",
            "https://www.sqlite.org/wal.html",
        )
    if facts.journal != "wal":
        return warning(
            f"{facts.name} keeps its journal as {facts.journal!r}, not as 'wal', which the service "
            "sets.",
            "Look for another program that writes to it; the service sets it again at its start.",
            "https://www.sqlite.org/wal.html",
        )
    return ok("SQLite writes ahead, on a local disk.")


def permissions(facts: DatabaseFacts) -> Verdict | None:
    place = facts.file
    if place is None or place.kind != "file":
        return None
    if place.others_write or place.weak:
        return problem(
            f"Others can change or replace {facts.name} (mode {place.shown_mode}).",
            f"Run: chmod 600 {place.path}, and chmod go-w on the folders above it.",
        )
    if place.others_read:
        return warning(
            f"Others can read {facts.name} (mode {place.shown_mode}): who leased what, and paid.",
            f"Run: chmod 600 {place.path}.",
        )
    return ok("Only its owner reads the ledger.")


CHECKS: Mapping[str, Callable[[DatabaseFacts], Verdicts]] = {
    "reachable": reachable,
    "server": server,
    "schema": schema,
    "durable": durable,
    "permissions": permissions,
    "books": books,
}


def group(machine: Machine) -> Group[DatabaseFacts]:
    return Group("database", lambda: look(machine), CHECKS)
