"""What the node is sent wrong: refused in words, with nothing done and nothing else disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from gpuslice import wire
from gpuslice.nodeclient import NodeRefused, node_sockets, short_address
from realnode import Node, call, cpu_slice, fake_service

GOOD = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for all: nothing here may change it."""
    with fake_service() as service:
        node = Node(tmp_path_factory.mktemp("bad input"), service.url)
        node.start()
        yield node
        node.clean()


def send(node: Node, socket: str, method: str, path: str, data: bytes) -> tuple[int, Any]:
    control, engine = node_sockets(node.state)

    async def go() -> tuple[int, Any]:
        with short_address(control if socket == "control" else engine) as address:
            connector = aiohttp.UnixConnector(path=address)
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.request(method, f"http://node{path}", data=data) as answer,
            ):
                return answer.status, json.loads(await answer.read())

    return asyncio.run(go())


def slice_with(**changes: object) -> bytes:
    return json.dumps({**cpu_slice(GOOD).model_dump(mode="json"), **changes}).encode()


def start_with(**changes: object) -> bytes:
    spec = {"lease_id": GOOD, "argv": ["x"], "env": {}, "cwd": "/", "url": "http://x/"}
    return json.dumps({**spec, **changes}).encode()


@pytest.mark.parametrize(
    ("socket", "path", "body"),
    [
        ("control", "/v1/slices", b""),
        ("control", "/v1/slices", b"{"),
        ("control", "/v1/slices", b"[1]"),
        ("control", "/v1/slices", slice_with(lease_id="../../etc")),
        ("control", "/v1/slices", slice_with(lease_id="A" * 32)),
        ("control", "/v1/slices", slice_with(memory_bytes=-1)),
        ("control", "/v1/slices", slice_with(memory_bytes=float("nan"))),
        ("control", "/v1/slices", slice_with(unknown=1)),
        ("control", "/v1/slices", slice_with(user="")),
        ("control", f"/v1/servers/{GOOD}/stop", b'{"grace_s": -1}'),
        ("control", f"/v1/servers/{GOOD}/stop", b'{"grace_s": 1e9}'),
        ("engine", "/v1/servers", start_with(argv=[])),
        ("engine", "/v1/servers", start_with(argv="rm -rf")),
        ("engine", "/v1/servers", start_with(env={"A": 1})),
        ("engine", "/v1/servers", start_with(lease_id="x" * 32)),
    ],
)
def test_a_bad_body_is_400_with_a_reason(node: Node, socket: str, path: str, body: bytes) -> None:
    status, answer = send(node, socket, "POST", path, body)
    assert status == 400
    assert answer["reason"] == "bad-body"
    assert answer["message"]
    listing = call(node.client.listing())
    assert (listing.servers, listing.slices) == ([], [])


def test_the_spawners_socket_can_do_nothing_else(node: Node) -> None:
    lease = node.prepare()
    for method, path in [
        ("GET", "/v1/inventory"),
        ("POST", "/v1/slices"),
        ("DELETE", f"/v1/slices/{lease}"),
        ("POST", f"/v1/slices/{lease}/release"),
    ]:
        status, answer = send(node, "engine", method, path, b"")
        assert (status, answer["reason"]) == (404, "not-found")
    assert send(node, "engine", "GET", "/v1/servers", b"")[0] == 405
    assert send(node, "control", "POST", "/v1/servers", start_with())[0] == 405
    assert call(node.client.listing()).slices == [lease]
    call(node.client.fence(lease))


def test_ids_in_paths_cannot_leave_the_folder(node: Node) -> None:
    for path in ("/v1/slices/..%2f..%2fetc", "/v1/slices/" + "A" * 32, "/v1/slices/x"):
        status, answer = send(node, "control", "DELETE", path, b"")
        assert (status, answer["reason"]) == (404, "not-found")


def test_a_huge_body_is_refused(node: Node) -> None:
    # Tornado closes the connection at once: no answer, or an empty one.
    with contextlib.suppress(aiohttp.ClientError, json.JSONDecodeError):
        status, _ = send(node, "control", "POST", "/v1/slices", b"x" * (3 << 20))
        assert status >= 400
    assert call(node.client.listing()).slices == []


def test_a_slice_needs_the_device_of_its_kind(node: Node) -> None:
    for changes in (
        {"device_uuid": "GPU-1"},
        {"kind": wire.SliceKind.EXCLUSIVE, "device_uuid": None},
    ):
        with pytest.raises(NodeRefused) as refused:
            call(node.client.prepare(cpu_slice(GOOD, **changes)))
        assert refused.value.reason == "bad-slice"


def test_a_strange_environment_is_told_not_lost(node: Node) -> None:
    lease = node.run("pass", env={"A=B": "c"})
    ended = node.wait(lease, wire.ServerState.EXITED)
    assert ended.exit_code == 127
    assert ended.message
    assert call(node.client.release(lease)).clean
