"""A lease's moves after its grant, each one function that runs in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker.devices import set_state
from gpuslice.broker.grant import release_claims
from gpuslice.broker.states import OVER, move
from gpuslice.errors import Refused
from gpuslice.ledger import billing, counters
from gpuslice.ledger.tables import LIVE_STATES, Audit, Lease, NoticeRow
from gpuslice.wire import DeviceState, LeaseState, ServerStarted

#: So many notices are looked up together, at most.
_TOGETHER = 1_000


@dataclass(frozen=True)
class BillingRules:
    """How time becomes money: where days begin, and how far ahead is reserved.

    ``timezones``: the platform's, and those of policies; segments are cut at their midnights.
    """

    timezones: frozenset[str]
    hold_horizon_us: int
    #: How long past its deadline a lease is its user's while nobody is there to stop it.
    unattended_us: int

    def __post_init__(self) -> None:
        for name in self.timezones:
            ZoneInfo(name)  # an unknown zone stops the start, not the first midnight


def get(session: Session, lease_id: str) -> Lease:
    """The lease, fresh from the database and locked, so that no two transactions settle it.

    Raises:
        Refused: ``no-such-lease``.
    """
    lease = session.get(Lease, lease_id, populate_existing=True, with_for_update=True)
    if lease is None:
        raise Refused("no-such-lease", "There is no such lease.", status=404)
    return lease


def started(session: Session, lease_id: str, body: ServerStarted, *, now: int) -> None:
    """``granted → running``, asked by the supervisor before it starts the server.

    Raises:
        Refused: the lease is no longer granted; the server must not start.
    """
    lease = get(session, lease_id)
    if lease.state == LeaseState.RUNNING and lease.started_us == body.started_us:
        return  # the answer to the first time was lost
    if lease.stop_requested_us is not None:
        raise Refused("stop-requested", "This lease is being stopped.", status=409)
    if not _run(session, lease, body.started_us, body.boot_id, now):
        raise Refused(
            "not-granted", f"This lease is {lease.state}, so its server must not start.", status=409
        )


def _run(session: Session, lease: Lease, started_us: int, boot_id: str, now: int) -> bool:
    return move(
        session, lease.id, LeaseState.GRANTED, LeaseState.RUNNING, now=now,
        started_us=started_us, covered_us=started_us, billed_us=started_us, boot_id=boot_id,
    )  # fmt: skip


def adopt(session: Session, lease_id: str, started_us: int, boot_id: str, *, now: int) -> None:
    """A granted lease whose server the engine lists as started."""
    lease = get(session, lease_id)
    if _run(session, lease, started_us, boot_id, now) and lease.stop_requested_us is not None:
        _stop_running(session, lease, now)


def request_stop(session: Session, lease_id: str, reason: str, actor: str, *, now: int) -> Lease:
    """Commit that a lease is to end; the first request's time and reason count.

    Raises:
        Refused: unknown lease, or one that is over already.
    """
    lease = get(session, lease_id)
    if lease.state in OVER:
        raise Refused("already-ended", "This lease has ended already.", status=409)
    if lease.stop_requested_us is None:
        # Never before what was already seen or paid: paid time is not taken back.
        lease.stop_requested_us = max(now, lease.covered_us or 0, lease.billed_us or 0)
        lease.stop_reason, lease.stop_actor = reason[:500], actor[:255]
        session.add(
            Audit(at_us=now, actor=actor[:255], action="lease.stop", subject=lease.id,
                  reason=reason[:500])
        )  # fmt: skip
        session.flush()
    if lease.state == LeaseState.RUNNING:
        _stop_running(session, lease, now)
    return lease


def _stop_running(session: Session, lease: Lease, now: int) -> None:
    move(session, lease.id, LeaseState.RUNNING, LeaseState.STOPPING, now=now)


def beat(
    session: Session, seen: Sequence[tuple[Lease, int]], rules: BillingRules, *, now: int
) -> None:
    """Seen alive up to so long: close what segments are full, top up the holds.

    Args:
        seen: Leases as they are in the database now, and locked there.
    """
    alive = []
    for lease, covered_us in seen:
        if lease.state not in (LeaseState.RUNNING, LeaseState.STOPPING):
            continue
        if lease.covered_us is None or covered_us <= lease.covered_us:
            continue
        lease.covered_us = covered_us
        _absorb(lease, covered_us, rules, now)
        alive.append((lease, covered_us))
    if alive:
        billing.bill(session, alive, final=False, timezones=rules.timezones, now=now)
        leases = [lease for lease, _ in alive]
        billing.top_up(session, leases, rules.hold_horizon_us, now=now)
        session.flush()


def _absorb(lease: Lease, til_us: int, rules: BillingRules, now: int) -> None:
    """Long past its deadline without a stop: nobody was there, so the platform pays from there.

    Never before what is paid already: paid time is not taken back. A deadline is of our clock, so
    it is past by that, too: if it was set back, somebody was there all the time.
    """
    if lease.deadline_us is None or lease.absorbed_from_us is not None:
        return
    mark = max(lease.deadline_us + rules.unattended_us, lease.billed_us or 0)
    if min(til_us, now) > mark:
        lease.absorbed_from_us = mark


def settle(
    session: Session,
    lease_id: str,
    finished_us: int | None,
    exit_code: int | None,
    reason: str,
    rules: BillingRules,
    *,
    now: int,
) -> None:
    """The server has ended: pay everything up to its end and give the hold back.

    ``finished_us`` None: nobody knows when it ended, so it is paid to the last heartbeat, the
    choice in the user's favour, and marked ``finished_at_unknown``.
    """
    lease = get(session, lease_id)
    if lease.state not in (LeaseState.RUNNING, LeaseState.STOPPING):
        return
    assert lease.covered_us is not None and lease.billed_us is not None
    til = lease.covered_us if finished_us is None else finished_us
    til = max(til, lease.billed_us)  # a clock that went back does not un-pay a segment
    _absorb(lease, til, rules, now)
    billing.bill(session, [(lease, til)], final=True, timezones=rules.timezones, now=now)
    billing.close_hold(session, lease, now=now)
    said = lease.stop_reason or reason
    move(
        session, lease.id, LeaseState(lease.state), LeaseState.SETTLED, now=now,
        finished_us=til, covered_us=til, finished_at_unknown=finished_us is None,
        exit_code=exit_code, end_reason=said[:500],
    )  # fmt: skip
    if lease.stop_requested_us is None:
        said = f"Your server has ended: {reason}"
        tell(session, [Notice(lease, "ended", "warning", said, f"ended:{lease.id}")], now)


def revoke(session: Session, lease_id: str, reason: str, *, now: int) -> None:
    """Begin to take back a lease that never ran."""
    lease = get(session, lease_id)
    move(
        session, lease.id, LeaseState.GRANTED, LeaseState.REVOKING, now=now,
        end_reason=(lease.stop_reason or reason)[:500],
    )  # fmt: skip


def cancel(session: Session, lease_id: str, unclean: str | None, *, now: int) -> None:
    """The fence holds and nothing runs: a lease that never ran is over, billed nothing."""
    lease = get(session, lease_id)
    if lease.state != LeaseState.REVOKING:
        return
    _quarantine(session, lease, unclean, now)
    billing.close_hold(session, lease, now=now)
    move(session, lease.id, LeaseState.REVOKING, LeaseState.CANCELLED, now=now, ended_us=now)
    _free(session, lease)


def settle_revoked(
    session: Session,
    lease_id: str,
    started_us: int,
    finished_us: int | None,
    boot_id: str,
    rules: BillingRules,
    *,
    now: int,
) -> None:
    """A server ran although its lease was being taken back; the platform pays that time."""
    lease = get(session, lease_id)
    if lease.state != LeaseState.REVOKING:
        return
    til = max(started_us, started_us if finished_us is None else finished_us)
    lease.started_us = lease.covered_us = lease.billed_us = started_us
    lease.boot_id = boot_id
    lease.stop_requested_us = started_us
    session.flush()
    billing.bill(session, [(lease, til)], final=True, timezones=rules.timezones, now=now)
    billing.close_hold(session, lease, now=now)
    move(
        session, lease.id, LeaseState.REVOKING, LeaseState.SETTLED, now=now,
        finished_us=til, covered_us=til, finished_at_unknown=finished_us is None,
    )  # fmt: skip


def end(session: Session, lease_id: str, unclean: str | None, *, now: int) -> None:
    """The slice is cleared: free it, or quarantine its device if it is not clean."""
    lease = get(session, lease_id)
    if lease.state != LeaseState.SETTLED:
        return
    _quarantine(session, lease, unclean, now)
    move(session, lease.id, LeaseState.SETTLED, LeaseState.ENDED, now=now, ended_us=now)
    _free(session, lease)


def _quarantine(session: Session, lease: Lease, unclean: str | None, now: int) -> None:
    """A device that is not clean is not granted again until an administrator looked at it."""
    if unclean is None or lease.device_id is None:
        return
    set_state(
        session, lease.node_id, lease.device_id, DeviceState.QUARANTINED,
        f"not clean after lease {lease.id[:8]}: {unclean}", actor="reconciler", now=now,
    )  # fmt: skip


def _free(session: Session, lease: Lease) -> None:
    release_claims(session, lease.id)
    counters.leave(session, counters.of_lease(session, lease.id), lease.slice_type)


def keep(session: Session, lease_id: str, user: str, til_us: int) -> Lease:
    """The user asks that an idle lease is not taken away before ``til_us``.

    Raises:
        Refused: unknown, another user's (the same answer), or over.
    """
    lease = session.get(Lease, lease_id, populate_existing=True)
    if lease is None or lease.user_name != user:
        raise Refused("no-such-lease", "There is no such lease.", status=404)
    if lease.state not in LIVE_STATES:
        raise Refused("already-ended", "This lease has ended already.", status=409)
    lease.keep_until_us = max(lease.keep_until_us or 0, til_us)
    session.flush()
    return lease


@dataclass(frozen=True)
class Notice:
    """Something to tell a lease's user, once for each ``key``."""

    lease: Lease
    kind: str
    severity: str
    message: str
    key: str


def tell(session: Session, notices: Sequence[Notice], now: int) -> None:
    """Tell users what they have not been told yet."""
    for start in range(0, len(notices), _TOGETHER):
        some = {one.key: one for one in notices[start : start + _TOGETHER]}
        known = set(
            session.scalars(sa.select(NoticeRow.idem_key).where(NoticeRow.idem_key.in_(list(some))))
        )
        session.add_all(
            NoticeRow(
                idem_key=key, account_id=one.lease.account_id, lease_id=one.lease.id,
                kind=one.kind, severity=one.severity, message=one.message, created_us=now,
            )
            for key, one in some.items() if key not in known
        )  # fmt: skip
        session.flush()
