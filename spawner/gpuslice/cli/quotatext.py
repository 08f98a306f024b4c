"""Policies between the command line's options and the REST's documents."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from gpuslice.cli.trouble import Trouble
from gpuslice.quotas.documents import UNLIMITED

Document = dict[str, Any]

#: Options as their fields in a document: (part, field).
_FIELDS = {
    "slices": ("each", "slices"),
    "slices_of": ("each", "slices_by_type"),
    "types": ("each", "slice_types"),
    "gpu_hours": ("each", "gpu_hours"),
    "money": ("each", "money"),
    "session_hours": ("each", "session_hours"),
    "prepaid": ("each", "prepaid"),
    "priority": ("each", "priority"),
    "hold": ("each", "hold"),
    "when_lowered": ("each", "when_lowered"),
    "total_slices": ("total", "slices"),
    "total_slices_of": ("total", "slices_by_type"),
    "total_gpu_hours": ("total", "gpu_hours"),
    "total_money": ("total", "money"),
    "total_prepaid": ("total", "prepaid"),
    "timezone": ("", "timezone"),
    "price_list": ("", "price_list"),
}


def policy_path(kind: str, name: str | None) -> str:
    """Where a policy is over REST.

    Raises:
        Trouble: a name too many or too few.
    """
    if kind == "everyone":
        if name is not None:
            raise Trouble("'everyone' needs no name.")
        return "api/admin/policies/everyone"
    if not name:
        raise Trouble(f"Name the {kind}: gpuslice quota … {kind} NAME")
    return f"api/admin/policies/{kind}s/{quote(name, safe='')}"


def changed_document(before: Document, said: Mapping[str, Any]) -> Document:
    """The document with what the options say; a whole one from a file instead.

    Raises:
        Trouble: an option's text cannot be read, there is nothing to change, or there is an option
            beside a file.
    """
    if said.get("source") is not None:
        if any(said.get(option) not in (None, ()) for option in (*_FIELDS, "clear")):
            raise Trouble("--file is the whole policy: give no other option beside it.")
        return _from_file(said["source"].read())
    parts: dict[str, Document] = {
        "": {key: value for key, value in before.items() if key not in ("each", "total")},
        "each": dict(before.get("each") or {}),
        "total": dict(before.get("total") or {}),
    }
    touched = False
    for option, (part, field) in _FIELDS.items():
        value = said.get(option)
        if value is None or value == ():
            continue
        parts[part][field] = _value(option, value)
        touched = True
    for option in said.get("clear") or ():
        part, field = _field(option)
        parts[part].pop(field, None)
        touched = True
    if not touched:
        raise Trouble("Nothing to change: give an option, for example --slices 1.")
    made = {key: value for key, value in parts[""].items() if value is not None}
    made["each"] = parts["each"]
    if parts["total"]:
        made["total"] = parts["total"]
    return made


def _field(option: str) -> tuple[str, str]:
    known = option.strip().lstrip("-").replace("-", "_")
    if known not in _FIELDS:
        names = ", ".join(name.replace("_", "-") for name in _FIELDS)
        raise Trouble(f"--clear {option}: there is no such limit; there are {names}.")
    return _FIELDS[known]


def _value(option: str, value: Any) -> Any:
    match option.removeprefix("total_"):
        case "slices":
            return _count(value)
        case "slices_of":
            return {name: _count(number) for name, number in map(_pair, value)}
        case "types":
            return UNLIMITED if value == UNLIMITED else [name for name in value.split(",") if name]
        case "gpu_hours" | "money":
            return [_per(option, text) for text in value]
    return value


def _count(text: str) -> int | str:
    if text == UNLIMITED:
        return UNLIMITED
    if not text.isascii() or not text.isdigit():
        raise Trouble(f"{text!r} is not a number of slices, nor 'unlimited'.")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    name, equals, number = text.partition("=")
    if not equals or not name:
        raise Trouble(f"{text!r}: write TYPE=N, for example quarter=1.")
    return name.strip(), number.strip()


def _per(option: str, text: str) -> Document:
    amount, slash, period = text.partition("/")
    if not slash or not amount.strip():
        raise Trouble(
            f"--{option.replace('_', '-')} {text!r}: write N/PERIOD, for example 20/week."
        )
    return {"at_most": amount.strip(), "per": period.strip()}


def _from_file(raw: bytes) -> Document:
    try:
        text = raw.decode()
        found = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise Trouble(f"The file is neither JSON nor TOML: {error}") from None
    if not isinstance(found, dict):
        raise Trouble("The file holds no policy: it has to be one table.")
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Trouble(f"The file holds what no policy can say: {error}") from None
    return found
