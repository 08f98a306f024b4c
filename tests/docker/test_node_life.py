"""A lease on the real engine: from its preparation to nothing being left of it, and how it ends."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from pathlib import Path
from typing import Any

import docker
import pytest

from dockernode import DockerNode, asynchronous, until
from dockerworld import cdi_file, containers_of
from gpuslice import wire
from gpuslice.containers import LABEL_LEASE, LABEL_NODE, network_name
from gpuslice.errors import Refused
from gpuslice.node.docker.api import EngineSaysNo
from gpuslice.node.docker.reports import parse_time
from gpuslice.units import MIB, boot_id
from gpuslice.wire import ServerState
from realnode import FakeService

pytestmark = pytest.mark.docker


def state(client: docker.DockerClient, container_id: str) -> dict[str, Any]:
    """What the engine itself says."""
    found: dict[str, Any] = client.api.inspect_container(container_id)["State"]
    return found


async def refused(work: Any) -> Refused:
    with pytest.raises(Refused) as raised:
        await work
    return raised.value


@asynchronous
async def test_the_life_of_a_lease(
    node: DockerNode, client: docker.DockerClient, service: FakeService
) -> None:
    piece = await node.prepare()
    lease = piece.lease_id
    listing = await node.leases.listing()
    assert (listing.servers, listing.slices) == ([], [lease])
    assert listing.node_id == node.node_id
    assert cdi_file(lease).exists()

    container_id = await node.create(piece)
    created = await node.listed(lease)
    assert created is not None
    assert (created.state, created.started_us, created.url) == (ServerState.CREATED, None, None)
    assert (created.user, created.server) == (node.user, "")
    assert service.asked == []

    await node.leases.start(lease)
    started_us = parse_time(state(client, container_id)["StartedAt"])
    (path, token, said) = service.asked[0]
    assert path.endswith(f"/api/node/leases/{lease}/started")
    assert (token, said) == (
        "token secret-of-the-node",
        {"started_us": started_us, "boot_id": boot_id()},
    )
    running = await node.listed(lease)
    assert running is not None
    assert (running.state, running.started_us) == (ServerState.RUNNING, started_us)
    assert running.alive_til_us is not None
    assert running.alive_til_us >= running.started_us
    assert running.url is not None
    assert running.url.endswith(":8888/user/ada/")
    assert await asyncio.to_thread(answers, running.url)
    assert (await node.leases.listing()).slices == [lease]

    refusal = await refused(node.release(lease))
    assert (refusal.refusal.reason, refusal.status) == ("still-running", 409)
    await node.leases.stop(lease, 5)
    ended = await node.wait(lease, ServerState.EXITED)
    assert ended.finished_us == parse_time(state(client, container_id)["FinishedAt"])
    assert (ended.started_us, ended.exit_code, ended.message) == (started_us, 0, None)
    assert await node.leases.server(lease) == ended

    # Only now does the container go, and everything with it.
    assert [one.id for one in containers_of(client, node.node_id)] == [container_id]
    assert await node.release(lease) == wire.ReleaseResult(clean=True)
    assert node.leftovers(client, lease) == []
    assert (await node.leases.listing()).slices == []
    assert await node.leases.server(lease) is None
    assert await node.release(lease) == wire.ReleaseResult(clean=True)
    assert (await refused(node.leases.prepare(piece))).refusal.reason == "ended"


def answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bool(answer.status == 200)


@asynchronous
async def test_alive_grows_with_the_boot_clock_and_not_with_the_wall_clock(
    node: DockerNode,
) -> None:
    lease = (await node.run()).lease_id
    before = await node.wait(lease, ServerState.RUNNING)
    assert before.alive_til_us is not None
    node.clock.boottime_us = 100_000_000
    node.clock.wall_us = 3_600_000_000
    later = await node.listed(lease)
    assert later is not None
    assert later.alive_til_us is not None
    passed = later.alive_til_us - before.alive_til_us
    assert 100_000_000 <= passed < 160_000_000
    await node.take_back(lease)


@asynchronous
async def test_a_server_that_is_killed_by_hand(
    node: DockerNode, client: docker.DockerClient
) -> None:
    piece = await node.prepare()
    container_id = await node.create(piece)
    await node.leases.start(piece.lease_id)
    client.api.kill(container_id)
    ended = await node.wait(piece.lease_id, ServerState.EXITED)
    assert ended.finished_us == parse_time(state(client, container_id)["FinishedAt"])
    assert (ended.exit_code, ended.oom) == (137, False)
    assert ended.message is not None
    assert "killed by signal 9" in ended.message
    assert (await node.release(piece.lease_id)).clean


@asynchronous
async def test_a_server_that_ends_by_itself(node: DockerNode) -> None:
    lease = (await node.run("/tiny", "exit", "7")).lease_id
    ended = await node.wait(lease, ServerState.EXITED)
    assert ended.started_us is not None
    assert ended.finished_us is not None
    assert ended.finished_us >= ended.started_us
    assert (ended.exit_code, ended.message) == (7, None)
    await node.release(lease)


@asynchronous
async def test_a_server_that_runs_out_of_memory(
    node: DockerNode, client: docker.DockerClient
) -> None:
    lease = (await node.run("/tiny", "eat", "300", ram_bytes=32 * MIB)).lease_id
    ended = await node.wait(lease, ServerState.EXITED)
    assert (ended.exit_code, ended.oom) == (137, True)
    assert ended.message == "oom: the server used more than the 32 MiB of RAM of its slice"
    assert ended.finished_us is not None
    await node.release(lease)
    assert node.leftovers(client, lease) == []


@asynchronous
async def test_a_container_that_is_removed_by_hand_while_it_runs(
    node: DockerNode, client: docker.DockerClient
) -> None:
    """Nobody knows then when it ended: the service bills to the last heartbeat."""
    piece = await node.prepare()
    container_id = await node.create(piece)
    await node.leases.start(piece.lease_id)
    await node.wait(piece.lease_id, ServerState.RUNNING)
    client.api.remove_container(container_id, force=True)
    assert await node.listed(piece.lease_id) is None
    assert await node.leases.server(piece.lease_id) is None
    assert (await node.release(piece.lease_id)).clean
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_an_end_that_was_seen_is_known_also_when_the_container_is_removed_by_hand(
    node: DockerNode, client: docker.DockerClient
) -> None:
    piece = await node.prepare()
    container_id = await node.create(piece, "/tiny", "exit", "3")
    await node.leases.start(piece.lease_id)
    ended = await node.wait(piece.lease_id, ServerState.EXITED)
    await node.leases.watch_once()
    client.api.remove_container(container_id)
    assert await node.listed(piece.lease_id) == ended
    await node.again()
    assert await node.listed(piece.lease_id) == ended
    await node.release(piece.lease_id)


@asynchronous
async def test_a_paused_server_runs(node: DockerNode, client: docker.DockerClient) -> None:
    piece = await node.prepare()
    container_id = await node.create(piece)
    await node.leases.start(piece.lease_id)
    client.api.pause(container_id)
    server = await node.listed(piece.lease_id)
    assert server is not None
    assert server.state is ServerState.RUNNING
    assert (await refused(node.release(piece.lease_id))).refusal.reason == "still-running"
    client.api.unpause(container_id)
    await node.take_back(piece.lease_id)


# --- starts that fail -----------------------------------------------------------------------


@asynchronous
async def test_a_command_that_is_not_in_the_image(
    node: DockerNode, client: docker.DockerClient, service: FakeService
) -> None:
    piece = await node.prepare()
    await node.create(piece, "/nowhere/jupyter")
    refusal = await refused(node.leases.start(piece.lease_id))
    assert "/nowhere/jupyter" in refusal.refusal.message
    server = await node.listed(piece.lease_id)
    assert server is not None
    assert (server.state, server.started_us, server.finished_us) == (
        ServerState.EXITED, None, None
    )  # fmt: skip
    assert server.message is not None
    assert "/nowhere/jupyter" in server.message
    assert "OCI runtime" not in server.message
    assert service.asked == []
    await node.take_back(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_a_device_that_is_gone_before_the_start(
    node: DockerNode, client: docker.DockerClient
) -> None:
    piece = await node.prepare()
    await node.create(piece)
    cdi_file(piece.lease_id).unlink()
    refusal = await refused(node.leases.start(piece.lease_id))
    assert refusal.refusal.reason == "device-unavailable"
    # It was not tried: the engine was never asked, so it may still come about.
    await node.leases.prepare(piece)
    assert not cdi_file(piece.lease_id).exists()
    assert node.marker(piece.lease_id) == "claimed"
    await node.take_back(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_a_device_that_goes_while_it_is_being_started(
    node: DockerNode, client: docker.DockerClient, proxy: Any
) -> None:
    piece = await node.prepare()
    await node.create(piece)
    held = proxy.hang("POST", "/start$")
    starting = asyncio.create_task(node.leases.start(piece.lease_id))
    await asyncio.to_thread(held.wait_hit)
    cdi_file(piece.lease_id).unlink()
    held.release()
    refusal = await refused(starting)
    assert "CDI device" in refusal.refusal.message
    server = await node.listed(piece.lease_id)
    assert server is not None
    assert (server.state, server.started_us) == (ServerState.EXITED, None)
    assert "CDI device" in (server.message or "")
    await node.take_back(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_a_start_that_the_service_refuses_is_stopped(
    node: DockerNode, client: docker.DockerClient, service: FakeService
) -> None:
    service.status, service.body = 409, {"message": "This lease is being stopped."}
    piece = await node.prepare()
    await node.create(piece, "/tiny", "stubborn")
    refusal = await refused(node.leases.start(piece.lease_id))
    assert (refusal.refusal.reason, refusal.status) == ("start-refused", 409)
    assert "This lease is being stopped." in refusal.refusal.message
    ended = await node.wait(piece.lease_id, ServerState.EXITED)
    assert ended.finished_us is not None
    await node.release(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@pytest.mark.parametrize("status", [500, 503, 302])
@asynchronous
async def test_a_service_that_does_not_answer_finds_the_server_in_the_list(
    node: DockerNode, service: FakeService, status: int
) -> None:
    service.status = status
    lease = (await node.run()).lease_id
    assert len(service.asked) == 1
    await node.wait(lease, ServerState.RUNNING)
    await node.take_back(lease)


@asynchronous
async def test_a_service_that_is_down_holds_nobody_up(node: DockerNode, tmp_path: Path) -> None:
    node.service_url = "http://127.0.0.1:9/services/gpuslice"
    await node.again()
    lease = (await node.run()).lease_id
    await node.wait(lease, ServerState.RUNNING)
    await node.take_back(lease)


# --- once, and by the rules -----------------------------------------------------------------


@asynchronous
async def test_one_create_and_one_start_per_lease(
    node: DockerNode, client: docker.DockerClient
) -> None:
    piece = await node.prepare()
    lease = piece.lease_id
    await node.leases.prepare(piece)
    outcomes = await asyncio.gather(*(node.create(piece) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(one, str) for one in outcomes) == 1
    assert len(containers_of(client, node.node_id)) == 1
    outcomes = await asyncio.gather(
        *(node.leases.start(lease) for _ in range(5)), return_exceptions=True
    )
    assert sum(one is None for one in outcomes) == 1
    assert {one.refusal.reason for one in outcomes if isinstance(one, Refused)} == {
        "already-started"
    }
    await node.leases.stop(lease, 5)
    await node.wait(lease, ServerState.EXITED)
    assert (await refused(node.leases.start(lease))).refusal.reason == "already-started"
    assert (await refused(node.create(piece))).refusal.reason == "already-started"
    changed = piece.model_copy(update={"ram_bytes": 65 * MIB})
    assert (await refused(node.leases.prepare(changed))).refusal.reason == "different-slice"
    await node.release(lease)


@asynchronous
async def test_what_was_not_prepared_is_not_created(
    node: DockerNode, client: docker.DockerClient
) -> None:
    piece = node.piece()
    assert (await refused(node.create(piece))).refusal.reason == "not-prepared"
    assert (await refused(node.leases.prepared(piece.lease_id))).refusal.reason == "not-prepared"
    assert (await refused(node.leases.start(piece.lease_id))).refusal.reason == "no-container"
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_what_is_wrong_with_a_body_is_said_before_anything_is_made(
    node: DockerNode, client: docker.DockerClient, proxy: Any
) -> None:
    piece = await node.prepare()
    assert await node.leases.prepared(piece.lease_id) == piece
    asked = len(proxy.calls)
    wanted = {**node.wanted(piece), "HostConfig": {"Privileged": True}}
    refusal = await refused(node.leases.create(piece.lease_id, node.name(piece), wanted))
    assert "Privileged" in refusal.refusal.message
    refusal = await refused(node.leases.create(piece.lease_id, "another", node.wanted(piece)))
    assert (refusal.refusal.reason, refusal.status) == ("wrong-name", 403)
    assert len(proxy.calls) == asked
    assert node.marker(piece.lease_id) == "prepared"
    await node.take_back(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_an_image_that_is_gone_is_said_and_may_come_back(
    node: DockerNode, proxy: Any
) -> None:
    piece = await node.prepare()
    proxy.answer("GET", "/images/.*/json", 404, "No such image", times=1)
    refusal = await refused(node.create(piece))
    assert (refusal.refusal.reason, refusal.status) == ("no-image", 404)
    await node.create(piece)
    await node.take_back(piece.lease_id)


@asynchronous
async def test_a_device_that_is_unwell_is_not_prepared(
    node: DockerNode, client: docker.DockerClient
) -> None:
    node.devices.trouble = "the device is unwell"
    piece = node.piece(kind=wire.SliceKind.EXCLUSIVE, device_uuid="GPU-1")
    refusal = await refused(node.leases.prepare(piece))
    assert (refusal.refusal.reason, refusal.refusal.message) == (
        "device-unavailable", "the device is unwell"
    )  # fmt: skip
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_a_device_that_cannot_be_written_leaves_nothing_and_may_be_tried_again(
    node: DockerNode, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = node.piece()

    async def fail(piece: wire.PrepareSlice) -> None:
        raise Refused("device-unavailable", "the library is gone")

    with monkeypatch.context() as patch:
        patch.setattr(node.cdi, "write", fail)
        assert "library" in (await refused(node.leases.prepare(piece))).refusal.message
    assert node.leftovers(client, piece.lease_id) == []
    await node.leases.prepare(piece)
    await node.take_back(piece.lease_id)


@asynchronous
async def test_a_slice_that_contradicts_itself(node: DockerNode) -> None:
    for piece in (node.piece(device_uuid="GPU-1"), node.piece(kind=wire.SliceKind.MIG)):
        assert (await refused(node.leases.prepare(piece))).refusal.reason == "bad-slice"


@asynchronous
async def test_containers_are_found_by_their_name_and_id_and_no_others(
    node: DockerNode, client: docker.DockerClient, tiny: str
) -> None:
    piece = await node.prepare()
    assert await node.leases.lease_of(node.name(piece)) is None
    container_id = await node.create(piece)
    other = client.containers.create(tiny, labels={LABEL_NODE: node.node_id})
    borrowed = client.containers.create(
        tiny, labels={LABEL_NODE: node.node_id, LABEL_LEASE: piece.lease_id}
    )
    for _ in range(2):
        assert await node.leases.lease_of(node.name(piece)) == piece.lease_id
        assert await node.leases.lease_of(container_id) == piece.lease_id
        for strange in (other.id, other.name, borrowed.id, borrowed.name, container_id[:-1], ""):
            assert await node.leases.lease_of(strange) is None
        await node.again()
    refusal = await refused(node.leases.remove(piece.lease_id))
    assert (refusal.refusal.reason, refusal.status) == ("not-settled", 409)
    await node.take_back(piece.lease_id)
    await node.leases.remove(piece.lease_id)
    assert await node.leases.lease_of(container_id) is None


@asynchronous
async def test_the_end_of_a_log(node: DockerNode) -> None:
    assert await node.leases.log_tail(node.new_lease(), 10) is None
    piece = await node.prepare()
    assert await node.leases.log_tail(piece.lease_id, 10) == ""
    await node.create(piece, "/tiny", "env")
    await node.leases.start(piece.lease_id)

    async def said() -> str | None:
        return await node.leases.log_tail(piece.lease_id, 100)

    async def ready() -> bool:
        return "ready" in (await said() or "")

    await until(ready, "the server prints")
    assert "NVIDIA_VISIBLE_DEVICES=void" in (await said() or "")
    assert await node.leases.log_tail(piece.lease_id, 1) == "ready\n"
    await node.take_back(piece.lease_id)


# --- stops ----------------------------------------------------------------------------------


@asynchronous
async def test_a_server_that_does_not_end_is_killed_when_its_time_is_up(
    node: DockerNode, client: docker.DockerClient
) -> None:
    lease = (await node.run("/tiny", "stubborn")).lease_id
    await node.leases.stop(lease, 1)
    ended = await node.wait(lease, ServerState.EXITED)
    assert (ended.exit_code, ended.message) == (137, None)
    await node.release(lease)
    assert node.leftovers(client, lease) == []


@asynchronous
async def test_a_second_stop_that_is_less_patient_counts_and_a_more_patient_one_does_not(
    node: DockerNode,
) -> None:
    lease = (await node.run("/tiny", "stubborn")).lease_id
    await node.leases.stop(lease, 600)
    await node.leases.stop(lease, 0.2)
    await node.leases.stop(lease, 600)
    await node.wait(lease, ServerState.EXITED)
    await node.release(lease)


@asynchronous
async def test_a_server_that_was_not_started_yet_never_will_be(
    node: DockerNode, client: docker.DockerClient
) -> None:
    prepared, created = await node.prepare(), await node.prepare(server="second")
    await node.create(created)
    for piece in (prepared, created):
        await node.leases.stop(piece.lease_id, 5)
        assert node.marker(piece.lease_id) in ("fenced", None)

    async def nothing_left() -> bool:
        return not node.leftovers(client, prepared.lease_id, created.lease_id)

    await until(nothing_left, "both are gone")
    assert (await refused(node.create(prepared))).refusal.reason == "ended"
    assert (await refused(node.leases.start(created.lease_id))).refusal.reason == "no-container"


@pytest.mark.parametrize("after", [False, True], ids=["not yet", "already"])
@asynchronous
async def test_a_stop_while_it_is_being_started(
    node: DockerNode, proxy: Any, *, after: bool
) -> None:
    """The engine has started it already, or not yet: it ends, and nobody has to ask again."""
    piece = await node.prepare()
    await node.create(piece)
    held = proxy.hang("POST", "/start$", after=after)
    starting = asyncio.create_task(node.leases.start(piece.lease_id))
    await asyncio.to_thread(held.wait_hit)
    await node.leases.stop(piece.lease_id, 5)
    held.release()
    await starting
    ended = await node.wait(piece.lease_id, ServerState.EXITED)
    assert ended.started_us is not None
    assert ended.finished_us is not None
    await node.release(piece.lease_id)


@asynchronous
async def test_a_stop_of_what_is_not_here_or_over_is_well(node: DockerNode) -> None:
    await node.leases.stop(node.new_lease(), 1)
    lease = (await node.run("/tiny", "exit", "0")).lease_id
    await node.wait(lease, ServerState.EXITED)
    await node.leases.stop(lease, 1)
    await node.release(lease)
    await node.leases.stop(lease, 1)


# --- devices --------------------------------------------------------------------------------


@asynchronous
async def test_an_unclean_device_is_told(node: DockerNode, client: docker.DockerClient) -> None:
    unclean = wire.ReleaseResult(clean=False, reason="processes are left on it: [7]")
    node.devices.clean = unclean
    lease = (await gpu_server(node)).lease_id
    await node.leases.stop(lease, 5)
    await node.wait(lease, ServerState.EXITED)
    assert await node.release(lease) == unclean
    node.devices.clean = wire.ReleaseResult(clean=True)
    assert await node.release(lease) == unclean
    assert node.leftovers(client, lease) == []


@asynchronous
async def test_a_device_that_cannot_be_asked_holds_its_slice(
    node: DockerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = (await gpu_server(node)).lease_id
    await node.leases.stop(lease, 5)
    await node.wait(lease, ServerState.EXITED)

    async def silent(uuid: str, pids: set[int]) -> wire.ReleaseResult:
        raise Refused("device-unknown", "NVML does not say whether the device is clean")

    with monkeypatch.context() as patch:
        patch.setattr(node.devices, "check_clean", silent)
        assert (await refused(node.release(lease))).refusal.reason == "device-unknown"
    assert node.store.get(lease) is not None
    await node.again()
    assert (await node.release(lease)).clean


@asynchronous
async def test_processes_of_a_container_are_its_own_also_those_that_were_put_into_it(
    node: DockerNode, client: docker.DockerClient
) -> None:
    mine, other = await gpu_server(node, "/tiny", "fork", "3"), await gpu_server(node, server="2")
    cpu = await node.run(server="cpu")
    container_id = containers_by_lease(client, node)[mine.lease_id]
    # No child of the server, or of anything in its container.
    execution = client.api.exec_create(container_id, ["/tiny", "wait"])
    client.api.exec_start(execution["Id"], detach=True)

    async def counted() -> bool:
        await node.leases.listing()
        return len(live(node).get(mine.lease_id, ())) == 5

    await until(counted, "the server, its 3 children and the one that was put in")
    found = live(node)
    assert set(found) == {mine.lease_id, other.lease_id}
    top = client.api.top(container_id)
    pid = top["Titles"].index("PID")
    assert found[mine.lease_id] == {int(row[pid]) for row in top["Processes"]}
    assert os.getpid() not in found[mine.lease_id] | found[other.lease_id]
    assert not found[mine.lease_id] & found[other.lease_id]
    await node.take_back(mine.lease_id)
    assert node.devices.checked == [("GPU-1", found[mine.lease_id])]
    assert set(live(node)) == {other.lease_id}
    for piece in (other, cpu):
        await node.take_back(piece.lease_id)


def live(node: DockerNode) -> dict[str, frozenset[int]]:
    return {one.lease_id: one.pids for one in node.servers.live()}


def containers_by_lease(client: docker.DockerClient, node: DockerNode) -> dict[str, str]:
    return {one.labels[LABEL_LEASE]: one.id for one in containers_of(client, node.node_id)}


async def gpu_server(node: DockerNode, *cmd: str, **changes: Any) -> wire.PrepareSlice:
    """A server with a device whose edits are empty: there is no GPU here."""
    piece = node.piece(kind=wire.SliceKind.EXCLUSIVE, device_uuid="GPU-1", **changes)
    original = node.cdi.write

    async def without_gpu(piece: wire.PrepareSlice) -> None:
        await original(piece.model_copy(update={"device_uuid": None}))

    node.cdi.write = without_gpu  # type: ignore[method-assign]
    await node.leases.prepare(piece)
    node.cdi.write = original  # type: ignore[method-assign]
    await node.create(piece, *cmd)
    await node.leases.start(piece.lease_id)
    return piece


# --- many -----------------------------------------------------------------------------------


@asynchronous
async def test_twenty_leases_at_once(node: DockerNode, client: docker.DockerClient) -> None:
    pieces = await asyncio.gather(*(node.run(server=f"server {number}") for number in range(20)))
    leases = {piece.lease_id for piece in pieces}
    listing = await node.leases.listing()
    assert {server.lease_id for server in listing.servers} == leases
    assert {server.state for server in listing.servers} == {ServerState.RUNNING}
    assert len({server.url for server in listing.servers}) == 20
    networks = {network["Name"] for network in client.api.networks()}
    assert {network_name(lease) for lease in leases} <= networks
    ids = containers_by_lease(client, node)

    await asyncio.gather(*(node.leases.stop(lease, 10) for lease in leases))
    for lease in leases:
        ended = await node.wait(lease, ServerState.EXITED)
        engine = state(client, ids[lease])
        assert (ended.started_us, ended.finished_us) == (
            parse_time(engine["StartedAt"]), parse_time(engine["FinishedAt"])
        )  # fmt: skip
    results = await asyncio.gather(*(node.release(lease) for lease in leases))
    assert all(result.clean for result in results)
    assert node.leftovers(client, *leases) == []


@asynchronous
async def test_an_engine_that_refuses_to_create_says_why(
    node: DockerNode, client: docker.DockerClient, tiny: str
) -> None:
    """The name is taken: by a container that is none of ours, whatever its labels say."""
    piece = await node.prepare()
    taken = client.containers.create(
        tiny, name=node.name(piece),
        labels={LABEL_NODE: node.node_id, LABEL_LEASE: piece.lease_id},
    )  # fmt: skip
    with pytest.raises(EngineSaysNo, match="already in use"):
        await node.create(piece)
    assert await node.listed(piece.lease_id) is None
    assert await node.leases.lease_of(taken.id) is None
    taken.remove()
    await node.take_back(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []
