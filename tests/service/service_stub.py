"""A broker in memory with what pages and faults need of `gpuslice.service.ports`, and makers of
messages; its desks only show (`desk_stub`)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from desk_stub import (
    StubMoney,
    StubPeople,
    StubPolicies,
    StubQueue,
    StubReservations,
    StubStrangers,
)

from gpuslice import wire
from gpuslice.broker.stats import Counts, Snapshot, Waits
from gpuslice.errors import Refused
from gpuslice.ledger.idempotency import Claim, Done
from gpuslice.units import GIB, HOUR_US, now_us

LIVE = frozenset(
    {
        wire.LeaseState.GRANTED,
        wire.LeaseState.RUNNING,
        wire.LeaseState.STOPPING,
        wire.LeaseState.SETTLED,
        wire.LeaseState.REVOKING,
    }
)


def make_lease(user: str, server: str = "", **changes: Any) -> wire.LeaseView:
    now = now_us()
    fields: dict[str, Any] = {
        "lease_id": uuid.uuid4().hex,
        "user": user,
        "server": server,
        "slice": "quarter",
        "title": "Quarter of a GPU",
        "kind": wire.SliceKind.SHARED,
        "node_id": "local",
        "device_uuid": "GPU-1",
        "device_model": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 20 * GIB,
        "share_milli": 250,
        "enforcement": wire.Enforcement.ADVISORY,
        "simulated": True,
        "state": wire.LeaseState.RUNNING,
        "granted_us": now - HOUR_US,
        "started_us": now - HOUR_US,
        "covered_us": now,
        "finished_us": None,
        "finished_at_unknown": False,
        "stop_requested_us": None,
        "stop_reason": None,
        "end_reason": None,
        "exit_code": None,
        "rate_u_per_hour": 700_000,
        "cost_u": 700_000,
        "writeoff_u": 0,
        "currency": "EUR",
    }
    return wire.LeaseView(**(fields | changes))


def make_offer(**changes: Any) -> wire.Offer:
    fields: dict[str, Any] = {
        "slice": "quarter",
        "title": "Quarter of a GPU",
        "kind": wire.SliceKind.SHARED,
        "device_model": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 20 * GIB,
        "share_milli": 250,
        "enforcement": wire.Enforcement.ADVISORY,
        "simulated": True,
        "rate_u_per_hour": 700_000,
        "currency": "EUR",
        "free": 3,
        "total": 4,
    }
    return wire.Offer(**(fields | changes))


def make_limit(**changes: Any) -> wire.LimitView:
    fields: dict[str, Any] = {
        "scope": "default",
        "name": None,
        "value": 2,
        "version": 1,
        "since_us": now_us(),
        "actor": "settings",
    }
    return wire.LimitView(**(fields | changes))


class StubCore:
    """Answers by key. ``done_before`` of the real one looks into the ledger."""

    def __init__(self) -> None:
        self.done: dict[tuple[str, str], Done] = {}

    async def done_before(self, caller: str, key: str) -> Done | None:
        return self.done.get((caller, key))

    async def keep_answer(self, claim: Claim, status: int, text: str) -> None:
        self.done[claim.caller, claim.key] = Done(claim.fingerprint, status, text)


class StubBroker:
    """Leases in a dictionary. ``calls`` records what changed something, in order.

    It is there for faults and for pages. What policies and money do is tested on the real broker
    (`serviceledger`).
    """

    def __init__(self) -> None:
        self.core = StubCore()
        self.views: dict[str, wire.LeaseView] = {}
        self.attempts: dict[str, wire.LeaseGrant] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.noted: list[wire.Notice] = []
        self.offered = [make_offer()]
        self.refusal: Refused | None = None
        self.failure: Exception | None = None
        self.database_ok = True
        self.bills: dict[str, list[wire.BillLine]] = {}
        #: What went back of a bill, less what was charged in addition.
        self.corrected: dict[str, int] = {}
        self.limit_views = [make_limit()]
        self.audit_rows: list[wire.AuditRow] = []
        self.device_views: list[wire.DeviceView] = []
        #: What the broker would say beyond the rest of its health.
        self.health_details: dict[str, object] = {}
        self.leases_limit: int | None = 1
        self.queue, self.policies, self.money = StubQueue(), StubPolicies(), StubMoney()
        self.people, self.reservations = StubPeople(), StubReservations()
        self.strangers = StubStrangers()
        self.terms: list[wire.SliceTerms] = []
        self.limits_left: list[str] = []
        #: Those of the last caller of `me`.
        self.groups: tuple[str, ...] = ()

    def add(self, view: wire.LeaseView) -> wire.LeaseView:
        self.views[view.lease_id] = view
        return view

    async def offers(self, user: str | None, groups: Sequence[str] = ()) -> list[wire.Offer]:
        if self.failure is not None:
            raise self.failure
        return self.offered

    async def choices(self, user: str, groups: Sequence[str], server: str = "") -> wire.Choices:
        return wire.Choices(
            offers=await self.offers(user), leases_held=0, leases_limit=1, gpu_problem=None,
            terms=self.terms, limits=self.limits_left,
        )  # fmt: skip

    async def grant(self, req: wire.LeaseRequest) -> wire.LeaseGrant:
        if self.refusal is not None:
            raise self.refusal
        if req.attempt in self.attempts:
            return self.attempts[req.attempt]
        view = self.add(make_lease(req.user, req.server, state=wire.LeaseState.GRANTED))
        self.calls.append(("grant", req))
        shared = wire.LeaseGrant.model_fields.keys() & wire.LeaseView.model_fields.keys()
        granted = wire.LeaseGrant(
            **{name: getattr(view, name) for name in shared},
            start_before_us=view.granted_us + HOUR_US,
        )
        self.attempts[req.attempt] = granted
        return granted

    async def started(self, lease_id: str, body: wire.ServerStarted) -> None:
        view = self._known(lease_id)
        if view.state is not wire.LeaseState.GRANTED:
            raise Refused("not-granted", "This lease may not start a server now.")
        self.calls.append(("started", lease_id, body))
        self.add(view.model_copy(update={"state": wire.LeaseState.RUNNING}))

    async def stop(
        self, lease_id: str, body: wire.StopLease, *, ask_hub: bool = False
    ) -> wire.LeaseView:
        view = self._known(lease_id)
        if view.state not in LIVE:
            raise Refused("over", "This lease is over.")
        self.calls.append(("stop", lease_id, body.reason, body.actor, ask_hub))
        return self.add(
            view.model_copy(
                update={
                    "state": wire.LeaseState.STOPPING,
                    "stop_reason": body.reason,
                    "stop_requested_us": now_us(),
                }
            )
        )

    async def settle(self, lease_id: str, wait_s: float) -> wire.LeaseView:
        self.calls.append(("settle", lease_id, wait_s))
        return self._known(lease_id)

    async def lease(self, lease_id: str, user: str | None = None) -> wire.LeaseView | None:
        view = self.views.get(lease_id)
        return view if view is not None and user in (None, view.user) else None

    async def current(self, user: str, server: str) -> wire.LeaseView | None:
        for view in self.views.values():
            if (view.user, view.server) == (user, server) and view.state in LIVE:
                return view
        return None

    async def leases(
        self, user: str | None, live: bool | None, limit: int, before: str | None
    ) -> tuple[list[wire.LeaseView], str | None]:
        found = [
            view
            for view in reversed(self.views.values())
            if user in (None, view.user) and live in (None, view.state in LIVE)
        ]
        start = int(before or 0)
        following = str(start + limit) if len(found) > start + limit else None
        return found[start : start + limit], following

    async def me(self, user: str, server: str | None, groups: Sequence[str] = ()) -> wire.Me:
        self.groups = tuple(groups)
        mine = [
            view
            for view in self.views.values()
            if view.user == user and view.state in LIVE and server in (None, view.server)
        ]
        return wire.Me(
            user=user,
            server=server,
            leases=mine,
            leases_limit=self.leases_limit,
            currency="EUR",
            simulated=True,
            now_us=now_us(),
        )

    async def notices(self, user: str, since: int) -> list[wire.Notice]:
        return [notice for notice in self.noted if notice.id > since]

    async def keep(self, user: str, lease_id: str) -> wire.LeaseView:
        self.calls.append(("keep", user, lease_id))
        return self._known(lease_id)

    async def devices(self) -> list[wire.DeviceView]:
        return self.device_views

    async def bill(self, lease_id: str, user: str | None = None) -> wire.Bill | None:
        view = await self.lease(lease_id, user)
        return view and wire.Bill(
            lease=view, lines=self.bills.get(lease_id, []),
            corrected_u=self.corrected.get(lease_id, 0),
        )  # fmt: skip

    async def limits(
        self, find: str | None, after: int | None, limit: int
    ) -> tuple[list[wire.LimitView], int | None]:
        return self.limit_views[:limit], None

    async def set_limit(self, body: wire.SetLimit, actor: str) -> wire.LimitView:
        now = next(
            (v for v in self.limit_views if (v.scope, v.name) == (body.scope, body.name)), None
        )
        if (now and now.version) != body.version:
            raise Refused("stale-version", "Somebody else changed it.", status=409)
        self.calls.append(("set_limit", body, actor))
        new = make_limit(
            scope=body.scope, name=body.name, value=body.value, actor=actor,
            version=max((v.version for v in self.limit_views), default=0) + 1,
        )  # fmt: skip
        self.limit_views = [v for v in self.limit_views if v is not now] + [new]
        return new

    async def audit(self, limit: int, before: int | None) -> list[wire.AuditRow]:
        rows = [row for row in reversed(self.audit_rows) if before is None or row.id < before]
        return rows[:limit]

    async def drain(self, reason: str, actor: str) -> int:
        self.calls.append(("drain", reason, actor))
        return sum(view.state in LIVE for view in self.views.values())

    async def health(self) -> Mapping[str, object]:
        return {"database_ok": self.database_ok, "node_ok": True} | self.health_details

    async def metrics_snapshot(self) -> Snapshot:
        counts = Counts(
            slice_types=("quarter", "other"), leases={("running", "shared", "quarter"): 2},
            devices={"ok": 1}, waiting=Waits(), offers={}, totals={},
        )  # fmt: skip
        return Snapshot(
            ledger=counts, reconcile_age_s=None, node_reachable=True, errors={"node": 0, "hub": 3}
        )

    def _known(self, lease_id: str) -> wire.LeaseView:
        view = self.views.get(lease_id)
        if view is None:
            raise Refused("no-such-lease", "There is no such lease.", status=404)
        return view
