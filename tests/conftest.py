"""What holds for every test: what may be skipped and why, and a PostgreSQL server of our own.

A test that needs something this machine lacks is skipped with the reason and the command that
brings it, and the run ends with a list of what was skipped. Under ``CI=true`` such a skip is a
failure, except for a real GPU: a green run that ran nothing would be a lie.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_IN_CI = os.environ.get("CI", "").lower() == "true"


# ---------------------------------------------------------------------------------- what is missing


def _no_gpu() -> str | None:
    if (
        shutil.which("nvidia-smi")
        and not subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode
    ):
        return None
    return "no NVIDIA GPU with a working driver (nvidia-smi -L)"


def _no_docker() -> str | None:
    if not shutil.which("docker"):
        return "no Docker engine: apt-get install docker.io"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "the Docker engine does not answer (docker info)"
    return None


def _no_browser() -> str | None:
    if any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        return None
    return "no Chromium: apt-get install chromium"


def _postgres_programs() -> Path | None:
    """The folder of initdb and pg_ctl, the newest version first."""
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    ordered = sorted(versions, key=lambda folder: folder.parent.name.zfill(3), reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        ordered.append(Path(on_path).resolve().parent)
    for folder in ordered:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    return None


def _no_postgres() -> str | None:
    if _postgres_programs() is None:
        return "no PostgreSQL server programs: apt-get install postgresql"
    if os.geteuid() == 0 and _postgres_user() is None:
        return "PostgreSQL will not run as root and there is no user `postgres` or `nobody`"
    return None


#: marker -> why this machine cannot run it, or None
_NEEDS: dict[str, Callable[[], str | None]] = {
    "gpu": _no_gpu,
    "docker": _no_docker,
    "browser": _no_browser,
    "postgres": _no_postgres,
}


#: Tests that wait for an engine, a hub or a browser; with several workers one of them runs them.
_PLATFORM = ("tests/docker/", "tests/hub/", "tests/browser/")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests go to one worker, and all that wait for a platform to one, the first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "platform" if file.startswith(_PLATFORM) else file

    return Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ask about each need once, and only where a test has it."""
    for marker, ask in _NEEDS.items():
        needing = [item for item in items if item.get_closest_marker(marker)]
        reason = ask() if needing else None
        if reason:
            for item in needing:
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turn skips into failures under CI."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if _IN_CI and not item.get_closest_marker("gpu"):
        report.outcome = "failed"
        report.longrepr = f"Skipped under CI=true, which must run everything: {reason}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skips = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.getreports("skipped")
        if isinstance(report.longrepr, tuple)
    )
    if skips:
        terminalreporter.section("not run on this machine")
        for reason, count in skips.most_common():
            terminalreporter.line(f"{count:4} tests: {reason}")


# --------------------------------------------------------------------------------------- PostgreSQL


def _postgres_user() -> str | None:
    """Whom to run the server as when we are root, which it refuses."""
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    return None


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Cluster:
    """A PostgreSQL server of this test run: own folder, own unix socket, no TCP, no durability."""

    def __init__(self, programs: Path) -> None:
        # Short, because a unix socket's path has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="gpuslice-pg-"))
        self.port = _closed_port()
        self._programs = programs
        self._user = _postgres_user() if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
        self._run(
            "initdb",
            "-D",
            str(self.data),
            "-U",
            "gpuslice",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        )
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write(
                "listen_addresses = ''\n"
                f"unix_socket_directories = '{self.folder}'\n"
                f"port = {self.port}\n"
                "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n"
                "max_connections = 200\nshared_buffers = 32MB\n"
            )
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self.folder / "log"), "-w", "start")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(
            command,
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            # To a file: the server inherits it, and a pipe would never end.
            stdout=(out := (self.folder / "out").open("w")),
            stderr=subprocess.STDOUT,
            check=False,
            timeout=120,
        )
        out.close()
        if done.returncode:
            pytest.fail(f"{program} failed:\n{(self.folder / 'out').read_text()[-2000:]}")

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://gpuslice@/{database}?host={self.folder}&port={self.port}"

    def create(self, database: str) -> str:
        import psycopg

        where = f"host={self.folder} port={self.port} user=gpuslice dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_database() -> Iterator[Callable[[], str]]:
    """A function that makes a new, empty database and returns its SQLAlchemy URL.

    Mark what uses it with ``@pytest.mark.postgres``.
    """
    missing = _no_postgres()
    programs = _postgres_programs()
    if missing or programs is None:
        pytest.skip(f"postgres: {missing}")
    cluster = _Cluster(programs)
    numbers = itertools.count(1)
    yield lambda: cluster.create(f"test_{next(numbers)}")
    cluster.stop()


@pytest.fixture
def postgres_url(postgres_database: Callable[[], str]) -> str:
    """The SQLAlchemy URL of a new, empty PostgreSQL database."""
    return postgres_database()


# --------------------------------------------------------------------------------- simulated NVML


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated NVML library, built once: a process can load only one for its life."""
    import nvmlsim

    return nvmlsim.build_library(tmp_path_factory.mktemp("a library"))
