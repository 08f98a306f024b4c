"""What the routes and pages of administrators do; the route's scope has let the caller in."""

from __future__ import annotations

from typing import Any

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.service import models
from gpuslice.service.adminpages import audit_page, limits_page, overview_page
from gpuslice.service.calls import Call
from gpuslice.service.pages import Page, Redirect
from gpuslice.service.platform import Platform
from gpuslice.service.ports import Broker

#: So many live leases are read for one page, which sorts them; a GPU host holds far fewer.
MOST_LIVE = 1_000
_STEP = 200


# --- API ------------------------------------------------------------------------------------


async def limits(call: Call[models.Nothing, models.LimitsQuery]) -> models.LimitPage:
    query = call.query
    found, following = await call.broker.limits(query.find, query.after, query.limit)
    return models.LimitPage(limits=found, next=following)


async def set_limit(call: Call[wire.SetLimit, models.Nothing]) -> wire.LimitView:
    return await call.broker.set_limit(call.body, call.caller.label[:255])


async def clear_device(call: Call[wire.ClearDevice, models.Nothing]) -> wire.DeviceView:
    path = call.path
    return await call.broker.fleet.clear(
        str(path["node_id"]), str(path["device"]), call.body, call.caller.label
    )


async def audit(call: Call[models.Nothing, models.AuditQuery]) -> models.AuditPage:
    rows, following = await _audit(call.broker, call.query)
    return models.AuditPage(rows=rows, next=following)


# --- pages ----------------------------------------------------------------------------------


async def admin_page(call: Call[models.Nothing, models.AdminQuery]) -> Page:
    leases, more = await _live(call.broker)
    return overview_page(
        leases,
        await call.broker.devices(),
        await _platform(call),
        call.query,
        more=more,
        may_change=call.caller.is_admin,
    )


async def admin_stop(call: Call[models.StopForm, models.Nothing]) -> Redirect:
    order = wire.StopLease(reason=call.body.reason, actor=call.caller.label[:255])
    await call.broker.stop(call.lease_id, order, ask_hub=True)
    return Redirect("admin")


async def admin_clear_device(call: Call[models.ClearForm, models.Nothing]) -> Redirect:
    body = wire.ClearDevice(version=call.body.version, reason=call.body.reason)
    await call.broker.fleet.clear(
        str(call.path["node_id"]), str(call.path["device"]), body, call.caller.label
    )
    return Redirect("admin")


async def admin_limits_page(call: Call[models.Nothing, models.LimitsQuery]) -> Page:
    query = call.query
    found, following = await call.broker.limits(query.find, query.after, query.limit)
    return limits_page(
        found, following, await _platform(call), query, may_change=call.caller.is_admin
    )


async def admin_set_limit(call: Call[models.LimitForm, models.Nothing]) -> Redirect:
    form = call.body
    if form.unlimited is None and form.value is None:
        raise Refused("bad-request", "value: give a number, or tick 'unlimited'", status=400)
    change = wire.SetLimit(
        scope=form.scope,
        name=form.name,
        value=None if form.unlimited else form.value,
        version=form.version,
        reason=form.reason,
    )
    await call.broker.set_limit(change, call.caller.label[:255])
    return Redirect("admin/limits")


async def admin_audit_page(call: Call[models.Nothing, models.AuditQuery]) -> Page:
    rows, following = await _audit(call.broker, call.query)
    return audit_page(rows, following, await _platform(call), may_change=call.caller.is_admin)


# --- helpers --------------------------------------------------------------------------------


async def _platform(call: Call[Any, Any]) -> Platform:
    return Platform.of(await call.broker.health())


async def _audit(
    broker: Broker, query: models.AuditQuery
) -> tuple[list[wire.AuditRow], int | None]:
    # One more than asked for tells whether there is a next page.
    rows = await broker.audit(query.limit + 1, query.before)
    shown = rows[: query.limit]
    return shown, shown[-1].id if len(rows) > query.limit else None


async def _live(broker: Broker) -> tuple[list[wire.LeaseView], bool]:
    """Live leases of everybody, and whether there are more than were read."""
    found: list[wire.LeaseView] = []
    before: str | None = None
    while len(found) < MOST_LIVE:
        rows, before = await broker.leases(None, True, _STEP, before)
        found += rows
        if before is None:
            return found, False
    return found, True
