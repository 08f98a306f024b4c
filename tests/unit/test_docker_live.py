"""Processes are counted as a container's only while they can be told for certain."""

from __future__ import annotations

import os
import subprocess
import sys

from gpuslice import wire
from gpuslice.node.docker.live import ContainerServers, Running, container_processes
from realnode import cpu_slice

LEASE = "0123456789abcdef0123456789abcdef"


def test_a_process_of_this_machine_itself_is_no_containers() -> None:
    """A container's first process has ended, and its number was given to another one."""
    assert container_processes([os.getpid()]) == {os.getpid(): frozenset()}


def test_a_process_that_is_gone_has_left_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert container_processes([ended.pid, 0]) == {ended.pid: frozenset(), 0: frozenset()}


def test_a_lease_whose_container_has_just_ended_has_no_processes() -> None:
    piece = cpu_slice(
        LEASE, kind=wire.SliceKind.SHARED, device_uuid="GPU-1", share_milli=250,
        slice_type="quarter",
    )  # fmt: skip
    servers = ContainerServers()
    assert servers.live() == []
    servers.update([Running(piece, "GPU-1", os.getpid())])
    (live,) = servers.live()
    assert (live.lease_id, live.kind, live.device_uuid, live.share_milli, live.pids) == (
        LEASE, wire.SliceKind.SHARED, "GPU-1", 250, frozenset()
    )  # fmt: skip
    assert servers.remembered(LEASE) == set()
    servers.update([])
    assert servers.live() == []
