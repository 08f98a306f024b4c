"""Bodies, queries and answers that only the REST surface has; all others are in ``wire``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from gpuslice.wire import (
    AuditRow,
    LeaseId,
    LeaseView,
    LimitView,
    Reason,
    ServerName,
    SliceName,
    UserName,
    Wire,
)

#: Where the next page starts, as the page before said it; nobody should look inside.
Cursor = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9_.:=-]+$")]
#: How an administrator may sort live leases.
LeaseSort = Literal["since", "user", "slice", "device", "cost", "use"]
PageNumber = Annotated[int, Field(ge=1, le=10_000)]


def _empty_is_none(value: object) -> object:
    """A field of a form that was left empty."""
    return None if value == "" else value


LeftEmpty = BeforeValidator(_empty_is_none)


class Nothing(Wire):
    """An empty body, query or answer."""


# --- queries --------------------------------------------------------------------------------


class OffersQuery(Wire):
    """Whose offers the spawner asks for; without a user, everybody's."""

    user: UserName | None = None


class CurrentQuery(Wire):
    """Which named server's live lease the spawner asks for; the default server's name is empty."""

    user: UserName
    server: ServerName = ""


class SettleQuery(Wire):
    """How long to wait for the end of a lease."""

    wait_s: Annotated[float, Field(ge=0, le=60)] = 0.0


class LeasesQuery(Wire):
    """One page of leases. A ``limit`` above the largest is refused, not quietly lowered."""

    live: bool | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    before: Cursor | None = None


class AllLeasesQuery(LeasesQuery):
    """One page of everybody's leases, or of one user's."""

    user: UserName | None = None


class AuditQuery(Wire):
    """One page of administrative acts, newest first."""

    limit: Annotated[int, Field(ge=1, le=200)] = 50
    before: Annotated[int, Field(ge=1, le=1 << 62)] | None = None


class NoticesQuery(Wire):
    """Only notices with an id above this one."""

    since: Annotated[int, Field(ge=0, le=1 << 62)] = 0


class HomeQuery(Wire):
    """Where the table of past leases starts on the page."""

    before: Cursor | None = None


class EntriesPageQuery(Wire):
    """Where a page of the ledger's rows starts."""

    before: Annotated[int, Field(ge=1, le=1 << 62)] | None = None


class AdminQuery(Wire):
    """How the administrator's table of live leases is sorted, and which part of it is shown."""

    sort: LeaseSort = "since"
    page: PageNumber = 1
    user: Annotated[UserName | None, LeftEmpty] = None


class LimitsQuery(Wire):
    """One page of limits on leases, everybody's first. ``find``: a part of the name."""

    find: Annotated[UserName | None, LeftEmpty] = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    after: Annotated[int, Field(ge=0, le=1 << 62)] | None = None


# --- bodies ---------------------------------------------------------------------------------


class StopRequest(Wire):
    """A stop asked for by a person. Whoever stops somebody else's lease has to say why."""

    reason: Reason | None = None


class KeepRequest(Wire):
    """Which lease to keep. A notebook's token need not say: it speaks for one server."""

    lease_id: LeaseId | None = None


class DrainRequest(Wire):
    """Stop all leases and refuse new ones, with the reason that users will read."""

    reason: Reason
    actor: Annotated[str, Field(min_length=1, max_length=255)]


# --- forms of pages -------------------------------------------------------------------------

#: Why, in the words of whoever does it; spaces alone are no reason.
GivenReason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class StopForm(Wire):
    """An administrator's stop of somebody's lease."""

    reason: GivenReason


class ClearForm(Wire):
    """An administrator has looked at a quarantined device."""

    version: Annotated[int, Field(ge=0, le=1 << 62)]
    reason: GivenReason


class RequestForm(Wire):
    """A change of what a request waits for; what is left out stays as it is."""

    slice: Annotated[SliceName | None, LeftEmpty] = None
    auto_start: Literal["yes", "no"] | None = None
    version: int


class LimitForm(Wire):
    """A limit as the page's form sends it: a number, or the box *unlimited* ticked."""

    scope: Literal["default", "user", "group_member"]
    name: Annotated[
        Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255)]
        | None,
        LeftEmpty,
    ] = None
    value: Annotated[Annotated[int, Field(ge=0, le=1_000_000)] | None, LeftEmpty] = None
    unlimited: Literal["yes"] | None = None
    version: Annotated[int | None, LeftEmpty] = None
    reason: GivenReason


# --- answers --------------------------------------------------------------------------------


class LeasePage(Wire):
    """Leases, newest first. ``next`` is the ``before`` of the following page; null: no more."""

    leases: list[LeaseView]
    next: str | None


class LimitPage(Wire):
    """Limits on leases. ``next`` is the ``after`` of the following page; null: no more."""

    limits: list[LimitView]
    next: int | None


class AuditPage(Wire):
    """Administrative acts. ``next`` is the ``before`` of the following page; null: no more."""

    rows: list[AuditRow]
    next: int | None


class Drained(Wire):
    """How many leases are still live after a drain was committed."""

    live: int


class Health(Wire):
    """Whether the service can do its work; details are in the metrics.

    ``standby``: it waits for the end of another service on the same ledger, and does nothing.
    """

    status: Literal["ok", "degraded", "standby"]
