"""When reservations hold: right on the wall clock, also where clocks are changed."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gpuslice.quotas.windows import Schedule, Stretch, current_and_next, stretches
from gpuslice.units import HOUR_US, MINUTE_US, from_datetime, to_datetime

BERLIN = ZoneInfo("Europe/Berlin")
EVERY = frozenset(range(7))
#: Among them half and quarter hours, a change of half an hour, one at midnight, both hemispheres.
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu",
    "Australia/Lord_Howe", "America/Havana", "Africa/Cairo", "Pacific/Auckland",
)  # fmt: skip
FAR = from_datetime(datetime(2040, 1, 1, tzinfo=BERLIN))


def schedule(
    first: date, last: date, start: str, til: str, days: frozenset[int] = EVERY,
    zone: ZoneInfo = BERLIN,
) -> Schedule:  # fmt: skip
    return Schedule(zone, first, last, days, time.fromisoformat(start), time.fromisoformat(til))


def at(*parts: int, zone: ZoneInfo = BERLIN, fold: int = 0) -> int:
    return from_datetime(datetime(*parts, tzinfo=zone, fold=fold))  # type: ignore[arg-type]


def one(day: date, start: str, til: str) -> Stretch:
    (found,) = stretches(schedule(day, day, start, til), 0, FAR)
    return found


def test_tuesdays_at_ten_through_the_winter() -> None:
    found = list(
        stretches(
            schedule(date(2026, 10, 1), date(2026, 11, 30), "10:00", "12:00", frozenset({1})),
            0, FAR,
        )
    )  # fmt: skip
    locals_ = [to_datetime(one.start_us).astimezone(BERLIN) for one in found]
    assert [moment.day for moment in locals_] == [6, 13, 20, 27, 3, 10, 17, 24]
    assert {(moment.weekday(), moment.hour, moment.minute) for moment in locals_} == {(1, 10, 0)}
    # Two hours everywhere, though the last ones are at another time of UTC.
    assert {one.til_us - one.start_us for one in found} == {2 * HOUR_US}
    assert {to_datetime(one.start_us).hour for one in found} == {8, 9}


SPRING, AUTUMN = date(2026, 3, 29), date(2026, 10, 25)
#: 02:00 to 03:00 is not there in spring, and there twice in autumn.
FORWARD = at(2026, 3, 29, 3, 0)


@pytest.mark.parametrize(
    ("day", "start", "til", "starts", "hours"),
    [
        (SPRING, "01:00", "04:00", at(2026, 3, 29, 1), 2),
        (AUTUMN, "01:00", "04:00", at(2026, 10, 25, 1), 4),
        (SPRING, "22:00", "22:00", at(2026, 3, 29, 22), 24),
        (SPRING - timedelta(days=1), "22:00", "06:00", at(2026, 3, 28, 22), 7),
        (AUTUMN - timedelta(days=1), "22:00", "06:00", at(2026, 10, 24, 22), 9),
        (SPRING - timedelta(days=1), "12:00", "12:00", at(2026, 3, 28, 12), 23),
        # The lesson at 02:30 on the day that has no 02:30: when the clock is put forward.
        (SPRING, "02:30", "04:00", FORWARD, 1),
        (SPRING, "02:30", "03:15", FORWARD, 0.25),
        (SPRING, "01:30", "02:30", at(2026, 3, 29, 1, 30), 0.5),
        # One of which nothing would be left keeps its length.
        (SPRING, "02:15", "02:45", FORWARD, 0.5),
        (SPRING, "02:30", "03:00", FORWARD, 0.5),
        # A time that is there twice is the first one, so lessons in a row do not overlap.
        (AUTUMN, "01:00", "02:30", at(2026, 10, 25, 1), 1.5),
        (AUTUMN, "02:30", "04:00", at(2026, 10, 25, 2, 30), 2.5),
        (AUTUMN, "02:15", "02:45", at(2026, 10, 25, 2, 15), 0.5),
    ],
)
def test_days_on_which_clocks_change(
    day: date, start: str, til: str, starts: int, hours: float
) -> None:
    assert one(day, start, til) == Stretch(starts, starts + int(hours * HOUR_US))


def test_a_night_belongs_to_the_day_it_begins_on() -> None:
    friday = schedule(date(2026, 11, 23), date(2026, 11, 29), "22:00", "06:00", frozenset({4}))
    (found,) = stretches(friday, 0, FAR)
    assert found == Stretch(at(2026, 11, 27, 22), at(2026, 11, 28, 6))
    assert current_and_next(friday, at(2026, 11, 28, 5, 59), 3) == [found]
    assert current_and_next(friday, at(2026, 11, 28, 6), 3) == []


def test_the_second_of_two_times_is_the_first() -> None:
    second = time(2, 30, fold=1)
    plan = Schedule(BERLIN, AUTUMN - timedelta(days=1), AUTUMN, EVERY, second, second)
    assert list(stretches(plan, 0, FAR)) == [
        Stretch(at(2026, 10, 24, 2, 30), at(2026, 10, 25, 2, 30)),
        Stretch(at(2026, 10, 25, 2, 30), at(2026, 10, 26, 2, 30)),
    ]


def test_midnight_that_is_not_there() -> None:
    """In Havana clocks go from 00:00 to 01:00."""
    havana = ZoneInfo("America/Havana")
    day = date(2026, 3, 7)
    (found,) = stretches(schedule(day, day, "23:00", "00:30", zone=havana), 0, FAR)
    assert found.til_us - found.start_us == HOUR_US
    assert to_datetime(found.til_us).astimezone(havana).hour == 1


#: Also ones that say they are the second of two; a schedule knows no such thing.
times = st.times().map(lambda found: found.replace(second=0, microsecond=0))
days = st.dates(date(2024, 1, 1), date(2030, 12, 31))


@given(
    zone=st.sampled_from(ZONES).map(ZoneInfo), first=days, length=st.integers(0, 400),
    weekdays=st.frozensets(st.integers(0, 6), min_size=1), start=times, til=times,
    cut=st.integers(0, 400 * 24), span=st.integers(1, 1000),
)  # fmt: skip
def test_stretches_are_apart_and_at_the_right_local_times(
    zone: ZoneInfo, first: date, length: int, weekdays: frozenset[int], start: time, til: time,
    cut: int, span: int,
) -> None:  # fmt: skip
    plan = Schedule(zone, first, first + timedelta(days=length), weekdays, start, til)
    found = list(stretches(plan, 0, FAR))
    expected = [
        day for day in (first + timedelta(days=n) for n in range(length + 1))
        if day.weekday() in weekdays
    ]  # fmt: skip
    assert len(found) == len(expected)
    nominal = timedelta(hours=til.hour - start.hour, minutes=til.minute - start.minute) + timedelta(
        days=til <= start
    )
    for day, stretch in zip(expected, found, strict=True):
        assert stretch.start_us < stretch.til_us
        begins = to_datetime(stretch.start_us).astimezone(zone)
        ends = to_datetime(stretch.til_us).astimezone(zone)
        wanted = datetime.combine(day, start)
        # No clock is put forward or back by more than an hour here.
        late = begins.replace(tzinfo=None) - wanted
        assert timedelta() <= late <= timedelta(hours=1)
        if late:  # there is no such time on that day
            again = wanted.replace(tzinfo=zone).astimezone(ZoneInfo("UTC")).astimezone(zone)
            assert again.replace(tzinfo=None) != wanted
        shift = ends.utcoffset() - begins.utcoffset()  # type: ignore[operator]
        assert abs(stretch.til_us - stretch.start_us - nominal / timedelta(microseconds=1)) <= (
            HOUR_US
        )
        if not shift and not late and ends.replace(tzinfo=None) == wanted + nominal:
            assert stretch.til_us - stretch.start_us == nominal / timedelta(microseconds=1)
    for earlier, later in pairwise(found):
        assert earlier.til_us <= later.start_us
    # What overlaps a part is what of all overlaps it, whole.
    from_us = from_datetime(datetime.combine(first, time(), ZoneInfo("UTC"))) + cut * HOUR_US
    til_us = from_us + span * HOUR_US
    assert list(stretches(plan, from_us, til_us)) == [
        one for one in found if one.start_us < til_us and one.til_us > from_us
    ]
    assert current_and_next(plan, from_us, 3) == [one for one in found if one.til_us > from_us][:3]


def test_a_look_in_between_sees_it_whole() -> None:
    found = one(AUTUMN, "10:00", "12:00")
    plan = schedule(AUTUMN, AUTUMN, "10:00", "12:00")
    middle = found.start_us + MINUTE_US
    assert list(stretches(plan, middle, middle + 1)) == [found]
    assert list(stretches(plan, found.til_us, FAR)) == []
    assert list(stretches(plan, 0, found.start_us)) == []
