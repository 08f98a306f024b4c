"""Reservations on a real ledger: the class gets its slices, others are told why and until when."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from fakenode import gpu
from gpuslice import wire
from gpuslice.broker.core import HubUser
from gpuslice.broker.queuedesk import JoinFor
from gpuslice.broker.reservationviews import (
    AddReservation,
    CancelReservation,
    ChangeReservation,
    ReservationView,
)
from gpuslice.ledger import accounts
from gpuslice.ledger.tables import Account, Audit, Lease
from gpuslice.units import HOUR_US, MINUTE_US, from_datetime, to_datetime
from ledgerworld import World
from quotaworld import finish, passes, refused, set_policy, spawn

ZONE = ZoneInfo("Europe/Berlin")
CLASS = ["course"]


class FakeHub:
    """The hub's users; groups as the tests say."""

    def __init__(self) -> None:
        self.groups: dict[str, tuple[str, ...]] = {}

    async def stop_server(self, user: str, server: str) -> None:
        raise RuntimeError("not in these tests: the node stops servers")

    async def start_server(self, user: str, server: str, options: dict[str, str]) -> None:
        raise RuntimeError("not in these tests")

    async def user(self, name: str) -> HubUser | None:
        return HubUser(name, self.groups.get(name, ()), {})


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    """Two GPUs, eight quarters; ten in the morning is the next full hour but two."""
    made = World(database_url, devices=[gpu("GPU-a", 0), gpu("GPU-b", 1)], hub=FakeHub())
    made.now = from_datetime(datetime(2026, 12, 1, 7, tzinfo=ZONE))
    made.reconcile()
    yield made
    assert made.problems() == []
    made.close()


TEN = from_datetime(datetime(2026, 12, 1, 10, tzinfo=ZONE))


def book(world: World, count: int, slice_name: str = "quarter", **more: Any) -> ReservationView:
    """A lesson on Tuesday, December 1st, from ten to twelve."""
    said = {
        "group": "course", "slice": slice_name, "count": count, "title": "Deep learning lab",
        "timezone": "Europe/Berlin", "first_day": "2026-12-01", "last_day": "2026-12-31",
        "weekdays": ["tue"], "from_time": "10:00", "til_time": "12:00", "reason": "teaching",
    } | more  # fmt: skip
    desk = world.live().reservations
    return world.do(desk.add(AddReservation.model_validate(said), "root"))


def until(world: World, moment: int) -> None:
    """Time passes as it does for the service, but without a look every five seconds."""
    passes(world, max(0, moment - world.now), 10 * MINUTE_US)


def offer(world: World, slice_name: str, groups: list[str]) -> wire.Offer:
    found = world.do(world.live().offers("x", groups))
    return next(one for one in found if one.slice == slice_name)


def texts(world: World, user: str, kind: str) -> list[str]:
    return [
        one.message for one in world.do(world.live().notices(user, 0)) if one.kind == kind
    ]  # fmt: skip


def stop_reason(world: World, lease_id: str) -> str | None:
    return world.view(lease_id).stop_reason


def test_the_class_gets_its_slices_and_others_are_told(world: World) -> None:
    book(world, 6)
    until(world, TEN)
    spawn(world, "eve", "quarter", [])
    spawn(world, "bob", "quarter", ["other"])
    no = refused(lambda: spawn(world, "zoe", "quarter", ["other"]))
    said = str(no)
    assert no.refusal.reason == "reserved"
    assert "Deep learning lab" in said and "10:00 to 12:00 (CET)" in said
    assert no.refusal.retry_after_s == 2 * 3600 - (world.now - TEN) // 1_000_000
    assert no.refusal.alternatives == ["cpu"]
    assert refused(lambda: spawn(world, "zoe", "whole", [])).refusal.reason == "gpu-full"
    for number in range(6):
        spawn(world, f"student{number}", "quarter", CLASS)
    # What is full is full, for the class too.
    assert refused(lambda: spawn(world, "late", "quarter", CLASS)).refusal.reason == "gpu-full"


def test_another_kind_of_slice_does_not_get_around_it(world: World) -> None:
    book(world, 5)
    until(world, TEN)
    assert refused(lambda: spawn(world, "eve", "whole", [])).refusal.reason == "reserved"
    spawn(world, "eve", "half", [])
    assert refused(lambda: spawn(world, "bob", "half", [])).refusal.reason == "reserved"
    spawn(world, "teacher", "half", CLASS)


def test_what_the_class_gives_back_is_kept_for_it(world: World) -> None:
    book(world, 8)
    until(world, TEN)
    first = spawn(world, "student", "quarter", CLASS)
    world.stop(first)
    finish(world, first)
    assert refused(lambda: spawn(world, "eve", "quarter", [])).refusal.reason == "reserved"
    spawn(world, "student", "quarter", CLASS)


def test_before_it_begins_only_who_is_over_in_time(world: World) -> None:
    book(world, 8)
    until(world, TEN - 2 * HOUR_US - MINUTE_US)
    early = spawn(world, "early", "whole", [])
    world.stop(early)
    finish(world, early)
    until(world, TEN - HOUR_US)
    no = refused(lambda: spawn(world, "eve", "quarter", []))
    assert (no.refusal.reason, no.refusal.limit) == ("reserved", "59 minutes")
    assert "at most 59 minutes" in str(no) and "again after Tue 2026-12-01 12:00 (CET)" in str(no)
    assert refused(
        lambda: spawn(world, "eve", "quarter", [], declared_us=HOUR_US)
    ).refusal.reason == "reserved"  # fmt: skip
    lease_id = spawn(world, "eve", "quarter", [], declared_us=59 * MINUTE_US)
    set_policy(world, "user", "zoe", {"each": {"session_hours": 0.5}})
    short = spawn(world, "zoe", "whole", [])
    passes(world, HOUR_US)
    # Both were over by ten.
    for found in (lease_id, short):
        requested = world.view(found).stop_requested_us
        assert requested is not None and requested <= TEN
    assert texts(world, "eve", "reservation") == []


def test_two_lessons_in_a_row(world: World) -> None:
    """The refusal names what is in the way, and counts with the lesson after it."""
    until(world, TEN - 2 * HOUR_US)
    book(world, 4, from_time="08:00", til_time="10:00", title="Early")
    book(world, 8, from_time="10:00", til_time="12:00", title="Late")
    book(world, 1, "cpu", from_time="10:00", til_time="12:00", title="No GPU")
    no = refused(lambda: spawn(world, "eve", "quarter", []))
    assert "Early" in str(no) and "Late" in str(no) and "No GPU" not in str(no)
    assert no.refusal.limit == "119 minutes" and "12:00 (CET)" in str(no)
    spawn(world, "eve", "quarter", [], declared_us=HOUR_US)
    no = refused(lambda: spawn(world, "eve", "whole", [], "b", declared_us=3 * HOUR_US))
    assert no.refusal.reason == "reserved"
    # Nothing is left of an early morning for a whole one, however short.
    spawn(world, "bob", "quarter", [], declared_us=HOUR_US)
    no = refused(lambda: spawn(world, "zoe", "whole", [], declared_us=HOUR_US))
    assert no.refusal.limit is None


def test_with_notice_what_runs_is_told_and_ends_when_it_begins(world: World) -> None:
    old = spawn(world, "old", "quarter", [])
    world.now += 1
    new = spawn(world, "new", "quarter", [])
    world.now += 1
    newest = spawn(world, "newest", "half", [])
    mine = spawn(world, "student", "quarter", CLASS)
    # Two quarters are free, one is the student's: two more are needed, and the half gives both.
    book(world, 6, notice_us=15 * MINUTE_US)
    until(world, TEN - 20 * MINUTE_US)
    assert texts(world, "newest", "reservation") == []
    passes(world, 5 * MINUTE_US)
    (said,) = texts(world, "newest", "reservation")
    assert "Deep learning lab" in said and "10:00 to 12:00 (CET)" in said and "minutes" in said
    assert texts(world, "new", "reservation") + texts(world, "old", "reservation") == []
    passes(world, 14 * MINUTE_US)
    assert stop_reason(world, newest) is None
    passes(world, MINUTE_US)
    assert world.view(newest).stop_requested_us == TEN
    assert "reserved for Deep learning lab" in (stop_reason(world, newest) or "")
    assert len(texts(world, "newest", "reservation")) == 1
    # While it is on its way out nobody else is asked to go in its stead.
    passes(world, 20_000_000, 5_000_000)
    finish(world, newest)
    passes(world, 5 * MINUTE_US)
    for user, lease_id in (("old", old), ("new", new), ("student", mine)):
        assert stop_reason(world, lease_id) is None
        assert texts(world, user, "reservation") == []
    for number in range(5):
        spawn(world, f"student{number}", "quarter", CLASS)


def test_nobody_is_stopped_without_that_notice(world: World) -> None:
    """A reservation made minutes before it begins waits for those who are in its way."""
    lease_id = spawn(world, "eve", "whole", [])
    other = spawn(world, "bob", "whole", [])
    until(world, TEN - 5 * MINUTE_US)
    book(world, 4, notice_us=30 * MINUTE_US)
    told_us = world.now
    passes(world, 30 * MINUTE_US)
    assert (stop_reason(world, lease_id), stop_reason(world, other)) == (None, None)
    passes(world, 2 * MINUTE_US)
    # One whole GPU is four quarters: the other one goes on.
    stopped = [one for one in (lease_id, other) if stop_reason(world, one) is not None]
    assert len(stopped) == 1
    requested = world.view(stopped[0]).stop_requested_us
    assert requested is not None and requested - told_us >= 30 * MINUTE_US


def test_without_notice_what_runs_goes_on(world: World) -> None:
    first = spawn(world, "eve", "whole", [])
    second = spawn(world, "bob", "half", [])
    book(world, 8)
    until(world, TEN + HOUR_US)
    assert (stop_reason(world, first), stop_reason(world, second)) == (None, None)
    assert texts(world, "eve", "reservation") == []
    spawn(world, "student", "half", CLASS)
    # What becomes free is the class's.
    world.stop(first)
    finish(world, first)
    assert refused(lambda: spawn(world, "zoe", "quarter", [])).refusal.reason == "reserved"
    spawn(world, "student2", "whole", CLASS)


def test_an_administrators_word_stands(world: World) -> None:
    lease_id = spawn(world, "eve", "whole", [])
    other = spawn(world, "bob", "whole", [])

    def promise(session: sa.orm.Session) -> None:
        session.get_one(Lease, other).guaranteed_til_us = TEN + 3 * HOUR_US

    world.database.write(promise)
    book(world, 8, notice_us=10 * MINUTE_US)
    until(world, TEN + 5 * MINUTE_US)
    assert stop_reason(world, lease_id) is not None
    assert stop_reason(world, other) is None


def test_who_is_certain_to_be_over_is_left_alone(world: World) -> None:
    until(world, TEN - 3 * HOUR_US)
    short = spawn(world, "short", "whole", [], declared_us=2 * HOUR_US + 55 * MINUTE_US)
    world.now += 1
    long = spawn(world, "long", "whole", [])
    book(world, 4, notice_us=HOUR_US)
    until(world, TEN - 10 * MINUTE_US)
    assert texts(world, "short", "reservation") + texts(world, "long", "reservation") == []
    finish(world, short)
    until(world, TEN + 10 * MINUTE_US)
    assert stop_reason(world, long) is None


def test_cancelled_it_holds_nothing(world: World) -> None:
    lease_id = spawn(world, "eve", "whole", [])
    made = book(world, 8, notice_us=30 * MINUTE_US)
    until(world, TEN - 20 * MINUTE_US)
    assert len(texts(world, "eve", "reservation")) == 1
    assert refused(lambda: spawn(world, "bob", "quarter", [])).refusal.reason == "reserved"
    desk = world.live().reservations
    stale = CancelReservation(version=made.version + 1, reason="ill")
    assert refused(lambda: world.do(desk.cancel(made.reservation_id, stale, "root"))).status == 409
    body = CancelReservation(version=made.version, reason="ill")
    gone = world.do(desk.cancel(made.reservation_id, body, "root"))
    assert (gone.cancelled_us, gone.next) == (world.now, [])
    spawn(world, "bob", "whole", [])
    until(world, TEN + 10 * MINUTE_US)
    assert stop_reason(world, lease_id) is None
    again = CancelReservation(version=gone.version, reason="ill")
    assert refused(lambda: world.do(desk.cancel(made.reservation_id, again, "root"))).status == 409
    assert world.do(desk.all(over=False, limit=50, before=None)) == ([], None)
    (listed,), _ = world.do(desk.all(over=True, limit=50, before=None))
    assert listed == gone


def test_after_it_everything_is_everybodys_again(world: World) -> None:
    book(world, 8)
    until(world, TEN + 2 * HOUR_US - 1)
    refused(lambda: spawn(world, "eve", "whole", []))
    world.now = TEN + 2 * HOUR_US
    spawn(world, "eve", "whole", [])
    # And a week later again it is not.
    until_next = TEN + 7 * 24 * HOUR_US
    passes(world, until_next - world.now, 6 * HOUR_US)
    assert refused(lambda: spawn(world, "bob", "quarter", [])).refusal.reason == "reserved"


def test_groups_below_belong_to_it(world: World) -> None:
    book(world, 6)

    def below(session: sa.orm.Session) -> None:
        course = accounts.find(session, accounts.HUB_GROUP, "course")
        part = accounts.find_or_open(session, accounts.HUB_GROUP, "course-b", world.now)
        session.get_one(Account, part).parent_id = course

    world.database.write(below)
    until(world, TEN)
    for number in range(3):
        spawn(world, f"student{number}", "quarter", ["course-b"])
    # They count towards it: three more, not six, are set aside.
    others = offer(world, "quarter", ["course-c"])
    assert (others.free, others.reserved) == (2, 3)
    members = offer(world, "quarter", ["course-b"])
    assert (members.free, members.reserved) == (5, 0)


def test_offers_say_what_is_reserved_now_and_next(world: World) -> None:
    until(world, TEN - 3 * HOUR_US)
    book(world, 6)
    before = offer(world, "quarter", [])
    assert (before.free, before.reserved, before.reserved_next) == (8, 0, 6)
    assert before.reserved_next_us == TEN and "next: 6 quarter" in (before.reserved_note or "")
    until(world, TEN)
    now = offer(world, "quarter", [])
    assert (now.free, now.total, now.reserved) == (2, 8, 6)
    assert now.reserved_next_us == TEN + 7 * 24 * HOUR_US
    whole = offer(world, "whole", [])
    assert (whole.free, whole.reserved) == (0, 2)
    assert "reserved" in (whole.unavailable or "")
    mine = offer(world, "quarter", CLASS)
    assert (mine.free, mine.reserved, mine.reserved_next) == (8, 0, 0)
    assert "For you: 6 quarter" in (mine.reserved_note or "")


def test_waits_take_it_into_account(world: World) -> None:
    """Who waits knows it; the class is served before those who came before it."""
    hub = world.hub
    assert isinstance(hub, FakeHub)
    hub.groups["student"] = ("course",)
    book(world, 8)
    until(world, TEN)
    queue = world.live().queue
    found = world.do(queue.join(JoinFor(user="eve", slice="quarter")))
    assert found.start_by_us == found.expected_us == TEN + 2 * HOUR_US
    world.now += 1
    world.do(queue.join(JoinFor(user="student", slice="quarter", groups=CLASS)))
    world.reconcile()
    assert world.do(queue.mine("student"))[0].state == "offered"
    assert world.do(queue.mine("eve"))[0].state == "waiting"
    # Who has left the course when the turn comes is not given what is the course's.
    world.do(queue.join(JoinFor(user="left", slice="quarter", groups=CLASS)))
    world.reconcile()
    found = world.do(queue.mine("left"))[0]
    assert found.state == "waiting" and "reserved" in (found.reason or "")
    until(world, TEN + 2 * HOUR_US + 10 * MINUTE_US)
    assert world.do(queue.mine("eve"))[0].state == "offered"


def test_what_cannot_be_is_said_when_it_is_made(world: World) -> None:
    assert book(world, 8, last_day="2026-12-01").warnings == []
    (warning,) = book(world, 40, first_day="2026-12-08").warnings
    assert "8 of 40" in warning
    (warning,) = book(
        world, 1, "whole", first_day="2026-12-01", last_day="2026-12-01", from_time="11:00",
        til_time="13:00", title="Seminar",
    ).warnings  # fmt: skip
    assert "Deep learning lab" in warning and "11:00 to 13:00" in warning
    assert refused(lambda: book(world, 1, "nonsense")).refusal.reason == "unknown-slice"
    never = {"first_day": "2026-12-02", "last_day": "2026-12-06"}
    assert refused(lambda: book(world, 1, **never)).refusal.reason == "never-holds"
    over = {"first_day": "2026-11-24", "last_day": "2026-11-24"}
    assert refused(lambda: book(world, 1, **over)).refusal.reason == "never-holds"


def test_a_change_holds_from_now_on_and_is_in_the_audit(world: World) -> None:
    made = book(world, 8)
    assert [to_datetime(one.from_us).astimezone(ZONE).hour for one in made.next] == [10] * 5
    desk = world.live().reservations
    said = made.model_dump(
        include={
            "slice", "title", "timezone", "first_day", "last_day", "weekdays", "from_time",
            "til_time", "notice_us", "version",
        }
    ) | {"count": 2, "reason": "fewer came"}  # fmt: skip
    changed = world.do(
        desk.change(made.reservation_id, ChangeReservation.model_validate(said), "root")
    )
    assert (changed.count, changed.version, changed.group) == (2, 2, "course")
    stale = ChangeReservation.model_validate(said)
    no = refused(lambda: world.do(desk.change(made.reservation_id, stale, "root")))
    assert no.refusal.reason == "stale-version"
    world.restart()
    until(world, TEN)
    spawn(world, "eve", "whole", [])
    rows = world.database.read(lambda s: list(s.scalars(sa.select(Audit).order_by(Audit.id))))
    assert [(row.action, row.reason) for row in rows if "reservation" in row.action] == [
        ("reservation.add", "teaching"), ("reservation.change", "fewer came"),
    ]  # fmt: skip
    assert '"count": 8' in (rows[-1].before or "") and '"count": 2' in (rows[-1].after or "")


def test_where_nothing_may_be_granted_nobody_is_ended(world: World) -> None:
    """A node on which something runs that nobody knows could give the class nothing."""
    lease_id = spawn(world, "eve", "whole", [])
    book(world, 8, notice_us=10 * MINUTE_US)
    until(world, TEN - HOUR_US)
    world.node.run(world.node.create("f" * 32), world.now)
    until(world, TEN + 10 * MINUTE_US)
    assert stop_reason(world, lease_id) is None
    assert texts(world, "eve", "reservation") == []
