"""The order of the queue: pure arithmetic on what groups and users have used, no I/O.

As batch schedulers do it: what was used counts half after each half-life, whoever's group has used
least is served first, within a group whoever has; a higher priority goes before all of that. Who
has waited longest wins a tie, and nobody waits for ever: after a while a request counts as if
nothing had been used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpuslice.units import HOUR_US

HALF_LIFE_US = 7 * 24 * HOUR_US
#: After so long a request is served before all others of its priority, the longest waiting first.
AGED_US = 24 * HOUR_US
#: Older use is less than a thousandth of what it was.
FORGOTTEN_US = 10 * HALF_LIFE_US


@dataclass(frozen=True)
class Place:
    """What the order of a request depends on. ``group_id`` None: charged to no group.

    ``longest_us`` does not count for it: so long it runs at most, if that is certain. ``later``:
    of an account that lately let offers go, so that others of its priority are served first.
    """

    request_id: str
    account_id: int
    group_id: int | None
    priority: int
    created_us: int
    longest_us: int | None = None
    later: bool = False


def decayed(buckets: Iterable[tuple[int, int]], now: int) -> float:
    """GPU time or money used, each part halved for every half-life since: Σ x · 2^(−age/h).

    Args:
        buckets: Start (UTC microseconds) and amount of each quarter of an hour.
    """
    return sum(
        amount * math.exp2(-max(0, now - start) / HALF_LIFE_US)
        for start, amount in buckets
        if now - start <= FORGOTTEN_US
    )


def in_order(places: Sequence[Place], used: Mapping[int, float], now: int) -> list[Place]:
    """The requests in the order in which they are served.

    Args:
        used: Decayed use by account; one that is missing has used nothing. A user of no group
            stands for a group of their own.
    """

    def key(place: Place) -> tuple[int, bool, bool, float, float, int, str]:
        aged = now - place.created_us >= AGED_US
        of_group = used.get(place.account_id if place.group_id is None else place.group_id, 0.0)
        of_user = used.get(place.account_id, 0.0)
        if aged:
            of_group = of_user = 0.0
        order = (not aged, of_group, of_user, place.created_us, place.request_id)
        return -place.priority, place.later, *order

    return sorted(places, key=key)
