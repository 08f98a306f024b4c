"""Money on a real ledger: prices from a date on, credit, corrections, exports, and clean books."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from gpuslice.broker.moneyviews import (
    Correct,
    GiveCredit,
    GrantMore,
    RefundLease,
    SetPrice,
)
from gpuslice.ledger.tables import Segment
from gpuslice.quotas import admission
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.units import HOUR_US, MINUTE_US
from ledgerworld import World
from quotaworld import finish, passes, refused, set_policy, spawn


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    yield made
    assert made.problems() == []
    made.close()


def desk(world: World) -> Any:
    return world.live().money


def ended(world: World, user: str, us: int, slice_name: str = "quarter") -> str:
    """A lease that ran so long."""
    lease_id = spawn(world, user, slice_name, [])
    passes(world, us, HOUR_US)
    world.stop(lease_id)
    finish(world, lease_id)
    return lease_id


# --- prices -------------------------------------------------------------------------------------


def test_a_price_begins_when_it_was_announced_for(world: World) -> None:
    lease_id = spawn(world, "ada", "quarter", [])
    start = world.now
    change = start + 90 * MINUTE_US
    body = SetPrice(slice="quarter", rate_u_per_hour=2_000_000, from_us=change, reason="dearer")
    preview = world.do(desk(world).preview_price(body))
    assert (preview.leases, preview.rate_now_u_per_hour) == ([lease_id], 875_001)
    world.do(desk(world).set_price(body, "root"))
    passes(world, 3 * HOUR_US, 10 * MINUTE_US)
    world.stop(lease_id)
    finish(world, lease_id)
    bill = world.do(world.live().bill(lease_id))
    assert bill is not None
    user = [line for line in bill.lines if line.payer == "user"]
    assert {line.rate_u_per_hour for line in user if line.til_us <= change} == {875_001}
    assert {line.rate_u_per_hour for line in user if line.from_us >= change} == {2_000_000}
    assert not [line for line in user if line.from_us < change < line.til_us]
    stopped = bill.lease.stop_requested_us
    assert stopped is not None
    due = 875_001 * (change - start) // HOUR_US + 2_000_000 * (stopped - change) // HOUR_US
    assert bill.lease.cost_u == due


def test_prices_are_never_changed_backwards(world: World) -> None:
    past = SetPrice(slice="quarter", rate_u_per_hour=1, from_us=world.now - 1, reason="x")
    assert refused(lambda: world.do(desk(world).set_price(past, "root"))).status == 409
    later = SetPrice(slice="quarter", rate_u_per_hour=1, from_us=world.now + HOUR_US, reason="x")
    world.do(desk(world).set_price(later, "root"))
    sooner = later.model_copy(update={"from_us": world.now + MINUTE_US})
    assert refused(lambda: world.do(desk(world).set_price(sooner, "root"))).status == 409


def test_a_group_may_have_a_price_list_of_its_own(world: World) -> None:
    set_policy(world, "group", "lab", {"price_list": "partners"})
    body = SetPrice(price_list="partners", slice="quarter", rate_u_per_hour=100, reason="x")
    world.do(desk(world).set_price(body, "root"))
    world.now += 1
    inside = spawn(world, "ada", "quarter", ["lab"])
    outside = spawn(world, "bob", "quarter", [])
    # The list names no price for this type, so the usual one holds.
    other = spawn(world, "cleo", "half", ["lab"])
    rates = [world.view(one).rate_u_per_hour for one in (inside, outside, other)]
    assert rates == [100, 875_001, 1_750_000]


def test_everybodys_price_list_holds_where_no_nearer_one_does(world: World) -> None:
    for name, rate in (("partners", 100), ("usual", 200)):
        body = SetPrice(price_list=name, slice="quarter", rate_u_per_hour=rate, reason="x")
        world.do(desk(world).set_price(body, "root"))
    set_policy(world, "group", "lab", {"price_list": "partners"})
    everybody = PolicyDocument.model_validate({"price_list": "usual"})
    now = world.do(world.live().policies.history("everyone", None, None, 10))[0]
    world.do(
        world.live().policies.set(
            "everyone", None, everybody, now[0].version if now else None, "a test", "root"
        )
    )
    world.now += 1
    inside, outside = spawn(world, "ada", "quarter", ["lab"]), spawn(world, "bob", "quarter", [])
    rates = [world.view(one).rate_u_per_hour for one in (inside, outside)]
    assert rates == [100, 200]


def test_a_clock_set_back_before_the_first_price_keeps_nobody_from_being_billed(
    world: World,
) -> None:
    """The first prices are written at the first start, by a clock that was forty seconds ahead."""
    world.now += 10_000_000
    early, other = world.grant("ada", "quarter"), world.grant("bob", "quarter")
    world.engine_start(other.lease_id)
    world.reconcile()
    world.now -= 40_000_000
    world.engine_start(early.lease_id)
    spawn(world, "cleo", "quarter", [])
    passes(world, 4 * HOUR_US, HOUR_US)
    for one in (early, other):
        world.stop(one.lease_id)
        finish(world, one.lease_id)
        assert world.view(one.lease_id).cost_u > 3 * 875_001
    paid = world.database.read(lambda s: s.scalars(sa.select(Segment.lease_id)).all())
    assert {early.lease_id, other.lease_id} <= set(paid)


def test_a_slice_type_without_a_price_is_refused_in_words(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = admission.rates
    monkeypatch.setattr(
        admission, "rates", lambda s, wanted, name: [] if name == "half" else known(s, wanted, name)
    )
    no = refused(lambda: spawn(world, "ada", "half", []))
    assert (no.refusal.reason, no.status) == ("no-price", 503)
    # Nobody is kept from the choice of another one by it.
    found = {one.slice: one.refused for one in world.do(world.live().choices("ada", [])).terms}
    assert found["half"] is not None and found["quarter"] is None


# --- credit -------------------------------------------------------------------------------------


def test_credit_is_given_with_a_reason_and_used(world: World) -> None:
    given = GiveCredit(whose="user", name="ada", amount_u=1_000_000, reason="start")
    world.do(desk(world).give_credit(given, "root"))
    ended(world, "ada", HOUR_US)
    (view,), _ = world.do(desk(world).credits("user", "ada", None, 10))
    assert (view.used_u, view.amount_u) == (875_001, 1_000_000)
    usage = world.do(desk(world).usage("user", "ada"))
    assert (usage.spent_u, usage.credit_u, usage.active) == (875_001, 124_999, 0)
    assert sum(day.spent_u for day in usage.days) == 875_001
    assert usage.gpu_us == HOUR_US // 4
    audit = world.do(world.live().audit(5, None))
    assert ("credit.give", "start") in [(row.action, row.reason) for row in audit]


# --- more for a running lease -------------------------------------------------------------------


def test_time_for_a_running_lease(world: World) -> None:
    set_policy(world, "user", "ada", {"each": {"session_hours": 1}})
    lease_id = spawn(world, "ada", "quarter", [])
    start = world.now
    passes(world, 50 * MINUTE_US)
    more = GrantMore(until_us=start + 2 * HOUR_US, reason="deadline of a paper")
    world.do(desk(world).grant_more(lease_id, more, "root"))
    passes(world, 65 * MINUTE_US)
    assert world.view(lease_id).state == "running"
    passes(world, 10 * MINUTE_US)
    stopped = world.view(lease_id).stop_requested_us
    assert stopped is not None and 2 * HOUR_US <= stopped - start <= 2 * HOUR_US + 2 * MINUTE_US


def test_money_for_a_running_lease(world: World) -> None:
    set_policy(world, "user", "ada", {"each": {"money": [{"at_most": 1, "per": "day"}]}})
    lease_id = spawn(world, "ada", "quarter", [])
    start = world.now
    passes(world, HOUR_US)
    more = GrantMore(money_u=875_001, reason="exam")
    world.do(desk(world).grant_more(lease_id, more, "root"))
    passes(world, 2 * HOUR_US)
    stopped = world.view(lease_id).stop_requested_us
    assert stopped is not None
    # 1.875001 at 0.875001 an hour.
    lasts = 1_875_001 * HOUR_US // 875_001
    assert 0 <= stopped - start - lasts <= 2 * MINUTE_US
    no = refused(lambda: world.do(desk(world).grant_more(lease_id, GrantMore(reason="x"), "r")))
    assert no.refusal.reason == "nothing-given"


# --- corrections --------------------------------------------------------------------------------


def test_a_refund_goes_back_where_it_came_from_and_counts(world: World) -> None:
    set_policy(world, "group", "lab", {"total": {"money": [{"at_most": "1.8", "per": "month"}]}})
    given = GiveCredit(whose="user", name="ada", amount_u=500_000, reason="start")
    world.do(desk(world).give_credit(given, "root"))
    lease_id = spawn(world, "ada", "quarter", ["lab"])
    passes(world, 2 * HOUR_US, 10 * MINUTE_US)
    world.stop(lease_id)
    finish(world, lease_id)
    assert refused(lambda: spawn(world, "ada", "quarter", ["lab"])).refusal.reason == "budget-limit"
    back = world.do(desk(world).refund_lease(lease_id, RefundLease(reason="sick GPU"), "root"))
    assert sum(entry.amount_u for entry in back) == world.view(lease_id).cost_u
    assert {entry.kind for entry in back} == {"refund"}
    (view,), _ = world.do(desk(world).credits("user", "ada", None, 10))
    assert view.used_u == 0
    # What went back is there again, for the group too.
    usage = world.do(desk(world).usage("group", "lab"))
    assert usage.spent_u == 0
    spawn(world, "ada", "quarter", ["lab"])
    assert refused(
        lambda: world.do(desk(world).refund_lease(lease_id, RefundLease(reason="x"), "root"))
    ).refusal.reason == "refund-too-large"  # fmt: skip


def test_a_correction_of_one_entry(world: World) -> None:
    ended(world, "ada", HOUR_US)
    rows, following = world.do(desk(world).entries("user", "ada", None, 1))
    assert following is not None or len(rows) == 1
    (paid,) = [row for row in rows if row.kind == "usage"]
    too_much, rest = paid.amount_u + 1, paid.amount_u - 4
    for kind, amount, ok in (
        ("refund", too_much, False), ("refund", 5, True), ("refund", rest, False),
        ("surcharge", 7, True),
    ):  # fmt: skip
        body = Correct(entry_id=paid.entry_id, kind=kind, amount_u=amount, reason="r")
        if ok:
            made = world.do(desk(world).correct(body, "root"))
            assert (made.corrects, made.amount_u, made.actor) == (paid.entry_id, amount, "root")
        else:
            assert refused(lambda b=body: world.do(desk(world).correct(b, "root"))).status == 409
    usage = world.do(desk(world).usage("user", "ada"))
    assert usage.spent_u == 875_001 - 5 + 7
    gone = Correct(entry_id=10**9, kind="refund", amount_u=1, reason="r")
    assert refused(lambda: world.do(desk(world).correct(gone, "root"))).status == 404


# --- rows ---------------------------------------------------------------------------------------


def test_pages_and_exports_hold_every_entry_once(world: World) -> None:
    for user in ("ada", "bob"):
        ended(world, user, 3 * HOUR_US)
    everything, before = [], None
    while True:
        rows, before = world.do(desk(world).entries(None, None, before, 2))
        everything += rows
        if before is None:
            break
    ids = [row.entry_id for row in everything]
    assert ids == sorted(set(ids), reverse=True)

    async def export() -> list[int]:
        found = []
        async for chunk in desk(world).export(None, None, 0, world.now + 1):
            found += [row.entry_id for row in chunk]
        return found

    assert world.do(export()) == sorted(ids)
    mine, _ = world.do(desk(world).entries("user", "ada", None, 100))
    assert {row.debit for row in mine} == {"user:ada"}
    paid = world.database.read(lambda s: s.scalar(sa.select(sa.func.sum(Segment.amount_u))))
    assert sum(row.amount_u for row in everything) == int(paid)
