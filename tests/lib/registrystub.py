"""A Docker registry (v2, read-only) on loopback that is slow, broken or gone as a test wants it.

::

    with registry_stub() as registry:
        image = registry.add("lab", layers=[saved_layer, payload()])   # "127.0.0.1:PORT/lab:1"
        gate = registry.hold(image.layers[1])   # sends half of that blob, then waits
        gate.wait_hit(); gate.release()
        registry.refuse(401, "unauthorized")    # every request, until registry.refuse(0)
        registry.down()

The engine takes registries on 127.0.0.0/8 without TLS. ``payload()`` is never the same twice, so
that no engine has the layer already.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import docker
from docker.errors import ImageNotFound

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_LIMIT_S = 120.0


@dataclass(frozen=True)
class RegistryImage:
    """One image on offer: how it is pulled, and the digests of its blobs in order."""

    reference: str
    digest: str
    layers: tuple[str, ...]


@dataclass
class Gate:
    """A blob that stops half way."""

    _hit: threading.Event = field(default_factory=threading.Event)
    _open: threading.Event = field(default_factory=threading.Event)

    def wait_hit(self) -> None:
        """Returns when an engine has half of the blob."""
        assert self._hit.wait(_LIMIT_S), "no engine asked for this blob"

    def release(self) -> None:
        self._open.set()

    def hold(self) -> None:
        self._hit.set()
        self._open.wait(_LIMIT_S)


class RegistryStub:
    """What is on offer, and what is wrong with it. May be used from any thread."""

    def __init__(self) -> None:
        handler = type("BoundHandler", (_Handler,), {"registry": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.blobs: dict[str, tuple[str, bytes]] = {}
        self.tags: dict[str, str] = {}
        self.gates: dict[str, Gate] = {}
        self.refusal: tuple[int, str] = (0, "")
        #: Every path that was asked for.
        self.asked: list[str] = []
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def add(
        self, name: str, layers: Sequence[bytes], *, cmd: Sequence[str] = ("/tiny", "serve")
    ) -> RegistryImage:
        """Offer an image of these layers (tar files), as ``<host>/<name>:1``."""
        packed = [gzip.compress(layer, compresslevel=1, mtime=0) for layer in layers]
        digests = tuple(self._keep(_LAYER, blob) for blob in packed)
        config = {
            "architecture": _architecture(),
            "os": "linux",
            "config": {"Cmd": list(cmd)},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
        }
        config_digest = self._keep(_CONFIG, json.dumps(config).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._described(_CONFIG, config_digest),
            "layers": [self._described(_LAYER, digest) for digest in digests],
        }
        digest = self._keep(_MANIFEST, json.dumps(manifest).encode())
        self.tags[f"{name}:1"] = digest
        return RegistryImage(f"{self.host}/{name}:1", digest, digests)

    def hold(self, digest: str) -> Gate:
        """The blob stops half way until its gate is released."""
        gate = self.gates[digest] = Gate()
        return gate

    def refuse(self, status: int, message: str = "") -> None:
        """Answer every request so; 0: no longer."""
        self.refusal = (status, message)

    def forget(self, client: docker.DockerClient) -> None:
        """Take its images out of an engine again."""
        for image in client.images.list():
            names = [*image.tags, *(image.attrs.get("RepoDigests") or ())]
            for name in [one for one in names if one.startswith(f"{self.host}/")]:
                with suppress(ImageNotFound):
                    client.images.remove(name, force=True)

    def down(self) -> None:
        """Nobody listens there any more."""
        for gate in self.gates.values():
            gate.release()
        self._server.shutdown()
        self._server.server_close()

    def _keep(self, kind: str, blob: bytes) -> str:
        digest = _digest(blob)
        self.blobs[digest] = (kind, blob)
        return digest

    def _described(self, kind: str, digest: str) -> dict[str, object]:
        return {"mediaType": kind, "size": len(self.blobs[digest][1]), "digest": digest}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: RegistryStub

    def do_GET(self) -> None:
        registry = self.registry
        registry.asked.append(self.path)
        status, message = registry.refusal
        if status:
            self._error(status, "DENIED", message)
            return
        if self.path.rstrip("/") == "/v2":
            self._send("application/json", b"{}")
            return
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", self.path)
        name, _, wanted = found.groups() if found else ("", "", "")
        digest = wanted if wanted.startswith("sha256:") else registry.tags.get(f"{name}:{wanted}")
        if digest not in registry.blobs:
            self._error(404, "MANIFEST_UNKNOWN", "manifest unknown")
            return
        kind, blob = registry.blobs[digest]
        self._send(kind, blob, digest)

    do_HEAD = do_GET

    def _send(self, kind: str, blob: bytes, digest: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(blob)))
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if self.command == "HEAD":
            return
        gate = self.registry.gates.get(digest)
        if gate is not None:
            half = len(blob) // 2
            self.wfile.write(blob[:half])
            self.wfile.flush()
            gate.hold()
            blob = blob[half:]
        self.wfile.write(blob)

    def _error(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def registry_stub() -> Iterator[RegistryStub]:
    registry = RegistryStub()
    try:
        yield registry
    finally:
        registry.down()


def payload(size: int = 1 << 20) -> bytes:
    """A layer with a file that does not compress and that nobody has yet."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        entry = tarfile.TarInfo(f"payload-{os.urandom(8).hex()}")
        entry.size = size
        archive.addfile(entry, io.BytesIO(os.urandom(size)))
    return layer.getvalue()


def saved_layers(image: str) -> list[bytes]:
    """The layers of an image that the engine has, as ``docker save`` gives them."""
    saved = subprocess.run(["docker", "save", image], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
        manifest = json.loads(_member(archive, "manifest.json"))
        return [_member(archive, name) for name in manifest[0]["Layers"]]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, name
    return file.read()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
