"""Every test of the ledger that asks for ``database`` runs on SQLite and on PostgreSQL.

What is one's alone says so: ``parametrize("database_url", ["sqlite"], indirect=True)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuslice.ledger import migrate
from gpuslice.ledger.database import Database, sqlite_url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "ledger.sqlite")
    url: str = request.getfixturevalue("postgres_database")()
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty ledger at the newest revision."""
    made = Database(database_url)
    migrate.upgrade(made.engine)
    yield made
    made.close()
