"""Compares all leases of a node with one fresh list, in one transaction.

The transaction writes what the list proves (running, seen alive, ended); what needs the node
again (fence, stop, release) is returned, to be done after the commit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker import lifecycle, reconcile, strangers
from gpuslice.broker.lifecycle import BillingRules
from gpuslice.broker.states import OVER
from gpuslice.ledger.tables import LIVE_STATES, Lease, Node
from gpuslice.units import SECOND_US
from gpuslice.wire import LeaseState, Listing, ServerReport, ServerState

#: So many leases' beats are written together, at most.
_TOGETHER = 1_000
#: Wall and boot clock of a node part by more than this: somebody set the wall clock.
CLOCK_JUMP_US = 2 * SECOND_US


@dataclass
class Todo:
    """What the node is to be asked for after the commit, by lease id."""

    fence: list[str] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    release: list[str] = field(default_factory=list)
    #: Leftovers of leases that are over already: cleared, without any effect on the ledger.
    clear: list[str] = field(default_factory=list)
    #: Servers that run on the node under leases this ledger has never heard of.
    unaccounted: list[str] = field(default_factory=list)
    clock_jump_us: int = 0


def apply_listing(
    session: Session,
    listing: Listing,
    *,
    asked_us: int,
    now: int,
    timing: reconcile.Timing,
    rules: BillingRules,
) -> Todo:
    """Apply one complete list; ``asked_us`` is our clock just before the node was asked."""
    todo = Todo(clock_jump_us=_see_node(session, listing))
    reports = {report.lease_id: report for report in listing.servers}
    rows = session.scalars(
        sa.select(Lease)
        .where(Lease.node_id == listing.node_id, Lease.state.in_(LIVE_STATES))
        .order_by(Lease.account_id, Lease.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    beats: list[tuple[Lease, int]] = []
    for lease in rows:
        facts = _facts(lease)
        decisions = reconcile.decide(
            facts, reports.get(lease.id), asked_us=asked_us, now=now, timing=timing
        )
        for decision in decisions:
            # What pays comes one after the other, as the leases do: they may share credit.
            if isinstance(decision, reconcile.Settle) or len(beats) == _TOGETHER:
                lifecycle.beat(session, beats, rules, now=now)
                beats = []
            if isinstance(decision, reconcile.Beat):
                beats.append((lease, decision.covered_us))
            else:
                _apply(session, lease.id, decision, todo, rules, now)
    lifecycle.beat(session, beats, rules, now=now)
    live = {lease.id for lease in rows}
    _leftovers(session, listing, live, todo)
    return todo


def _facts(lease: Lease) -> reconcile.LeaseFacts:
    return reconcile.LeaseFacts(
        lease_id=lease.id, state=LeaseState(lease.state), state_us=lease.state_us,
        start_before_us=lease.start_before_us, started_us=lease.started_us,
        covered_us=lease.covered_us, stop_requested_us=lease.stop_requested_us,
    )  # fmt: skip


def _apply(
    session: Session, lease_id: str, decision: reconcile.Decision, todo: Todo,
    rules: BillingRules, now: int,
) -> None:  # fmt: skip
    match decision:
        case reconcile.Wait() | reconcile.Beat():
            pass  # beats are written together, by the caller
        case reconcile.Adopt(started_us, boot_id):
            lifecycle.adopt(session, lease_id, started_us, boot_id, now=now)
        case reconcile.Settle(finished_us, exit_code, reason):
            lifecycle.settle(session, lease_id, finished_us, exit_code, reason, rules, now=now)
            todo.release.append(lease_id)
        case reconcile.Revoke(reason):
            lifecycle.revoke(session, lease_id, reason, now=now)
            todo.fence.append(lease_id)
        case reconcile.Fence():
            todo.fence.append(lease_id)
        case reconcile.StopServer():
            todo.stop.append(lease_id)
        case reconcile.Release():
            todo.release.append(lease_id)


def _see_node(session: Session, listing: Listing) -> int:
    """Note the node's clocks; returns by how much its wall clock was set since the last list."""
    node = session.get(Node, listing.node_id)
    if node is None:
        return 0
    jump = 0
    if node.boot_id == listing.boot_id:
        jump = (listing.now_us - node.seen_us) - (listing.boottime_us - node.boottime_us)
    node.boot_id, node.seen_us = listing.boot_id, listing.now_us
    node.boottime_us = listing.boottime_us
    session.flush()
    return jump if abs(jump) > CLOCK_JUMP_US else 0


def _leftovers(session: Session, listing: Listing, live: set[str], todo: Todo) -> None:
    """What the node has of leases that are over, and of leases that nobody knows."""
    reports = {report.lease_id: report for report in listing.servers}
    others = (set(reports) | set(listing.slices)) - live
    if not others:
        return
    states = _states(session, others)
    ended = strangers.ended(session, others - set(states))
    for lease_id in sorted(others):
        runs = _runs(reports.get(lease_id))
        if states.get(lease_id) in OVER or lease_id in ended:
            (todo.stop if runs else todo.clear).append(lease_id)
        if lease_id not in states and runs:
            todo.unaccounted.append(lease_id)


def unaccounted(session: Session, listing: Listing) -> list[str]:
    """Servers that run on the node under leases this ledger has never heard of."""
    running = {report.lease_id for report in listing.servers if _runs(report)}
    return sorted(running - set(_states(session, running)))


def _states(session: Session, lease_ids: set[str]) -> dict[str, str]:
    rows = session.execute(sa.select(Lease.id, Lease.state).where(Lease.id.in_(lease_ids)))
    return dict(rows.all())


def _runs(report: ServerReport | None) -> bool:
    return report is not None and report.state is not ServerState.EXITED


def after_fence(
    session: Session,
    lease_id: str,
    report: ServerReport | None,
    *,
    boot_id: str,
    rules: BillingRules,
    now: int,
) -> str:
    """What a fresh list says of a fenced lease: ``free`` it, ``stop`` its server, or ``settled``.

    A server that had started before the fence is stopped, and the platform pays for its time.
    """
    if _runs(report):
        return "stop"
    if report is not None and report.started_us is not None:
        lifecycle.settle_revoked(
            session, lease_id, report.started_us, report.finished_us, boot_id, rules, now=now
        )
        return "settled"
    return "free"
