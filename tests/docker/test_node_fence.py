"""A fence holds against every start, whoever wins and whatever the engine does meanwhile."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import docker
import pytest
from docker.errors import APIError, NotFound

from dockernode import DockerNode, asynchronous, until
from dockerworld import cdi_file, containers_of, networks_of
from engineproxy import EngineProxy
from gpuslice.errors import Refused
from gpuslice.node.docker.api import EngineDown, EngineSaysNo
from gpuslice.node.docker.reports import parse_time
from gpuslice.wire import ServerState

pytestmark = pytest.mark.docker

ROUNDS = 60


async def refused(work: Any) -> Refused:
    with pytest.raises(Refused) as raised:
        await work
    return raised.value


@asynchronous
async def test_a_prepared_lease_is_fenced_for_ever(
    node: DockerNode, client: docker.DockerClient
) -> None:
    piece = await node.prepare()
    await node.leases.fence(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []
    assert (await refused(node.create(piece))).refusal.reason == "ended"
    assert (await refused(node.leases.prepare(piece))).refusal.reason == "ended"
    await node.again()
    assert (await refused(node.leases.prepare(piece))).refusal.reason == "ended"
    await node.leases.fence(piece.lease_id)
    assert (await node.release(piece.lease_id)).clean


@asynchronous
async def test_a_created_container_is_removed_by_the_fence(
    node: DockerNode, client: docker.DockerClient
) -> None:
    piece = await node.prepare()
    await node.create(piece)
    await node.leases.fence(piece.lease_id)
    assert await node.listed(piece.lease_id) is None
    assert node.leftovers(client, piece.lease_id) == []
    assert (await refused(node.leases.start(piece.lease_id))).refusal.reason == "no-container"
    assert (await node.release(piece.lease_id)).clean


@asynchronous
async def test_a_fence_of_what_was_never_here_keeps_it_away(node: DockerNode) -> None:
    piece = node.piece()
    await node.leases.fence(piece.lease_id)
    assert (await refused(node.leases.prepare(piece))).refusal.reason == "ended"


@asynchronous
async def test_a_running_server_goes_on_without_its_device_file(
    node: DockerNode, client: docker.DockerClient
) -> None:
    lease = (await node.run()).lease_id
    await node.leases.fence(lease)
    assert not cdi_file(lease).exists()
    server = await node.listed(lease)
    assert server is not None
    assert server.state is ServerState.RUNNING
    assert len(networks_of(client, node.node_id)) == 1
    await node.leases.watch_once()
    assert (await node.wait(lease, ServerState.RUNNING)).started_us == server.started_us
    await node.take_back(lease)
    assert node.leftovers(client, lease) == []


@asynchronous
async def test_many_races_between_start_and_fence(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy
) -> None:
    """Either it runs, and the fence has left it alone; or it never will, and nothing is left."""
    outcomes = {"ran": 0, "fenced": 0}
    for number in range(ROUNDS):
        piece = await node.prepare()
        lease = piece.lease_id
        await node.create(piece)

        async def late(work: Any) -> None:
            await asyncio.sleep(random.uniform(0, 0.03))
            await work

        started, fenced = await asyncio.gather(
            late(node.leases.start(lease)), late(node.leases.fence(lease)), return_exceptions=True
        )
        assert fenced is None
        server = await node.listed(lease)
        if started is None:
            outcomes["ran"] += 1
            assert server is not None, number
            assert server.state is ServerState.RUNNING
            await node.take_back(lease)
        else:
            outcomes["fenced"] += 1
            assert isinstance(started, Refused), started
            assert started.refusal.reason in ("fenced", "no-container")
            assert server is None
        assert node.leftovers(client, lease) == []
    assert all(outcomes.values()), outcomes
    assert proxy.count("POST", "/start$") == outcomes["ran"]


@asynchronous
async def test_many_races_between_create_and_fence(
    node: DockerNode, client: docker.DockerClient
) -> None:
    outcomes = {"created": 0, "fenced": 0}
    for _ in range(ROUNDS // 3):
        piece = await node.prepare()

        async def late(work: Any) -> Any:
            await asyncio.sleep(random.uniform(0, 0.03))
            return await work

        created, fenced = await asyncio.gather(
            late(node.create(piece)), late(node.leases.fence(piece.lease_id)),
            return_exceptions=True,
        )  # fmt: skip
        assert fenced is None
        outcomes["created" if isinstance(created, str) else "fenced"] += 1
        assert node.leftovers(client, piece.lease_id) == []
        reason = (await refused(node.leases.start(piece.lease_id))).refusal.reason
        assert reason == "no-container"
    assert all(outcomes.values()), outcomes


@asynchronous
async def test_a_fence_waits_for_a_start_that_the_engine_has_not_answered_yet(
    node: DockerNode, proxy: EngineProxy
) -> None:
    piece = await node.prepare()
    await node.create(piece)
    held = proxy.hang("POST", "/start$", after=True)
    starting = asyncio.create_task(node.leases.start(piece.lease_id))
    await asyncio.to_thread(held.wait_hit)
    fencing = asyncio.create_task(node.leases.fence(piece.lease_id))
    assert not (await asyncio.wait([fencing], timeout=0.3))[0]
    held.release()
    await starting
    await fencing
    await node.wait(piece.lease_id, ServerState.RUNNING)
    await node.take_back(piece.lease_id)


@asynchronous
async def test_without_an_engine_the_device_goes_and_the_slice_stays(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy
) -> None:
    piece = await node.prepare()
    container_id = await node.create(piece)
    proxy.down()
    for _ in range(2):
        refusal = await refused(node.leases.fence(piece.lease_id))
        assert (refusal.refusal.reason, refusal.status) == ("runtime-unavailable", 503)
        assert not cdi_file(piece.lease_id).exists()
        assert node.marker(piece.lease_id) == "fenced"
        await node.again()
    # Even who has the engine cannot start it any more.
    with pytest.raises(APIError, match="CDI device"):
        client.api.start(container_id)
    assert (await refused(node.leases.start(piece.lease_id))).refusal.reason == "fenced"
    assert (await refused(node.release(piece.lease_id))).status == 503
    proxy.up()
    await node.leases.fence(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@pytest.mark.parametrize("failing", ["/containers/json", "DELETE", "/networks/"])
@asynchronous
async def test_a_half_done_fence_is_gone_on_with(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy, failing: str
) -> None:
    piece = await node.prepare()
    await node.create(piece)
    if failing == "DELETE":
        proxy.answer("DELETE", "/containers/", times=1)
    else:
        proxy.answer("GET", failing, times=1)
    assert (await refused(node.leases.fence(piece.lease_id))).status == 503
    assert node.store.get(piece.lease_id) is not None
    await node.again()
    await node.leases.fence(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_a_container_that_the_engine_makes_after_the_fence_is_cleared_away(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy
) -> None:
    """The engine hangs, the node gives the call up, and then the engine carries it out."""
    piece = await node.prepare()
    held = proxy.hang("POST", "/containers/create")
    creating = asyncio.create_task(node.create(piece))
    await asyncio.to_thread(held.wait_hit)
    creating.cancel()
    await asyncio.gather(creating, return_exceptions=True)
    await node.leases.fence(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []
    held.release()

    async def made() -> bool:
        return bool(containers_of(client, node.node_id))

    # Its network is gone, so it could not be started even with a device.
    await until(made, "the engine makes it")
    server = await node.listed(piece.lease_id)
    assert server is not None
    assert (server.state, server.started_us) == (ServerState.EXITED, None)
    await node.leases.watch_once()
    assert node.leftovers(client, piece.lease_id) == []


@pytest.mark.parametrize("fence_first", [True, False])
@asynchronous
async def test_a_start_that_the_engine_carries_out_after_it_was_given_up(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy, *, fence_first: bool
) -> None:
    """The fence removes what has not started; what has by then is shown, goes on, and is billed."""
    piece = await node.prepare()
    container_id = await node.create(piece)
    proxy.reset("POST", "/start$", times=1)
    with pytest.raises(EngineDown):
        await node.leases.start(piece.lease_id)
    assert node.marker(piece.lease_id) == "started"
    server = await node.listed(piece.lease_id)
    assert server is not None
    assert (server.state, server.started_us) == (ServerState.CREATED, None)
    if fence_first:
        await node.leases.fence(piece.lease_id)
        with pytest.raises(NotFound):
            client.api.start(container_id)
        assert await node.listed(piece.lease_id) is None
    else:
        client.api.start(container_id)
        await node.leases.fence(piece.lease_id)
        running = await node.wait(piece.lease_id, ServerState.RUNNING)
        assert running.started_us == parse_time(
            client.api.inspect_container(container_id)["State"]["StartedAt"]
        )
    await node.take_back(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_a_start_whose_node_dies_before_the_engine_answers(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy
) -> None:
    """The engine may give up what nobody waits for any more, or go on with it."""
    piece = await node.prepare()
    await node.create(piece)
    held = proxy.hang("POST", "/start$", times=1)
    starting = asyncio.create_task(node.leases.start(piece.lease_id))
    await asyncio.to_thread(held.wait_hit)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await node.again()
    held.release()

    async def decided() -> bool:
        server = await node.listed(piece.lease_id)
        assert server is not None
        if server.state is ServerState.EXITED:
            assert server.started_us is None
            assert "could not be started" in (server.message or "")
        return server.state is not ServerState.CREATED

    await until(decided, "it runs, or it never will")
    await node.take_back(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_a_container_that_somebody_starts_by_hand_before_the_node_does(
    node: DockerNode, client: docker.DockerClient
) -> None:
    """It is shown as what it is, and the node does not start it again."""
    piece = await node.prepare()
    container_id = await node.create(piece)
    client.api.start(container_id)
    server = await node.listed(piece.lease_id)
    assert server is not None
    assert (server.state, server.started_us is None) == (ServerState.RUNNING, False)
    assert (await refused(node.leases.start(piece.lease_id))).refusal.reason == "already-started"
    await node.leases.fence(piece.lease_id)
    assert node.marker(piece.lease_id) == "fenced"
    assert (await refused(node.release(piece.lease_id))).refusal.reason == "still-running"
    # A fenced lease must not run.
    await node.leases.watch_once()
    ended = await node.wait(piece.lease_id, ServerState.EXITED)
    assert ended.finished_us is not None
    await node.release(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_a_container_that_somebody_starts_again_by_hand(
    node: DockerNode, client: docker.DockerClient
) -> None:
    """Only the first life was leased: it is what is stated, and the second one is ended."""
    piece = await node.prepare()
    container_id = await node.create(piece, "/tiny", "leave", "4")
    await node.leases.start(piece.lease_id)
    client.api.stop(container_id)
    first = await node.wait(piece.lease_id, ServerState.EXITED)
    client.api.start(container_id)
    again = await node.listed(piece.lease_id)
    assert again is not None
    assert (again.state, again.started_us, again.finished_us) == (
        ServerState.EXITED, first.started_us, first.finished_us
    )  # fmt: skip
    await node.leases.watch_once()

    async def stopped() -> bool:
        return not client.api.inspect_container(container_id)["State"]["Running"]

    await until(stopped, "the second life is ended")
    client.api.start(container_id)
    # Also a release does not wait for the watch.
    assert (await node.release(piece.lease_id)).clean
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_the_engine_may_refuse_a_start(node: DockerNode, proxy: EngineProxy) -> None:
    piece = await node.prepare()
    await node.create(piece)
    proxy.answer("POST", "/start$", 409, "something is in the way", times=1)
    with pytest.raises(EngineSaysNo, match="in the way"):
        await node.leases.start(piece.lease_id)
    assert (await refused(node.leases.start(piece.lease_id))).refusal.reason == "already-started"
    await node.take_back(piece.lease_id)
