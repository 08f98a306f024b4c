"""Reservations as administrators make, change, cancel and look at them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker import reserved
from gpuslice.broker.core import Core
from gpuslice.broker.grant import GrantRules, slice_type_of
from gpuslice.broker.reservationviews import (
    WEEKDAYS,
    AddReservation,
    CancelReservation,
    ChangeReservation,
    ReservationView,
    Terms,
    TimeView,
)
from gpuslice.broker.snapshot import ceilings, fleet_snapshot
from gpuslice.errors import Refused
from gpuslice.ledger.tables import Account, Audit, Reservation
from gpuslice.placement import FleetSnapshot
from gpuslice.placement.fleets import Rules
from gpuslice.placement.reserved import Keep, empty, missing
from gpuslice.quotas import policies
from gpuslice.quotas.windows import Stretch, current_and_next, stretches

#: So many next times are shown, and so many are looked at for others at the same time.
_SHOWN = 5
_LOOKED_AT = 30


class ReservationDesk:
    """Reads and changes reservations, each change one transaction with its audit row."""

    def __init__(self, core: Core, rules: Callable[[], GrantRules]) -> None:
        self._core = core
        self._rules = rules

    async def all(
        self, *, over: bool, limit: int, before: int | None
    ) -> tuple[list[ReservationView], int | None]:
        """Reservations, newest first, and the ``before`` of the next page (None at the end).

        Args:
            over: Also those that are cancelled or over.
        """

        def work(session: Session) -> tuple[list[ReservationView], int | None]:
            now = self._core.now()
            if over:
                query = sa.select(Reservation)
                if before is not None:
                    query = query.where(Reservation.id < before)
                rows = list(session.scalars(query.order_by(Reservation.id.desc()).limit(limit + 1)))
            else:
                rows = [
                    row for row in reversed(reserved.current(session, now))
                    if (before is None or row.id < before) and _next(row, now, 1)
                ]  # fmt: skip
            views = [self._view(session, row, now) for row in rows[:limit]]
            return views, rows[limit - 1].id if len(rows) > limit else None

        return await self._core.serve_read(work)

    async def one(self, reservation_id: int) -> ReservationView:
        """One reservation, also if it is over.

        Raises:
            Refused: ``no-such-reservation``.
        """

        def work(session: Session) -> ReservationView:
            return self._view(session, _get(session, reservation_id), self._core.now())

        return await self._core.serve_read(work)

    async def add(self, body: AddReservation, actor: str) -> ReservationView:
        """Reserve slices; the answer's warnings say what the fleet cannot hold.

        Raises:
            Refused: there is no such slice type, or no time at which it would hold.
        """

        def work(session: Session, now: int) -> ReservationView:
            row = Reservation(
                account_id=policies.account_of(session, "group", body.group, now),
                actor=actor[:255], reason=body.reason, created_us=now,
                **self._columns(body, body.group),
            )  # fmt: skip
            self._check(row, now)
            session.add(row)
            session.flush()
            _audit(session, row, "reservation.add", None, actor, body.reason, now)
            return self._view(session, row, now)

        return await self._core.serve_write(work)

    async def change(
        self, reservation_id: int, body: ChangeReservation, actor: str
    ) -> ReservationView:
        """Replace what it says from now on.

        Raises:
            Refused: unknown, cancelled, changed in the meantime, or as for `add`.
        """

        def work(session: Session, now: int) -> ReservationView:
            row = _get(session, reservation_id)
            _may_change(row, body.version)
            before = _json(row)
            label = session.scalar(sa.select(Account.label).where(Account.id == row.account_id))
            for name, value in self._columns(body, label or "").items():
                setattr(row, name, value)
            self._check(row, now)
            row.version += 1
            row.actor, row.reason = actor[:255], body.reason
            session.flush()
            _audit(session, row, "reservation.change", before, actor, body.reason, now)
            return self._view(session, row, now)

        return await self._core.serve_write(work)

    async def cancel(
        self, reservation_id: int, body: CancelReservation, actor: str
    ) -> ReservationView:
        """From now on it holds nothing.

        Raises:
            Refused: unknown, cancelled already, or changed in the meantime.
        """

        def work(session: Session, now: int) -> ReservationView:
            row = _get(session, reservation_id)
            _may_change(row, body.version)
            before = _json(row)
            row.cancelled_us = now
            row.version += 1
            session.flush()
            _audit(session, row, "reservation.cancel", before, actor, body.reason, now)
            return self._view(session, row, now)

        return await self._core.serve_write(work)

    # --- helpers -----------------------------------------------------------------------------

    def _columns(self, terms: Terms, group: str) -> dict[str, Any]:
        wanted = slice_type_of(terms.slice, self._rules().catalogue)
        days = {WEEKDAYS.index(day) for day in terms.weekdays} or set(range(7))
        return {
            "title": terms.title or f"group {group}"[:255], "slice_type": wanted.name,
            "count": terms.count, "timezone": terms.timezone, "first_day": terms.first_day,
            "last_day": terms.last_day, "weekdays": "".join(map(str, sorted(days))),
            "from_time": terms.from_time, "til_time": terms.til_time,
            "notice_us": terms.notice_us,
        }  # fmt: skip

    def _check(self, row: Reservation, now: int) -> None:
        if not _next(row, now, 1):
            raise Refused(
                "never-holds",
                "There is no time at which this would hold: look at its days, its weekdays and "
                "that they are not over.",
                status=422,
            )

    def _view(self, session: Session, row: Reservation, now: int) -> ReservationView:
        live = row.cancelled_us is None
        label = session.scalar(sa.select(Account.label).where(Account.id == row.account_id))
        coming = _next(row, now, _SHOWN) if live else []
        return ReservationView(
            reservation_id=row.id, group=label or "", slice=row.slice_type, count=row.count,
            title=row.title, timezone=row.timezone, first_day=row.first_day,
            last_day=row.last_day, weekdays=[WEEKDAYS[int(digit)] for digit in row.weekdays],
            from_time=row.from_time, til_time=row.til_time, notice_us=row.notice_us,
            version=row.version, actor=row.actor, reason=row.reason, created_us=row.created_us,
            cancelled_us=row.cancelled_us,
            next=[_time_view(row, one) for one in coming],
            warnings=self._warnings(session, row, now) if coming else [],
        )  # fmt: skip

    def _warnings(self, session: Session, row: Reservation, now: int) -> list[str]:
        """What the whole fleet could not hold, even if nobody else had anything."""
        rules = self._rules()
        wanted = rules.catalogue.get(row.slice_type)
        if wanted is None:
            return [f"There is no slice {row.slice_type} on offer now, so nothing is kept."]
        fleet: FleetSnapshot = empty(fleet_snapshot(session, rules.host_reserve_ram))
        placing = Rules(rules.reserve_bytes, ceilings(session))

        def keep(one: Reservation) -> Keep | None:
            of_type = rules.catalogue.get(one.slice_type)
            return None if of_type is None else Keep(str(one.id), of_type, one.count, 0, 1)

        alone = missing(fleet, [Keep("", wanted, row.count, 0, 1)], placing)
        if alone:
            holds = row.count - alone
            return [f"The whole fleet holds {holds} of {row.count} {row.slice_type} as it is now."]
        others = [one for one in reserved.current(session, now) if one.id != row.id]
        for time in _next(row, now, _LOOKED_AT):
            at_once = [row, *(one for one in others if _overlaps(one, time))]
            keeps = [found for one in at_once if (found := keep(one)) is not None]
            short = missing(fleet, keeps, placing)
            if short:
                titles = ", ".join(one.title for one in at_once[1:])
                said = f"{reserved.when(time, row.timezone)}: together with {titles}"
                return [f"{said} {short} more are reserved than the fleet holds."]
        return []


def _next(row: Reservation, now: int, most: int) -> list[Stretch]:
    return current_and_next(reserved.schedule_of(row), now, most)


def _overlaps(row: Reservation, time: Stretch) -> bool:
    found = stretches(reserved.schedule_of(row), time.start_us, time.til_us)
    return next(found, None) is not None


def _time_view(row: Reservation, one: Stretch) -> TimeView:
    return TimeView(
        from_us=one.start_us, til_us=one.til_us, text=reserved.when(one, row.timezone)
    )  # fmt: skip


def _get(session: Session, reservation_id: int) -> Reservation:
    found = session.get(Reservation, reservation_id, populate_existing=True)
    if found is None:
        raise Refused("no-such-reservation", "There is no such reservation.", status=404)
    return found


def _may_change(row: Reservation, version: int) -> None:
    if row.cancelled_us is not None:
        raise Refused("already-over", "This reservation is cancelled.", status=409)
    if row.version != version:
        raise Refused(
            "stale-version",
            f"This reservation was changed by somebody else in the meantime (it is at version "
            f"{row.version}); look at it again.",
            status=409,
        )


def _json(row: Reservation) -> str:
    said = (
        "title", "slice_type", "count", "timezone", "first_day", "last_day", "weekdays",
        "from_time", "til_time", "notice_us",
    )  # fmt: skip
    return json.dumps({name: getattr(row, name) for name in said})


def _audit(
    session: Session, row: Reservation, action: str, before: str | None, actor: str, reason: str,
    now: int,
) -> None:  # fmt: skip
    session.add(
        Audit(
            at_us=now, actor=actor[:255], action=action, subject=f"reservation {row.id}",
            before=before, after=None if row.cancelled_us is not None else _json(row),
            reason=reason,
        )
    )  # fmt: skip
    session.flush()
