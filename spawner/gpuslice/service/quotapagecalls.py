"""What the administrator's pages of policies, queue and prices do, and the forms on a bill."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from gpuslice.broker.moneyviews import GiveCredit, PriceList, RefundLease, SetPrice
from gpuslice.errors import Refused
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.quotas.views import PolicyKind
from gpuslice.service import models
from gpuslice.service.auth import Access
from gpuslice.service.calls import Call, no_such_lease
from gpuslice.service.models import GivenReason, LeftEmpty
from gpuslice.service.pages import Page, Redirect
from gpuslice.service.platform import Platform
from gpuslice.service.policycalls import PoliciesQuery
from gpuslice.service.queuepages import queue_page
from gpuslice.service.quotapages import announcement, policies_page, policy_page, prices_page
from gpuslice.service.route import AnyRoute, Route
from gpuslice.service.text import query
from gpuslice.units import MAX_TIME_US, UnitError, from_datetime, now_us, parse_money
from gpuslice.wire import SliceName, UserName, Wire

_No = models.Nothing
_Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=64)]


class PolicyQuery(Wire):
    """Whose policy; everyone's has no name."""

    kind: PolicyKind = "everyone"
    name: Annotated[UserName | None, LeftEmpty] = None


class PolicyForm(PolicyQuery):
    """A policy as the editor sends it: the whole document, and the version that was read."""

    document: Annotated[str, Field(max_length=50_000)]
    version: Annotated[int | None, LeftEmpty] = None
    remove: Literal["yes"] | None = None
    reason: GivenReason


class PriceQuery(Wire):
    """A price that is to be looked at before it is announced; without a slice there is none."""

    slice: Annotated[SliceName | None, LeftEmpty] = None
    price_list: PriceList = "default"
    rate: _Text = ""
    from_utc: _Text = ""


class PriceForm(Wire):
    """The second step: the same once more, and why."""

    slice: SliceName
    price_list: PriceList
    rate: _Text
    from_utc: _Text = ""
    reason: GivenReason


class RefundForm(Wire):
    """What goes back; empty: all of it."""

    amount: _Text = ""
    reason: GivenReason


class CreditForm(Wire):
    """Credit for the user of a lease."""

    amount: _Text
    reason: GivenReason


#: What is older is told by REST and by `gpuslice quota show --history`.
VERSIONS_SHOWN = 100

# --- policies ---------------------------------------------------------------------------------


async def admin_policies_page(call: Call[_No, PoliciesQuery]) -> Page:
    asked = call.query
    found, following = await call.broker.policies.page(asked.find, asked.after, asked.limit)
    return policies_page(
        found, following, asked, await _platform(call), may_change=call.caller.is_admin
    )


async def admin_policy_page(call: Call[_No, PolicyQuery]) -> Page:
    kind, name = _whose(call.query)
    history, older = await call.broker.policies.history(kind, name, None, VERSIONS_SHOWN)
    return policy_page(
        kind, name, history, await _platform(call), older=older is not None,
        may_change=call.caller.is_admin,
    )  # fmt: skip


async def admin_set_policy(call: Call[PolicyForm, _No]) -> Redirect:
    form = call.body
    kind, name = _whose(form)
    document = None if form.remove else _document(form.document)
    await call.broker.policies.set(
        kind, name, document, form.version, form.reason, call.caller.label[:255]
    )
    return Redirect(
        "admin/policies" if form.remove else f"admin/policy{query(kind=kind, name=name)}"
    )


def _whose(asked: PolicyQuery) -> tuple[PolicyKind, str | None]:
    if (asked.kind == "everyone") != (asked.name is None):
        raise Refused("bad-request", "name: a user or a group has one, everybody none", status=400)
    return asked.kind, asked.name


def _document(written: str) -> PolicyDocument:
    """The editor's text as a policy, or a refusal that says where it is wrong."""
    try:
        return PolicyDocument.model_validate(json.loads(written))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise Refused("bad-policy", f"{place[:100]}: {first['msg'][:300]}", status=422) from None
    except (ValueError, RecursionError) as error:
        raise Refused("bad-policy", f"This is not JSON: {str(error)[:200]}", status=422) from None


# --- queue ------------------------------------------------------------------------------------


async def admin_queue_page(call: Call[_No, _No]) -> Page:
    return queue_page(
        await call.broker.queue.all(), await _platform(call), now_us(),
        may_change=call.caller.is_admin,
    )  # fmt: skip


async def admin_remove_request(call: Call[models.StopForm, _No]) -> Redirect:
    await call.broker.queue.leave(
        call.path["request_id"], None, call.caller.label[:255], call.body.reason
    )
    return Redirect("admin/queue")


# --- prices -----------------------------------------------------------------------------------


async def admin_prices_page(call: Call[_No, PriceQuery]) -> Page:
    asked, money = call.query, call.broker.money
    offers = await call.broker.offers(None)
    currency = offers[0].currency if offers else ""
    following = None
    if asked.slice is not None:
        body = _price(asked.slice, asked.price_list, asked.rate, asked.from_utc, "preview")
        preview = await money.preview_price(body)
        following = announcement(body, preview, asked.rate, asked.from_utc, currency)
    return prices_page(
        await money.prices(), [(offer.slice, offer.title) for offer in offers], following,
        await _platform(call), now_us(), currency, may_change=call.caller.is_admin,
    )  # fmt: skip


async def admin_set_price(call: Call[PriceForm, _No]) -> Redirect:
    form = call.body
    body = _price(form.slice, form.price_list, form.rate, form.from_utc, form.reason)
    await call.broker.money.set_price(body, call.caller.label[:255])
    return Redirect("admin/prices")


def _price(slice_name: str, price_list: str, rate: str, from_utc: str, reason: str) -> SetPrice:
    return SetPrice(
        price_list=price_list, slice=slice_name, rate_u_per_hour=_money(rate, "price"),
        from_us=_moment(from_utc), reason=reason,
    )  # fmt: skip


def _moment(written: str) -> int | None:
    """A browser's date and time, meant as UTC unless it names another zone; empty: now."""
    if not written:
        return None
    try:
        found = datetime.fromisoformat(written)
    except ValueError:
        raise Refused(
            "bad-request", "from: write a date and a time, such as 2027-01-31 08:00", status=400
        ) from None
    moment = from_datetime(found if found.tzinfo else found.replace(tzinfo=UTC))
    if not 0 <= moment <= MAX_TIME_US:
        raise Refused(
            "bad-request", "from: write a date between the years 1970 and 9999", status=400
        )
    return moment


# --- one lease --------------------------------------------------------------------------------


async def admin_refund(call: Call[RefundForm, _No]) -> Redirect:
    amount_u = _positive(call.body.amount) if call.body.amount else None
    body = RefundLease(amount_u=amount_u, reason=call.body.reason)
    await call.broker.money.refund_lease(call.lease_id, body, call.caller.label[:255])
    return Redirect(f"leases/{call.lease_id}")


async def admin_credit(call: Call[CreditForm, _No]) -> Redirect:
    lease = await call.broker.lease(call.lease_id)
    if lease is None:
        raise no_such_lease()
    body = GiveCredit(
        whose="user", name=lease.user, amount_u=_positive(call.body.amount),
        reason=call.body.reason,
    )  # fmt: skip
    await call.broker.money.give_credit(body, call.caller.label[:255])
    return Redirect(f"leases/{call.lease_id}")


# --- helpers ----------------------------------------------------------------------------------


def _money(written: str, what: str) -> int:
    try:
        return parse_money(written)
    except UnitError as error:
        raise Refused("bad-request", f"{what}: {error}"[:300], status=400) from None


def _positive(written: str) -> int:
    amount_u = _money(written, "amount")
    if amount_u == 0:
        raise Refused("bad-request", "amount: has to be more than nothing", status=400)
    return amount_u


async def _platform(call: Call[Any, Any]) -> Platform:
    return Platform.of(await call.broker.health())


def _routes() -> tuple[AnyRoute, ...]:
    no, a = models.Nothing, Access
    get, post = "GET", "POST"
    lease = "admin/leases/{lease_id}"
    return (
        Route(get, "admin/policies", a.READ_ALL, admin_policies_page, no, PoliciesQuery, Page,
              "Policies in words"),
        Route(get, "admin/policy", a.READ_ALL, admin_policy_page, no, PolicyQuery, Page,
              "One policy, its editor and its history"),
        Route(post, "admin/policy", a.ADMIN, admin_set_policy, PolicyForm, no, Redirect,
              "Replace or remove a policy"),
        Route(get, "admin/queue", a.READ_ALL, admin_queue_page, no, no, Page, "Who waits"),
        Route(post, "admin/queue/{request_id}/remove", a.ADMIN, admin_remove_request,
              models.StopForm, no, Redirect, "Take somebody out of the queue, with a reason"),
        Route(get, "admin/prices", a.READ_ALL, admin_prices_page, no, PriceQuery, Page,
              "Prices, and a look at the one that is about to be announced"),
        Route(post, "admin/prices", a.ADMIN, admin_set_price, PriceForm, no, Redirect,
              "Announce a price"),
        Route(post, f"{lease}/refund", a.ADMIN, admin_refund, RefundForm, no, Redirect,
              "Give back what a lease cost, or a part"),
        Route(post, f"{lease}/credit", a.ADMIN, admin_credit, CreditForm, no, Redirect,
              "Give credit to the user of a lease"),
    )  # fmt: skip


ROUTES = _routes()
