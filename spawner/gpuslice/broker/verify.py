"""``gpuslice ledger verify``: the ledger's own proof, and that no slice was ever leased twice."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker.snapshot import HOST, to_device, to_host
from gpuslice.ledger import closing, migrate
from gpuslice.ledger.database import Database, LedgerError
from gpuslice.ledger.digest import VerifyKey
from gpuslice.ledger.tables import LIVE_STATES, Claim, Device, Lease
from gpuslice.ledger.verify import verify as verify_ledger
from gpuslice.placement import Claim as PlannedClaim
from gpuslice.placement import host_overlaps, overlaps


def verify(session: Session) -> list[str]:
    """Every contradiction in the ledger, one sentence each; empty is clean."""
    return [*verify_ledger(session), *_claims(session), *_disjoint(session)]


def _claims(session: Session) -> Iterator[str]:
    """A lease holds claims exactly while it lives."""
    holding = set(
        session.scalars(sa.select(Claim.lease_id).where(Claim.released_version.is_(None)))
    )
    live = set(session.scalars(sa.select(Lease.id).where(Lease.state.in_(LIVE_STATES))))
    for lease_id in sorted(live - holding):
        yield f"lease {lease_id} lives but claims nothing"
    for lease_id in sorted(holding - live):
        yield f"lease {lease_id} is over but still claims a device"


def _disjoint(session: Session) -> Iterator[str]:
    """At no version of a device did its claims take more than it has."""
    rows = {(row.node_id, row.id): row for row in session.scalars(sa.select(Device))}
    parts: dict[tuple[str, str], list[Device]] = defaultdict(list)
    for row in rows.values():
        parts[row.node_id, row.parent_id or row.id].append(row)
    claims = session.execute(
        sa.select(*_CLAIM)
        .order_by(Claim.node_id, Claim.device_id, Claim.taken_version)
        .execution_options(yield_per=_CHUNK)
    )
    for key, mine in groupby(claims, key=lambda claim: (claim.node_id, claim.device_id)):
        device = rows.get(key)
        if device is None:
            continue
        there = _Host(device) if device.kind == HOST else _Gpu(device, parts[key])
        for version, taken in groupby(mine, key=lambda claim: claim.taken_version):
            added = list(taken)
            there.move(version, added)
            # Only when a claim is added can it become too much: look at those versions.
            problems = there.problems()
            for problem in problems * len(added):
                yield f"device {device.id} on {device.node_id} at version {version}: {problem}"


#: So many claims are fetched at a time.
_CHUNK = 5_000
_CLAIM = (
    Claim.node_id, Claim.device_id, Claim.lease_id, Claim.whole, Claim.memory_bytes,
    Claim.share_milli, Claim.mig_id, Claim.mig_start, Claim.mig_size, Claim.cpu_milli,
    Claim.ram_bytes, Claim.taken_version, Claim.released_version,
)  # fmt: skip
_Row = sa.Row[*tuple[Any, ...]]


class _Gpu:
    """The claims that are held together on one GPU, version after version.

    Which MIG profile a UUID has may have changed since claims that are over by now; only what is
    certain about them is said.
    """

    def __init__(self, row: Device, parts: Sequence[Device]) -> None:
        self._now, self._then = to_device(row, parts, ()), to_device(row, (), ())
        self._held: list[tuple[int | None, PlannedClaim]] = []

    def move(self, version: int, added: Sequence[_Row]) -> None:
        """Go on to a version at which these claims were taken."""
        self._held = [
            (til, claim) for til, claim in self._held if til is None or til > version
        ] + [
            (row.released_version, _planned(row)) for row in added
            if row.released_version is None or row.released_version > version
        ]  # fmt: skip

    def problems(self) -> list[str]:
        now = all(til is None for til, _ in self._held)
        return overlaps(self._now if now else self._then, [claim for _, claim in self._held])


class _Host:
    """The same for a host, of which very many claims may be held: only their sums.

    What a host had while claims were held that are over by now, nobody knows; nothing is said.
    """

    def __init__(self, row: Device) -> None:
        self._host = to_host(row, (), 0)
        #: When the claims that are over were released, the first one first.
        self._over: list[int] = []
        self._cpu_milli = self._ram_bytes = 0

    def move(self, version: int, added: Sequence[_Row]) -> None:
        for row in added:
            if row.released_version is None:
                self._cpu_milli += row.cpu_milli
                self._ram_bytes += row.ram_bytes
            else:
                heapq.heappush(self._over, row.released_version)
        while self._over and self._over[0] <= version:
            heapq.heappop(self._over)

    def problems(self) -> list[str]:
        if self._over:
            return []
        held = PlannedClaim("", cpu_milli=self._cpu_milli, ram_bytes=self._ram_bytes)
        return host_overlaps(self._host, [held])


def _planned(row: _Row) -> PlannedClaim:
    return PlannedClaim(
        lease_id=row.lease_id, whole=row.whole, memory_bytes=row.memory_bytes,
        share_milli=row.share_milli, mig_uuid=row.mig_id, mig_start=row.mig_start,
        mig_size=row.mig_size, cpu_milli=row.cpu_milli, ram_bytes=row.ram_bytes,
    )  # fmt: skip


def cli_verify(database_url: str, keys: Sequence[VerifyKey] = ()) -> list[str]:
    """Verify the ledger at a URL, and that it is what its digests say; see `closing.check`.

    Raises:
        LedgerError: it cannot be read, or is of another version of gpuslice.
    """
    database = Database(database_url)
    try:
        at = migrate.current(database.engine)
        if at is None:
            raise LedgerError(f"{database.name} is not a gpuslice ledger (it has no tables)")
        if at != migrate.head():
            raise LedgerError(
                f"{database.name} is at revision {at}, this gpuslice needs {migrate.head()}"
            )
        return database.read(lambda session: [*verify(session), *closing.check(session, keys)])
    finally:
        database.close()
