"""An engine that fails, hangs or breaks off: nothing is concluded, freed or left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import docker
import pytest

from dockernode import DEADLINE_S, DockerNode, asynchronous, until
from dockerworld import containers_of
from engineproxy import EngineProxy, Fault
from gpuslice.errors import Refused
from gpuslice.node.docker.api import EngineDown
from gpuslice.node.docker.build import LOOK_LIMIT_S
from gpuslice.node.docker.reports import parse_time
from gpuslice.wire import ServerState

pytestmark = pytest.mark.docker

#: How an engine can fail at a call: before it has done anything, and after it has done it.
KINDS = ("fails", "fails after", "breaks off", "breaks off after", "hangs", "hangs after")


def plant(
    node: DockerNode, proxy: EngineProxy, kind: str, method: str, path: str, **more: Any
) -> Fault:
    """The node gives up what hangs at once."""
    after = kind.endswith("after")
    if kind.startswith("fails"):
        return proxy.answer(method, path, after=after, **more)
    if kind.startswith("breaks"):
        return proxy.reset(method, path, after=after, **more)
    fault = proxy.hang(method, path, after=after, **more)
    node.gives_up(fault)
    return fault


async def unavailable(work: Awaitable[object]) -> None:
    with pytest.raises(Refused) as raised:
        await work
    assert (raised.value.refusal.reason, raised.value.status) == ("runtime-unavailable", 503)


# --- with a server that runs ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "down"])
@asynchronous
async def test_nothing_is_freed_or_forgotten_while_the_engine_does_not_answer(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy, kind: str
) -> None:
    piece = await node.run()
    lease = piece.lease_id
    before = await node.wait(lease, ServerState.RUNNING)
    if kind == "down":
        proxy.down()
    else:
        plant(node, proxy, kind, "", "")
    await unavailable(node.leases.listing())
    await unavailable(node.leases.server(lease))
    await unavailable(node.leases.log_tail(lease, 10))
    await unavailable(node.leases.release(lease))
    await unavailable(node.leases.prepare(node.piece(server="2")))
    await unavailable(node.leases.watch_once())
    await node.leases.stop(node.new_lease(), 1)
    assert node.marker(lease) == "started"
    await node.again()
    await unavailable(node.leases.listing())
    await unavailable(node.leases.release(lease))
    # It has run all the time.
    assert len(containers_of(client, node.node_id)) == 1
    proxy.clear()
    node.gives_up(None)
    proxy.up()
    later = await node.wait(lease, ServerState.RUNNING)
    assert later.started_us == before.started_us
    await node.take_back(lease)
    assert node.leftovers(client, lease) == []


@pytest.mark.parametrize("path", ["/containers/json", r"/containers/[0-9a-f]{64}/json"])
@pytest.mark.parametrize("kind", ["fails", "breaks off", "hangs", "is cut", "is empty"])
@asynchronous
async def test_no_list_is_made_of_half_an_answer(
    node: DockerNode, proxy: EngineProxy, kind: str, path: str
) -> None:
    lease = (await node.run()).lease_id
    await node.wait(lease, ServerState.RUNNING)
    if kind == "is cut":
        proxy.cut("GET", path, 40)
    elif kind == "is empty":
        proxy.answer("GET", path, 200, "")
    else:
        plant(node, proxy, kind, "GET", path)
    await unavailable(node.leases.listing())
    proxy.clear()
    node.gives_up(None)
    await node.wait(lease, ServerState.RUNNING)
    await node.take_back(lease)


@asynchronous
async def test_a_stop_that_the_engine_does_not_hear_is_repeated(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy
) -> None:
    lease = (await node.run()).lease_id
    failing = [proxy.answer("POST", "/stop"), proxy.reset("POST", "/kill")]
    await node.leases.stop(lease, 30)
    await asyncio.to_thread(failing[0].wait_hit)
    await node.again()
    await node.leases.watch_once()
    await asyncio.to_thread(failing[0].wait_hit)
    assert (await node.wait(lease, ServerState.RUNNING)).finished_us is None
    proxy.clear()

    async def ended() -> bool:
        await node.leases.watch_once()
        server = await node.listed(lease)
        return server is not None and server.state is ServerState.EXITED

    await until(ended, "the stop is carried out")
    await node.release(lease)
    assert node.leftovers(client, lease) == []


@asynchronous
async def test_what_outlives_its_patience_is_killed_although_the_engines_stop_hangs(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy
) -> None:
    lease = (await node.run("/tiny", "stubborn")).lease_id
    held = proxy.hang("POST", "/stop")
    await node.leases.stop(lease, 2)
    await asyncio.to_thread(held.wait_hit)
    await node.leases.watch_once()
    await node.wait(lease, ServerState.RUNNING)
    node.clock.boottime_us += 8_000_000

    async def ended() -> bool:
        await node.leases.watch_once()
        server = await node.listed(lease)
        return server is not None and server.state is ServerState.EXITED

    await until(ended, "it is killed")
    held.release()
    await node.release(lease)


# --- on the way to a running server ---------------------------------------------------------

#: Each call that the node makes between prepare and the started server.
CALLS = [
    ("GET", "/_ping"),
    ("GET", "/images/"),
    ("GET", "/networks"),
    ("POST", "/networks/create"),
    ("POST", "/containers/create"),
    ("POST", "/start$"),
    ("GET", r"/containers/[0-9a-f]{64}/json"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join(call))
@asynchronous
async def test_an_engine_that_fails_once_at_any_call_of_a_start(
    node: DockerNode,
    client: docker.DockerClient,
    proxy: EngineProxy,
    kind: str,
    call: tuple[str, str],
) -> None:
    """It runs, or the spawner is told that it does not; and then all of it can be taken back."""
    piece = node.piece()
    lease = piece.lease_id
    fault = plant(node, proxy, kind, *call, times=1)
    failed: Exception | None = None
    try:
        await node.leases.prepare(piece)
        await node.create(piece)
        await node.leases.start(lease)
    except (Refused, EngineDown) as problem:
        failed = problem
    assert fault.hits == 1
    fault.release()
    node.gives_up(None)
    server = await node.listed(lease)
    running = server is not None and server.state is ServerState.RUNNING
    # The spawner is told of a start that has not come about, and of no other.
    assert running == (failed is None), (failed, server)
    if server is not None and server.started_us is not None:
        (container,) = containers_of(client, node.node_id)
        assert server.started_us == parse_time(container.attrs["State"]["StartedAt"])
    await node.again()
    await node.take_back(lease)
    assert node.leftovers(client, lease) == []


# --- on the way back ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "call",
    [("GET", "/containers/json"), ("GET", r"/containers/[0-9a-f]{64}/json"),
     ("DELETE", "/containers/"), ("GET", "/networks/"), ("DELETE", "/networks/")],
    ids=lambda call: " ".join(call),
)  # fmt: skip
@asynchronous
async def test_a_release_that_was_broken_off_is_gone_on_with(
    node: DockerNode,
    client: docker.DockerClient,
    proxy: EngineProxy,
    kind: str,
    call: tuple[str, str],
) -> None:
    lease = (await node.run("/tiny", "exit", "0")).lease_id
    await node.wait(lease, ServerState.EXITED)
    # A connection that breaks off is tried once more, where that can do no harm.
    plant(node, proxy, kind, *call, times=2 if kind.startswith("breaks") else 1)
    await unavailable(node.release(lease))
    # Not given back: whatever the engine has done, its answer was not heard.
    assert node.store.get(lease) is not None
    assert node.store.result(lease) is None
    proxy.clear()
    node.gives_up(None)
    await node.again()

    async def released() -> bool:
        try:
            return (await node.release(lease)).clean
        except Refused as refused:
            # The engine is still at it.
            assert refused.refusal.reason == "not-removed"
            return False

    await until(released, "the slice is given back")
    assert node.leftovers(client, lease) == []


# --- events ---------------------------------------------------------------------------------


@asynchronous
async def test_the_list_is_right_whatever_becomes_of_the_events(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy
) -> None:
    """No events, events that broke off, events that hang: the list shows each change."""

    async def followed() -> bool:
        await node.leases.watch_once()
        return proxy.count("GET", "^/events") > 0

    for trouble in ("none", "broken off", "fails", "hangs"):
        await until(followed, "the node asks for events")
        if trouble == "broken off":
            proxy.break_off("^/events")
        elif trouble != "none":
            plant_trouble = proxy.answer if trouble == "fails" else proxy.hang
            fault = plant_trouble("GET", "^/events")
            proxy.break_off("^/events")
            await asyncio.to_thread(fault.wait_hit)
        piece = await node.prepare()
        lease = piece.lease_id
        container_id = await node.create(piece, "/tiny", "leave", "5")
        await node.leases.start(lease)
        server = await node.listed(lease)
        assert server is not None
        assert server.state is ServerState.RUNNING
        client.api.pause(container_id)
        client.api.unpause(container_id)
        client.api.stop(container_id)
        # The engine's own list takes a moment to show what it has answered to the stop.
        assert (await node.wait(lease, ServerState.EXITED)).exit_code == 5
        client.api.start(container_id)
        client.api.kill(container_id)
        await node.release(lease)
        assert await node.listed(lease) is None
        proxy.clear()
    assert node.leftovers(client) == []


@asynchronous
async def test_what_did_not_change_is_not_inspected_again(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy
) -> None:
    await node.leases.watch_once()
    lease = (await node.run()).lease_id
    inspect = r"^/containers/[0-9a-f]{64}/json"

    async def quiet() -> bool:
        before = proxy.count("GET", inspect)
        await node.listed(lease)
        return proxy.count("GET", inspect) == before

    await until(quiet, "a list without an inspection")
    # After a break in the events nobody knows what was missed.
    before = proxy.count("GET", inspect)

    async def inspected_again() -> bool:
        # More than once: aiohttp tries again what breaks off before its answer has begun.
        proxy.break_off("^/events")
        await node.listed(lease)
        return proxy.count("GET", inspect) > before

    await until(inspected_again, "everything is inspected")
    await node.take_back(lease)


@asynchronous
async def test_an_end_is_dated_when_the_engine_tells_of_it_and_not_when_somebody_asks(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy
) -> None:
    """So a wall clock that is set later cannot move it, nor can a machine that is restarted."""
    await node.leases.watch_once()
    piece = await node.prepare()
    container_id = await node.create(piece)
    await node.leases.start(piece.lease_id)

    async def followed() -> bool:
        return proxy.count("GET", "^/events") > 0

    await until(followed, "the node asks for events")
    client.api.kill(container_id)

    async def dated() -> bool:
        lease = node.store.get(piece.lease_id)
        assert lease is not None
        return bool((lease.read_json("life.json") or {}).get("end"))

    await until(dated, "the end is written down")
    finished_us = parse_time(client.api.inspect_container(container_id)["State"]["FinishedAt"])
    node.clock.restart_machine()
    server = await node.listed(piece.lease_id)
    assert server is not None
    assert server.finished_us == finished_us
    await node.release(piece.lease_id)


# --- time -----------------------------------------------------------------------------------


@asynchronous
async def test_who_asks_hears_soon_that_the_engine_hangs(
    node: DockerNode, proxy: EngineProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the limit of a look, not of a change; and others do not wait for it."""
    monkeypatch.undo()
    node.look_limit_s = LOOK_LIMIT_S
    await node.again()
    lease = (await node.run()).lease_id
    held = proxy.hang("", "")
    loop = asyncio.get_running_loop()
    began = loop.time()
    work: list[Callable[[], Awaitable[object]]] = [
        node.leases.listing,
        lambda: node.leases.server(lease),
        lambda: node.leases.prepare(node.piece(server="2")),
        lambda: node.leases.fence(lease),
    ]
    await asyncio.gather(*(unavailable(one()) for one in work))
    assert loop.time() - began < 5
    held.release()
    proxy.clear()
    node.look_limit_s = DEADLINE_S
    await node.again()
    await node.take_back(lease)
