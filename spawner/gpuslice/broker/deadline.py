"""When a running lease must end, and what its user is told before: pure arithmetic, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from gpuslice.units import HOUR_US, MINUTE_US

#: Minutes before the end at which the user is told, the first one first.
WARN_MINUTES = (10, 2)
#: Parts of a limit, in percent, at which the user is told.
WARN_PERCENT = (80, 95)


@dataclass(frozen=True)
class Draw:
    """A limit and how fast it is used up: units, and units per hour of all who draw on it.

    ``resets_us``: from then on it counts anew, so it ends nothing after that.
    """

    left: int
    per_hour: int
    resets_us: int | None = None


def used_up_at(draw: Draw, now: int) -> int | None:
    """When nothing is left if all go on like this; None: never, or not before it resets."""
    if draw.left <= 0:
        return now
    if draw.per_hour <= 0:
        return None
    at = now + draw.left * HOUR_US // draw.per_hour
    return None if draw.resets_us is not None and at >= draw.resets_us else at


def next_deadline(
    found: int | None, told: int | None, guaranteed_us: int | None, now: int, grace_us: int
) -> int | None:
    """The deadline from now on: what was found, but never without notice.

    A deadline that comes nearer (a limit was lowered, somebody else draws on the same budget)
    leaves at least ``grace_us``, unless its user was already told of an earlier one.

    Args:
        found: What the limits say now; None: nothing ends it.
        told: The deadline that held so far.
        guaranteed_us: An administrator's word that it goes on until then.
    """
    if found is None:
        return None
    found = max(found, guaranteed_us or 0)
    soonest = now + grace_us
    if told is not None:
        soonest = min(soonest, told)
    return max(found, soonest)


def warning(deadline_us: int, warned: int | None, now: int) -> tuple[int | None, int | None]:
    """Which warning is due now (minutes), and which was given last.

    A deadline that moved away re-arms the warnings it has left behind.
    """
    left = deadline_us - now
    reached = [minutes for minutes in WARN_MINUTES if left <= minutes * MINUTE_US]
    if not reached:
        return None, None
    nearest = reached[-1]
    if warned is not None and warned <= nearest:
        return None, nearest
    return nearest, nearest


def percent_reached(used: int, limit: int) -> int | None:
    """The highest of `WARN_PERCENT` that is reached; None: none, or nothing to reach."""
    if limit <= 0:
        return None
    reached = [percent for percent in WARN_PERCENT if used * 100 >= limit * percent]
    return reached[-1] if reached else None
