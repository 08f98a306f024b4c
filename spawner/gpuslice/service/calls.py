"""What each route does, as plain functions from a call to an answer; no tornado in here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.service import models
from gpuslice.service.auth import Caller
from gpuslice.service.metrics import Metrics
from gpuslice.service.ports import Broker

B = TypeVar("B")
Q = TypeVar("Q")
Pages = TypeVar("Pages", bound=models.LeasesQuery)


@dataclass(frozen=True)
class Call(Generic[B, Q]):
    """One request, admitted and validated: who, with what, on which lease."""

    broker: Broker
    caller: Caller
    body: B
    query: Q
    metrics: Metrics
    #: The service's OpenAPI document.
    openapi: dict[str, Any] = field(repr=False)
    #: What stood in the path's braces; already known to have its form.
    path: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lease_id(self) -> str:
        return str(self.path["lease_id"])


@dataclass(frozen=True)
class Text:
    """An answer that is neither JSON nor a page."""

    content: bytes = field(repr=False)
    content_type: str


@dataclass(frozen=True)
class Stream:
    """An answer too large to hold: pieces as they are made, and what a browser saves it as."""

    pieces: AsyncIterator[bytes] = field(repr=False)
    content_type: str
    file_name: str


def no_such_lease() -> Refused:
    """The one answer for ids that do not exist and ids that are somebody else's."""
    return Refused("no-such-lease", "There is no such lease.", status=404)


# --- spawner and node -----------------------------------------------------------------------


async def grant(call: Call[wire.LeaseRequest, models.Nothing]) -> wire.LeaseGrant:
    return await call.broker.grant(call.body)


async def broker_lease(call: Call[models.Nothing, models.Nothing]) -> wire.LeaseView:
    return _found(await call.broker.lease(call.lease_id))


async def current(call: Call[models.Nothing, models.CurrentQuery]) -> wire.LeaseView:
    return _found(await call.broker.current(call.query.user, call.query.server))


async def broker_stop(call: Call[wire.StopLease, models.Nothing]) -> wire.LeaseView:
    return await call.broker.stop(call.lease_id, call.body)


async def settle(call: Call[models.Nothing, models.SettleQuery]) -> wire.LeaseView:
    return await call.broker.settle(call.lease_id, call.query.wait_s)


async def broker_choices(call: Call[wire.ChoicesRequest, models.Nothing]) -> wire.Choices:
    body = call.body
    return await call.broker.choices(body.user, body.groups, body.server)


async def broker_offers(call: Call[models.Nothing, models.OffersQuery]) -> list[wire.Offer]:
    return await call.broker.offers(call.query.user)


async def drain(call: Call[models.DrainRequest, models.Nothing]) -> models.Drained:
    return models.Drained(live=await call.broker.drain(call.body.reason, call.body.actor))


async def started(call: Call[wire.ServerStarted, models.Nothing]) -> models.Nothing:
    await call.broker.started(call.lease_id, call.body)
    return models.Nothing()


# --- people and notebooks -------------------------------------------------------------------


async def offers(call: Call[models.Nothing, models.Nothing]) -> list[wire.Offer]:
    return await call.broker.offers(call.caller.person(), call.caller.groups)


async def leases(call: Call[models.Nothing, models.LeasesQuery]) -> models.LeasePage:
    return await _lease_page(call, call.caller.person())


async def lease(call: Call[models.Nothing, models.Nothing]) -> wire.LeaseView:
    return await _readable(call)


async def bill(call: Call[models.Nothing, models.Nothing]) -> wire.Bill:
    found = await call.broker.bill(call.lease_id, call.caller.looks_at)
    if found is None or not call.caller.may_read(found.lease):
        raise no_such_lease()
    return found


async def stop(call: Call[models.StopRequest, models.Nothing]) -> wire.LeaseView:
    view = await call.broker.lease(call.lease_id, call.caller.looks_at)
    if view is None or not call.caller.may_stop(view):
        if view is not None and call.caller.may_read(view):
            raise Refused("forbidden", "You may see this lease but not stop it.", status=403)
        raise no_such_lease()
    reason = call.body.reason
    if reason is None:
        if call.caller.kind != "user" or view.user != call.caller.name:
            raise Refused(
                "bad-request", "reason: say why you stop somebody else's lease", status=400
            )
        reason = "stopped by its user"
    order = wire.StopLease(reason=reason, actor=call.caller.label[:255])
    return await call.broker.stop(call.lease_id, order, ask_hub=True)


async def me(call: Call[models.Nothing, models.Nothing]) -> wire.Me:
    caller = call.caller
    return await call.broker.me(caller.person(), caller.own_server(), caller.groups)


async def notices(call: Call[models.Nothing, models.NoticesQuery]) -> list[wire.Notice]:
    user, server = call.caller.person(), call.caller.own_server()
    found = await call.broker.notices(user, call.query.since)
    if server is None:
        return found
    # A notebook reads what concerns its lease or nobody's in particular, not its neighbours'.
    live = await call.broker.current(user, server)
    about = {None, live.lease_id if live else None}
    return [notice for notice in found if notice.lease_id in about]


async def keep(call: Call[models.KeepRequest, models.Nothing]) -> wire.LeaseView:
    user, server = call.caller.person(), call.caller.own_server()
    wanted = call.body.lease_id
    if server is not None:
        view = await call.broker.current(user, server)
        if view is None or wanted not in (None, view.lease_id):
            raise no_such_lease()
    else:
        if wanted is None:
            raise Refused("bad-request", "lease_id: say which lease to keep", status=400)
        view = await call.broker.lease(wanted, user)
        if view is None:
            raise no_such_lease()
    return await call.broker.keep(user, view.lease_id)


# --- administrators -------------------------------------------------------------------------


async def devices(call: Call[models.Nothing, models.Nothing]) -> list[wire.DeviceView]:
    return await call.broker.devices()


async def all_leases(call: Call[models.Nothing, models.AllLeasesQuery]) -> models.LeasePage:
    return await _lease_page(call, call.query.user)


async def metrics(call: Call[models.Nothing, models.Nothing]) -> Text:
    content, content_type = call.metrics.exposition(await call.broker.metrics_snapshot())
    return Text(content, content_type)


# --- anybody --------------------------------------------------------------------------------


async def health(call: Call[models.Nothing, models.Nothing]) -> models.Health:
    details = await call.broker.health()
    if not details.get("database_ok"):
        raise Refused(
            "database-unavailable", "The database does not answer.", status=503, retry_after_s=5
        )
    return models.Health(status="ok" if details.get("node_ok") else "degraded")


async def openapi(call: Call[models.Nothing, models.Nothing]) -> dict[str, Any]:
    return call.openapi


# --- helpers --------------------------------------------------------------------------------


def _found(view: wire.LeaseView | None) -> wire.LeaseView:
    if view is None:
        raise no_such_lease()
    return view


async def _readable(call: Call[Any, Any]) -> wire.LeaseView:
    view = await call.broker.lease(call.lease_id, call.caller.looks_at)
    if view is None or not call.caller.may_read(view):
        raise no_such_lease()
    return view


async def _lease_page(call: Call[models.Nothing, Pages], user: str | None) -> models.LeasePage:
    query = call.query
    found, following = await call.broker.leases(user, query.live, query.limit, query.before)
    return models.LeasePage(leases=found, next=following)
