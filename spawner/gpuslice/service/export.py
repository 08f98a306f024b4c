"""Rows as CSV and JSON, made as they are sent: any number of them, never all in memory."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Sequence

from pydantic import BaseModel

#: What a spreadsheet would take for a formula at the start of a cell (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


async def csv_lines(
    model: type[BaseModel], chunks: AsyncIterator[Sequence[BaseModel]]
) -> AsyncIterator[bytes]:
    """A header and a line for each row; RFC 4180, with cells that no spreadsheet executes."""
    yield _lines([list(model.model_fields)])
    async for chunk in chunks:
        yield _lines([[cell(value) for value in _values(row)] for row in chunk])


async def json_lines(chunks: AsyncIterator[Sequence[BaseModel]]) -> AsyncIterator[bytes]:
    """One JSON array of all rows."""
    first = True
    async for chunk in chunks:
        rows = ",\n".join(row.model_dump_json() for row in chunk)
        yield (("[" if first else ",\n") + rows).encode()
        first = False
    yield b"[]\n" if first else b"]\n"


def cell(value: object) -> str:
    """A value as text in a cell; text that looks like a formula gets a quote in front of it."""
    if value is None:
        return ""
    if isinstance(value, bool | int):
        return str(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _values(row: BaseModel) -> list[object]:
    return list(row.model_dump(mode="json").values())


def _lines(rows: list[list[str]]) -> bytes:
    made = io.StringIO()
    csv.writer(made).writerows(rows)
    return made.getvalue().encode()
