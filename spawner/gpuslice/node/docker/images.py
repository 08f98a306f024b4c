"""Looking at images and pulling them, through the filter: only those in the settings."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

from tornado.iostream import StreamClosedError

from gpuslice.errors import Refused
from gpuslice.node.docker.api import DockerApi, EngineDown, Json
from gpuslice.node.docker.call import Call, clean, engine_refusals
from gpuslice.settings import DockerSettings

#: Docker's own encoding of a registry's user and password.
_AUTH = re.compile(r"[A-Za-z0-9+/=_-]{0,8192}")
#: In bytes; lines about progress have some hundred.
_LONGEST_LINE = 1 << 20
_SHOWN = ("Id", "RepoTags", "RepoDigests", "Created", "Size", "Os", "Architecture")
_SHOWN_CONFIG = ("Cmd", "Entrypoint", "ExposedPorts", "Labels", "User", "Volumes", "WorkingDir")


class ImageCall(Call):
    def initialize(self, api: DockerApi, policy: DockerSettings) -> None:  # type: ignore[override]
        self.api = api
        self.policy = policy

    def allowed(self, name: str, tag: str = "") -> str:
        """The reference in the settings that means this image. Raises Refused for any other."""
        asked = f"{name}{'@' if tag.startswith('sha256:') else ':'}{tag}" if tag else name
        for image in self.policy.image:
            if split_reference(image.reference) == split_reference(asked):
                return image.reference
        text = f"{clean(asked)} is not among the images that servers are started from"
        raise Refused("image-refused", text, status=403)


class ImageHandler(ImageCall):
    """``GET /images/<reference>/json``"""

    async def get(self, name: str) -> None:
        reference = self.allowed(name)
        with engine_refusals():
            image = await self.api.image(reference)
        if image is None:
            # In these words docker-py knows an image that is missing.
            raise Refused("no-image", f"No such image: {reference}", status=404)
        self.finish(shown_image(image))


class PullHandler(ImageCall):
    """``POST /images/create``: a pull, whose progress passes on line by line."""

    QUERY = frozenset({"fromImage", "tag"})
    pulling: asyncio.Future[None] | None = None

    async def post(self) -> None:
        reference = self.allowed(self.parameter("fromImage") or "", self.parameter("tag") or "")
        auth = self.request.headers.get("X-Registry-Auth")
        if auth is not None and not _AUTH.fullmatch(auth):
            raise Refused("bad-body", "X-Registry-Auth is not understood", status=400)
        self.set_header("Content-Type", "application/json")
        self.pulling = asyncio.ensure_future(self._pull(reference, auth))
        # Also when it is cancelled because nobody listens any more.
        await asyncio.wait([self.pulling])
        if not self.pulling.cancelled():
            self.pulling.result()

    def on_connection_close(self) -> None:
        if self.pulling is not None:
            self.pulling.cancel()

    async def _pull(self, reference: str, auth: str | None) -> None:
        name, tag = split_reference(reference)
        headers = {"X-Registry-Auth": auth} if auth else None
        query = {"fromImage": name, "tag": tag}
        begun = False
        try:
            with engine_refusals():
                async with self.api.open(
                    "POST", "/images/create", query=query, headers=headers, limit_s=None
                ) as answer:
                    async for line in _lines(answer.content.iter_any()):
                        begun = True
                        await self._pass_on(line)
        except Refused as problem:
            if not begun:
                raise
            # Its status is sent; docker's clients look for errors in the lines as well.
            text = f"the engine's answer broke off: {problem}"
            await self._pass_on(json.dumps({"error": text, "errorDetail": {"message": text}}))
        self.finish()

    async def _pass_on(self, line: bytes | str) -> None:
        """Returns when the client has taken it, so a slow one slows the engine down."""
        try:
            self.write(line)
            await self.flush()
        except StreamClosedError:
            raise asyncio.CancelledError from None


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole lines with their ends. Raises EngineDown when one does not come to its end."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line + b"\n"
        if len(rest) > _LONGEST_LINE:
            raise EngineDown("a line of its answer has no end")
    if rest:
        raise EngineDown("its answer ended within a line")


def split_reference(reference: str) -> tuple[str, str]:
    """Name, and digest or else tag: ``host:5000/a/b:1`` is ``("host:5000/a/b", "1")``."""
    base, _, digest = reference.partition("@")
    name, colon, tag = base.rpartition(":")
    if not colon or "/" in tag:
        name, tag = base, ""
    return name, digest or tag or "latest"


def shown_image(image: Json) -> Json:
    """What the hub needs to know of an image."""
    config = image.get("Config") or {}
    return {
        **{name: image.get(name) for name in _SHOWN},
        "Config": {name: config.get(name) for name in _SHOWN_CONFIG},
    }
