"""The queue on a real ledger: fair turns, offers that hold their slice, starts by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from fakenode import gpu
from gpuslice.broker import queue
from gpuslice.broker.core import HubUser
from gpuslice.broker.moneyviews import GiveCredit
from gpuslice.broker.queuedesk import ChangeRequest, JoinFor, RequestView
from gpuslice.errors import Refused
from gpuslice.ledger.tables import Entry
from gpuslice.nodeclient import NodeUnavailable
from gpuslice.units import HOUR_US, MINUTE_US
from ledgerworld import World
from quotaworld import finish, passes, refused, set_policy, spawn, stop_all


class FakeHub:
    """The hub's users and what it was asked to start."""

    def __init__(self) -> None:
        self.groups: dict[str, tuple[str, ...]] = {}
        self.active: dict[str, int] = {}
        self.gone: set[str] = set()
        self.down = False
        self.odd: set[str] = set()
        self.asked: list[str] = []
        #: A user's call waits for this one; starts fail while it is set.
        self.hangs: asyncio.Event | None = None
        self.no_starts = False
        self.started: list[tuple[str, str, dict[str, str]]] = []

    async def stop_server(self, user: str, server: str) -> None:
        raise RuntimeError("not in these tests: the node stops servers")

    async def start_server(self, user: str, server: str, options: dict[str, str]) -> None:
        if self.down or self.no_starts:
            raise RuntimeError("down")
        self.started.append((user, server, dict(options)))

    async def user(self, name: str) -> HubUser | None:
        self.asked.append(name)
        if self.hangs is not None:
            await self.hangs.wait()
        if self.down or name in self.odd:
            raise RuntimeError("down")
        if name in self.gone:
            return None
        return HubUser(name, self.groups.get(name, ()), {"": self.active.get(name)})


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, devices=[gpu("GPU-a", 0)], hub=FakeHub())
    yield made
    assert made.problems() == []
    made.close()


def hub(world: World) -> FakeHub:
    found = world.hub
    assert isinstance(found, FakeHub)
    return found


def join(world: World, user: str, slice_name: str, **more: Any) -> RequestView:
    return world.do(world.live().queue.join(JoinFor(user=user, slice=slice_name, **more)))


def mine(world: World, user: str) -> RequestView:
    return world.do(world.live().queue.mine(user))[0]


def frees(world: World, lease_id: str) -> None:
    """Its user stops; the slice is free, and whose turn it is, a few seconds later."""
    world.stop(lease_id)
    world.node.finish(world.node.servers[lease_id])
    for _ in range(3):
        world.now += 5_000_000
        world.reconcile()


def take(world: World, user: str, slice_name: str) -> str:
    """The user starts the server, as the spawn page does."""
    lease_id = world.grant(user, slice_name).lease_id
    assert world.supervise(lease_id)
    return lease_id


def test_a_turn_comes_and_is_taken(world: World) -> None:
    first = spawn(world, "ada", "whole", [])
    waiting = join(world, "bob", "whole")
    assert (waiting.state, waiting.position, waiting.waiting) == ("waiting", 1, 1)
    assert (waiting.start_by_us, waiting.expected_us) == (None, None)
    assert join(world, "bob", "whole").request_id == waiting.request_id
    world.now += 1
    assert join(world, "cleo", "whole").position == 2
    world.stop(first)
    finish(world, first)
    offered = mine(world, "bob")
    assert (offered.state, offered.position) == ("offered", None)
    assert offered.offer_til_us is not None and offered.offer_til_us > world.now
    # Nobody else gets it meanwhile, be it past the queue.
    assert refused(lambda: world.grant("zoe", "whole")).refusal.reason == "gpu-full"
    assert mine(world, "cleo").state == "waiting"
    said = [one.message for one in world.do(world.live().notices("bob", 0))]
    assert "reserved for you" in said[-1]
    lease_id = take(world, "bob", "whole")
    assert lease_id == offered.lease_id
    world.reconcile()
    assert mine(world, "bob").state == "fulfilled"
    # The time it was reserved cost nothing.
    assert world.view(lease_id).started_us == world.now


def test_an_offer_that_nobody_takes_is_the_next_ones(world: World) -> None:
    first = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")
    world.now += 1
    join(world, "cleo", "whole")
    world.stop(first)
    finish(world, first)
    passes(world, 12 * MINUTE_US)
    assert mine(world, "bob").state == "expired"
    assert mine(world, "cleo").state == "offered"
    entries = world.database.read(lambda s: s.scalars(sa.select(Entry)).all())
    assert {entry.debit_id for entry in entries} <= {1, 2, 3, 4, 5}  # ada's hour, nobody else's
    assert "Join the queue again" in world.do(world.live().notices("bob", 0))[-1].message


def test_it_starts_by_itself_only_if_that_was_chosen(world: World) -> None:
    first = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole", auto_start=True, options={"image": "base"})
    frees(world, first)
    assert hub(world).started == [("bob", "", {"image": "base", "slice": "whole"})]
    lease_id = take(world, "bob", "whole")
    started = world.now
    passes(world, 5 * MINUTE_US)
    hub(world).active["bob"] = world.now
    passes(world, MINUTE_US)
    world.stop(lease_id)
    finish(world, lease_id)
    query = (
        sa.select(Entry.kind, sa.func.sum(Entry.amount_u))
        .where(Entry.idem_key.startswith(f"usage:{lease_id}"))
        .group_by(Entry.kind)
    )
    rows = world.database.read(lambda s: s.execute(query).all())
    paid = {kind: int(amount) for kind, amount in rows}
    # Until it was opened nobody's time; then the user's.
    opened = started + 5 * MINUTE_US
    assert paid["idle"] == 3_500_000 * (opened - started) // HOUR_US
    assert paid["usage"] > 0


def test_what_nobody_opens_is_stopped_and_costs_its_user_nothing(world: World) -> None:
    first = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole", auto_start=True)
    frees(world, first)
    lease_id = take(world, "bob", "whole")
    passes(world, 15 * MINUTE_US)
    view = world.view(lease_id)
    assert "Nobody opened" in (view.stop_reason or "")
    finish(world, lease_id)
    view = world.view(lease_id)
    assert (view.cost_u, view.state) == (0, "ended")
    assert view.writeoff_u > 0


def test_who_did_not_open_a_server_is_told_the_next_time(world: World) -> None:
    def turn() -> RequestView:
        first = spawn(world, "ada", "whole", [])
        join(world, "bob", "whole", auto_start=True)
        frees(world, first)
        return mine(world, "bob")

    turn()
    lease_id = take(world, "bob", "whole")
    passes(world, 15 * MINUTE_US)
    finish(world, lease_id)
    ended = world.view(lease_id).finished_us
    assert ended is not None and len(hub(world).started) == 1
    told = turn()
    assert (told.state, len(hub(world).started)) == ("offered", 1)
    said = [one.message for one in world.do(world.live().notices("bob", 0))][-1]
    assert "reserved for you for 10 minutes" in said and "for 24 hours more" in said
    # What its user starts is their time, like any other.
    lease_id = take(world, "bob", "whole")
    passes(world, 2 * HOUR_US)
    assert world.view(lease_id).state == "running"
    stop_all(world)
    assert world.view(lease_id).cost_u >= 2 * 3_500_000
    # After a day it starts by itself again; and somebody else's did not count.
    world.now = ended + 24 * HOUR_US
    assert (turn().state, len(hub(world).started)) == ("starting", 2)
    lease_id = take(world, "bob", "whole")
    passes(world, MINUTE_US)
    hub(world).active["bob"] = world.now + MINUTE_US
    passes(world, MINUTE_US)
    stop_all(world)
    assert (turn().state, len(hub(world).started)) == ("starting", 3)


def by_itself(world: World, user: str = "bob") -> str:
    """A server that the queue has started for its user."""
    first = spawn(world, "ada", "whole", [])
    join(world, user, "whole", auto_start=True)
    frees(world, first)
    return take(world, user, "whole")


def test_the_proxys_note_of_a_new_route_is_no_opening(world: World) -> None:
    """It comes when the server is up, which may be long after its lease has begun."""
    lease_id = by_itself(world)
    started = world.now
    world.now += 35_000_000
    hub(world).active["bob"] = started + 30_000_000
    passes(world, 9 * MINUTE_US)
    world.stop(lease_id)
    finish(world, lease_id)
    assert world.view(lease_id).cost_u == 0


def test_what_is_in_use_is_not_stopped_for_an_outage(world: World) -> None:
    """Nobody saw it opened: the service was away, or the hub silent. It gets time to be seen."""
    lease_id = by_itself(world)
    passes(world, MINUTE_US)
    world.kill()
    world.now += 25 * MINUTE_US
    hub(world).active["bob"] = world.now - 1_000_000
    world.restart()
    world.reconcile()
    assert world.view(lease_id).state == "running"
    for _ in range(3):
        hub(world).active["bob"] = world.now + 29_000_000
        passes(world, 30_000_000, 30_000_000)
    passes(world, 30 * MINUTE_US)
    assert world.view(lease_id).state == "running"
    world.stop(lease_id)
    finish(world, lease_id)
    assert world.view(lease_id).cost_u > 0


def test_credit_is_looked_at_beside_a_server_that_nobody_opened(world: World) -> None:
    """Of the group that would pay for it nothing is used up yet, whatever else its user runs."""
    for group in ("a", "b"):
        set_policy(world, "group", group, {"each": {"prepaid": True}})
    hub(world).groups["bob"] = ("a", "b")
    given = GiveCredit(whose="user", name="bob", amount_u=2_000_000, reason="start")
    world.do(world.live().money.give_credit(given, "root"))
    runs = spawn(world, "bob", "quarter", ["a", "b"], "one", group="b")
    others = [spawn(world, "ada", "quarter", [], str(number)) for number in range(3)]
    join(world, "bob", "quarter", server="", auto_start=True, group="a", groups=["a", "b"])
    frees(world, others[0])
    assert mine(world, "bob").state == "starting"
    lease_id = spawn(world, "bob", "quarter", ["a", "b"], group="a")
    passes(world, 5 * MINUTE_US)
    assert {world.view(one).state for one in (runs, lease_id)} == {"running"}
    passes(world, 3 * HOUR_US)
    assert "of credit" in (world.view(runs).stop_reason or "")
    stop_all(world)


def test_a_silent_hub_is_no_proof_that_nobody_opened_it(world: World) -> None:
    lease_id = by_itself(world)
    passes(world, MINUTE_US)
    hub(world).down = True
    passes(world, 40 * MINUTE_US)
    assert world.view(lease_id).state == "running"
    hub(world).down = False
    # It answers again, and nobody opens it: then it ends, and not before some minutes.
    passes(world, 3 * MINUTE_US)
    assert world.view(lease_id).state == "running"
    passes(world, 5 * MINUTE_US)
    assert "Nobody opened" in (world.view(lease_id).stop_reason or "")
    finish(world, lease_id)
    assert world.view(lease_id).cost_u == 0


def test_a_start_is_not_lost_with_one_answer_of_the_hub(world: World) -> None:
    first = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole", auto_start=True)
    hub(world).no_starts = True
    frees(world, first)
    assert (mine(world, "bob").state, hub(world).started) == ("starting", [])
    hub(world).no_starts = False
    world.now += 5_000_000
    world.reconcile()
    assert len(hub(world).started) == 1
    world.now += 5_000_000
    world.reconcile()
    assert len(hub(world).started) == 1  # it has begun to


def test_a_start_is_not_lost_with_the_service(world: World) -> None:
    """The turn was committed, and nobody asked the hub."""
    first = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole", auto_start=True)
    hub(world).no_starts = True
    frees(world, first)
    hub(world).no_starts = False
    world.restart()
    # Longer than a start may take, as where an image is pulled: the offer is kept for both.
    world.now += 5 * MINUTE_US
    world.reconcile()
    assert [user for user, _, _ in hub(world).started] == ["bob"]
    take(world, "bob", "whole")
    passes(world, MINUTE_US)
    assert len(hub(world).started) == 1
    stop_all(world)


def test_no_comparison_waits_for_the_hub(world: World) -> None:
    first = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")

    async def slow() -> None:
        hub(world).hangs = asyncio.Event()
        broker = world.live()
        world.node.finish(world.node.servers[first])
        for _ in range(3):
            world.now += 5_000_000
            await broker.reconcile()
        line = asyncio.create_task(broker.queue.serve_line())
        await asyncio.sleep(0.2)
        assert not line.done()
        # Ends and beats go on, and so does a user who waits for a stop.
        async with asyncio.timeout(30):
            await broker.reconcile()
            await broker.settle(first, 0)
        line.cancel()
        await asyncio.wait({line})
        hub(world).hangs = None

    world.do(slow())
    stop_all(world)


def test_a_question_to_the_hub_ends_with_the_service(world: World) -> None:
    first = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole", auto_start=True)
    ended: list[str] = []

    async def never(user: str, server: str, options: dict[str, str]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(user)

    hub(world).start_server = never  # type: ignore[method-assign]
    world.stop(first)
    world.node.finish(world.node.servers[first])

    async def ends() -> None:
        broker = world.live()
        for _ in range(3):
            world.now += 5_000_000
            await broker.reconcile()
            await broker.queue.serve_line()
        await asyncio.sleep(0)
        assert broker.queue.under_way
        await broker.close()

    world.do(ends())
    assert ended == ["bob"]
    world.restart()


def test_a_turn_is_not_lost_with_the_nodes_hiccup(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = spawn(world, "ada", "whole", [])
    joined = join(world, "bob", "whole")
    world.now += 1
    join(world, "cleo", "whole")
    frees(world, first)

    async def hiccup(*_: object) -> None:
        raise NodeUnavailable("node-unreachable", "the node does not answer in time")

    with monkeypatch.context() as now:
        now.setattr(world.node, "prepare", hiccup)
        assert refused(lambda: world.grant("bob", "whole")).status == 503
    world.now += 5_000_000
    world.reconcile()
    found = mine(world, "bob")
    assert (found.state, found.position, found.created_us) == ("waiting", 1, joined.created_us)
    assert "keep your place" in world.do(world.live().notices("bob", 0))[-1].message
    # Not at once: what failed would fail again.
    passes(world, MINUTE_US, 10_000_000)
    assert (mine(world, "bob").state, mine(world, "cleo").state) == ("offered", "waiting")
    # Whoever stops it has given it up.
    world.stop(world.grant("bob", "whole").lease_id)
    passes(world, MINUTE_US, 10_000_000)
    assert (mine(world, "bob").state, mine(world, "cleo").state) == ("expired", "offered")


def test_offers_that_are_let_go_keep_nobody_else_waiting(world: World) -> None:
    """Two servers in turn would hold the GPU for ever, for nothing and at no cost."""
    first = spawn(world, "ada", "whole", [])
    passes(world, HOUR_US, HOUR_US)
    for server in "ab":
        join(world, "mal", "whole", server=server)
    world.stop(first)
    finish(world, first)
    # Used most, and behind by that.
    join(world, "ada", "whole")
    passes(world, 12 * MINUTE_US)
    assert mine(world, "ada").state == "offered"
    take(world, "ada", "whole")
    stop_all(world)
    # Behind others only: nobody is kept from what is free.
    assert {one.state for one in world.do(world.live().queue.mine("mal"))} == {"expired", "offered"}


def test_groups_are_looked_at_again_when_the_turn_comes(world: World) -> None:
    set_policy(world, "group", "lab", {"each": {"slice_types": ["whole"]}})
    set_policy(world, "user", "bob", {"each": {}})
    first = spawn(world, "ada", "whole", [])
    hub(world).groups["bob"] = ("lab",)
    join(world, "bob", "whole", groups=["lab"])
    set_policy(world, "group", "lab", {"each": {"slice_types": ["cpu"]}})
    world.stop(first)
    finish(world, first)
    assert mine(world, "bob").state == "refused"
    assert "no longer wait" in world.do(world.live().notices("bob", 0))[-1].message


def test_a_silent_hub_and_a_user_who_is_gone_get_no_offer(world: World) -> None:
    first = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")
    world.now += 1
    join(world, "cleo", "whole")
    hub(world).down = True
    world.stop(first)
    finish(world, first)
    assert mine(world, "bob").state == "waiting"
    hub(world).down = False
    hub(world).gone.add("bob")
    world.reconcile()
    assert (mine(world, "bob").state, mine(world, "cleo").state) == ("waiting", "waiting")


def test_changing_and_leaving(world: World) -> None:
    spawn(world, "ada", "half", [])
    joined = join(world, "bob", "whole")
    desk = world.live().queue
    body = ChangeRequest(slice="half", version=joined.version + 1)
    assert refused(lambda: world.do(desk.change(joined.request_id, "bob", body))).status == 409
    body = ChangeRequest(slice="half", version=joined.version)
    assert refused(lambda: world.do(desk.change(joined.request_id, "eve", body))).status == 404
    changed = world.do(desk.change(joined.request_id, "bob", body))
    assert changed.slice == "half"
    world.reconcile()
    assert mine(world, "bob").state == "offered"
    # Another slice than the one that is reserved is not taken by mistake.
    no = refused(lambda: world.grant("bob", "quarter"))
    assert (no.refusal.reason, no.refusal.alternatives) == ("offer-waits", ["half"])
    left = world.do(desk.leave(joined.request_id, "bob", "bob", None))
    assert left.state == "left"
    world.settle_everything(3)
    assert world.view(left.lease_id or "").state == "cancelled"
    world.grant("bob", "quarter")


def test_who_may_never_have_it_does_not_wait(world: World) -> None:
    set_policy(world, "user", "bob", {"each": {"slice_types": ["cpu"]}})
    spawn(world, "ada", "whole", [])
    assert refused(lambda: join(world, "bob", "whole")).refusal.reason == "slice-not-allowed"
    assert refused(lambda: join(world, "bob", "nonsense")).refusal.reason == "unknown-slice"


def test_who_has_used_less_is_served_first(world: World) -> None:
    heavy = spawn(world, "heavy", "whole", [])
    passes(world, 10 * HOUR_US, HOUR_US)
    world.stop(heavy)
    finish(world, heavy)
    first = spawn(world, "ada", "whole", [])
    join(world, "heavy", "whole")
    world.now += MINUTE_US
    join(world, "light", "whole")
    world.stop(first)
    finish(world, first)
    assert (mine(world, "light").state, mine(world, "heavy").state) == ("offered", "waiting")


def test_a_look_at_a_long_line_does_not_work_it_out_anew(world: World) -> None:
    spawn(world, "ada", "whole", [])
    people = [f"user{number}" for number in range(8)]
    for name in people:
        world.now += 1
        join(world, name, "whole")
    asked: list[str] = []

    @sa.event.listens_for(world.database.engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    assert [mine(world, name).position for name in people] == [1, 2, 3, 4, 5, 6, 7, 8]
    first = len(asked)
    assert [mine(world, name).position for name in people] == [1, 2, 3, 4, 5, 6, 7, 8]
    # One question for one's own requests, and nothing about everybody's limits.
    assert len(asked) - first <= 2 * len(people) < first
    # Whatever is written is seen at once, however little time has passed.
    world.do(world.live().queue.leave(mine(world, people[0]).request_id, people[0], "x", None))
    assert [mine(world, name).position for name in people[1:]] == [1, 2, 3, 4, 5, 6, 7]
    assert mine(world, people[0]).position is None
    stop_all(world)


def test_a_restart_loses_no_place(world: World) -> None:
    first = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")
    world.restart()
    assert mine(world, "bob").position == 1
    world.stop(first)
    finish(world, first)
    assert mine(world, "bob").state == "offered"
    world.restart()
    take(world, "bob", "whole")


def test_expected_waits_are_honest(world: World) -> None:
    """Unknown at first; a guess once enough have stayed; certain where a session has an end."""
    for _ in range(5):
        lease_id = spawn(world, "ada", "whole", [])
        passes(world, 2 * HOUR_US, HOUR_US)
        world.stop(lease_id)
        finish(world, lease_id)
    lease_id = spawn(world, "ada", "whole", [])
    found = join(world, "bob", "whole")
    assert found.start_by_us is None and found.expected_us is not None
    assert abs(found.expected_us - world.now - 2 * HOUR_US) < 30 * MINUTE_US
    world.stop(lease_id)
    stop_all(world)
    set_policy(world, "user", "zoe", {"each": {"session_hours": 3}})
    take(world, "bob", "whole") if mine(world, "bob").state == "offered" else None
    stop_all(world)
    spawn(world, "zoe", "whole", [])
    sure = join(world, "cleo", "whole")
    assert sure.start_by_us is not None
    assert 0 <= sure.start_by_us - world.now - 3 * HOUR_US <= MINUTE_US


def test_who_runs_the_same_server_with_another_slice_keeps_nothing_from_others(
    world: World,
) -> None:
    first = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")
    world.now += 1
    join(world, "cleo", "whole")
    other = spawn(world, "bob", "cpu", [])
    frees(world, first)
    assert (mine(world, "bob").state, mine(world, "cleo").state) == ("waiting", "offered")
    assert "with another slice; stop it first" in (mine(world, "bob").reason or "")
    # Nor from those who do not wait, while only such a request is in line.
    cleo = take(world, "cleo", "whole")
    frees(world, cleo)
    zoe = take(world, "zoe", "quarter")
    # The place is kept: with that server gone, and the GPU free, it is bob's turn.
    frees(world, other)
    frees(world, zoe)
    assert mine(world, "bob").state == "offered"


def test_a_refusal_that_nobody_foresaw_blocks_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")
    world.now += 1
    join(world, "cleo", "whole")
    grant = queue.grant

    def not_to_bob(session: Any, request: Any, *args: Any, **more: Any) -> Any:
        if request.user == "bob":
            raise Refused("odd", "Not now.")
        return grant(session, request, *args, **more)

    monkeypatch.setattr(queue, "grant", not_to_bob)
    frees(world, first)
    assert (mine(world, "bob").state, mine(world, "cleo").state) == ("waiting", "offered")
    assert mine(world, "bob").reason == "Not now."
    # It was tried again by then.
    cleo = take(world, "cleo", "whole")
    monkeypatch.undo()
    passes(world, 2 * MINUTE_US)
    frees(world, cleo)
    assert mine(world, "bob").state == "offered"


def test_of_many_who_are_barred_each_is_looked_at(world: World) -> None:
    """22 whose groups allow nothing more; the last of them has joined another group."""
    set_policy(world, "group", "poor", {"each": {"slices": 1}})
    set_policy(world, "group", "rich", {"each": {"slices": 5}})
    ada = spawn(world, "ada", "whole", ["rich"])
    names = [f"u{i:02d}" for i in range(22)]
    for name in names:
        hub(world).groups[name] = ("poor",)
        spawn(world, name, "cpu", ["poor"], "other")
        join(world, name, "whole", groups=["poor"])
        world.now += 1
    hub(world).groups["u21"] = ("rich",)
    frees(world, ada)
    assert mine(world, "u21").state == "offered"
    # The others are not asked about at every step.
    hub(world).asked.clear()
    passes(world, MINUTE_US, MINUTE_US // 12)
    assert max(hub(world).asked.count(name) for name in names[:21]) == 1


def test_an_error_of_the_hub_about_one_user_holds_up_no_other(world: World) -> None:
    first = spawn(world, "ada", "half", [])
    second = spawn(world, "eve", "half", [])
    for name in ("bob", "cleo", "dora"):
        join(world, name, "half")
        world.now += 1
    hub(world).odd.add("bob")
    frees(world, first)
    frees(world, second)
    assert mine(world, "bob").state == "waiting"
    assert (mine(world, "cleo").state, mine(world, "dora").state) == ("offered", "offered")
    # Asked again a minute later, where it can see why; and its turn comes.
    passes(world, 2 * MINUTE_US)
    assert "does not say" in (mine(world, "bob").reason or "")
    hub(world).odd.clear()
    passes(world, 13 * MINUTE_US)
    assert mine(world, "bob").state == "offered"


def test_who_runs_already_does_not_leave(world: World) -> None:
    first = spawn(world, "ada", "whole", [])
    joined = join(world, "bob", "whole")
    frees(world, first)
    lease_id = take(world, "bob", "whole")
    assert mine(world, "bob").state == "offered"
    desk = world.live().queue
    no = refused(lambda: world.do(desk.leave(joined.request_id, "bob", "bob", None)))
    assert no.status == 409 and "stop the server" in str(no)
    assert (mine(world, "bob").state, world.view(lease_id).state) == ("fulfilled", "running")


def test_options_that_no_start_knows_are_refused_at_once(world: World) -> None:
    spawn(world, "ada", "whole", [])
    for key in ("user_options", "display_name", "profile", "foo"):
        no = refused(lambda key=key: join(world, "bob", "whole", options={key: "1"}))  # type: ignore[misc]
        assert (no.status, no.refusal.reason) == (422, "unknown-option")
        assert f"'{key}'; the options are 'slice', 'image', 'hours'" in str(no)
    join(world, "bob", "whole", auto_start=True, options={"hours": "2", "queue": "start"})
    stop_all(world)
    passes(world, MINUTE_US)
    # More than once, while nobody comes for the slice.
    assert hub(world).started
    assert all(one == ("bob", "", {"hours": "2", "slice": "whole"}) for one in hub(world).started)
