"""The simulated devices' files on the host: put there once, replaced by no other version."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdiworld import new_piece, node_settings
from gpuslice.node.docker.devices import SliceDevices
from gpuslice.node.docker.hostfiles import prepare_simulation
from gpuslice.settings import DockerSettings
from nvmlsim import Fleet


@pytest.fixture
def policy(tmp_path: Path) -> DockerSettings:
    return node_settings(tmp_path, host_root="/")


@pytest.fixture(autouse=True)
def private_umask() -> Iterator[None]:
    """As the node has it."""
    old = os.umask(0o077)
    yield
    os.umask(old)


def version(tmp_path: Path, text: str) -> Path:
    """A library with some content, where it is built."""
    built = tmp_path / "libnvidia-ml.so.1"
    built.write_text(text)
    return built


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def gpu(policy: DockerSettings) -> str:
    with Fleet.open(Path(policy.host_dir) / "nvmlsim/fleet", writable=False) as fleet:
        return fleet.gpu(0).uuid


@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_a_user_can_read_both_files_and_nobody_their_folder(
    policy: DockerSettings, library: Path, umask: int
):
    os.umask(umask)
    simulation = prepare_simulation(policy, library)
    assert simulation.library.read_bytes() == library.read_bytes()
    assert mode(simulation.library) == mode(simulation.state) == 0o644
    assert simulation.library.parent == simulation.state.parent
    assert mode(simulation.state.parent) == 0o700
    with Fleet.open(simulation.state) as fleet:
        assert fleet.gpu(0).model == "NVIDIA H100 80GB HBM3"


def test_the_next_start_finds_what_is_there(policy: DockerSettings, tmp_path: Path):
    built = version(tmp_path, "one")
    first = prepare_simulation(policy, built)
    before = [path.stat().st_ino for path in (first.library, first.state)]
    assert prepare_simulation(policy, built) == first
    assert [path.stat().st_ino for path in (first.library, first.state)] == before


def test_a_new_version_has_a_new_name_and_the_old_one_stays_while_it_is_used(
    policy: DockerSettings, tmp_path: Path
):
    first = prepare_simulation(policy, version(tmp_path, "one"))
    piece = new_piece(gpu(policy))
    devices = SliceDevices(policy, first)
    asyncio.run(devices.write(piece))
    with first.library.open() as mapped:
        second = prepare_simulation(policy, version(tmp_path, "two"))
        assert second.library != first.library
        assert second.library.read_text() == "two"
        # The created container can start, and what a running one has mapped is what it was.
        asyncio.run(devices.check(piece))
        assert first.library.read_text() == mapped.read() == "one"

    asyncio.run(devices.remove(piece.lease_id))
    assert prepare_simulation(policy, version(tmp_path, "two")) == second
    assert not first.library.exists()
    assert second.library.exists()


def test_while_one_device_cannot_be_read_no_version_is_removed(
    policy: DockerSettings, tmp_path: Path
):
    first = prepare_simulation(policy, version(tmp_path, "one"))
    Path(policy.cdi_dir).mkdir()
    torn = Path(policy.cdi_dir) / f"gpuslice-{'0' * 32}.json"
    torn.write_text("{")
    prepare_simulation(policy, version(tmp_path, "two"))
    assert first.library.exists()
    torn.unlink()
    prepare_simulation(policy, version(tmp_path, "two"))
    assert not first.library.exists()


def test_others_files_in_the_folder_stay(policy: DockerSettings, tmp_path: Path):
    folder = prepare_simulation(policy, version(tmp_path, "one")).library.parent
    others = [folder / name for name in ("notes", "libnvidia-ml.so.1", "libnvidia-ml-x.so.1")]
    for path in others:
        path.write_text("mine")
    prepare_simulation(policy, version(tmp_path, "two"))
    assert all(path.read_text() == "mine" for path in others)


def test_a_damaged_copy_is_made_anew_beside_the_one_that_is_mapped(
    policy: DockerSettings, tmp_path: Path
):
    built = version(tmp_path, "one")
    first = prepare_simulation(policy, built)
    first.library.write_text("on")
    with first.library.open() as mapped:
        assert prepare_simulation(policy, built) == first
        assert first.library.read_text() == "one"
        assert mapped.read() == "on"
