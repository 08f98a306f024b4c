"""gpuslice doctor: findings, reports and exit codes; and that no check takes the others down."""

from __future__ import annotations

import json
import re
import threading
from io import StringIO
from pathlib import Path

import pytest

from gpuslice.cli.doctor import examine, report
from gpuslice.cli.doctor.deployed import read_report
from gpuslice.cli.doctor.findings import (
    Finding,
    Group,
    Level,
    NotLooked,
    TookTooLong,
    Verdict,
    bounded,
    named,
    note,
    ok,
    problem,
    unknown,
    warning,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "administrators" / "doctor.md"
EACH = [
    Finding("engine.version", ok("Docker 29.")),
    Finding("engine.logs", note("A note.", "Do this.")),
    Finding("engine.cdi", warning("A warning.", "Do that.", "CVE-2026-24260")),
    Finding("host.clock", unknown("Not known.", "Look.")),
    Finding("socket.access", problem("A problem.", "Repair it.")),
]


def test_whatever_is_not_fine_says_what_to_do() -> None:
    for level in Level:
        if level is not Level.OK:
            with pytest.raises(ValueError, match="what to do"):
                Verdict(level, "Something is.")


# ------------------------------------------------------------------------------- running checks


def boom(_facts: object) -> None:
    raise RuntimeError("the disk\nis on fire")


def test_a_check_that_breaks_off_is_a_finding_and_the_others_go_on() -> None:
    found = Group("engine", lambda: 1, {"one": boom, "two": lambda _: ok("Well.")}).findings()
    assert [(one.id, one.level) for one in found] == [
        ("engine.one", Level.UNKNOWN),
        ("engine.two", Level.OK),
    ]
    assert "RuntimeError: the disk is on fire" in found[0].verdict.what


def test_a_look_that_breaks_off_is_a_finding() -> None:
    found = Group("engine", lambda: boom(None), {"two": lambda _: ok("Well.")}).findings()
    assert [(one.id, one.level) for one in found] == [("engine.look", Level.UNKNOWN)]


def test_a_look_that_never_returns_is_a_finding() -> None:
    never = threading.Event()
    found = Group("engine", never.wait, {"two": lambda _: ok("Well.")}, limit_s=0.01).findings()
    never.set()
    assert [(one.id, one.level) for one in found] == [("engine.look", Level.UNKNOWN)]
    assert "no answer in 0.01 s" in found[0].verdict.what


def test_a_look_can_say_why_it_was_not_made() -> None:
    def look() -> int:
        raise NotLooked(problem("No engine.", "Start it."))

    found = Group("engine", look, {"one": boom}).findings()
    assert [(one.id, one.verdict.what) for one in found] == [("engine.look", "No engine.")]


@pytest.mark.parametrize(
    ("given", "levels"),
    [(None, []), (ok("A."), ["ok"]), ([ok("A."), note("B.", "C.")], ["ok", "note"]), ([], [])],
)
def test_a_check_may_find_nothing_one_thing_or_several(given: object, levels: list[str]) -> None:
    found = Group("engine", lambda: 1, {"one": lambda _: given}).findings()  # type: ignore[arg-type, return-value]
    assert [one.level.value for one in found] == levels


def test_bounded_gives_back_and_raises_what_the_work_does() -> None:
    assert bounded(lambda: 7, 10) == 7
    with pytest.raises(RuntimeError, match="on fire"):
        bounded(lambda: boom(None), 10)
    never = threading.Event()
    with pytest.raises(TookTooLong):
        bounded(never.wait, 0.01)
    never.set()


def test_names_in_a_sentence_are_not_too_many() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named(["a", "b", "c"], most=2) == "a, b and 1 more"


# -------------------------------------------------------------------------------------- reports


@pytest.mark.parametrize(
    ("levels", "code"),
    [
        ([], 0),
        (["ok"], 0),
        (["ok", "note", "warning"], 0),
        (["unknown", "warning"], 2),
        (["problem"], 1),
        (["unknown", "problem", "ok"], 1),
    ],
)
def test_the_exit_code(levels: list[str], code: int) -> None:
    findings = [Finding("a.b", Verdict(Level(level), "What.", "Do.")) for level in levels]
    assert report.exit_code(findings) == code


def test_the_json_has_the_documented_keys_and_can_be_read_back() -> None:
    text = report.as_json(EACH, "docker")
    found = json.loads(text)
    assert set(found) == {"schema", "gpuslice", "engine", "exit_code", "counts", "findings"}
    assert (found["schema"], found["engine"], found["exit_code"]) == (1, "docker", 1)
    assert found["counts"] == {"problem": 1, "unknown": 1, "warning": 1, "note": 1, "ok": 1}
    assert found["findings"][2] == {
        "id": "engine.cdi", "group": "engine", "level": "warning", "what": "A warning.",
        "do": "Do that.", "references": ["CVE-2026-24260"],
    }  # fmt: skip
    assert read_report(text) == EACH


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Traceback",
        "[]",
        "{}",
        '{"findings": [{}]}',
        '{"findings": [{"id": "a", "level": "x"}]}',
    ],
)
def test_what_is_no_report_is_not_read(text: str) -> None:
    assert read_report(text) is None


def test_problems_are_shown_first_and_what_is_fine_in_a_line() -> None:
    text = report.as_text(EACH, examine.TITLES, colours=False, width=80)
    heads = re.findall(r"(?m)^(PROBLEM|unknown|warning|note|ok) +(.*)$", text)
    assert heads == [
        ("PROBLEM", "socket.access"),
        ("unknown", "host.clock"),
        ("warning", "engine.cdi"),
        ("note", "engine.logs"),
        ("ok", "Docker engine: version"),
    ]
    assert "→ Do that. (CVE-2026-24260)" in text
    assert text.endswith("1 problem, 1 not looked at, 1 warning, 1 note, 1 fine.\n")
    assert "\033" not in text


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(examine, "examine", lambda _: examine.Examined("local", EACH))
    monkeypatch.delenv("NO_COLOR", raising=False)
    wishes = examine.Wishes(None, Path("x"))
    terminal, file, plain = Terminal(), StringIO(), Terminal()
    assert examine.run(wishes, as_json_text=False, out=terminal) == 1
    examine.run(wishes, as_json_text=False, out=file)
    monkeypatch.setenv("NO_COLOR", "1")
    examine.run(wishes, as_json_text=False, out=plain)
    assert "\033[31;1m" in terminal.getvalue()
    assert "\033" not in file.getvalue() + plain.getvalue()


def test_what_others_named_cannot_command_the_terminal() -> None:
    evil = [Finding("socket.access", problem("User \033[2Jx\u202e may.", "Ask \x07 them."))]
    text = report.as_text(evil, examine.TITLES, colours=False, width=80)
    assert "User ?[2Jx? may." in text
    assert not set("\033\x07\u202e") & set(text)


# -------------------------------------------------------------------------------- documentation


def test_each_group_is_documented_with_its_checks() -> None:
    """The page has a table per group; its first column is every check of that group."""
    page = PAGE.read_text("utf-8")
    for name in examine.TITLES:
        section = re.search(rf"(?ms)^### `{re.escape(name)}`.*?(?=^##|\Z)", page)
        assert section, f"no section on {name}"
        documented = set(re.findall(r"(?m)^\| `([\w-]+)` \|", section[0]))
        assert documented == _checks(name), name


def _checks(name: str) -> set[str]:
    if name == "settings":
        return {"file"}
    wishes = examine.Wishes(None, Path("x"), gpu=True)
    group = examine._GROUPS[name](_machine(), wishes)
    assert group is not None
    return set(group.checks)


def _machine() -> examine.Machine:
    from gpuslice.cli.state import State
    from gpuslice.settings import load_settings

    return examine.Machine(load_settings(None), State(Path("x")), "docker")
