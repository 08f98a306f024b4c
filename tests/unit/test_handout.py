"""What each container is handed of the secrets: its own, private, and the same ones again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpuslice.cli import main
from gpuslice.cli.handout import HANDED_OUT

MINE = [word for part in HANDED_OUT for word in ("--owner", part, str(os.getuid()))]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    return folder


def init(tmp_path: Path, parts: Path) -> None:
    command = ["init", "--state", str(tmp_path / "all"), "--hand-out", str(parts), *MINE]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output


def texts(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_each_part_gets_its_own_and_nothing_else(tmp_path: Path, parts: Path) -> None:
    os.umask(0)
    # As the engine makes the root of a volume.
    (parts / "hub").mkdir(mode=0o755)
    init(tmp_path, parts)
    everything = texts(tmp_path / "all" / "secrets")
    assert {folder.name for folder in parts.iterdir()} == set(HANDED_OUT)
    for part, names in HANDED_OUT.items():
        assert texts(parts / part) == {name: everything[name] for name in names}
        assert stat.S_IMODE((parts / part).stat().st_mode) == 0o700
        for name in names:
            assert stat.S_IMODE((parts / part / name).stat().st_mode) == 0o600
    assert len(set(everything.values())) == len(everything)


def test_who_must_not_have_what() -> None:
    holders = {name: {part for part, has in HANDED_OUT.items() if name in has}
               for name in set().union(*HANDED_OUT.values())}  # fmt: skip
    assert holders["node_token"] == {"service", "node"}
    assert holders["database_password"] == {"service", "postgres"}
    assert holders["proxy_token"] == {"hub", "proxy"}
    assert holders["cookie_secret"] == holders["ledger_signing_key"] == {"service"}
    assert holders["hub_cookie_secret"] == holders["admin_password"] == {"hub"}
    assert "node" not in holders["broker_token"] | holders["service_token"]


def test_the_second_time_nothing_changes_and_what_is_lost_comes_back(
    tmp_path: Path, parts: Path
) -> None:
    init(tmp_path, parts)
    before = {part: texts(parts / part) for part in HANDED_OUT}
    (parts / "hub" / "broker_token").write_text("half")
    (parts / "proxy" / "proxy_token").unlink()
    # What a crash left half-written.
    (parts / "node" / ".node_token.new").write_text("half")
    (parts / "hub" / "oidc_secret").write_text("the administrator's")
    init(tmp_path, parts)
    after = {part: texts(parts / part) for part in HANDED_OUT}
    assert after["hub"].pop("oidc_secret") == "the administrator's"
    assert after == before


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, parts: Path) -> None:
    (parts / "hub").write_text("no folder")
    command = ["init", "--state", str(tmp_path / "all"), "--hand-out", str(parts), *MINE]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert done.output.startswith("gpuslice: Cannot hand out the secrets to ")
    assert done.output.count("\n") == 1
