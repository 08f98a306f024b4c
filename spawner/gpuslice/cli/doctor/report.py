"""Findings as text for people, as JSON for programs, and as an exit code for scripts."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import gpuslice
from gpuslice.cli.doctor.findings import Finding, Level

#: Changes when a program that reads the JSON would have to.
SCHEMA = 1

#: Nothing is wrong; something is; something could not be looked at (and nothing else is wrong).
EXIT_FINE, EXIT_PROBLEMS, EXIT_UNKNOWN = 0, 1, 2

_SHOWN = (Level.PROBLEM, Level.UNKNOWN, Level.WARNING, Level.NOTE)
_COLOURS = {Level.PROBLEM: "31;1", Level.UNKNOWN: "35", Level.WARNING: "33", Level.NOTE: "36"}
_INDENT = " " * 10


def exit_code(findings: Sequence[Finding]) -> int:
    """0, 1 or 2; warnings and notes do not count."""
    levels = {finding.level for finding in findings}
    if Level.PROBLEM in levels:
        return EXIT_PROBLEMS
    return EXIT_UNKNOWN if Level.UNKNOWN in levels else EXIT_FINE


def as_json(findings: Sequence[Finding], engine: str) -> str:
    """The report as one JSON object; its keys are documented and only ever added to."""
    counts = Counter(finding.level.value for finding in findings)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "gpuslice": gpuslice.__version__,
        "engine": engine,
        "exit_code": exit_code(findings),
        "counts": {level.value: counts[level.value] for level in Level},
        "findings": [
            {
                "id": finding.id,
                "group": finding.group,
                "level": finding.level.value,
                "what": finding.verdict.what,
                "do": finding.verdict.do,
                "references": list(finding.verdict.references),
            }
            for finding in findings
        ],
    }
    return json.dumps(report, indent=2, ensure_ascii=False)


def as_text(
    findings: Sequence[Finding], titles: Mapping[str, str], *, colours: bool, width: int = 0
) -> str:
    """The report for a person: problems first, and what is fine in one line per group."""
    width = width or min(100, shutil.get_terminal_size((100, 24)).columns)
    lines: list[str] = []
    for level in _SHOWN:
        of_level = [finding for finding in findings if finding.level is level]
        for finding in of_level:
            lines += [*_finding_lines(finding, colours, width), ""]
    lines += _fine_lines(findings, titles, width)
    return "\n".join([*lines, "", _summary(findings), ""])


def _finding_lines(finding: Finding, colours: bool, width: int) -> list[str]:
    verdict = finding.verdict
    label = finding.level.value.upper() if finding.level is Level.PROBLEM else finding.level.value
    head = f"{label:<10}"
    if colours:
        head = f"\033[{_COLOURS[finding.level]}m{head}\033[0m"
    refers = f" ({', '.join(verdict.references)})" if verdict.references else ""
    return [
        f"{head}{finding.id}",
        *_wrapped(verdict.what, width, _INDENT),
        *_wrapped(f"{verdict.do}{refers}", width, f"{_INDENT}→ ", f"{_INDENT}  "),
    ]


def _fine_lines(findings: Sequence[Finding], titles: Mapping[str, str], width: int) -> list[str]:
    lines: list[str] = []
    for group, title in titles.items():
        fine = [
            finding.id.partition(".")[2]
            for finding in findings
            if finding.group == group and finding.level is Level.OK
        ]
        if fine:
            names = ", ".join(dict.fromkeys(fine))
            lines += _wrapped(f"{title}: {names}", width, f"{'ok':<10}", _INDENT)
    return lines


def _wrapped(text: str, width: int, first: str, rest: str | None = None) -> list[str]:
    # Names of other people's making (containers, users) must not reach the terminal as commands.
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    return textwrap.wrap(
        clean, width, initial_indent=first, subsequent_indent=first if rest is None else rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _summary(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.level for finding in findings)
    words = [
        _count(counts[Level.PROBLEM], "problem"),
        f"{counts[Level.UNKNOWN]} not looked at",
        _count(counts[Level.WARNING], "warning"),
        _count(counts[Level.NOTE], "note"),
        f"{counts[Level.OK]} fine",
    ]
    return f"{', '.join(words)}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
