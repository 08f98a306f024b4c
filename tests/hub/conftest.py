"""Fixtures of the hub's tests: one platform per module, started by ``gpuslice up`` itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The helpers next to this file; with importlib mode pytest does not put them on the path.
sys.path.insert(0, str(Path(__file__).parent))

from platform_world import Platform


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A whole platform in a folder with a space in its name; its books are verified at the end."""
    world = Platform(tmp_path_factory.mktemp("gpu slice"))
    try:
        world.start()
        yield world
        world.stop()
        assert world.verify() == []
    finally:
        world.kill_everything()
