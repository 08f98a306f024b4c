"""What a starting server is doing, told to every browser tab that watches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any


class ProgressBoard:
    """Messages of one start. Each watcher sees all of them from the first on, then the new ones."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._closed = False
        # Replaced at every change: waking all watchers needs no list of watchers.
        self._changed = asyncio.Event()

    def say(self, progress: int, message: str) -> None:
        """Add a message; ``progress`` is per cent. The hub escapes the text."""
        self._events.append({"progress": progress, "message": message})
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
            while seen < len(self._events):
                # A copy: the hub takes keys out of what it is given.
                yield dict(self._events[seen])
                seen += 1
            if self._closed:
                return
            if changed is self._changed:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
