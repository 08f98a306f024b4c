"""Exports of any size: no spreadsheet runs a cell, and no process holds the rows."""

from __future__ import annotations

import asyncio
import csv
import io
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from test_run import Platform

from gpuslice.broker.moneyviews import EntryView
from gpuslice.ledger.database import sqlite_url
from gpuslice.service.export import cell, csv_lines, json_lines
from gpuslice.units import HOUR_US
from ledgerworld import World
from quotaworld import finish, passes, spawn

MIB = 1 << 20
#: More than these would be held if rows were, or their text was.
ROWS, MOST = 60_000, 8 * MIB


class Row(BaseModel):
    name: str
    amount: int | None


@given(st.lists(st.tuples(st.text(), st.none() | st.integers()), max_size=5))
def test_what_is_read_again_is_what_was_written_and_never_a_formula(
    rows: list[tuple[str, int | None]],
) -> None:
    async def chunks() -> AsyncIterator[Sequence[Row]]:
        yield [Row.model_construct(name=name, amount=amount) for name, amount in rows]

    async def text() -> str:
        return "".join([piece.decode() async for piece in csv_lines(Row, chunks())])

    if any(0xD800 <= ord(char) < 0xE000 for name, _ in rows for char in name):
        return  # no text that JSON or a database could hold
    head, *read = csv.reader(io.StringIO(asyncio.run(text()), newline=""))
    assert head == ["name", "amount"]
    assert len(read) == len(rows)
    for (name, amount), (first, second) in zip(rows, read, strict=True):
        assert first.removeprefix("'") == name.removeprefix("'")
        assert not first.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert second == ("" if amount is None else str(amount))


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_a_formula_gets_a_quote(text: str) -> None:
    assert cell(text) == f"'{text}"


def _many() -> AsyncIterator[Sequence[EntryView]]:
    async def chunks() -> AsyncIterator[Sequence[EntryView]]:
        for start in range(0, ROWS, 2_000):
            yield [
                EntryView(
                    entry_id=start + n, at_us=1, kind="usage", debit="user:" + "a" * 40,
                    credit="platform:revenue", amount_u=n, lease_id=None, slice="quarter",
                    from_us=1, til_us=2, credit_id=None, corrects=None, actor="meter",
                    memo="b" * 100,
                )
                for n in range(2_000)
            ]  # fmt: skip

    return chunks()


@pytest.mark.parametrize("form", ["csv", "json"])
def test_rows_are_not_collected(form: str) -> None:
    async def consume() -> int:
        pieces = csv_lines(EntryView, _many()) if form == "csv" else json_lines(_many())
        return sum([len(piece) async for piece in pieces])

    tracemalloc.start()
    try:
        size = asyncio.run(consume())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > MOST
    assert peak < MOST


# --- a million ----------------------------------------------------------------------------------

MILLION = 1_000_000


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    made = Platform(state)
    yield made
    made.close()


def _fill(path: Path) -> None:
    """A lease with so many segments, each paid by an entry that would like to be a formula."""
    world = World(sqlite_url(path))
    lease_id = spawn(world, "ada", "quarter", [])
    passes(world, HOUR_US, HOUR_US)
    world.stop(lease_id)
    finish(world, lease_id)
    with world.database.engine.begin() as connection:
        connection.execute(
            sa.text(
                """
                INSERT INTO segment (id, lease_id, from_us, til_us, price_id, payer, amount_u,
                                     created_us)
                WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :many)
                SELECT 1000 + i, lease_id, i, i + 1, price_id, payer, 1, created_us
                FROM n, (SELECT * FROM segment ORDER BY id LIMIT 1)
                """
            ),
            {"many": MILLION},
        )
        connection.execute(
            sa.text(
                """
                INSERT INTO entry (id, idem_key, kind, debit_id, credit_id, amount_u, segment_id,
                                   leg, actor, memo, created_us)
                SELECT s.id, 'made:' || s.id, e.kind, e.debit_id, e.credit_id, 1, s.id, 0, e.actor,
                       '=cmd()', e.created_us
                FROM segment s, (SELECT * FROM entry ORDER BY id LIMIT 1) e WHERE s.id > 1000
                """
            )
        )
        # It was this process that metered so far.
        connection.execute(sa.text("DELETE FROM meter"))
    world.close()


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kibibytes) * 1024


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_million_entries_are_streamed_in_little_memory(platform: Platform) -> None:
    _fill(platform.state / "ledger.sqlite")
    service = platform.start_service()
    token = (platform.state / "secrets" / "operator_token").read_text().strip()
    formulas = lines = 0
    url, headers = f"{platform.url}api/admin/entries/export", {"Authorization": f"token {token}"}
    with httpx.stream("GET", url, headers=headers, timeout=120, trust_env=False) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            lines += 1
            formulas += ",=cmd()" in line
    assert lines > MILLION
    assert formulas == 0
    peak = _peak_bytes(service.pid)
    assert peak < 200 * 1000 * 1000, f"{peak / 1e6:.0f} MB"
