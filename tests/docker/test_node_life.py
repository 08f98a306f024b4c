"""A lease on the real engine, from its preparation to nothing being left of it."""

from __future__ import annotations

import docker
import pytest

from dockernode import DockerNode, asynchronous
from dockerworld import cdi_file, containers_of, networks_of
from gpuslice.wire import ServerState

pytestmark = pytest.mark.docker


def leftovers(client: docker.DockerClient, node: DockerNode, *lease_ids: str) -> list[object]:
    return [
        *containers_of(client, node.node_id),
        *networks_of(client, node.node_id),
        *(file for lease in lease_ids if (file := cdi_file(lease)).exists()),
        *(lease for lease in lease_ids if node.store.get(lease) is not None),
    ]


@asynchronous
async def test_the_life_of_a_lease(node: DockerNode, client: docker.DockerClient) -> None:
    piece = await node.prepare()
    lease = piece.lease_id
    listing = await node.leases.listing()
    assert (listing.servers, listing.slices) == ([], [lease])
    assert cdi_file(lease).exists()

    container_id = await node.create(piece)
    created = await node.listed(lease)
    assert created is not None
    assert (created.state, created.started_us, created.user) == (
        ServerState.CREATED, None, node.user
    )  # fmt: skip

    await node.leases.start(lease)
    running = await node.wait(lease, ServerState.RUNNING)
    assert running.url is not None
    print(running)
    await node.leases.stop(lease, 5)
    ended = await node.wait(lease, ServerState.EXITED)
    print(ended)
    print(await node.release(lease))
    assert leftovers(client, node, lease) == []
    await node.close()
