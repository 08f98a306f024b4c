"""Whoever takes the hub over does not become root: each known way, tried on a real engine."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
import requests
from docker.errors import APIError, ImageNotFound, NotFound

from dockerworld import containers_of
from engineproxy import EngineProxy
from filterworld import PlainGate, served_filter
from gpuslice.containers import LABEL_LEASE, LABEL_NODE
from gpuslice.node.docker.api import DockerApi
from gpuslice.node.docker.homes import HomeMount
from gpuslice.nodeclient import NodeClient
from gpuslice.settings import DockerSettings
from realnode import cpu_slice
from rootways import BODIES, CALLS, OTHERS, Try, World

pytestmark = pytest.mark.docker


@pytest.fixture
def gate(tmp_path: Path, proxy: EngineProxy, policy: DockerSettings, node_id: str) -> PlainGate:
    home = tmp_path / "home"
    home.mkdir()
    mount = HomeMount("bind", str(home), None, enforced=False)
    # Containers of this file are created, and with the engine's own network never started.
    return PlainGate(DockerApi(proxy.socket, timeout_s=30), policy, node_id, "bridge", mount)


@pytest.fixture
def world(
    tmp_path: Path,
    client: docker.DockerClient,
    proxy: EngineProxy,
    gate: PlainGate,
    tiny: str,
    node_id: str,
) -> Iterator[World]:
    lease, mine = uuid.uuid4().hex, uuid.uuid4().hex
    name = gate.prepare(cpu_slice(lease, user=f"ada {node_id}", ram_bytes=64 << 20))
    gate.prepare(cpu_slice(mine, user=f"ada {node_id}", ram_bytes=64 << 20))
    with served_filter(tmp_path / "f.sock", gate, gate.api, gate.policy) as filtered:
        hub = filtered.client()
        own = hub.create_container_from_config(
            {
                "Image": tiny,
                "Labels": {"gpuslice.lease": mine, "gpuslice.base_url": "/user/ada/"},
                "Env": ["JUPYTERHUB_API_TOKEN=not-to-be-seen"],
            },
            gate.name(mine),
        )["Id"]
        # Somebody else's, with all our labels on it.
        foreign = client.api.create_container_from_config(
            {"Image": tiny, "Labels": {LABEL_NODE: node_id, LABEL_LEASE: lease}},
            f"gpuslice-evil-{lease[:12]}",
        )["Id"]
        proxy.calls.clear()
        yield World(filtered, hub, proxy, client, node_id, tiny, lease, name, own, foreign)
        hub.close()


# --- each known way to root ---------------------------------------------------------------------


@pytest.mark.parametrize("way", BODIES)
def test_each_known_way_by_a_body(world: World, way: str) -> None:
    before = {one.id for one in containers_of(world.root, world.node_id)}
    with pytest.raises(APIError) as refused:
        world.by_body(way)
    assert refused.value.explanation.startswith(BODIES[way][1])
    assert refused.value.status_code == (409 if way == "another lease" else 403)
    assert world.proxy.calls == []
    assert {one.id for one in containers_of(world.root, world.node_id)} == before


@pytest.mark.parametrize("way", CALLS)
def test_each_known_way_by_a_call(world: World, way: str) -> None:
    attempt, named = CALLS[way]
    with pytest.raises(APIError) as refused:
        attempt(world)
    assert named in refused.value.explanation
    assert refused.value.status_code == 403
    # docker-py itself looks at a container before it attaches, and before it reads a log.
    assert set(world.proxy.calls) <= {("GET", f"/containers/{world.own}/json")}


@pytest.mark.parametrize("call", OTHERS)
def test_a_container_that_is_not_ours_is_not_there(world: World, call: str) -> None:
    said = set()
    for other in (world.foreign, f"gpuslice-evil-{world.lease[:12]}", "0" * 64, world.name):
        with pytest.raises(NotFound) as refused:
            OTHERS[call](world, other)
        said.add(refused.value.explanation.replace(other, "X"))
    assert said == {"No such container: X"}
    assert world.proxy.calls == []
    assert world.root.containers.get(world.foreign).status == "created"


# --- what no client library would send ----------------------------------------------------------


def tricks(own: str, lease: str) -> dict[str, bytes]:
    """Requests that mean one thing to one reader of HTTP, and another to the next."""
    host = b"Host: docker\r\n"
    inspect = f"/containers/{own}/json".encode()
    start = f"/containers/{own}/start".encode()

    def get(path: bytes, headers: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
        return b"GET " + path + b" " + version + b"\r\n" + host + headers + b"\r\n"

    body = json.dumps({"Labels": {"gpuslice.lease": lease}, "HostConfig": {"Privileged": True}})
    sized = b"Content-Length: %d\r\n" % len(body)
    create = b"POST /containers/create?name=x HTTP/1.1\r\n" + host
    return {
        "two slashes": get(b"//containers/json"),
        "two slashes within": get(b"/v1.44//info"),
        "up": get(b"/images/../info"),
        "up from a version": get(b"/v1.44/../info"),
        "up, escaped": get(b"/containers/%2e%2e/info"),
        "up, escaped as an image": get(b"/images/%2e%2e%2finfo%3f/json"),
        "up after an image": get(b"/images/gpuslice-test/tiny:latest/../../info/json"),
        "a slash, escaped": get(b"/containers%2Fjson"),
        "a question mark, escaped": get(inspect[:-5] + b"%3fx/json"),
        "escaped twice": get(b"/%252e%252e/info"),
        "a parameter of the path": get(b"/info;x=1"),
        "a parameter within": get(inspect.replace(b"/json", b";x/json")),
        "capitals": get(b"/INFO"),
        "capitals of ours": get(inspect.replace(b"json", b"JSON")),
        "capitals of an id": get(inspect.upper()),
        "a slash at the end": get(inspect + b"/"),
        "a zero byte": get(inspect + b"\0"),
        "a zero byte, escaped": get(inspect + b"%00"),
        "a line end, escaped": get(inspect + b"%0a"),
        "an address in full": get(b"http://docker" + inspect),
        "an address of somebody else": get(b"http://10.0.0.1/info"),
        "the end of an address": get(inspect + b"#x"),
        "a parameter of nobody": get(inspect + b"?size=1"),
        "a parameter twice": get(f"/containers/{own}/logs?tail=1&tail=2".encode()),
        "a number in other letters": get(f"/containers/{own}/logs?tail=%D9%A1".encode()),
        "a number too long": get(f"/containers/{own}/logs?tail={'0' * 12}9999".encode()),
        "one for the node": get(f"/v1/servers/{lease}/log?tail=0000000019999".encode()),
        "no number": get(f"/containers/{own}/logs?tail=all".encode()),
        "an old version of HTTP": get(inspect, version=b"HTTP/1.0"),
        "no version of HTTP": b"GET " + inspect + b"\r\n\r\n",
        "another version of HTTP": get(inspect, version=b"HTTP/2.0"),
        "a connection to somewhere": b"CONNECT 10.0.0.1:80 HTTP/1.1\r\n" + host + b"\r\n",
        "everything": b"OPTIONS * HTTP/1.1\r\n" + host + b"\r\n",
        "small letters": b"get " + inspect + b" HTTP/1.1\r\n" + host + b"\r\n",
        "a method of nobody": b"EVIL " + inspect + b" HTTP/1.1\r\n" + host + b"\r\n",
        "a head of ours": b"HEAD " + inspect + b" HTTP/1.1\r\n" + host + b"\r\n",
        "another method": b"PUT " + start + b" HTTP/1.1\r\n" + host + b"Content-Length: 0\r\n\r\n",
        "another method in a header": get(start, b"X-HTTP-Method-Override: POST\r\n"),
        "another path in a header": get(b"/info", b"X-Original-URL: /_ping\r\n"),
        "a stream": get(inspect, b"Connection: Upgrade\r\nUpgrade: tcp\r\n"),
        "a web socket": get(
            f"/containers/{own}/attach/ws".encode(),
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: eA==\r\n",
        ),
        "HTTP/2": get(inspect, b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                               b"HTTP2-Settings: \r\n"),
        "two lengths": create + sized + b"Content-Length: 2\r\n\r\n" + body.encode(),
        "a length and pieces": create + sized + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + body.encode(),
        "pieces": create + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
            len(body), body.encode()),
        "other pieces": create + b"Transfer-Encoding: xchunked\r\n\r\n" + body.encode(),
        "compressed": create + b"Content-Encoding: gzip\r\n" + sized + b"\r\n" + body.encode(),
        "a length below zero": create + b"Content-Length: -1\r\n\r\n" + body.encode(),
        "a length with a plus": create + b"Content-Length: +5\r\n\r\n" + body.encode(),
        "too long": create + b"Content-Length: 99999999999\r\n\r\n" + body.encode(),
        "a form": create + b"Content-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 6\r\n\r\nname=y",
        "a form in parts": create + b"Content-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 5\r\n\r\n--x--",
        "a name in two lines": create + b"Content-Length\r\n : 2\r\n\r\n{}",
        "a body where none is": b"POST " + start + b" HTTP/1.1\r\n" + host
        + b"Content-Length: 2\r\n\r\n{}",
        "a body with a look": get(inspect, b"Content-Length: 2\r\n") + b"{}",
        "no host": b"GET " + inspect + b"\x0b HTTP/1.1\r\n\r\n",
        "a name of the container twice": create.replace(b"name=x", b"name=x&name=y") + sized
        + b"\r\n" + body.encode(),
        "nothing": b"\r\n\r\n",
        "something else": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    }  # fmt: skip


@pytest.mark.parametrize("trick", tricks("x", "x"))
def test_tricks_with_http_do_not_reach_the_engine(world: World, trick: str) -> None:
    answer = world.filtered.raw(tricks(world.own, world.lease)[trick])
    assert re.match(rb"HTTP/1\.[01] 4[0-9]{2} ", answer), answer
    assert world.proxy.calls == []
    assert world.hub.ping()


@pytest.mark.parametrize("where", ["path", "header", "lines"])
def test_a_request_without_end_is_not_read_to_its_end(world: World, where: str) -> None:
    start, piece = {
        "path": (b"GET /", b"a"),
        "header": (b"GET /info HTTP/1.1\r\nHost: d\r\nX: ", b"a"),
        "lines": (b"GET /info HTTP/1.1\r\nHost: d\r\n", b"X: a\r\n"),
    }[where]
    with world.filtered.connect() as connection, pytest.raises(ConnectionError):
        connection.sendall(start)
        while True:
            connection.sendall(piece * 65536)
    assert world.proxy.calls == []


def test_two_requests_at_once_are_two_requests(world: World) -> None:
    answer = world.filtered.raw(
        b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n"
        b"GET /info HTTP/1.1\r\nHost: d\r\n\r\n"
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{}",
        answers=3,
    )
    statuses = re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answer)
    assert statuses == [b"200", b"403", b"400"]
    assert world.proxy.calls == [("GET", "/_ping")]


def test_a_body_that_is_too_large_or_not_one(world: World) -> None:
    url = world.hub._url("/containers/create")
    bodies = {
        b"[]": 400, b"": 400, b"{": 400, b'{"Labels":1}': 400,
        b"{" + b" " * (300 << 10) + b"}": 413, b'{"Image":"a","Image":"b"}': 400,
        b"[" * 200_000: 400,
    }  # fmt: skip
    for body, status in bodies.items():
        answer = world.hub.post(url, data=body, params={"name": world.name}, timeout=30)
        assert (answer.status_code, answer.json()["reason"]) == (status, "bad-body")
    # This much is not even read.
    with pytest.raises(requests.RequestException):
        world.hub.post(url, data=b" " * (2 << 20), timeout=30).raise_for_status()
    assert world.proxy.calls == []


# --- what the hub can do ------------------------------------------------------------------------


def test_the_life_of_a_container(world: World, gate: PlainGate) -> None:
    made = world.create(Env=["JUPYTERHUB_API_TOKEN=not-to-be-seen"])
    assert world.hub.inspect_container(world.name)["Id"] == made
    found = world.hub.inspect_container(made)
    assert found["State"]["Status"] == "created"
    assert found["Config"]["Labels"]["gpuslice.lease"] == world.lease
    assert "not-to-be-seen" not in json.dumps(found)
    assert world.root.containers.get(made).attrs["Config"]["Env"][1].endswith("not-to-be-seen")
    with pytest.raises(APIError) as refused:
        world.hub.remove_container(made, v=True)
    assert (refused.value.status_code, refused.value.explanation) == (
        409, "the end of this lease is not settled yet",
    )  # fmt: skip
    gate.settled.add(world.lease)
    world.hub.remove_container(made)
    with pytest.raises(NotFound):
        world.hub.inspect_container(made)


def test_every_version_of_the_api_and_none(world: World) -> None:
    for version in ("1.24", "1.44", "1.99", "auto"):
        with world.filtered.client(version) as hub:
            assert hub.ping()
            assert hub.inspect_container(world.own)["Id"] == world.own
    with world.filtered.client("auto") as hub:
        assert hub.api_version == "1.44"
        assert set(hub.version()) == {"Version", "Os", "Arch", "ApiVersion", "MinAPIVersion"}
    answer = world.filtered.raw(b"HEAD /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nApi-Version: 1.44\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")
    for other in ("v2.0", "v1", "v1.", "v1.444", "v01.44", "1.44"):
        answer = world.filtered.raw(f"GET /{other}/_ping HTTP/1.1\r\nHost: d\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403 "), other


def test_an_image_of_the_list_can_be_looked_at(world: World) -> None:
    found = world.hub.inspect_image(world.image)
    assert found["Id"] == world.root.images.get(world.image).id
    assert found["Config"]["Cmd"] == ["/tiny", "serve"]
    assert "Env" not in found["Config"]
    assert [path for _, path in world.proxy.calls] == [f"/images/{world.image}/json"]
    # The same image, said in another way: asked for as the settings have it.
    assert world.hub.inspect_image(world.image.removesuffix(":latest"))["Id"] == found["Id"]
    assert {path for _, path in world.proxy.calls} == {f"/images/{world.image}/json"}
    world.proxy.answer("GET", "/images/", 404, "nothing here")
    with pytest.raises(ImageNotFound):
        world.hub.inspect_image(world.image)


def test_a_stop_has_a_bound(world: World) -> None:
    for grace in (-1, 601, 10**9):
        with pytest.raises(APIError, match="t is a number from 0 to 600"):
            world.hub.stop(world.own, timeout=grace)
    assert world.proxy.calls == []
    # An engine answers the same for one that does not run.
    world.hub.stop(world.own, timeout=3)
    assert world.proxy.calls == [("POST", f"/containers/{world.own}/stop?t=3")]


def test_the_nodes_own_calls_are_here_too(world: World, gate: PlainGate) -> None:
    node = NodeClient(world.filtered.socket)
    report = asyncio.run(node.server(world.lease))
    assert report is not None
    assert report.lease_id == world.lease
    assert asyncio.run(node.log_tail(world.lease, 7)) == f"7 lines of {world.lease}"
    assert asyncio.run(node.server("0" * 32)) is None
    mine = next(iter(gate.made))
    asyncio.run(node.stop_server(mine, 2))
    assert world.proxy.calls == [("POST", f"/containers/{world.own}/stop?t=2")]


# --- an engine that fails -----------------------------------------------------------------------

LOOKS: dict[str, Try] = {
    "ping": lambda w: w.hub.ping(),
    "version": lambda w: w.hub.version(),
    "image": lambda w: w.hub.inspect_image(w.image),
    "inspect": lambda w: w.hub.inspect_container(w.own),
    "logs": lambda w: w.hub.logs(w.own, tail=1),
    "create": lambda w: w.create(),
    "start": lambda w: w.hub.start(w.own),
    "pull": lambda w: w.hub.pull(*w.image.split(":")),
}


@pytest.mark.parametrize("call", LOOKS)
def test_no_answer_is_said_to_be_none(world: World, call: str) -> None:
    def failure() -> tuple[int, str, str]:
        with pytest.raises(APIError) as failed:
            LOOKS[call](world)
        said = failed.value.response.json()
        return failed.value.status_code, said["reason"], said["message"]

    failing = world.proxy.answer("", "", 500, "no space left")
    assert failure() == (500, "engine-failed", "the engine failed: no space left")
    world.proxy.remove(failing)
    world.proxy.reset("", "")
    status, reason, text = failure()
    assert (status, reason) == (503, "runtime-unavailable")
    assert "does not answer" in text
    world.proxy.down()
    assert failure()[:2] == (503, "runtime-unavailable")


def test_a_refusal_of_the_engine_keeps_its_status_and_words(world: World) -> None:
    world.proxy.answer("POST", "/containers/create", 409, "that name is taken")
    with pytest.raises(APIError) as failed:
        world.create()
    assert (failed.value.status_code, failed.value.explanation) == (409, "that name is taken")


def test_a_slow_engine_holds_up_nobody_else(world: World) -> None:
    held = world.proxy.hang("POST", "/images/create")
    url = world.hub._url("/images/create")
    with world.filtered.connect() as connection:
        path = url.removeprefix("http+docker://localhost") + f"?fromImage={world.image}"
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n".encode())
        held.wait_hit()
        assert world.hub.ping()
