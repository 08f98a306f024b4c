"""Who has used what and which limits bind: told from facts only, apart from the code under test.

Reads leases, prices, policies, corrections as they were written down, and adds up by itself: none
of `gpuslice.quotas`, no projection and no segment. "Surely" and "maybe" are the two ends of what
cannot be known to the microsecond, such as what leaves a rolling window.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from gpuslice.ledger.tables import (
    AccountName,
    CreditGrant,
    Entry,
    Lease,
    Policy,
    Price,
    Segment,
)

HOUR = 3_600_000_000
HORIZON = 600_000_000
#: A rolling window drops whole hours, and they are counted by their quarters.
ROLLS = HOUR + HOUR // 4
MILLI = {"cpu": 0, "whole": 1000, "half": 500, "quarter": 250}
OVER = ("ended", "cancelled")
HOLDING = ("granted", "running", "stopping", "revoking")
FOREVER = 1 << 62


@dataclass(frozen=True)
class Limit:
    """One limit of one account; ``amount`` in slices, microseconds of GPU, or micro-units."""

    kind: str
    account: str
    amount: int
    per: str = "life"
    zone: str = "UTC"


@dataclass(frozen=True)
class Back:
    """Money that went back, and when what it corrects was used."""

    lease_id: str
    at_us: int
    amount_u: int


def start_of(per: str, zone: str, now: int, surely: bool) -> int:
    """From when on use counts at ``now``."""
    if per == "life":
        return 0
    if per.endswith("h"):
        return now - int(per[:-1]) * HOUR + (ROLLS if surely else 0)
    place = ZoneInfo(zone)
    day = datetime.fromtimestamp(now / 1e6, place).replace(tzinfo=None)
    day = day.replace(hour=0, minute=0, second=0, microsecond=0)
    if per == "week":
        day -= timedelta(days=day.weekday())
    return int(day.replace(tzinfo=place).timestamp()) * 1_000_000


class Books:
    """All facts of one moment. ``chains``: whom the model knows each lease to count for."""

    def __init__(self, connection: sa.Connection, chains: dict[str, tuple[str, ...]]) -> None:
        self.chains = chains
        self.leases = {
            row.id: row
            for row in connection.execute(sa.select(Lease).order_by(Lease.granted_us, Lease.id))
        }
        self.prices: dict[str, list[tuple[int, int]]] = {}
        for row in connection.execute(sa.select(Price).order_by(Price.effective_from_us)):
            known = self.prices.setdefault(row.slice_type, [])
            known.append((row.effective_from_us, row.rate_u_per_hour))
        names = connection.execute(
            sa.select(AccountName.account_id, AccountName.source, AccountName.name)
        )
        #: As ``user:ada``.
        self.names = {one.account_id: f"{one.source.split(':')[-1]}:{one.name}" for one in names}
        self.policies = connection.execute(sa.select(Policy).order_by(Policy.version)).all()
        self.credits = connection.execute(sa.select(CreditGrant)).all()
        paid = sa.orm.aliased(Entry)
        self.back = [
            Back(*row)
            for row in connection.execute(
                sa.select(Segment.lease_id, Segment.from_us, Entry.amount_u)
                .join(paid, paid.id == Entry.corrects_id)
                .join(Segment, Segment.id == paid.segment_id)
                .where(Entry.kind == "refund")
            )
        ]

    # --- limits ---------------------------------------------------------------------------------

    def document(self, subject: str, moment: int | None = None) -> dict[str, Any]:
        """What a policy says now, or said at a moment."""
        found = "{}"
        for row in self.policies:
            whose = "everyone" if row.account_id is None else self.names[row.account_id]
            since, til = row.valid_from_us, row.valid_til_us
            holds = til is None if moment is None else since <= moment < (til or FOREVER)
            if whose == subject and holds:
                found = row.document
        read: dict[str, Any] = json.loads(found)
        return read

    def said(self, chain: tuple[str, ...], key: str, moment: int | None = None) -> tuple[Any, str]:
        """What the nearest word for each says under a key, and its time zone."""
        for subject in (*chain, "everyone"):
            document = self.document(subject, moment)
            value = document.get("each", {}).get(key)
            if value not in (None, [], {}):
                return value, document.get("timezone", "UTC")
        return None, "UTC"

    def limits(
        self, chain: tuple[str, ...], slice_type: str, moment: int | None = None
    ) -> Iterator[Limit]:
        user = chain[0]
        for key in ("slices", "slices_by_type", "gpu_hours", "money", "prepaid"):
            value, zone = self.said(chain, key, moment)
            yield from _limits(key, value, user, zone, slice_type)
        for group in chain[1:]:
            document = self.document(group, moment)
            zone = document.get("timezone", "UTC")
            for key, value in (document.get("total") or {}).items():
                yield from _limits(key, value, group, zone, slice_type)

    def allowed(self, chain: tuple[str, ...], slice_type: str, moment: int | None = None) -> bool:
        types, _ = self.said(chain, "slice_types", moment)
        return types is None or types == "unlimited" or slice_type in types

    # --- use ------------------------------------------------------------------------------------

    def rate(self, slice_type: str, moment: int) -> int:
        return next(r for since, r in reversed(self.prices[slice_type]) if since <= moment)

    def cost(self, lease: Any, from_us: int, til_us: int) -> int:
        """What a stretch of a lease costs: cumulative, so the parts of a whole sum to it."""
        known, total = self.prices[lease.slice_type], 0
        for number, (since, rate) in enumerate(known):
            following = known[number + 1][0] if number + 1 < len(known) else FOREVER
            anchor = max(lease.started_us, since)
            a, b = max(from_us, anchor), min(til_us, following)
            if a < b:
                total += rate * (b - anchor) // HOUR - rate * (a - anchor) // HOUR
        return total

    def user_time(self, lease: Any) -> tuple[int, int]:
        """The stretch of a lease that its user pays for, as far as it was seen."""
        if lease.started_us is None:
            return 0, 0
        start = lease.started_us
        if lease.open_before_us is not None:
            if lease.opened_us is None:
                return start, start
            start = max(start, lease.opened_us)
        marks = (lease.covered_us, lease.stop_requested_us, lease.absorbed_from_us)
        return start, max(start, min(mark for mark in marks if mark is not None))

    def of(self, account: str) -> list[Any]:
        return [one for one in self.leases.values() if account in self.chains.get(one.id, ())]

    def used(self, limit: Limit, now: int, *, surely: bool) -> int:
        """What counts already under a limit on money or GPU time."""
        since = start_of(limit.per, limit.zone, now, surely)
        total = 0
        for lease in self.of(limit.account):
            start, til = self.user_time(lease)
            start = max(start, since)
            if start >= til:
                continue
            if limit.kind == "gpu-hours":
                total += (til - start) * MILLI[lease.slice_type] // 1000
            else:
                total += self.cost(lease, start, til)
        if limit.kind != "gpu-hours":
            begin = start_of(limit.per, limit.zone, now, not surely)
            ids = {lease.id for lease in self.of(limit.account)}
            total -= sum(b.amount_u for b in self.back if b.lease_id in ids and b.at_us >= begin)
        return total

    def held(self, limit: Limit, *, surely: bool) -> int:
        """What is reserved; at most: with the last hour, which may lie in another period."""
        total = 0
        for lease in self.of(limit.account):
            if lease.state not in HOLDING:
                continue
            ahead, last = self._ahead(lease)
            if not surely and lease.covered_us is not None:
                ahead += min(HOUR, lease.covered_us - lease.started_us)
            if limit.kind == "gpu-hours":
                total += ahead * MILLI[lease.slice_type] // 1000
            else:
                total += self.rate(lease.slice_type, last) * ahead // HOUR
        return total

    def aside(self, limit: Limit, *, surely: bool) -> int:
        """What safe leases have set aside; at most: those that were just told to end, too."""
        total = 0
        for lease in self.of(limit.account):
            safe = lease.hold_kind == "safe" and lease.declared_us is not None
            ending = lease.stop_requested_us is not None or lease.state not in HOLDING[:2]
            if not safe or lease.state not in HOLDING or (surely and ending):
                continue
            ran = 0 if lease.covered_us is None else lease.covered_us - lease.started_us
            rest = max(0, lease.declared_us - ran)
            if limit.kind == "gpu-hours":
                total += rest * MILLI[lease.slice_type] // 1000
            else:
                last = lease.covered_us or lease.granted_us
                total += self.rate(lease.slice_type, last) * rest // HOUR
        return total

    def _ahead(self, lease: Any) -> tuple[int, int]:
        """How much time a lease has reserved, and at the price of when."""
        rolling = lease.hold_kind != "safe" or lease.declared_us is None
        if lease.covered_us is None:
            return (HORIZON if rolling else max(HORIZON, lease.declared_us)), lease.granted_us
        if rolling:
            return HORIZON, lease.covered_us
        ran = lease.covered_us - lease.started_us
        return max(0, max(HORIZON, lease.declared_us) - ran), lease.covered_us

    def active(self, limit: Limit) -> list[Any]:
        """The live leases that count for a limit on slices, oldest first."""
        of_type = limit.kind.partition("/")[2]
        return [
            one
            for one in self.of(limit.account)
            if one.state not in OVER and of_type in ("", one.slice_type)
        ]

    def credit(self, account: str, now: int, *, surely_gone: bool) -> int:
        """What credit is left: at most (``surely_gone``: more cannot be), or at least."""
        spent = self.used(Limit("credit", account, 0), now, surely=True)
        mine = [one for one in self.credits if self.names[one.account_id] == account]
        good = [one for one in mine if one.expires_us is None or one.expires_us > now]
        total = sum(one.amount_u for one in good)
        if surely_gone:
            gone = sum(one.amount_u for one in mine) - total
            return total - max(0, spent - gone)
        return total - spent


def _limits(key: str, value: Any, account: str, zone: str, slice_type: str) -> Iterator[Limit]:
    if key == "slices" and isinstance(value, int):
        yield Limit("slices", account, value)
    elif key == "slices_by_type" and isinstance((value or {}).get(slice_type), int):
        yield Limit(f"slices/{slice_type}", account, value[slice_type])
    elif key in ("gpu_hours", "money"):
        for one in value or []:
            if one["at_most"] == "unlimited":
                continue
            unit = HOUR if key == "gpu_hours" else 1_000_000
            kind = "gpu-hours" if key == "gpu_hours" else "money"
            per = one["per"]
            per = f"{int(per[:-1]) * 24}h" if per[0].isdigit() and per[-1] == "d" else per
            yield Limit(kind, account, int(Decimal(one["at_most"]) * unit), per, zone)
    elif key == "prepaid" and value:
        yield Limit("credit", account, 0)
