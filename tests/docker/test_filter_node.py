"""The filter in front of a real node: the ways to root once more, and the life of a lease."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import APIError, NotFound

from dockernode import DockerNode, until
from dockerworld import containers_of, networks_of
from engineproxy import EngineProxy
from filterworld import served_filter
from gpuslice import wire
from gpuslice.containers import LABEL_LEASE, LABEL_NODE
from gpuslice.nodeclient import NodeClient
from rootways import BODIES, CALLS, OTHERS, World

pytestmark = pytest.mark.docker


@pytest.fixture
def world(
    tmp_path: Path, client: docker.DockerClient, proxy: EngineProxy, node: DockerNode, tiny: str
) -> Iterator[World]:
    with served_filter(tmp_path / "f.sock", node.leases, node.api, node.policy) as filtered:
        hub = filtered.client()
        mine, other = (filtered.call(node.prepare(server=name)) for name in ("", "other"))
        own = hub.create_container_from_config(node.wanted(other), node.name(other))["Id"]
        # Somebody else's, with all our labels on it.
        foreign = client.api.create_container_from_config(
            {"Image": tiny, "Labels": {LABEL_NODE: node.node_id, LABEL_LEASE: mine.lease_id}},
            f"gpuslice-evil-{mine.lease_id[:12]}",
        )["Id"]
        proxy.calls.clear()
        yield World(
            filtered, hub, proxy, client, node.node_id, tiny, mine.lease_id, node.name(mine), own,
            foreign,
        )  # fmt: skip
        hub.close()
        filtered.call(node.leases.close())


def test_no_way_to_root_leaves_a_trace(world: World) -> None:
    def there() -> set[str]:
        containers = {one.id for one in containers_of(world.root, world.node_id)}
        return containers | {one.id for one in networks_of(world.root, world.node_id)}

    before = there()
    for way, (_, named) in BODIES.items():
        with pytest.raises(APIError) as refused:
            world.by_body(way)
        assert refused.value.explanation.startswith(named), way
    for way, (attempt, named) in CALLS.items():
        with pytest.raises(APIError) as refused:
            attempt(world)
        assert named in refused.value.explanation, way
    for attempt_on in OTHERS.values():
        for other in (world.foreign, f"gpuslice-evil-{world.lease[:12]}", "0" * 64, world.name):
            with pytest.raises(NotFound):
                attempt_on(world, other)
    assert set(world.proxy.calls) <= {("GET", f"/containers/{world.own}/json")}
    assert there() == before
    assert world.root.containers.get(world.foreign).status == "created"
    # After all of that it is still the lease's turn.
    assert world.create()


def test_the_life_of_a_lease_as_the_hub_sees_it(world: World, node: DockerNode) -> None:
    made = world.create()
    with pytest.raises(APIError) as again:
        world.create()
    assert (again.value.status_code, again.value.response.json()["reason"]) == (
        409, "already-started",
    )  # fmt: skip
    world.hub.start(made)
    with pytest.raises(APIError, match="was started before"):
        world.hub.start(made)
    seen = world.hub.inspect_container(world.name)
    assert (seen["Id"], seen["State"]["Running"]) == (made, True)
    assert next(iter(seen["NetworkSettings"]["Networks"].values()))["IPAddress"]

    async def ready() -> bool:
        return b"ready" in await asyncio.to_thread(world.hub.logs, made, tail=5)

    asyncio.run(until(ready, "the server's first line in its log"))
    with pytest.raises(APIError, match="not settled yet") as early:
        world.hub.remove_container(made)
    assert early.value.status_code == 409

    async def ended() -> bool:
        report = await NodeClient(world.filtered.socket).server(world.lease)
        return report is not None and report.state is wire.ServerState.EXITED

    world.hub.stop(made, timeout=5)
    asyncio.run(until(ended, "the server's end"))
    with pytest.raises(APIError, match="not settled yet"):
        world.hub.remove_container(made)
    assert world.hub.inspect_container(made)["State"]["ExitCode"] == 0
    world.filtered.call(node.release(world.lease))
    with pytest.raises(NotFound):
        world.hub.inspect_container(made)
    with pytest.raises(NotFound):
        world.root.containers.get(made)
