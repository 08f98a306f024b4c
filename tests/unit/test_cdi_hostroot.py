"""The host's paths, seen from a node that has the host's root folder somewhere else."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdiworld import make_file, make_node, make_program, needs_root
from gpuslice.errors import Refused
from gpuslice.node.docker import hostroot
from gpuslice.node.docker.cdi import DeviceNode, Edits, Hook, Mount
from gpuslice.node.docker.hostroot import HostRoot, as_on_host, reachable_root

ADVICE = "Do this."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "host root"
    root.mkdir()
    return root


def mount(path: str) -> Edits:
    return Edits(mounts=(Mount(host_path=path, container_path="/x"),))


def hook(path: str) -> Edits:
    return Edits(hooks=(Hook(hook_name="createContainer", path=path),))


def refused(edits: Edits, root: Path) -> str:
    with pytest.raises(Refused) as no:
        as_on_host(edits, HostRoot(str(root)), ADVICE)
    assert no.value.refusal.reason == "device-unavailable"
    assert no.value.refusal.message.endswith(f". {ADVICE}")
    return no.value.refusal.message


# --- links --------------------------------------------------------------------------------------


def test_a_link_leads_where_it_leads_on_the_host(root: Path):
    make_file(root / "usr/lib/a")
    (root / "lib").symlink_to("usr/lib")
    (root / "var").mkdir()
    (root / "var/lib").symlink_to("/lib")
    (root / "up").symlink_to("var/../../../../usr/lib/a")
    host = HostRoot(str(root))
    for path in ("/usr/lib/a", "/lib/a", "/var/lib/a", "/var/lib/../lib/a", "/up", "/../up"):
        assert host.find(path) == root / "usr/lib/a", path


def test_a_link_never_leads_out_of_the_hosts_root(root: Path, tmp_path: Path):
    make_file(tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(FileNotFoundError):
        HostRoot(str(root)).stat("/link")
    assert "/link does not exist" in refused(mount("/link"), root)


def test_links_in_a_circle_come_to_an_end(root: Path):
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("/a")
    assert "/a is out of reach" in refused(mount("/a"), root)


def test_the_nodes_own_root_is_a_hosts_root_too(tmp_path: Path):
    make_file(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert HostRoot("/").find(str(tmp_path / "link")) == (tmp_path / "file").resolve()


# --- what is there ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edits", "named"),
    [
        (mount("/usr/lib/libcuda.so.1"), "file /usr/lib/libcuda.so.1 does not exist"),
        (hook("/usr/bin/nvidia-cdi-hook"), "hook /usr/bin/nvidia-cdi-hook does not exist"),
        (Edits(device_nodes=(DeviceNode(path="/dev/nvidia0"),)), "node /dev/nvidia0 does not"),
    ],
)
def test_what_is_missing_is_named(root: Path, edits: Edits, named: str):
    assert named in refused(edits, root)


def test_a_path_through_a_file_is_named(root: Path):
    make_file(root / "usr")
    assert "/usr/lib is out of reach (Not a directory)" in refused(mount("/usr/lib"), root)


def test_a_hook_has_to_be_a_program(root: Path):
    make_file(root / "bin/hook")
    assert "/bin/hook is no program" in refused(hook("/bin/hook"), root)
    (root / "bin/folder").mkdir()
    assert "/bin/folder is no program" in refused(hook("/bin/folder"), root)
    make_program(root / "bin/hook")
    assert as_on_host(hook("/bin/hook"), HostRoot(str(root)), ADVICE) == hook("/bin/hook")


def test_a_device_node_has_to_be_one(root: Path):
    make_file(root / "dev/nvidia0")
    edits = Edits(device_nodes=(DeviceNode(path="/dev/nvidia0"),))
    assert "/dev/nvidia0 is no device node" in refused(edits, root)


def test_a_node_is_taken_as_it_is():
    """On the machine itself: everybody has this one."""
    edits = Edits(device_nodes=(DeviceNode(path="/dev/nvidia0", host_path="/dev/zero", gid=4),))
    assert as_on_host(edits, HostRoot("/"), ADVICE).device_nodes == (
        DeviceNode(
            path="/dev/nvidia0", host_path="/dev/zero", gid=4, type="c", major=1, minor=5,
            file_mode=0o666, permissions="rw",
        ),
    )  # fmt: skip


def test_a_node_with_another_number_is_another_device():
    old = DeviceNode(path="/dev/nvidia0", host_path="/dev/zero", major=1, minor=3)
    assert "/dev/zero is 1:5 now and was 1:3" in refused(Edits(device_nodes=(old,)), Path("/"))
    old = DeviceNode(path="/dev/nvidia0", host_path="/dev/zero", major=195, minor=5)
    assert "1:5 now and was 195:5" in refused(Edits(device_nodes=(old,)), Path("/"))


@needs_root
def test_nodes_below_another_root(root: Path):
    make_node(root / "dev/nvidia3", 195, 3, 0o640)
    (root / "dev/link").symlink_to("nvidia3")
    edits = Edits(device_nodes=(DeviceNode(path="/dev/link", permissions="rwm"),))
    (node,) = as_on_host(edits, HostRoot(str(root)), ADVICE).device_nodes
    assert (node.major, node.minor, node.file_mode) == (195, 3, 0o640)
    # Whoever can make nodes can make any.
    assert node.permissions == "rw"
    assert os.major((root / "dev/nvidia3").stat().st_rdev) == 195


# --- which root folder --------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[str]:
    """A socket on which this very process listens, as the engine does on its own."""
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(tmp_path / "e.sock")
        listener.bind(path)
        listener.listen()
        yield path


def test_the_root_that_is_configured_is_taken_if_it_can_be_entered(root: Path) -> None:
    assert reachable_root(str(root), "/no/engine") == str(root)
    with pytest.raises(FileNotFoundError):
        reachable_root(str(root / "missing"), "/no/engine")


def test_a_root_that_is_shut_is_replaced_by_the_engine_s(
    root: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = f"/proc/{os.getpid()}/root"
    monkeypatch.setattr(hostroot, "_opens", lambda path: path != str(root))
    assert reachable_root(str(root), engine) == mine
    monkeypatch.setattr(hostroot, "_opens", lambda path: False)
    with pytest.raises(PermissionError, match="neither"):
        reachable_root(str(root), engine)
