"""Money over REST: prices, credit, corrections, entries and their export, usage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from gpuslice.broker.moneyviews import (
    Correct,
    CreditView,
    DigestView,
    EntryView,
    GiveCredit,
    GrantMore,
    PricePreview,
    PriceView,
    RefundLease,
    SetPrice,
    Usage,
    Whose,
)
from gpuslice.service import models
from gpuslice.service.auth import Access
from gpuslice.service.calls import Call, Stream
from gpuslice.service.export import csv_lines, json_lines
from gpuslice.service.route import AnyRoute, Route
from gpuslice.units import MAX_TIME_US
from gpuslice.wire import Moment, UserName, Wire

_No = models.Nothing


class RowsQuery(Wire):
    """One page of rows, newest first; ``before`` is the ``next`` of the page before."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    before: Annotated[int, Field(ge=1, le=1 << 62)] | None = None


class SpanQuery(Wire):
    """Entries written from a moment to another, oldest first."""

    form: Literal["csv", "json"] = "csv"
    from_us: Moment = 0
    til_us: Moment = MAX_TIME_US


class AccountQuery(Wire):
    """Only this account's; without both, everybody's."""

    whose: Whose | None = None
    name: UserName | None = None

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.whose is None) != (self.name is None):
            raise ValueError("whose and name belong together: give both, or none")
        return self


class AccountRowsQuery(RowsQuery, AccountQuery):
    """One page of everybody's rows, or of one account's, newest first."""


class AccountSpanQuery(SpanQuery, AccountQuery):
    """Everybody's entries, or one account's, from a moment to another, oldest first."""


class UsageQuery(Wire):
    """Whose usage."""

    whose: Whose
    name: UserName


class EntryPage(Wire):
    """Entries, newest first. ``next`` is the ``before`` of the following page; null: no more."""

    entries: list[EntryView]
    next: int | None


class DigestPage(Wire):
    """Digests, newest first. ``next`` is the ``before`` of the following page; null: no more."""

    digests: list[DigestView]
    next: int | None


class CreditPage(Wire):
    """Credit, newest first. ``next`` is the ``before`` of the following page; null: no more."""

    credits: list[CreditView]
    next: int | None


async def prices(call: Call[_No, _No]) -> list[PriceView]:
    return await call.broker.money.prices()


async def all_prices(call: Call[_No, _No]) -> list[PriceView]:
    return await call.broker.money.prices()


async def preview_price(call: Call[SetPrice, _No]) -> PricePreview:
    return await call.broker.money.preview_price(call.body)


async def set_price(call: Call[SetPrice, _No]) -> PriceView:
    return await call.broker.money.set_price(call.body, call.caller.label)


async def credits(call: Call[_No, AccountRowsQuery]) -> CreditPage:
    query = call.query
    found, following = await call.broker.money.credits(
        query.whose, query.name, query.before, query.limit
    )
    return CreditPage(credits=found, next=following)


async def give_credit(call: Call[GiveCredit, _No]) -> CreditView:
    return await call.broker.money.give_credit(call.body, call.caller.label)


async def grant_more(call: Call[GrantMore, _No]) -> _No:
    await call.broker.money.grant_more(call.lease_id, call.body, call.caller.label)
    return _No()


async def correct(call: Call[Correct, _No]) -> EntryView:
    return await call.broker.money.correct(call.body, call.caller.label)


async def refund_lease(call: Call[RefundLease, _No]) -> list[EntryView]:
    return await call.broker.money.refund_lease(call.lease_id, call.body, call.caller.label)


async def entries(call: Call[_No, AccountRowsQuery]) -> EntryPage:
    query = call.query
    found, following = await call.broker.money.entries(
        query.whose, query.name, query.before, query.limit
    )
    return EntryPage(entries=found, next=following)


async def my_entries(call: Call[_No, RowsQuery]) -> EntryPage:
    query = call.query
    found, following = await call.broker.money.entries(
        "user", call.caller.person(), query.before, query.limit
    )
    return EntryPage(entries=found, next=following)


async def export_entries(call: Call[_No, AccountSpanQuery]) -> Stream:
    return _export(call, call.query, call.query.whose, call.query.name)


async def export_my_entries(call: Call[_No, SpanQuery]) -> Stream:
    return _export(call, call.query, "user", call.caller.person())


def _export(call: Call[Any, Any], query: SpanQuery, whose: str | None, name: str | None) -> Stream:
    chunks = call.broker.money.export(whose, name, query.from_us, query.til_us)
    pieces: AsyncIterator[bytes]
    if query.form == "csv":
        pieces, kind = csv_lines(EntryView, chunks), "text/csv; charset=utf-8"
    else:
        pieces, kind = json_lines(chunks), "application/json"
    return Stream(pieces, kind, f"entries.{query.form}")


async def digests(call: Call[_No, RowsQuery]) -> DigestPage:
    found, following = await call.broker.money.digests(call.query.before, call.query.limit)
    return DigestPage(digests=found, next=following)


async def usage_of(call: Call[_No, UsageQuery]) -> Usage:
    return await call.broker.money.usage(call.query.whose, call.query.name)


async def my_usage(call: Call[_No, _No]) -> Usage:
    return await call.broker.money.usage("user", call.caller.person())


def _routes() -> tuple[AnyRoute, ...]:
    no, a = models.Nothing, Access
    get, post = "GET", "POST"
    lease = "api/admin/leases/{lease_id}"
    return (
        Route(get, "api/prices", a.USER, prices, no, no, list[PriceView],
              "Every price there was, is, or is announced"),
        Route(get, "api/admin/prices", a.READ_ALL, all_prices, no, no, list[PriceView],
              "The same for administrators, and for services"),
        Route(post, "api/admin/prices/preview", a.READ_ALL, preview_price, SetPrice, no,
              PricePreview, "Which running leases a price would touch", changes=False),
        Route(post, "api/admin/prices", a.ADMIN, set_price, SetPrice, no, PriceView,
              "Announce a price; 409 in the past or before one that is announced", 201),
        Route(get, "api/admin/credits", a.READ_ALL, credits, no, AccountRowsQuery, CreditPage,
              "Credit that was given, newest first"),
        Route(post, "api/admin/credits", a.ADMIN, give_credit, GiveCredit, no, CreditView,
              "Give credit to a user or a group", 201),
        Route(post, f"{lease}/more", a.ADMIN, grant_more, GrantMore, no, no,
              "Let a running lease go on, by time or by money"),
        Route(post, f"{lease}/refund", a.ADMIN, refund_lease, RefundLease, no, list[EntryView],
              "Give back what a lease cost its user, or a part", 201),
        Route(post, "api/admin/corrections", a.ADMIN, correct, Correct, no, EntryView,
              "Give back a part of what one entry paid, or take more", 201),
        Route(get, "api/admin/entries", a.READ_ALL, entries, no, AccountRowsQuery, EntryPage,
              "The ledger's rows, newest first"),
        Route(get, "api/admin/entries/export", a.READ_ALL, export_entries, no,
              AccountSpanQuery, Stream, "The ledger's rows as CSV or JSON, streamed, oldest first",
              rows=EntryView),
        Route(get, "api/admin/digests", a.READ_ALL, digests, no, RowsQuery, DigestPage,
              "The signed digests of the days, newest first"),
        Route(get, "api/admin/usage", a.READ_ALL, usage_of, no, UsageQuery, Usage,
              "What an account has used, by day, and what it holds"),
        Route(get, "api/entries", a.OWN_ALL, my_entries, no, RowsQuery, EntryPage,
              "One's own rows, newest first"),
        Route(get, "api/entries/export", a.OWN_ALL, export_my_entries, no, SpanQuery, Stream,
              "One's own rows as CSV or JSON, streamed", rows=EntryView),
        Route(get, "api/usage", a.OWN_ALL, my_usage, no, no, Usage,
              "What one has used, by day, and what one holds"),
    )  # fmt: skip


ROUTES = _routes()
