"""What the pages of users do, as functions from a call to a page."""

from __future__ import annotations

from gpuslice import wire
from gpuslice.service import models
from gpuslice.service.calls import Call, no_such_lease
from gpuslice.service.mygpu import bill_page, home_page
from gpuslice.service.pages import Page, Redirect
from gpuslice.service.platform import Platform

#: Past leases on one page.
HOME_PAGE_SIZE = 20


async def home(call: Call[models.Nothing, models.HomeQuery]) -> Page:
    user = call.caller.person()
    me = await call.broker.me(user, None, call.caller.groups)
    past, following = await call.broker.leases(user, False, HOME_PAGE_SIZE, call.query.before)
    platform = Platform.of(await call.broker.health())
    offers = await call.broker.offers(user, call.caller.groups)
    return home_page(me, past, following, offers, platform)


async def lease_page(call: Call[models.Nothing, models.Nothing]) -> Page:
    bill = await call.broker.bill(call.lease_id)
    if bill is None or not call.caller.may_read(bill.lease):
        raise no_such_lease()
    own = call.caller.kind == "user" and bill.lease.user == call.caller.name
    return bill_page(bill, own=own)


async def stop_from_page(call: Call[models.Nothing, models.Nothing]) -> Redirect:
    view = await call.broker.lease(call.lease_id)
    if view is None or call.caller.person() != view.user or not call.caller.may_stop(view):
        raise no_such_lease()
    order = wire.StopLease(reason="stopped by its user", actor=call.caller.label[:255])
    await call.broker.stop(call.lease_id, order, ask_hub=True)
    return Redirect("")
