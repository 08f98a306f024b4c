"""What all stateful models share: a platform whose service may be killed at any commit or call.

A model of its own adds people and what must hold. The fake engine keeps the truth of what ran.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant
from sqlalchemy import select

from fakenode import Crash
from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.ledger.tables import Lease
from gpuslice.nodeclient import NodeUnavailable
from ledgerworld import World, sqlite_ledger

T = TypeVar("T")
OVER = (wire.LeaseState.ENDED, wire.LeaseState.CANCELLED)

#: Mostly no crash: a service that is down all the time bills nothing.
crashes = st.sampled_from([None] * 9 + [("commit", 1), ("commit", 2), ("node", 1), ("node", 2)])
picks = st.integers(0, 99)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="gpuslice-model-")


class CrashModel(RuleBasedStateMachine):
    """One short history of a platform on a ledger of its own."""

    world: World
    #: What the runs really did, over all examples: a green run in which nothing happened is no
    #: proof.
    coverage: ClassVar[Counter[str]]

    def database_url(self) -> str:
        """An empty ledger; the same file for every example, so that its engine is the same."""
        return sqlite_ledger(Path(_folder().name, "ledger.sqlite"))

    def dispose(self) -> None:
        for end in ("", "-wal", "-shm"):
            Path(_folder().name, f"ledger.sqlite{end}").unlink(missing_ok=True)

    @property
    def up(self) -> bool:
        return self.world.broker is not None

    # --- crashes --------------------------------------------------------------------------------

    def arm(self, crash: tuple[str, int] | None, after: bool = False) -> None:
        if crash is None:
            return
        target = self.world.database if crash[0] == "commit" else self.world.node
        target.crash_in, target.crash_after = crash[1], after

    def disarm(self) -> None:
        self.world.database.crash_in = None
        self.world.node.crash_in = None

    def crashed(self) -> None:
        self.coverage["crash"] += 1
        self.disarm()
        self.world.kill()

    def refused(self, error: Refused | NodeUnavailable) -> None:
        """A call was refused, or the node did not answer."""
        self.coverage["refused"] += 1

    def attempt(
        self, job: Callable[[], T], crash: tuple[str, int] | None, after: bool = False
    ) -> T | None:
        """Run one call of the service, which may be refused, fail, or be killed in it."""
        self.arm(crash, after)
        try:
            return job()
        except (Refused, NodeUnavailable) as error:
            self.refused(error)
            return None
        except Crash:
            self.crashed()
            return None
        finally:
            if self.up:
                self.disarm()

    # --- machines -------------------------------------------------------------------------------

    def startable(self) -> list[str]:
        return [i for i in self.world.node.slices if self.world.node.startable(i)]

    def server_starts_now(self, lease_id: str, container: bool = False, dies: bool = False) -> None:
        if container:
            self.world.engine_start(lease_id)
            self.coverage["start"] += 1
        elif self.up and self.attempt(lambda: self.world.supervise(lease_id, dies=dies), None):
            self.coverage["start"] += 1

    @staticmethod
    def pick(things: Iterable[Any], pick: int) -> Any:
        names = sorted(things)
        return names[pick % len(names)]

    # --- what must always hold ------------------------------------------------------------------

    @invariant()
    def no_two_tenants(self) -> None:
        """On no device do slices overlap that the node has not cleared yet: the promise."""
        if not hasattr(self, "world"):
            return
        used: Counter[str] = Counter()
        for slice_ in self.world.node.slices.values():
            if slice_.device_uuid:
                used[slice_.device_uuid] += slice_.share_milli or 1000
        for device, milli in used.items():
            assert milli <= 1000, f"{device} is leased twice ({milli} of 1000)"

    @invariant()
    def what_runs_is_leased(self) -> None:
        """A slice is not free in the ledger while the engine still runs its server."""
        if not hasattr(self, "world"):
            return
        running = [s.lease_id for s in self.world.node.servers.values() if s.runs]
        if not running:
            return
        with self.world.database.engine.connect() as connection:
            over = connection.execute(
                select(Lease.id, Lease.state).where(Lease.id.in_(running), Lease.state.in_(OVER))
            ).all()
        assert not over, f"these run but their leases are over: {over}"

    def the_ledger_is_consistent(self) -> None:
        problems = self.world.problems()
        assert not problems, problems

    # --- the end --------------------------------------------------------------------------------

    def finish_everything(self) -> None:
        """Bring everything up, let it settle, and compare the ledger with the truth."""
        raise NotImplementedError

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.finish_everything()
        finally:
            self.world.close()
            self.dispose()
