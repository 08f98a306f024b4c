"""The stateful model of limits: policies, budgets, credit, queue and crashes on the real broker.

`quotaoracle.Books` says from the facts alone what everybody has used and which limits bind; after
every step the model asks whether what the broker did follows from that, and nothing else.
"""

from __future__ import annotations

import uuid
from collections import Counter
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import sqlalchemy as sa
from hypothesis.stateful import initialize, precondition, rule

from crashmodel import OVER, CrashModel, picks
from fakenode import gpu
from gpuslice import wire
from gpuslice.broker.core import HubUser
from gpuslice.broker.moneyviews import GiveCredit, RefundLease, SetPrice
from gpuslice.broker.queuedesk import JoinFor
from gpuslice.errors import Refused
from gpuslice.ledger import accounts
from gpuslice.ledger.idempotency import Claim
from gpuslice.ledger.tables import (
    Account,
    AccountPeriod,
    CreditGrant,
    Entry,
    NoticeRow,
    QueueRequest,
    Segment,
)
from gpuslice.ledger.tables import Claim as DeviceClaim
from gpuslice.nodeclient import NodeUnavailable
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.service import models, once
from gpuslice.service.auth import Caller
from gpuslice.service.calls import Call
from gpuslice.service.routes import ROUTES
from ledgerworld import World
from quotaoracle import HORIZON, HOUR, MILLI, Books, Limit, start_of

#: Everybody's group; the course belongs to the faculty.
GROUPS = {"ada": ("course",), "bob": ("course",), "cleo": ("lab",), "dan": ()}
ABOVE = {"course": ("course", "faculty"), "lab": ("lab",)}
USERS = sorted(GROUPS)
SLICES = sorted(MILLI)
SECOND, MINUTE = 1_000_000, 60_000_000
GRACE, NODE_STOP = 120 * SECOND, 10 * SECOND
WATCH = "budget watch"
STILL_WAITS = QueueRequest.state.in_(("waiting", "offered", "starting"))
#: A quiet evening, the day when Berlin's clocks go back, and the one when they go forward.
BEGINNINGS = (1_790_000_000, 1_792_870_000, 1_806_100_000)


def _per(at_most: str, per: str) -> list[dict[str, str]]:
    return [{"at_most": at_most, "per": per}]


Policy = tuple[str, str | None, dict[str, Any]]


def _user(name: str, **each: Any) -> Policy:
    return "user", name, {"each": each, "timezone": "Europe/Berlin"}


def _group(name: str, zone: str = "Europe/Berlin", **total: Any) -> Policy:
    return "group", name, {"total": total, "timezone": zone}


SAFE = {"hold": "safe", "session_hours": 3}
LATER = {"when_lowered": "next-start"}
#: What administrators set before anybody comes, and at last: amounts that some hours use up.
STORIES: list[tuple[list[Policy], Policy | None]] = [
    ([_user("ada", money=_per("0.4", "day"))], None),
    ([_user("ada", money=_per("3", "day"), **SAFE)], _user("ada", money=_per("0", "day"), **SAFE)),
    ([_user("bob", gpu_hours=_per("0.5", "6h"))], _user("bob", slice_types=["cpu"])),
    ([_user("bob", gpu_hours=_per("2", "6h"), **LATER)],
     _user("bob", gpu_hours=_per("0", "6h"), **LATER)),
    ([_user("cleo", prepaid=True)], None),
    ([_group("course", money=_per("1.5", "day"))], None),
    ([_group("faculty", "Asia/Kolkata", money=_per("2", "week"))], _group("course", slices=1)),
    ([_group("course", slices=2, slices_by_type={"quarter": 2})], None),
    ([("everyone", None, {"each": {"slices": 1}})], None),
    ([_group("lab", gpu_hours=_per("0.4", "day"))], _group("lab", money=_per("0.1", "day"))),
]  # fmt: skip
POLICIES = [
    policy for before, last in STORIES for policy in (*before, last) if policy is not None
] + [
    ("everyone", None, {"each": {"slices": "unlimited", "session_hours": 12}}),
    ("group", "course", {"each": {"slice_types": ["quarter", "cpu"]}}),
]

#: Rarer than in the model of leases: a budget is used up only while somebody looks.
crashes = st.sampled_from([None] * 16 + [("commit", 1), ("commit", 2), ("node", 1), ("node", 2)])

#: What the runs really did, over all examples.
COVERAGE: Counter[str] = Counter()


class ModelHub:
    """The hub: everybody's groups, who has used a server, and what it was asked to start."""

    def __init__(self) -> None:
        self.active: dict[str, int] = {}

    async def stop_server(self, user: str, server: str) -> None:
        """A hub that never manages to: the node has to."""

    async def start_server(self, user: str, server: str, options: dict[str, str]) -> None:
        COVERAGE["hub start"] += 1

    async def user(self, name: str) -> HubUser:
        at = self.active.get(name)
        return HubUser(name, GROUPS[name], {"": at, "two": at})


class QuotaModel(CrashModel):
    """One short history of people under limits."""

    coverage = COVERAGE

    @initialize(
        beginning=st.sampled_from(BEGINNINGS),
        story=st.sampled_from(STORIES),
        more=st.lists(st.sampled_from(POLICIES), max_size=1),
    )
    def begin(
        self, beginning: int, story: tuple[list[Policy], Policy | None], more: list[Policy]
    ) -> None:
        self.hub = ModelHub()
        self.world = World(
            self.database_url(), devices=[gpu("GPU-a", 0), gpu("GPU-b", 1)], hub=self.hub
        )
        self.world.now = max(self.world.now, beginning * SECOND)
        self.world.restart()
        self.chains: dict[str, tuple[str, ...]] = {}
        #: The deadline that each lease had after the last step, and who is known to be stopped.
        self.told: dict[str, int | None] = {}
        self.stopped: set[str] = set()
        #: Since which comparison a lease is seen to be over a limit.
        self.over_since: dict[str, int] = {}
        #: Since which comparison nothing happened but time; and who has drawn on budgets since.
        self.calm_from: int | None = None
        self.drawing: frozenset[str] = frozenset()
        self.rearmed: Counter[tuple[str, int]] = Counter()
        self.keys = 0
        self.last: Refused | NodeUnavailable | None = None
        once._WAIT_S = 0.0
        self.world.database.write(self._nest)
        before, self.at_last = story
        for policy in (*more, *before):
            self._set_policy(*policy, None)
        for amount, lasts in ((150_000, None), (700_000, 90 * MINUTE)):
            self._gives(amount, 0, lasts, None, again=1)
        # Never an empty history: one GPU in quarters, the other as a whole, and one who waits.
        for user, slice_name in (("dan", "whole"), *((one, "quarter") for one in USERS[:3])):
            self.world.now += 1
            self._spawn(user, slice_name, "", None, start=True)
        self._joins("bob", "whole", "two", None, auto=False)

    def _nest(self, session: sa.orm.Session) -> None:
        faculty, course = (
            accounts.find_or_open(session, accounts.HUB_GROUP, name, self.world.now)
            for name in ("faculty", "course")
        )
        session.execute(sa.update(Account).where(Account.id == course).values(parent_id=faculty))

    def refused(self, error: Refused | NodeUnavailable) -> None:
        super().refused(error)
        self.last = error

    def crashed(self) -> None:
        super().crashed()
        self.calm_from = None

    # --- what people do -------------------------------------------------------------------------

    @precondition(lambda self: self.up)
    @rule(
        user=st.sampled_from(USERS),
        slice_name=st.sampled_from(["quarter", "quarter", *SLICES]),
        server=st.sampled_from(["", "two"]),
        crash=crashes,
        after=st.booleans(),
        hours=st.sampled_from([None, None, 1, 2]),
        start=st.sampled_from([True, True, False]),
    )
    def spawn(self, user, slice_name, server, crash, after, hours, start):  # type: ignore[no-untyped-def]
        self._spawn(user, slice_name, server, crash, after, hours, start)

    def _spawn(  # type: ignore[no-untyped-def]
        self, user, slice_name, server, crash, after=False, hours=None, start=False
    ) -> None:
        declared = None if hours is None else hours * HOUR
        request = wire.LeaseRequest(
            attempt=uuid.uuid4().hex, user=user, server=server, slice=slice_name,
            groups=list(GROUPS[user]), declared_us=declared,
        )  # fmt: skip
        before, self.last = self.books(), None
        granted = self.attempt(
            lambda: self.world.do(self.world.live().grant(request)), crash, after
        )
        self.look()
        if granted is None:
            self._was_refused_rightly(before, user, slice_name, declared)
            return
        COVERAGE["grant"] += 1
        COVERAGE["offer taken"] += granted.lease_id in before.leases
        if start:
            self.server_starts_now(granted.lease_id)
            self.look()

    @precondition(lambda self: self.up)
    @rule(pick=picks, crash=crashes, after=st.booleans())
    def takes_an_offer(self, pick, crash, after):  # type: ignore[no-untyped-def]
        offered = self._requests(QueueRequest.state.in_(("offered", "starting")))
        if offered:
            self._takes(offered[self.pick(offered, pick)], crash, after)

    def _takes(self, one: Any, crash: Any, after: bool = False) -> None:
        self._spawn(one.user_name, one.slice_type, one.server_name, crash, after, start=True)

    def _requests(self, *where: Any) -> dict[str, Any]:
        with self.world.database.engine.connect() as connection:
            rows = connection.execute(sa.select(QueueRequest).where(*where))
            return {row.id: row for row in rows}

    def _was_refused_rightly(
        self, books: Books, user: str, slice_name: str, declared: int | None
    ) -> None:
        """A limit that is named did not have room, by the oracle too."""
        if not isinstance(self.last, Refused):
            return
        reason = self.last.refusal.reason
        COVERAGE[reason] += 1
        now, chain = self.world.now, self.chain_of(books, user)
        rate = books.rate(slice_name, now)
        limits = list(books.limits(chain, slice_name))
        hold, _ = books.said(chain, "hold")
        session, _ = books.said(chain, "session_hours")
        length = HORIZON
        if hold == "safe":
            length = max(HORIZON, declared or int(Decimal(session) * HOUR))
        ask = {"money": rate * length // HOUR, "credit": rate * length // HOUR,
               "gpu-hours": length * MILLI[slice_name] // 1000}  # fmt: skip
        kinds = {"budget-limit": "money", "gpu-hours-limit": "gpu-hours",
                 "credit-limit": "credit", "leases-limit": "slices",
                 "slice-type-limit": f"slices/{slice_name}"}  # fmt: skip
        if reason == "slice-not-allowed":
            assert not books.allowed(chain, slice_name)
        if reason not in kinds:
            return
        kind = kinds[reason]
        mine = [limit for limit in limits if limit.kind == kind]
        if kind.startswith("slices"):
            full = [len(books.active(limit)) + 1 > limit.amount for limit in mine]
        elif kind == "credit":
            full = [
                books.held(limit, surely=False) + ask[kind]
                > books.credit(limit.account, now, surely_gone=False)
                for limit in mine
            ]
        else:
            full = [
                books.used(limit, now, surely=False) + books.held(limit, surely=False) + ask[kind]
                > limit.amount
                for limit in mine
            ]
        assert any(full), f"refused by {reason}, but there is room: {self.last}"

    @precondition(lambda self: self.up and self.chains)
    @rule(pick=picks, crash=crashes, after=st.booleans(), server_too=st.booleans())
    def user_stops(self, pick, crash, after, server_too):  # type: ignore[no-untyped-def]
        lease_id = self.pick(self.chains, pick)
        if self.attempt(lambda: self.world.stop(lease_id), crash, after) is not None:
            COVERAGE["stop"] += 1
            server = self.world.node.servers.get(lease_id)
            if server_too and server is not None and server.runs:
                self.world.now += 1_234_567
                self.world.node.finish(server)
        self.look()

    @precondition(lambda self: self.up)
    @rule(
        user=st.sampled_from(USERS), slice_name=st.sampled_from(["whole", "half"]),
        server=st.sampled_from(["", "two"]), crash=crashes, after=st.booleans(),
        auto=st.booleans(),
    )  # fmt: skip
    def joins_the_queue(self, user, slice_name, server, crash, after, auto):  # type: ignore[no-untyped-def]
        self._joins(user, slice_name, server, crash, after, auto)

    def _joins(  # type: ignore[no-untyped-def]
        self, user, slice_name, server, crash, after=False, auto=False
    ) -> None:
        body = JoinFor(user=user, slice=slice_name, server=server, auto_start=auto,
                       groups=list(GROUPS[user]))  # fmt: skip
        joined = self.attempt(
            lambda: self.world.do(self.world.live().queue.join(body)), crash, after
        )
        COVERAGE["join"] += joined is not None
        self.look()

    @precondition(lambda self: self.up)
    @rule(pick=picks, crash=crashes, after=st.booleans())
    def leaves_the_queue(self, pick, crash, after):  # type: ignore[no-untyped-def]
        waiting = self._requests(STILL_WAITS)
        if waiting:
            self._leaves(self.pick(waiting, pick), crash, after)

    def _leaves(self, request_id: str, crash: Any, after: bool = False) -> None:
        desk = self.world.live().queue
        self.attempt(
            lambda: self.world.do(desk.leave(request_id, None, "root", "a test")), crash, after
        )
        self.look()

    @rule(user=st.sampled_from(USERS))
    def opens_the_notebook(self, user):  # type: ignore[no-untyped-def]
        self.hub.active[user] = self.world.now

    # --- what administrators do -----------------------------------------------------------------

    @precondition(lambda self: self.up)
    @rule(policy=st.sampled_from(POLICIES), crash=crashes, after=st.booleans())
    def policy_changes(self, policy, crash, after):  # type: ignore[no-untyped-def]
        self._set_policy(*policy, crash, after)

    def _set_policy(  # type: ignore[no-untyped-def]
        self, kind, name, document, crash, after=False
    ) -> None:
        desk = self.world.live().policies
        history, _ = self.world.do(desk.history(kind, name, None, 1000))
        now = [one for one in history if one.til_us is None]
        version = now[0].version if now else None
        wanted = PolicyDocument.model_validate(document)
        self.attempt(
            lambda: self.world.do(desk.set(kind, name, wanted, version, "a test", "root")),
            crash, after,
        )  # fmt: skip
        COVERAGE["policy"] += 1
        self.look()

    @precondition(lambda self: self.up)
    @rule(
        slice_name=st.sampled_from(SLICES), rate=st.sampled_from([400_000, 1_000_003, 3_000_000]),
        later=st.sampled_from([None, None, 40 * MINUTE]), crash=crashes, after=st.booleans(),
    )  # fmt: skip
    def price_changes(self, slice_name, rate, later, crash, after):  # type: ignore[no-untyped-def]
        start = None if later is None else self.world.now + later
        body = SetPrice(slice=slice_name, rate_u_per_hour=rate, from_us=start, reason="a test")
        self.world.now += 1
        desk = self.world.live().money
        if self.attempt(lambda: self.world.do(desk.set_price(body, "root")), crash, after):
            COVERAGE["price"] += 1
        self.look()

    @precondition(lambda self: self.up)
    @rule(
        amount=st.sampled_from([200_000, 700_000, 2_000_000]), priority=st.sampled_from([0, 1]),
        lasts=st.sampled_from([None, HOUR, 30 * HOUR]), crash=crashes, after=st.booleans(),
        again=st.integers(1, 3),
    )  # fmt: skip
    def credit_is_sent_again(self, amount, priority, lasts, crash, after, again):  # type: ignore[no-untyped-def]
        self._gives(amount, priority, lasts, crash, after, again)

    def _gives(  # type: ignore[no-untyped-def]
        self, amount, priority, lasts, crash, after=False, again=1
    ) -> None:
        """One request, sent until it is answered and then again: one effect, one answer."""
        self.keys += 1
        body = GiveCredit(
            whose="user", name="cleo", amount_u=amount, priority=priority,
            expires_us=None if lasts is None else self.world.now + lasts,
            reason=f"key {self.keys}",
        )  # fmt: skip
        answers = [self._send(body, crash, after)]
        if not self.up:
            self.world.restart()
        answers += [self._send(body, None) for _ in range(again)]
        with self.world.database.engine.connect() as connection:
            done = connection.scalar(
                sa.select(sa.func.count()).where(Entry.kind == "credit", Entry.memo == body.reason)
            )
        assert done == 1, f"{done} effects of one request"
        assert len({one for one in answers if one is not None}) <= 1
        COVERAGE["credit"] += 1
        other = body.model_copy(update={"amount_u": amount + 1})
        self.last = None
        assert self._send(other, None) is None
        assert isinstance(self.last, Refused) and self.last.status == 422
        self.look()

    def _send(self, body: GiveCredit, crash: Any, after: bool = False) -> tuple[int, str] | None:
        route = next(route for route in ROUTES if route.name == "give_credit")
        call: Call[Any, Any] = Call(
            self.world.live(), Caller("operator"), body, models.Nothing(),
            None, {},  # type: ignore[arg-type]
        )  # fmt: skip
        claim = Claim("operator", f"key-{self.keys}", body.model_dump_json())
        core = self.world.live().core
        return self.attempt(
            lambda: self.world.do(once.once(core, claim, route, call)), crash, after
        )

    @precondition(lambda self: self.up and self.chains)
    @rule(pick=picks, part=st.booleans(), crash=crashes, after=st.booleans())
    def money_goes_back(self, pick, part, crash, after):  # type: ignore[no-untyped-def]
        self._goes_back(self.pick(self.chains, pick), part, crash, after)

    def _goes_back(self, lease_id: str, part: bool, crash: Any, after: bool = False) -> None:
        body = RefundLease(amount_u=1000 if part else None, reason="a test")
        desk = self.world.live().money
        if self.attempt(
            lambda: self.world.do(desk.refund_lease(lease_id, body, "root")), crash, after
        ):
            COVERAGE["refund"] += 1
        self.look()

    # --- what machines and time do --------------------------------------------------------------

    @precondition(lambda self: self.startable())
    @rule(pick=picks, container=st.booleans())
    def server_starts(self, pick, container):  # type: ignore[no-untyped-def]
        self.server_starts_now(self.pick(self.startable(), pick), container)
        self.look()

    @rule(pick=picks, how=st.sampled_from(["exit", "exit", "unknown", "removed"]))
    def server_dies(self, pick, how):  # type: ignore[no-untyped-def]
        running = [s for s in self.world.node.servers.values() if s.runs]
        if not running:
            return
        server = running[pick % len(running)]
        COVERAGE["death"] += 1
        self.calm_from = None
        if how == "removed":
            self.world.node.vanish(server)
        else:
            self.world.node.finish(server, known=how == "exit")

    @precondition(lambda self: self.up)
    @rule(
        ticks=st.integers(1, 6),
        step=st.sampled_from([SECOND, MINUTE, 5 * MINUTE, 20 * MINUTE, 20 * MINUTE, HOUR]),
        odd=st.integers(0, 999_999),
        crash=crashes,
        after=st.booleans(),
    )
    def time_passes(self, ticks, step, odd, crash, after):  # type: ignore[no-untyped-def]
        for number in range(ticks):
            self.world.now += step + odd
            self.tick(crash if number == ticks - 1 else None, after)
            if not self.up:
                return

    @rule(us=st.sampled_from([1, 3 * MINUTE, 2 * HOUR, 26 * HOUR]))
    def nobody_looks(self, us):  # type: ignore[no-untyped-def]
        self.world.now += us

    @precondition(lambda self: self.up)
    @rule()
    def service_is_killed(self) -> None:
        self.crashed()

    @precondition(lambda self: not self.up)
    @rule()
    def service_restarts(self) -> None:
        self.world.restart()
        self.the_ledger_is_consistent()

    # --- what follows ---------------------------------------------------------------------------

    def books(self) -> Books:
        with self.world.database.engine.connect() as connection:
            return Books(connection, self.chains)

    @staticmethod
    def chain_of(books: Books, user: str) -> tuple[str, ...]:
        """Whom a lease of this user counts for now."""
        for group in GROUPS[user]:
            above = tuple(f"group:{name}" for name in ABOVE[group])
            said = {
                books.names[row.account_id]
                for row in books.policies
                if row.valid_til_us is None and row.account_id is not None
            }
            if said.intersection(above):
                return (f"user:{user}", *above)
        return (f"user:{user}",)

    def tick(self, crash: Any = None, after: bool = False) -> None:
        """One comparison; if nothing befell it, all that it promises is looked at."""

        def compare() -> bool:
            self.world.reconcile()
            return True

        ticked = self.attempt(compare, crash, after)
        calm = self.calm_from
        books = self.look()
        self.calm_from = calm  # a comparison by itself is no disturbance
        if ticked:
            COVERAGE["tick"] += 1
            self._after_a_tick(books)

    def look(self) -> Books:
        """After every step: what is new was allowed, and nothing came without notice."""
        books, now = self.books(), self.world.now
        new = [one for one in books.leases.values() if one.id not in self.chains]
        for lease in new:
            self.chains[lease.id] = self.chain_of(books, lease.user_name)
        offered = {one.lease_id for one in self._requests().values()} if new else set()
        for lease in new:
            COVERAGE["offer"] += lease.id in offered
            self._was_allowed(books, lease)
        self._no_slice_twice(books)
        for lease in books.leases.values():
            self._had_notice(books, lease, now)
        self.calm_from = None
        return books

    def _was_allowed(self, books: Books, lease: Any) -> None:
        chain, now = self.chains[lease.id], lease.granted_us
        assert books.allowed(chain, lease.slice_type)
        for limit in books.limits(chain, lease.slice_type):
            where = f"{limit} was passed by {lease.user_name}'s {lease.slice_type}"
            if limit.kind.startswith("slices"):
                assert len(books.active(limit)) <= limit.amount, where
            elif limit.kind == "credit":
                left = books.credit(limit.account, now, surely_gone=True)
                assert books.held(limit, surely=True) <= left + 10, where
            elif limit.kind == "money" or MILLI[lease.slice_type]:
                total = books.used(limit, now, surely=True) + books.held(limit, surely=True)
                assert total <= limit.amount + 1000, f"{where}: {total}"

    def _no_slice_twice(self, books: Books) -> None:
        """Offers too hold what they offer."""
        used: Counter[str] = Counter()
        for lease in books.leases.values():
            if lease.device_id is not None and lease.state not in OVER:
                used[lease.device_id] += lease.share_milli or 1000
        assert all(milli <= 1000 for milli in used.values()), used

    def _had_notice(self, books: Books, lease: Any, now: int) -> None:
        """No deadline comes nearer than the grace, and no stop before its deadline.

        But for the end that was known from the start.
        """
        known = _known_end(lease)
        told = self.told.get(lease.id)
        at = self.told[lease.id] = lease.deadline_us
        if lease.stop_requested_us is not None:
            if lease.id not in self.stopped and lease.stop_actor == WATCH:
                COVERAGE["stopped at a limit"] += 1
                assert known <= now or (told is not None and told <= now), "stopped without notice"
                why = self._why(books, lease, now, surely=False)
                assert why, f"stopped for nothing: {lease.stop_reason}"
                COVERAGE.update(f"stopped: {one}" for one in why)
            self.stopped.add(lease.id)
        elif at is not None and (told is None or at < told):
            assert at >= min(known, now + GRACE), "a deadline without notice"
        for minutes in (10, 2):
            far = at is None or at - now > minutes * MINUTE
            self.rearmed[lease.id, minutes] += far

    def _why(self, books: Books, lease: Any, now: int, *, surely: bool) -> set[str]:
        """What ends a lease by the oracle: all that it surely is, or all that it may be."""
        chain = self.chains[lease.id]
        found = self._ends(books, lease, now, surely, None)
        lowered, _ = books.said(chain, "when_lowered")
        if lowered == "next-start" and found:
            then = self._ends(books, lease, now, surely, lease.granted_us)
            return found if then else set()
        return found

    def _ends(
        self, books: Books, lease: Any, now: int, surely: bool, moment: int | None
    ) -> set[str]:
        chain, found = self.chains[lease.id], set()
        unopened = lease.open_before_us is not None and lease.opened_us is None
        for limit in books.limits(chain, lease.slice_type, moment):
            if limit.kind.startswith("slices"):
                if lease.id in [one.id for one in books.active(limit)[limit.amount :]]:
                    found.add("slices")
                continue
            draws = limit.kind != "gpu-hours" or MILLI[lease.slice_type]
            if lease.hold_kind == "safe" or (unopened and surely) or not draws:
                continue
            if self._used_up(books, limit, now, surely):
                found.add(limit.kind)
        if not books.allowed(chain, lease.slice_type, moment):
            found.add("slice-types")
        session, _ = books.said(chain, "session_hours", moment)
        ends = []
        if session not in (None, "unlimited"):
            ends.append(lease.started_us + int(Decimal(session) * HOUR))
        if lease.declared_us is not None:
            ends.append(lease.started_us + lease.declared_us)
        if any(end <= now for end in ends):
            found.add("time")
        if unopened and lease.open_before_us <= now:
            found.add("unopened")
        return found

    def _used_up(self, books: Books, limit: Limit, now: int, surely: bool) -> bool:
        """Nothing is left; sure only beyond what two seconds of all who draw on it use."""
        drawing = [one for one in books.of(limit.account) if one.state == "running"]
        if limit.kind == "gpu-hours":
            slack = sum(2 * SECOND * MILLI[one.slice_type] // 1000 for one in drawing)
        else:
            slack = sum(2 * books.rate(one.slice_type, now) // 3600 for one in drawing)
        slack = (slack + 1000) * (-1 if surely else 1)
        if limit.kind == "credit":
            left = books.credit(limit.account, now, surely_gone=surely)
        else:
            left = limit.amount - books.used(limit, now, surely=surely)
        left -= books.aside(limit, surely=surely)
        return left <= slack

    def _after_a_tick(self, books: Books) -> None:
        now = self.world.now
        running = [
            one
            for one in books.leases.values()
            if one.state == "running" and one.stop_requested_us is None
        ]
        drawing = frozenset(one.id for one in running if not _unopened(one))
        if drawing - self.drawing:
            self.calm_from = None
        self.drawing = drawing
        calm = self.calm_from = now if self.calm_from is None else self.calm_from
        for lease in running:
            why = self._why(books, lease, now, surely=True)
            if not why:
                self.over_since.pop(lease.id, None)
                continue
            COVERAGE["over"] += 1
            since = self.over_since.setdefault(lease.id, now)
            assert now < since + GRACE, f"over for {now - since} us and not stopped: {why}"
            # What time alone used up was seen coming: it ends at the limit, not after a grace.
            if why <= {"money", "gpu-hours"} and now >= calm + GRACE:
                assert not self._foreseen(books, lease, calm, now), f"overspent: {why}"
        for server in self.world.node.servers.values():
            asked = books.leases[server.lease_id].stop_requested_us
            assert not server.runs or asked is None or now - asked < NODE_STOP, "not stopped"

    def _foreseen(self, books: Books, lease: Any, calm: int, now: int) -> bool:
        """Nothing but time has passed since ``calm``, in one period and at one price."""
        if any(calm < since <= now for known in books.prices.values() for since, _ in known):
            return False
        limits = books.limits(self.chains[lease.id], lease.slice_type)
        return not any(
            calm < start_of(one.per, one.zone, now, False) <= now
            for one in limits
            if not one.per.endswith("h")
        )

    # --- the end --------------------------------------------------------------------------------

    def finish_everything(self) -> None:
        world = self.world
        if not self.up:
            world.restart()
        self.disarm()
        world.node.up = True
        for server in list(world.node.servers.values()):
            if server.runs and world.node.slices[server.lease_id].share_milli is None:
                world.node.finish(server)  # a whole GPU becomes free
        for _ in range(2):
            world.now += 20 * SECOND
            self.tick()
        for _, one in sorted(self._requests(QueueRequest.state == "offered").items()):
            self._takes(one, None)
        for user in USERS:  # everybody tries for more
            for server_name in ("three", "four"):
                self._spawn(user, "quarter", server_name, None, start=True)
        if self.at_last is not None:
            self._set_policy(*self.at_last, None)
        for _ in range(6):  # whoever still runs comes nearer to the limits
            world.now += 25 * MINUTE
            self.tick()
        for request_id in sorted(self._requests(STILL_WAITS)):
            self._leaves(request_id, None)
        for server in list(world.node.servers.values()):
            if server.runs:
                world.node.finish(server)
        for _ in range(4):
            world.now += 100 * SECOND
            self.tick()
        for lease_id in sorted(self.chains)[:3]:
            self._goes_back(lease_id, True, None)
        self.the_ledger_is_consistent()
        books = self.books()
        for lease in books.leases.values():
            assert lease.state in OVER, (lease.state, lease.id)
            self._billed_exactly(books, lease)
        self._everything_is_given_back()
        self._legs_are_right(books)
        self._no_notice_twice()
        COVERAGE["examples"] += 1
        COVERAGE["with a stop at a limit"] += any(
            one.stop_actor == WATCH for one in books.leases.values()
        )

    def _billed_exactly(self, books: Books, lease: Any) -> None:
        server = self.world.node.history.get(lease.id)
        if server is None or server.started_us is None or lease.started_us is None:
            paid = 0
        else:
            assert lease.started_us == server.started_us
            assert lease.finished_us is not None and server.finished_us is not None
            assert lease.finished_us <= server.finished_us, "billed past death"
            start, til = books.user_time(lease)
            paid = books.cost(lease, start, til)
        with self.world.database.engine.connect() as connection:
            booked = connection.scalar(
                sa.select(sa.func.coalesce(sa.func.sum(Entry.amount_u), 0))
                .join(Segment, Segment.id == Entry.segment_id)
                .where(Segment.lease_id == lease.id, Entry.kind == "usage")
            )
        assert booked == paid, f"{booked} was paid, its time costs {paid}"
        COVERAGE["billed"] += paid > 0

    def _everything_is_given_back(self) -> None:
        with self.world.database.engine.connect() as connection:
            rows = connection.execute(
                sa.select(AccountPeriod.active, AccountPeriod.held_u, AccountPeriod.held_gpu_us)
            ).all()
            claims = connection.scalar(
                sa.select(sa.func.count()).where(DeviceClaim.released_version.is_(None))
            )
        assert all(row == (0, 0, 0) for row in rows), rows
        assert not claims

    def _legs_are_right(self, books: Books) -> None:
        """Every payment took what credit there was, in its order, and owed only the rest."""
        with self.world.database.engine.connect() as connection:
            grants = {one.id: one for one in connection.execute(sa.select(CreditGrant))}
            rows = connection.execute(
                sa.select(Entry, Segment.lease_id, Segment.from_us, Segment.amount_u)
                .outerjoin(Segment, Segment.id == Entry.segment_id)
                .order_by(Entry.id)
            ).mappings().all()  # fmt: skip
        left: dict[int, int] = {}
        want: list[tuple[int | None, int]] = []
        for row in rows:
            if row["kind"] == "credit":
                left[row["grant_id"]] = row["amount_u"]
            elif row["kind"] == "refund" and row["grant_id"] is not None:
                left[row["grant_id"]] += row["amount_u"]
            elif row["kind"] == "expiry":
                left[row["grant_id"]] -= row["amount_u"]
            elif row["kind"] == "usage":
                if row["leg"] == 0:
                    assert not want, "a leg is missing"
                    chain = self.chains[row["lease_id"]]
                    usable = [
                        grants[i] for i, rest in left.items()
                        if rest and books.names[grants[i].account_id] in chain
                        and (grants[i].expires_us or 1 << 62) > row["from_us"]
                    ]  # fmt: skip
                    want = _legs(usable, left, row["amount_u_1"])
                grant_id, amount = want.pop(0)
                assert (row["grant_id"], row["amount_u"]) == (grant_id, amount), "a wrong leg"
                if grant_id is not None:
                    COVERAGE["paid by credit"] += 1
                    left[grant_id] -= amount

    def _no_notice_twice(self) -> None:
        with self.world.database.engine.connect() as connection:
            rows = connection.execute(
                sa.select(NoticeRow.lease_id, NoticeRow.kind, NoticeRow.message)
            ).all()
        count = Counter((row.lease_id, row.kind) for row in rows if row.kind.startswith("ends-"))
        for (lease_id, kind), times in count.items():
            minutes = int(kind.partition("-")[2])
            COVERAGE["warned"] += times
            assert times <= 1 + self.rearmed[lease_id, minutes], f"told {times} times: {kind}"
        for kind in ("offer", "queue", "ended"):
            told = Counter((r.lease_id, r.message) for r in rows if r.kind == kind and r.lease_id)
            assert all(times == 1 for times in told.values()), told


def _legs(usable: list[Any], left: dict[int, int], amount: int) -> list[tuple[int | None, int]]:
    found: list[tuple[int | None, int]] = []
    for grant in sorted(usable, key=lambda g: (g.priority, g.expires_us or 1 << 62, g.id)):
        if amount:
            part = min(amount, left[grant.id])
            found.append((grant.id, part))
            amount -= part
    return [*found, (None, amount)] if amount else found


def _known_end(lease: Any) -> int:
    """When a lease ends at the latest, as its user knew when it was granted."""
    known = [us for us in (lease.declared_us, lease.session_us) if us is not None]
    return min(known) + lease.started_us if known and lease.started_us is not None else 1 << 62


def _unopened(lease: Any) -> bool:
    return lease.open_before_us is not None and lease.opened_us is None
