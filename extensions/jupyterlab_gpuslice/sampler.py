"""One thread that reads once a second, and a ring of its last rows that everybody is served from.

A reading is paid once per server, not once per tab. Rows carry sequence numbers, so that a tab
gets only what is new to it. Nobody reading for a while puts the thread to sleep.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

PERIOD_S = 1.0
#: A quarter of an hour at one row a second.
KEEP = 900
SLEEP_AFTER_S = 30.0

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row(Generic[T]):
    """One reading; ``sequence`` counts from 1 and is never used twice."""

    sequence: int
    value: T


class Sampler(Generic[T]):
    """Calls ``read`` in its own thread while somebody is interested.

    Args:
        read: May block; must not raise for what can happen in normal life.
        clock: Seconds that never go back; given by tests.
    """

    def __init__(
        self,
        read: Callable[[], T],
        *,
        period_s: float = PERIOD_S,
        keep: int = KEEP,
        sleep_after_s: float = SLEEP_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._period_s = period_s
        self._sleep_after_s = sleep_after_s
        self._clock = clock
        self._rows: deque[Row[T]] = deque(maxlen=keep)
        self._last = 0
        self._wanted_at: float | None = None
        self._closed = False
        self._failed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        #: Set while the thread waits for somebody to be interested.
        self.asleep = threading.Event()

    def since(self, sequence: int) -> list[Row[T]]:
        """The rows after ``sequence``, oldest first; keeps the thread awake.

        A number from the future is another server's (this one was restarted): then all rows.
        """
        with self._changed:
            self._wanted_at = self._clock()
            self._start()
            self._changed.notify_all()
            if sequence > self._last:
                sequence = 0
            return [row for row in self._rows if row.sequence > sequence]

    def wait(self, sequence: int, timeout_s: float) -> bool:
        """Waits in the caller's thread for a row after ``sequence``; whether there is one."""
        with self._changed:
            return self._changed.wait_for(lambda: self._last > sequence, timeout_s)

    def close(self) -> None:
        """Ends the thread, which may be in the middle of a reading, without waiting for that."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> None:
        """One reading, in the caller's thread."""
        try:
            value = self._read()
        except Exception:  # noqa: BLE001
            # The thread must live on: what is broken now may work later. Once is enough in the log.
            if not self._failed:
                _LOG.exception("reading the GPU failed")
            self._failed = True
            return
        self._failed = False
        with self._changed:
            self._last += 1
            self._rows.append(Row(self._last, value))
            self._changed.notify_all()

    # -- inside ------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="gpuslice-sampler", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while self._wait_until_wanted():
            started = self._clock()
            self.take()
            # A slow GPU is asked less often, never without pause.
            rest = max(self._period_s / 10, self._period_s - (self._clock() - started))
            with self._changed:
                self._changed.wait_for(lambda: self._closed, rest)

    def _wait_until_wanted(self) -> bool:
        """Returns when somebody is interested (True), or it is all over (False)."""
        with self._changed:
            while not self._closed and not self._wanted():
                self.asleep.set()
                self._changed.wait()
            self.asleep.clear()
            return not self._closed

    def _wanted(self) -> bool:
        wanted_at = self._wanted_at
        return wanted_at is not None and self._clock() - wanted_at <= self._sleep_after_s
