"""Fixtures of the service's tests."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The helpers next to this file; with importlib mode pytest does not put them on the path.
sys.path.insert(0, str(Path(__file__).parent))

from service_world import HubWorld, ServiceThread, closed_port, make_config

from ledgerworld import sqlite_ledger
from serviceledger import ServiceLedger


@pytest.fixture
def lonely() -> Iterator[ServiceThread]:
    """A service whose hub is down."""
    with ServiceThread(make_config(closed_port(), "/@/space%20word/")) as service:
        yield service


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubWorld]:
    """A real hub, a real proxy, and the service."""
    with HubWorld(tmp_path_factory.mktemp("hub")) as world:
        yield world


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceLedger]:
    """The service on a ledger of its own, on each database."""
    if request.param == "sqlite":
        url = sqlite_ledger(tmp_path / "ledger.sqlite")
    else:
        url = request.getfixturevalue("postgres_database")()
    with contextlib.closing(ServiceLedger(url)) as made:
        yield made
