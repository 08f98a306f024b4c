"""What the spawn page is told: limits in words, who waits, who can be charged, what is reserved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fakenode import gpu
from gpuslice import wire
from gpuslice.broker.core import HubUser
from gpuslice.quotas.views import ExplainRequest, Explanation
from gpuslice.units import HOUR_US, MINUTE_US
from ledgerworld import World
from quotaworld import finish, passes, refused, set_policy, spawn, stop_all


class Everybody:
    """A hub that knows everybody, and each person's groups as a test says them."""

    def __init__(self) -> None:
        self.groups: dict[str, tuple[str, ...]] = {}
        self.down = False

    async def stop_server(self, user: str, server: str) -> None:
        raise RuntimeError("not in these tests: the node stops servers")

    async def start_server(self, user: str, server: str, options: Any) -> None:
        raise RuntimeError("nobody chose that here")

    async def user(self, name: str) -> HubUser:
        if self.down:
            raise RuntimeError("down")
        return HubUser(name, self.groups.get(name, ()), {})


@pytest.fixture
def people() -> Everybody:
    return Everybody()


@pytest.fixture
def world(database_url: str, people: Everybody) -> Iterator[World]:
    made = World(database_url, devices=[gpu("GPU-a", 0)], hub=people)
    yield made
    assert made.problems() == []
    made.close()


def choices(world: World, user: str, *groups: str, server: str = "") -> wire.Choices:
    return world.do(world.live().choices(user, groups, server))


def of(found: wire.Choices, name: str) -> wire.SliceTerms:
    return next(one for one in found.terms if one.slice == name)


def join(world: World, user: str, name: str, **more: Any) -> wire.RequestView:
    return world.do(world.live().queue.join(wire.JoinFor(user=user, slice=name, **more)))


def test_without_policies_there_is_nothing_to_say(world: World) -> None:
    found = choices(world, "ada")
    assert {one.slice for one in found.terms} == {one.slice for one in found.offers}
    assert not any(one.refused or one.forbidden or one.waiting for one in found.terms)
    assert (found.limits, found.charges, found.hours_needed, found.longest_us) == (
        [], [], False, None,
    )  # fmt: skip
    assert found.request is None


def test_every_limit_is_said_once_with_what_is_left(world: World) -> None:
    set_policy(world, "group", "students", {
        "each": {"slices": 2, "slice_types": ["quarter", "cpu"],
                 "gpu_hours": [{"at_most": "1", "per": "week"}], "session_hours": "4"},
        "total": {"money": [{"at_most": "50", "per": "month"}]},
    })  # fmt: skip
    spawn(world, "ada", "quarter", ["students"])
    passes(world, 2 * HOUR_US, step_us=10 * MINUTE_US)
    found = choices(world, "ada", "students")
    slices, hours, money = found.limits
    assert slices == ("1 of 2 slices at a time left (each member of group students): 1 held.")
    # Two hours of a quarter in all, and ten minutes more: what is not billed yet is reserved.
    assert hours == (
        "0.46 of 1 GPU-hours a week left (each member of group students): 0.44 used, 0.1 reserved; "
        "it counts anew from Mon 2026-09-28 00:00 (UTC) on."
    )
    assert money.startswith("48.10 of 50.00 EUR a month left (group students in total): 1.5")
    assert found.longest_us == 4 * HOUR_US
    assert of(found, "quarter").refused is None
    whole = of(found, "whole")
    assert whole.forbidden and "You may not take slices of type whole" in (whole.refused or "")
    stop_all(world)


def test_what_a_limit_refuses_for_now_is_not_forbidden(world: World) -> None:
    set_policy(world, "user", "ada", {"each": {"slices": 1}})
    lease = spawn(world, "ada", "quarter", [])
    told = of(choices(world, "ada"), "half")
    assert told.refused is not None and "You may hold 1 slice at a time" in told.refused
    assert not told.forbidden
    finish(world, lease)


def test_groups_that_can_be_charged_and_hours_that_have_to_be_said(world: World) -> None:
    set_policy(world, "group", "a", {"each": {"hold": "safe"}})
    set_policy(world, "group", "b", {"each": {"session_hours": "2"}})
    # A group without a policy limits nothing and is charged nothing.
    assert choices(world, "ada", "a", "b", "c").charges == ["a", "b"]
    both = choices(world, "ada", "a", "b")
    assert both.hours_needed and both.longest_us is None
    # Nobody has said how long, so the shortest counts: a form is no refusal.
    assert not any(one.refused for one in both.terms)
    only_b = choices(world, "ada", "b")
    assert (only_b.hours_needed, only_b.longest_us) == (False, 2 * HOUR_US)


def test_the_page_knows_who_waits_and_what_is_reserved(world: World) -> None:
    lease = spawn(world, "ada", "whole", [])
    first = join(world, "bob", "whole", server="lab")
    world.now += 1
    join(world, "cy", "whole")
    found = choices(world, "bob", server="lab")
    assert of(found, "whole").waiting == 2
    assert found.request is not None
    assert (found.request.request_id, found.request.position) == (first.request_id, 1)
    assert choices(world, "bob").request is None

    world.stop(lease)
    world.node.finish(world.node.servers[lease])
    passes(world, 20_000_000, step_us=5_000_000)
    offered = choices(world, "bob", server="lab").request
    assert offered is not None and offered.state == "offered"
    assert offered.offer_til_us is not None and offered.offer_til_us > world.now


def test_a_place_in_line_keeps_who_is_charged(world: World, people: Everybody) -> None:
    for name in ("a", "b"):
        set_policy(
            world, "group", name, {"total": {"gpu_hours": [{"at_most": "9", "per": "week"}]}}
        )
    people.groups = {"bob": ("a", "b"), "cy": ()}
    lease = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole", groups=["a", "b"], group="b", options={"charge": "a"},
         declared_us=HOUR_US)  # fmt: skip
    finish(world, lease)
    request = world.request("bob", "whole").model_copy(update={"groups": ["a", "b"]})
    mine = world.do(world.live().grant(request)).lease_id
    assert world.supervise(mine)
    passes(world, 2 * MINUTE_US)
    assert "8.8 of 9" in choices(world, "bob", "b").limits[0]
    assert "9 of 9" in choices(world, "bob", "a").limits[0]
    finish(world, mine)


def test_one_who_left_the_group_that_pays_stops_nobody_else(
    world: World, people: Everybody
) -> None:
    set_policy(world, "group", "a", {"each": {"priority": 5}})
    lease = spawn(world, "ada", "whole", [])
    people.groups = {"bob": ()}
    bob = join(world, "bob", "whole", groups=["a"], group="a")
    world.now += 1
    cy = join(world, "cy", "whole")
    finish(world, lease)
    passes(world, MINUTE_US)
    lines = {one.request_id: one for one in world.do(world.live().queue.all())}
    assert lines[bob.request_id].state == "waiting"
    assert "You are not in the group" in (lines[bob.request_id].reason or "")
    assert lines[cy.request_id].state == "offered"


def test_one_whose_own_limit_is_full_keeps_the_place_and_holds_nobody_up(world: World) -> None:
    set_policy(world, "user", "bob", {"each": {"slices": 1}})
    other = spawn(world, "bob", "cpu", [], server="other")
    lease = spawn(world, "ada", "whole", [])
    bob = join(world, "bob", "whole")
    world.now += 1
    cy = join(world, "cy", "whole")
    finish(world, lease)
    passes(world, MINUTE_US)
    lines = {one.request_id: one for one in world.do(world.live().queue.all())}
    assert lines[cy.request_id].state == "offered"
    assert (lines[bob.request_id].state, lines[bob.request_id].position) == ("waiting", 1)
    assert "You may hold 1 slice at a time" in (lines[bob.request_id].reason or "")

    # The limit frees itself, and so, in time, does the slice.
    finish(world, other)
    world.do(world.live().queue.leave(cy.request_id, "cy", "cy", None))
    world.settle_everything(3)
    assert world.do(world.live().queue.mine("bob"))[0].state == "offered"


def test_a_group_that_is_not_mine_cannot_be_charged_in_line_either(world: World) -> None:
    lease = spawn(world, "ada", "whole", [])
    said = refused(lambda: join(world, "bob", "whole", groups=["a"], group="b"))
    assert said.refusal.reason == "not-in-group"
    finish(world, lease)


def test_a_group_without_limits_is_no_way_around_those_that_have_some(world: World) -> None:
    set_policy(world, "group", "students", {"each": {"slice_types": ["quarter"]}})
    mine = ["friends", "students"]
    said = refused(lambda: spawn(world, "ada", "whole", mine, group="friends"))
    assert (said.refusal.reason, said.status) == ("group-not-charged", 403)
    assert "choose students" in said.refusal.message
    said = refused(lambda: join(world, "ada", "whole", groups=mine, group="friends"))
    assert said.refusal.reason == "group-not-charged"
    # Whose groups limit nothing may name one of them.
    finish(world, spawn(world, "zoe", "whole", ["friends"], group="friends"))


def test_why_somebody_is_refused_follows_from_the_groups_in_the_hub(
    world: World, people: Everybody
) -> None:
    set_policy(world, "group", "students", {"each": {"slice_types": ["quarter"]}})
    people.groups = {"ada": ("students",)}

    def why(user: str, groups: list[str] | None = None) -> Explanation:
        asked = ExplainRequest(user=user, slice="whole", groups=groups)
        return world.do(world.live().policies.explain(asked))

    found = why("ada")
    assert (found.ok, found.verdicts[0].group) == (False, "students")
    said = refused(lambda: spawn(world, "ada", "whole", ["students"]))
    assert found.refusal == said.refusal.message
    assert why("zoe").ok
    # What if: the groups that the administrator names, and none of them.
    assert why("ada", []).ok
    assert not why("zoe", ["students"]).ok
    # Nobody knows is not *none*.
    people.down = True
    assert refused(lambda: why("ada")).refusal.reason == "hub-unavailable"
    assert not why("ada", ["students"]).ok


def test_who_got_a_slice_by_just_trying_waits_no_longer(world: World, people: Everybody) -> None:
    lease = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")
    # While the hub is silent nobody's turn comes, and the slice is free.
    people.down = True
    finish(world, lease)
    assert world.do(world.live().queue.mine("bob"))[0].state == "waiting"
    mine = spawn(world, "bob", "whole", [])
    people.down = False
    passes(world, MINUTE_US)
    request = world.do(world.live().queue.mine("bob"))[0]
    assert (request.state, request.lease_id, request.reason) == ("fulfilled", mine, None)
    finish(world, mine)
