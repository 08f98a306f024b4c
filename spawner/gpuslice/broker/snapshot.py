"""The fleet as placement sees it, read from the ledger's rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.ledger import tables
from gpuslice.placement import (
    Claim,
    DeviceSnapshot,
    FleetSnapshot,
    HostSnapshot,
    MigInstance,
    NodeSnapshot,
)
from gpuslice.wire import DeviceState, Enforcement

#: The id of the device row that stands for a node's processors and RAM.
HOST = "host"


def fleet_snapshot(session: Session, reserve_ram: int) -> FleetSnapshot:
    """All devices with their live claims."""
    session.flush()  # what is read are columns, for which the session does not do so by itself
    return fleet_of(node for node, _ in read_nodes(session, reserve_ram).values())


def fleet_of(nodes: Iterable[NodeSnapshot]) -> FleetSnapshot:
    """The fleet that these nodes are."""
    nodes = tuple(nodes)
    return FleetSnapshot(
        hosts=tuple(node.host for node in nodes if node.host is not None),
        devices=tuple(device for node in nodes for device in node.devices),
    )


class Stamp(NamedTuple):
    """How many devices of a node there are, and the sum of their versions.

    Rows are never deleted and versions only rise, so of two different states of a node the later
    one has the larger stamp.
    """

    rows: int
    versions: int


_NODE, _DEVICE, _CLAIM = (one.__table__.c for one in (tables.Node, tables.Device, tables.Claim))
_STAMPS = (
    sa.select(
        _NODE.id, _NODE.enforcement_ceiling, sa.func.count(),
        sa.cast(sa.func.sum(_DEVICE.version), sa.BigInteger),
    )
    .join_from(tables.Node.__table__, tables.Device.__table__, _DEVICE.node_id == _NODE.id)
    .group_by(_NODE.id, _NODE.enforcement_ceiling)
)  # fmt: skip
_DEVICES = sa.select(*_DEVICE).order_by(_DEVICE.node_id, _DEVICE.position, _DEVICE.id)
_CLAIMS = sa.select(*_CLAIM).where(_CLAIM.released_version.is_(None)).order_by(_CLAIM.id)
_SOME = sa.bindparam("nodes", type_=sa.String(), expanding=True)
_SOME_DEVICES = _DEVICES.where(_DEVICE.node_id.in_(_SOME))
_SOME_CLAIMS = _CLAIMS.where(_CLAIM.node_id.in_(_SOME))


def stamps(session: Session) -> dict[str, tuple[Stamp, Enforcement]]:
    """Every node's stamp, and the strongest enforcement that its engine gives."""
    return {
        node_id: (Stamp(rows, versions), Enforcement(ceiling))
        for node_id, ceiling, rows, versions in session.execute(_STAMPS)
    }


def read_nodes(
    session: Session, reserve_ram: int, only: Collection[str] | None = None
) -> dict[str, tuple[NodeSnapshot, Stamp]]:
    """Nodes with their devices and live claims, each with its stamp; None: all of them.

    Devices are read before claims: a grant that commits in between raises a version that was
    already read, so the guarded update of whoever uses this snapshot fails and it is read again.
    """
    some = {} if only is None else {"nodes": sorted(only)}
    devices, claims = (_DEVICES, _CLAIMS) if only is None else (_SOME_DEVICES, _SOME_CLAIMS)
    rows: dict[str, list[Any]] = defaultdict(list)
    for row in session.execute(devices, some):
        rows[row.node_id].append(row)
    held: dict[tuple[str, str], list[Claim]] = defaultdict(list)
    of: Any  # a row of columns reads like the model it is of
    for of in session.execute(claims, some):
        held[of.node_id, of.device_id].append(to_claim(of))
    return {
        node_id: (_to_node(node_id, found, held, reserve_ram), _stamp(found))
        for node_id, found in rows.items()
    }


def _stamp(rows: Collection[Any]) -> Stamp:
    return Stamp(len(rows), sum(row.version for row in rows))


def _to_node(
    node_id: str, rows: Iterable[Any], held: Mapping[tuple[str, str], list[Claim]],
    reserve_ram: int,
) -> NodeSnapshot:  # fmt: skip
    inside: dict[str | None, list[Any]] = defaultdict(list)
    for row in rows:
        inside[row.parent_id].append(row)

    def claims(row: Any) -> list[Claim]:
        return held.get((node_id, row.id), [])

    hosts = (to_host(row, claims(row), reserve_ram) for row in rows if row.kind == "host")
    return NodeSnapshot(
        node_id=node_id,
        host=next(hosts, None),
        devices=tuple(
            to_device(row, inside[row.id], claims(row)) for row in rows if row.kind == "gpu"
        ),
    )


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
