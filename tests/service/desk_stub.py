"""Desks in memory for pages that only show: those of `service_stub`.

What they do is tested on the real broker; here they hold what a test puts into them.
"""

from __future__ import annotations

import uuid
from typing import Any

from gpuslice import wire
from gpuslice.broker.moneyviews import Day, EntryView, PricePreview, PriceView, SetPrice, Usage
from gpuslice.broker.peopleviews import AccountKind, AccountPage, AccountState
from gpuslice.broker.reservationviews import ReservationView
from gpuslice.broker.strangers import Stranger
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.quotas.views import PolicyKind, PolicyView
from gpuslice.units import HOUR_US, now_us


def make_request(user: str, **changes: Any) -> wire.RequestView:
    fields: dict[str, Any] = {
        "request_id": uuid.uuid4().hex, "user": user, "server": "", "slice": "quarter",
        "auto_start": False, "state": "waiting", "position": 1, "waiting": 1, "start_by_us": None,
        "expected_us": None, "offer_til_us": None, "lease_id": None, "reason": None,
        "created_us": now_us(), "version": 1,
    }  # fmt: skip
    return wire.RequestView(**(fields | changes))


def make_policy(kind: PolicyKind = "everyone", name: str | None = None, **more: Any) -> PolicyView:
    fields: dict[str, Any] = {
        "kind": kind, "name": name, "version": 1, "since_us": 1, "til_us": None, "actor": "root1",
        "document": PolicyDocument.model_validate({"each": {"slices": 2}}), "reason": None,
    }  # fmt: skip
    return PolicyView(**(fields | more))


def make_entry(user: str, **changes: Any) -> EntryView:
    fields: dict[str, Any] = {
        "entry_id": 1, "at_us": 1, "kind": "usage", "debit": f"user:{user}",
        "credit": "platform:revenue", "amount_u": 875_001, "lease_id": None, "slice": "quarter",
        "from_us": 1, "til_us": 2, "credit_id": None, "corrects": None, "actor": "meter",
        "memo": "",
    }  # fmt: skip
    return EntryView(**(fields | changes))


class StubQueue:
    """Requests in a list; ``calls`` records what was asked for."""

    def __init__(self) -> None:
        self.requests: list[wire.RequestView] = []

    async def join(self, body: wire.JoinFor) -> wire.RequestView:
        self.requests.append(make_request(body.user, slice=body.slice, server=body.server))
        return self.requests[-1]

    async def page(
        self, user: str, live: bool | None, limit: int, before: str | None
    ) -> tuple[list[wire.RequestView], str | None]:
        return (await self.mine(user))[:limit], None

    async def mine(self, user: str) -> list[wire.RequestView]:
        return [one for one in self.requests if one.user == user]

    async def all(self) -> list[wire.RequestView]:
        return self.requests


class StubPolicies:
    """Policies in a list, all of them current."""

    def __init__(self) -> None:
        self.views = [make_policy()]

    async def page(
        self, find: str | None, after: int | None, limit: int
    ) -> tuple[list[PolicyView], int | None]:
        return self.views[:limit], None

    async def history(
        self, kind: PolicyKind, name: str | None, before: int | None, limit: int
    ) -> tuple[list[PolicyView], int | None]:
        found = [view for view in self.views if (view.kind, view.name) == (kind, name)]
        return found[:limit], None


class StubMoney:
    """Prices and rows in lists."""

    def __init__(self) -> None:
        self.price_views: list[PriceView] = []
        self.rows: list[EntryView] = []

    async def prices(self) -> list[PriceView]:
        return self.price_views

    async def preview_price(self, body: SetPrice) -> PricePreview:
        return PricePreview(leases=[], rate_now_u_per_hour=None)

    async def entries(
        self, whose: str | None, name: str | None, before: int | None, limit: int
    ) -> tuple[list[EntryView], int | None]:
        return self.rows[:limit], None

    async def usage(self, whose: str, name: str) -> Usage:
        return Usage(
            name=name, currency="EUR", spent_u=2_000_000, gpu_us=3 * HOUR_US, held_u=0, active=0,
            credit_u=0, days=[Day(from_us=0, spent_u=500_000, gpu_us=HOUR_US)],
        )  # fmt: skip


class StubPeople:
    """No account at all."""

    async def all(
        self, kind: AccountKind | None, state: AccountState, find: str | None,
        after: int, limit: int,
    ) -> AccountPage:  # fmt: skip
        return AccountPage(accounts=[], next=None)


class StubReservations:
    """Nothing is reserved."""

    async def all(
        self, *, over: bool, limit: int, before: int | None
    ) -> tuple[list[ReservationView], int | None]:
        return [], None


class StubStrangers:
    """Every server has its lease."""

    async def all(self) -> list[Stranger]:
        return []
