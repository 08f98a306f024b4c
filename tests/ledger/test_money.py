"""Money on a real ledger: prices from a date on, credit, corrections, exports, and clean books."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
import sqlalchemy as sa

from gpuslice.broker import moneydesk
from gpuslice.broker.moneyviews import (
    Correct,
    GiveCredit,
    GrantMore,
    RefundLease,
    SetPrice,
)
from gpuslice.broker.peopleviews import CloseUser, RenameUser
from gpuslice.ledger.prices import follow_settings
from gpuslice.ledger.tables import Account, Allowance, Segment
from gpuslice.quotas import admission
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.units import HOUR_US, MINUTE_US
from ledgerworld import World
from quotaworld import finish, leases, passes, refused, set_policy, spawn


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
    same = later.model_copy(update={"rate_u_per_hour": 2})
    no = refused(lambda: world.do(desk(world).set_price(same, "root")))
    assert (no.status, no.refusal.reason) == (409, "price-not-possible")


def test_a_price_announced_by_mistake_stops_no_other(world: World) -> None:
    start, far = world.now, world.now + 10 * 365 * 24 * HOUR_US
    lease_id = spawn(world, "ada", "quarter", [])
    typo = SetPrice(slice="quarter", rate_u_per_hour=1, from_us=far, reason="a typo in the year")
    world.do(desk(world).set_price(typo, "root"))
    change = start + HOUR_US
    right = SetPrice(slice="quarter", rate_u_per_hour=2_000_000, from_us=change, reason="right")
    assert world.do(desk(world).preview_price(right)).til_us == far
    made = world.do(desk(world).set_price(right, "root"))
    assert (made.rate_u_per_hour, made.from_us, made.til_us) == (2_000_000, change, far)
    # What holds then already is not written again, whatever comes later.
    again = right.model_copy(update={"from_us": change + 1})
    assert world.do(desk(world).set_price(again, "root")) == made
    # A changed configuration counts at once, too.
    follow = lambda rate: world.database.write(  # noqa: E731
        lambda s: follow_settings(s, "half", rate, now=world.now, actor="settings:2")
    )
    world.do(desk(world).set_price(typo.model_copy(update={"slice": "half"}), "root"))
    world.now += 1
    follow(3_000_000)
    follow(3_000_000)
    now = [one for one in world.do(desk(world).prices()) if one.slice == "half"]
    assert [(one.rate_u_per_hour, one.til_us) for one in now][-2:] == [(3_000_000, far), (1, None)]
    passes(world, 2 * HOUR_US, 10 * MINUTE_US)
    world.stop(lease_id)
    finish(world, lease_id)
    stopped = world.view(lease_id).stop_requested_us
    assert stopped is not None
    due = 875_001 * (change - start) // HOUR_US + 2_000_000 * (stopped - change) // HOUR_US
    assert world.view(lease_id).cost_u == due


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


def test_a_closed_account_gets_no_credit_under_what_it_is_called_now(world: World) -> None:
    """Its label has a '/', which no name of the hub has: it would open an account that nobody
    can ever use."""
    ended(world, "ada", HOUR_US)
    people = world.live().people
    found = world.do(people.named("user", "ada"))
    closing = CloseUser(version=found.version, reason="left")
    world.do(people.close("ada", closing, "root"))
    (lease,) = leases(world)
    label = world.view(lease.id).user
    assert label.startswith("ada/")
    given = GiveCredit(whose="user", name=label, amount_u=1, reason="sorry")
    no = refused(lambda: world.do(desk(world).give_credit(given, "root")))
    assert (no.status, no.refusal.reason) == (422, "no-such-name")
    assert label in no.refusal.message
    # A group may be called so.
    group = GiveCredit(whose="group", name="course/a", amount_u=1, reason="start")
    assert world.do(desk(world).give_credit(group, "root")).name == "course/a"


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


def test_money_where_nothing_limits_it_is_refused_and_leaves_no_trace(world: World) -> None:
    """Also where time was given with it: an answer that was half done would be taken for all."""
    limits = {"money": [{"at_most": "unlimited", "per": "day"}], "session_hours": 9}
    set_policy(world, "user", "ada", {"each": limits})
    lease_id = spawn(world, "ada", "quarter", [])
    for until in (None, world.now + 20 * HOUR_US):
        more = GrantMore(money_u=1, until_us=until, reason="exam")
        no = refused(lambda m=more: world.do(desk(world).grant_more(lease_id, m, "root")))
        assert (no.status, no.refusal.reason) == (409, "no-money-limit")
        assert "--until" in no.refusal.message
    acts = {row.action for row in world.do(world.live().audit(9, None))}
    assert "lease.grant-more" not in acts
    kept = [(lease.id, lease.guaranteed_til_us) for lease in leases(world)]
    assert kept == [(lease_id, None)]


def test_money_is_added_once_to_each_limit_until_that_resets(world: World) -> None:
    limits = [{"at_most": 1, "per": "day"}, {"at_most": "2.5", "per": "month"}]
    set_policy(world, "user", "ada", {"each": {"money": limits}, "timezone": "UTC"})
    day, spent = 24 * HOUR_US, 0
    # The first day is given more. The next one has its own limit again, and on the third the
    # month is used up, with what it was given.
    for number, most in enumerate((1_500_000, 1_000_000, 500_000)):
        world.now += day - world.now % day
        world.reconcile()
        lease_id = spawn(world, "ada", "quarter", [])
        if number == 0:
            more = GrantMore(money_u=500_000, reason="exam")
            world.do(desk(world).grant_more(lease_id, more, "root"))
        passes(world, 2 * HOUR_US)
        assert world.view(lease_id).stop_requested_us is not None
        finish(world, lease_id)
        late = 2 * MINUTE_US * 875_001 // HOUR_US
        cost = world.view(lease_id).cost_u
        over = max(0, spent - 1_500_000 - 1_000_000 * (number - 1)) if number == 2 else 0
        assert most - over <= cost <= most + late, number
        spent += cost
    kept = sa.select(Allowance.period, Allowance.amount)
    rows = world.database.read(lambda session: sorted(session.execute(kept).all()))
    assert rows == [("day", 500_000), ("month", 500_000)]


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
    acts = [row for row in world.do(world.live().audit(9, None)) if row.action == "lease.refund"]
    paid = str(world.view(lease_id).cost_u)
    assert [(row.subject, row.actor, row.reason, row.after) for row in acts] == [
        (lease_id, "root", "sick GPU", paid)
    ]


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
            no = refused(lambda b=body: world.do(desk(world).correct(b, "root")))
            assert no.status == 409
            assert f"Entry {paid.entry_id} paid 0.{paid.amount_u:06}, of which 0.00000" in str(no)
    usage = world.do(desk(world).usage("user", "ada"))
    assert usage.spent_u == 875_001 - 5 + 7
    # What was refused is no act.
    acts = [row for row in world.do(world.live().audit(9, None)) if row.action[:5] == "entry"]
    assert [(row.action, row.subject, row.actor, row.reason) for row in acts] == [
        ("entry.surcharge", str(paid.entry_id), "root", "r"),
        ("entry.refund", str(paid.entry_id), "root", "r"),
    ]
    assert [(row.after or "").split(": ")[1] for row in acts] == ["7", "5"]


def test_a_bill_says_what_was_corrected(world: World) -> None:
    lease_id, other = ended(world, "ada", 2 * HOUR_US), ended(world, "ada", HOUR_US)

    def corrected(lease_id: str) -> int:
        bill = world.do(world.live().bill(lease_id))
        assert bill is not None
        return bill.corrected_u

    assert corrected(lease_id) == 0
    world.do(desk(world).refund_lease(lease_id, RefundLease(amount_u=9, reason="r"), "root"))
    assert (corrected(lease_id), corrected(other)) == (9, 0)
    rows, _ = world.do(desk(world).entries("user", "ada", None, 100))
    paid = next(row for row in rows if row.kind == "usage" and row.lease_id == lease_id)
    more = Correct(entry_id=paid.entry_id, kind="surcharge", amount_u=20, reason="r")
    world.do(desk(world).correct(more, "root"))
    assert (corrected(lease_id), corrected(other)) == (-11, 0)
    world.do(desk(world).refund_lease(lease_id, RefundLease(reason="all"), "root"))
    # All of it, and what was charged in addition.
    assert corrected(lease_id) == world.view(lease_id).cost_u
    gone = Correct(entry_id=10**9, kind="refund", amount_u=1, reason="r")
    assert refused(lambda: world.do(desk(world).correct(gone, "root"))).status == 404


def test_a_surcharge_can_be_taken_back(world: World) -> None:
    lease_id = ended(world, "ada", 2 * HOUR_US)
    cost = world.view(lease_id).cost_u
    rows, _ = world.do(desk(world).entries("user", "ada", None, 10))
    paid = next(row for row in rows if row.kind == "usage")

    def correct(entry_id: int, kind: Literal["refund", "surcharge"], amount: int) -> Any:
        body = Correct(entry_id=entry_id, kind=kind, amount_u=amount, reason="meant 0.40")
        return world.do(desk(world).correct(body, "root"))

    more = correct(paid.entry_id, "surcharge", 400_000_000)
    assert correct(more.entry_id, "refund", 399_000_000).corrects == more.entry_id
    assert world.problems() == []
    too_much = refused(lambda: correct(more.entry_id, "refund", 1_000_001))
    assert too_much.refusal.reason == "refund-too-large"
    # Only what was paid for a lease has more to pay; a refund is final.
    back = correct(more.entry_id, "refund", 400_000)
    for entry_id, kind in ((more.entry_id, "surcharge"), (back.entry_id, "refund")):
        no = refused(lambda e=entry_id, k=kind: correct(e, k, 1))
        assert no.refusal.reason == "no-such-payment"
    assert world.do(desk(world).usage("user", "ada")).spent_u == cost + 600_000
    # All that a lease cost, whatever it was called.
    back = world.do(desk(world).refund_lease(lease_id, RefundLease(reason="sick GPU"), "root"))
    assert sum(entry.amount_u for entry in back) == cost + 600_000
    assert world.do(desk(world).usage("user", "ada")).spent_u == 0
    assert world.problems() == []


def test_a_refund_into_expired_credit_can_be_used(world: World) -> None:
    set_policy(world, "user", "ada", {"each": {"prepaid": True}})
    until = world.now + 3 * HOUR_US
    given = GiveCredit(
        whose="user", name="ada", amount_u=5_000_000, priority=7, expires_us=until, reason="start"
    )
    world.do(desk(world).give_credit(given, "root"))
    lease_id = ended(world, "ada", 2 * HOUR_US)
    cost = world.view(lease_id).cost_u
    # An hour after its end: what began before it may still be paid from it, what comes back not.
    world.now = until + HOUR_US
    back = world.do(desk(world).refund_lease(lease_id, RefundLease(reason="sick GPU"), "root"))
    assert len(back) > 1 and sum(entry.amount_u for entry in back) == cost
    views, _ = world.do(desk(world).credits("user", "ada", None, 10))
    assert [view.used_u for view in views if view.expires_us == until] == [cost]
    assert world.problems() == []
    for _ in range(2):
        views, _ = world.do(desk(world).credits("user", "ada", None, 10))
        new = [view for view in views if view.expires_us != until]
        assert sum(view.amount_u for view in new) == cost
        assert {view.expires_us for view in new} == {until + HOUR_US + 30 * 24 * HOUR_US}
        assert {(view.used_u, view.priority) for view in new} == {(0, 7)}
        (old,) = [view for view in views if view.expires_us == until]
        assert world.do(desk(world).usage("user", "ada")).credit_u == cost
        assert world.problems() == []
        # Housekeeping takes what nobody had used, and nothing of what came back.
        passes(world, 3 * 24 * HOUR_US, 12 * HOUR_US)
        world.do(world.live().housekeeping.round())
    assert old.used_u == old.amount_u
    again = ended(world, "ada", HOUR_US)
    assert world.view(again).cost_u == 875_001
    assert world.do(desk(world).usage("user", "ada")).credit_u == cost - 875_001


def test_credit_of_a_closed_account_gets_nothing_back(world: World) -> None:
    set_policy(world, "group", "lab", {"each": {"slices": 5}})
    given = GiveCredit(whose="group", name="lab", amount_u=5_000_000, reason="start")
    world.do(desk(world).give_credit(given, "root"))
    lease_id = spawn(world, "ada", "quarter", ["lab"])
    passes(world, 2 * HOUR_US, HOUR_US)
    world.stop(lease_id)
    finish(world, lease_id)
    group_id = world.database.read(
        lambda s: s.scalar(sa.select(Account.id).where(Account.label == "lab"))
    )
    world.database.write(
        lambda s: s.execute(
            sa.update(Account).where(Account.id == group_id).values(closed_us=world.now)
        )
    )
    no = refused(
        lambda: world.do(desk(world).refund_lease(lease_id, RefundLease(reason="x"), "root"))
    )
    assert (no.status, no.refusal.reason) == (409, "credit-closed")


# --- rows ---------------------------------------------------------------------------------------


def test_an_export_goes_on_through_a_new_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moneydesk, "_CHUNK", 2)
    gift = GiveCredit(whose="user", name="ada", amount_u=5, reason="a prize")
    for _ in range(5):
        world.do(desk(world).give_credit(gift, "root"))

    async def export() -> list[int]:
        found: list[int] = []
        async for chunk in desk(world).export("user", "ada", 0, world.now + 1):
            found += (entry.entry_id for entry in chunk)
            if len(found) == 2:
                new = RenameUser(to="augusta", version=1, reason="a wedding")
                await world.live().people.rename("ada", new, "root")
        return found

    assert len(world.do(export())) == 5


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
