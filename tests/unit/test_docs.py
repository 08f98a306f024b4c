"""README and docs say what is: links, pictures, commands, settings, tables, metrics."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import click
import pytest

from gpuslice.broker.stats import Counts, Snapshot, Waits
from gpuslice.cli.app import main as gpuslice_command
from gpuslice.cli.quotacommands import quota
from gpuslice.cli.quotatext import changed_document, policy_path
from gpuslice.ledger.tables import Base
from gpuslice.quotas.chain import Chain, Link
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.quotas.policies import Stored
from gpuslice.quotas.policytext import document_lines
from gpuslice.quotas.rules import Rule, effective
from gpuslice.quotas.views import SetPolicy
from gpuslice.quotas.words import amount, refusal_text
from gpuslice.service.auth import (
    SCOPE_ADMIN,
    SCOPE_LEASE,
    SCOPE_METRICS,
    SCOPE_READ_ALL,
    SCOPE_STOP,
)
from gpuslice.service.metrics import Metrics
from gpuslice.service.routes import ROUTES
from gpuslice.settings import Settings, load_settings, settings_reference
from gpuslice.spawners.options import choice

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(path for path in DOCS.rglob("*.md") if "_build" not in path.parts),
    ]
)
PICTURES = sorted((DOCS / "images").glob("*.png"))
#: The most that a picture may weigh: it is in every clone for ever.
MOST_BYTES = 300_000


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=_name)


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"(?s)^( *)```.*?^\1```", "", text, flags=re.M))


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"(?m)^#{1,6} (.*)$", _without_code(page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_what_a_page_links_to_exists(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(page.read_text())):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            broken.append(target)
    assert broken == []


def test_every_page_of_the_docs_is_in_a_table_of_contents() -> None:
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for toc in re.findall(r"(?s)```\{toctree\}\n(.*?)```", page.read_text()):
            names = [line for line in toc.split("\n") if line and not line.startswith(":")]
            listed |= {page.parent / f"{name}.md" for name in names}
    assert {page for page in PAGES if DOCS in page.parents} == listed


@every_page
def test_no_page_names_a_machine_of_ours(page: Path) -> None:
    # In a notebook's container the home is everybody's /home/jovyan.
    places = r"(?<![\w.])/(?:work|opt|root|home(?!/jovyan)|tmp/\w)[\w/.-]*"
    assert re.findall(places, page.read_text()) == []


# ------------------------------------------------------------------------------------ commands


def _commands(page: Path) -> list[list[str]]:
    """The command lines in a page's shell blocks and in its code spans, as words."""
    text = page.read_text()
    lines = []
    for block in re.findall(r"(?s)```sh\n(.*?)```", text):
        lines += block.replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:make|(?:\.venv/bin/)?gpuslice) [^`\n]+)`", text)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@every_page
def test_make_targets_that_are_named_exist(page: Path) -> None:
    phony = re.search(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text())
    assert phony
    named = {words[1] for words in _commands(page) if words[0] == "make" and len(words) > 1}
    assert named <= set(phony[1].split())


@every_page
def test_gpuslice_commands_that_are_named_exist_with_their_options(page: Path) -> None:
    for words in _commands(page):
        if Path(words[0]).name == "gpuslice":
            _check_command(words[1:])


def _check_command(words: list[str]) -> None:
    command: click.Command = gpuslice_command
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    given = {word for word in words if word.startswith("--")} - {"--help"}
    if command.name in ("node", "service"):
        assert given <= _options_of_daemon(command.name)
        return
    known = {option for parameter in command.params for option in parameter.opts}
    assert given <= known, command.name


def _options_of_daemon(name: str) -> set[str]:
    module = {"node": "node/main.py", "service": "service/run.py"}[name]
    source = (ROOT / "spawner" / "gpuslice" / module).read_text()
    return set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', source))


@pytest.mark.parametrize("words", [["uo"], ["up", "--prot", "1"], ["ledger", "rebuild"]])
def test_a_wrong_command_would_be_found(words: list[str]) -> None:
    with pytest.raises(AssertionError):
        _check_command(words)


@every_page
def test_files_of_the_checkout_that_are_named_exist(page: Path) -> None:
    names = re.findall(
        r"`((?:hub_config|tests|tools|images|extensions|spawner|requirements)/[\w./-]*)`",
        page.read_text(),
    )
    assert [name for name in names if not (ROOT / name).exists()] == []


# ----------------------------------------------------------------------- what is made from code


def test_the_settings_reference_is_the_code_s() -> None:
    page = (DOCS / "administrators" / "settings.md").read_text()
    heading, rest = settings_reference().split("\n", 1)
    assert page.startswith(f"{heading}\n"), "make docs writes it anew"
    assert page.endswith(rest), "make docs writes it anew"


def test_the_list_of_commands_is_the_code_s() -> None:
    page = (DOCS / "administrators" / "commands.md").read_text()
    rows = re.findall(r"(?m)^\| `(gpuslice [^`]+)` \|", page)
    named = {re.sub(r" [\[{]?[A-Z{\[].*", "", row) for row in rows}
    assert named == set(_names(gpuslice_command, "gpuslice")), "make docs writes it anew"


def _names(command: click.Command, path: str) -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield path
        return
    for name, under in command.commands.items():
        yield from _names(under, f"{path} {name}")


def test_settings_that_pages_name_exist() -> None:
    tables = {name: field.annotation for name, field in Settings.model_fields.items()}
    for page in PAGES:
        text = page.read_text()
        for table, key in re.findall(
            r"`(database|service|hub|node|limits|timing|fleet)\.(?!log`)(\w+)`", text
        ):
            assert key in getattr(tables[table], "model_fields", {}), f"{page.name}: {table}.{key}"


def test_the_demo_s_settings_file_has_the_defaults() -> None:
    written = load_settings(ROOT / "hub_config" / "local" / "gpuslice.toml")
    assert written.model_dump() == load_settings(None).model_dump()


def test_examples_of_settings_are_valid(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for block in re.findall(r"(?s)```toml\n(.*?)```", page.read_text()):
            file = tmp_path / "gpuslice.toml"
            file.write_text(block)
            load_settings(file)
            found += 1
    assert found


# ------------------------------------------------------------------------------------- policies


def _said_by(words: list[str]) -> PolicyDocument:
    """The policy that a ``gpuslice quota set`` makes where there was none."""
    with quota.commands["set"].make_context("set", words[3:]) as context:
        said = context.params
    assert said["reason"]
    policy_path(said["kind"], said["name"])
    return PolicyDocument.model_validate(changed_document({}, said))


@every_page
def test_examples_of_policies_by_command_are_valid(page: Path) -> None:
    for words in _commands(page):
        if words[:3] == ["gpuslice", "quota", "set"] and "--reason" in words:
            _said_by(words)


def test_the_course_s_policy_is_the_same_by_command_by_rest_and_in_words() -> None:
    page = (DOCS / "administrators" / "quotas.md").read_text()
    (body,) = re.findall(r"(?s)```json\n(.*?)```", page)
    rest = SetPolicy.model_validate_json(body)
    course = [
        words
        for name in ("README.md", "docs/administrators/quotas.md")
        for words in _commands(ROOT / name)
        if words[:5] == ["gpuslice", "quota", "set", "group", "students"]
    ]
    assert len(course) == 2
    for words in course:
        document = _said_by(words)
        assert document.each == rest.document.each
        assert document.total == rest.document.total
    document = _said_by(course[-1])
    assert document == rest.document
    shown, explained = re.findall(r"(?s)```text\n(.*?)```", page)
    said = document_lines(document.model_dump(mode="json", exclude_defaults=True))
    assert [line.strip() for line in shown.splitlines()[1:]] == list(said)

    # What it says of a refusal are the words that the code has for it.
    account = Link(1, "ada", None)
    group = Link(2, "students", Stored("group:2", 2, 1, document, 0, None, "root", None))
    rules = effective(Chain(account, (group,), None), "whole", "UTC").rules
    lines = [re.sub(r"^ +(admits|REFUSES) +", "", line) for line in explained.splitlines()[1:-1]]
    for line, rule in zip(lines, sorted(rules, key=_by_kind), strict=True):
        assert line.startswith(f"{amount(rule, rule.limit, 'EUR')} ({rule.source}): ")
    refused = next(rule for rule in rules if rule.kind == "slice-types")
    text = refusal_text(refused, None, 0, 0, 1, None, "whole", ZoneInfo("UTC"), "EUR")
    assert explained.splitlines()[-1] == f"Refused: {text}"


def _by_kind(rule: Rule) -> int:
    return ("slice-types", "slices", "gpu-hours", "money").index(rule.kind)


def test_examples_of_what_a_start_asks_for_are_options() -> None:
    found = 0
    for page in PAGES:
        for text in re.findall(r'`(\{"slice"[^`]*\})`', page.read_text()):
            choice(json.loads(text), "", {})
            found += 1
    assert found


def test_the_tables_are_the_database_s() -> None:
    text = (DOCS / "developers" / "architecture.md").read_text()
    listed = re.findall(r"(?m)^\| `(\w+)` \|", text.partition("## Tables")[2])
    assert sorted(listed) == sorted(Base.metadata.tables)


def test_the_modules_are_the_package_s() -> None:
    text = (DOCS / "developers" / "architecture.md").read_text()
    package = ROOT / "spawner" / "gpuslice"
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    files = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    named = set(re.findall(r"`(\w+(?:/|\.py))`", text))
    assert folders | files <= named


def test_the_test_folders_are_those_there_are() -> None:
    text = (DOCS / "developers" / "tests.md").read_text()
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("*.py"))}
    assert set(re.findall(r"\| `tests/(\w+)` \|", text)) == folders


def test_the_metrics_are_the_service_s() -> None:
    counts = Counts(
        slice_types=("quarter",), leases={}, devices={}, waiting=Waits(), offers={}, totals={}
    )
    snapshot = Snapshot(
        ledger=counts, reconcile_age_s=None, node_reachable=True, errors={"node": 0}
    )
    text, _ = Metrics([route.name for route in ROUTES]).exposition(snapshot)
    made = set(re.findall(r"(?m)^# TYPE (\w+)", text.decode()))
    made = {name for name in made if not name.endswith("_created")}
    page = (DOCS / "administrators" / "operations.md").read_text()
    named = set(re.findall(r"\| `(gpuslice_\w+)` \|", page))
    assert {name for name in made if not name.startswith("gpuslice_process_")} == named
    assert "`gpuslice_process_*`" in page


def test_the_scopes_are_the_service_s() -> None:
    page = (DOCS / "administrators" / "login.md").read_text()
    named = set(re.findall(r"(?m)^\| `([\w:-]+)` \|", page))
    assert named == {SCOPE_ADMIN, SCOPE_READ_ALL, SCOPE_LEASE, SCOPE_STOP, SCOPE_METRICS}


def test_the_variables_of_the_oidc_login_are_the_file_s() -> None:
    page = (DOCS / "administrators" / "login.md").read_text()
    source = (ROOT / "hub_config" / "oauth" / "jupyterhub_config.py").read_text()
    needed = re.search(r"(?s)NEEDED = \((.*?)\)", source)
    assert needed
    assert set(re.findall(r'"(\w+)"', needed[1])) <= set(re.findall(r"export (\w+)=", page))
    assert set(re.findall(r"export (\w+)=", page)) <= set(re.findall(r"\bOIDC_\w+", source))


# ------------------------------------------------------------------------------------- pictures


def test_the_pictures_are_small_and_used_and_made_by_the_script() -> None:
    assert PICTURES
    assert {picture.name for picture in PICTURES if picture.stat().st_size > MOST_BYTES} == set()
    shown = set(re.findall(r"docs/images/([\w-]+\.png)", (ROOT / "README.md").read_text()))
    made = re.findall(r'_save\(\w+, "([\w-]+)"\)', (DOCS / "make_screenshots.py").read_text())
    assert shown == {picture.name for picture in PICTURES} == {f"{name}.png" for name in made}
    assert all(picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for picture in PICTURES)
