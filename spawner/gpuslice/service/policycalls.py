"""Policies over REST: read, replace, remove, and *why was I refused?*"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gpuslice.quotas.views import (
    ExplainRequest,
    Explanation,
    PolicyKind,
    PolicyView,
    RemovePolicy,
    SetPolicy,
)
from gpuslice.service import models
from gpuslice.service.auth import Access
from gpuslice.service.calls import Call
from gpuslice.service.route import AnyRoute, Route
from gpuslice.wire import UserName, Wire

_No = models.Nothing


class PoliciesQuery(Wire):
    """One page of the policies that hold now, everyone's first. ``find``: a part of the name."""

    find: Annotated[UserName | None, models.LeftEmpty] = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    after: Annotated[int, Field(ge=0, le=1 << 62)] | None = None


class PolicyPage(Wire):
    """Policies. ``next`` is the ``after`` of the following page; null: no more."""

    policies: list[PolicyView]
    next: int | None


class HistoryQuery(Wire):
    """One page of a policy's versions, newest first."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    before: Annotated[int, Field(ge=1, le=1 << 31)] | None = None


class HistoryPage(Wire):
    """Versions, newest first. ``next`` is the ``before`` of the following page; null: no more."""

    versions: list[PolicyView]
    next: int | None


async def policies(call: Call[_No, PoliciesQuery]) -> PolicyPage:
    query = call.query
    found, following = await call.broker.policies.page(query.find, query.after, query.limit)
    return PolicyPage(policies=found, next=following)


async def policy_of_everyone(call: Call[_No, _No]) -> PolicyView:
    return await call.broker.policies.one("everyone", None)


async def policy_of_user(call: Call[_No, _No]) -> PolicyView:
    return await call.broker.policies.one("user", call.path["name"])


async def policy_of_group(call: Call[_No, _No]) -> PolicyView:
    return await call.broker.policies.one("group", call.path["name"])


async def history_of_everyone(call: Call[_No, HistoryQuery]) -> HistoryPage:
    return await _history(call, "everyone", None)


async def history_of_user(call: Call[_No, HistoryQuery]) -> HistoryPage:
    return await _history(call, "user", call.path["name"])


async def history_of_group(call: Call[_No, HistoryQuery]) -> HistoryPage:
    return await _history(call, "group", call.path["name"])


async def _history(
    call: Call[_No, HistoryQuery], kind: PolicyKind, name: str | None
) -> HistoryPage:
    query = call.query
    found, following = await call.broker.policies.history(kind, name, query.before, query.limit)
    return HistoryPage(versions=found, next=following)


async def set_policy_of_everyone(call: Call[SetPolicy, _No]) -> PolicyView:
    return await _set(call, "everyone", None)


async def set_policy_of_user(call: Call[SetPolicy, _No]) -> PolicyView:
    return await _set(call, "user", call.path["name"])


async def set_policy_of_group(call: Call[SetPolicy, _No]) -> PolicyView:
    return await _set(call, "group", call.path["name"])


async def _set(call: Call[SetPolicy, _No], kind: PolicyKind, name: str | None) -> PolicyView:
    body = call.body
    found = await call.broker.policies.set(
        kind, name, body.document, body.version, body.reason, call.caller.label[:255]
    )
    assert found is not None
    return found


async def remove_policy_of_everyone(call: Call[RemovePolicy, _No]) -> _No:
    return await _remove(call, "everyone", None)


async def remove_policy_of_user(call: Call[RemovePolicy, _No]) -> _No:
    return await _remove(call, "user", call.path["name"])


async def remove_policy_of_group(call: Call[RemovePolicy, _No]) -> _No:
    return await _remove(call, "group", call.path["name"])


async def _remove(call: Call[RemovePolicy, _No], kind: PolicyKind, name: str | None) -> _No:
    body = call.body
    await call.broker.policies.set(
        kind, name, None, body.version, body.reason, call.caller.label[:255]
    )
    return _No()


async def explain(call: Call[ExplainRequest, _No]) -> Explanation:
    return await call.broker.policies.explain(call.body)


def _routes() -> tuple[AnyRoute, ...]:
    no, a = models.Nothing, Access
    get, put, post, delete = "GET", "PUT", "POST", "DELETE"
    base = "api/admin/policies"
    return (
        Route(get, base, a.READ_ALL, policies, no, PoliciesQuery, PolicyPage,
              "All policies that hold now"),
        Route(get, f"{base}/everyone", a.READ_ALL, policy_of_everyone, no, no, PolicyView,
              "What holds for everyone"),
        Route(get, f"{base}/users/{{name}}", a.READ_ALL, policy_of_user, no, no, PolicyView,
              "A user's own policy"),
        Route(get, f"{base}/groups/{{name}}", a.READ_ALL, policy_of_group, no, no, PolicyView,
              "A group's policy: each member, and the group in total"),
        Route(get, f"{base}/everyone/history", a.READ_ALL, history_of_everyone, no,
              HistoryQuery, HistoryPage, "Its versions, newest first"),
        Route(get, f"{base}/users/{{name}}/history", a.READ_ALL, history_of_user, no,
              HistoryQuery, HistoryPage, "Its versions, newest first"),
        Route(get, f"{base}/groups/{{name}}/history", a.READ_ALL, history_of_group, no,
              HistoryQuery, HistoryPage, "Its versions, newest first"),
        Route(put, f"{base}/everyone", a.ADMIN, set_policy_of_everyone, SetPolicy, no, PolicyView,
              "Replace what holds for everyone; 409 if it is not the version that was read"),
        Route(put, f"{base}/users/{{name}}", a.ADMIN, set_policy_of_user, SetPolicy, no,
              PolicyView, "Replace a user's own policy; 409 as above"),
        Route(put, f"{base}/groups/{{name}}", a.ADMIN, set_policy_of_group, SetPolicy, no,
              PolicyView, "Replace a group's policy; 409 as above"),
        Route(delete, f"{base}/everyone", a.ADMIN, remove_policy_of_everyone, RemovePolicy, no,
              models.Nothing, "Remove it: what the settings say holds again at the next start"),
        Route(delete, f"{base}/users/{{name}}", a.ADMIN, remove_policy_of_user, RemovePolicy, no,
              models.Nothing, "Remove it: what it said is inherited again"),
        Route(delete, f"{base}/groups/{{name}}", a.ADMIN, remove_policy_of_group, RemovePolicy, no,
              models.Nothing, "Remove it: what it said is inherited again"),
        Route(post, "api/admin/explain", a.READ_ALL, explain, ExplainRequest, no, Explanation,
              "Why a user would be admitted or refused now: every limit, by the code that decides",
              changes=False),
    )  # fmt: skip


ROUTES = _routes()
