"""What tests of quotas, queue and money do over and over, on a `ledgerworld.World`."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.ledger.tables import Lease
from gpuslice.quotas import policies
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.units import MINUTE_US
from ledgerworld import World


def set_policy(world: World, kind: str, name: str, document: dict[str, Any]) -> None:
    def work(session: sa.orm.Session) -> None:
        account = policies.account_of(session, kind, name, world.now)
        subject = policies.subject_of(kind, account)
        before = policies.current(session, subject)
        policies.set_policy(
            session, subject, account, PolicyDocument.model_validate(document),
            expected=before.version if before else None, actor="root", reason="a test",
            now=world.now,
        )  # fmt: skip

    world.database.write(work)


def spawn(world: World, user: str, slice_name: str, groups: list[str], server: str = "",
          **more: Any) -> str:  # fmt: skip
    """A running server's lease; Refused."""
    request = wire.LeaseRequest(
        attempt=uuid.uuid4().hex, user=user, server=server, slice=slice_name, groups=groups, **more
    )
    lease_id = world.do(world.live().grant(request)).lease_id
    assert world.supervise(lease_id)
    return lease_id


def refused(job: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        job()
    return caught.value


def passes(world: World, us: int, step_us: int = MINUTE_US) -> None:
    """Time with a comparison every step, as the service does it."""
    til = world.now + us
    while world.now < til:
        world.now = min(til, world.now + step_us)
        world.reconcile()


def finish(world: World, lease_id: str) -> None:
    """The server ends, if the node has not ended it already."""
    server = world.node.servers.get(lease_id)
    if server is not None and server.runs:
        world.node.finish(server)
    world.settle_everything(3)


def notices(world: World, user: str) -> list[str]:
    return [one.kind for one in world.do(world.live().notices(user, 0))]


def stop_all(world: World) -> None:
    for server in list(world.node.servers.values()):
        if server.runs:
            world.stop(server.lease_id)
            world.node.finish(server)
    world.settle_everything(3)


def leases(world: World) -> list[Lease]:
    return world.database.read(lambda s: list(s.scalars(sa.select(Lease).order_by(Lease.id))))
