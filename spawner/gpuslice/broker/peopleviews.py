"""Messages about accounts and the people they belong to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gpuslice.broker.moneyviews import Amount
from gpuslice.hubnames import group_name, user_name
from gpuslice.quotas.documents import EachLimits, PolicyDocument
from gpuslice.wire import Micros, Money, Reason, Wire

AccountKind = Literal["user", "group", "platform"]
#: ``missing``: open, and the hub has such a user no more.
AccountState = Literal["open", "missing", "closed", "all"]


#: A group that the hub can have; some login providers' begin with a ``/``.
GroupName = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(group_name)]
#: A user whom the hub can have: it allows no ``/`` there.
HubName = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(user_name)]
Version = Annotated[int, Field(ge=1, le=1 << 31)]


class AccountView(Wire):
    """An account. ``name`` is what it is called now; a closed one's has its number behind a
    ``/``, so that it is nobody's. ``parent`` is the group above a group."""

    account_id: int
    kind: AccountKind
    name: str
    parent: str | None
    version: int
    opened_us: Micros
    closed_us: Micros | None
    missing_since_us: Micros | None


class AccountPage(Wire):
    """Accounts by number. ``next`` is the ``after`` of the following page; null: no more."""

    accounts: list[AccountView]
    next: int | None


class NameView(Wire):
    """What an account was called from a moment to another; ``til_us`` null: it still is."""

    name: str
    from_us: Micros
    til_us: Micros | None


class AccountDetail(AccountView):
    """An account with all its names, oldest first, what it has used and what it holds."""

    names: list[NameView]
    spent_u: int
    gpu_us: int
    held_u: Money
    credit_u: Money
    live_leases: int
    waiting: int


class RenameUser(Wire):
    """Another name for the same account. ``version`` is the account's that was read."""

    to: HubName
    version: Version
    reason: Reason


class CloseUser(Wire):
    """Closes an account for ever. ``version`` is the one that was read."""

    version: Version
    reason: Reason


class CloseMissing(Wire):
    """Closes the accounts of all users that the hub has had no more for long enough; ``count``
    says how many that is, as it was read, so that nobody closes more than they saw."""

    count: Annotated[int, Field(ge=1, le=1 << 31)]
    reason: Reason


class Closed(Wire):
    """The names whose accounts were closed."""

    names: list[str]


class SetParent(Wire):
    """Puts a group below another one, or (null) below none. ``version`` is that of the group's
    account that was read; null: it has none yet."""

    parent: GroupName | None
    version: Version | None
    reason: Reason


# --- in bulk --------------------------------------------------------------------------------

#: Names what credit is given for, so that it is given once, however often a list is imported.
CreditName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]


class ImportRow(Wire):
    """One user of a list. Only the fields of ``each`` that are given are set (null and an empty
    list: inherited again); all others stay as they are."""

    user: HubName
    groups: list[GroupName] = Field([], max_length=50)
    each: EachLimits = EachLimits()
    credit_u: Amount | None = None


class ImportPeople(Wire):
    """Policies and credit of many users: all of it is done, or nothing."""

    rows: list[ImportRow] = Field(min_length=1, max_length=200)
    credit_name: CreditName | None = None
    reason: Reason
    dry_run: bool = False


class ImportChange(Wire):
    """What becomes of one user. Credit ``differs``: another amount was given under this name."""

    user: str
    policy: Literal["none", "created", "changed", "removed", "unchanged"]
    before: PolicyDocument | None
    after: PolicyDocument | None
    credit: Literal["none", "given", "given-before", "differs"]
    credit_u: Money | None
    #: What the hub lacks; null: it did not say, or was not asked (only a dry run asks).
    in_hub: bool | None
    not_in_groups: list[str] | None


class Imported(Wire):
    """What was changed, or with ``dry_run`` would be, in the order of the list."""

    changes: list[ImportChange]
    done: bool


__all__ = [
    "AccountDetail",
    "AccountKind",
    "AccountPage",
    "AccountState",
    "AccountView",
    "CloseMissing",
    "CloseUser",
    "Closed",
    "CreditName",
    "GroupName",
    "HubName",
    "ImportChange",
    "ImportPeople",
    "ImportRow",
    "Imported",
    "NameView",
    "RenameUser",
    "SetParent",
]
