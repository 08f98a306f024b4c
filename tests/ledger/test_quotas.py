"""Policies at work: every account above the user admits, and running leases keep to the limits."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from gpuslice.broker.moneyviews import GiveCredit, SetPrice
from gpuslice.errors import Refused
from gpuslice.ledger import accounts, counters, credit
from gpuslice.ledger.tables import Entry, NoticeRow
from gpuslice.quotas.views import ExplainRequest
from gpuslice.units import HOUR_US, MINUTE_US, format_money
from ledgerworld import World
from quotaworld import finish, leases, notices, passes, refused, set_policy, spawn, stop_all

#: The policy that the issue asks for, in its own words: one quarter slice each, 20 GPU-hours a
#: week, 50 a month for the whole course, no whole GPUs.
STUDENTS = {
    "each": {
        "slices": 1,
        "slice_types": ["quarter", "cpu"],
        "gpu_hours": [{"at_most": 20, "per": "week"}],
    },
    "total": {"money": [{"at_most": "50", "per": "month"}]},
    "timezone": "Europe/Berlin",
}


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    yield made
    assert made.problems() == []
    made.close()


# --- the students' course -----------------------------------------------------------------------


def test_a_course_of_students(world: World) -> None:
    set_policy(world, "group", "students", STUDENTS)
    course = ["students"]
    no = refused(lambda: spawn(world, "ada", "whole", course))
    assert (no.refusal.reason, no.status) == ("slice-not-allowed", 403)
    assert "quarter, cpu" in no.refusal.message and "group students" in no.refusal.message
    spawn(world, "ada", "quarter", course)
    no = refused(lambda: spawn(world, "ada", "cpu", course, "two"))
    assert no.refusal.reason == "leases-limit"
    assert no.refusal.limit == "1 slice at a time"
    # Somebody of another group is not bound by it.
    spawn(world, "zoe", "whole", [])


def test_twenty_gpu_hours_a_week_are_eighty_hours_of_a_quarter(world: World) -> None:
    set_policy(world, "group", "students", STUDENTS | {"total": None})
    lease_id = spawn(world, "ada", "quarter", ["students"])
    start = world.now
    passes(world, 78 * HOUR_US, 20 * MINUTE_US)
    assert world.view(lease_id).state == "running"
    passes(world, 3 * HOUR_US)
    view = world.view(lease_id)
    assert "20 GPU-hours a week" in (view.stop_reason or "")
    assert view.stop_requested_us is not None
    # To the minute of the watch; a tick late at most.
    assert 0 <= view.stop_requested_us - start - 80 * HOUR_US <= 2 * MINUTE_US
    finish(world, lease_id)
    assert notices(world, "ada") == ["used-80", "used-95", "ends-10", "ends-2"]
    no = refused(lambda: spawn(world, "ada", "quarter", ["students"]))
    assert no.refusal.reason == "gpu-hours-limit"
    assert no.refusal.retry_after_s is not None
    # The budget is gone, so a slice without a GPU is what is left; it costs no GPU-hours.
    spawn(world, "ada", "cpu", ["students"])
    # When it may be tried again it works.
    world.now += no.refusal.retry_after_s * 1_000_000
    world.reconcile()
    stop_all(world)
    spawn(world, "ada", "quarter", ["students"])


def test_the_course_has_one_budget(world: World) -> None:
    """Quarters cost 0.875001 an hour: 50 are gone after some 57 hours of two students' together."""
    set_policy(world, "group", "students", STUDENTS)
    for user in ("ada", "bob"):
        spawn(world, user, "quarter", ["students"])
    passes(world, 29 * HOUR_US, 10 * MINUTE_US)
    spent = world.database.read(
        lambda s: counters.used(s, [accounts.find(s, accounts.HUB_GROUP, "students") or 0], 0)
    )
    (of_course,) = spent.values()
    assert 50_000_000 <= of_course.spent_u < 50_000_000 + 2 * 875_001 // 6
    states = {world.view(one.id).stop_reason for one in leases(world)}
    assert states == {"50.00 EUR a month (group students in total) are used up"}
    stop_all(world)
    total = world.database.read(lambda s: s.scalar(sa.select(sa.func.sum(Entry.amount_u)).where(
        Entry.kind == "usage")))  # fmt: skip
    # Two leases at 0.875 an hour each, looked at every ten minutes here.
    assert int(total) - 50_000_000 <= 2 * 875_001 // 6 + 2, format_money(int(total))
    no = refused(lambda: spawn(world, "cleo", "quarter", ["students"]))
    assert no.refusal.reason == "budget-limit"
    assert "50.00 EUR a month" in no.refusal.message


def test_every_account_above_the_user_admits(world: World) -> None:
    """A group above the course has a limit of its own."""
    set_policy(world, "group", "course", {"total": {"slices": 5}})
    set_policy(world, "group", "faculty", {"total": {"slices": 1}})

    def nest(session: sa.orm.Session) -> None:
        from gpuslice.ledger.tables import Account

        course = accounts.find(session, accounts.HUB_GROUP, "course")
        faculty = accounts.find(session, accounts.HUB_GROUP, "faculty")
        session.execute(sa.update(Account).where(Account.id == course).values(parent_id=faculty))

    world.database.write(nest)
    spawn(world, "ada", "quarter", ["course"])
    no = refused(lambda: spawn(world, "bob", "quarter", ["course"]))
    assert "group faculty" in no.refusal.message
    spawn(world, "zoe", "quarter", ["other"])


# --- credit -------------------------------------------------------------------------------------


def give(world: World, user: str, amount_u: int, **more: Any) -> int:
    def work(session: sa.orm.Session) -> int:
        account = accounts.find_or_open(session, accounts.HUB_USER, user, world.now)
        return credit.give(
            session, account, amount_u, key=uuid.uuid4().hex, actor="root", reason="a test",
            now=world.now, **more,
        ).id  # fmt: skip

    return world.database.write(work)


def test_prepaid_is_used_by_priority_and_ends_with_the_credit(world: World) -> None:
    set_policy(world, "user", "ada", {"each": {"prepaid": True}})
    no = refused(lambda: spawn(world, "ada", "quarter", []))
    assert no.refusal.reason == "credit-limit"
    second = give(world, "ada", 875_001, priority=5)
    first = give(world, "ada", 500_000, priority=1)
    lease_id = spawn(world, "ada", "quarter", [])
    passes(world, 2 * HOUR_US)
    view = world.view(lease_id)
    assert view.stop_requested_us is not None and "credit" in (view.stop_reason or "")
    finish(world, lease_id)
    legs = world.database.read(lambda s: list(s.scalars(
        sa.select(Entry).where(Entry.kind == "usage").order_by(Entry.id))))  # fmt: skip
    assert sum(leg.amount_u for leg in legs if leg.grant_id == first) == 500_000
    assert {leg.grant_id for leg in legs[:1]} == {first}
    paid = sum(leg.amount_u for leg in legs if leg.grant_id == second)
    over = sum(leg.amount_u for leg in legs if leg.grant_id is None)
    assert paid == 875_001
    assert over <= 875_001 * 2 // 60 + 1  # what a late tick of a minute costs


def test_prepaid_counts_the_credit_of_the_groups_that_pay(world: World) -> None:
    """Together with what others reserve who draw on it."""
    set_policy(world, "group", "lab", {"each": {"prepaid": True}})
    gift = GiveCredit(whose="group", name="lab", amount_u=1_000_000, reason="for the lab")
    world.do(world.live().money.give_credit(gift, "root"))
    both = [spawn(world, user, "half", ["lab"]) for user in ("ada", "bob")]  # 0.29 held each
    third = spawn(world, "cleo", "half", ["lab"])
    no = refused(lambda: spawn(world, "dan", "half", ["lab"]))
    assert no.refusal.reason == "credit-limit" and "1.00 EUR of credit" in no.refusal.message
    # Credit of one's own is enough by itself.
    give(world, "eve", 1_000_000)
    own = spawn(world, "eve", "quarter", ["lab"])
    world.stop(own)
    finish(world, own)
    passes(world, 15 * MINUTE_US, 15_000_000)
    for one in (*both, third):
        assert "credit" in (world.view(one).stop_reason or "")
    stop_all(world)
    spent = sum(world.view(one).cost_u for one in (*both, third))
    assert 900_000 <= spent <= 1_000_000 + 3 * 1_750_000 * 30 // 3600


def test_expired_credit_pays_nothing_more(world: World) -> None:
    grant = give(world, "ada", 10_000_000, expires_us=world.now + HOUR_US)
    lease_id = spawn(world, "ada", "quarter", [])
    passes(world, 4 * HOUR_US, 10 * MINUTE_US)
    finish(world, lease_id)
    legs = world.database.read(lambda s: list(s.scalars(
        sa.select(Entry).where(Entry.kind == "usage").order_by(Entry.id))))  # fmt: skip
    assert {leg.grant_id for leg in legs} == {grant, None}
    assert sum(leg.amount_u for leg in legs if leg.grant_id == grant) < 2 * 875_001
    world.now += credit.EXPIRY_LAG_US + HOUR_US
    assert world.database.write(lambda s: credit.expire(s, world.now)) == 1
    assert world.database.write(lambda s: credit.expire(s, world.now)) == 0


# --- while it runs ------------------------------------------------------------------------------


def test_a_lowered_limit_leaves_a_grace(world: World) -> None:
    set_policy(world, "user", "ada", {"each": {"slices": 2}})
    first = spawn(world, "ada", "quarter", [])
    world.now += 1
    second = spawn(world, "ada", "quarter", [], "two")
    passes(world, HOUR_US)
    set_policy(world, "user", "ada", {"each": {"slices": 1}})
    no = refused(lambda: spawn(world, "ada", "quarter", [], "three"))
    assert no.refusal.reason == "leases-limit"
    lowered = world.now
    passes(world, 10 * MINUTE_US, 20_000_000)
    assert world.view(first).state == "running"
    view = world.view(second)
    assert view.stop_requested_us is not None
    assert view.stop_requested_us - lowered >= 120_000_000
    assert view.stop_requested_us - lowered <= 160_000_000
    assert "ends-2" in notices(world, "ada")


def test_a_lowered_limit_may_count_at_the_next_start_only(world: World) -> None:
    policy = {"each": {"gpu_hours": [{"at_most": 20, "per": "day"}], "when_lowered": "next-start"}}
    set_policy(world, "user", "ada", policy)
    lease_id = spawn(world, "ada", "quarter", [])
    passes(world, HOUR_US)
    policy["each"]["gpu_hours"] = [{"at_most": 0, "per": "day"}]  # type: ignore[index]
    set_policy(world, "user", "ada", policy)
    passes(world, HOUR_US)
    assert world.view(lease_id).state == "running"
    assert refused(lambda: spawn(world, "ada", "quarter", [], "two")).refusal.reason == (
        "gpu-hours-limit"
    )


def test_nobody_was_there_to_stop_it(world: World) -> None:
    """The user pays a quarter of an hour past the limit at most; the platform the rest."""
    set_policy(world, "user", "ada", {"each": {"money": [{"at_most": "1", "per": "life"}]}})
    lease_id = spawn(world, "ada", "quarter", [])
    passes(world, 10 * MINUTE_US)
    deadline = next(one.deadline_us for one in leases(world))
    assert deadline is not None
    world.kill()
    world.now += 5 * HOUR_US
    world.restart()
    world.reconcile()
    assert world.view(lease_id).state == "stopping"
    finish(world, lease_id)
    view = world.view(lease_id)
    due = 875_001 * (deadline + 15 * MINUTE_US - (view.started_us or 0)) // HOUR_US
    assert view.cost_u == due
    assert view.writeoff_u > 3 * 875_001


def test_the_longest_session(world: World) -> None:
    set_policy(world, "user", "ada", {"each": {"session_hours": "1.5"}})
    no = refused(lambda: spawn(world, "ada", "quarter", [], declared_us=2 * HOUR_US))
    assert no.refusal.reason == "session-limit"
    lease_id = spawn(world, "ada", "quarter", [])
    start = world.now
    passes(world, 2 * HOUR_US)
    stopped = world.view(lease_id).stop_requested_us
    assert stopped is not None and 90 * MINUTE_US <= stopped - start <= 91 * MINUTE_US


def test_a_safe_hold_reserves_all_and_is_never_stopped_for_budget(world: World) -> None:
    limits = {"hold": "safe", "money": [{"at_most": "2", "per": "day"}]}
    set_policy(world, "user", "ada", {"each": limits})
    assert refused(lambda: spawn(world, "ada", "quarter", [])).refusal.reason == "duration-missing"
    no = refused(lambda: spawn(world, "ada", "quarter", [], declared_us=3 * HOUR_US))
    assert no.refusal.reason == "budget-limit"
    lease_id = spawn(world, "ada", "quarter", [], declared_us=2 * HOUR_US)
    assert refused(
        lambda: spawn(world, "ada", "quarter", [], "two", declared_us=HOUR_US)
    ).refusal.reason == "budget-limit"  # fmt: skip
    # Lowered to nothing: it still runs to the end of what was reserved.
    set_policy(world, "user", "ada", {"each": limits | {"money": [{"at_most": 0, "per": "day"}]}})
    passes(world, 119 * MINUTE_US)
    assert world.view(lease_id).state == "running"
    passes(world, 2 * MINUTE_US)
    assert world.view(lease_id).state == "stopping"
    assert world.view(lease_id).cost_u <= 1_750_002


def test_what_a_safe_hold_reserves_is_not_used_up_by_others(world: World) -> None:
    """Others go on as long as there is more than what was promised to somebody else."""
    set_policy(world, "group", "lab", {"total": {"money": [{"at_most": "6", "per": "life"}]}})
    set_policy(world, "user", "ada", {"each": {"hold": "safe"}})
    safe = spawn(world, "ada", "half", ["lab"], declared_us=3 * HOUR_US)  # 5.25 of the 6
    rolling = spawn(world, "bob", "half", ["lab"])
    passes(world, 15 * MINUTE_US)
    assert world.view(rolling).state == "running"
    # Before 80 % are used: what is reserved is no use that anybody has to be told of.
    assert "used-80" not in notices(world, "bob")
    passes(world, 4 * HOUR_US, 2 * MINUTE_US)
    stopped = world.view(rolling)
    assert stopped.stop_requested_us is not None
    assert "used up or reserved" in (stopped.stop_reason or "")
    stop_all(world)
    spent = {one: world.view(one).cost_u for one in (safe, rolling)}
    assert spent[safe] >= 5_250_000
    assert 700_000 <= spent[rolling] <= 750_000 + 4 * 1_750_000 // 60
    assert sum(spent.values()) <= 6_000_000 + 8 * 1_750_000 // 60


def test_what_is_reserved_counts_before_its_server_has_started(world: World) -> None:
    limits = {"total": {"gpu_hours": [{"at_most": 2, "per": "day"}]}}
    set_policy(world, "group", "lab", limits)
    set_policy(world, "user", "ada", {"each": {"hold": "safe"}})
    rolling = spawn(world, "bob", "half", ["lab"])
    passes(world, 30 * MINUTE_US)
    request = world.request("ada", "half").model_copy(
        update={"groups": ["lab"], "declared_us": 3 * HOUR_US}
    )
    world.do(world.live().grant(request))
    passes(world, MINUTE_US)
    deadline = next(one.deadline_us for one in leases(world) if one.id == rolling)
    # Half a GPU-hour is bob's, which is an hour of a half; 31 minutes of it are used.
    assert deadline is not None and abs(deadline - world.now - 29 * MINUTE_US) <= MINUTE_US


#: As short as it can be said: 0.000001 hours.
AN_INSTANT = 3600


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"money": [{"at_most": "0.10", "per": "month"}]}, "budget-limit"),
        ({"gpu_hours": [{"at_most": "0.03", "per": "week"}]}, "gpu-hours-limit"),
        ({"prepaid": True}, "credit-limit"),
        ({"prepaid": True, "hold": "safe"}, "credit-limit"),
    ],
)
def test_a_short_time_is_no_way_around_a_limit(
    world: World, limits: dict[str, Any], reason: str
) -> None:
    """However short the time that is asked for: it has to have room, as it may run on a little."""
    set_policy(world, "user", "ada", {"each": limits})
    no = refused(lambda: spawn(world, "ada", "quarter", [], declared_us=AN_INSTANT))
    assert no.refusal.reason == reason
    asked = ExplainRequest(user="ada", slice="quarter", groups=[], declared_us=AN_INSTANT)
    assert not world.do(world.live().policies.explain(asked)).ok


def test_many_short_times_keep_within_a_budget(world: World) -> None:
    set_policy(world, "user", "ada", {"each": {"money": [{"at_most": "0.50", "per": "life"}]}})
    starts = 0
    for number in range(6):
        try:
            spawn(world, "ada", "quarter", [], f"s{number}", declared_us=AN_INSTANT)
        except Refused as no:
            assert no.refusal.reason == "budget-limit"
        else:
            starts += 1
    assert starts == 3  # ten minutes of each have room
    passes(world, 10 * MINUTE_US, 5_000_000)
    # What ends at the time that its user said has no grace beyond it.
    stopped = [one.stop_requested_us for one in leases(world)]
    begun = [one.started_us for one in leases(world)]
    assert all(
        til is not None and since is not None and til - since <= 5_000_000
        for til, since in zip(stopped, begun, strict=True)
    )
    stop_all(world)
    assert sum(world.view(one.id).cost_u for one in leases(world)) <= 500_000


def test_what_costs_nothing_needs_no_budget(world: World) -> None:
    """By its price and its share of a GPU, not by how little is asked for."""
    nothing = {"money": [{"at_most": 0, "per": "day"}], "gpu_hours": [{"at_most": 0, "per": "day"}]}
    set_policy(world, "user", "ada", {"each": nothing})
    free = SetPrice(slice="cpu", rate_u_per_hour=0, reason="a test")
    world.now += 1
    world.do(world.live().money.set_price(free, "root"))
    lease_id = spawn(world, "ada", "cpu", [])
    passes(world, HOUR_US)
    assert world.view(lease_id).state == "running"


def test_a_session_ends_on_time_if_it_was_known_from_the_start(world: World) -> None:
    """A session made shorter while it runs leaves the grace, though."""
    set_policy(world, "user", "ada", {"each": {"session_hours": "0.01"}})
    set_policy(world, "user", "bob", {"each": {"session_hours": "1"}})
    short, long = spawn(world, "ada", "quarter", []), spawn(world, "bob", "quarter", [])
    start = world.now
    passes(world, 50_000_000, 5_000_000)
    ended = world.view(short).stop_requested_us
    assert ended is not None and 36_000_000 <= ended - start <= 41_000_000
    set_policy(world, "user", "bob", {"each": {"session_hours": "0.01"}})
    lowered = world.now
    passes(world, 5 * MINUTE_US, 5_000_000)
    ended = world.view(long).stop_requested_us
    assert ended is not None and 120_000_000 <= ended - lowered <= 130_000_000


def test_notices_are_written_once(world: World) -> None:
    set_policy(world, "user", "ada", {"each": {"session_hours": "1"}})
    spawn(world, "ada", "quarter", [])
    passes(world, 59 * MINUTE_US, 5_000_000)
    keys = world.database.read(lambda s: s.scalars(sa.select(NoticeRow.kind)).all())
    assert keys == ["ends-10", "ends-2"]
