"""The life of a server: prepared, started, seen, stopped, released, with exact times."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest

from gpuslice.node.leasedir import Record
from gpuslice.node.procs import all_processes, descendants
from gpuslice.nodeclient import NodeRefused
from gpuslice.units import boot_id, boottime_us
from gpuslice.wire import ServerState
from realnode import FakeService, Node, call, lives, until

FOREVER = "import time\nprint('up')\ntime.sleep(600)"


def record(node: Node, lease_id: str) -> Record:
    found = node.dir(lease_id).read_record()
    assert found is not None
    return found


def test_a_life_from_prepare_to_release_states_exact_microseconds(
    node: Node, service: FakeService
) -> None:
    lease = node.prepare(user="ada lovelace", server="lab")
    listing = call(node.client.listing())
    assert listing.slices == [lease]
    assert listing.servers == []
    assert call(node.client.server(lease)) is None

    call(node.client.start(node.spec(lease, "import time; time.sleep(1); raise SystemExit(3)")))
    running = node.wait(lease, ServerState.RUNNING)
    path, authorization, sent = service.asked[0]
    assert path == f"/services/gpu%20slice/api/node/leases/{lease}/started"
    assert authorization == "token secret-of-the-node"
    assert sent == {"started_us": running.started_us, "boot_id": boot_id()}
    assert (running.user, running.server) == ("ada lovelace", "lab")
    assert running.alive_til_us is not None and running.started_us is not None
    assert running.alive_til_us >= running.started_us
    assert running.finished_us is None
    assert node.server(lease).alive_til_us >= running.alive_til_us

    ended = node.wait(lease, ServerState.EXITED)
    assert (ended.exit_code, ended.started_us) == (3, running.started_us)
    # Stated once, and the same for ever: to the microsecond.
    assert ended.finished_us == record(node, lease).finished_us
    assert ended.finished_us - ended.started_us >= 1_000_000
    assert ended.alive_til_us is None
    assert node.server(lease) == ended

    assert call(node.client.release(lease)).clean
    assert node.server(lease) is None
    assert call(node.client.listing()).slices == []
    assert not node.dir(lease).path.exists()
    assert call(node.client.release(lease)).clean


def test_nothing_is_stated_alive_after_its_end(node: Node) -> None:
    """Looked at all the time while it ends: a heartbeat never bills more than the end does."""
    for _ in range(5):
        lease = node.run("import time; time.sleep(0.2)")
        alive = []
        while (server := node.server(lease)).state is not ServerState.EXITED:
            alive.append(server.alive_til_us or 0)
        assert server.started_us is not None and server.finished_us is not None
        assert max(alive) <= server.finished_us
        assert server.finished_us - server.started_us >= 200_000


def test_the_end_is_counted_on_the_boot_clock(node: Node) -> None:
    """The wall clock may be set meanwhile: the end is the start plus the time that passed."""
    lease = node.run(FOREVER)
    node.said(lease, "up")
    before = record(node, lease)
    os.kill(before.child_pid, signal.SIGKILL)
    node.wait(lease, ServerState.EXITED)
    after = record(node, lease)
    assert after.started_boottime_us == before.started_boottime_us
    assert after.finished_us > after.started_us
    assert after.finished_us <= after.started_us + boottime_us() - after.started_boottime_us


def test_the_server_gets_its_own_environment_and_nothing_of_the_nodes(node: Node) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "HELLO": "wörld",
        "LD_PRELOAD": "",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "CUDA_MPS_PIPE_DIRECTORY": "/tmp",
        "CUDA_DEVICE_MEMORY_LIMIT_0": "1T",
        "GPUSLICE_LEASE": "f" * 32,
        "NVMLSIM_STATE": "/elsewhere",
    }
    code = (
        "import json,os,signal,sys\n"
        "print(json.dumps([dict(os.environ), os.getcwd(), os.getpgid(0) == os.getpid(),\n"
        " [s.name for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])],\n"
        " sorted(os.listdir('/proc/self/fd'))[:-1], os.readlink('/proc/self/fd/0')]))"
    )
    lease = node.run(code, env=env)
    node.wait(lease, ServerState.EXITED)
    environment, cwd, leads_group, blocked, handles, stdin = json.loads(
        call(node.client.log_tail(lease))
    )
    environment.pop("LC_CTYPE", None)  # Python's own doing
    assert environment == {
        "PATH": os.environ["PATH"],
        "HELLO": "wörld",
        "GPUSLICE_LEASE": lease,
        "CUDA_VISIBLE_DEVICES": "",
        "NVIDIA_VISIBLE_DEVICES": "void",
    }
    assert cwd == str(node.folder / f"home of {lease}")
    assert leads_group
    assert blocked == []
    assert handles == ["0", "1", "2"]
    assert stdin == "/dev/null"


def test_a_crash_is_told_with_its_signal(node: Node) -> None:
    lease = node.run("import os; os.kill(os.getpid(), 11)")
    ended = node.wait(lease, ServerState.EXITED)
    assert ended.exit_code == -11
    assert ended.message == "killed by signal 11"


def test_a_program_that_cannot_be_started_is_told(node: Node) -> None:
    lease = node.run("", argv=["/no/such/program"])
    ended = node.wait(lease, ServerState.EXITED)
    assert ended.exit_code == 127
    assert "/no/such/program" in (ended.message or "")
    assert call(node.client.release(lease)).clean


def test_a_stop_is_gentle_first(node: Node) -> None:
    lease = node.run(
        "import signal,time\n"
        "signal.signal(signal.SIGTERM, lambda *_: exit(7))\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    node.said(lease, "up")
    call(node.client.stop(lease, 60))
    call(node.client.stop(lease, 60))
    assert node.wait(lease, ServerState.EXITED).exit_code == 7
    call(node.client.stop(lease))


def test_a_server_that_ignores_its_stop_is_killed_after_the_grace(node: Node) -> None:
    lease = node.run(
        "import signal,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    node.said(lease, "up")
    call(node.client.stop(lease, 600))
    assert node.wait(lease, ServerState.RUNNING)
    # Less patient: it shortens the first.
    call(node.client.stop_server(lease, 0.2))
    assert node.wait(lease, ServerState.EXITED).exit_code == -9


DAEMONS = """
import os, signal, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.execvpe("sleep", ["sleep", "600"], {"PATH": os.environ["PATH"]})
        os._exit(0)
time.sleep(0.5)
print("up", flush=True)
"""


def children_of(node: Node, lease_id: str) -> list[int]:
    found = descendants(all_processes(), [record(node, lease_id).supervisor_pid])
    return [process.pid for process in found]


def test_what_a_server_leaves_behind_is_killed_and_not_billed(node: Node) -> None:
    """Daemons in sessions of their own, without our mark, that ignore SIGTERM."""
    lease = node.run(DAEMONS + "time.sleep(1.5)")
    node.said(lease, "up")
    daemons = children_of(node, lease)
    assert len(daemons) == 4  # the server and three daemons
    ended = node.wait(lease, ServerState.EXITED)
    assert ended.exit_code == 0
    supervisor = record(node, lease).supervisor_pid
    until(lambda: not lives(supervisor), "the supervisor ends")
    assert [pid for pid in daemons if lives(pid)] == []
    assert node.server(lease).finished_us == ended.finished_us
    assert call(node.client.release(lease)).clean


def test_daemons_do_not_survive_a_stop(node: Node) -> None:
    lease = node.run(DAEMONS + "time.sleep(600)")
    node.said(lease, "up")
    daemons = children_of(node, lease)
    call(node.client.stop(lease, 5))
    node.wait(lease, ServerState.EXITED)
    until(lambda: not any(map(lives, daemons)), "all daemons end")
    assert call(node.client.release(lease)).clean


def test_release_is_refused_while_it_runs(node: Node) -> None:
    lease = node.run(FOREVER)
    node.said(lease, "up")
    with pytest.raises(NodeRefused) as refused:
        call(node.client.release(lease))
    assert (refused.value.reason, refused.value.status) == ("still-running", 409)
    assert node.server(lease).state is ServerState.RUNNING
    call(node.client.stop(lease, 1))
    node.wait(lease, ServerState.EXITED)
    assert call(node.client.release(lease)).clean


def test_no_zombies_and_no_child_of_the_node(node: Node) -> None:
    leases = [node.run("pass") for _ in range(3)]
    for lease in leases:
        node.wait(lease, ServerState.EXITED)
    assert node.process is not None
    children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children")
    assert children.read_text().split() == []


def test_the_log_is_bounded_and_its_end_is_told(node: Node) -> None:
    lease = node.run("for i in range(200_000): print('line', i, 'x' * 60)\nprint('the end')")
    node.wait(lease, ServerState.EXITED)
    last = call(node.client.log_tail(lease, 3)).splitlines()
    assert last[-1] == "the end"
    assert len(last) <= 3
    assert len(call(node.client.log_tail(lease, 1000))) <= 64 * 1024
    with pytest.raises(NodeRefused):
        call(node.client.log_tail(lease, 10**9))


def test_everything_is_private(node: Node) -> None:
    lease = node.prepare()
    assert stat.S_IMODE(node.state.stat().st_mode) == 0o700
    for name in ("control.sock", "engine.sock"):
        assert stat.S_IMODE((node.state / name).stat().st_mode) == 0o600
    for path in (node.dir(lease).path, *node.dir(lease).path.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
