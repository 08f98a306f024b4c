"""A device in quarantine is granted again when somebody has looked at it, and not before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from fakenode import NODE, gpu, mig
from gpuslice import wire
from gpuslice.ledger.tables import Audit
from ledgerworld import World
from quotaworld import finish, refused, spawn, stop_all


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(
        database_url,
        devices=[gpu("GPU-a", 0), gpu("GPU-c", 1, mig_enabled=True), mig("MIG-c0", "GPU-c", 2, 0)],
    )
    yield made
    stop_all(made)
    assert made.problems() == []
    made.close()


def device(world: World, uuid: str) -> wire.DeviceView:
    found = world.do(world.live().devices())
    return next(one for one in found if one.uuid == uuid)


def clear(world: World, uuid: str, version: int | None = None) -> wire.DeviceView:
    if version is None:
        version = device(world, uuid).version
    body = wire.ClearDevice(version=version, reason="killed what was left")
    return world.do(world.live().fleet.clear(NODE, uuid, body, "root"))


def leave_dirt(world: World, slice_name: str, user: str = "ada") -> None:
    """A lease after which the node finds something left on its device."""
    lease = spawn(world, user, slice_name, [])
    world.node.unclean = "processes are left on it: [77]"
    finish(world, lease)
    world.node.unclean = None


@pytest.mark.parametrize(
    ("slice_name", "uuid"), [("whole", "GPU-a"), ("quarter", "GPU-a"), ("mig", "MIG-c0")]
)
def test_a_device_is_cleared_when_nothing_is_left_on_it(
    world: World, slice_name: str, uuid: str
) -> None:
    leave_dirt(world, slice_name)
    assert device(world, uuid).state == "quarantined"
    assert "processes are left" in (device(world, uuid).state_reason or "")
    assert refused(lambda: world.grant("bob", slice_name)).refusal.reason == "devices-sick"

    world.node.wrong[uuid] = "processes are on it: [77]"
    still = refused(lambda: clear(world, uuid))
    assert (still.refusal.reason, still.status) == ("not-clean", 409)
    assert "processes are on it: [77]" in str(still)
    world.node.up = False
    assert refused(lambda: clear(world, uuid)).refusal.reason == "runtime-unavailable"
    world.node.up = True
    assert device(world, uuid).state == "quarantined"

    world.node.wrong.clear()
    before = device(world, uuid).version
    cleared = clear(world, uuid)
    assert (cleared.state, cleared.state_reason) == ("ok", None)
    assert cleared.version > before
    (audit,) = world.database.read(
        lambda s: s.scalars(sa.select(Audit).where(Audit.action == "device.state")
                            .order_by(Audit.id.desc()).limit(1)).all()
    )  # fmt: skip
    assert (audit.actor, audit.reason) == ("root", "killed what was left")
    assert (audit.before, audit.after) == ('"quarantined"', '"ok"')
    spawn(world, "bob", slice_name, [])


def test_while_a_lease_holds_a_part_of_it_it_stays(world: World) -> None:
    neighbour = spawn(world, "bob", "half", [])
    leave_dirt(world, "quarter")
    held = refused(lambda: clear(world, "GPU-a"))
    assert (held.refusal.reason, held.status) == ("device-held", 409)
    finish(world, neighbour)
    clear(world, "GPU-a")


def test_what_cannot_be_cleared(world: World) -> None:
    assert refused(lambda: clear(world, "GPU-z", 1)).status == 404
    assert refused(lambda: clear(world, "GPU-a")).refusal.reason == "not-quarantined"
    leave_dirt(world, "whole")
    seen = device(world, "GPU-a").version
    stale = refused(lambda: clear(world, "GPU-a", seen - 1))
    assert (stale.refusal.reason, stale.status) == ("stale-version", 409)
    calls = len([call for call in world.node.calls if call == "look"])
    assert calls == 0  # the node is asked about nothing that is refused anyway
    clear(world, "GPU-a", seen)


def test_what_changes_while_the_node_looks_is_seen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else clears it, and it is dirty again, before the first one's answer is there."""
    leave_dirt(world, "whole")
    seen = device(world, "GPU-a").version
    real = world.node.look

    async def meanwhile(uuid: str) -> wire.DeviceCheck:
        monkeypatch.setattr(world.node, "look", real)
        body = wire.ClearDevice(version=seen, reason="quicker")
        await world.live().fleet.clear(NODE, uuid, body, "other")
        return await real(uuid)

    monkeypatch.setattr(world.node, "look", meanwhile)
    assert refused(lambda: clear(world, "GPU-a", seen)).refusal.reason == "not-quarantined"
    leave_dirt(world, "whole", "cy")
    assert refused(lambda: clear(world, "GPU-a", seen)).refusal.reason == "stale-version"
