"""What the pages of users do, as functions from a call to a page."""

from __future__ import annotations

from gpuslice import wire
from gpuslice.broker.queuedesk import ChangeRequest
from gpuslice.service import models
from gpuslice.service.calls import Call, no_such_lease
from gpuslice.service.mygpu import Own, bill_page, entries_page, home_page
from gpuslice.service.pages import Page, Redirect
from gpuslice.service.platform import Platform

#: Past leases on one page.
HOME_PAGE_SIZE = 20
#: Rows of the ledger on one page.
ENTRIES_PAGE_SIZE = 50


async def home(call: Call[models.Nothing, models.HomeQuery]) -> Page:
    caller, broker = call.caller, call.broker
    user = caller.person()
    past, following = await broker.leases(user, False, HOME_PAGE_SIZE, call.query.before)
    own = Own(
        me=await broker.me(user, None, caller.groups), past=past, following=following,
        choices=await broker.choices(user, caller.groups),
        requests=await broker.queue.mine(user), usage=await broker.money.usage("user", user),
    )  # fmt: skip
    return home_page(own, Platform.of(await broker.health()))


async def entries_of_mine(call: Call[models.Nothing, models.EntriesPageQuery]) -> Page:
    user = call.caller.person()
    found, following = await call.broker.money.entries(
        "user", user, call.query.before, ENTRIES_PAGE_SIZE
    )
    usage = await call.broker.money.usage("user", user)
    return entries_page(found, following, user, usage.currency)


async def leave_from_page(call: Call[models.Nothing, models.Nothing]) -> Redirect:
    name = call.caller.person()
    await call.broker.queue.leave(call.path["request_id"], name, name, None)
    return Redirect("")


async def change_from_page(call: Call[models.RequestForm, models.Nothing]) -> Redirect:
    form = call.body
    change = ChangeRequest(
        slice=form.slice,
        auto_start=None if form.auto_start is None else form.auto_start == "yes",
        version=form.version,
    )
    await call.broker.queue.change(call.path["request_id"], call.caller.person(), change)
    return Redirect("")


async def lease_page(call: Call[models.Nothing, models.Nothing]) -> Page:
    bill = await call.broker.bill(call.lease_id, call.caller.looks_at)
    if bill is None or not call.caller.may_read(bill.lease):
        raise no_such_lease()
    own = call.caller.kind == "user" and bill.lease.user == call.caller.name
    return bill_page(bill, own=own, may_change=call.caller.is_admin)


async def stop_from_page(call: Call[models.Nothing, models.Nothing]) -> Redirect:
    view = await call.broker.lease(call.lease_id, call.caller.looks_at)
    if view is None or call.caller.person() != view.user or not call.caller.may_stop(view):
        raise no_such_lease()
    order = wire.StopLease(reason="stopped by its user", actor=call.caller.label[:255])
    await call.broker.stop(call.lease_id, order, ask_hub=True)
    return Redirect("")
