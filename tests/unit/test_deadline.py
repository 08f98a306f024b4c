"""When leases end and what is said before: never without notice, never later than promised."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from gpuslice.broker.deadline import (
    Draw,
    next_deadline,
    percent_reached,
    used_up_at,
    warning,
)
from gpuslice.units import HOUR_US, MINUTE_US

NOW = 1_790_000_000_000_000
GRACE = 2 * MINUTE_US
moments = st.integers(NOW - HOUR_US, NOW + 10 * HOUR_US)
maybe = st.one_of(st.none(), moments)


@given(left=st.integers(1, 10**12), per_hour=st.integers(1, 10**9))
def test_a_budget_lasts_as_long_as_it_pays_for(left: int, per_hour: int) -> None:
    at = used_up_at(Draw(left, per_hour), NOW)
    assert at is not None
    used = per_hour * (at - NOW) // HOUR_US
    assert used <= left < used + per_hour // HOUR_US + 2


def test_what_resets_first_ends_nothing() -> None:
    assert used_up_at(Draw(10, 10, NOW + 2 * HOUR_US), NOW) == NOW + HOUR_US
    assert used_up_at(Draw(10, 10, NOW + HOUR_US), NOW) is None
    assert used_up_at(Draw(10, 0), NOW) is None
    assert used_up_at(Draw(0, 0), NOW) == NOW


@given(found=maybe, told=maybe, guaranteed=maybe)
def test_no_lease_ends_without_notice(
    found: int | None, told: int | None, guaranteed: int | None
) -> None:
    at = next_deadline(found, told, guaranteed, NOW, GRACE)
    if found is None:
        assert at is None
        return
    assert at is not None and at >= found
    assert guaranteed is None or at >= guaranteed
    # Either its user was told of a time as early, or has the grace.
    assert at >= NOW + GRACE or (told is not None and at >= told)
    # And it ends as soon as it may.
    assert at <= max(found, guaranteed or 0, NOW + GRACE)


def test_warnings_come_once_and_again_after_an_extension() -> None:
    end = NOW + 30 * MINUTE_US
    given_at = []
    warned = None
    for minute in range(30):
        due, warned = warning(end, warned, NOW + minute * MINUTE_US)
        if due is not None:
            given_at.append((minute, due))
    assert given_at == [(20, 10), (28, 2)]
    due, warned = warning(end + HOUR_US, warned, NOW + 29 * MINUTE_US)
    assert (due, warned) == (None, None)
    assert warning(end + HOUR_US, warned, end + 50 * MINUTE_US) == (10, 10)


def test_a_late_look_gives_the_nearest_warning_only() -> None:
    assert warning(NOW + MINUTE_US, None, NOW) == (2, 2)
    assert warning(NOW + MINUTE_US, 10, NOW) == (2, 2)


def test_parts_of_a_limit() -> None:
    assert [percent_reached(used, 100) for used in (0, 79, 80, 94, 95, 200)] == [
        None, None, 80, 80, 95, 95,
    ]  # fmt: skip
    assert percent_reached(5, 0) is None
