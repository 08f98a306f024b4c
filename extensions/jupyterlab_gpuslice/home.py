"""How full the home is: from the file system where that has a limit for it, else by counting.

Both may take long on a network file system, so one thread does it, never twice at once, and who
asks gets what was found last. Counting is slow on purpose: it rests most of the time, and gives up
at a bound and says "at least".
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gpuslice.units import now_us

LIMIT_VARIABLE = "GPUSLICE_HOME_LIMIT"

#: From this share on a home is called nearly full, in percent.
NEARLY_FULL = 90
#: How long a number is good: one that the file system states, one that was counted.
STATED_S = 15.0
COUNTED_S = 180.0
#: Counting ends here.
MOST_FILES = 1_000_000
MOST_S = 120.0
#: So many files, then a rest of so many times as long as they took.
BATCH = 100
REST = 4
#: Linux' lowest priority.
_LAST = 19
_BLOCK = 512  # bytes; the unit of st_blocks

_LOG = logging.getLogger(__name__)


class Source(StrEnum):
    """Where the number is from."""

    #: The file system has a limit for this home alone, and states how much is left of it.
    QUOTA = "quota"
    #: The home's files, added up.
    COUNTED = "counted"
    #: Not known yet.
    COUNTING = "counting"
    #: The home cannot be looked at.
    UNKNOWN = "unknown"
    #: There is no hub here, and how full a person's own disk is, is not ours to tell.
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Home:
    """How full it is.

    Attributes:
        limit_bytes: How large it may become: what was set, or what the disk has room for.
        free_bytes: What the file system has left for this person.
        of_disk: Whether the limit is the disk's, which is shared with others.
        at_least: There is more than was counted.
    """

    source: Source
    used_bytes: int | None = None
    limit_bytes: int | None = None
    free_bytes: int | None = None
    of_disk: bool = False
    at_least: bool = False
    taken_us: int | None = None

    @property
    def warn(self) -> bool:
        """Whether it is so full that the person should do something."""
        if self.used_bytes is None or self.limit_bytes is None:
            return False
        return self.used_bytes * 100 >= self.limit_bytes * NEARLY_FULL


class HomeMeter:
    """Looks at one folder.

    Args:
        path: The home.
        limit: Bytes that it may have, as far as somebody said so.
        shown: False on a workstation without a hub: then nobody looks.
        clock: Seconds that never go back; given by tests.
    """

    def __init__(
        self,
        path: Path,
        limit: int | None,
        *,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._limit = limit
        self._clock = clock
        self._pause = pause
        self._newest = Home(Source.COUNTING if shown else Source.NONE)
        self._due = 0.0 if shown else float("inf")
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failed = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, behind_hub: bool) -> HomeMeter:
        """The home of the server with this environment."""
        said = environment.get(LIMIT_VARIABLE, "")
        limit = int(said) if said.isascii() and said.isdigit() and int(said) > 0 else None
        if said and limit is None:
            _LOG.warning("%s is not a number of bytes", LIMIT_VARIABLE)
        path = Path(environment.get("HOME") or Path.home())
        return cls(path, limit, shown=behind_hub or limit is not None)

    def look(self) -> Home:
        """What is known, at once; when that is old a thread goes and looks again."""
        with self._lock:
            if self._thread is None and self._clock() >= self._due:
                self._thread = threading.Thread(target=self._run, name="gpuslice-home", daemon=True)
                self._thread.start()
            return self._newest

    def measure(self) -> Home:
        """Looks now; blocks. Raises OSError when the home cannot be looked at."""
        stated = os.statvfs(self._path)
        total, free = (n * stated.f_frsize for n in (stated.f_blocks, stated.f_bavail))
        limit = self._limit
        if limit is not None and total <= limit:
            used = total - stated.f_bfree * stated.f_frsize
            return Home(Source.QUOTA, used, total, free, taken_us=now_us())
        used, complete = self._count()
        of_disk = limit is None or used + free < limit
        return Home(
            Source.COUNTED,
            used,
            used + free if of_disk else limit,
            free,
            of_disk=of_disk,
            at_least=not complete,
            taken_us=now_us(),
        )

    # -- inside ------------------------------------------------------------------------------------

    def _run(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LAST)
        found = Home(Source.UNKNOWN)
        try:
            found = self.measure()
            self._failed = False
        except OSError as problem:
            if not self._failed:
                _LOG.warning("how full the home is cannot be told: %s", problem)
            self._failed = True
        finally:
            with self._lock:
                self._newest = found
                good_s = STATED_S if found.source is Source.QUOTA else COUNTED_S
                self._due = self._clock() + good_s
                self._thread = None

    def _count(self) -> tuple[int, bool]:
        """Bytes on the disk, and whether that is all of them."""
        used = self._path.stat().st_blocks * _BLOCK
        several_names: set[int] = set()
        hidden: list[str] = []
        began = mark = self._clock()
        for number, found in enumerate(_below(self._path, hidden), 1):
            if number % BATCH == 0:
                self._pause((self._clock() - mark) * REST)
                mark = self._clock()
            if number > MOST_FILES or mark - began > MOST_S:
                return used, False
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                if found.st_ino in several_names:
                    continue
                several_names.add(found.st_ino)
            used += found.st_blocks * _BLOCK
        return used, not hidden


def _below(top: Path, hidden: list[str]) -> Iterator[os.stat_result]:
    """All that is below a folder on the same file system; links are not followed.

    Folders that may not be looked into are added to ``hidden``. Anything may be deleted meanwhile.
    """
    device = top.stat().st_dev
    folders = [str(top)]
    while folders:
        folder = folders.pop()
        try:
            entries = os.scandir(folder)
        except PermissionError:
            hidden.append(folder)
            continue
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if found.st_dev != device:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    folders.append(entry.path)
                yield found
