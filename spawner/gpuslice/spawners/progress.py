"""What a starting server is doing, told to every browser tab that watches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any


class ProgressBoard:
    """Messages of one start. Each watcher sees all of them from the first on, then the new ones."""

    def __init__(self) -> None:
        #: Each with its number: a message that took another's place is new to everybody.
        self._events: list[tuple[int, dict[str, Any]]] = []
        self._count = 0
        self._progress = 0
        self._topic: str | None = None
        self._closed = False
        # Replaced at every change: waking all watchers needs no list of watchers.
        self._changed = asyncio.Event()

    def say(self, progress: int, message: str, *, topic: str | None = None) -> None:
        """Add a message. The hub escapes the text.

        Args:
            progress: Per cent; never shown as less than was shown before.
            message: A short text.
            topic: Replaces the last message if that was of the same topic, so that a watcher who
                comes late does not read every step of a long pull.
        """
        self._progress = max(self._progress, progress)
        if topic is not None and topic == self._topic:
            self._events.pop()
        self._topic = topic
        self._count += 1
        self._events.append((self._count, {"progress": self._progress, "message": message}))
        self._wake()

    def close(self) -> None:
        """No more messages will come: the watchers end."""
        self._closed = True
        self._wake()

    async def watch(self) -> AsyncIterator[dict[str, Any]]:
        """All messages, as they come, until the board is closed."""
        seen = 0
        while True:
            changed = self._changed
            for number, event in [one for one in self._events if one[0] > seen]:
                # A copy: the hub takes keys out of what it is given.
                yield dict(event)
                seen = number
            if changed is not self._changed:
                continue  # more was said while the hub sent these
            if self._closed:
                return
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
