"""What the broker and its desks share: the ledger under this meter's epoch, and its errors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy.orm import Session

from gpuslice.broker import meter, stats
from gpuslice.broker.grant import FULL_RETRY_S
from gpuslice.errors import Refused
from gpuslice.ledger import idempotency
from gpuslice.ledger.database import Database, LedgerError
from gpuslice.settings import Settings
from gpuslice.units import now_us

log = logging.getLogger(__name__)
T = TypeVar("T")

#: The key of the request that is being served, if it came with one.
CLAIM: ContextVar[idempotency.Claim | None] = ContextVar("claim", default=None)


@dataclass(frozen=True)
class HubUser:
    """A user as the hub has them now."""

    name: str
    groups: tuple[str, ...]
    #: When each server that is ready was last used, as the hub knows (UTC microseconds), by name.
    active_us: Mapping[str, int | None]
    #: When the hub made them, if it may say so: a rename keeps it, another user has another.
    created_us: int | None = None


class Hub(Protocol):
    """What the broker needs of the hub; every call may raise any exception."""

    async def stop_server(self, user: str, server: str) -> None:
        """End one server as its user would."""

    async def start_server(self, user: str, server: str, options: Mapping[str, str]) -> None:
        """Start one as its user would; returns when the hub has begun to."""

    async def user(self, name: str) -> HubUser | None:
        """A user as the hub has them now; None: there is none."""

    async def users(self) -> Sequence[HubUser]:
        """All users, every one of them: a list that may lack somebody is an exception."""


class Core:
    """Transactions for everybody who works on one ledger."""

    def __init__(
        self, settings: Settings, database: Database, clock: Callable[[], int] = now_us
    ) -> None:
        self.settings = settings
        self.db = database
        #: The time, UTC microseconds.
        self.now = clock
        self.epoch = 0
        #: Counts transactions that may have written; while it is the same, so is the ledger.
        self.writes = 0
        self.errors = stats.Errors()

    async def write(self, work: Callable[[Session, int], T]) -> T:
        """One transaction of this meter's epoch; ``work`` gets the session and the time.

        The first one of a request that came with an idempotency key takes that key with it.

        Raises:
            LedgerError: the ledger cannot be written, or is another meter's now.
            AlreadyDone: the request's key was used before.
        """
        claim = CLAIM.get()

        def guarded(session: Session) -> T:
            now = self.now()
            meter.check(session, self.epoch, now=now)
            if claim is not None and not claim.taken:
                idempotency.claim(session, claim, now)
            return work(session, now)

        try:
            result = await self.db.awrite(guarded)
        finally:
            self.writes += 1  # also where nobody knows: a commit may have come through
        if claim is not None:
            claim.taken = True
        return result

    async def read(self, work: Callable[[Session], T]) -> T:
        """One consistent look at the ledger."""
        return await self.db.aread(work)

    async def serve(self, job: Awaitable[T]) -> T:
        """A user's call: a ledger that cannot be used is a refusal in words, not a crash."""
        try:
            return await job
        except LedgerError as error:
            self.errors.count("ledger")
            log.error("event=ledger-unavailable message=%r", str(error))
            raise Refused(
                "ledger-unavailable",
                "The ledger cannot be written or read now, so nothing is started; running "
                "servers go on. Try again in a minute, or tell an administrator.",
                status=503,
                retry_after_s=FULL_RETRY_S,
            ) from error

    async def serve_write(self, work: Callable[[Session, int], T]) -> T:
        """`write` for a user's call."""
        return await self.serve(self.write(work))

    async def serve_read(self, work: Callable[[Session], T]) -> T:
        """`read` for a user's call."""
        return await self.serve(self.read(work))

    # --- idempotency keys --------------------------------------------------------------------

    async def done_before(self, caller: str, key: str) -> idempotency.Done | None:
        """What a key has done."""
        return await self.serve_read(lambda session: idempotency.find(session, caller, key))

    async def keep_answer(self, claim: idempotency.Claim, status: int, text: str) -> None:
        """Keep the answer to a request whose effect is committed."""
        await self.serve_write(
            lambda session, _now: idempotency.answer(session, claim, status, text)
        )
