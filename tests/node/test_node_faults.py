"""SIGKILL of node, supervisor, both; reused pids; damaged folders: nothing is lost or invented."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpuslice.node.leasedir import LeaseDir, Record, TornFile
from gpuslice.nodeclient import NodeRefused, NodeUnavailable, short_address
from gpuslice.wire import ServerState
from realnode import DEADLINE_S, FakeService, Node, call, lives, until

FOREVER = "import time\nprint('up', flush=True)\ntime.sleep(600)"
#: A server with a kernel in a session of its own: it outlives its parent.
WITH_KERNEL = """
import subprocess, sys, time
kernel = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                          start_new_session=True)
print("kernel", kernel.pid, flush=True)
time.sleep(600)
"""


def record(node: Node, lease: str) -> Record:
    found = node.dir(lease).read_record()
    assert found is not None
    return found


def with_kernel(node: Node) -> tuple[str, int]:
    lease = node.run(WITH_KERNEL)
    return lease, int(node.said(lease, "kernel").split()[1])


def test_servers_outlive_the_node_and_the_next_one_knows_them(node: Node) -> None:
    leases = [node.run(FOREVER) for _ in range(3)]
    before = [node.wait(lease, ServerState.RUNNING) for lease in leases]
    node.kill()
    with pytest.raises(NodeUnavailable):
        call(node.client.listing())
    pids = [record(node, lease).child_pid for lease in leases]
    assert all(map(lives, pids))
    node.start()
    after = [node.server(lease) for lease in leases]
    assert [s.started_us for s in after] == [s.started_us for s in before]
    assert {s.state for s in after} == {ServerState.RUNNING}
    assert all(a.alive_til_us > b.alive_til_us for a, b in zip(after, before, strict=True))
    call(node.client.stop(leases[0], 0))
    assert node.wait(leases[0], ServerState.EXITED).exit_code in (-9, -15)


def test_an_end_while_the_node_is_down_is_known_exactly(node: Node) -> None:
    lease = node.run(FOREVER)
    node.said(lease, "up")
    node.kill()
    os.kill(record(node, lease).child_pid, signal.SIGKILL)
    until(lambda: record(node, lease).state == "exited", "the supervisor writes the end")
    node.start()
    ended = node.server(lease)
    assert ended.finished_us == record(node, lease).finished_us
    assert ended.exit_code == -9


def test_a_killed_supervisor_ends_its_server_at_a_time_unknown(node: Node) -> None:
    lease, kernel = with_kernel(node)
    was = record(node, lease)
    os.kill(was.supervisor_pid, signal.SIGKILL)
    ended = node.wait(lease, ServerState.EXITED)
    assert ended.started_us == was.started_us
    assert (ended.finished_us, ended.exit_code) == (None, None)
    assert "supervisor was killed" in (ended.message or "")
    until(lambda: not lives(was.child_pid) and not lives(kernel), "server and kernel end")
    assert call(node.client.release(lease)).clean
    assert node.server(lease) is None


def test_node_and_supervisor_killed_at_once(node: Node) -> None:
    lease, kernel = with_kernel(node)
    was = record(node, lease)
    node.kill()
    os.kill(was.supervisor_pid, signal.SIGKILL)
    node.start()
    ended = node.server(lease)
    assert (ended.state, ended.started_us, ended.finished_us) == (
        ServerState.EXITED, was.started_us, None,
    )  # fmt: skip
    until(lambda: not lives(was.child_pid) and not lives(kernel), "server and kernel end")
    until(lambda: record(node, lease).state == "lost", "it is written down")
    assert call(node.client.release(lease)).clean


def test_release_ends_what_a_killed_supervisor_left_before_it_answers(node: Node) -> None:
    lease, kernel = with_kernel(node)
    was = record(node, lease)
    os.kill(was.supervisor_pid, signal.SIGKILL)
    until(lambda: not lives(was.supervisor_pid), "the supervisor ends")
    assert call(node.client.release(lease)).clean
    assert not lives(was.child_pid)
    assert not lives(kernel)


def test_a_supervisor_killed_before_the_start_never_starts(
    node: Node, service: FakeService
) -> None:
    service.hold = threading.Event()
    lease = node.run(FOREVER)
    until(lambda: service.asked, "the supervisor asks")
    os.kill(record(node, lease).supervisor_pid, signal.SIGKILL)
    ended = node.wait(lease, ServerState.EXITED)
    assert (ended.started_us, ended.finished_us) == (None, None)
    assert call(node.client.release(lease)).clean


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A living process that has nothing to do with any lease, in a session of its own."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    process = subprocess.Popen(command, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_reused_pid_is_not_taken_for_the_old_server(
    node: Node, bystander: subprocess.Popen[bytes]
) -> None:
    """Supervisor and child are gone; their pids now belong to somebody else's process."""
    lease = node.run(FOREVER)
    node.said(lease, "up")
    was = record(node, lease)
    node.kill()
    os.kill(was.supervisor_pid, signal.SIGKILL)
    until(lambda: not lives(was.child_pid), "the server ends with its supervisor")
    reused = replace(was, supervisor_pid=bystander.pid, child_pid=bystander.pid)
    node.dir(lease).write_record(reused)
    node.start()
    ended = node.server(lease)
    assert (ended.state, ended.finished_us) == (ServerState.EXITED, None)
    call(node.client.stop(lease, 0))
    until(lambda: record(node, lease).state == "lost", "it is written down")
    assert call(node.client.release(lease)).clean
    assert bystander.poll() is None


def test_the_same_pid_and_birth_in_another_boot_is_not_it_either(node: Node) -> None:
    lease = node.run(FOREVER)
    node.said(lease, "up")
    was = record(node, lease)
    node.dir(lease).write_record(replace(was, boot_id="0" * 8))
    ended = node.server(lease)
    assert (ended.state, ended.finished_us) == (ServerState.EXITED, None)
    assert ended.boot_id == "0" * 8
    assert "machine was restarted" in (ended.message or "")
    os.kill(was.supervisor_pid, signal.SIGKILL)


def test_a_stuck_supervisor_is_bypassed(node: Node) -> None:
    lease, kernel = with_kernel(node)
    was = record(node, lease)
    os.kill(was.supervisor_pid, signal.SIGSTOP)
    call(node.client.stop(lease, 0))
    node.restart()
    ended = node.wait(lease, ServerState.EXITED)
    assert ended.finished_us is None
    until(lambda: not lives(was.child_pid) and not lives(kernel), "server and kernel end")
    assert not lives(was.supervisor_pid)
    assert call(node.client.release(lease)).clean


@pytest.mark.parametrize("body", [b"", b'{"state": "running", "boot_id": "b"}'])
def test_a_torn_record_is_told_hides_nobody_and_leaves_nothing(node: Node, body: bytes) -> None:
    whole = node.run(FOREVER)
    torn, kernel = with_kernel(node)
    was = record(node, torn)
    (node.dir(torn).path / "record.json").write_bytes(body)
    ended = node.server(torn)
    assert (ended.state, ended.started_us, ended.finished_us) == (ServerState.EXITED, None, None)
    assert ended.user == "ada"
    assert "record" in (ended.message or "")
    assert node.server(whole).state is ServerState.RUNNING
    until(lambda: not lives(was.child_pid) and not lives(kernel), "server and kernel end")
    assert call(node.client.release(torn)).clean


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"NaN", b'{"state": "running"}',
        b'{"state": "gone", "boot_id": "b", "supervisor_pid": 1, "supervisor_ticks": 1}',
        b'{"state": "created", "boot_id": "b", "supervisor_pid": "1", "supervisor_ticks": 1}',
        b'{"state": "created", "boot_id": "b", "supervisor_pid": true, "supervisor_ticks": 1}',
        b'{"state": "running", "boot_id": "b", "supervisor_pid": 1, "supervisor_ticks": 1}',
        b'{"state": "created", "boot_id": "b", "supervisor_pid": 1, "supervisor_ticks": 1, "x": 1}',
    ],
)  # fmt: skip
def test_what_is_no_record_is_never_read_as_one(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "record.json").write_bytes(body)
    with pytest.raises(TornFile):
        LeaseDir(tmp_path).read_record()


def test_a_lost_record_of_a_claimed_lease_is_told(node: Node) -> None:
    lease = node.run("pass")
    node.wait(lease, ServerState.EXITED)
    (node.dir(lease).path / "record.json").unlink()
    ended = node.server(lease)
    assert (ended.state, ended.finished_us) == (ServerState.EXITED, None)


def test_a_list_that_would_be_incomplete_is_an_error(node: Node) -> None:
    node.run(FOREVER)
    stray = node.state / "leases" / ("a" * 32)
    stray.write_text("not a folder: what it stands for cannot be told")
    with pytest.raises(NodeUnavailable) as problem:
        call(node.client.listing())
    assert problem.value.reason == "node-error"
    stray.unlink()
    assert len(call(node.client.listing()).servers) == 1


def test_what_a_killed_node_left_half_done_is_finished(node: Node) -> None:
    fenced = node.prepare()
    node.kill()
    node.dir(fenced).fence()
    (node.state / "leases" / ".new-draft").mkdir()
    node.start()
    assert not node.dir(fenced).path.exists()
    assert list((node.state / "leases").iterdir()) == []
    with pytest.raises(NodeRefused):
        call(node.client.start(node.spec(fenced, "pass")))


def test_a_second_node_on_the_same_folder_refuses(node: Node) -> None:
    command = [
        sys.executable, "-P", "-m", "gpuslice.node", "--state", str(node.state),
        "--service-url", node.service_url, "--token-file", str(node.token),
    ]  # fmt: skip
    second = subprocess.run(
        command, env=node.environment(), capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert second.returncode == 1
    assert "another node is using" in second.stderr
    assert call(node.client.listing()).servers == []


def test_any_state_folder_will_do(make_node: Callable[..., Node], tmp_path: Path) -> None:
    node = make_node(tmp_path / f"a b ünï {'x' * 120}")
    lease = node.run(FOREVER)
    assert node.wait(lease, ServerState.RUNNING)
    node.restart()
    assert node.wait(lease, ServerState.RUNNING)


def test_short_addresses() -> None:
    with short_address("/tmp/x.sock") as address:
        assert address == "/tmp/x.sock"


def test_the_node_ends_on_sigterm_and_leaves_its_servers(node: Node) -> None:
    lease = node.run(FOREVER)
    node.said(lease, "up")
    assert node.process is not None
    node.process.terminate()
    assert node.process.wait(DEADLINE_S) == 0
    assert not (node.state / "control.sock").exists()
    assert lives(record(node, lease).child_pid)
    node.start()
    assert node.server(lease).state is ServerState.RUNNING
