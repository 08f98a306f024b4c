"""PostgreSQL's own programs for backups, run on a ledger's database."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import sqlalchemy as sa

from gpuslice.cli.trouble import Trouble
from gpuslice.ledger.migrate import ASIDE, VERSION_TABLE
from gpuslice.ledger.tables import Base

#: Every table of the ledger, of this revision and of those before it.
TABLES = frozenset({*Base.metadata.tables, VERSION_TABLE, "quota_policy"})


def dump(engine: sa.Engine, snapshot: str, target: Path) -> None:
    """Write what a transaction's exported snapshot sees to a file.

    Raises:
        Trouble: there is no pg_dump, or it failed, with what it says.
    """
    _run(
        engine, "pg_dump", "--format=custom", "--no-owner", "--no-privileges",
        f"--snapshot={snapshot}", f"--exclude-schema={ASIDE}*", f"--file={target}",
    )  # fmt: skip


def load(engine: sa.Engine, source: Path) -> None:
    """Write all that a dump holds into a database that has none of it, or nothing.

    Raises:
        Trouble: there is no pg_restore, or it failed, with what it says.
    """
    _run(
        engine, "pg_restore", "--exit-on-error", "--single-transaction", "--no-owner",
        "--no-privileges", str(source),
    )  # fmt: skip


def strange_tables(connection: sa.Connection) -> list[str]:
    """Tables in this database that are not the ledger's."""
    rows = connection.execute(
        sa.text(
            "SELECT schemaname, tablename FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
    )
    return sorted(
        f"{schema}.{table}"
        for schema, table in rows
        if table not in TABLES and not schema.startswith(ASIDE)
    )


def _run(engine: sa.Engine, program: str, *arguments: str) -> None:
    from psycopg.conninfo import make_conninfo

    if shutil.which(program) is None:
        raise Trouble(
            f"This needs PostgreSQL's {program}: install the package postgresql-client, of the "
            "server's version or a newer one."
        )
    _, where = engine.dialect.create_connect_args(engine.url)
    known = {name: value for name, value in where.items() if name != "context"}
    password = known.pop("password", None)
    # In the environment, because everybody can read a command line.
    environment = os.environ | ({"PGPASSWORD": str(password)} if password else {})
    done = subprocess.run(
        [program, *arguments, f"--dbname={make_conninfo(**known)}"],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
        raise Trouble(f"{program} failed: {said}")
