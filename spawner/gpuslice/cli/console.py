"""What ``gpuslice up`` has to do with the person in front of it: words, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

from gpuslice.units import format_memory
from gpuslice.wire import Inventory

#: Exit code of a program that was interrupted.
INTERRUPTED = 130


class Signals:
    """Counts the requests to end: the first asks for an orderly end, the second for an end."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._came)

    def _came(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    def wait(self, seconds: float) -> bool:
        """Whether a signal has come, or comes within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.count == 0 and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.count > 0

    @property
    def asked(self) -> bool:
        return self.count > 0

    @property
    def insisted(self) -> bool:
        return self.count > 1


def say(text: str) -> None:
    """One line, at once."""
    # The reader may be gone (a closed terminal): ending in order matters more.
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError:
        pass


def device_lines(seen: Inventory) -> list[str]:
    """The devices of a node, indented as below an entry of the welcome."""
    lines = [f"            {seen.gpu_problem}"] if seen.gpu_problem else []
    for device in seen.devices:
        memory = "" if device.memory_bytes is None else f", {format_memory(device.memory_bytes)}"
        name = device.model if device.mig_profile is None else f"MIG {device.mig_profile}"
        note = " (cut by MIG)" if device.mig_enabled else ""
        lines.append(f"            {device.kind} {device.index}: {name}{memory}{note}")
    return lines
