"""The queue's moves, each a function that runs in the caller's transaction.

``waiting → offered → fulfilled``, or ``left``, ``expired``, ``refused``. An offer is a lease that
was granted and not started: it holds its slice and its money by the same rows as any other, and
what nobody takes in time goes the way of every lease that never ran. ``starting``: the hub was
asked to start the server, because its user chose so.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.broker import lifecycle, queueorder
from gpuslice.broker.grant import (
    GrantRules,
    ask_of,
    bookings,
    grant,
    longest,
    slice_type_of,
    without_nodes,
)
from gpuslice.broker.reserved import HORIZON_US, Bookings
from gpuslice.broker.snapshot import ceilings, fleet_snapshot
from gpuslice.broker.stays import guessed_ends, usual_stays
from gpuslice.errors import Refused
from gpuslice.ledger import accounts, counters
from gpuslice.ledger.tables import (
    IS_LIVE,
    LIVE_STATES,
    WAITING_STATES,
    Audit,
    Lease,
    NoticeRow,
    QueueRequest,
)
from gpuslice.placement import FleetSnapshot, Placement
from gpuslice.placement.fleets import Rules
from gpuslice.placement.queue import Outlook, Waiting, outlooks
from gpuslice.quotas import admission
from gpuslice.units import HOUR_US, SECOND_US
from gpuslice.wire import LeaseState

#: A user may wait in so many lines at the same time.
MOST_WAITING = 5
#: So long after a server that nobody opened no other one is started for its user. Until it is
#: opened the platform pays: that is for who comes a little later, and no way to a free GPU.
UNOPENED_US = 24 * HOUR_US
#: Who lost a turn to a failure of the node has the next one after so long.
REST_US = 30 * SECOND_US


@dataclass(frozen=True)
class QueueRules:
    """What the queue goes by; durations in microseconds.

    ``absent``: users whom the hub did not know when it was last asked. They keep their places.
    ``silent``: users of whom it could not say anything then, although it could of others.
    ``held``: requests that were refused when their turn came, although nothing had said so.
    """

    offer_us: int
    patience_us: int
    first_open_us: int
    absent: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    held: Mapping[str, Refused] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """The queue at one moment: who waits in which order, and what each may expect.

    ``barred``: whom their own limits or their own server refuse now, or whom the hub does not
    know or says nothing of. They keep their place, and nobody behind them waits for what they may
    not take.
    """

    requests: tuple[QueueRequest, ...]
    outlooks: tuple[Outlook, ...]
    barred: Mapping[str, Refused]


_LIVE = (
    sa.select(QueueRequest)
    .where(
        QueueRequest.account_id == sa.bindparam("account"),
        QueueRequest.server_name == sa.bindparam("server"),
        QueueRequest.state.in_(WAITING_STATES),
    )
    .execution_options(populate_existing=True)
)


def live(session: Session, account_id: int, server: str) -> QueueRequest | None:
    """The request of a named server that is not over."""
    return session.scalar(_LIVE, {"account": account_id, "server": server})


def get(session: Session, request_id: str, user: str | None) -> QueueRequest:
    """One request; with ``user`` only that user's.

    Raises:
        Refused: ``no-such-request``, the same for one that is somebody else's.
    """
    found = session.get(QueueRequest, request_id, populate_existing=True)
    if found is None or (user is not None and found.user_name != user):
        raise Refused("no-such-request", "There is no such request.", status=404)
    return found


# --- what users do ----------------------------------------------------------------------------


def join(
    session: Session, request: wire.LeaseRequest, options: Mapping[str, str], auto_start: bool,
    rules: GrantRules, *, now: int,
) -> QueueRequest:  # fmt: skip
    """Take a place in line, or find the one that this server has already.

    Raises:
        Refused: the limits would refuse it even if something were free, it runs already, or the
            user waits too often.
    """
    wanted = slice_type_of(request.slice, rules.catalogue)
    account_id = accounts.find_or_open(session, accounts.HUB_USER, request.user, now)
    known = live(session, account_id, request.server)
    if known is not None:
        if known.slice_type == wanted.name:
            return known
        raise Refused(
            "already-waiting",
            f"This server waits for a slice {known.slice_type} already; change that request, or "
            "leave the queue first.",
            status=409,
        )
    if _runs(session, account_id, request.server):
        raise Refused("already-leased", "This server has a slice already.", status=409)
    _limits_allow(session, account_id, request, rules, now)
    waiting = session.scalar(
        sa.select(sa.func.count()).where(
            QueueRequest.account_id == account_id, QueueRequest.state.in_(WAITING_STATES)
        )
    )
    if (waiting or 0) >= MOST_WAITING:
        raise Refused(
            "queue-limit", f"You wait for {MOST_WAITING} slices already; leave a line first.",
            status=409, limit=f"{MOST_WAITING} requests at a time",
        )  # fmt: skip
    made = QueueRequest(
        id=uuid.uuid4().hex, account_id=account_id, user_name=request.user,
        server_name=request.server, slice_type=wanted.name, groups=json.dumps(request.groups),
        options=json.dumps(dict(options)), auto_start=auto_start,
        declared_us=request.declared_us, state_us=now, created_us=now,
    )  # fmt: skip
    session.add(made)
    session.flush()
    return made


def _runs(session: Session, account_id: int, server: str) -> bool:
    found = session.scalar(
        sa.select(Lease.id).where(
            Lease.account_id == account_id, Lease.server_name == server,
            Lease.state.in_(LIVE_STATES),
        )
    )  # fmt: skip
    return found is not None


def _limits_allow(
    session: Session, account_id: int, request: wire.LeaseRequest, rules: GrantRules, now: int
) -> None:
    """Refuse to wait for what the user may never have; being full now is what waiting is for."""
    wanted = slice_type_of(request.slice, rules.catalogue)
    ask = ask_of(request, wanted, rules)
    verdicts = admission.decide(session, account_id, ask, now=now)
    for verdict in verdicts:
        if all(check.ok or check.rule.kind.startswith("slices") for check in verdict.checks):
            return
    raise admission.refuse(verdicts[0], ask, now)


def leave(
    session: Session, request: QueueRequest, *, actor: str, reason: str, now: int
) -> str | None:
    """Give the place up; returns the lease of an offer that is to be taken back.

    Whose server runs by then has no place any more: the request is fulfilled.
    """
    if request.state not in WAITING_STATES:
        raise Refused("already-over", f"This request is over: it {_SAID[request.state]}.")
    lease_id = request.lease_id if request.state in ("offered", "starting") else None
    if lease_id is not None and lifecycle.get(session, lease_id).started_us is not None:
        _over(request, "fulfilled", "", now)
        session.flush()
        return None
    _over(request, "left", reason, now)
    session.add(
        Audit(at_us=now, actor=actor[:255], action="queue.leave", subject=request.id,
              reason=reason[:500])
    )  # fmt: skip
    session.flush()
    return lease_id


_SAID = {
    "fulfilled": "got its slice", "left": "was given up", "expired": "was not taken in time",
    "refused": "was refused",
}  # fmt: skip


def change(
    session: Session, request: QueueRequest, *, slice_type: str | None, auto_start: bool | None,
    version: int, rules: GrantRules, now: int,
) -> None:  # fmt: skip
    """Wait for another slice type, or start (not) by itself; the place by age is kept.

    Raises:
        Refused: it changed in the meantime, has its turn already, or may not have that type.
    """
    if request.version != version:
        raise Refused("stale-version", "This request has changed; look at it again.", status=409)
    if request.state != "waiting":
        raise Refused("already-over", "Its turn has come already.", status=409)
    if slice_type is not None and slice_type != request.slice_type:
        asked = as_lease_request(request).model_copy(update={"slice": slice_type})
        _limits_allow(session, request.account_id, asked, rules, now)
        request.slice_type = slice_type
        request.options = json.dumps(json.loads(request.options) | {"slice": slice_type})
    if auto_start is not None:
        request.auto_start = auto_start
    request.version += 1
    session.flush()


def as_lease_request(
    request: QueueRequest, groups: Sequence[str] | None = None
) -> wire.LeaseRequest:
    """The lease that a request becomes; each of its versions at most one."""
    return wire.LeaseRequest(
        attempt=_attempt(request.id, request.version), user=request.user_name,
        server=request.server_name,
        slice=request.slice_type, declared_us=request.declared_us,
        group=json.loads(request.options).get("charge"),
        groups=list(json.loads(request.groups) if groups is None else groups),
    )  # fmt: skip


def _attempt(request_id: str, version: int) -> str:
    return uuid.uuid5(uuid.UUID(request_id), str(version)).hex


# --- what the broker does ---------------------------------------------------------------------


def line(session: Session, rules: GrantRules, queue: QueueRules, *, now: int) -> Line:
    """Everybody who waits, in the order in which they are served, with what each may expect."""
    found = standing(session, rules, queue, now=now)
    if found is None:
        return Line((), (), {})
    seen = outlooks(
        found.waiting, found.fleet, ends=found.ends, guesses=found.guesses,
        stays=usual_stays(session, now), rules=found.placing, now=now,
    )  # fmt: skip
    of = {one.request_id: one for one in seen}
    known = found.requests
    nothing = [of.get(one.id) or Outlook(one.id, None, None, None) for one in known]
    return Line(known, tuple(nothing), found.barred)


@dataclass(frozen=True)
class Standing:
    """The line before anybody is served: what `gpuslice.placement.queue` needs of it.

    ``requests``: all whose slice type is on offer; ``waiting``: those of them who are not barred.
    """

    requests: tuple[QueueRequest, ...]
    waiting: tuple[Waiting, ...]
    barred: Mapping[str, Refused]
    fleet: FleetSnapshot
    ends: Mapping[str, int]
    guesses: Mapping[str, int]
    placing: Rules


def standing(
    session: Session, rules: GrantRules, queue: QueueRules, *, now: int,
    newcomer: Sequence[str] | None = None,
) -> Standing | None:  # fmt: skip
    """The line as it stands; None: nobody waits, and one indexed query found that out.

    Args:
        newcomer: The groups of somebody who is to be placed behind it.
    """
    rows = {
        row.id: row
        for row in session.scalars(
            sa.select(QueueRequest)
            .where(QueueRequest.state == "waiting")
            .execution_options(populate_existing=True)
        )
    }
    if not rows:
        return None
    places, barred = _ordered(session, rows, rules, queue.offer_us, now)
    ordered = [rows[place.request_id] for place in places]
    stays_us = {place.request_id: place.longest_us for place in places}
    known = [one for one in ordered if rules.catalogue.get(one.slice_type) is not None]
    barred |= {one.id: _not_there(one) for one in known if one.user_name in queue.absent}
    barred |= {one.id: _not_said(one) for one in known if one.user_name in queue.silent}
    barred |= queue.held
    barred |= _leased(session)
    ends, guesses = guessed_ends(session, now)
    booked = bookings(
        session, rules, now=now, til_us=now + HORIZON_US, slack_us=queue.offer_us,
        newcomer=newcomer,
    )  # fmt: skip
    return Standing(
        requests=tuple(known),
        waiting=tuple(
            _waiting(one, stays_us[one.id], rules, queue, booked, now)
            for one in known if one.id not in barred
        ),
        barred=barred, fleet=fleet_now(session, rules), ends=ends, guesses=guesses,
        placing=Rules(rules.reserve_bytes, ceilings(session)),
    )  # fmt: skip


def fleet_now(session: Session, rules: GrantRules) -> FleetSnapshot:
    """What there is to place on, with the claims of all live leases."""
    return without_nodes(fleet_snapshot(session, rules.host_reserve_ram), rules.closed_nodes)


def _not_there(row: QueueRequest) -> Refused:
    return Refused(
        "unknown-user", f"JupyterHub does not know a user {row.user_name} now.", status=404
    )


def _not_said(row: QueueRequest) -> Refused:
    return Refused(
        "hub-silent",
        f"JupyterHub does not say now who {row.user_name} is; it is asked again in a minute.",
        status=503,
    )


def _leased(session: Session) -> dict[str, Refused]:
    """Requests whose server has a slice: a grant would refuse them, so none is kept for them."""
    found = session.scalars(
        sa.select(QueueRequest.id)
        .join(
            Lease,
            sa.and_(
                Lease.account_id == QueueRequest.account_id,
                Lease.server_name == QueueRequest.server_name,
            ),
        )
        .where(QueueRequest.state == "waiting", IS_LIVE)
    )
    refused = Refused(
        "already-leased", "You have a server of that name with another slice; stop it first.",
        status=409,
    )  # fmt: skip
    return dict.fromkeys(found, refused)


def _ordered(
    session: Session, rows: Mapping[str, QueueRequest], rules: GrantRules, offer_us: int, now: int
) -> tuple[list[queueorder.Place], dict[str, Refused]]:
    """The places in their order, and whom their own limits refuse now."""
    found = [_place_in_line(session, row, rules, now) for row in rows.values()]
    later = _later(session, {row.account_id for row in rows.values()}, offer_us, now)
    places = [replace(place, later=place.account_id in later) for place, _ in found]
    barred = {place.request_id: refused for place, refused in found if refused is not None}
    since = now - queueorder.FORGOTTEN_US
    concerned = {place.account_id for place in places} | {
        place.group_id for place in places if place.group_id is not None
    }
    used = {
        account_id: queueorder.decayed(
            ((start, one.gpu_us) for start, one in counters.buckets(session, account_id, since)),
            now,
        )
        for account_id in concerned
    }
    return queueorder.in_order(places, used, now), barred


def _later(session: Session, account_ids: set[int], offer_us: int, now: int) -> set[int]:
    """Accounts that let offers go: each holds a slice for nothing, and others waited meanwhile.

    For each within a day they stand behind the others of their priority for as long as one holds.
    """
    gone = session.execute(
        sa.select(
            QueueRequest.account_id, sa.func.count(), sa.func.max(QueueRequest.state_us)
        )
        .where(
            QueueRequest.account_id.in_(account_ids),
            QueueRequest.lease_id.is_not(None),
            QueueRequest.state_us > now - 24 * HOUR_US,
            sa.or_(
                QueueRequest.state == "left",
                # Where the hub did not come for it, that was not its user's doing.
                sa.and_(QueueRequest.state == "expired", QueueRequest.auto_start.is_(False)),
            ),
        )
        .group_by(QueueRequest.account_id)
    )  # fmt: skip
    return {account_id for account_id, times, last in gone if now < last + times * offer_us}


def _place_in_line(
    session: Session, row: QueueRequest, rules: GrantRules, now: int
) -> tuple[queueorder.Place, Refused | None]:
    """What its order depends on, and why its own limits would refuse it now, if they would."""
    wanted = rules.catalogue.get(row.slice_type)
    group_id, priority, longest_us, refused = None, 0, row.declared_us, None
    if wanted is not None:
        ask = ask_of(as_lease_request(row), wanted, rules)
        try:
            verdicts = admission.decide(session, row.account_id, ask, now=now)
        except Refused as no:
            # A group that was left, a policy that asks for more by now.
            refused = no
        else:
            priority = verdicts[0].effective.priority
            group = verdicts[0].chain.group
            group_id = group.account_id if group else None
            admitted = next((verdict for verdict in verdicts if verdict.ok), None)
            if admitted is None:
                refused = admission.refuse(verdicts[0], ask, now)
            else:
                longest_us = longest(admitted)
    place = queueorder.Place(row.id, row.account_id, group_id, priority, row.created_us, longest_us)
    return place, refused


def _waiting(
    row: QueueRequest, longest_us: int | None, rules: GrantRules, queue: QueueRules,
    booked: Bookings, now: int,
) -> Waiting:  # fmt: skip
    wanted = rules.catalogue.get(row.slice_type)
    assert wanted is not None
    return Waiting(
        row.id, wanted, longest_us=longest_us,
        impatient=now - row.created_us >= queue.patience_us,
        keeps=booked.keeps(json.loads(row.groups)),
    )  # fmt: skip


def offer(
    session: Session, request: QueueRequest, placement: Placement, groups: Sequence[str],
    rules: GrantRules, queue: QueueRules, *, now: int,
) -> Lease | None:  # fmt: skip
    """Reserve the slice for its user; None: a limit says no for now, and the request waits on.

    Raises:
        Conflict: the fleet changed under us.
    """
    # Somebody whose groups are others than when the line was drawn up: what is reserved for whom
    # is looked at anew.
    same = set(groups) == set(json.loads(request.groups))
    request.groups = json.dumps(list(groups))
    try:
        with session.begin_nested():
            lease = grant(
                session, as_lease_request(request, groups), rules, now=now,
                placement=placement if same else None,
            )  # fmt: skip
    except Refused as refused:
        _not_now(session, request, refused, now)
        return None
    til = now + queue.offer_us
    unopened_us = _left_unopened(session, request, now) if request.auto_start else None
    if unopened_us is not None:
        request.auto_start = False
    if request.auto_start:
        # The hub may be away for a while, or pull an image before it asks for the slice.
        til = now + max(rules.start_timeout_us, queue.offer_us)
        lease.open_before_us = til + queue.first_open_us
    lease.start_before_us = til
    request.state, request.state_us = ("starting" if request.auto_start else "offered"), now
    request.lease_id, request.offer_til_us, request.reason = lease.id, til, None
    request.version += 1
    minutes = max(1, round((til - now) / 60_000_000))
    said = (
        f"Your turn has come: your server starts now on {lease.title}."
        if request.auto_start
        else f"Your turn has come: {lease.title} is reserved for you for {minutes} minutes. "
        "Start your server, or leave the queue."
    )
    if unopened_us is not None:
        hours = max(1, math.ceil((unopened_us + UNOPENED_US - now) / HOUR_US))
        said += (
            " It does not start by itself, because you did not open the last one that did; for "
            f"{hours} hour{'s' * (hours > 1)} more you start your servers yourself."
        )
    session.add(
        NoticeRow(
            idem_key=f"offer:{request.id}:{lease.id}", account_id=request.account_id,
            lease_id=None, kind="offer", severity="info", message=said, created_us=now,
        )
    )  # fmt: skip
    session.flush()
    return lease


def _left_unopened(session: Session, request: QueueRequest, now: int) -> int | None:
    """When the last server that the queue started for this user ended, if nobody opened it and
    that is not long ago."""
    last = session.execute(
        sa.select(Lease.finished_us, Lease.opened_us)
        .where(
            Lease.account_id == request.account_id, Lease.open_before_us.is_not(None),
            Lease.started_us.is_not(None), Lease.finished_us > now - UNOPENED_US,
        )
        .order_by(Lease.finished_us.desc())
        .limit(1)
    ).one_or_none()  # fmt: skip
    return last.finished_us if last is not None and last.opened_us is None else None


@dataclass(frozen=True)
class ToStart:
    """A server that the hub is to start, because its user chose so and has the turn."""

    request_id: str
    lease_id: str
    user: str
    server: str
    options: Mapping[str, str]


def to_start(session: Session) -> list[ToStart]:
    """Whose turn it is to be started and who did not come for the slice yet."""
    rows = session.execute(
        sa.select(QueueRequest, Lease)
        .join(Lease, Lease.id == QueueRequest.lease_id)
        .where(
            QueueRequest.state == "starting", Lease.state == LeaseState.GRANTED,
            Lease.stop_requested_us.is_(None),
        )
        .order_by(QueueRequest.state_us, QueueRequest.id)
        .execution_options(populate_existing=True)
    ).all()  # fmt: skip
    return [
        ToStart(
            request.id, lease.id, request.user_name, request.server_name,
            json.loads(request.options),
        )
        for request, lease in rows
        # The one that comes for it makes its own attempt of it; the offer was a change, too.
        if lease.attempt == _attempt(request.id, request.version - 1)
    ]  # fmt: skip


def held_up(
    session: Session, request: QueueRequest, groups: Sequence[str], refused: Refused, *, now: int
) -> None:
    """Note what keeps a request from its turn, and its user's groups as they are now."""
    if list(groups) != json.loads(request.groups):
        # What was found may have been about groups that were left, or joined, since.
        request.groups = json.dumps(list(groups))
        session.flush()
        return
    _not_now(session, request, refused, now)


def _not_now(session: Session, request: QueueRequest, refused: Refused, now: int) -> None:
    """A limit that may free itself lets it wait on; what will never be allowed ends it."""
    request.reason = str(refused)[:500]
    if refused.refusal.reason in ("slice-not-allowed", "unknown-slice", "slice-not-offered"):
        _over(request, "refused", str(refused), now)
        session.add(
            NoticeRow(
                idem_key=f"refused:{request.id}", account_id=request.account_id, lease_id=None,
                kind="queue", severity="warning",
                message=f"You no longer wait for a slice {request.slice_type}: {refused}",
                created_us=now,
            )
        )  # fmt: skip
    session.flush()


def sweep(session: Session, *, now: int) -> None:
    """Note what became of offers: taken, or not taken in time; and who got a slice otherwise."""
    for request, lease in _got_one_otherwise(session):
        request.lease_id = lease.id
        _over(request, "fulfilled", "", now)
    rows = session.execute(
        sa.select(QueueRequest, Lease)
        .join(Lease, Lease.id == QueueRequest.lease_id)
        .where(QueueRequest.state.in_(("offered", "starting")))
        .execution_options(populate_existing=True)
    ).all()
    for request, lease in rows:
        if lease.started_us is not None:
            _over(request, "fulfilled", "", now)
        elif lease.state in (LeaseState.REVOKING, LeaseState.CANCELLED):
            why = lease.end_reason or "the slice was not taken in time"
            if _no_fault_of_theirs(lease):
                _waits_on(session, request, why, now)
                continue
            _over(request, "expired", why, now)
            session.add(
                NoticeRow(
                    idem_key=f"expired:{request.id}", account_id=request.account_id,
                    lease_id=None, kind="queue", severity="warning", created_us=now,
                    message=f"The slice {request.slice_type} that was reserved for you is given "
                    f"to the next one: {why}. Join the queue again if you need it; for a "
                    "while others of your priority are served before you.",
                )
            )  # fmt: skip
    session.flush()


def _no_fault_of_theirs(lease: Lease) -> bool:
    """Taken back before its time although nobody stopped it: the node could not prepare it."""
    return lease.state_us < lease.start_before_us and lease.stop_requested_us is None


def _waits_on(session: Session, request: QueueRequest, why: str, now: int) -> None:
    """Its turn comes again, with its age in line as it was."""
    session.add(
        NoticeRow(
            idem_key=f"again:{request.id}:{request.lease_id}", account_id=request.account_id,
            lease_id=None, kind="queue", severity="warning", created_us=now,
            message=f"The slice {request.slice_type} that was reserved for you could not be had: "
            f"{why}. You keep your place in line.",
        )
    )  # fmt: skip
    request.state, request.state_us = "waiting", now
    request.lease_id, request.offer_til_us, request.reason = None, None, why[:500]
    request.version += 1


def rests(request: QueueRequest, now: int) -> bool:
    """Whether its turn was lost just now: what failed would fail again at once."""
    return request.created_us < request.state_us and now - request.state_us < REST_US


def _got_one_otherwise(session: Session) -> list[tuple[QueueRequest, Lease]]:
    """Who waits for what their server has by now: something was free when they just tried."""
    rows = session.execute(
        sa.select(QueueRequest, Lease)
        .join(
            Lease,
            sa.and_(
                Lease.account_id == QueueRequest.account_id,
                Lease.server_name == QueueRequest.server_name,
                Lease.slice_type == QueueRequest.slice_type,
            ),
        )
        .where(
            QueueRequest.state == "waiting", Lease.state.in_(LIVE_STATES),
            Lease.started_us.is_not(None),
        )
        .execution_options(populate_existing=True)
    ).all()  # fmt: skip
    return [(row[0], row[1]) for row in rows]


def _over(request: QueueRequest, state: str, reason: str, now: int) -> None:
    request.state, request.state_us = state, now
    request.reason = reason[:500] or None
    request.version += 1
