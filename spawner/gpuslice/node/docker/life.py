"""What the node writes down of one lease's container, and the clocks that it is dated by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from gpuslice.node.leasedir import LeaseDir, TornFile
from gpuslice.units import boot_id, boottime_us, now_us

FILE = "life.json"


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment on the wall clock, on the clock that never steps, and in which boot; in µs."""

    now_us: int
    boottime_us: int
    boot_id: str

    @classmethod
    def now(cls) -> Moment:
        return cls(now_us(), boottime_us(), boot_id())

    @property
    def boot_began_us(self) -> int:
        """When the machine was started, on the wall clock."""
        return self.now_us - self.boottime_us

    def boottime_of(self, us: int) -> int:
        """What the boot clock showed at a moment of the wall clock, if nobody set that since."""
        return self.boottime_us - (self.now_us - us)


Clock: TypeAlias = Callable[[], Moment]


class End(BaseModel):
    """How a server ended; ``finished_us`` None: nobody can say when."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    finished_us: int | None
    exit_code: int | None
    oom: bool
    message: str | None


class Life(BaseModel):
    """One lease's container, as far as it got. Written before what it announces is done.

    ``name`` is set before the engine is asked to create it, ``boot_id`` and ``asked_boottime_us``
    before it is asked to start it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str | None = None
    container_id: str | None = None
    boot_id: str | None = None
    asked_boottime_us: int | None = None
    started_us: int | None = None
    started_boottime_us: int | None = None
    end: End | None = None


def read_life(lease: LeaseDir) -> Life:
    """Empty before the first word. Raises :class:`gpuslice.node.leasedir.TornFile`."""
    data = lease.read_json(FILE)
    try:
        return Life() if data is None else Life.model_validate(data)
    except ValidationError as error:
        raise TornFile(f"{FILE} is unreadable") from error


def write_life(lease: LeaseDir, life: Life) -> None:
    """Durable when it returns."""
    lease.write_json(FILE, life.model_dump(mode="json"))
