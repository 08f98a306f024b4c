"""Months on a fake clock: clock changes, leap days, month ends, other zones, rolling windows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from gpuslice.ledger import accounts, counters
from gpuslice.ledger.tables import Segment
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.quotas.periods import parse_period, window
from gpuslice.units import HOUR_US, MINUTE_US, from_datetime
from ledgerworld import World, sqlite_ledger, world_settings
from quotamutants import BY_TIME
from quotaworld import finish, leases, passes, refused, set_policy, spawn

RATE = 875_001
BERLIN = "Europe/Berlin"


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    yield made
    assert made.problems() == []
    made.close()


def at(zone: str, *parts: int) -> int:
    return from_datetime(datetime(*parts, tzinfo=ZoneInfo(zone)))  # type: ignore[arg-type]


def begins(world: World, moment: int) -> None:
    """The world at another time, with a service that knows it."""
    world.now = moment
    world.restart()


def policy(world: World, kind: str, name: str | None, document: dict[str, Any]) -> None:
    """As an administrator sets it, so that the service knows of new time zones."""
    desk = world.live().policies
    history, _ = world.do(desk.history(kind, name, None, 1000))  # type: ignore[arg-type]
    version = history[0].version if history else None
    wanted = PolicyDocument.model_validate(document)
    world.do(desk.set(kind, name, wanted, version, "a test", "root"))  # type: ignore[arg-type]


def used(world: World, from_us: int, til_us: int, user: str = "ada") -> counters.Used:
    def work(session: sa.orm.Session) -> counters.Used:
        account = accounts.find(session, accounts.HUB_USER, user) or 0
        return counters.used(session, [account], from_us, til_us)[account]

    return world.database.read(work)


def segments(world: World) -> list[tuple[int, int]]:
    rows = world.database.read(
        lambda s: s.execute(
            sa.select(Segment.from_us, Segment.til_us).order_by(Segment.from_us)
        ).all()
    )
    return [(row.from_us, row.til_us) for row in rows]


def tiles(world: World, start: int, end: int) -> None:
    """No gap, no overlap, nothing beyond."""
    found = segments(world)
    assert (found[0][0], found[-1][1]) == (start, end)
    assert all(a[1] == b[0] for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        (BERLIN, (2026, 10, 25), 25),
        (BERLIN, (2027, 3, 28), 23),
        ("America/New_York", (2026, 11, 1), 25),
        ("Australia/Lord_Howe", (2026, 10, 4), 23.5),
        ("Asia/Kolkata", (2026, 10, 25), 24),
        ("UTC", (2028, 2, 29), 24),
    ],
)
def test_row_18_a_day_is_billed_as_long_as_it_is(
    world: World, zone: str, day: tuple[int, ...], hours: float
) -> None:
    """A day of 25 hours is billed 25 hours, all of it on that day, split at its midnights."""
    midnight = at(zone, *day)
    end_of_day = midnight + int(hours * HOUR_US)
    begins(world, midnight - 90 * MINUTE_US)
    policy(world, "everyone", None, {"each": {"slices": 9}, "timezone": zone})
    lease_id = spawn(world, "ada", "quarter", [])
    start = world.now
    passes(world, int(hours * HOUR_US) + 3 * HOUR_US, 90 * MINUTE_US)
    world.node.finish(world.node.servers[lease_id])
    end = world.now
    finish(world, lease_id)
    tiles(world, start, end)
    edges = {edge for segment in segments(world) for edge in segment}
    assert {midnight, end_of_day} <= edges
    of_day = used(world, midnight, end_of_day)
    cost = [RATE * (moment - start) // HOUR_US for moment in (midnight, end_of_day)]
    assert of_day.spent_u == cost[1] - cost[0]
    assert abs(of_day.gpu_us - int(hours * HOUR_US) // 4) < 50
    assert world.view(lease_id).cost_u == RATE * (end - start) // HOUR_US
    # The usage page, too, calls that one day.
    span = window(parse_period("day"), ZoneInfo(zone), midnight + HOUR_US)
    assert (span.start_us, span.end_us) == (midnight, end_of_day)


def test_a_budget_a_day_lasts_for_the_whole_long_day(world: World) -> None:
    """26 hours' worth is enough for a day of 25; what is left of the day before counts before."""
    midnight = at(BERLIN, 2026, 10, 25)
    begins(world, midnight - HOUR_US)
    limit = {"money": [{"at_most": "22", "per": "day"}]}  # 25.14 hours
    policy(world, "user", "ada", {"each": limit, "timezone": BERLIN})
    lease_id = spawn(world, "ada", "quarter", [])
    passes(world, HOUR_US + 25 * HOUR_US + 2 * HOUR_US, 20 * MINUTE_US)
    assert world.view(lease_id).state == "running"
    world.stop(lease_id)
    finish(world, lease_id)
    # A little more than 24 hours' worth is not enough for the long day.
    limit = {"money": [{"at_most": "21.2", "per": "day"}]}  # 24.2 hours
    begins(world, at(BERLIN, 2027, 10, 31) - HOUR_US)
    policy(world, "user", "bob", {"each": limit, "timezone": BERLIN})
    other = spawn(world, "bob", "quarter", [])
    passes(world, 26 * HOUR_US, 20 * MINUTE_US)
    assert world.view(other).stop_requested_us is not None


def test_months_with_both_clock_changes(world: World) -> None:
    """From October to April: every day's bill is its own length, and the sum is exact."""
    start = at(BERLIN, 2026, 10, 1)
    begins(world, start)
    policy(world, "everyone", None, {"each": {}, "timezone": BERLIN})
    lease_id = spawn(world, "ada", "quarter", [])
    end = at(BERLIN, 2027, 4, 1)
    days = [start]
    while days[-1] < end:
        following = window(parse_period("day"), ZoneInfo(BERLIN), days[-1]).end_us
        assert following is not None
        days.append(following)
    assert [b - a for a, b in pairwise(days)].count(24 * HOUR_US) == len(days) - 3
    for midnight in days[1:]:
        world.now = midnight
        world.reconcile()
    world.node.finish(world.node.servers[lease_id])
    finish(world, lease_id)
    tiles(world, start, end)
    for a, b in pairwise(days):
        costs = RATE * (b - start) // HOUR_US - RATE * (a - start) // HOUR_US
        assert used(world, a, b).spent_u == costs, datetime.fromtimestamp(a / 1e6, ZoneInfo(BERLIN))
    month = window(parse_period("month"), ZoneInfo(BERLIN), days[10])
    assert month.end_us is not None
    assert (month.start_us, month.end_us) == (at(BERLIN, 2026, 10, 1), at(BERLIN, 2026, 11, 1))
    first, last = (RATE * (edge - start) // HOUR_US for edge in (month.start_us, month.end_us))
    assert used(world, month.start_us, month.end_us).spent_u == last - first
    assert month.end_us - month.start_us == (31 * 24 + 1) * HOUR_US


@pytest.mark.parametrize(
    ("zone", "before", "after"),
    [
        (BERLIN, (2026, 10, 31, 23), (2026, 11, 1)),
        ("Asia/Kolkata", (2027, 2, 28, 23), (2027, 3, 1)),
        ("UTC", (2028, 2, 29, 23), (2028, 3, 1)),
        ("America/New_York", (2026, 12, 31, 23), (2027, 1, 1)),
    ],
)
def test_a_budget_a_month_begins_anew_on_the_first(
    world: World, zone: str, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """The retry time that a refusal names is that midnight, in the policy's zone."""
    begins(world, at(zone, *before))
    limit = {"money": [{"at_most": "0.4", "per": "month"}]}
    policy(world, "user", "ada", {"each": limit, "timezone": zone})
    lease_id = spawn(world, "ada", "quarter", [])
    passes(world, 30 * MINUTE_US)
    assert world.view(lease_id).stop_requested_us is not None
    finish(world, lease_id)
    no = refused(lambda: spawn(world, "ada", "quarter", []))
    assert no.refusal.retry_after_s is not None
    due = at(zone, *after)
    assert 0 <= world.now + no.refusal.retry_after_s * 1_000_000 - due <= 1_000_000
    world.now = due - 1
    assert refused(lambda: spawn(world, "ada", "quarter", [])).refusal.reason == "budget-limit"
    world.now = due
    again = spawn(world, "ada", "quarter", [])
    passes(world, 20 * MINUTE_US)
    assert world.view(again).state == "running"


def test_each_zone_has_its_own_midnight(database_url: str) -> None:
    """The platform's zone, and two policies in others, for one lease: each counts its own day."""
    world = World(database_url, settings=world_settings(timezone="America/New_York"))
    midnights = {
        zone: at(zone, 2026, 10, 25)
        for zone in (BERLIN, "Asia/Kolkata", "America/New_York", "Asia/Kathmandu")
    }
    begins(world, min(midnights.values()) - HOUR_US)
    policy(world, "user", "ada", {"each": {"slices": 3}, "timezone": "Asia/Kolkata"})
    policy(world, "group", "lab", {"total": {"slices": 3}, "timezone": BERLIN})
    policy(world, "group", "other", {"total": {"slices": 3}, "timezone": "Asia/Kathmandu"})
    lease_id = spawn(world, "ada", "quarter", ["lab"])
    start = world.now
    passes(world, 14 * HOUR_US, 25 * MINUTE_US)
    world.node.finish(world.node.servers[lease_id])
    end = world.now
    finish(world, lease_id)
    tiles(world, start, end)
    for zone, midnight in midnights.items():
        cost = RATE * (midnight - start) // HOUR_US
        assert used(world, start - start % HOUR_US, midnight).spent_u == cost, zone
    assert world.problems() == []
    world.close()


def test_half_an_hour_beside_the_full_hours(world: World) -> None:
    """In Kolkata a day begins at half past six in the evening, UTC: no bill spans that."""
    midnight = at("Asia/Kolkata", 2026, 10, 25)
    begins(world, midnight - 40 * MINUTE_US)
    limit = {"money": [{"at_most": "0.7", "per": "day"}]}  # 48 minutes
    policy(world, "user", "ada", {"each": limit, "timezone": "Asia/Kolkata"})
    lease_id = spawn(world, "ada", "quarter", [])
    passes(world, 40 * MINUTE_US + 47 * MINUTE_US)
    assert world.view(lease_id).state == "running"
    passes(world, 3 * MINUTE_US)
    stopped = world.view(lease_id).stop_requested_us
    assert stopped is not None
    # One microunit of rounding may cost one look more.
    assert 0 <= stopped - midnight - 700_000 * HOUR_US // RATE <= MINUTE_US + 10_000


def test_a_rolling_window_forgets_bit_by_bit(world: World) -> None:
    begins(world, at("UTC", 2026, 10, 24, 22))
    hours = [{"at_most": "0.5", "per": "6h"}]  # of a quarter: two hours in any six
    policy(world, "user", "ada", {"each": {"gpu_hours": hours}})
    lease_id = spawn(world, "ada", "quarter", [])
    start = world.now
    passes(world, 3 * HOUR_US, 5 * MINUTE_US)
    (lease,) = leases(world)
    assert lease.stop_requested_us is not None
    assert 0 <= lease.stop_requested_us - start - 2 * HOUR_US <= 5 * MINUTE_US
    finish(world, lease_id)
    no = refused(lambda: spawn(world, "ada", "quarter", []))
    assert no.refusal.retry_after_s is not None
    # Never before the first of it is six hours old, nor later than when an hour of it is.
    again = world.now + no.refusal.retry_after_s * 1_000_000
    assert start + 6 * HOUR_US <= again <= start + 7 * HOUR_US
    world.now = start + 5 * HOUR_US
    assert refused(lambda: spawn(world, "ada", "quarter", [])).refusal.reason == "gpu-hours-limit"
    world.now = again
    spawn(world, "ada", "quarter", [])


@pytest.mark.parametrize("jump", [HOUR_US, -HOUR_US])
def test_a_jump_of_the_clock_at_midnight_charges_the_time_that_passed(
    world: World, jump: int
) -> None:
    """The clock is set while the day changes: the bill has the engine's own time, once."""
    begins(world, at("UTC", 2026, 10, 24, 23, 40))
    set_policy(world, "user", "ada", {"each": {"money": [{"at_most": "9", "per": "day"}]}})
    lease_id = spawn(world, "ada", "quarter", [])
    start = world.now
    passes(world, 15 * MINUTE_US)
    world.now += jump
    world.node.jumped_us += jump
    passes(world, 45 * MINUTE_US)
    assert world.view(lease_id).state == "running"
    world.node.finish(world.node.servers[lease_id])
    finish(world, lease_id)
    tiles(world, start, start + HOUR_US)
    view = world.view(lease_id)
    assert (view.cost_u, view.writeoff_u) == (RATE, 0)


#: Which test sees which planted bug.
SEEN_BY = {
    "day_of_24_hours": test_a_budget_a_day_lasts_for_the_whole_long_day,
    "no_cut_at_midnight": test_half_an_hour_beside_the_full_hours,
    "rolling_window_too_short": test_a_rolling_window_forgets_bit_by_bit,
    "wrong_zone": test_half_an_hour_beside_the_full_hours,
}


@pytest.mark.parametrize("name", sorted(BY_TIME))
def test_a_planted_bug_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BY_TIME[name](monkeypatch)
    world = World(sqlite_ledger(tmp_path / "ledger.sqlite"))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        SEEN_BY[name](world)
    world.close()
