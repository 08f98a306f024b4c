"""What tests on a real Docker engine share: a tiny image, names of their own, and the sweeping.

Every test has a node id of its own, and all that a node makes in the engine carries it as
``gpuslice.node``; so what a test leaves behind is found and removed whatever happened in it.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import uuid
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import docker
from docker.errors import APIError, ImageNotFound, NotFound

from gpuslice.containers import LABEL_LEASE, LABEL_NODE

TINY = "gpuslice-test/tiny:latest"
CDI_DIR = Path("/var/run/cdi")
_SOURCE = Path(__file__).parents[1] / "docker" / "tiny.c"
_SOURCE_LABEL = "gpuslice.test.source"


def engine_client() -> docker.DockerClient:
    """The engine as root sees it: how a test looks past the node, or acts by hand."""
    return docker.DockerClient(base_url="unix:///var/run/docker.sock", timeout=120)


def tiny_image(client: docker.DockerClient) -> str:
    """The image with ``/tiny`` in it (see ``tiny.c``) and nothing else.

    It stays for the next run, like what a compiler caches: several runs may use it at once.
    """
    source = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()
    old = None
    with suppress(ImageNotFound):
        old = client.images.get(TINY)
        if old.labels.get(_SOURCE_LABEL) == source:
            return TINY
    with TemporaryDirectory() as folder:
        program = Path(folder) / "tiny"
        command = ["cc", "-static", "-O2", "-Wall", "-Werror", "-o", str(program), str(_SOURCE)]
        subprocess.run(command, check=True)
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            archive.add(program, "tiny")
            for name in ("tmp", "home", "home/jovyan", "proc", "sys", "dev"):
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
    changes = ['CMD ["/tiny","serve"]', f"LABEL {_SOURCE_LABEL}={source}"]
    client.api.import_image_from_data(layer.getvalue(), *TINY.split(":"), changes=changes)
    if old is not None:
        # In use by another run: then it stays.
        with suppress(APIError):
            client.images.remove(old.id)
    return TINY


def new_node_id() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


def own_pool() -> str:
    """Addresses for the networks of up to 32 leases, hardly ever another test's."""
    number = uuid.uuid4().int
    return f"10.{64 + number % 128}.{number // 128 % 256}.0/24"


def containers_of(
    client: docker.DockerClient, node_id: str
) -> list[docker.models.containers.Container]:
    """All containers of a node, created and ended ones too."""
    return client.containers.list(
        all=True, filters={"label": f"{LABEL_NODE}={node_id}"}, ignore_removed=True
    )


def networks_of(client: docker.DockerClient, node_id: str) -> list[docker.models.networks.Network]:
    return client.networks.list(filters={"label": f"{LABEL_NODE}={node_id}"})


def sweep(client: docker.DockerClient, node_id: str) -> None:
    """Removes everything in the engine that carries this node's label."""
    for container in containers_of(client, node_id):
        if lease := container.labels.get(LABEL_LEASE):
            cdi_file(lease).unlink(missing_ok=True)
        with suppress(NotFound):
            container.remove(force=True, v=True)
    for network in networks_of(client, node_id):
        with suppress(NotFound, APIError):
            network.reload()
            for name in network.attrs.get("Containers") or {}:
                network.disconnect(name, force=True)
            network.remove()
    for volume in client.volumes.list(filters={"label": f"{LABEL_NODE}={node_id}"}):
        with suppress(NotFound):
            volume.remove(force=True)


def cdi_file(lease_id: str) -> Path:
    """Where the engine finds a lease's CDI device."""
    return CDI_DIR / f"gpuslice-{lease_id}.json"
