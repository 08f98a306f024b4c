"""Policies and verdicts as lines for people; the command line and the pages show the same words.

They work on what REST answers (plain values), so that the command line needs no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpuslice.units import to_datetime


def policy_lines(policy: Mapping[str, Any]) -> Iterator[str]:
    """A policy as lines, one limit each."""
    name = f" {policy['name']}" if policy["name"] else ""
    since = to_datetime(policy["since_us"]).strftime("%Y-%m-%d %H:%M UTC")
    yield f"{policy['kind']}{name}, version {policy['version']} since {since} by {policy['actor']}"
    yield from (f"  {line}" for line in document_lines(policy["document"]))


def document_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """What a policy says, one limit a line."""
    for part, title in (("each", "each"), ("total", "in total")):
        for text in limit_texts(document.get(part) or {}):
            yield f"{title}: {text}"
    for key in ("timezone", "price_list"):
        if document.get(key):
            yield f"{key.replace('_', ' ')}: {document[key]}"


def limit_texts(limits: Mapping[str, Any]) -> Iterator[str]:
    """The limits of one part of a policy, one each."""
    for field, value in limits.items():
        if value is None or value in ([], {}):
            continue
        words = field.replace("_", " ").replace("gpu", "GPU")
        if field in ("gpu_hours", "money"):
            yield from (f"{words} {one['at_most']} per {one['per']}" for one in value)
        elif isinstance(value, dict):
            yield from (f"slices of {name} {number}" for name, number in value.items())
        elif isinstance(value, list):
            yield f"{words} {', '.join(value) or 'none'}"
        else:
            yield f"{words} {value}"


def explanation_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Every limit of every chain of accounts, with its verdict."""
    for verdict in found["verdicts"]:
        group = f", charged to group {verdict['group']}" if verdict["group"] else ""
        yield f"{found['user']}, {found['slice']}{group}: {_said(verdict['ok'])}"
        for check in verdict["checks"]:
            yield f"  {_said(check['ok']):8} {check['text']}"
        if not verdict["checks"]:
            yield "  no limit holds"
    if found["refusal"]:
        yield f"Refused: {found['refusal']}"


def _said(ok: bool) -> str:
    return "admits" if ok else "REFUSES"
