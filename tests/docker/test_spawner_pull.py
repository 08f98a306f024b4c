"""Pulls on a real engine, through the node's filter, from a registry that is slow or broken."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.web import Application

from engineproxy import EngineProxy
from gpuslice.node.docker.api import DockerApi
from gpuslice.node.docker.images import ImageHandler, PullHandler
from gpuslice.node.server import bind
from gpuslice.settings import DockerSettings, ImageSettings
from gpuslice.spawners.docker import GpuDockerSpawner
from gpuslice.spawners.refusal import SpawnRefused
from registrystub import RegistryStub, payload, registry_stub

pytestmark = pytest.mark.docker
MIB = 1 << 20


@pytest.fixture
def registry(client: docker.DockerClient) -> Iterator[RegistryStub]:
    """A registry whose images are taken out of the engine again."""
    with registry_stub() as registry:
        yield registry
        registry.forget(client)


class Node:
    """The node's two calls about images, on a socket, in a thread; ``allow`` says for which."""

    def __init__(self, socket: Path, engine: str) -> None:
        self.socket, self._engine = socket, engine
        self._settings = {"policy": DockerSettings(), "api": DockerApi(engine)}
        ready = threading.Event()

        def run() -> None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
            app = Application([
                (r"/v1\.44/images/create", PullHandler, self._settings),
                (r"/v1\.44/images/([^?#]+)/json", ImageHandler, self._settings),
            ])  # fmt: skip
            server = HTTPServer(app)
            server.add_socket(bind(socket))
            ready.set()
            IOLoop.current().start()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(30)

    def allow(self, *references: str) -> None:
        images = tuple(ImageSettings(reference=one) for one in references)
        self._settings["policy"] = DockerSettings(image=images)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)


@pytest.fixture
def node(tmp_path: Path, proxy: EngineProxy) -> Iterator[Node]:
    node = Node(tmp_path / "engine.sock", proxy.socket)
    yield node
    node.stop()


def spawner(node: Node, *references: str, **traits: Any) -> GpuDockerSpawner:
    """A spawner that offers these images and wants the first."""
    one = GpuDockerSpawner(
        user=SimpleNamespace(name="ann", url="/user/ann/", groups=[]),
        node_socket=str(node.socket),
        images={reference: f"Image {n}" for n, reference in enumerate(references)},
        **traits,
    )
    one._choose({"slice": "cpu"})
    return one


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110  (what is looked at is a thread's)
            await asyncio.sleep(0.05)


def said(one: GpuDockerSpawner) -> list[str]:
    return [event["message"] for _, event in one._board._events]


def test_a_pull_with_its_progress_and_the_images_command(
    registry: RegistryStub, node: Node
) -> None:
    image = registry.add("lab", [payload(4 * MIB), payload(MIB)], cmd=["/tiny", "serve"])
    node.allow(image.reference)
    gate = registry.hold(image.layers[0])

    async def scene() -> None:
        one = spawner(node, image.reference)
        start = asyncio.create_task(one.engine_prepare())
        await asyncio.to_thread(gate.wait_hit)
        # The small layer waits for the large one to be unpacked first.
        await until(lambda: said(one) and " of 5 MiB" in said(one)[-1])
        assert "Image 0: 0 of 2 layers" in said(one)[-1]
        assert not start.done()
        gate.release()
        await start
        assert one._image_command == ["/tiny", "serve"]

    asyncio.run(scene())
    asked = registry.asked
    # It is here now: the next start asks no registry.
    asyncio.run(spawner(node, image.reference).engine_prepare())
    assert registry.asked == asked


def test_a_reference_with_its_digest(registry: RegistryStub, node: Node) -> None:
    image = registry.add("pinned", [payload()])
    reference = f"{image.reference}@{image.digest}"
    node.allow(reference)
    asyncio.run(spawner(node, reference).engine_prepare())


def test_three_starts_share_one_pull_and_the_one_that_began_it_is_cancelled(
    registry: RegistryStub, node: Node
) -> None:
    image = registry.add("shared", [payload(2 * MIB)])
    node.allow(image.reference)
    gate = registry.hold(image.layers[0])

    async def scene() -> None:
        starts = [spawner(node, image.reference) for _ in range(3)]
        tasks = [asyncio.create_task(one.engine_prepare()) for one in starts]
        await asyncio.to_thread(gate.wait_hit)
        await until(lambda: all(said(one) for one in starts))
        await until(lambda: any(said(one)[-1].startswith("Pulling") for one in starts))
        first = [said(one)[-1].startswith("Pulling") for one in starts]
        assert sum(first) == 1
        began = tasks.pop(first.index(True))
        began.cancel()
        await asyncio.wait([began])
        assert began.cancelled()
        gate.release()
        await asyncio.gather(*tasks)

    asyncio.run(scene())
    blobs = [path for path in registry.asked if path.endswith(image.layers[0])]
    assert len(blobs) == 1


def test_a_slow_pull_holds_up_no_start_whose_image_is_here(
    registry: RegistryStub, node: Node, tiny: str
) -> None:
    image = registry.add("slow", [payload(2 * MIB)])
    node.allow(image.reference, tiny)
    gate = registry.hold(image.layers[0])

    async def scene() -> None:
        slow = asyncio.create_task(spawner(node, image.reference).engine_prepare())
        await asyncio.to_thread(gate.wait_hit)
        await asyncio.gather(*(spawner(node, tiny).engine_prepare() for _ in range(20)))
        assert not slow.done()
        gate.release()
        await slow

    asyncio.run(scene())


def refused(node: Node, *references: str, **traits: Any) -> SpawnRefused:
    with pytest.raises(SpawnRefused) as caught:
        asyncio.run(spawner(node, *references, **traits).engine_prepare())
    return caught.value


def test_why_an_image_cannot_be_had(registry: RegistryStub, node: Node) -> None:
    missing = f"{registry.host}/nothing:1"
    node.allow(missing)
    told = refused(node, missing)
    assert (told.reason, told.status_code) == ("image-not-found", 503)

    registry.refuse(401, "who are you?")
    assert refused(node, missing).reason == "image-login"
    registry.refuse(0)

    registry.down()
    told = refused(node, missing)
    assert told.reason == "registry-unavailable"
    assert "connection refused" in told.jupyterhub_message


def test_an_image_that_the_node_does_not_allow(registry: RegistryStub, node: Node) -> None:
    image = registry.add("foreign", [payload()])
    node.allow("something/else:1")
    one = spawner(node, image.reference)
    with pytest.raises(Exception, match="not among the images") as caught:
        asyncio.run(one.engine_prepare())
    assert type(caught.value).__name__ == "EngineRefused"
    assert registry.asked == []


def test_a_registry_that_falls_silent_is_given_up_by_the_engine_too(
    registry: RegistryStub, node: Node, proxy: EngineProxy
) -> None:
    image = registry.add("silent", [payload(2 * MIB)])
    node.allow(image.reference)
    gate = registry.hold(image.layers[0])
    told = refused(node, image.reference, pull_silence_s=1.0)
    assert told.reason == "registry-unavailable"
    assert "no news" in told.jupyterhub_message
    gate.release()
    # Nothing goes on behind our back: the next start begins anew.
    asyncio.run(spawner(node, image.reference).engine_prepare())
    pulls = [path for method, path in proxy.calls if path.startswith("/images/create")]
    assert len(pulls) == 2


def test_an_engine_that_dies_in_the_middle_of_a_pull(
    registry: RegistryStub, node: Node, proxy: EngineProxy
) -> None:
    image = registry.add("broken", [payload(2 * MIB)])
    node.allow(image.reference)
    gate = registry.hold(image.layers[0])

    async def scene() -> None:
        start = asyncio.create_task(spawner(node, image.reference).engine_prepare())
        await asyncio.to_thread(gate.wait_hit)
        await asyncio.to_thread(proxy.break_off, r"^/images/create")
        with pytest.raises(SpawnRefused) as told:
            await start
        assert "broke off" in told.value.jupyterhub_message
        gate.release()
        await spawner(node, image.reference).engine_prepare()

    asyncio.run(scene())
