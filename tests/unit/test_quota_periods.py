"""Periods: every moment is in exactly one window, and a day is as long as it is."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gpuslice.quotas.periods import Period, PeriodError, Window, parse_period, window
from gpuslice.units import HOUR_US, from_datetime

CALENDAR = ("day", "week", "month", "year")
#: Among them half and quarter hours, a midnight that does not exist, and both hemispheres.
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu",
    "Australia/Lord_Howe", "America/Havana", "Africa/Cairo", "Pacific/Apia",
)  # fmt: skip
MOMENTS = st.integers(
    from_datetime(datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC"))),
    from_datetime(datetime(2032, 1, 1, tzinfo=ZoneInfo("UTC"))),
)


def at(zone: str, *parts: int) -> int:
    return from_datetime(datetime(*parts, tzinfo=ZoneInfo(zone)))  # type: ignore[arg-type]


@given(kind=st.sampled_from(CALENDAR), zone=st.sampled_from(ZONES), now=MOMENTS)
def test_windows_tile_the_time(kind: str, zone: str, now: int) -> None:
    period, place = parse_period(kind), ZoneInfo(zone)
    found = window(period, place, now)
    assert found.end_us is not None
    assert found.start_us <= now < found.end_us
    assert window(period, place, found.start_us) == found
    assert window(period, place, found.end_us - 1) == found
    following = window(period, place, found.end_us)
    assert following.start_us == found.end_us
    assert found.start_us % (HOUR_US // 4) == 0


@pytest.mark.parametrize(
    ("kind", "zone", "inside", "start", "hours"),
    [
        ("day", "Europe/Berlin", (2026, 3, 29, 12), (2026, 3, 29), 23),
        ("day", "Europe/Berlin", (2026, 10, 25, 12), (2026, 10, 25), 25),
        ("day", "UTC", (2028, 2, 29, 12), (2028, 2, 29), 24),
        ("week", "Europe/Berlin", (2026, 3, 29, 12), (2026, 3, 23), 7 * 24 - 1),
        ("month", "Europe/Berlin", (2026, 10, 31, 23), (2026, 10, 1), 31 * 24 + 1),
        ("month", "UTC", (2028, 2, 29), (2028, 2, 1), 29 * 24),
        ("year", "America/New_York", (2028, 7, 1), (2028, 1, 1), 366 * 24),
    ],
)
def test_local_calendars(
    kind: str, zone: str, inside: tuple[int, ...], start: tuple[int, ...], hours: int
) -> None:
    found = window(parse_period(kind), ZoneInfo(zone), at(zone, *inside))
    assert found == Window(at(zone, *start), at(zone, *start) + hours * HOUR_US)


def test_what_never_resets_and_what_rolls() -> None:
    now = at("UTC", 2026, 11, 23)
    assert window(parse_period("life"), ZoneInfo("UTC"), now) == Window(0, None)
    assert window(parse_period("36h"), ZoneInfo("UTC"), now).start_us == now - 36 * HOUR_US


@pytest.mark.parametrize(
    ("text", "period", "said"),
    [
        ("week", Period("week"), "week"),
        (" Month ", Period("month"), "month"),
        ("7d", Period("rolling", 168), "7d"),
        ("36h", Period("rolling", 36), "36h"),
        ("48h", Period("rolling", 48), "2d"),
        ("366d", Period("rolling", 8784), "366d"),
    ],
)
def test_periods_are_read_and_said(text: str, period: Period, said: str) -> None:
    assert parse_period(text) == period
    assert str(period) == said
    assert parse_period(said) == period


@pytest.mark.parametrize(
    "text", ["", "fortnight", "0d", "-1d", "7", "1.5h", "367d", "99999h", "7 d"]
)
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(PeriodError):
        parse_period(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("week", "a week"), ("life", "in all"), ("1h", "in any 1 hour"), ("1d", "in any 1 day"),
        ("24h", "in any 1 day"), ("36h", "in any 36 hours"), ("7d", "in any 7 days"),
    ],
)  # fmt: skip
def test_in_a_sentence(text: str, words: str) -> None:
    assert parse_period(text).words == words
