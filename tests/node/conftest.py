"""Fixtures: a real node, its real supervisors, and a real HTTP server in the service's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from realnode import FakeService, Node, fake_service


@pytest.fixture
def service() -> Iterator[FakeService]:
    with fake_service() as fake:
        yield fake


@pytest.fixture
def make_node(tmp_path: Path, service: FakeService) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(folder: Path = tmp_path, *options: str, env: dict[str, str] | None = None) -> Node:
        folder.mkdir(parents=True, exist_ok=True)
        node = Node(folder, service.url, *options)
        node.env = env or {}
        nodes.append(node)
        node.start()
        return node

    yield make
    for node in nodes:
        node.clean()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node()
