"""The stateful model: people, machines and crashes against the real broker, ledger and database.

The fake engine keeps the truth of what ran when; after any sequence, with everything up again,
the ledger must have billed exactly that, once, and freed every slice.
"""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
)
from sqlalchemy import select

from crashmodel import OVER, CrashModel, crashes, picks
from gpuslice import wire
from gpuslice.ledger.tables import AccountPeriod, Claim, Entry, Lease, Segment
from ledgerworld import SLICES, World

USERS = ("alice", "bob", "carol")
RATES = {item["name"]: round(float(str(item["price"])) * 1e6) for item in SLICES}

#: What the runs really did, over all examples: a green run in which nothing happened is no proof.
COVERAGE: Counter[str] = Counter()


class LeaseModel(CrashModel):
    """One short history of the platform."""

    coverage = COVERAGE

    @initialize()
    def begin(self) -> None:
        self.world = World(self.database_url())
        self.granted: dict[str, wire.LeaseGrant] = {}
        self.stops: dict[str, int] = {}
        self.grant_some(0, "quarter", None, start=True)  # never an empty history

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

    @precondition(lambda self: self.startable())
    @rule(pick=picks, container=st.booleans(), dies=st.sampled_from([False] * 5 + [True]))
    def server_starts(self, pick, container, dies):  # type: ignore[no-untyped-def]
        self.server_starts_now(self.pick(self.startable(), pick), container, dies)

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

    # --- the end --------------------------------------------------------------------------------

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
