"""Keeps the device rows in step with what the node reports, and changes their state.

Every change that matters to placement raises the version of the row that grants use (for a MIG
instance its GPU's), so that a grant on an older view fails.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker.snapshot import HOST
from gpuslice.errors import Refused
from gpuslice.ledger.tables import Audit, Claim, Device, Node
from gpuslice.wire import DeviceReport, DeviceState, Inventory

#: Why a device is sick when the node's list no longer has it.
GONE = "the node no longer sees this device"
#: What the automatic state changes begin with, to tell them from an administrator's.
_HEALTH = "health: "

#: What placement looks at; a change here must raise the version.
_PLACED_BY = (
    "kind", "model", "memory_bytes", "cpu_milli", "parent_id", "mig_profile", "mig_start",
    "mig_size", "mig_compute", "mig_enabled", "simulated", "share_enforcement",
)  # fmt: skip


def sync_inventory(session: Session, inventory: Inventory, *, now: int) -> None:
    """Write what a node reports: new devices, changed ones, health, and those that are gone."""
    _sync_node(session, inventory, now)
    known = {
        row.id: row
        for row in session.scalars(sa.select(Device).where(Device.node_id == inventory.node_id))
    }
    reported = {HOST: _host_row(inventory)} | {
        report.uuid: _device_row(inventory.node_id, report) for report in inventory.devices
    }
    bumped: set[str] = set()
    for uuid, fresh in reported.items():
        _sync_device(session, known.get(uuid), fresh, now, bumped)
    health = {report.uuid: report for report in inventory.devices}
    for uuid, row in {**reported, **known}.items():
        report = health.get(uuid)
        if uuid == HOST:
            sick = None
        elif report is None:
            sick = inventory.gpu_problem or GONE
        else:
            sick = None if report.healthy else (report.health_reason or "not healthy")
        _sync_health(session, row, sick, now, bumped)
    _bump(session, inventory.node_id, bumped)


def _sync_node(session: Session, inventory: Inventory, now: int) -> None:
    node = session.get(Node, inventory.node_id)
    values: dict[str, Any] = {
        "engine": inventory.engine, "boot_id": inventory.boot_id,
        "simulated": inventory.simulated, "driver_version": inventory.driver_version,
        "gpu_problem": inventory.gpu_problem,
        "enforcement_ceiling": int(inventory.enforcement_ceiling),
    }  # fmt: skip
    if node is None:
        session.add(
            Node(id=inventory.node_id, seen_us=now, boottime_us=inventory.boottime_us, **values)
        )
        session.flush()
        return
    for name, value in values.items():
        if getattr(node, name) != value:
            setattr(node, name, value)


def _host_row(inventory: Inventory) -> Device:
    return Device(
        node_id=inventory.node_id, id=HOST, kind="host", position=-1, model="host",
        memory_bytes=inventory.host.ram_bytes, cpu_milli=inventory.host.cpu_milli,
    )  # fmt: skip


def _device_row(node_id: str, report: DeviceReport) -> Device:
    return Device(
        node_id=node_id, id=report.uuid, kind=report.kind, position=report.index,
        model=report.model, memory_bytes=report.memory_bytes, parent_id=report.parent_uuid,
        mig_profile=report.mig_profile, mig_start=report.mig_start, mig_size=report.mig_size,
        mig_compute=report.mig_compute, mig_enabled=report.mig_enabled,
        simulated=report.simulated, share_enforcement=int(report.share_enforcement),
        memory_used_bytes=report.memory_used_bytes,
        utilisation_percent=report.utilisation_percent,
    )  # fmt: skip


def _sync_device(
    session: Session, row: Device | None, fresh: Device, now: int, bumped: set[str]
) -> None:
    fresh.seen_us = now
    if row is None:
        session.add(fresh)
        session.flush()
        bumped.add(fresh.parent_id or fresh.id)
        return
    if any(getattr(row, name) != getattr(fresh, name) for name in _PLACED_BY):
        bumped.update({row.parent_id or row.id, fresh.parent_id or fresh.id})
    for name in (*_PLACED_BY, "position", "memory_used_bytes", "utilisation_percent", "seen_us"):
        if getattr(row, name) != getattr(fresh, name):
            setattr(row, name, getattr(fresh, name))
    session.flush()


def _sync_health(
    session: Session, row: Device, sick: str | None, now: int, bumped: set[str]
) -> None:
    """Health makes an ``ok`` device sick and a device that was sick by health ok again."""
    stored = session.get(Device, (row.node_id, row.id))
    if stored is None:
        return
    if sick is not None and stored.state == DeviceState.OK:
        _write_state(session, stored, DeviceState.SICK, _HEALTH + sick, "node", now)
    elif sick is None and stored.state == DeviceState.SICK and _by_health(stored):
        _write_state(session, stored, DeviceState.OK, None, "node", now)
    else:
        return
    bumped.add(stored.parent_id or stored.id)


def _by_health(row: Device) -> bool:
    return (row.state_reason or "").startswith(_HEALTH)


def set_state(
    session: Session,
    node_id: str,
    uuid: str,
    state: DeviceState,
    reason: str | None,
    *,
    actor: str,
    now: int,
) -> None:
    """Change a device's state, with its audit row, and raise the version that grants look at.

    Raises:
        KeyError: there is no such device.
    """  # fmt: skip
    row = session.get(Device, (node_id, uuid), populate_existing=True)
    if row is None:
        raise KeyError(uuid)
    _write_state(session, row, state, reason, actor, now)
    _bump(session, node_id, {row.parent_id or row.id})


def clear(
    session: Session, node_id: str, uuid: str, version: int, why: str, *, actor: str, now: int
) -> None:
    """Have a quarantined device granted again, with its audit row.

    Raises:
        Refused: as `may_clear`.
    """
    row = may_clear(session, node_id, uuid, version)
    _write_state(session, row, DeviceState.OK, None, actor, now, why)
    _bump(session, node_id, {row.parent_id or row.id})


def may_clear(session: Session, node_id: str, uuid: str, version: int) -> Device:
    """The device, if nothing in the ledger stands in the way of granting it again.

    Raises:
        Refused: unknown, not quarantined, changed since ``version``, or a lease holds a part of it.
    """
    row = session.get(Device, (node_id, uuid), populate_existing=True)
    if row is None:
        raise Refused("no-such-device", "There is no such device.", status=404)
    if row.state != DeviceState.QUARANTINED:
        raise Refused(
            "not-quarantined",
            f"This device is {row.state}, so there is nothing to clear.",
            status=409,
        )
    parent = session.get(Device, (node_id, row.parent_id)) if row.parent_id else None
    now_at = row.version if parent is None else parent.version
    if now_at != version:
        raise Refused(
            "stale-version",
            f"This device has changed in the meantime (it is at version {now_at}); look at it "
            "again.",
            status=409,
        )
    held = session.scalars(
        sa.select(Claim.lease_id).where(
            Claim.node_id == node_id, Claim.released_version.is_(None),
            sa.or_(
                Claim.mig_id == uuid,
                sa.and_(Claim.device_id == uuid, Claim.mig_id.is_(None)),
            ),
        )
    ).all()  # fmt: skip
    if held:
        raise Refused(
            "device-held",
            f"{len(held)} lease(s) still hold a part of this device; wait until they are over, or "
            "stop them.",
            status=409,
        )
    return row


def _write_state(
    session: Session, row: Device, state: DeviceState, reason: str | None, actor: str, now: int,
    why: str | None = None,
) -> None:  # fmt: skip
    """``reason`` stays with the device, ``why`` (else the same) is in the audit."""
    session.add(
        Audit(
            at_us=now, actor=actor, action="device.state", subject=f"{row.node_id}/{row.id}",
            before=json.dumps(row.state), after=json.dumps(state.value), reason=why or reason,
        )
    )  # fmt: skip
    row.state, row.state_reason = state.value, reason
    session.flush()


def _bump(session: Session, node_id: str, uuids: set[str]) -> None:
    for uuid in sorted(uuids):  # one order everywhere: no deadlock
        session.execute(
            sa.update(Device)
            .where(Device.node_id == node_id, Device.id == uuid)
            .values(version=Device.version + 1)
            .execution_options(synchronize_session=False)
        )
