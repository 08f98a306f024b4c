"""What a restored ledger lacks, compared with what runs, and what was billed anew since."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.broker import reconciler
from gpuslice.cli.restore import RESTORED
from gpuslice.cli.trouble import Trouble
from gpuslice.ledger.database import Database, LedgerError
from gpuslice.ledger.tables import Audit, Entry, Lease, Segment
from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable
from gpuslice.units import format_money, to_datetime

_RUNNING = ("running", "stopping")


def moment(us: int) -> str:
    """A time for people."""
    return f"{to_datetime(us):%Y-%m-%d %H:%M:%S} UTC"


def compare(url: str, node: Path) -> list[str]:
    """What runs on the node beside what the ledger says runs, for people.

    Raises:
        Trouble: the ledger cannot be read.
    """
    try:
        listing = asyncio.run(NodeClient(node).listing())
    except (NodeUnavailable, NodeRefused) as error:
        later = "when the service runs: gpuslice unaccounted list"
        return [f"What runs could not be compared ({error.message}); {later}"]
    return read(url, lambda session: difference(session, listing))


def difference(session: Session, listing: wire.Listing) -> list[str]:
    """One line for each server that only one of ledger and node knows to run."""
    unknown = reconciler.unaccounted(session, listing)
    reports = {report.lease_id: report for report in listing.servers}
    lines = [
        f"  not in the ledger: {lease_id} of {reports[lease_id].user or 'nobody knows whom'}"
        for lease_id in unknown
    ]
    for lease in session.scalars(
        sa.select(Lease)
        .where(Lease.node_id == listing.node_id, Lease.state.in_(_RUNNING))
        .order_by(Lease.id)
    ):
        report = reports.get(lease.id)
        if report is None:
            lines.append(
                f"  gone: {lease.id} of {lease.user_name}; it is billed up to when this ledger "
                "last saw it"
            )
        elif report.started_us is not None and lease.billed_us is not None:
            lines.append(
                f"  to be billed anew: {lease.id} of {lease.user_name} from "
                f"{moment(lease.billed_us)} on"
            )
    if not lines:
        return ["Nothing runs that the ledger does not know, and nothing is to be billed anew."]
    if unknown:
        lines.append(
            "Nothing is granted on the node while servers run there that are not in the ledger: "
            "gpuslice unaccounted list"
        )
    return ["Compared with what runs:", *lines]


def recreated(session: Session) -> list[str]:
    """The entries for time before the last restore that were written after it.

    Raises:
        Trouble: this ledger was never restored.
    """
    last = session.scalars(
        sa.select(Audit).where(Audit.action == RESTORED).order_by(Audit.id.desc())
    ).first()
    if last is None or last.before is None:
        raise Trouble("This ledger was never restored.")
    rows = session.execute(
        sa.select(Segment, Entry.id, Entry.amount_u, Lease.user_name)
        .join(Lease, Lease.id == Segment.lease_id)
        .outerjoin(Entry, Entry.segment_id == Segment.id)
        .where(Segment.created_us >= last.at_us, Segment.from_us < last.at_us)
        .order_by(Segment.lease_id, Segment.from_us, Entry.leg)
    ).all()
    lines = [
        f"Restored {moment(last.at_us)} from a backup of {moment(int(last.before))}: {last.reason}"
    ]
    total = 0
    for segment, entry_id, amount_u, user in rows:
        amount = amount_u or 0
        total += amount
        number = f"entry {entry_id}" if amount else "free"
        lines.append(
            f"  {user} {segment.lease_id[:8]} {moment(segment.from_us)} to "
            f"{moment(segment.til_us)}: {format_money(amount, places=6)} ({number})"
        )
    lines.append(f"{len(rows)} re-created, {format_money(total, places=6)} in all.")
    return lines


def read(url: str, work: Callable[[Session], list[str]]) -> list[str]:
    """Look into the ledger at ``url``.

    Raises:
        Trouble: it cannot be read.
    """
    try:
        database = Database(url)
    except LedgerError as error:
        raise Trouble(str(error)) from None
    try:
        return database.read(work)
    except LedgerError as error:
        raise Trouble(str(error)) from None
    finally:
        database.close()
