"""The fleet as placement sees it, read from the ledger's rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger import tables
from gpuslice.placement import (
    Claim,
    DeviceSnapshot,
    FleetSnapshot,
    HostSnapshot,
    MigInstance,
)
from gpuslice.wire import DeviceState, Enforcement

#: The id of the device row that stands for a node's processors and RAM.
HOST = "host"


def fleet_snapshot(session: Session, reserve_ram: int) -> FleetSnapshot:
    """All devices with their live claims.

    Devices are read before claims: a grant that commits in between raises a version that was
    already read, so the guarded update of whoever uses this snapshot fails and it is read again.
    """
    rows = list(
        session.scalars(
            sa.select(tables.Device)
            .order_by(tables.Device.node_id, tables.Device.position, tables.Device.id)
            .execution_options(populate_existing=True)
        )
    )
    claims = session.scalars(
        sa.select(tables.Claim)
        .where(tables.Claim.released_version.is_(None))
        .order_by(tables.Claim.id)
        .execution_options(populate_existing=True)
    )
    held: dict[tuple[str, str], list[Claim]] = defaultdict(list)
    for row in claims:
        held[row.node_id, row.device_id].append(to_claim(row))
    return FleetSnapshot(
        hosts=tuple(
            to_host(row, held[row.node_id, row.id], reserve_ram)
            for row in rows if row.kind == "host"
        ),
        devices=tuple(
            to_device(row, rows, held[row.node_id, row.id]) for row in rows if row.kind == "gpu"
        ),
    )  # fmt: skip


def ceilings(session: Session) -> dict[str, Enforcement]:
    """The strongest enforcement that each node's engine gives."""
    return {
        node.id: Enforcement(node.enforcement_ceiling)
        for node in session.scalars(sa.select(tables.Node))
    }


def to_claim(row: tables.Claim) -> Claim:
    return Claim(
        lease_id=row.lease_id, whole=row.whole, memory_bytes=row.memory_bytes,
        share_milli=row.share_milli, mig_uuid=row.mig_id, mig_start=row.mig_start,
        mig_size=row.mig_size, cpu_milli=row.cpu_milli, ram_bytes=row.ram_bytes,
    )  # fmt: skip


def to_host(row: tables.Device, claims: Iterable[Claim], reserve_ram: int) -> HostSnapshot:
    return HostSnapshot(
        node_id=row.node_id, cpu_milli=row.cpu_milli, ram_bytes=row.memory_bytes or 0,
        reserve_ram=reserve_ram, version=row.version, state=DeviceState(row.state),
        claims=tuple(claims),
    )  # fmt: skip


def to_device(
    row: tables.Device, rows: Iterable[tables.Device], claims: Iterable[Claim]
) -> DeviceSnapshot:
    instances = tuple(
        MigInstance(
            uuid=mig.id, profile=mig.mig_profile or "", start=mig.mig_start, size=mig.mig_size,
            compute=mig.mig_compute, memory_bytes=mig.memory_bytes, state=DeviceState(mig.state),
        )
        for mig in rows if mig.parent_id == row.id and mig.node_id == row.node_id
    )  # fmt: skip
    return DeviceSnapshot(
        node_id=row.node_id, uuid=row.id, model=row.model, memory_bytes=row.memory_bytes,
        state=DeviceState(row.state), version=row.version, mig_enabled=row.mig_enabled,
        simulated=row.simulated, share_enforcement=Enforcement(row.share_enforcement),
        instances=instances, claims=tuple(claims),
    )  # fmt: skip
