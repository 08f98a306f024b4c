"""Triggers that refuse to change facts: entries, segments and prices are written once.

A correction is a new entry that points at the old one. The triggers also stop our own code, an
administrator's SQL shell and a careless migration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_POSTGRES_FUNCTION = """
CREATE FUNCTION gpuslice_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP;
END $$
"""


def create(dialect: str, tables: Sequence[str], *, first: bool = True) -> list[str]:
    """Statements that make ``tables`` append-only on ``dialect``.

    ``first`` False: a migration before this one has done so for others already.
    """
    if dialect == "postgresql":
        return [_POSTGRES_FUNCTION] * first + [
            f"CREATE TRIGGER {table}_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION gpuslice_immutable()"
            for table in tables
        ]
    return [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only: {verb} refused'); END"
        for table in tables
        for verb in ("UPDATE", "DELETE")
    ]


def guard_keys(dialect: str, keys: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """Statements that refuse a row whose key is there already, for the ``keys`` of each table.

    In SQLite ``REPLACE`` deletes the old row without asking a trigger that refuses deletes, so
    the new one is refused before. PostgreSQL has no such statement.
    """
    if dialect == "postgresql":
        return []
    # ruff: noqa: S608  (tables and columns are named by migrations)
    return [
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {_same(of_table)}) "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only: REPLACE refused'); END"
        for table, of_table in keys.items()
    ]


def _same(keys: Sequence[Sequence[str]]) -> str:
    """Whether a row is one that the new row would take the place of."""
    return " OR ".join(
        "(" + " AND ".join(f"{column} = NEW.{column}" for column in key) + ")" for key in keys
    )


def drop(dialect: str, tables: Sequence[str], *, first: bool = True) -> list[str]:
    """The inverse of `create`."""
    if dialect == "postgresql":
        return [f"DROP TRIGGER {table}_immutable ON {table}" for table in tables] + [
            "DROP FUNCTION gpuslice_immutable()"
        ] * first
    return [f"DROP TRIGGER {table}_no_{verb}" for table in tables for verb in ("update", "delete")]
