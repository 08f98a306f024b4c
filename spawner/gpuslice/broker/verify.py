"""``gpuslice ledger verify``: the ledger's own proof, and that no slice was ever leased twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker.snapshot import HOST, to_claim, to_device, to_host
from gpuslice.ledger import closing, migrate
from gpuslice.ledger.database import Database, LedgerError
from gpuslice.ledger.digest import VerifyKey
from gpuslice.ledger.tables import LIVE_STATES, Claim, Device, Lease
from gpuslice.ledger.verify import verify as verify_ledger
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
    rows = list(session.scalars(sa.select(Device)))
    claims: dict[tuple[str, str], list[Claim]] = defaultdict(list)
    for claim in session.scalars(sa.select(Claim).order_by(Claim.taken_version)):
        claims[claim.node_id, claim.device_id].append(claim)
    for row in rows:
        mine = claims[row.node_id, row.id]
        for claim in mine:
            # Only when a claim is added can it become too much: look at those versions.
            held = [other for other in mine if _held_at(other, claim.taken_version)]
            for problem in _too_much(row, rows, held):
                where = f"device {row.id} on {row.node_id} at version {claim.taken_version}"
                yield f"{where}: {problem}"


def _held_at(claim: Claim, version: int) -> bool:
    return claim.taken_version <= version and (
        claim.released_version is None or claim.released_version > version
    )


def _too_much(row: Device, rows: list[Device], held: list[Claim]) -> list[str]:
    """Collisions among claims that were held together.

    What a host has, and which MIG profile a UUID has, may have changed since claims that are over
    by now; only what is certain about them is said.
    """
    now = all(claim.released_version is None for claim in held)
    planned = [to_claim(claim) for claim in held]
    if row.kind == HOST:
        return host_overlaps(to_host(row, (), 0), planned) if now else []
    return overlaps(to_device(row, rows if now else (), ()), planned)


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
