"""Containers of the images that `make images` built, run as the node runs them, and swept away."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import docker
import pytest
from docker.errors import ImageNotFound
from docker.models.containers import Container

#: Another tag than `latest`, for whoever built one: `make images TAG=…`.
_TAG = os.environ.get("GPUSLICE_IMAGES_TAG", "latest")
_LABEL = "gpuslice.test.images"
_PATIENCE_S = 120
#: What the node's template sets too, where a test needs nothing else.
HARDENED: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {"/tmp": "size=256m,mode=1777"},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "network_mode": "none",
}


@dataclass(frozen=True)
class Said:
    """How a command in a container ended, and both of its outputs together."""

    code: int
    text: str


class Images:
    """The four images, and what this test starts from them."""

    def __init__(self, client: docker.DockerClient) -> None:
        self.client = client
        self.run_id = uuid.uuid4().hex
        self._labels = {_LABEL: self.run_id}

    def name(self, image: str) -> str:
        """The image's name; skips the test when nobody has built it."""
        name = f"gpuslice/{image}:{_TAG}"
        try:
            self.client.images.get(name)
        except ImageNotFound:
            pytest.skip(f"docker: no image {name}: run make images")
        return name

    def config(self, image: str) -> dict[str, Any]:
        """What the image says of itself: user, environment, entrypoint, labels."""
        config: dict[str, Any] = self.client.images.get(self.name(image)).attrs["Config"]
        return config

    def volume(self) -> str:
        """A new, empty volume."""
        name = f"gpuslice-test-{uuid.uuid4().hex[:12]}"
        self.client.volumes.create(name, labels=self._labels)
        return name

    @contextmanager
    def network(self) -> Iterator[str]:
        """A new network, and its end."""
        network = self.client.networks.create(
            f"gpuslice-test-{uuid.uuid4().hex[:12]}", internal=True, labels=self._labels
        )
        try:
            yield str(network.name)
        finally:
            self.sweep()
            network.remove()

    def start(self, image: str, command: list[str] | None = None, **differences: Any) -> Container:
        """A container of the image, hardened but for `differences`, in the background."""
        return self.client.containers.run(
            self.name(image),
            command,
            detach=True,
            labels=self._labels,
            **{**HARDENED, **differences},
        )

    def say(self, image: str, command: list[str], **differences: Any) -> Said:
        """Run a command in a container of its own until it ends."""
        container = self.start(image, command, **differences)
        return ended(container)

    def sweep(self) -> None:
        """Remove everything that was started or made here."""
        mine = {"label": f"{_LABEL}={self.run_id}"}
        for container in self.client.containers.list(all=True, filters=mine):
            container.remove(force=True, v=True)
        for volume in self.client.volumes.list(filters=mine):
            volume.remove(force=True)


@contextmanager
def images(client: docker.DockerClient) -> Iterator[Images]:
    """The images; what was started from them is gone afterwards."""
    world = Images(client)
    try:
        yield world
    finally:
        world.sweep()


def ended(container: Container) -> Said:
    """Wait for a container's end."""
    code = int(container.wait(timeout=_PATIENCE_S)["StatusCode"])
    return Said(code, container.logs().decode(errors="replace").strip())


def inside(container: Container, *command: str, **options: Any) -> Said:
    """Run a command in a container that runs already."""
    done = container.exec_run(list(command), **options)
    return Said(int(done.exit_code), done.output.decode(errors="replace").strip())


def health(container: Container) -> str:
    container.reload()
    state = container.attrs["State"]
    if state["Status"] == "exited":
        said = container.logs().decode(errors="replace")[-4000:]
        raise AssertionError(f"it ended with code {state['ExitCode']}:\n{said}")
    return str(state["Health"]["Status"])


def until_healthy(container: Container) -> None:
    """Wait until the image's own health check says so."""
    until(lambda: health(container) == "healthy", lambda: _why(container))


def until(is_so: Callable[[], bool], why: Callable[[], str]) -> None:
    """Poll with patience."""
    end = time.monotonic() + _PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, why()
        time.sleep(0.2)


def _why(container: Container) -> str:
    checks = json.dumps(container.attrs["State"]["Health"], indent=1)
    return checks + container.logs().decode(errors="replace")[-4000:]
