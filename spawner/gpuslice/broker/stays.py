"""How long slices are kept: the ends that are certain, and guesses from what was before."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger.tables import LIVE_STATES, Lease
from gpuslice.units import HOUR_US, MINUTE_US

#: Of fewer leases nothing is concluded.
ENOUGH = 5
#: What is older says little about now.
HISTORY_US = 30 * 24 * HOUR_US
#: So many of the newest leases are looked at.
_MOST = 2_000
#: Somebody who has stayed longer than usual may go at any moment; this is a polite guess.
_SOON_US = 10 * MINUTE_US


def usual_stays(session: Session, now: int) -> dict[str, int]:
    """The median time that slices of each type were kept lately; types that few had are missing."""
    rows = session.execute(
        sa.select(Lease.slice_type, Lease.started_us, Lease.finished_us)
        .where(Lease.finished_us.is_not(None), Lease.granted_us >= now - HISTORY_US)
        .order_by(Lease.granted_us.desc())
        .limit(_MOST)
    )
    found: dict[str, list[int]] = defaultdict(list)
    for slice_type, started, finished in rows:
        if started is not None and finished is not None:
            found[slice_type].append(finished - started)
    return {name: int(median(all_)) for name, all_ in found.items() if len(all_) >= ENOUGH}


def guessed_ends(session: Session, now: int) -> tuple[dict[str, int], dict[str, int]]:
    """When live leases end at the latest, and when they will probably; both by lease.

    Certain are the longest session and the time a user declared; a budget's end is not, it may be
    raised.
    """
    usual = usual_stays(session, now)
    rows = session.scalars(sa.select(Lease).where(Lease.state.in_(LIVE_STATES)))
    certain: dict[str, int] = {}
    likely: dict[str, int] = {}
    for lease in rows:
        since = lease.started_us if lease.started_us is not None else lease.granted_us
        last = min(
            (since + us for us in (lease.session_us, lease.declared_us) if us is not None),
            default=None,
        )
        if lease.stop_requested_us is not None:
            last = now + MINUTE_US
        if last is not None and lease.guaranteed_til_us is not None:
            last = max(last, lease.guaranteed_til_us)
        if last is not None:
            certain[lease.id] = last
        guess = usual.get(lease.slice_type)
        if guess is not None:
            likely[lease.id] = max(since + guess, now + _SOON_US)
        if last is not None:
            likely[lease.id] = min(last, likely.get(lease.id, last))
    return certain, likely
