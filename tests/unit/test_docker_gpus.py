"""Which GPUs a node with containers offers: the host's, or simulated ones where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuslice.node.docker.gpus import choose, host_library
from gpuslice.node.docker.hostroot import HostRoot
from gpuslice.settings import DockerSettings
from nvmlsim import build_library


@pytest.fixture(scope="module")
def simulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvmlsim"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The host's root folder as a node in a container sees it: somewhere else."""
    root = tmp_path / "host"
    root.mkdir()
    return root


def policy(root: Path) -> DockerSettings:
    return DockerSettings(host_root=str(root), host_dir=str(root / "gpuslice"))


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "folder", ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib",
               "usr/local/nvidia/lib64", "usr/lib/wsl/lib"],
)  # fmt: skip
def test_the_hosts_library_is_found_where_it_usually_is(root: Path, folder: str) -> None:
    library = put(root / folder / "libnvidia-ml.so.1")
    assert host_library(HostRoot(str(root))) == library


def test_links_of_the_host_are_followed_on_the_host(root: Path) -> None:
    library = put(root / "opt/nvidia/libnvidia-ml.so.575")
    link = root / "usr/lib64/libnvidia-ml.so.1"
    link.parent.mkdir(parents=True)
    # As the host means it. Here there is no such file.
    link.symlink_to("/opt/nvidia/libnvidia-ml.so.575")
    assert host_library(HostRoot(str(root))) == library


def test_without_a_library_there_is_none(root: Path) -> None:
    assert host_library(HostRoot(str(root))) is None


def test_real_gpus_where_there_is_a_library(root: Path, tmp_path: Path) -> None:
    library = put(root / "usr/lib64/libnvidia-ml.so.1")
    chosen = choose(policy(root), None, tmp_path / "built", simulated=False)
    assert (chosen.library, chosen.simulation, chosen.because) == (library, None, None)
    assert not (tmp_path / "built").exists()


def test_a_library_that_is_named_wins(root: Path, tmp_path: Path) -> None:
    put(root / "usr/lib64/libnvidia-ml.so.1")
    named = put(tmp_path / "mine.so")
    chosen = choose(policy(root), named, tmp_path / "built", simulated=False)
    assert (chosen.library, chosen.simulation) == (named, None)


def test_a_driver_without_its_library_is_a_problem_and_no_simulation(
    root: Path, tmp_path: Path
) -> None:
    put(root / "proc/driver/nvidia/version")
    chosen = choose(policy(root), None, tmp_path / "built", simulated=False)
    assert (chosen.library, chosen.simulation) == (None, None)


@pytest.mark.parametrize("asked", [True, False])
def test_simulated_gpus_when_asked_for_or_when_there_is_nothing_else(
    root: Path, simulated_library: Path, *, asked: bool
) -> None:
    """They are put where containers can be given them."""
    if asked:
        put(root / "usr/lib64/libnvidia-ml.so.1")
        chosen = choose(policy(root), simulated_library, root / "built", simulated=True)
        assert chosen.because == "asked for"
    else:
        chosen = choose(policy(root), None, root / "built", simulated=False)
        assert chosen.because is not None
        assert "no NVIDIA driver" in chosen.because
    assert chosen.simulation is not None
    assert chosen.library == chosen.simulation.library
    for file in (chosen.simulation.library, chosen.simulation.state):
        assert file.is_relative_to(root / "gpuslice")
        assert file.exists()
