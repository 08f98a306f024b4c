"""Prices: effective-dated rows that are never changed, and which one holds when."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger.tables import Lease, Price

DEFAULT_LIST = "default"
#: How the actor of a price from gpuslice.toml begins.
SETTINGS = "settings:"


@dataclass(frozen=True)
class Rate:
    """A price as the billing needs it: micro-units per hour, from a moment on (UTC us)."""

    price_id: int
    from_us: int
    rate_u_per_hour: int


class NoPriceError(Exception):
    """A slice type has no price at all; nothing is granted or billed without one."""


_RATES = (
    sa.select(Price.id, Price.effective_from_us, Price.rate_u_per_hour)
    .where(
        Price.price_list == sa.bindparam("price_list"),
        Price.slice_type == sa.bindparam("slice_type"),
    )
    .order_by(Price.effective_from_us)
)


def rates(session: Session, price_list: str, slice_type: str) -> list[Rate]:
    """All prices of a slice type, oldest first."""
    rows = session.execute(_RATES, {"price_list": price_list, "slice_type": slice_type})
    return [Rate(*row) for row in rows]


class Rates:
    """The prices of many leases, each slice type's read once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[tuple[str, str], list[Rate]] = {}

    def of(self, lease: Lease) -> list[Rate]:
        """`rates` for a lease."""
        key = (lease.price_list, lease.slice_type)
        if key not in self._known:
            self._known[key] = rates(self._session, *key)
        return self._known[key]


def rate_at(known: list[Rate], moment: int) -> Rate:
    """The price that holds at ``moment``; the first one holds for all that is before it, too.

    A clock that was set back soon after the first start says such moments, and one lease that
    cannot be priced would keep all others from being billed.

    Raises:
        NoPriceError: there is none.
    """
    if not known:
        raise NoPriceError("there is no price")
    holding = [rate for rate in known if rate.from_us <= moment]
    return holding[-1] if holding else known[0]


def anchor_us(known: list[Rate], rate: Rate, started_us: int) -> int:
    """From when on a price holds for what began at ``started_us``."""
    return started_us if rate == known[0] else max(started_us, rate.from_us)


def changes(known: list[Rate]) -> list[int]:
    """The moments at which another price begins."""
    return [b.from_us for _, b in pairwise(known)]


def set_price(
    session: Session,
    slice_type: str,
    rate_u_per_hour: int,
    *,
    now: int,
    actor: str,
    price_list: str = DEFAULT_LIST,
    effective_from_us: int | None = None,
) -> bool:
    """Make ``rate_u_per_hour`` the price from ``effective_from_us`` (default: now) on.

    Returns whether a row was written: the price that already holds is not written again.

    Raises:
        ValueError: the moment is in the past, or another price begins at that very moment. Time
            that has passed keeps its price; only an explicit adjustment with a reason changes
            what was paid. A price announced for later stands: this one holds until then, so that
            a wrong date far away stops nobody from setting the price of tomorrow.
    """  # fmt: skip
    start = now if effective_from_us is None else effective_from_us
    if start < now:
        raise ValueError("a price cannot begin in the past; write an adjustment instead")
    known = rates(session, price_list, slice_type)
    if any(rate.from_us == start for rate in known):
        raise ValueError(
            "another price of this slice type is already set from that very moment; choose a later "
            "one"
        )
    if _rate_then(known, start) == rate_u_per_hour:
        return False
    session.add(
        Price(
            price_list=price_list, slice_type=slice_type, rate_u_per_hour=rate_u_per_hour,
            effective_from_us=start, actor=actor, created_us=now,
        )
    )  # fmt: skip
    session.flush()
    return True


def follow_settings(
    session: Session, slice_type: str, rate_u_per_hour: int, *, now: int, actor: str
) -> None:
    """Make the configured rate the price from now on if the configuration has changed.

    A price that an administrator has set since stands; one that is announced for later follows.
    """
    configured = session.scalar(
        sa.select(Price.rate_u_per_hour)
        .where(
            Price.price_list == DEFAULT_LIST, Price.slice_type == slice_type,
            Price.actor.startswith(SETTINGS),
        )
        .order_by(Price.id.desc())
        .limit(1)
    )  # fmt: skip
    if rate_u_per_hour == configured:
        return
    known = rates(session, DEFAULT_LIST, slice_type)
    # Two restarts within one tick of the clock: the next one writes it.
    if not any(rate.from_us == now for rate in known):
        set_price(session, slice_type, rate_u_per_hour, now=now, actor=actor)


def _rate_then(known: list[Rate], moment: int) -> int | None:
    """What holds at ``moment``; None: nothing does yet."""
    if not known or moment < known[0].from_us:
        return None
    return rate_at(known, moment).rate_u_per_hour
