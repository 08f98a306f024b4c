"""Holds running leases to their limits: computes when each must end, warns, and orders the stop.

One pass over all running leases in one transaction, with one query for each kind of figure and
not for each lease. What is decided here is committed before anything is asked of hub or node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.broker import deadline, lifecycle
from gpuslice.broker.reserved import Going
from gpuslice.ledger import counters, credit
from gpuslice.ledger.prices import Rates, rate_at
from gpuslice.ledger.tables import LIVE_STATES, Account, Lease, LeaseAccount
from gpuslice.quotas import policies
from gpuslice.quotas.admission import Limited, allowances, limited
from gpuslice.quotas.chain import Chain, Link
from gpuslice.quotas.documents import zone_of
from gpuslice.quotas.periods import window
from gpuslice.quotas.policies import Stored
from gpuslice.quotas.rules import Effective, Rule, effective
from gpuslice.quotas.words import amount, in_hours
from gpuslice.units import HOUR_US, MINUTE_US
from gpuslice.wire import LeaseState

_ACTOR = "budget watch"
_FILES = "Your files stay. You may go on in a slice that your limits still allow, such as CPU."


@dataclass(frozen=True)
class WatchRules:
    """What the watch needs to know of the platform; durations in microseconds."""

    timezone: str
    currency: str
    grace_us: int


@dataclass(frozen=True)
class _End:
    """Why a lease would end, and when; its user has at least ``notice_us`` to know it before.

    ``known``: from its start on, so it needs no grace.
    """

    at_us: int
    reason: str
    notice_us: int = 0
    known: bool = False


@dataclass
class _Tick:
    """What one pass has read; every figure once."""

    session: Session
    now: int
    rules: WatchRules
    rates: Rates
    leases: list[Lease] = field(default_factory=list)
    chains: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    #: Leases that hold a slice on each account, oldest first: which are too many is then clear.
    holding: dict[int, list[Lease]] = field(default_factory=lambda: defaultdict(list))
    names: dict[int, str] = field(default_factory=dict)
    #: Who is to end for somebody else's reservation.
    going: Mapping[str, Going] = field(default_factory=dict)
    #: What is used but not billed yet, and what one more hour uses, per account.
    unbilled: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    per_hour: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    #: What safe leases have reserved of the time they declared, which is nobody else's to use.
    aside: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    #: What administrators have added to limits for now.
    more: dict[Limited, int] = field(default_factory=dict)
    #: What users are to be told; written together at the end.
    notices: list[lifecycle.Notice] = field(default_factory=list)
    _credit: dict[int, int] = field(default_factory=dict)
    _used: dict[tuple[int, int], counters.Used] = field(default_factory=dict)
    _policies: dict[str, Stored] | None = None
    _versions: dict[str, list[Stored]] | None = None
    _crowded: dict[tuple[int, str | None, int], set[str]] = field(default_factory=dict)

    def policy(self, subject: str) -> Stored | None:
        """What holds now."""
        if self._policies is None:
            self._policies = policies.some(self.session, self._subjects())
        return self._policies.get(subject)

    def policy_at(self, subject: str, moment: int) -> Stored | None:
        """What held at a moment."""
        if self._versions is None:
            self._versions = policies.versions(self.session, self._subjects())
        return policies.at(self._versions.get(subject, ()), moment)

    def _subjects(self) -> list[str]:
        """Whose policies may count for a lease."""
        found = {policies.EVERYONE}
        for user, *groups in self.chains.values():
            found |= {f"user:{user}", *(f"group:{group}" for group in groups)}
        return sorted(found)

    def rate(self, lease: Lease) -> int:
        # A clock that was set back may say a time before there was any price.
        known = self.rates.of(lease)
        return rate_at(known, max(self.now, lease.granted_us)).rate_u_per_hour

    def credit(self, account_id: int) -> int:
        """What is left, with one query for all accounts of the pass."""
        if account_id not in self._credit:
            ids = sorted({*self.names, account_id})
            self._credit |= credit.left_of_each(self.session, ids, self.now)
        return self._credit[account_id]

    def crowded(self, account_id: int, slice_type: str | None, limit: int) -> set[str]:
        """The leases that are too many on an account, the newest ones."""
        key = (account_id, slice_type, limit)
        if key not in self._crowded:
            mine = [
                one.id
                for one in self.holding[account_id]
                if slice_type is None or one.slice_type == slice_type
            ]
            self._crowded[key] = set(mine[limit:])
        return self._crowded[key]

    def used(self, account_id: int, start_us: int) -> counters.Used:
        """What an account has used since, with one query for all accounts of the pass."""
        if (account_id, start_us) not in self._used:
            found = counters.used(self.session, sorted({*self.names, account_id}), start_us)
            for other, used in found.items():
                self._used[other, start_us] = used
        return self._used[account_id, start_us]


def look(
    session: Session, rules: WatchRules, *, now: int, going: Mapping[str, Going] | None = None
) -> list[str]:
    """Bring every running lease's deadline up to date; the leases whose stop was just ordered.

    Args:
        going: Leases that are to end for somebody else's reservation.
    """
    tick = _read(session, rules, now)
    tick.going = going or {}
    ended = []
    for lease in tick.leases:
        end = _end(tick, lease)
        at = deadline.next_deadline(
            end.at_us if end else None, lease.deadline_us, lease.guaranteed_til_us, now,
            _grace(rules, end),
        )  # fmt: skip
        lease.deadline_us = at
        lease.deadline_reason = end.reason[:500] if end is not None and at is not None else None
        if at is None or end is None:
            lease.warned_min = None
        elif at <= now:
            lifecycle.request_stop(session, lease.id, end.reason, _ACTOR, now=now)
            ended.append(lease.id)
        else:
            _tell(tick, lease, at, end.reason)
            _warn(tick, lease, at, end.reason)
    lifecycle.tell(session, tick.notices, now)
    session.flush()
    return ended


def _grace(rules: WatchRules, end: _End | None) -> int:
    """How long before its end a user has to know it at least."""
    if end is not None and end.known:
        return 0
    return max(rules.grace_us, end.notice_us if end else 0)


def _read(session: Session, rules: WatchRules, now: int) -> _Tick:
    tick = _Tick(session, now, rules, Rates(session), more=allowances(session, now))
    live = session.scalars(
        sa.select(Lease)
        .where(Lease.state.in_(LIVE_STATES))
        .order_by(Lease.granted_us, Lease.id)
        .execution_options(populate_existing=True)
    ).all()
    by_id = {lease.id: lease for lease in live}
    links = session.execute(
        sa.select(LeaseAccount.lease_id, LeaseAccount.account_id, Account.label)
        .join(Account, Account.id == LeaseAccount.account_id)
        .join(Lease, Lease.id == LeaseAccount.lease_id)
        .where(Lease.state.in_(LIVE_STATES))
        .order_by(LeaseAccount.lease_id, LeaseAccount.depth)
    )
    for lease_id, account_id, label in links:
        tick.chains[lease_id].append(account_id)
        tick.names[account_id] = label
    for lease in live:
        for account_id in tick.chains[lease.id]:
            tick.holding[account_id].append(by_id[lease.id])
    for lease in live:
        goes_on = lease.state == LeaseState.RUNNING and lease.stop_requested_us is None
        if goes_on:
            tick.leases.append(lease)
        _draws(tick, lease, goes_on)
    return tick


def _draws(tick: _Tick, lease: Lease, goes_on: bool) -> None:
    """Count what this lease has used since its last segment, and uses, on all its accounts.

    Used is what it was seen alive for: our own clock may have been set.
    """
    rate, aside_us = tick.rate(lease), _aside_us(lease)
    for account_id in tick.chains[lease.id]:
        tick.aside["money", account_id] += rate * aside_us // HOUR_US
        tick.aside["gpu-hours", account_id] += aside_us * lease.gpu_milli // 1000
    unopened = lease.open_before_us is not None and lease.opened_us is None
    if lease.billed_us is None or lease.covered_us is None or unopened:
        return
    marks = (lease.covered_us, lease.stop_requested_us, lease.absorbed_from_us)
    unbilled_us = max(0, min(mark for mark in marks if mark is not None) - lease.billed_us)
    draws_on = goes_on and not aside_us
    for account_id in tick.chains[lease.id]:
        tick.unbilled["money", account_id] += rate * unbilled_us // HOUR_US
        tick.unbilled["gpu-hours", account_id] += unbilled_us * lease.gpu_milli // 1000
        if draws_on:
            tick.per_hour["money", account_id] += rate
            tick.per_hour["gpu-hours", account_id] += lease.gpu_milli * HOUR_US // 1000


def _aside_us(lease: Lease) -> int:
    """The time that a safe lease has reserved and not used yet; one that is to end has none."""
    stays = lease.state in (LeaseState.GRANTED, LeaseState.RUNNING)
    if lease.hold_kind != "safe" or lease.declared_us is None or not stays:
        return 0
    if lease.stop_requested_us is not None:
        return 0
    if lease.started_us is None or lease.covered_us is None:
        return lease.declared_us
    return max(0, lease.declared_us - (lease.covered_us - lease.started_us))


# --- what ends a lease ------------------------------------------------------------------------


def _end(tick: _Tick, lease: Lease) -> _End | None:
    """What ends a lease first; None: nothing does."""
    ends = [
        min(_ends(tick, lease, holding), key=lambda one: one.at_us, default=None)
        for holding in _words(tick, lease)
    ]
    found = [end for end in ends if end is not None]
    # Where two say when, the one that leaves more time counts; one that says nothing leaves all.
    return max(found, key=lambda one: one.at_us) if len(found) == len(ends) else None


def _ends(tick: _Tick, lease: Lease, holding: Effective) -> Iterator[_End]:
    yield from _own_end(lease, holding)
    if (asked := tick.going.get(lease.id)) is not None:
        yield _End(asked.at_us, asked.reason, asked.notice_us)
    for rule in holding.rules:
        match rule.kind:
            case "slice-types":
                if rule.allowed is not None and lease.slice_type not in rule.allowed:
                    yield _End(tick.now, f"Slices of this type are no longer yours ({rule.source})")
            case "slices" | "slices-of-type":
                yield from _too_many(tick, lease, rule)
            case _ if lease.hold_kind != "safe":
                yield from _used_up(tick, lease, rule)


def _words(tick: _Tick, lease: Lease) -> Iterator[Effective]:
    """What holds for a lease now; where a lowered limit counts at the next start only, also what
    held when it was granted."""
    now = effective(_chain(tick, lease, None), lease.slice_type, tick.rules.timezone)
    yield now
    if now.when_lowered == "next-start":
        then = _chain(tick, lease, lease.granted_us)
        yield effective(then, lease.slice_type, tick.rules.timezone)


def _chain(tick: _Tick, lease: Lease, moment: int | None) -> Chain:
    def policy(subject: str) -> Stored | None:
        return tick.policy(subject) if moment is None else tick.policy_at(subject, moment)

    user, *groups = tick.chains[lease.id]
    return Chain(
        user=Link(user, tick.names[user], policy(f"user:{user}")),
        groups=tuple(Link(one, tick.names[one], policy(f"group:{one}")) for one in groups),
        everyone=policy(policies.EVERYONE),
    )


def _own_end(lease: Lease, holding: Effective) -> Iterator[_End]:
    """The longest session, the time its user declared, and a server nobody has opened."""
    assert lease.started_us is not None
    if holding.session_us is not None:
        text = f"A session lasts {in_hours(holding.session_us)} ({holding.session_source})"
        known = holding.session_us == lease.session_us
        yield _End(lease.started_us + holding.session_us, text, known=known)
    if lease.declared_us is not None:
        text = f"The time that was asked for ({in_hours(lease.declared_us)}) is over"
        yield _End(lease.started_us + lease.declared_us, text, known=True)
    if lease.open_before_us is not None and lease.opened_us is None:
        yield _End(lease.open_before_us, "Nobody opened the server after its turn had come")


def _too_many(tick: _Tick, lease: Lease, rule: Rule) -> Iterator[_End]:
    """The newest leases end where there are more than may be held now."""
    if rule.limit is None:
        return
    if lease.id in tick.crowded(rule.account_id, rule.slice_type, rule.limit):
        yield _End(tick.now, f"Only {amount(rule, rule.limit)} may be held now ({rule.source})")


def _used_up(tick: _Tick, lease: Lease, rule: Rule) -> Iterator[_End]:
    kind: Literal["money", "gpu-hours"] = "gpu-hours" if rule.kind == "gpu-hours" else "money"
    if not tick.per_hour[kind, rule.account_id] or not _draws_on(tick, lease, kind):
        return
    if rule.kind == "credit":
        yield _credit_gone(tick, lease, rule)
        return
    span = window(rule.period, zone_of(rule.zone), tick.now)
    more = tick.more.get(limited(rule), 0)
    limit = None if rule.limit is None else rule.limit + more
    counted = tick.used(rule.account_id, span.start_us)
    used = counted.spent_u if kind == "money" else counted.gpu_us
    if limit is None:
        return
    used += tick.unbilled[kind, rule.account_id]
    resets = span.end_us if rule.period.kind != "rolling" else None
    aside = tick.aside[kind, rule.account_id]
    draw = deadline.Draw(limit - used - aside, tick.per_hour[kind, rule.account_id], resets)
    at = deadline.used_up_at(draw, tick.now)
    said = f"{amount(rule, limit, tick.rules.currency)} ({rule.source})"
    if at is not None:
        gone = "used up or reserved" if aside else "used up"
        yield _End(at, f"{said} are {gone}")
    percent = deadline.percent_reached(used, limit)
    if percent is not None:
        key = f"used{percent}:{lease.id}:{rule.account_id}:{kind}:{rule.period}"
        if rule.period.kind != "rolling":
            key += f":{span.start_us}"
        tick.notices.append(
            lifecycle.Notice(
                lease, f"used-{percent}", "warning", f"{percent} % of {said} are used.", key
            )
        )


def _credit_gone(tick: _Tick, lease: Lease, rule: Rule) -> _End:
    """When no credit that pays for a lease is left, as admission counts it."""
    chain = tick.chains[lease.id]
    may_pay = chain if rule.account_id == chain[0] else [rule.account_id]
    total, ends = 0, []
    for account_id in may_pay:
        total += tick.credit(account_id)
        # Of the lease's group nothing may draw now, if this lease is not opened yet.
        at = min(
            tick.now if left <= 0 else tick.now + left * HOUR_US // per_hour
            for row in {rule.account_id, account_id}
            for left in [total - tick.unbilled["money", row] - tick.aside["money", row]]
            if (per_hour := tick.per_hour["money", row])
        )
        ends.append((at, total))
    at, total = max(ends)
    return _End(at, f"{amount(rule, total, tick.rules.currency)} ({rule.source}) is used up")


def _draws_on(tick: _Tick, lease: Lease, kind: str) -> bool:
    """What costs nothing is not ended by a budget, nor what has no GPU by GPU-hours."""
    return tick.rate(lease) > 0 if kind == "money" else lease.gpu_milli > 0


def _tell(tick: _Tick, lease: Lease, at_us: int, reason: str) -> None:
    """Tell a user once, as soon as it is known, that a reservation needs the place."""
    asked = tick.going.get(lease.id)
    if asked is None or asked.reason != reason:
        return
    tick.notices.append(
        lifecycle.Notice(
            lease, "reservation", "warning",
            f"{reason}: this server is stopped in {_minutes(at_us - tick.now)}. Save your work. "
            "Your files stay.",
            f"reservation:{lease.id}:{asked.key}",
        )
    )  # fmt: skip


def _warn(tick: _Tick, lease: Lease, at_us: int, reason: str) -> None:
    due, given = deadline.warning(at_us, lease.warned_min, tick.now)
    lease.warned_min = given
    if due is None:
        return
    tick.notices.append(
        lifecycle.Notice(
            lease, f"ends-{due}", "warning",
            f"This server is stopped in {_minutes(at_us - tick.now)}: {reason}. Save your work. "
            f"{_FILES}",
            f"ends{due}:{lease.id}:{tick.now}",
        )
    )  # fmt: skip


def _minutes(us: int) -> str:
    left = max(1, round(us / MINUTE_US))
    return f"{left} minute{'' if left == 1 else 's'}"
