"""Servers that run without a lease, over REST: seen, adopted, ended."""

from __future__ import annotations

from gpuslice.broker.strangers import AdoptServer, EndServer, Stranger
from gpuslice.service import models
from gpuslice.service.auth import Access
from gpuslice.service.calls import Call
from gpuslice.service.route import AnyRoute, Route

_No = models.Nothing


async def unaccounted(call: Call[_No, _No]) -> list[Stranger]:
    return await call.broker.strangers.all()


async def adopt_server(call: Call[AdoptServer, _No]) -> Stranger:
    return await call.broker.strangers.adopt(call.lease_id, call.body, call.caller.label)


async def end_server(call: Call[EndServer, _No]) -> Stranger:
    return await call.broker.strangers.end(call.lease_id, call.body.reason, call.caller.label)


def _routes() -> tuple[AnyRoute, ...]:
    no, a = models.Nothing, Access
    all_, one = "api/admin/unaccounted", "api/admin/unaccounted/{lease_id}"
    return (
        Route("GET", all_, a.READ_ALL, unaccounted, no, no, list[Stranger],
              "Servers that run without a lease, as after a restore; they close their node"),
        Route("POST", f"{one}/adopt", a.ADMIN, adopt_server, AdoptServer, no, Stranger,
              "Make the lease of such a server anew, billed from its start on"),
        Route("POST", f"{one}/stop", a.ADMIN, end_server, EndServer, no, Stranger,
              "End such a server; nobody pays for it"),
    )  # fmt: skip


ROUTES = _routes()
