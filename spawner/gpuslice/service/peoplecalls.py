"""Accounts over REST: who there is, renames, closing, groups above groups, lists of people."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gpuslice.broker.peopleviews import (
    AccountDetail,
    AccountKind,
    AccountPage,
    AccountState,
    Closed,
    CloseMissing,
    CloseUser,
    Imported,
    ImportPeople,
    RenameUser,
    SetParent,
)
from gpuslice.service import models
from gpuslice.service.auth import Access
from gpuslice.service.calls import Call
from gpuslice.service.route import AnyRoute, Route
from gpuslice.wire import UserName, Wire

_No = models.Nothing


class AccountsQuery(Wire):
    """One page of accounts, by number. ``find``: a part of any name they ever had."""

    kind: AccountKind | None = None
    state: AccountState = "open"
    find: UserName | None = None
    after: Annotated[int, Field(ge=0, le=1 << 62)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


async def list_accounts(call: Call[_No, AccountsQuery]) -> AccountPage:
    query = call.query
    return await call.broker.people.all(
        query.kind, query.state, query.find, query.after, query.limit
    )


async def one_account(call: Call[_No, _No]) -> AccountDetail:
    return await call.broker.people.one(call.path["number"])


async def account_of_user(call: Call[_No, _No]) -> AccountDetail:
    return await call.broker.people.named("user", call.path["name"])


async def account_of_group(call: Call[_No, _No]) -> AccountDetail:
    return await call.broker.people.named("group", call.path["name"])


async def rename_user(call: Call[RenameUser, _No]) -> AccountDetail:
    return await call.broker.people.rename(call.path["name"], call.body, call.caller.label[:255])


async def close_user(call: Call[CloseUser, _No]) -> AccountDetail:
    return await call.broker.people.close(call.path["name"], call.body, call.caller.label[:255])


async def close_missing_users(call: Call[CloseMissing, _No]) -> Closed:
    return await call.broker.people.close_missing(call.body, call.caller.label[:255])


async def set_parent_of_group(call: Call[SetParent, _No]) -> AccountDetail:
    return await call.broker.people.set_parent(
        call.path["name"], call.body, call.caller.label[:255]
    )


async def import_people(call: Call[ImportPeople, _No]) -> Imported:
    return await call.broker.people.import_(call.body, call.caller.label[:255])


def _routes() -> tuple[AnyRoute, ...]:
    no, a = models.Nothing, Access
    get, put, post = "GET", "PUT", "POST"
    users, groups = "api/admin/users", "api/admin/groups"
    return (
        Route(get, "api/admin/accounts", a.READ_ALL, list_accounts, no, AccountsQuery, AccountPage,
              "Accounts of users and groups, and closed ones, by number"),
        # Before the one with a number in its place.
        Route(post, "api/admin/accounts/close-missing", a.ADMIN, close_missing_users, CloseMissing,
              no, Closed, "Close the accounts of all users that the hub has no more; 409 if they "
              "are not as many as was said"),
        Route(get, "api/admin/accounts/{number}", a.READ_ALL, one_account, no, no, AccountDetail,
              "One account with all its names, closed or not"),
        Route(get, f"{users}/{{name}}", a.READ_ALL, account_of_user, no, no, AccountDetail,
              "A user's account"),
        Route(get, f"{groups}/{{name}}", a.READ_ALL, account_of_group, no, no, AccountDetail,
              "A group's account"),
        Route(post, f"{users}/{{name}}/rename", a.ADMIN, rename_user, RenameUser, no,
              AccountDetail, "Give a user's account another name; 409 if that is taken"),
        Route(post, f"{users}/{{name}}/close", a.ADMIN, close_user, CloseUser, no, AccountDetail,
              "Close a user's account for ever; the name is free"),
        Route(put, f"{groups}/{{name}}/parent", a.ADMIN, set_parent_of_group, SetParent, no,
              AccountDetail, "Put a group below another one, or below none"),
        Route(post, "api/admin/import", a.ADMIN, import_people, ImportPeople, no, Imported,
              "Limits and credit of many users, all or nothing; the same again changes nothing"),
    )  # fmt: skip


ROUTES = _routes()
