"""Bugs to plant in quotas, budgets and the queue, one function each; the model must catch all.

Those that it hardly meets (a day of 25 hours takes more than a day) are under `BY_TIME`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gpuslice.broker import deadline, queue, watch
from gpuslice.broker import grant as grant_module
from gpuslice.ledger import billing, corrections, counters, credit, idempotency, segments
from gpuslice.quotas import admission, periods, rules
from gpuslice.units import HOUR_US

Plant = Callable[[pytest.MonkeyPatch], None]


def _admission_skips_the_groups_total(patch: pytest.MonkeyPatch) -> None:
    """Only the user's own limits are looked at."""
    patch.setattr(rules, "_totals", lambda *_: ())


def _holding(**other: int) -> Any:
    """The counters, with something else in place of what is held."""
    real = counters.held_by
    return _With(
        counters,
        held_by=lambda *given: {key: replace(one, **other) for key, one in real(*given).items()},
    )


def _guard_without_held(patch: pytest.MonkeyPatch) -> None:
    """What others have reserved does not count."""
    patch.setattr(admission, "counters", _holding(held_u=0, held_gpu_us=0))
    patch.setattr(admission, "_guards", lambda check: [])


def _active_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Limits on slices at a time look at nothing."""
    patch.setattr(admission, "counters", _holding(active=0))
    patch.setattr(admission, "_guards", lambda check: [])


def _bucket_of_now(patch: pytest.MonkeyPatch) -> None:
    """Use is counted a bucket too late."""
    real = counters.bucket
    patch.setattr(counters, "bucket", lambda moment: real(moment) + counters.BUCKET_US)


def _legs_not_split(patch: pytest.MonkeyPatch) -> None:
    """What the first credit cannot cover is owed, though there is another."""
    real = credit.Purse.usable
    patch.setattr(credit.Purse, "usable", lambda *given: real(*given)[:1])


def _hold_leaked_at_end(patch: pytest.MonkeyPatch) -> None:
    """What was reserved is never given back."""
    patch.setattr(billing, "close_hold", lambda session, lease, *, now: None)


def _deadline_ignores_other_leases(patch: pytest.MonkeyPatch) -> None:
    """A budget is taken to last as if nobody else drew on it."""
    real = watch._used_up

    def used_up(tick: Any, lease: Any, rule: Any) -> Any:
        alone = dict.fromkeys(tick.per_hour, 0)
        for kind, rate in (
            ("money", tick.rate(lease)),
            ("gpu-hours", lease.gpu_milli * HOUR_US // 1000),
        ):
            for account_id in tick.chains[lease.id]:
                alone[kind, account_id] = rate
        return real(replace(tick, per_hour=alone), lease, rule)

    patch.setattr(watch, "_used_up", used_up)


def _unbilled_time_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """While it runs only what is billed counts, so a budget lasts up to an hour longer."""
    real = watch._read

    def read(*given: Any) -> Any:
        tick = real(*given)
        tick.unbilled.clear()
        return tick

    patch.setattr(watch, "_read", read)


def _grace_skipped(patch: pytest.MonkeyPatch) -> None:
    """What is found to be over ends at once."""
    patch.setattr(
        deadline, "next_deadline", lambda found, told, guaranteed_us, now, grace_us: found
    )


def _grace_begins_anew(patch: pytest.MonkeyPatch) -> None:
    """Every look gives another grace, so nothing ever ends."""
    real = deadline.next_deadline
    patch.setattr(
        deadline,
        "next_deadline",
        lambda found, told, guaranteed_us, now, grace_us: real(
            found, None, guaranteed_us, now, grace_us
        ),
    )


def _safe_hold_stopped(patch: pytest.MonkeyPatch) -> None:
    """A lease whose whole cost is reserved is treated as any other."""
    real = watch._used_up
    ends = watch._ends

    def all_ends(tick: Any, lease: Any, holding: Any) -> Any:
        yield from ends(tick, lease, holding)
        if lease.hold_kind == "safe":
            for rule in holding.rules:
                if rule.kind in ("money", "gpu-hours"):
                    yield from real(tick, lease, rule)

    patch.setattr(watch, "_ends", all_ends)
    patch.setattr(watch, "_aside_us", lambda lease: 0)


def _refund_not_counted(patch: pytest.MonkeyPatch) -> None:
    """What goes back still counts as used."""
    patch.setattr(corrections, "counters", _With(counters, spend=lambda *_: None))


def _expired_credit_pays(patch: pytest.MonkeyPatch) -> None:
    """An expiry is written down and never looked at."""
    real, left = credit.Purse.usable, credit.left_of_each
    patch.setattr(credit.Purse, "usable", lambda purse, ids, at: real(purse, ids, 0))
    patch.setattr(credit, "left_of_each", lambda session, ids, at: left(session, ids, 0))


def _offer_does_not_hold(patch: pytest.MonkeyPatch) -> None:
    """What is offered is not reserved on the device, so somebody else may take it."""
    real = queue.grant

    def grant(session: Any, *given: Any, **more: Any) -> Any:
        lease = real(session, *given, **more)
        grant_module.release_claims(session, lease.id)
        return lease

    patch.setattr(queue, "grant", grant)


def _offer_without_limits(patch: pytest.MonkeyPatch) -> None:
    """Whose turn has come gets the slice, whatever the limits say by now."""
    real, place = queue.grant, queue._place_in_line

    def grant(*given: Any, **more: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(admission.Verdict, "ok", property(lambda self: True))
            inner.setattr(admission, "_guards", lambda check: [])
            return real(*given, **more)

    patch.setattr(queue, "grant", grant)
    patch.setattr(queue, "_place_in_line", lambda *given: (place(*given)[0], None))


def _rolling_window_too_short(patch: pytest.MonkeyPatch) -> None:
    """A rolling window forgets hours too early."""
    real = periods.window

    def window(period: Any, zone: Any, now: int) -> Any:
        found = real(period, zone, now)
        if period.kind != "rolling":
            return found
        return replace(found, start_us=found.start_us + 2 * HOUR_US)

    for module in (admission, watch):
        patch.setattr(module, "window", window)


def _wrong_zone(patch: pytest.MonkeyPatch) -> None:
    """A day begins at midnight UTC, whatever zone the policy names."""
    for module in (admission, watch):
        patch.setattr(module, "zone_of", lambda name: periods.ZoneInfo("UTC"))


def _day_of_24_hours(patch: pytest.MonkeyPatch) -> None:
    """Tomorrow is taken to begin 24 hours after today did."""
    real = periods.window

    def window(period: Any, zone: Any, now: int) -> Any:
        found = real(period, zone, now)
        if period.kind != "day":
            return found
        start = found.start_us
        if now - start >= 24 * HOUR_US:
            start += 24 * HOUR_US
        return periods.Window(start, start + 24 * HOUR_US)

    for module in (admission, watch):
        patch.setattr(module, "window", window)


def _no_cut_at_midnight(patch: pytest.MonkeyPatch) -> None:
    """Segments are cut at full hours only: half an hour is billed to the wrong day."""
    patch.setattr(segments, "days", lambda *_: ())


def _key_without_effect(patch: pytest.MonkeyPatch) -> None:
    """An idempotency key is never claimed."""
    patch.setattr(idempotency, "claim", lambda *_: None)


def _price_of_now_for_all(patch: pytest.MonkeyPatch) -> None:
    """A new price is taken for time that has passed."""
    patch.setattr(segments, "rate_at", lambda known, moment: known[-1])


class _With:
    """A module with some of its functions replaced, for those who call it through its name."""

    def __init__(self, module: Any, **changed: Any) -> None:
        self.__dict__.update(vars(module) | changed)


MUTANTS: dict[str, Plant] = {
    plant.__name__.removeprefix("_"): plant
    for plant in (
        _admission_skips_the_groups_total,
        _guard_without_held,
        _active_is_not_counted,
        _bucket_of_now,
        _legs_not_split,
        _hold_leaked_at_end,
        _deadline_ignores_other_leases,
        _unbilled_time_is_forgotten,
        _grace_skipped,
        _grace_begins_anew,
        _safe_hold_stopped,
        _refund_not_counted,
        _expired_credit_pays,
        _offer_does_not_hold,
        _offer_without_limits,
        _key_without_effect,
        _price_of_now_for_all,
    )
}

#: Caught by the tests of time, which plant them themselves.
BY_TIME: dict[str, Plant] = {
    "day_of_24_hours": _day_of_24_hours,
    "no_cut_at_midnight": _no_cut_at_midnight,
    "rolling_window_too_short": _rolling_window_too_short,
    "wrong_zone": _wrong_zone,
}
