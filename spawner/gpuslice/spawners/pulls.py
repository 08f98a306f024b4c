"""Pulls of images: one per image for the whole hub, however many starts wait for it.

A start that is cancelled does not take the pull from the others; a pull that nobody waits for any
more goes on, because the next start will want the image too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from gpuslice.spawners.pools import DaemonPool
from gpuslice.units import format_memory

log = logging.getLogger("gpuslice.pulls")

#: How often a start that waits says how far the pull is, in seconds.
_TELL_EVERY_S = 2.0
#: The first time sooner, but not before a free thread has begun.
_TELL_FIRST_S = 0.2
#: Of a layer's way, what downloading is; the rest is unpacking.
_DOWNLOAD = 0.6

Line = Mapping[str, Any]


class PullFailed(Exception):
    """An image could not be pulled; ``reason`` is for programs, the text for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


# --- how far it is --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is. ``bytes_total`` counts the layers whose size is known so far."""

    layers_done: int = 0
    layers: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    all_sizes_known: bool = False
    percent: int = 0
    started: bool = False


@dataclass(slots=True)
class _Layer:
    done: bool = False
    #: Neither downloaded nor unpacked: it was here.
    present: bool = False
    current: int = 0
    total: int | None = None
    unpacked: float = 0.0

    @property
    def way(self) -> float:
        if self.done:
            return 1.0
        loaded = self.current / self.total if self.total else 0.0
        return _DOWNLOAD * min(loaded, 1.0) + (1 - _DOWNLOAD) * min(self.unpacked, 1.0)


@dataclass(slots=True)
class Layers:
    """What the lines of a pull add up to. Lines of another form are left out, never an error."""

    _layers: dict[str, _Layer] = field(default_factory=dict)

    def take(self, line: Line) -> Progress:
        """Add one line of the engine's answer."""
        status, name = line.get("status"), line.get("id")
        if isinstance(status, str) and isinstance(name, str):
            self._take(name, status, line.get("progressDetail"))
        return self._progress()

    def _take(self, name: str, status: str, detail: object) -> None:
        if status.startswith(("Pulling from", "Pulling image", "Status:", "Digest:")):
            return
        layer = self._layers.setdefault(name, _Layer())
        current, total = _numbers(detail)
        match status:
            case "Downloading":
                layer.current, layer.total = current, total or layer.total
            case "Verifying Checksum" | "Download complete":
                layer.current = layer.total or layer.current
            case "Extracting":
                layer.current = layer.total or layer.current
                layer.unpacked = current / total if total else layer.unpacked
            case "Pull complete":
                layer.current, layer.done = layer.total or layer.current, True
            case "Already exists":
                layer.present = layer.done = True

    def _progress(self) -> Progress:
        layers = self._layers.values()
        to_load = [layer for layer in layers if not layer.present]
        return Progress(
            layers_done=sum(layer.done for layer in layers),
            layers=len(layers),
            bytes_done=sum(layer.current for layer in to_load),
            bytes_total=sum(layer.total or 0 for layer in to_load),
            all_sizes_known=all(layer.total is not None or layer.done for layer in to_load),
            percent=int(100 * sum(layer.way for layer in layers) / len(layers)) if layers else 0,
            started=True,
        )


def progress_text(title: str, progress: Progress, *, shared: bool) -> str:
    """One sentence for the spawn page.

    Args:
        title: The image as users know it.
        progress: How far it is.
        shared: Another start began this pull.
    """
    if not progress.started:
        return f"Waiting to pull the image {title}: other images are being pulled"
    text = f"Pulling the image {title}"
    if shared:
        text = f"Waiting for another start's pull of the image {title}"
    if not progress.layers:
        return text
    text += f": {progress.layers_done} of {progress.layers} layers"
    if progress.bytes_total:
        most = "" if progress.all_sizes_known else "at least "
        done, total = format_memory(progress.bytes_done), format_memory(progress.bytes_total)
        text += f", {done} of {most}{total}"
    return text


def _numbers(detail: object) -> tuple[int, int]:
    """(current, total) of a line; 0 where it states none."""
    if not isinstance(detail, Mapping):
        return 0, 0
    current, total = detail.get("current"), detail.get("total")
    return (
        current if isinstance(current, int) and current > 0 else 0,
        total if isinstance(total, int) and total > 0 else 0,
    )


# --- why it failed --------------------------------------------------------------------------

#: What the engine says in such a case, in lower case; the first that fits counts.
_PROBLEMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "image-no-space",
        "there is no space left for it on this machine",
        ("no space left on device", "disk quota exceeded", "not enough space"),
    ),
    (
        "image-login",
        "the registry does not have it, or wants a login",
        (
            "may require 'docker login'", "unauthorized", "authentication required", "denied",
            "no basic auth credentials",
        ),
    ),
    (
        "image-not-found",
        "the registry does not have it",
        ("manifest unknown", "not found", "does not exist", "no such image", "name unknown"),
    ),
    (
        "registry-unavailable",
        "its registry does not answer",
        (
            "connection refused", "no such host", "i/o timeout", "timeout", "deadline exceeded",
            "connection reset", "network is unreachable", "no route to host", "eof",
            "tls", "x509", "server misbehaving", "bad gateway", "service unavailable",
            "too many requests", "toomanyrequests",
        ),
    ),
)  # fmt: skip


def pull_problem(image: str, said: str) -> PullFailed:
    """The engine's words for a failed pull as a reason and a sentence that keeps them."""
    said = " ".join(said.split()).removeprefix("the engine failed: ")[:300]
    for reason, words, signs in _PROBLEMS:
        if any(sign in said.lower() for sign in signs):
            return PullFailed(reason, f"The image {image} was not pulled: {words} ({said})")
    return PullFailed("image-pull-failed", f"The image {image} was not pulled: {said}")


# --- who waits for it -----------------------------------------------------------------------


#: Pulls one image and gives the engine's lines. Blocking, run in a thread. What it raises is
#: raised for everybody who waits.
Source = Callable[[], Generator[Line, None, None]]


class _Pull:
    """One pull, in its thread; whoever waits for it looks at ``progress``."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.progress = Progress()
        self.done: asyncio.Future[None]

    def run(self, source: Source) -> None:
        layers = Layers()
        self.progress = layers.take({})
        with closing(source()) as lines:
            for line in lines:
                error = line.get("error")
                if error:
                    raise pull_problem(self.image, str(error))
                self.progress = layers.take(line)


class Pulls:
    """The pulls of this process. Used from one event loop."""

    def __init__(self, at_once: int) -> None:
        self._pool = DaemonPool(at_once, "gpuslice-pull")
        self._running: dict[str, _Pull] = {}

    async def wait_for(
        self, key: str, image: str, source: Source, tell: Callable[[Progress, bool], None]
    ) -> None:
        """Pull an image, or wait for the pull of it that goes on already.

        Args:
            key: What makes two pulls the same.
            image: The image's name, for words.
            source: Starts the pull and gives its lines.
            tell: Called now and then with how far it is and whether another start began it.

        Raises:
            PullFailed, or whatever else ``source`` raises.
        """
        pull = self._running.get(key)
        shared = pull is not None
        if pull is None:
            pull = self._start(key, image, source)
        # Not the future itself: cancelling that would end it for everybody.
        await asyncio.wait([pull.done], timeout=_TELL_FIRST_S)
        while not pull.done.done():
            tell(pull.progress, shared)
            await asyncio.wait([pull.done], timeout=_TELL_EVERY_S)
        pull.done.result()

    def _start(self, key: str, image: str, source: Source) -> _Pull:
        pull = self._running[key] = _Pull(image)
        pull.done = asyncio.wrap_future(self._pool.submit(pull.run, source))

        def ended(done: asyncio.Future[None]) -> None:
            del self._running[key]
            # Looked at here too: whoever waited may have gone.
            error = None if done.cancelled() else done.exception()
            if error is not None:
                log.warning("gpuslice: pull of %s failed: %s", image, error)
            else:
                log.info("gpuslice: pulled %s", image)

        pull.done.add_done_callback(ended)
        return pull
