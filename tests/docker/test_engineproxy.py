"""The proxy that other tests rely on does to the real engine's answers what it says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import docker
import pytest

from dockerworld import containers_of
from engineproxy import EngineProxy
from gpuslice.containers import LABEL_NODE
from gpuslice.node.docker.api import DockerApi, EngineDown, EngineSaysNo

pytestmark = pytest.mark.docker
T = TypeVar("T")


def call(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture
def api(proxy: EngineProxy) -> DockerApi:
    return DockerApi(proxy.socket, timeout_s=20)


def test_without_a_fault_everything_passes(api: DockerApi, proxy: EngineProxy) -> None:
    assert call(api.version())["ApiVersion"]
    assert proxy.calls == [("GET", "/version")]
    assert proxy.count("GET", "^/version$") == 1
    assert proxy.count("POST", "") == 0


def test_answers_in_the_engines_place(api: DockerApi, proxy: EngineProxy) -> None:
    once = proxy.answer("GET", "^/version$", 418, "tea", times=1)
    with pytest.raises(EngineSaysNo, match="tea") as no:
        call(api.version())
    assert no.value.status == 418
    assert call(api.version())["ApiVersion"]
    assert once.hits == 1
    always = proxy.answer("", "version")
    for _ in range(2):
        with pytest.raises(EngineDown, match="planted"):
            call(api.version())
    proxy.remove(always)
    assert call(api.version())["ApiVersion"]


def test_what_fails_never_reaches_the_engine_unless_it_is_after(
    api: DockerApi, proxy: EngineProxy, client: docker.DockerClient, tiny: str, node_id: str
) -> None:
    body = {"Image": tiny, "Labels": {LABEL_NODE: node_id}}
    for plant in (proxy.answer, proxy.reset):
        plant("POST", "/containers/create", times=1)
        with pytest.raises(EngineDown):
            call(api.create(f"{node_id}-before", body))
        assert not containers_of(client, node_id)
    for number, plant in enumerate((proxy.answer, proxy.reset)):
        plant("POST", "/containers/create", after=True, times=1)
        with pytest.raises(EngineDown):
            call(api.create(f"{node_id}-after{number}", body))
        assert len(containers_of(client, node_id)) == number + 1


def test_a_hang_lasts_until_it_is_released(api: DockerApi, proxy: EngineProxy) -> None:
    for after in (False, True):
        held = proxy.hang("GET", "/version", after=after)
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(call, api.version())
            held.wait_hit()
            assert not asked.done()
            held.release()
            assert asked.result(30)["ApiVersion"]
        proxy.clear()


def test_a_late_answer(api: DockerApi, proxy: EngineProxy) -> None:
    proxy.hang("", "/version", 0.3)
    began = time.monotonic()
    assert call(api.version())["ApiVersion"]
    assert time.monotonic() - began >= 0.3


def test_the_clients_time_limit_ends_a_hang_for_it(proxy: EngineProxy) -> None:
    proxy.hang("GET", "/version")
    with pytest.raises(EngineDown, match="does not answer"):
        call(DockerApi(proxy.socket, timeout_s=0.2).version())


def test_an_answer_is_cut(api: DockerApi, proxy: EngineProxy) -> None:
    proxy.cut("GET", "/version", 5)
    with pytest.raises(EngineDown):
        call(api.version())


def test_down_and_up(api: DockerApi, proxy: EngineProxy) -> None:
    proxy.down()
    with pytest.raises(EngineDown):
        call(api.ping())
    proxy.up()
    call(api.ping())


def test_streams_pass_and_can_be_broken_off(api: DockerApi, proxy: EngineProxy) -> None:
    async def follow() -> None:
        async for _ in api.events(LABEL_NODE, since=time.time() - 1):
            pass

    with ThreadPoolExecutor() as pool:
        following = pool.submit(call, follow())
        while not proxy.count("GET", "^/events"):
            time.sleep(0.01)
        assert not following.done()
        # Again and again: aiohttp tries once more what breaks off before its answer has begun.
        while not following.done():
            proxy.break_off("^/events")
            time.sleep(0.01)
        with pytest.raises(EngineDown):
            following.result()


def test_attached_connections_pass(proxy: EngineProxy, tiny: str, node_id: str) -> None:
    through = docker.DockerClient(base_url=f"unix://{proxy.socket}", timeout=60)
    said = through.containers.run(
        tiny, ["/tiny", "exit", "0"], labels={LABEL_NODE: node_id}, remove=True, detach=False
    )
    assert said == b""
    through.close()
