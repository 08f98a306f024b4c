"""Two devices in quarantine, one for each route that clears one."""

from __future__ import annotations

from sqlalchemy.orm import Session

from fakenode import NODE
from gpuslice.broker.devices import set_state
from gpuslice.service.route import AnyRoute
from gpuslice.wire import DeviceState
from serviceledger import ServiceLedger

_DIRTY = {"clear_device": "MIG-c0", "admin_clear_device": "MIG-c1"}


def quarantine(world: ServiceLedger) -> None:
    """As after leases that left something on them."""

    def work(session: Session) -> None:
        for uuid in _DIRTY.values():
            set_state(
                session, NODE, uuid, DeviceState.QUARANTINED, "a test", actor="root", now=world.now
            )  # fmt: skip

    world.database.write(work)


def device_of(route: AnyRoute) -> dict[str, str]:
    """What stands in the braces of a path for the device that the route clears."""
    return {"node_id": NODE, "device": _DIRTY.get(route.name, "GPU-a")}


def version_of(world: ServiceLedger, route: AnyRoute) -> int:
    """The version at which that device may be cleared now; 0 for a route that clears none."""
    if route.name not in _DIRTY:
        return 0
    found = world.do(world.live().devices())
    return next(one.version for one in found if one.uuid == _DIRTY[route.name])
