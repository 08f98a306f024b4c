"""The queue on a real ledger: fair turns, offers that hold their slice, starts by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from fakenode import gpu
from gpuslice.broker import queue
from gpuslice.broker.core import HubUser
from gpuslice.broker.queuedesk import ChangeRequest, JoinFor, RequestView
from gpuslice.errors import Refused
from gpuslice.ledger.tables import Entry
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
        self.started: list[tuple[str, str, dict[str, str]]] = []

    async def stop_server(self, user: str, server: str) -> None:
        raise RuntimeError("not in these tests: the node stops servers")

    async def start_server(self, user: str, server: str, options: dict[str, str]) -> None:
        if self.down:
            raise RuntimeError("down")
        self.started.append((user, server, dict(options)))

    async def user(self, name: str) -> HubUser | None:
        self.asked.append(name)
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
    hub(world).active["bob"] = world.now
    passes(world, MINUTE_US)
    stop_all(world)
    assert (turn().state, len(hub(world).started)) == ("starting", 3)


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
    assert hub(world).started == [("bob", "", {"hours": "2", "slice": "whole"})]
