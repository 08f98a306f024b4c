"""Who is served first: fair by what was used, by priority before that, and nobody for ever last."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gpuslice.broker.queueorder import AGED_US, HALF_LIFE_US, Place, decayed, in_order

NOW = 1_790_000_000_000_000


def test_use_counts_half_after_each_half_life() -> None:
    buckets = [(NOW, 8), (NOW - HALF_LIFE_US, 8), (NOW - 3 * HALF_LIFE_US, 8)]
    assert decayed(buckets, NOW) == pytest.approx(8 + 4 + 1)
    assert decayed([(NOW - 11 * HALF_LIFE_US, 10**9)], NOW) == 0
    # A clock that went back makes no use count more than it was.
    assert decayed([(NOW + HALF_LIFE_US, 8)], NOW) == 8


def test_group_before_user_before_age() -> None:
    light, heavy = 100, 200
    places = [
        Place("heavy group, new user", 1, heavy, 0, NOW - 90),
        Place("light group, heavy user", 2, light, 0, NOW - 80),
        Place("light group, light user, later", 3, light, 0, NOW - 60),
        Place("light group, light user", 4, light, 0, NOW - 70),
        Place("urgent", 5, heavy, 7, NOW - 10),
        Place("of no group", 6, None, 0, NOW - 50),
    ]
    used = {light: 10.0, heavy: 20.0, 2: 9.0, 6: 15.0}
    assert [place.request_id for place in in_order(places, used, NOW)] == [
        "urgent",
        "light group, light user",
        "light group, light user, later",
        "light group, heavy user",
        "of no group",
        "heavy group, new user",
    ]


def test_nobody_waits_for_ever() -> None:
    """However many light users come, a day later it is the heavy one's turn."""
    old = Place("old", 1, None, 0, NOW - AGED_US)
    fresh = [Place(f"new {i}", 10 + i, None, 0, NOW) for i in range(5)]
    assert in_order([*fresh, old], {1: 1e18}, NOW)[0] is old
    assert in_order([*fresh, old], {1: 1e18}, NOW - 1)[0] is not old


rows_ = st.lists(
    st.tuples(
        st.integers(0, 5), st.integers(0, 3), st.integers(-2, 2),
        st.integers(NOW - 2 * AGED_US, NOW),
    ),
    max_size=12,
)  # fmt: skip


@given(rows_, st.randoms())
def test_the_order_does_not_depend_on_how_it_was_read(rows, shuffler) -> None:  # type: ignore[no-untyped-def]
    places = [Place(str(i), a, 100 + g or None, p, c) for i, (a, g, p, c) in enumerate(rows)]
    used = {a: float(a) for a in range(6)} | {100 + g: float(3 - g) for g in range(4)}
    shuffled = list(places)
    shuffler.shuffle(shuffled)
    assert in_order(shuffled, used, NOW) == in_order(places, used, NOW)
