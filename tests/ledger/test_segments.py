"""Cutting time into segments: whatever the cuts, the time is tiled and the sum is the same."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuslice.ledger.prices import NoPriceError, Rate, rate_at
from gpuslice.ledger.segments import Payers, days, hours, pieces
from gpuslice.units import HOUR_US, cost_u, from_datetime

ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"])
START = from_datetime(datetime(2026, 3, 28, 20, 0, 0, tzinfo=UTC))
DAY = 24 * HOUR_US


@given(
    started=st.integers(START, START + DAY),
    beats=st.lists(st.integers(1, 5 * HOUR_US), min_size=1, max_size=12),
    changes=st.lists(st.tuples(st.integers(START, START + 3 * DAY), st.integers(0, 10**9)),
                     max_size=3, unique_by=lambda change: change[0]),
    stop=st.one_of(st.none(), st.integers(0, 3 * DAY)),
    zone=ZONES,
)  # fmt: skip
def test_any_sequence_of_beats_bills_the_same(started, beats, changes, stop, zone):  # type: ignore[no-untyped-def]
    """Beats at any moments, then the end: tiled, and equal to billing all of it at once."""
    known = [Rate(1, START - DAY, 2_750_001)] + [
        Rate(2 + i, at, rate) for i, (at, rate) in enumerate(sorted(changes))
    ]
    stop_us = None if stop is None else started + stop
    billed, found = started, []
    moments = [started + sum(beats[: i + 1]) for i in range(len(beats))]
    for i, til in enumerate(moments):
        due = pieces(
            started_us=started, billed_us=billed, til_us=til, final=i == len(moments) - 1,
            payers=Payers(stop_us if stop_us is None or stop_us >= billed else billed),
            known=known, timezones=[zone],
        )  # fmt: skip
        found += due
        billed = due[-1].til_us if due else billed
    assert billed == moments[-1]
    at = started
    for piece in found:
        assert piece.from_us == at and piece.til_us > at
        at = piece.til_us
    assert at == moments[-1]
    for price in known:
        mine = [piece for piece in found if piece.price_id == price.price_id]
        if mine:
            origin = max(started, price.from_us)
            span = cost_u(price.rate_u_per_hour, mine[-1].til_us - origin) - cost_u(
                price.rate_u_per_hour, mine[0].from_us - origin
            )
            assert sum(piece.amount_u for piece in mine) == span
    for piece in found:
        assert piece.payer == (
            "writeoff" if stop_us is not None and piece.from_us >= stop_us else "user"
        )
        assert all(not piece.from_us < change < piece.til_us for change, _ in changes)
        assert len(list(hours(piece.from_us, piece.til_us))) == 0
        assert len(list(days(piece.from_us, piece.til_us, zone))) == 0


@pytest.mark.parametrize(
    ("day", "length"), [((2026, 3, 29), 23), ((2026, 10, 25), 25), ((2028, 2, 29), 24)]
)
def test_a_local_day_is_as_long_as_it_is(day: tuple[int, int, int], length: int) -> None:
    zone = ZoneInfo("Europe/Berlin")
    midnight = from_datetime(datetime(*day, tzinfo=zone))
    first, second = list(days(midnight - 1, midnight + 26 * HOUR_US, "Europe/Berlin"))[:2]
    assert first == midnight
    assert second - first == length * HOUR_US


def test_the_first_price_holds_for_what_is_before_it() -> None:
    known = [Rate(1, 100, 1), Rate(2, 200, 5)]
    assert [rate_at(known, moment).price_id for moment in (99, 100, 199, 200)] == [1, 1, 1, 2]
    with pytest.raises(NoPriceError):
        rate_at([], 99)


def test_what_began_before_the_first_price_is_cut_and_billed_as_any_other() -> None:
    first = Rate(1, 1_000 * HOUR_US + 40_000_000, 1_000_003)
    known = [first, Rate(2, first.from_us + 3 * HOUR_US, 500_000)]
    start, change = first.from_us - 40_000_000, known[1].from_us
    found = pieces(
        started_us=start, billed_us=start, til_us=change + HOUR_US, final=True, payers=Payers(),
        known=known, timezones=["UTC"],
    )  # fmt: skip
    assert {piece.price_id for piece in found if piece.til_us <= change} == {1}
    due = cost_u(first.rate_u_per_hour, change - start) + 500_000
    assert sum(piece.amount_u for piece in found) == due
