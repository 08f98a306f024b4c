"""Servers without a lease, as administrators see them and decide about them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.broker import reconciler, strangers
from gpuslice.broker.core import Core
from gpuslice.broker.grant import FULL_RETRY_S, GrantRules
from gpuslice.broker.strangers import AdoptServer, Stranger
from gpuslice.errors import Refused
from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable

log = logging.getLogger(__name__)


class StrangerDesk:
    """Each decision looks at a fresh list of the node, and is one transaction with its audit."""

    def __init__(self, core: Core, node: NodeClient, rules: Callable[[], GrantRules]) -> None:
        self._core = core
        self._node = node
        self._rules = rules

    async def all(self) -> list[Stranger]:
        """What runs now without a lease.

        Raises:
            Refused: the node does not answer.
        """
        listing = await self._listing()

        def work(session: Session) -> list[Stranger]:
            unknown = set(reconciler.unaccounted(session, listing))
            ending = strangers.ended(session, unknown)
            return [
                strangers.view(report, listing.node_id, report.lease_id in ending)
                for report in listing.servers
                if report.lease_id in unknown
            ]

        return await self._core.serve_read(work)

    async def adopt(self, lease_id: str, body: AdoptServer, actor: str) -> Stranger:
        """Make the lease anew from what the node knows.

        Raises:
            Refused: it is none of these, or cannot be adopted.
        """
        report, node_id = await self._one(lease_id)

        def work(session: Session, now: int) -> Stranger:
            strangers.adopt(session, report, node_id, body, actor, self._rules(), now=now)
            return strangers.view(report, node_id, ending=False)

        return await self._core.serve_write(work)

    async def end(self, lease_id: str, reason: str, actor: str) -> Stranger:
        """Commit its end, and ask the node for it; the comparisons repeat that until it is over.

        Raises:
            Refused: it is none of these, or the node does not answer.
        """
        report, node_id = await self._one(lease_id)
        await self._core.serve_write(
            lambda session, now: strangers.end(session, lease_id, reason, actor, now=now)
        )
        try:
            await self._node.stop(lease_id, self._core.settings.timing.stop_grace_s)
        except (NodeUnavailable, NodeRefused) as error:
            # It is decided: a refusal would say that it may be asked for again, or is not to be.
            self._core.errors.count("node")
            log.warning("event=node-call-failed reason=%s message=%r", error.reason, error.message)
        return strangers.view(report, node_id, ending=True)

    async def _one(self, lease_id: str) -> tuple[wire.ServerReport, str]:
        listing = await self._listing()
        found = next((one for one in listing.servers if one.lease_id == lease_id), None)
        unknown = await self._core.serve_read(lambda s: reconciler.unaccounted(s, listing))
        if found is None or lease_id not in unknown:
            raise strangers.no_such_stranger()
        return found, listing.node_id

    async def _listing(self) -> wire.Listing:
        try:
            return await self._node.listing()
        except NodeUnavailable as error:
            raise Refused(
                "runtime-unavailable", f"The node cannot do that now: {error.message}.",
                status=503, retry_after_s=FULL_RETRY_S,
            ) from error  # fmt: skip
