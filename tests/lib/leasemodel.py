"""The stateful model: people, machines and crashes against the real broker, ledger and database.

The fake engine keeps the truth of what ran when; after any sequence, with everything up again,
the ledger must have billed exactly that, once, and freed every slice.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from sqlalchemy import select

from fakenode import Crash
from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.ledger.tables import AccountPeriod, Claim, Entry, Lease, Segment
from gpuslice.nodeclient import NodeUnavailable
from ledgerworld import SLICES, World, sqlite_ledger

USERS = ("alice", "bob", "carol")
OVER = (wire.LeaseState.ENDED, wire.LeaseState.CANCELLED)
RATES = {item["name"]: round(float(str(item["price"])) * 1e6) for item in SLICES}

#: What the runs really did, over all examples: a green run in which nothing happened is no proof.
COVERAGE: Counter[str] = Counter()

#: Mostly no crash: a service that is down all the time bills nothing.
crashes = st.sampled_from([None] * 9 + [("commit", 1), ("commit", 2), ("node", 1), ("node", 2)])
picks = st.integers(0, 99)


class LeaseModel(RuleBasedStateMachine):
    """One short history of the platform. Subclasses give the database's URL."""

    def database_url(self) -> str:
        handle, self.path = tempfile.mkstemp(suffix=".sqlite")
        os.close(handle)
        return sqlite_ledger(Path(self.path))

    def dispose(self) -> None:
        for end in ("", "-wal", "-shm"):
            Path(self.path + end).unlink(missing_ok=True)

    @initialize()
    def begin(self) -> None:
        self.world = World(self.database_url())
        self.granted: dict[str, wire.LeaseGrant] = {}
        self.stops: dict[str, int] = {}
        self.grant_some(0, "quarter", None, start=True)  # never an empty history

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
        COVERAGE["crash"] += 1
        self.disarm()
        self.world.kill()

    def attempt(self, job, crash, after=False):  # type: ignore[no-untyped-def]
        """Run one call of the service, which may be refused, fail, or be killed in it."""
        self.arm(crash, after)
        try:
            return job()
        except (Refused, NodeUnavailable):
            COVERAGE["refused"] += 1
            return None
        except Crash:
            self.crashed()
            return None
        finally:
            if self.up:
                self.disarm()

    # --- what people do -------------------------------------------------------------------------

    @precondition(lambda self: self.up)
    @rule(
        user=st.integers(0, 2),
        slice_name=st.sampled_from(sorted(RATES)),
        crash=crashes,
        server=st.sampled_from(["", "two"]),
        after=st.booleans(),
        start=st.booleans(),
    )
    def spawn(self, user, slice_name, server, crash, after, start):  # type: ignore[no-untyped-def]
        self.grant_some(user, slice_name, crash, server, after, start)

    def grant_some(  # type: ignore[no-untyped-def]
        self, user, slice_name, crash, server="", after=False, start=False
    ):
        granted = self.attempt(
            lambda: self.world.grant(USERS[user], slice_name, server), crash, after
        )
        if granted is not None:
            COVERAGE["grant"] += 1
            self.granted[granted.lease_id] = granted
            if start:
                self.server_starts_now(granted.lease_id)

    @precondition(lambda self: self.up and self.granted)
    @rule(pick=picks, crash=crashes, after=st.booleans(), server_too=st.booleans())
    def user_stops(self, pick, crash, after, server_too):  # type: ignore[no-untyped-def]
        lease_id = self.pick(self.granted, pick)
        if self.attempt(lambda: self.world.stop(lease_id), crash, after) is None:
            return
        COVERAGE["stop"] += 1
        self.stops.setdefault(lease_id, self.world.now)  # the user got an answer: it must hold
        server = self.world.node.servers.get(lease_id)
        if server_too and server is not None and server.runs:
            self.world.now += 1_234_567
            self.world.node.finish(server)

    # --- what machines do -----------------------------------------------------------------------

    def startable(self) -> list[str]:
        return [i for i in self.world.node.slices if self.world.node.startable(i)]

    @precondition(lambda self: self.startable())
    @rule(pick=picks, container=st.booleans(), dies=st.sampled_from([False] * 5 + [True]))
    def server_starts(self, pick, container, dies):  # type: ignore[no-untyped-def]
        self.server_starts_now(self.pick(self.startable(), pick), container, dies)

    def server_starts_now(self, lease_id, container=False, dies=False):  # type: ignore[no-untyped-def]
        if container:
            self.world.engine_start(lease_id)
            COVERAGE["start"] += 1
        elif self.up and self.attempt(lambda: self.world.supervise(lease_id, dies=dies), None):
            COVERAGE["start"] += 1

    @precondition(lambda self: self.up and self.startable())
    @rule(pick=picks, crash=crashes, after=st.booleans())
    def server_starts_too_late(self, pick, crash, after):  # type: ignore[no-untyped-def]
        """A container that was created in time is started when its lease is being taken back."""
        lease_id = self.pick(self.startable(), pick)
        self.world.now += 70_000_000
        self.attempt(self.world.reconcile, crash, after)
        if self.world.node.startable(lease_id):
            self.server_starts_now(lease_id, container=True)
        else:
            COVERAGE["fenced"] += 1

    @rule(pick=picks, how=st.sampled_from(["exit", "exit", "unknown", "removed"]))
    def server_dies(self, pick, how):  # type: ignore[no-untyped-def]
        running = [s for s in self.world.node.servers.values() if s.runs]
        if not running:
            return
        server = running[pick % len(running)]
        COVERAGE["death"] += 1
        if how == "removed":
            self.world.node.vanish(server)
        else:
            self.world.node.finish(server, known=how == "exit")

    @rule(us=st.integers(1, 4_000_000_000))
    def time_passes(self, us):  # type: ignore[no-untyped-def]
        self.world.now += us

    @rule()
    def node_goes_away_or_returns(self) -> None:
        self.world.node.up = not self.world.node.up

    # --- what the service does ------------------------------------------------------------------

    @precondition(lambda self: self.up)
    @rule(crash=crashes, after=st.booleans(), race=st.booleans())
    def reconciles(self, crash, after, race):  # type: ignore[no-untyped-def]
        if race and self.startable():
            lease_id = self.startable()[0]

            async def starts() -> None:
                self.world.now += 1
                await self.world.supervise_async(lease_id)

            self.world.node.after_listing = starts
        self.attempt(self.world.reconcile, crash, after)
        self.world.node.after_listing = None
        self.the_ledger_is_consistent()

    @precondition(lambda self: self.up)
    @rule()
    def service_is_killed(self) -> None:
        self.crashed()

    @precondition(lambda self: not self.up)
    @rule()
    def service_restarts(self) -> None:
        self.world.restart()
        self.the_ledger_is_consistent()

    # --- what must always hold ------------------------------------------------------------------

    def pick(self, things, pick):  # type: ignore[no-untyped-def]
        names = sorted(things)
        return names[pick % len(names)]

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
        assert not self.world.problems()

    # --- the end --------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.finish_everything()
        finally:
            self.world.close()
            self.dispose()

    def finish_everything(self) -> None:
        world = self.world
        if not self.up:
            world.restart()
        self.disarm()
        world.settle_everything(2)
        for lease_id, asked in self.stops.items():
            server = world.node.history.get(lease_id)
            if server is not None and server.started_us is not None:
                assert not server.runs, f"the stop of {asked} was forgotten"
        for server in list(world.node.servers.values()):
            if server.runs:
                world.node.finish(server)
        world.settle_everything()
        assert not world.problems()
        self.everything_is_free()
        for server in world.node.history.values():
            self.billed_exactly(server)

    def everything_is_free(self) -> None:
        with self.world.database.engine.connect() as connection:
            states = connection.execute(select(Lease.id, Lease.state)).all()
            claims = connection.execute(
                select(Claim.id).where(Claim.released_version.is_(None))
            ).all()
            counters = connection.execute(
                select(AccountPeriod.active, AccountPeriod.held_u, AccountPeriod.held_gpu_us)
            ).all()
        assert all(state in OVER for _, state in states), states
        assert not claims
        assert all(counter == (0, 0, 0) for counter in counters)
        assert not self.world.node.servers and not self.world.node.slices

    def billed_exactly(self, server) -> None:  # type: ignore[no-untyped-def]
        """Segments tile the server's real time; entries are its price, split at the stop."""
        with self.world.database.engine.connect() as connection:
            lease = connection.execute(select(Lease).where(Lease.id == server.lease_id)).one()
            segments = connection.execute(
                select(Segment.from_us, Segment.til_us, Segment.amount_u)
                .where(Segment.lease_id == server.lease_id)
                .order_by(Segment.from_us)
            ).all()
            paid = connection.execute(
                select(Entry.kind, Entry.amount_u)
                .join(Segment, Entry.segment_id == Segment.id)
                .where(Segment.lease_id == server.lease_id)
            ).all()
        if server.started_us is None:
            # Permission was given and the supervisor died before its child: billed nothing.
            assert not paid
            return
        if lease.started_us is None and server.vanished:
            assert not paid  # removed by hand before anybody had seen it: nobody can know
            return
        assert lease.started_us == server.started_us
        end = lease.finished_us
        if server.finish_known:
            assert end == server.finished_us, "billed to another end than the engine's"
        else:
            assert server.started_us <= end <= server.finished_us, "billed past death"
        at = server.started_us
        for segment in segments:
            assert segment.from_us == at, "gap or overlap"
            at = segment.til_us
        assert at == end, "unbilled time"
        rate = RATES[lease.slice_type]
        total = rate * (end - server.started_us) // 3_600_000_000
        assert sum(amount for _, amount in paid) == total, "not its time at its price"
        assert sum(segment.amount_u for segment in segments) == total
        COVERAGE["billed"] += 1
        asked = self.stops.get(server.lease_id)
        if asked is not None and asked > server.started_us:
            till = min(asked, end) - server.started_us
            user = sum(amount for kind, amount in paid if kind == "usage")
            assert user == rate * till // 3_600_000_000, "the user pays for the stopping"
        COVERAGE["entries"] += len(paid)
