"""Threads for calls that block."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from gpuslice.spawners.pools import DaemonPool

LIMIT_S = 30


def test_so_many_at_once_and_no_more() -> None:
    pool, go_on = DaemonPool(3, "test"), threading.Event()
    inside, lock, most = set(), threading.Lock(), []

    def call(number: int) -> int:
        with lock:
            inside.add(number)
            most.append(len(inside))
        go_on.wait(LIMIT_S)
        with lock:
            inside.remove(number)
        return number

    calls = [pool.submit(call, number) for number in range(10)]
    deadline = time.monotonic() + LIMIT_S
    while len(inside) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert inside == {0, 1, 2}
    go_on.set()
    assert [call.result(LIMIT_S) for call in calls] == list(range(10))
    assert max(most) == 3


def test_threads_are_used_again_and_an_error_reaches_its_caller_only() -> None:
    pool = DaemonPool(50, "again")

    def fail() -> None:
        raise ValueError("so it is")

    names = {pool.submit(lambda: threading.current_thread().name).result(LIMIT_S)
             for _ in range(20)}  # fmt: skip
    with pytest.raises(ValueError, match="so it is"):
        pool.submit(fail).result(LIMIT_S)
    assert pool.submit(int, "7").result(LIMIT_S) == 7
    assert len(names) == 1


def test_a_call_that_is_cancelled_while_it_waits_is_never_made() -> None:
    pool, go_on, made = DaemonPool(1, "test"), threading.Event(), []
    first = pool.submit(go_on.wait, LIMIT_S)
    second = pool.submit(made.append, 1)
    third = pool.submit(made.append, 2)
    assert second.cancel()
    go_on.set()
    first.result(LIMIT_S)
    third.result(LIMIT_S)
    assert made == [2]


def test_a_process_ends_while_a_call_still_runs() -> None:
    code = (
        "import threading\nfrom gpuslice.spawners.pools import DaemonPool\n"
        "running = threading.Event()\n"
        "def call(): running.set(); threading.Event().wait()\n"
        "DaemonPool(1, 'x').submit(call)\nrunning.wait()\nprint('end')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "end\n"
