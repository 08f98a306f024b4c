"""What nvmlsim's file says of one lease's processes, moment by moment."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from platform_world import Platform

from gpuslice.units import SECOND_US, now_us
from nvmlsim import Fleet

#: The simulated devices change once a second, and a reader may be as late.
REFRESH_US = 2 * SECOND_US


@dataclass(frozen=True)
class Moment:
    us: int
    memory: int
    #: Of the slice.
    percent: float
    processes: int


class Truth:
    """Records the simulated devices' processes that belong to a lease."""

    def __init__(self, platform: Platform, lease_id: str) -> None:
        lease = platform.lease_by_id(lease_id)
        self._lease = f"GPUSLICE_LEASE={lease_id}".encode()
        self._share = (lease["share_milli"] or 1000) / 1000
        self._fleet = platform.state / "nvmlsim" / "fleet"
        self._seen: list[Moment] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def now(self) -> Moment:
        with Fleet.open(self._fleet, writable=False) as fleet:
            return self._look(fleet)

    def around(self, us: int) -> list[Moment]:
        """What was true within one refresh of a moment."""
        return [moment for moment in self._seen if abs(moment.us - us) <= REFRESH_US]

    def _record(self) -> None:
        with Fleet.open(self._fleet, writable=False) as fleet:
            while not self._ended.wait(0.15):
                self._seen.append(self._look(fleet))

    def _look(self, fleet: Fleet) -> Moment:
        state = fleet.state()
        mine = [p for p in state.process[: state.process_count] if self._is_mine(p.pid)]
        percent = sum(p.utilisation for p in mine) / self._share
        return Moment(now_us(), sum(p.memory for p in mine), min(100.0, percent), len(mine))

    def _is_mine(self, pid: int) -> bool:
        try:
            return self._lease in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False  # it has ended; the list shows it until the next refresh
