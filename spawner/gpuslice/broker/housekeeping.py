"""What the broker does now and then, whoever uses it: close days, take back expired credit."""

from __future__ import annotations

import logging

from gpuslice.broker.core import Core
from gpuslice.ledger import closing, credit
from gpuslice.ledger.digest import Signer
from gpuslice.ledger.tables import Digest

log = logging.getLogger(__name__)

#: A round at the start, and then so often.
EVERY_S = 600.0


class Housekeeping:
    """Its rounds; each does what is due, and may be repeated or left out."""

    def __init__(self, core: Core, signer: Signer | None) -> None:
        self._core = core
        #: None: nobody gave the broker a key, so it signs nothing.
        self._signer = signer

    async def round(self) -> None:
        """Everything that is due.

        Raises:
            LedgerError: the ledger cannot be used; what was done before stays.
        """
        gone = await self._core.write(lambda session, now: credit.expire(session, now))
        if gone:
            log.info("event=credit-expired grants=%d", gone)
        if self._signer is not None:
            await self._close_days(self._signer)

    async def _close_days(self, signer: Signer) -> None:
        while True:
            # Hashed beside the writer: what a digest covers does not change any more.
            made = await self._core.read(
                lambda session: closing.next_digest(session, signer, self._core.now())
            )
            if made is None or not await self._write(made):
                return
            log.info("event=day-closed day=%s entries=%d sha256=%s", made.day, made.entries,
                     made.sha256)  # fmt: skip

    async def _write(self, made: Digest) -> bool:
        return await self._core.write(lambda session, _now: closing.add(session, made))
