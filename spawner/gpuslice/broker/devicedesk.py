"""Devices as administrators decide about them."""

from __future__ import annotations

from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.broker import devices, views
from gpuslice.broker.core import Core
from gpuslice.broker.grant import FULL_RETRY_S
from gpuslice.errors import Refused
from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable


class DeviceDesk:
    """What was quarantined is granted again when the node finds nothing wrong with it now."""

    def __init__(self, core: Core, node: NodeClient) -> None:
        self._core = core
        self._node = node

    async def clear(
        self, node_id: str, uuid: str, body: wire.ClearDevice, actor: str
    ) -> wire.DeviceView:
        """Take a device out of quarantine.

        Raises:
            Refused: unknown, not quarantined, changed, held by a lease, or still not as it should
                be; or the node does not answer.
        """

        def may(session: Session) -> bool:
            try:
                devices.may_clear(session, node_id, uuid, body.version)
            except Refused:
                return False
            return True

        def work(session: Session, now: int) -> wire.DeviceView:
            devices.clear(
                session, node_id, uuid, body.version, body.reason, actor=actor[:255], now=now
            )  # fmt: skip
            session.expire_all()
            found = {(one.node_id, one.uuid): one for one in views.devices(session)}
            return found[node_id, uuid]

        if await self._core.serve_read(may):
            problem = await self._problem(uuid)
            if problem is not None:
                raise Refused(
                    "not-clean",
                    f"This device is still not as it should be: {problem}. It stays quarantined.",
                    status=409,
                )
        # Refused here if it may not be cleared. What the node said holds: nothing is granted on a
        # device in quarantine, and its version is looked at once more.
        return await self._core.serve_write(work)

    async def _problem(self, uuid: str) -> str | None:
        try:
            return (await self._node.look(uuid)).problem
        except (NodeUnavailable, NodeRefused) as error:
            raise Refused(
                "runtime-unavailable",
                f"Whether this device is clean is not known: {error.message}. Try again in a "
                "minute.",
                status=503,
                retry_after_s=FULL_RETRY_S,
            ) from error
