"""A start that comes past the queue is the last in line; an offer is taken as it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from fakenode import gpu
from gpuslice import wire
from gpuslice.broker import queue
from gpuslice.broker.core import HubUser
from gpuslice.broker.reservationviews import AddReservation
from gpuslice.ledger import accounts, counters
from gpuslice.ledger.tables import Lease
from gpuslice.units import HOUR_US, MINUTE_US, to_datetime
from ledgerworld import World
from quotaworld import finish, passes, refused, set_policy, spawn, stop_all

WHOLE_U = 3_500_000


class Town:
    """A hub that knows everybody but those who are gone; silent when it is told to be."""

    def __init__(self) -> None:
        self.groups: dict[str, tuple[str, ...]] = {}
        self.gone: set[str] = set()
        self.down = False

    async def stop_server(self, user: str, server: str) -> None:
        raise RuntimeError("not in these tests: the node stops servers")

    async def start_server(self, user: str, server: str, options: Any) -> None:
        raise RuntimeError("nobody chose that here")

    async def user(self, name: str) -> HubUser | None:
        if self.down:
            raise RuntimeError("down")
        return None if name in self.gone else HubUser(name, self.groups.get(name, ()), {})


@pytest.fixture
def town() -> Town:
    return Town()


@pytest.fixture
def world(database_url: str, town: Town) -> Iterator[World]:
    made = World(database_url, devices=[gpu("GPU-a", 0)], hub=town)
    yield made
    stop_all(made)
    assert made.problems() == []
    made.close()


def join(world: World, user: str, slice_name: str, **more: Any) -> wire.RequestView:
    world.now += 1
    return world.do(world.live().queue.join(wire.JoinFor(user=user, slice=slice_name, **more)))


def mine(world: World, user: str) -> wire.RequestView:
    return world.do(world.live().queue.mine(user))[0]


def offer(world: World, user: str, name: str, *groups: str) -> wire.Offer:
    found = world.do(world.live().choices(user, groups)).offers
    return next(one for one in found if one.slice == name)


def stored(world: World, lease_id: str) -> Lease:
    def look(session: sa.orm.Session) -> Lease:
        found = session.get(Lease, lease_id)
        assert found is not None
        return found

    return world.database.read(look)


def held(world: World, source: str, name: str) -> counters.Held:
    def look(session: sa.orm.Session) -> counters.Held:
        account_id = accounts.find(session, source, name)
        return counters.held(session, account_id or 0)

    return world.database.read(look)


# --- past the queue ---------------------------------------------------------------------------


def test_what_is_free_is_for_those_who_wait(world: World, town: Town) -> None:
    """While the hub is silent nobody's turn comes; what is free is theirs all the same."""
    lease = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")
    join(world, "cleo", "whole")
    town.down = True
    finish(world, lease)
    for user in ("zoe", "cleo"):
        no = refused(lambda user=user: world.grant(user, "whole"))
        assert (no.refusal.reason, no.status) == ("others-wait", 503)
        assert no.refusal.alternatives == ["cpu"]
        assert no.refusal.retry_after_s == 60
    assert "what is free is for 2 who wait in line." in str(refused(
        lambda: world.grant("zoe", "half")
    ))  # fmt: skip
    # Nothing was written, not even an account of somebody new.
    assert held(world, accounts.HUB_USER, "zoe").active == 0
    spawn(world, "zoe", "cpu", [])
    # Whose turn it is may just start.
    spawn(world, "bob", "whole", [])
    assert refused(lambda: world.grant("di", "whole")).refusal.reason == "gpu-full"


def test_a_short_one_passes_a_large_one_and_one_without_an_end_does_not(world: World) -> None:
    spawn(world, "ada", "half", [], declared_us=2 * HOUR_US)
    waits = join(world, "bob", "whole")
    assert waits.start_by_us == world.now - 1 + 2 * HOUR_US

    no = refused(lambda: spawn(world, "zoe", "quarter", []))
    assert (no.refusal.reason, no.refusal.limit) == ("others-wait", "119 minutes")
    assert "say that you need it for at most 119 minutes" in str(no)
    long = refused(lambda: spawn(world, "zoe", "quarter", [], declared_us=3 * HOUR_US))
    assert long.refusal.reason == "others-wait"
    short = spawn(world, "zoe", "quarter", [], declared_us=HOUR_US)
    assert stored(world, short).declared_us == HOUR_US
    # What it was let through for holds: it is over before bob's turn.
    passes(world, 2 * HOUR_US + 20 * MINUTE_US, step_us=5 * MINUTE_US)
    assert world.view(short).state in ("settled", "ended")
    assert mine(world, "bob").state == "offered"


def test_a_start_goes_where_it_is_in_nobody_s_way(database_url: str, town: Town) -> None:
    devices = [gpu("GPU-a", 0), gpu("GPU-b", 1)]
    world = World(database_url, devices=devices, hub=town)
    spawn(world, "ada", "half", [], declared_us=2 * HOUR_US)
    stays = [spawn(world, "cy", "half", [], server=name) for name in ("one", "two")]
    # Both GPUs are half full now, and one of them for as long as somebody likes.
    finish(world, next(one for one in stays if world.view(one).device_uuid == "GPU-a"))
    assert join(world, "bob", "whole").start_by_us is not None
    lease = spawn(world, "zoe", "quarter", [])
    assert world.view(lease).device_uuid == "GPU-b"
    stop_all(world)
    assert world.problems() == []
    world.close()


def test_a_limit_of_its_own_puts_nobody_in_the_way(world: World, town: Town) -> None:
    set_policy(world, "user", "bob", {"each": {"slices": 1}})
    spawn(world, "bob", "cpu", [], server="other")
    lease = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")
    town.down = True
    finish(world, lease)
    spawn(world, "zoe", "whole", [])


def test_the_last_place_of_a_group_is_not_taken_from_who_waits_for_it(
    world: World, town: Town
) -> None:
    """A start must not look as if it were alone because it has just used up what both need."""
    set_policy(world, "group", "lab", {"total": {"slices": 2}})
    spawn(world, "cy", "cpu", ["lab"])
    lease = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole", groups=["lab"])
    town.down = True
    finish(world, lease)
    assert refused(lambda: spawn(world, "zoe", "whole", ["lab"])).refusal.reason == "others-wait"
    # A limit that says no says so, whoever waits.
    spawn(world, "di", "cpu", ["lab"])
    assert refused(lambda: spawn(world, "zoe", "whole", ["lab"])).refusal.reason == "leases-limit"


def test_one_who_is_gone_from_the_hub_holds_nobody_up(world: World, town: Town) -> None:
    lease = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")
    join(world, "cleo", "whole")
    town.gone.add("bob")
    finish(world, lease)
    world.reconcile()
    assert (mine(world, "bob").state, mine(world, "cleo").state) == ("waiting", "offered")
    assert "does not know a user bob" in (mine(world, "bob").reason or "")
    world.do(world.live().queue.leave(mine(world, "cleo").request_id, "cleo", "cleo", None))
    town.gone.clear()
    world.settle_everything(4)
    assert mine(world, "bob").state == "offered"


def test_a_server_that_waits_does_not_stand_in_its_own_way(world: World) -> None:
    spawn(world, "ada", "half", [], declared_us=2 * HOUR_US)
    join(world, "bob", "whole")
    # Another server of the same user is like anybody's.
    no = refused(lambda: spawn(world, "bob", "quarter", [], server="two"))
    assert no.refusal.reason == "others-wait"
    spawn(world, "bob", "quarter", [])


def test_the_same_attempt_gets_its_lease_whoever_waits_by_now(world: World) -> None:
    request = world.request("zoe", "whole")
    first = world.do(world.live().grant(request))
    join(world, "bob", "whole")
    assert world.do(world.live().grant(request)).lease_id == first.lease_id
    assert refused(lambda: world.grant("zoe", "half")).refusal.reason == "already-leased"


def test_when_nobody_waits_the_line_is_not_drawn_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nobody waits")

    monkeypatch.setattr(queue, "standing", never)
    world.grant("ada", "half")
    monkeypatch.undo()


def test_offers_show_what_is_left_by_those_who_wait(world: World, town: Town) -> None:
    spawn(world, "ada", "half", [], declared_us=2 * HOUR_US)
    assert offer(world, "zoe", "quarter").free == 2
    join(world, "bob", "whole")
    quarter = offer(world, "zoe", "quarter")
    assert (quarter.free, quarter.total) == (0, 4)
    assert quarter.unavailable == (
        "What is free is for one who waits in line; until their turn you may have it, for at most "
        "119 minutes"
    )
    assert offer(world, "zoe", "cpu").free > 0
    terms = {one.slice: one.waiting for one in world.do(world.live().choices("zoe", ())).terms}
    assert (terms["whole"], terms["quarter"]) == (1, 0)
    # To the server that waits it is free: it would not wait any more.
    assert offer(world, "bob", "quarter").free == 2
    stop_all(world)
    world.do(world.live().queue.leave(mine(world, "bob").request_id, "bob", "bob", None))
    world.settle_everything(3)
    town.down = True
    lease = spawn(world, "ada", "whole", [])
    for name in ("bob", "cleo", "di"):
        join(world, name, "quarter")
    finish(world, lease)
    # Four are free and three of them are somebody's.
    assert offer(world, "zoe", "quarter").free == 1
    assert offer(world, "zoe", "half").free == 0


def test_a_class_passes_those_who_wait_for_what_is_reserved_for_it(world: World) -> None:
    world.reconcile()
    now = to_datetime(world.now).astimezone(UTC)
    body = AddReservation(
        group="course", slice="quarter", count=2, timezone="UTC",
        first_day=str(now.date()), last_day=str(now.date() + timedelta(days=1)),
        from_time="00:00", til_time="00:00", reason="a lesson",
    )  # fmt: skip
    world.do(world.live().reservations.add(body, "root"))
    waits = join(world, "bob", "whole")
    assert waits.start_by_us is not None
    # They keep bob waiting for longer than the lesson; what is reserved is theirs.
    for user in ("mia", "noa"):
        spawn(world, user, "quarter", ["course"], declared_us=60 * HOUR_US)
    # What is more than was reserved is not.
    assert refused(lambda: spawn(world, "ole", "quarter", ["course"])).refusal.reason == (
        "others-wait"
    )
    # Nor is it somebody else's who is in no such group.
    assert refused(lambda: spawn(world, "zoe", "quarter", [])).refusal.reason == "others-wait"


# --- taking an offer --------------------------------------------------------------------------


def offered(world: World, user: str, slice_name: str, **more: Any) -> str:
    """A slice that is reserved for this user's server, after a wait."""
    lease = spawn(world, "first", "whole", [])
    join(world, user, slice_name, **more)
    finish(world, lease)
    found = mine(world, user)
    assert found.state == "offered" and found.lease_id is not None
    return found.lease_id


def test_an_offer_is_taken_for_less_time(world: World) -> None:
    lease_id = offered(world, "bob", "whole")
    assert spawn(world, "bob", "whole", [], declared_us=HOUR_US) == lease_id
    assert stored(world, lease_id).declared_us == HOUR_US
    passes(world, HOUR_US + 2 * MINUTE_US)
    view = world.view(lease_id)
    assert "asked for (1 hour) is over" in (view.stop_reason or "")
    assert view.cost_u <= WHOLE_U


def test_a_safe_hold_shrinks_with_the_time(world: World, town: Town) -> None:
    set_policy(world, "group", "lab", {"each": {
        "hold": "safe", "session_hours": "8", "money": [{"at_most": "20", "per": "month"}],
    }})  # fmt: skip
    town.groups["bob"] = ("lab",)
    lease_id = offered(world, "bob", "whole", groups=["lab"], declared_us=4 * HOUR_US)
    assert held(world, accounts.HUB_USER, "bob").held_u == 4 * WHOLE_U
    longer = refused(lambda: spawn(world, "bob", "whole", ["lab"], declared_us=5 * HOUR_US))
    assert (longer.refusal.reason, longer.refusal.limit) == ("offer-shorter", "4 hours")
    assert held(world, accounts.HUB_USER, "bob").held_u == 4 * WHOLE_U
    assert spawn(world, "bob", "whole", ["lab"], declared_us=2 * HOUR_US) == lease_id
    assert held(world, accounts.HUB_USER, "bob").held_u == 2 * WHOLE_U
    assert held(world, accounts.HUB_GROUP, "lab").held_u == 2 * WHOLE_U
    # With what is free again another server fits.
    spawn(world, "bob", "cpu", ["lab"], server="two", declared_us=HOUR_US)


def test_what_is_not_said_stays_as_it_was(world: World, town: Town) -> None:
    set_policy(world, "group", "lab", {"each": {"slices": 3}})
    town.groups["bob"] = ("lab",)
    lease_id = offered(world, "bob", "whole", groups=["lab"], declared_us=3 * HOUR_US)
    assert spawn(world, "bob", "whole", ["lab"]) == lease_id
    assert stored(world, lease_id).declared_us == 3 * HOUR_US
    assert held(world, accounts.HUB_GROUP, "lab").active == 1


def test_another_group_is_not_charged_for_it(world: World, town: Town) -> None:
    for name in ("a", "b"):
        set_policy(world, "group", name, {"total": {"slices": 1}})
    town.groups["bob"] = ("a", "b")
    lease_id = offered(world, "bob", "whole", groups=["a", "b"], group="b")

    strange = refused(lambda: spawn(world, "bob", "whole", ["a", "b"], group="c"))
    assert strange.refusal.reason == "not-in-group"
    other = refused(lambda: spawn(world, "bob", "whole", ["a", "b"], group="a"))
    assert (other.refusal.reason, other.status) == ("offer-charged", 409)
    assert "is charged to the group b." in str(other)
    left = refused(lambda: spawn(world, "bob", "whole", ["a"], declared_us=HOUR_US))
    assert left.refusal.reason == "not-in-group"
    # It is still reserved, and still b's.
    assert mine(world, "bob").state == "offered"
    assert spawn(world, "bob", "whole", ["a", "b"], declared_us=HOUR_US) == lease_id
    assert held(world, accounts.HUB_GROUP, "a") == counters.Held()
    assert held(world, accounts.HUB_GROUP, "b").active == 1
    assert stored(world, lease_id).declared_us == HOUR_US
