"""Admission: looks at every limit that binds a lease, and takes its place under all of them.

`decide` and `admit` run the same checks on the same rows; `admit` then uses the limits up by
guarded updates, in ascending order of accounts, so what it was told still holds when it writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.errors import Refused
from gpuslice.ledger import billing, counters, credit
from gpuslice.ledger.database import Conflict
from gpuslice.ledger.prices import DEFAULT_LIST, rate_at, rates
from gpuslice.ledger.tables import AccountPeriod, Allowance
from gpuslice.quotas.chain import Chain, candidates
from gpuslice.quotas.documents import zone_of
from gpuslice.quotas.periods import window
from gpuslice.quotas.rules import Effective, Rule, effective
from gpuslice.quotas.words import amount, in_hours, refusal_text
from gpuslice.units import SECOND_US

#: A limit that may be added to: its kind, account and period. One account may have several of a
#: kind, and what one of them got is not the others'.
Limited = tuple[str, int, str]


@dataclass(frozen=True)
class Ask:
    """What is asked for; durations in microseconds."""

    user: str
    groups: Sequence[str]
    slice_type: str
    gpu_milli: int
    horizon_us: int
    #: Of the platform, where a policy names none.
    timezone: str
    currency: str
    #: The group the user chose to be charged, and how long the user said it will run.
    group: str | None = None
    declared_us: int | None = None


@dataclass(frozen=True)
class Check:
    """One limit, looked at: what counts already, what is asked, and whether it admits."""

    rule: Rule
    used: int
    held: int
    asked: int
    #: The limit with what an administrator has added for now; None is *unlimited*.
    limit: int | None
    ok: bool
    #: When this would be another answer at the latest, if that can be known.
    again_us: int | None = None
    #: It costs nothing of this kind, whatever the limit: by its price or its share of a GPU.
    free: bool = False
    #: Whose rows it bounds.
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """All checks of one chain, and what a lease admitted by them would be."""

    chain: Chain
    effective: Effective
    checks: tuple[Check, ...]
    price_list: str
    hold_u: int
    hold_gpu_us: int
    hold_kind: str
    session_us: int | None
    declared_us: int | None

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def decide(session: Session, account_id: int, ask: Ask, *, now: int) -> list[Verdict]:
    """What every chain of the user says, in the order they are tried; changes nothing.

    Raises:
        Refused: the group is not the user's, the time that was declared is missing or too long,
            or the slice type has no price.
    """
    chains = candidates(session, account_id, ask.user, ask.groups, ask.group)
    return [_verdict(session, chain, ask, now) for chain in chains]


def admit(session: Session, account_id: int, ask: Ask, *, now: int) -> Verdict:
    """Take one place under every limit, in the caller's transaction; the chain that is charged.

    Raises:
        Refused: naming the limit that failed; nothing was changed.
        Conflict: somebody else took it between our look and our update; to be tried again.
    """
    verdicts = decide(session, account_id, ask, now=now)
    chosen = next((verdict for verdict in verdicts if verdict.ok), None)
    if chosen is None:
        raise refuse(verdicts[0], ask, now)
    _take(session, chosen, ask)
    return chosen


def refuse(verdict: Verdict, ask: Ask, now: int) -> Refused:
    """The first limit that failed, in words: what it is, what counts, when to try again."""
    failed = next(check for check in verdict.checks if not check.ok)
    again = failed.again_us
    return Refused(
        _REASONS[failed.rule.kind],
        refusal_text(failed.rule, failed.limit, failed.used, failed.held, failed.asked, again,
                     ask.slice_type, zone_of(ask.timezone), ask.currency),
        status=403 if failed.rule.kind == "slice-types" else 409,
        limit=amount(failed.rule, failed.limit, ask.currency),
        retry_after_s=None if again is None else max(1, (again - now) // SECOND_US + 1),
    )  # fmt: skip


_REASONS = {
    "slice-types": "slice-not-allowed",
    "slices": "leases-limit",
    "slices-of-type": "slice-type-limit",
    "gpu-hours": "gpu-hours-limit",
    "money": "budget-limit",
    "credit": "credit-limit",
}


# --- one chain --------------------------------------------------------------------------------


def _verdict(session: Session, chain: Chain, ask: Ask, now: int) -> Verdict:
    holding = effective(chain, ask.slice_type, ask.timezone)
    declared = _declared(holding, ask)
    price_list, rate = _price(session, holding.price_list, ask.slice_type, now)
    length = billing.ahead_us(holding.hold, declared, ask.horizon_us)
    hold_u, hold_gpu_us = billing.to_hold(rate, ask.gpu_milli, length)
    need = _Need(
        chain.account_ids, hold_u, hold_gpu_us, no_money=rate == 0, no_gpu=ask.gpu_milli == 0
    )  # fmt: skip
    now_held = counters.held_by(session, chain.account_ids, ask.slice_type)
    more = {}
    if any(rule.kind in ("gpu-hours", "money") for rule in holding.rules):
        more = allowances(session, now, chain.account_ids)
    state = _State(session, now_held, more, now)
    checks = tuple(_check(state, rule, ask, need) for rule in holding.rules)
    return Verdict(
        chain=chain, effective=holding, checks=checks, price_list=price_list, hold_u=hold_u,
        hold_gpu_us=hold_gpu_us, hold_kind=holding.hold, session_us=holding.session_us,
        declared_us=declared,
    )  # fmt: skip


def _declared(holding: Effective, ask: Ask) -> int | None:
    """How long the user said it will run; with a safe hold that has to be said or follow."""
    longest = holding.session_us
    declared = ask.declared_us
    if declared is not None and longest is not None and declared > longest:
        hours = in_hours(longest)
        raise Refused(
            "session-limit",
            f"A session lasts at most {hours} ({holding.session_source}); ask for less time.",
            status=409, limit=hours,
        )  # fmt: skip
    if holding.hold == "safe" and declared is None:
        if longest is None:
            raise Refused(
                "duration-missing",
                "Here the cost of a whole session is reserved when it starts: say how many hours "
                "you need.",
                status=422,
            )
        return longest
    return declared


def _price(session: Session, wanted: str | None, slice_type: str, now: int) -> tuple[str, int]:
    """The price list that has a price for this type now, the group's own first."""
    if wanted is not None:
        known = rates(session, wanted, slice_type)
        # What a list is yet to have a price for costs what it costs everybody until then.
        if known and known[0].from_us <= now:
            return wanted, rate_at(known, now).rate_u_per_hour
    known = rates(session, DEFAULT_LIST, slice_type)
    if not known:
        raise Refused(
            "no-price",
            f"Slices of type {slice_type} have no price yet, so none can be given out; an "
            "administrator has to set one.",
            status=503,
        )
    return DEFAULT_LIST, rate_at(known, now).rate_u_per_hour


@dataclass(frozen=True)
class _State:
    """What the checks of one chain look at."""

    session: Session
    #: By account and slice type, ``""`` for all types.
    held: Mapping[tuple[int, str], counters.Held]
    #: What administrators have added to limits for now.
    more: Mapping[Limited, int]
    now: int


@dataclass(frozen=True)
class _Need:
    """What a lease would reserve, and of what it uses nothing at all."""

    chain: Sequence[int]
    hold_u: int
    hold_gpu_us: int
    no_money: bool
    no_gpu: bool


def _check(state: _State, rule: Rule, ask: Ask, need: _Need) -> Check:
    match rule.kind:
        case "slice-types":
            ok = rule.allowed is None or ask.slice_type in rule.allowed
            return Check(rule, 0, 0, 1, rule.limit, ok)
        case "slices" | "slices-of-type":
            active = state.held[rule.account_id, rule.slice_type or ""].active
            ok = rule.limit is None or active + 1 <= rule.limit
            return Check(rule, 0, active, 1, rule.limit, ok)
        case "credit":
            return _credit(state, rule, need)
    return _periodic(state, rule, need)


def _credit(state: _State, rule: Rule, need: _Need) -> Check:
    """A user's lease is paid by the groups' credit, too (`credit.Purse`); a total by its own.

    The credit of a user and of the groups up to one of them is enough if it covers what is
    reserved for all who draw on that group, and for the user.
    """
    may_pay = need.chain if rule.account_id == need.chain[0] else [rule.account_id]
    left = credit.left_of_each(state.session, may_pay, state.now)
    total, found = 0, []
    for account_id in may_pay:
        total += left[account_id]
        rows = tuple({rule.account_id, account_id})
        held = max(state.held[row, ""].held_u for row in rows)
        # What costs nothing needs no credit: a CPU slice may be free.
        ok = need.no_money or held + need.hold_u <= total
        found.append(
            Check(rule, 0, held, need.hold_u, total, ok, free=need.no_money, rows=rows)
        )  # fmt: skip
    return max(found, key=lambda check: (check.limit or 0) - check.held)


def _periodic(state: _State, rule: Rule, need: _Need) -> Check:
    """GPU-hours or money: what the period has seen, with what is reserved on top."""
    session, now = state.session, state.now
    span = window(rule.period, zone_of(rule.zone), now)
    of_money = rule.kind == "money"
    used = counters.used(session, [rule.account_id], span.start_us)[rule.account_id]
    held = state.held[rule.account_id, ""]
    counted = used.spent_u if of_money else used.gpu_us
    reserved = held.held_u if of_money else held.held_gpu_us
    asked = need.hold_u if of_money else need.hold_gpu_us
    free = need.no_money if of_money else need.no_gpu
    limit = rule.limit
    if limit is not None:
        limit += state.more.get(limited(rule), 0)
    ok = limit is None or free or counted + reserved + asked <= limit
    again = None
    if not ok and limit is not None:
        again = span.end_us
        if rule.period.kind == "rolling":
            again = _rolls_out(session, rule, limit - reserved - asked, now)
    return Check(rule, counted, reserved, asked, limit, ok, again, free)


_ALLOWED = (
    sa.select(
        Allowance.kind, Allowance.account_id, Allowance.period, sa.func.sum(Allowance.amount)
    )
    .where(Allowance.from_us <= sa.bindparam("now"), Allowance.til_us > sa.bindparam("now"))
    .group_by(Allowance.kind, Allowance.account_id, Allowance.period)
)  # fmt: skip
_ALLOWED_TO = _ALLOWED.where(Allowance.account_id.in_(sa.bindparam("accounts", expanding=True)))


def allowances(
    session: Session, now: int, account_ids: Collection[int] | None = None
) -> dict[Limited, int]:
    """What administrators have added to limits for now; None: to those of all accounts."""
    if account_ids is None:
        rows = session.execute(_ALLOWED, {"now": now})
    else:
        rows = session.execute(_ALLOWED_TO, {"now": now, "accounts": list(account_ids)})
    return {
        (_KINDS[kind], account_id, period): int(amount) for kind, account_id, period, amount in rows
    }


def limited(rule: Rule) -> Limited:
    """Which limit a rule is, as `allowances` names it."""
    return rule.kind, rule.account_id, str(rule.period)


#: What an allowance calls the kinds of rules that it adds to.
_KINDS = {"money": "money", "gpu_hours": "gpu-hours"}


def _rolls_out(session: Session, rule: Rule, room: int, now: int) -> int | None:
    """When so much has left a rolling window that ``room`` is enough; None: it never will."""
    if room < 0:
        return None
    length = rule.period.hours * 3_600_000_000
    found = counters.buckets(session, rule.account_id, now - length)
    left = sum(_of(rule, used) for _, used in found)
    for start, used in found:
        left -= _of(rule, used)
        if left <= room:
            return start + length + 1
    return None


def _of(rule: Rule, used: counters.Used) -> int:
    return used.spent_u if rule.kind == "money" else used.gpu_us


# --- taking -----------------------------------------------------------------------------------


#: One lease and its reservation more on one row, if it is still within every limit.
_TAKE = (
    sa.update(AccountPeriod)
    .where(
        AccountPeriod.account_id == sa.bindparam("account"),
        AccountPeriod.slice_type == sa.bindparam("of_type"),
        AccountPeriod.period == counters.LIFE,
        AccountPeriod.start_us == 0,
        AccountPeriod.active + 1 <= sa.bindparam("most_active"),
        AccountPeriod.held_u + sa.bindparam("more_u") <= sa.bindparam("most_u"),
        AccountPeriod.held_gpu_us + sa.bindparam("more_gpu_us") <= sa.bindparam("most_gpu_us"),
    )
    .values(
        active=AccountPeriod.active + 1,
        held_u=AccountPeriod.held_u + sa.bindparam("more_u"),
        held_gpu_us=AccountPeriod.held_gpu_us + sa.bindparam("more_gpu_us"),
    )
    .execution_options(synchronize_session=False)
)
#: What a row may hold at most where nothing limits it.
_UNLIMITED = dict.fromkeys(("most_active", "most_u", "most_gpu_us"), (1 << 63) - 1)


def _take(session: Session, verdict: Verdict, ask: Ask) -> None:
    """Count one more lease and its reservation on every account of the chain."""
    of_account: dict[int, list[Check]] = defaultdict(list)
    for check in verdict.checks:
        for account_id in check.rows or (check.rule.account_id,):
            of_account[account_id].append(check)
    for account_id in sorted(verdict.chain.account_ids):
        most, of_type = dict(_UNLIMITED), dict(_UNLIMITED)
        for check in of_account[account_id]:
            guarded = of_type if check.rule.kind == "slices-of-type" else most
            for name, limit in _guards(check):
                guarded[name] = min(guarded[name], limit)
        _guarded(session, account_id, "", verdict.hold_u, verdict.hold_gpu_us, most)
        _guarded(session, account_id, ask.slice_type, 0, 0, of_type)


def _guards(check: Check) -> list[tuple[str, int]]:
    """What a check bounds in the row that it looked at, and to how much."""
    if check.limit is None or check.free:
        return []
    match check.rule.kind:
        case "slices" | "slices-of-type":
            return [("most_active", check.limit)]
        case "money":
            return [("most_u", check.limit - check.used)]
        case "gpu-hours":
            return [("most_gpu_us", check.limit - check.used)]
        case "credit":
            return [("most_u", check.limit)]
    return []


def _guarded(
    session: Session, account_id: int, slice_type: str, hold_u: int, hold_gpu_us: int,
    most: Mapping[str, int],
) -> None:  # fmt: skip
    row = {
        "account": account_id, "of_type": slice_type, "more_u": hold_u,
        "more_gpu_us": hold_gpu_us, **most,
    }  # fmt: skip
    if _hits(session, row):
        return
    # Its first lease (of this type), as a rule; else somebody was faster.
    counters.ensure(session, account_id, slice_type)
    if not _hits(session, row):
        raise Conflict(f"the limits of account {account_id} changed under us")


def _hits(session: Session, row: Mapping[str, object]) -> bool:
    hit: bool = session.execute(_TAKE, row).rowcount == 1  # type: ignore[attr-defined]
    return hit
