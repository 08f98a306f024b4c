"""The queue over REST: join, look, change, leave; and everybody's line for administrators."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gpuslice.broker.queuedesk import ChangeRequest, JoinFor, JoinQueue, LeaveQueue, RequestView
from gpuslice.service import models
from gpuslice.service.auth import Access
from gpuslice.service.calls import Call
from gpuslice.service.route import AnyRoute, Route
from gpuslice.wire import Wire

_No = models.Nothing


class QueueQuery(Wire):
    """One page of one's own requests, newest first; ``live`` only those that are not over."""

    live: bool | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    before: models.Cursor | None = None


class RequestPage(Wire):
    """Requests, newest first. ``next`` is the ``before`` of the following page; null: no more."""

    requests: list[RequestView]
    next: str | None


async def join_for(call: Call[JoinFor, _No]) -> RequestView:
    return await call.broker.queue.join(call.body)


async def join_queue(call: Call[JoinQueue, _No]) -> RequestView:
    caller = call.caller
    body = call.body.model_dump()
    return await call.broker.queue.join(
        JoinFor(user=caller.person(), groups=list(caller.groups), **body)
    )


async def my_queue(call: Call[_No, QueueQuery]) -> RequestPage:
    query = call.query
    found, following = await call.broker.queue.page(
        call.caller.person(), query.live, query.limit, query.before
    )
    return RequestPage(requests=found, next=following)


async def change_request(call: Call[ChangeRequest, _No]) -> RequestView:
    return await call.broker.queue.change(call.path["request_id"], call.caller.person(), call.body)


async def leave_queue(call: Call[_No, _No]) -> RequestView:
    name = call.caller.person()
    return await call.broker.queue.leave(call.path["request_id"], name, name, None)


async def whole_queue(call: Call[_No, _No]) -> list[RequestView]:
    return await call.broker.queue.all()


async def remove_request(call: Call[LeaveQueue, _No]) -> RequestView:
    return await call.broker.queue.leave(
        call.path["request_id"], None, call.caller.label[:255], call.body.reason
    )


def _routes() -> tuple[AnyRoute, ...]:
    no, a = models.Nothing, Access
    one = "api/queue/{request_id}"
    return (
        Route("POST", "api/broker/queue", a.BROKER, join_for, JoinFor, no, RequestView,
              "A place in the queue for a user whose spawn found nothing free", 201),
        Route("GET", "api/queue", a.OWN_ALL, my_queue, no, QueueQuery, RequestPage,
              "One's own requests, newest first"),
        Route("POST", "api/queue", a.WAIT, join_queue, JoinQueue, no, RequestView,
              "Wait for a slice; the same again finds the same place", 201),
        Route("PUT", one, a.WAIT, change_request, ChangeRequest, no, RequestView,
              "Wait for another slice type, or start by itself or not; 409 if it has changed"),
        Route("DELETE", one, a.WAIT, leave_queue, no, no, RequestView,
              "Give up a place, and the slice that is reserved with it"),
        Route("GET", "api/admin/queue", a.READ_ALL, whole_queue, no, no, list[RequestView],
              "Everybody who waits, in the order in which they are served"),
        Route("DELETE", "api/admin/queue/{request_id}", a.ADMIN, remove_request, LeaveQueue, no,
              RequestView, "Take somebody out of the queue, with a reason"),
    )  # fmt: skip


ROUTES = _routes()
