"""A list of people as CSV: bytes in, a complete plan out, or every mistake with its line.

``name`` is the only column that must be there; ``group`` is checked in the hub; the limits are
written as in ``gpuslice quota set``; ``credit`` is an amount of money. Several values in one cell
are separated by ``;``. A column that is there decides: an empty cell of a limit means that the
user has none of their own. What has no column stays as it is.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gpuslice.broker.peopleviews import GroupName, HubName, ImportRow
from gpuslice.cli.quotatext import changed_document
from gpuslice.cli.trouble import Trouble
from gpuslice.quotas.documents import EachLimits
from gpuslice.units import UnitError, parse_money

MAX_BYTES = 8 << 20
MAX_PEOPLE = 20_000
MAX_CELL = 500
#: Columns of limits, with their fields in a policy; those in `_LISTS` may hold several.
LIMITS = {
    "slices": "slices",
    "types": "slice_types",
    "gpu_hours": "gpu_hours",
    "money": "money",
    "session_hours": "session_hours",
    "prepaid": "prepaid",
    "priority": "priority",
}
_LISTS = ("gpu_hours", "money")
COLUMNS = ("name", "group", *LIMITS, "credit")
_YES_NO = {"yes": True, "true": True, "no": False, "false": False}
_NAMES: dict[str, TypeAdapter[str]] = {
    "name": TypeAdapter(HubName),
    "group": TypeAdapter(GroupName),
}


@dataclass(frozen=True)
class Person:
    """One line: what the service is sent for it, and where it stands."""

    line: int
    row: ImportRow


class BadList(Exception):
    """A list that cannot be used; ``problems`` are all that was found, in its order."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Bad(Exception):
    """One cell that says nothing that can be done."""


def read_people(raw: bytes, *, keep_case: bool = False) -> list[Person]:
    """Everybody of a list, in its order.

    Args:
        keep_case: Take names with capital letters; hubs write them small unless told otherwise.

    Raises:
        BadList: anything in it is wrong; nothing of it should be done then.
    """
    lines = _lines(_text(raw))
    header_line, header = next(lines, (1, []))
    columns = _header(header, header_line)
    people: list[Person] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    try:
        for line, cells in lines:
            try:
                person = _person(line, dict(zip(columns, _cells(cells, columns), strict=True)),
                                 keep_case)  # fmt: skip
            except _Bad as bad:
                problems.append(f"line {line}: {bad}")
                continue
            first = seen.setdefault(person.row.user, line)
            if first != line:
                problems.append(f"line {line}: {person.row.user} is on line {first} already")
            people.append(person)
            if len(people) > MAX_PEOPLE:
                raise BadList(f"there are more than {MAX_PEOPLE} people; import them in parts")
    except BadList as bad:
        problems += bad.problems
    if problems:
        raise BadList(*problems)
    if not people:
        raise BadList("there is nobody in it")
    return people


def _text(raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        raise BadList(f"it is larger than {MAX_BYTES >> 20} MiB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadList(f"line {line}: this is not UTF-8 text; save it as CSV UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BadList(f"line {line}: there is a null character; save it as CSV UTF-8")
    return text


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with the number of the line on which each begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadList(f"line {line}: this is not CSV ({error})") from None
        if any(cell.strip() for cell in cells):
            yield line, cells


def _header(cells: list[str], line: int) -> list[str]:
    columns = [cell.strip().lower() for cell in cells]
    if "name" not in columns:
        hint = " (it seems to be separated by semicolons)" if ";" in "".join(cells) else ""
        raise BadList(
            f"line {line}: the first line has to name the columns, and one of them 'name'; there "
            f"are {', '.join(COLUMNS)}, separated by commas{hint}"
        )
    problems = [
        f"line {line}: there is no column {column[:40]!r}; there are {', '.join(COLUMNS)}"
        for column in columns
        if column not in COLUMNS
    ]
    problems += [
        f"line {line}: the column {column!r} is there twice"
        for column in dict.fromkeys(columns)
        if columns.count(column) > 1 and column in COLUMNS
    ]
    if problems:
        raise BadList(*problems)
    return columns


def _cells(cells: list[str], columns: list[str]) -> list[str]:
    if len(cells) != len(columns):
        raise _Bad(
            f"it has {len(cells)} cells, the first line {len(columns)}; put a cell with a comma "
            "in double quotes"
        )
    for column, cell in zip(columns, cells, strict=True):
        if len(cell) > MAX_CELL:
            raise _Bad(f"{column}: longer than {MAX_CELL} characters")
    return [cell.strip() for cell in cells]


def _person(line: int, cells: dict[str, str], keep_case: bool) -> Person:
    name = _hub_name("name", cells["name"])
    if not keep_case and name != name.lower():
        raise _Bad(
            f"name: the hub writes names small: {name.lower()!r} (or give --keep-case if yours "
            "does not)"
        )
    groups = list(dict.fromkeys(_hub_name("group", one) for one in _several(cells.get("group"))))
    each: dict[str, Any] = {}
    for column, field in LIMITS.items():
        if column in cells:
            each[field] = _limit(column, field, cells[column])
    try:
        row = ImportRow.model_validate(
            {"user": name, "groups": groups, "each": each,
             "credit_u": _credit(cells.get("credit", ""))}
        )  # fmt: skip
    except ValidationError as error:
        raise _Bad(_first(error, "")) from None
    return Person(line, row)


def _hub_name(column: str, text: str) -> str:
    if not text:
        raise _Bad(f"{column}: is empty")
    try:
        return _NAMES[column].validate_python(text)
    except ValidationError as error:
        raise _Bad(_first(error, column)) from None


def _several(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(";") if part.strip()]


def _some(column: str, text: str) -> list[str]:
    """The values in a cell that is not empty: no value at all would not be what it looks like."""
    found = _several(text)
    if not found:
        raise _Bad(f"{column}: holds only separators")
    return found


def _limit(column: str, field: str, text: str) -> Any:
    """A limit as the service takes it; an empty cell: none of the user's own."""
    if not text:
        return [] if column in _LISTS else None
    said: Any = text
    if column in _LISTS:
        said = tuple(_some(column, text))
    elif column == "types" and text != "unlimited":
        said = ",".join(_some(column, text.replace(",", ";")))
    elif column == "prepaid":
        if text.lower() not in _YES_NO:
            raise _Bad(f"prepaid: {text[:40]!r} is neither yes nor no")
        said = _YES_NO[text.lower()]
    try:
        value = changed_document({}, {column: said})["each"][field]
        EachLimits.model_validate({field: value})
    except Trouble as trouble:
        option = f"--{column.replace('_', '-')} "
        raise _Bad(f"{column}: {str(trouble).removeprefix(option)}") from None
    except ValidationError as error:
        raise _Bad(_first(error, column)) from None
    return value


def _credit(text: str) -> int | None:
    if not text:
        return None
    try:
        amount_u = parse_money(text)
    except UnitError as error:
        raise _Bad(f"credit: {error}") from None
    if not amount_u:
        raise _Bad("credit: give more than nothing, or leave the cell empty")
    return amount_u


def _first(error: ValidationError, column: str) -> str:
    """The first of pydantic's errors in one sentence, with the column that it is about."""
    one = error.errors(include_url=False, include_input=False)[0]
    where = column or ".".join(str(part) for part in one["loc"])
    return f"{where}: {one['msg'].removeprefix('Value error, ')}"[:300]
