"""The workspace is what README and CONTRIBUTING say: targets, locks, contracts, set-up, wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = ["run", "test", "test-long", "lint", "images", "bench", "docs", "clean"]


def _versions(lock: Path) -> dict[str, set[str]]:
    """Name to versions; several where Pythons differ."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"(?m)^([a-zA-Z0-9._-]+)==(\S+)", lock.read_text()):
        found.setdefault(_canonical(name), set()).add(version)
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -------------------------------------------------------------------------------------- make


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_alone_lists_every_target_with_a_line_each() -> None:
    listed = dict(re.findall(r"(?m)^  ([a-z-]+) +(\S.*)$", _make().stdout))
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"(?m)^\.PHONY: (.*)$", makefile)
    assert phony
    assert set(TARGETS) <= set(phony[1].split()) == set(listed)


# ------------------------------------------------------------------------------------- locks


def test_there_are_the_locks_that_contributing_names() -> None:
    named = re.findall(r"\| `([\w-]+\.txt)` \|", (ROOT / "CONTRIBUTING.md").read_text())
    assert sorted(named) == [lock.name for lock in LOCKS]


@pytest.mark.parametrize("lock", [*LOCKS, ROOT / "yarn.lock"], ids=lambda lock: lock.name)
def test_a_lock_names_no_address_and_no_place(lock: Path) -> None:
    text = lock.read_text()
    assert not re.search(
        r"://|(?m:^-)|(?m:^\s*--(?!hash=))|file:|\b[\w-]+\.(org|com|io|dev)\b", text
    )
    assert not re.search(r"(?<![\w.])/(?:work|opt|root|home|tmp|usr)/", text)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_of_a_lock_has_a_hash(lock: Path) -> None:
    packages = re.split(r"(?m)^(?=[a-zA-Z0-9])", lock.read_text())[1:]
    assert packages
    assert [p.split()[0] for p in packages if "--hash=sha256:" not in p] == []


def test_the_tests_run_the_versions_that_make_run_installs() -> None:
    run, test = (_versions(ROOT / "requirements" / f"{name}.txt") for name in ("run", "test"))
    assert run.items() <= test.items()


def test_the_locks_have_what_pyproject_asks_for_and_torch_is_apart() -> None:
    groups = PYPROJECT["dependency-groups"]
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = {
        "run": [
            *PYPROJECT["project"]["dependencies"],
            *extras["hub"],
            *groups["notebook"],
            *groups["starters"],
            *groups["node"],
            *groups["build"],
        ],
        "test": [*extras["postgres"], *groups["test"]],
        "dev": groups["dev"],
        "docs": groups["docs"],
        "compiler": groups["compiler"],
        "torch": groups["torch"],
    }
    for name, requirements in wanted.items():
        names = {_canonical(re.split(r"[^\w.-]", r, maxsplit=1)[0]) for r in requirements}
        assert names <= set(_versions(ROOT / "requirements" / f"{name}.txt")), name
    for name in ("run", "test", "dev", "docs", "compiler"):
        assert "torch" not in _versions(ROOT / "requirements" / f"{name}.txt")


# ---------------------------------------------------------------------------------- contracts

FORBIDDEN = [
    ("units.py", "gpuslice.ledger"),
    ("units.py", "sqlalchemy"),
    ("fleet/__init__.py", "gpuslice.placement"),
    ("fleet/__init__.py", "gpuslice.nvml"),
    ("placement/__init__.py", "gpuslice.broker"),
    ("placement/__init__.py", "gpuslice.ledger"),
    ("placement/__init__.py", "sqlalchemy"),
    ("ledger/__init__.py", "gpuslice.quotas"),
    ("ledger/__init__.py", "gpuslice.fleet"),
    ("quotas/__init__.py", "gpuslice.broker"),
    ("broker/__init__.py", "gpuslice.service"),
    ("node/__init__.py", "gpuslice.ledger"),
    ("node/__init__.py", "gpuslice.spawners"),
    ("spawners/__init__.py", "gpuslice.service"),
    ("spawners/__init__.py", "gpuslice.broker"),
    ("service/__init__.py", "gpuslice.node"),
    ("service/__init__.py", "gpuslice.nvml"),
    ("service/__init__.py", "pynvml"),
    ("../nvmlsim/__init__.py", "gpuslice.units"),
    ("newcomer.py", "gpuslice.units"),
]


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as c; c()",
            "--no-logo",
            "--no-cache",
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "spawner")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copied_code(tmp_path: Path) -> Path:
    shutil.copytree(
        ROOT / "spawner", tmp_path / "spawner", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_point_one_way(copied_code: Path) -> None:
    done = _lint_imports(copied_code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(PYPROJECT['tool']['importlinter']['contracts'])} kept" in done.stdout


@pytest.mark.parametrize(("importer", "imported"), FORBIDDEN, ids=lambda value: str(value))
def test_an_import_against_the_design_is_found(
    copied_code: Path, importer: str, imported: str
) -> None:
    module = copied_code / "spawner" / "gpuslice" / importer
    with module.open("a") as stream:
        stream.write(f"\nimport {imported}\n")
    done = _lint_imports(copied_code)
    assert done.returncode == 1, done.stdout + done.stderr
    assert Path(importer).stem.replace("__init__", Path(importer).parent.name) in done.stdout


# ------------------------------------------------------------------------------------- set-up

#: What tools/setup.sh needs of a Debian that has nothing but the essential packages.
ESSENTIAL = [
    "sh",
    "cat",
    "cksum",
    "cut",
    "date",
    "dirname",
    "basename",
    "flock",
    "grep",
    "id",
    "mkdir",
    "rm",
    "sleep",
    "tail",
    "tr",
]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout under a path with a space, and next to it a machine with the essentials only."""
    checkout = tmp_path / "a checkout"
    (checkout / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "setup.sh", checkout / "tools")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ESSENTIAL:
        program = shutil.which(name)
        assert program
        (programs / name).symlink_to(program)
    _program(programs, "apt-get", "exit 1")
    return checkout


def _program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def _set_up(checkout: Path, what: str = "run") -> tuple[int, str]:
    programs = checkout.parent / "bin"
    done = subprocess.run(
        [programs / "sh", "tools/setup.sh", what],
        cwd=checkout,
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_no_python(bare: Path) -> None:
    status, said = _set_up(bare)
    assert status == 1
    assert re.fullmatch(
        r"gpuslice: Python 3\.11 or newer is needed and not installed: "
        r"(sudo )?apt-get install python3 python3-venv\.\n",
        said,
    )


def test_python_too_old(bare: Path) -> None:
    _program(bare.parent / "bin", "python3", '[ "$1" = -V ] && echo Python 3.9.2 || exit 1')
    status, said = _set_up(bare)
    assert status == 1
    assert said.count("\n") == 1
    assert "this machine has 3.9.2: " in said
    assert "apt-get install python3.11 python3.11-venv" in said


def test_python_without_venv(bare: Path) -> None:
    _program(bare.parent / "bin", "python3", 'case "$2" in *ensurepip*) exit 1 ;; esac')
    status, said = _set_up(bare)
    assert status == 1
    assert re.fullmatch(
        r"gpuslice: Python's venv module is needed and not installed: "
        r"(sudo )?apt-get install python3-venv\.\n",
        said,
    )
    assert not (bare / ".venv").exists()


def test_a_newer_python_beside_an_old_one_is_taken(bare: Path) -> None:
    programs = bare.parent / "bin"
    _program(programs, "python3", '[ "$1" = -V ] && echo Python 3.9.2 || exit 1')
    _program(programs, "python3.12", 'case "$2" in *ensurepip*) exit 1 ;; esac')
    status, said = _set_up(bare)
    assert status == 1
    assert said.endswith("apt-get install python3.12-venv.\n")


# -------------------------------------------------------------------------------------- wheel


def test_the_wheel_has_the_code_and_what_it_reads(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        entry_points = next(name for name in inside if name.endswith("entry_points.txt"))
        declared = archive.read(entry_points).decode()
    assert "gpuslice = gpuslice.cli:main" in declared
    assert "gpuslice-local = gpuslice.spawners:LocalGpuSpawner" in declared
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--", "spawner"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    expected = {path.removeprefix("spawner/") for path in tracked if path}
    assert {"nvmlsim/nvmlsim.c", "gpuslice/ledger/migrations/script.py.mako"} <= expected
    assert expected - inside == set()
