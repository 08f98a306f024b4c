"""Fixtures for tests on a real Docker engine; see ``dockerworld`` for what they are made of."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from dockernode import DEADLINE_S, DockerNode
from dockerworld import (
    cdi_file,
    engine_client,
    new_node_id,
    own_pool,
    sweep,
    tiny_image,
)
from engineproxy import EngineProxy, engine_proxy
from gpuslice.containers import home_volume
from gpuslice.settings import DockerSettings, ImageSettings
from realnode import FakeService, fake_service


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    """The engine itself, as root has it."""
    client = engine_client()
    yield client
    client.close()


@pytest.fixture(scope="session")
def tiny(client: docker.DockerClient) -> str:
    """An image with one small program; what it does is its first argument (``tiny.c``)."""
    return tiny_image(client)


@pytest.fixture
def node_id(client: docker.DockerClient) -> Iterator[str]:
    """A node id of this test's own; what carries it in the engine is removed afterwards."""
    node_id = new_node_id()
    yield node_id
    sweep(client, node_id)


@pytest.fixture
def user(client: docker.DockerClient, node_id: str) -> Iterator[str]:
    """A user of this test's own, whose home's volume is removed afterwards."""
    user = f"ada {node_id}"
    yield user
    sweep(client, node_id)
    for volume in client.volumes.list(filters={"name": home_volume(user)}):
        volume.remove(force=True)


@pytest.fixture
def new_lease() -> Iterator[Callable[[], str]]:
    """Makes lease ids; their CDI devices are removed afterwards."""
    made: list[str] = []

    def make() -> str:
        made.append(uuid.uuid4().hex)
        return made[-1]

    yield make
    for lease_id in made:
        cdi_file(lease_id).unlink(missing_ok=True)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[EngineProxy]:
    """A proxy in front of the engine that fails on demand."""
    with engine_proxy(tmp_path / "e.sock") as proxy:
        yield proxy


@pytest.fixture
def policy(tmp_path: Path, tiny: str, proxy: EngineProxy) -> DockerSettings:
    """Settings of a node whose engine is behind ``proxy``; homes are in the test's own folder."""
    homes, host = tmp_path / "homes", tmp_path / "host"
    homes.mkdir()
    host.mkdir()
    return DockerSettings(
        socket=proxy.socket,
        image=(ImageSettings(reference=tiny),),
        home=str(homes),
        host_dir=str(host),
        network_pool=own_pool(),
    )


@pytest.fixture
def service() -> Iterator[FakeService]:
    """In the service's place: says yes to every start unless the test wants something else."""
    with fake_service() as fake:
        yield fake


@pytest.fixture
def node(
    tmp_path: Path,
    node_id: str,
    user: str,
    policy: DockerSettings,
    service: FakeService,
    new_lease: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[DockerNode]:
    """A node's leases on the real engine, behind ``proxy``."""
    # An engine of a loaded machine is slow, which is not what is tested.
    monkeypatch.setattr("gpuslice.node.docker.watch.LOOK_LIMIT_S", DEADLINE_S)
    monkeypatch.setattr("gpuslice.node.docker.starting.ANSWER_LIMIT_S", DEADLINE_S)
    node = DockerNode(tmp_path, node_id, policy, service.url, user, new_lease)
    yield node
    node.unlock()
