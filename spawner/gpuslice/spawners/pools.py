"""Threads for calls that block: a bounded number, and none that a hub waits for when it ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DaemonPool:
    """At most ``at_once`` calls at a time, the others in the order in which they came.

    The standard library's pool would hold up the end of the process until its last call has
    returned; a pull takes many minutes.
    """

    def __init__(self, at_once: int, name: str) -> None:
        self._at_once = at_once
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        #: Threads that wait for a call, less the calls that wait for a thread.
        self._idle = 0

    def submit(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Have ``call`` made in a thread; a call that is cancelled before that is not made."""
        future: Future[_T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                self._is_idle()
                return
            # Idle before anybody hears of the result: who calls again then gets this thread.
            try:
                result = call(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  (handed to whoever waits)
                self._is_idle()
                future.set_exception(error)
            else:
                self._is_idle()
                future.set_result(result)

        with self._lock:
            self._idle -= 1
            self._calls.put(run)
            if self._idle < 0 and self._threads < self._at_once:
                self._threads += 1
                self._idle += 1
                name = f"{self._name}-{self._threads}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
        return future

    def _work(self) -> Any:
        while True:
            self._calls.get()()

    def _is_idle(self) -> None:
        with self._lock:
            self._idle += 1
