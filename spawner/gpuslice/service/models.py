"""Bodies, queries and answers that only the REST surface has; all others are in ``wire``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpuslice.wire import LeaseId, LeaseView, Reason, ServerName, UserName, Wire

#: Where the next page starts, as the page before said it; nobody should look inside.
Cursor = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9_.:=-]+$")]


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


class NoticesQuery(Wire):
    """Only notices with an id above this one."""

    since: Annotated[int, Field(ge=0, le=1 << 62)] = 0


class HomeQuery(Wire):
    """Where the table of past leases starts on the page."""

    before: Cursor | None = None


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


# --- answers --------------------------------------------------------------------------------


class LeasePage(Wire):
    """Leases, newest first. ``next`` is the ``before`` of the following page; null: no more."""

    leases: list[LeaseView]
    next: str | None


class Drained(Wire):
    """How many leases are still live after a drain was committed."""

    live: int


class Health(Wire):
    """Whether the service can do its work; details are in the metrics."""

    status: Literal["ok", "degraded"]
