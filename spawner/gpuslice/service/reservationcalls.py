"""Reservations over REST: look, reserve, change, cancel."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gpuslice.broker.reservationviews import (
    AddReservation,
    CancelReservation,
    ChangeReservation,
    ReservationView,
)
from gpuslice.service import models
from gpuslice.service.auth import Access
from gpuslice.service.calls import Call
from gpuslice.service.route import AnyRoute, Route
from gpuslice.wire import Wire

_No = models.Nothing


class ReservationsQuery(Wire):
    """One page of reservations, newest first; ``over``: also those that are over or cancelled."""

    over: bool = False
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    before: Annotated[int, Field(ge=1, le=1 << 62)] | None = None


class ReservationPage(Wire):
    """Reservations. ``next`` is the ``before`` of the following page; null: no more."""

    reservations: list[ReservationView]
    next: int | None


async def reservations(call: Call[_No, ReservationsQuery]) -> ReservationPage:
    query = call.query
    found, following = await call.broker.reservations.all(
        over=query.over, limit=query.limit, before=query.before
    )
    return ReservationPage(reservations=found, next=following)


async def reservation(call: Call[_No, _No]) -> ReservationView:
    return await call.broker.reservations.one(int(call.path["number"]))


async def add_reservation(call: Call[AddReservation, _No]) -> ReservationView:
    return await call.broker.reservations.add(call.body, call.caller.label)


async def change_reservation(call: Call[ChangeReservation, _No]) -> ReservationView:
    return await call.broker.reservations.change(
        int(call.path["number"]), call.body, call.caller.label
    )


async def cancel_reservation(call: Call[CancelReservation, _No]) -> ReservationView:
    return await call.broker.reservations.cancel(
        int(call.path["number"]), call.body, call.caller.label
    )


def _routes() -> tuple[AnyRoute, ...]:
    no, a = models.Nothing, Access
    base, one = "api/admin/reservations", "api/admin/reservations/{number}"
    return (
        Route("GET", base, a.READ_ALL, reservations, no, ReservationsQuery, ReservationPage,
              "What is reserved for groups, with the next times"),
        Route("POST", base, a.ADMIN, add_reservation, AddReservation, no, ReservationView,
              "Reserve slices for a group; warnings say what the fleet cannot hold", 201),
        Route("GET", one, a.READ_ALL, reservation, no, no, ReservationView, "One reservation"),
        Route("PUT", one, a.ADMIN, change_reservation, ChangeReservation, no, ReservationView,
              "Replace what it says; 409 if it is not the version that was read"),
        Route("DELETE", one, a.ADMIN, cancel_reservation, CancelReservation, no, ReservationView,
              "Cancel it: from now on it holds nothing; 409 as above"),
    )  # fmt: skip


ROUTES = _routes()
