"""One thread for calls that may hang: NVML's, which a sick driver can hold for ever."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """Runs functions one at a time in a daemon thread, so that a hanging one harms nobody else.

    A thread of a pool would not do: the interpreter waits for those when it ends.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def call(self, function: Callable[[], T], limit_s: float) -> T:
        """Raises TimeoutError at the limit; if the function had not begun, it never will."""
        future: Future[T] = Future()
        self._jobs.put((future, function))
        return await asyncio.wait_for(asyncio.wrap_future(future), limit_s)

    def _run(self) -> None:
        while True:
            future, function = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as problem:  # noqa: BLE001 - raised again where it is awaited
                future.set_exception(problem)
