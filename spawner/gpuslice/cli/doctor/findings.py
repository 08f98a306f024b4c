"""What a check says, and how checks are run so that none can take the others down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeAlias, TypeVar

Facts = TypeVar("Facts")
T = TypeVar("T")

#: What a look does that never returns (a dead NFS server, a driver that hangs): it is left alone
#: after so long.
LOOK_LIMIT_S = 60.0


class Level(StrEnum):
    """How a thing stands, the worst first."""

    PROBLEM = "problem"
    UNKNOWN = "unknown"
    WARNING = "warning"
    NOTE = "note"
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgement: a sentence that says what is, and one that says what to do."""

    level: Level
    what: str
    do: str = ""
    #: CVE ids, addresses of issues and manuals.
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.level is not Level.OK and not self.do:
            raise ValueError(f"a finding must say what to do: {self.what!r}")


Verdicts: TypeAlias = Verdict | list[Verdict] | None


def ok(what: str) -> Verdict:
    return Verdict(Level.OK, what)


def note(what: str, do: str, *references: str) -> Verdict:
    return Verdict(Level.NOTE, what, do, references)


def warning(what: str, do: str, *references: str) -> Verdict:
    return Verdict(Level.WARNING, what, do, references)


def problem(what: str, do: str, *references: str) -> Verdict:
    return Verdict(Level.PROBLEM, what, do, references)


def unknown(what: str, do: str, *references: str) -> Verdict:
    return Verdict(Level.UNKNOWN, what, do, references)


def named(names: Sequence[str], most: int = 8) -> str:
    """The names in one line, not too many of them."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


class NotLooked(Exception):
    """Facts that could not be had, with the verdict that says why; the group's checks are left."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.what)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict under the name of its check, ``group.check``."""

    id: str
    verdict: Verdict

    @property
    def group(self) -> str:
        return self.id.partition(".")[0]

    @property
    def level(self) -> Level:
        return self.verdict.level


@dataclass(frozen=True)
class Group(Generic[Facts]):
    """One look and the checks that judge what it saw."""

    name: str
    look: Callable[[], Facts]
    #: The last part of each finding's id, and the pure function that judges.
    checks: Mapping[str, Callable[[Facts], Verdicts]] = field(default_factory=dict)
    limit_s: float = LOOK_LIMIT_S

    def findings(self) -> list[Finding]:
        """All findings. Raises nothing: what breaks becomes a finding that names it."""
        try:
            facts = bounded(self.look, self.limit_s)
        except NotLooked as reason:
            return [Finding(f"{self.name}.look", reason.verdict)]
        except TookTooLong as error:
            late = unknown(
                f"Looking was given up: {error}.",
                "Find what hangs: a network file system, a program of the driver (dmesg, ps).",
            )
            return [Finding(f"{self.name}.look", late)]
        except Exception as error:  # noqa: BLE001 (that is the promise)
            return [Finding(f"{self.name}.look", _broken(error))]
        return [
            Finding(f"{self.name}.{name}", verdict)
            for name, judge in self.checks.items()
            for verdict in _judged(judge, facts)
        ]


def _judged(judge: Callable[[Facts], Verdicts], facts: Facts) -> list[Verdict]:
    try:
        found = judge(facts)
    except Exception as error:  # noqa: BLE001 (that is the promise)
        return [_broken(error)]
    if found is None:
        return []
    return found if isinstance(found, list) else [found]


def _broken(error: Exception) -> Verdict:
    said = " ".join(str(error).split())[:200]
    return unknown(
        f"This check itself broke off ({type(error).__name__}{f': {said}' if said else ''}).",
        "Look by hand, and report this as an error of gpuslice doctor.",
    )


class TookTooLong(Exception):
    """A look did not return in time."""


def bounded(work: Callable[[], T], limit_s: float) -> T:
    """``work()`` in a thread that nobody waits for at the end of the program.

    Raises:
        TookTooLong: it did not return within ``limit_s`` seconds.
    """
    done: list[T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:  # noqa: BLE001 (raised again below)
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if failed:
        raise failed[0]
    if not done:
        raise TookTooLong(f"no answer in {limit_s:g} s")
    return done[0]
