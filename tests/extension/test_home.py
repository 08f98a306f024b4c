"""How full the home is: counted or stated, in a thread of its own, bounded, and in true words."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuslice.units import GIB, MIB
from jupyterlab_gpuslice import home as module
from jupyterlab_gpuslice.home import Home, HomeMeter, Source
from notebookworld import Notebook, ServiceStub, until

Start = Callable[[dict[str, str]], Notebook]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "a home"
    place.mkdir()
    return place


def du(folder: Path) -> int:
    """What the machine's own tool says."""
    said = subprocess.run(
        ["du", "--summarize", "--one-file-system", "--block-size=1", str(folder)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return int(said.split()[0])


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))


def counted(folder: Path, limit: int | None = GIB, **options: Any) -> Home:
    home = HomeMeter(folder, limit, **options).measure()
    assert home.source is Source.COUNTED
    return home


# ---------------------------------------------------------------------------------------- counting


def test_it_counts_what_du_counts(folder: Path) -> None:
    for number in range(30):
        write(folder / f"data {number}/ä.bin", 10_000 * number)
        write(folder / f"data {number}/deep/er/x", 1)
    (folder / "hole").touch()
    os.truncate(folder / "hole", GIB)
    os.link(folder / "data 9/ä.bin", folder / "again")
    os.link(folder / "data 9/ä.bin", folder / "data 1/and again")
    (folder / "loop").symlink_to(folder)
    (folder / "elsewhere").symlink_to("/usr")
    (folder / "dangling").symlink_to("/nowhere at all")
    os.mkfifo(folder / "pipe")
    home = counted(folder)
    assert home.used_bytes == du(folder)
    assert not home.at_least
    assert home.limit_bytes == GIB


def test_an_empty_home_and_an_own_folder_that_may_not_be_read(folder: Path) -> None:
    assert counted(folder).used_bytes == du(folder)


def test_what_may_not_be_read_makes_it_at_least(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "seen/a", 50_000)
    write(folder / "locked/b", 50_000)
    really = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    home = counted(folder)
    assert home.at_least
    assert home.used_bytes == du(folder) - (folder / "locked/b").stat().st_blocks * 512


def test_what_is_deleted_meanwhile_does_no_harm(folder: Path) -> None:
    for number in range(3 * module.BATCH):
        write(folder / f"{number}/file", 1)
    deleted = threading.Event()

    def pause(_: float) -> None:
        if not deleted.is_set():
            subprocess.run(f"rm -rf {str(folder)!r}/*", shell=True, check=True)
            deleted.set()

    home = counted(folder, pause=pause)
    assert deleted.is_set()
    assert not home.at_least


def test_other_file_systems_below_do_not_count() -> None:
    """Linux has one in its folder for devices."""
    top, below = (Path(place).stat().st_dev for place in ("/dev", "/dev/pts"))
    assert top != below
    assert {found.st_dev for found in module._below(Path("/dev"), [])} == {top}


@pytest.mark.parametrize("bound", ["MOST_FILES", "MOST_S"])
def test_counting_gives_up_and_says_at_least(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    for number in range(5 * module.BATCH):
        write(folder / f"{number}", 5000)
    everything = counted(folder).used_bytes
    seconds = iter(range(10_000))
    monkeypatch.setattr(module, bound, 2 * module.BATCH if bound == "MOST_FILES" else 2.5)
    home = counted(folder, clock=lambda: float(next(seconds)), pause=lambda _: None)
    assert home.at_least
    assert home.used_bytes is not None and everything is not None
    assert 0 < home.used_bytes < everything


def test_counting_rests_most_of_the_time(folder: Path) -> None:
    for number in range(3 * module.BATCH):
        write(folder / f"{number}", 1)
    now, rests = [0.0], list[float]()

    def clock() -> float:
        now[0] += 0.25
        return now[0]

    counted(folder, clock=clock, pause=rests.append)
    assert len(rests) == 3
    assert all(rest == module.REST * 0.25 for rest in rests)


# ------------------------------------------------------------------------------- limits and quotas


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Lets every file system have this size, and so much of it free."""

    def make(total: int, free: int) -> None:
        stated = (4096, 4096, total // 4096, free // 4096, free // 4096, 0, 0, 0, 0, 255)
        monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(stated))

    return make


def test_a_limit_that_the_file_system_holds_is_not_counted(
    folder: Path, disk: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_below", None)
    disk(8 * MIB, 2 * MIB)
    for limit in (8 * MIB, GIB):
        home = HomeMeter(folder, limit).measure()
        assert (home.source, home.used_bytes, home.limit_bytes, home.free_bytes) == (
            Source.QUOTA, 6 * MIB, 8 * MIB, 2 * MIB,
        )  # fmt: skip
        assert not home.warn and not home.of_disk and not home.at_least
    disk(8 * MIB, MIB // 2)
    assert HomeMeter(folder, GIB).measure().warn


def test_a_disk_with_less_room_than_the_limit_is_the_limit(
    folder: Path, disk: Callable[[int, int], None]
) -> None:
    write(folder / "data", MIB)
    used = du(folder)
    disk(GIB, 2 * MIB)
    home = counted(folder, 4 * MIB)
    assert home.of_disk
    assert (home.limit_bytes, home.free_bytes) == (used + 2 * MIB, 2 * MIB)
    assert not home.warn
    disk(GIB, 3 * MIB)
    home = counted(folder, 4 * MIB)
    assert (home.limit_bytes, home.of_disk) == (4 * MIB, False)
    disk(GIB, MIB // 16)
    assert counted(folder, 4 * MIB).warn
    # And without a limit the disk's room is all there is to say.
    home = counted(folder, None)
    assert home.of_disk and home.warn
    disk(GIB, GIB // 2)
    home = counted(folder, None)
    assert home.of_disk and not home.warn


@pytest.mark.parametrize(
    ("used", "limit", "warn"),
    [(89, 100, False), (90, 100, True), (0, 0, True), (None, 100, False), (90, None, False)],
)
def test_it_warns_at_ninety_percent(used: int | None, limit: int | None, warn: bool) -> None:
    assert Home(Source.COUNTED, used, limit).warn is warn


# --------------------------------------------------------------------------------- who asks, when


def settled(meter: HomeMeter) -> Home:
    def look() -> Home | None:
        home = meter.look()
        return None if home.source is Source.COUNTING else home

    home = until(look, "a look at the home")
    assert isinstance(home, Home)
    return home


def test_who_asks_never_waits_and_only_one_thread_looks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, looks = threading.Event(), list[int]()
    really = os.statvfs

    def statvfs(path: Path) -> os.statvfs_result:
        looks.append(threading.get_native_id())
        hanging.wait()
        return really(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    meter = HomeMeter(folder, GIB)
    try:
        for _ in range(5):
            assert meter.look() == Home(Source.COUNTING)
        until(lambda: looks, "the thread")
        assert len(looks) == 1
        assert looks[0] != threading.get_native_id()
        assert os.getpriority(os.PRIO_PROCESS, looks[0]) == 19
    finally:
        hanging.set()
    assert settled(meter).used_bytes == du(folder)
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19


def test_a_counted_number_is_kept_for_minutes(folder: Path) -> None:
    now = [0.0]
    meter = HomeMeter(folder, None, clock=lambda: now[0])
    before = settled(meter).used_bytes
    write(folder / "more", MIB)
    now[0] = module.COUNTED_S - 1
    for _ in range(3):
        assert meter.look().used_bytes == before
        assert meter._thread is None  # nor does anybody go and look
    now[0] = module.COUNTED_S
    until(lambda: meter.look().used_bytes == du(folder), "a fresh look")


def test_a_stated_number_is_kept_for_seconds(
    folder: Path, disk: Callable[[int, int], None]
) -> None:
    now = [0.0]
    disk(8 * MIB, 2 * MIB)
    meter = HomeMeter(folder, GIB, clock=lambda: now[0])
    assert settled(meter).used_bytes == 6 * MIB
    disk(8 * MIB, MIB)
    now[0] = module.STATED_S - 1
    assert meter.look().used_bytes == 6 * MIB
    now[0] = module.STATED_S
    until(lambda: meter.look().used_bytes == 7 * MIB, "a fresh look")


def test_where_it_is_not_shown_nobody_looks(folder: Path) -> None:
    meter = HomeMeter(folder, None, shown=False)
    assert meter.look() == Home(Source.NONE)
    assert meter._thread is None


def test_a_home_that_cannot_be_looked_at_is_unknown_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    place = tmp_path / "later"
    meter = HomeMeter(place, GIB, clock=lambda: now[0])
    for _ in range(3):
        assert settled(meter) == Home(Source.UNKNOWN)
        now[0] += module.COUNTED_S
        until(lambda: meter.look() and meter._thread is None, "the look")
    assert len(caplog.records) == 1
    place.mkdir()
    now[0] += module.COUNTED_S
    until(lambda: meter.look().used_bytes is not None, "the look")


@pytest.mark.parametrize(
    ("environment", "hub", "expected"),
    [
        ({}, False, (None, Source.NONE)),
        ({}, True, (None, Source.COUNTING)),
        ({"GPUSLICE_HOME_LIMIT": "5000"}, False, (5000, Source.COUNTING)),
        ({"GPUSLICE_HOME_LIMIT": ""}, False, (None, Source.NONE)),
        *(
            ({"GPUSLICE_HOME_LIMIT": wrong}, True, (None, Source.COUNTING))
            for wrong in ("5 GiB", "-1", "0", "1e9", "٣")
        ),
    ],
)
def test_what_the_environment_says(
    folder: Path,
    environment: dict[str, str],
    hub: bool,
    expected: tuple[int | None, Source],
    caplog: pytest.LogCaptureFixture,
) -> None:
    meter = HomeMeter.from_environment({"HOME": str(folder), **environment}, behind_hub=hub)
    assert (meter._limit, meter._newest.source) == expected
    assert bool(caplog.records) == (environment.get("GPUSLICE_HOME_LIMIT", "") not in ("", "5000"))


# -------------------------------------------------------------------------------- the real server


def test_the_server_answers_with_the_home(
    notebook: Start, service: ServiceStub, folder: Path
) -> None:
    write(folder / "work.bin", 3 * MIB)
    server = notebook(
        {**service.environment, "HOME": str(folder), "GPUSLICE_HOME_LIMIT": str(3 * MIB)}
    )
    before = server.ask("api/status")[1]["last_activity"]

    def known() -> dict[str, Any] | None:
        status, home = server.ask("gpuslice/api/home")
        assert status == 200
        return home if home["used_bytes"] else None

    home = until(known, "the count")
    assert isinstance(home, dict)
    assert home["source"] == "counted"
    assert home["limit_bytes"] == 3 * MIB
    assert home["used_bytes"] >= 3 * MIB
    assert home["warn"] is True
    assert not home["at_least"] and not home["of_disk"]
    assert home["free_bytes"] > 0 and home["taken_us"] > 0
    assert server.ask("api/status")[1]["last_activity"] == before


def test_alone_on_a_workstation_nobody_looks(notebook: Start, folder: Path) -> None:
    server = notebook({"HOME": str(folder)})
    for _ in range(2):
        status, home = server.ask("gpuslice/api/home")
        assert (status, home["source"], home["used_bytes"], home["warn"]) == (
            200, "none", None, False,
        )  # fmt: skip
