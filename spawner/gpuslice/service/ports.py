"""What the service needs of the broker, as types; the real one is ``gpuslice.broker.Broker``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from gpuslice import wire
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
)
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
from gpuslice.broker.queuedesk import ChangeRequest, JoinFor, RequestView
from gpuslice.broker.reservationviews import (
    AddReservation,
    CancelReservation,
    ChangeReservation,
    ReservationView,
)
from gpuslice.broker.stats import Snapshot
from gpuslice.broker.strangers import AdoptServer, Stranger
from gpuslice.ledger.idempotency import Claim, Done
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.quotas.views import ExplainRequest, Explanation, PolicyKind, PolicyView


class Core(Protocol):
    """What the broker does for requests that come twice."""

    async def done_before(self, caller: str, key: str) -> Done | None:
        """What a key has done, if anything. Raises Refused (503)."""

    async def keep_answer(self, claim: Claim, status: int, text: str) -> None:
        """Keep the answer to a request whose effect is committed. Raises Refused (503)."""


class PolicyDesk(Protocol):
    """Policies, and why somebody would be refused; all may raise Refused."""

    async def page(
        self, find: str | None, after: int | None, limit: int
    ) -> tuple[list[PolicyView], int | None]: ...

    async def one(self, kind: PolicyKind, name: str | None) -> PolicyView: ...

    async def history(
        self, kind: PolicyKind, name: str | None, before: int | None, limit: int
    ) -> tuple[list[PolicyView], int | None]: ...

    async def set(
        self, kind: PolicyKind, name: str | None, document: PolicyDocument | None,
        version: int | None, reason: str, actor: str,
    ) -> PolicyView | None: ...  # fmt: skip

    async def explain(self, body: ExplainRequest) -> Explanation: ...


class QueueDesk(Protocol):
    """The queue; all may raise Refused."""

    async def join(self, body: JoinFor) -> RequestView: ...

    async def mine(self, user: str) -> list[RequestView]: ...

    async def page(
        self, user: str, live: bool | None, limit: int, before: str | None
    ) -> tuple[list[RequestView], str | None]: ...

    async def all(self) -> list[RequestView]: ...

    async def change(self, request_id: str, user: str, body: ChangeRequest) -> RequestView: ...

    async def leave(
        self, request_id: str, user: str | None, actor: str, reason: str | None
    ) -> RequestView: ...


class ReservationDesk(Protocol):
    """Slices set aside for groups; all may raise Refused."""

    async def all(
        self, *, over: bool, limit: int, before: int | None
    ) -> tuple[list[ReservationView], int | None]: ...

    async def one(self, reservation_id: int) -> ReservationView: ...

    async def add(self, body: AddReservation, actor: str) -> ReservationView: ...

    async def change(
        self, reservation_id: int, body: ChangeReservation, actor: str
    ) -> ReservationView: ...

    async def cancel(
        self, reservation_id: int, body: CancelReservation, actor: str
    ) -> ReservationView: ...


class MoneyDesk(Protocol):
    """Prices, credit, corrections, entries; all may raise Refused."""

    async def prices(self) -> list[PriceView]: ...

    async def preview_price(self, body: SetPrice) -> PricePreview: ...

    async def set_price(self, body: SetPrice, actor: str) -> PriceView: ...

    async def credits(
        self, whose: str | None, name: str | None, before: int | None, limit: int
    ) -> tuple[list[CreditView], int | None]: ...

    async def give_credit(self, body: GiveCredit, actor: str) -> CreditView: ...

    async def grant_more(self, lease_id: str, body: GrantMore, actor: str) -> None: ...

    async def correct(self, body: Correct, actor: str) -> EntryView: ...

    async def refund_lease(
        self, lease_id: str, body: RefundLease, actor: str
    ) -> list[EntryView]: ...

    async def entries(
        self, whose: str | None, name: str | None, before: int | None, limit: int
    ) -> tuple[list[EntryView], int | None]: ...

    def export(
        self, whose: str | None, name: str | None, from_us: int, til_us: int
    ) -> AsyncIterator[Sequence[EntryView]]: ...

    async def digests(
        self, before: int | None, limit: int
    ) -> tuple[list[DigestView], int | None]: ...

    async def usage(self, whose: str, name: str) -> Usage: ...


class PeopleDesk(Protocol):
    """Accounts and whom they belong to; all may raise Refused."""

    async def all(
        self, kind: AccountKind | None, state: AccountState, find: str | None,
        after: int, limit: int,
    ) -> AccountPage: ...  # fmt: skip

    async def one(self, account_id: int) -> AccountDetail: ...

    async def named(self, kind: AccountKind, name: str) -> AccountDetail: ...

    async def rename(self, name: str, body: RenameUser, actor: str) -> AccountDetail: ...

    async def close(self, name: str, body: CloseUser, actor: str) -> AccountDetail: ...

    async def close_missing(self, body: CloseMissing, actor: str) -> Closed: ...

    async def set_parent(self, name: str, body: SetParent, actor: str) -> AccountDetail: ...

    async def import_(self, body: ImportPeople, actor: str) -> Imported: ...


class StrangerDesk(Protocol):
    """Servers that run without a lease; all may raise Refused."""

    async def all(self) -> list[Stranger]: ...

    async def adopt(self, lease_id: str, body: AdoptServer, actor: str) -> Stranger: ...

    async def end(self, lease_id: str, reason: str, actor: str) -> Stranger: ...


class DeviceDesk(Protocol):
    """Decisions about devices; may raise Refused."""

    async def clear(
        self, node_id: str, uuid: str, body: wire.ClearDevice, actor: str
    ) -> wire.DeviceView: ...


class Broker(Protocol):
    """The facade over leases and ledger. No method blocks the event loop; none calls the hub
    inside a transaction. The desks are parts of it, by what they are about."""

    @property
    def core(self) -> Core: ...

    @property
    def policies(self) -> PolicyDesk: ...

    @property
    def money(self) -> MoneyDesk: ...

    @property
    def queue(self) -> QueueDesk: ...

    @property
    def people(self) -> PeopleDesk: ...

    @property
    def strangers(self) -> StrangerDesk: ...

    @property
    def reservations(self) -> ReservationDesk: ...

    @property
    def fleet(self) -> DeviceDesk: ...

    async def offers(self, user: str | None, groups: Sequence[str] = ()) -> list[wire.Offer]:
        """Slice types as this user of these groups may take them; ``None``: as anybody."""

    async def choices(self, user: str, groups: Sequence[str], server: str = "") -> wire.Choices:
        """The offers, and how many slices the user's limit leaves."""

    async def grant(self, req: wire.LeaseRequest) -> wire.LeaseGrant:
        """A lease, the same one for the same ``attempt``. Raises Refused."""

    async def started(self, lease_id: str, body: wire.ServerStarted) -> None:
        """Move ``granted → running``. Raises Refused (409)."""

    async def stop(
        self, lease_id: str, body: wire.StopLease, *, ask_hub: bool = False
    ) -> wire.LeaseView:
        """Commit a stop with its reason; with ``ask_hub`` the hub then ends the server, without it
        the caller does. Raises Refused (404, 409)."""

    async def settle(self, lease_id: str, wait_s: float) -> wire.LeaseView:
        """Reconcile one lease now; returns when it ended or after ``wait_s``. Raises Refused."""

    async def lease(self, lease_id: str, user: str | None = None) -> wire.LeaseView | None:
        """One lease, or None; with ``user`` another's is as if it were not there, in time too."""

    async def current(self, user: str, server: str) -> wire.LeaseView | None:
        """The live lease of a named server, or None."""

    async def leases(
        self, user: str | None, live: bool | None, limit: int, before: str | None
    ) -> tuple[list[wire.LeaseView], str | None]:
        """Newest first, with the cursor of the next page. Raises Refused for a wrong cursor."""

    async def me(self, user: str, server: str | None, groups: Sequence[str] = ()) -> wire.Me:
        """The user's own state; with ``server`` only that server's lease. A limit of one of the
        ``groups`` may be the one that holds."""

    async def notices(self, user: str, since: int) -> list[wire.Notice]:
        """Notices with an id above ``since``, oldest first."""

    async def keep(self, user: str, lease_id: str) -> wire.LeaseView:
        """Protect a lease from the idle stop for a while. Raises Refused."""

    async def devices(self) -> list[wire.DeviceView]:
        """All devices and who holds them."""

    async def bill(self, lease_id: str, user: str | None = None) -> wire.Bill | None:
        """A lease with its closed segments and the entries that paid them, or None; ``user`` as
        for `lease`."""

    async def limits(
        self, find: str | None, after: int | None, limit: int
    ) -> tuple[list[wire.LimitView], int | None]:
        """Limits on leases that hold now, and the ``after`` of the next page; ``find``: only of
        those with this in their names."""

    async def set_limit(self, body: wire.SetLimit, actor: str) -> wire.LimitView:
        """Change a limit, with its audit row. Raises Refused (400; 409 for a stale version)."""

    async def audit(self, limit: int, before: int | None) -> list[wire.AuditRow]:
        """The newest administrative acts, or those before number ``before``."""

    async def drain(self, reason: str, actor: str) -> int:
        """Commit a stop for all live leases, refuse new grants; how many still live."""

    async def health(self) -> Mapping[str, object]:
        """How the broker is; :class:`gpuslice.service.platform.Platform` says which keys."""

    async def metrics_snapshot(self) -> Snapshot:
        """Counts for /metrics. Raises Refused (503)."""
