"""What a user may choose from on the spawn page: what the limits say of every slice type, and what
is left of each limit. The same code decides as at a grant; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice import wire
from gpuslice.broker.grant import GrantRules, ask_of
from gpuslice.errors import Refused
from gpuslice.fleet.slice_types import SliceType
from gpuslice.ledger import accounts
from gpuslice.ledger.tables import QueueRequest
from gpuslice.quotas import admission, words
from gpuslice.quotas.admission import Ask, Check
from gpuslice.quotas.chain import Chain, candidates
from gpuslice.quotas.documents import zone_of
from gpuslice.quotas.periods import window
from gpuslice.quotas.rules import Effective, effective

#: An account that nobody has: what a user without one has used is nothing.
_NOBODY = 0


@dataclass(frozen=True)
class Terms:
    """What holds for one user now."""

    slices: list[wire.SliceTerms]
    limits: list[str]
    charges: list[str]
    hours_needed: bool
    longest_us: int | None


def terms(
    session: Session, user: str, groups: Sequence[str], rules: GrantRules, *, now: int
) -> Terms:
    """What every slice type on offer would be for this user."""
    account_id = accounts.find(session, accounts.HUB_USER, user) or _NOBODY
    chains = candidates(session, account_id, user, groups)
    waiting = _waiting(session)
    found, checks, holdings = [], [], list[Effective]()
    for offered in rules.catalogue.types:
        holding = [effective(chain, offered.name, rules.timezone) for chain in chains]
        holdings += holding
        refusal, looked_at = _verdict(session, account_id, user, groups, offered, holding, rules,
                                      now)  # fmt: skip
        checks += looked_at
        found.append(
            wire.SliceTerms(
                slice=offered.name,
                refused=None if refusal is None else str(refusal),
                forbidden=refusal is not None and refusal.refusal.reason == "slice-not-allowed",
                waiting=waiting.get(offered.name, 0),
            )
        )
    longest = [holding.session_us for holding in holdings]
    known = [us for us in longest if us is not None]
    return Terms(
        slices=found, limits=list(_left(checks, rules, now)), charges=_charges(chains),
        hours_needed=any(holding.hold == "safe" for holding in holdings),
        longest_us=max(known) if known and len(known) == len(longest) else None,
    )  # fmt: skip


def _verdict(
    session: Session, account_id: int, user: str, groups: Sequence[str], offered: SliceType,
    holding: Sequence[Effective], rules: GrantRules, now: int,
) -> tuple[Refused | None, list[Check]]:  # fmt: skip
    """Why the user could not have this type now (None: could), and all limits that were seen."""
    request = wire.LeaseRequest(
        attempt="0" * 32, user=user, slice=offered.name, groups=list(groups)
    )
    ask = _shortest(ask_of(request, offered, rules), holding)
    try:
        verdicts = admission.decide(session, account_id, ask, now=now)
    except Refused as no:
        # It has no price, say: no reason to offer none of the others.
        return no, []
    checks = [check for verdict in verdicts for check in verdict.checks]
    if any(verdict.ok for verdict in verdicts):
        return None, checks
    return admission.refuse(verdicts[0], ask, now), checks


def _shortest(ask: Ask, holding: Sequence[Effective]) -> Ask:
    """The least that could be asked for: where the user has to say how long, nobody has yet."""
    if all(one.hold != "safe" for one in holding):
        return ask
    sessions = [one.session_us for one in holding if one.session_us is not None]
    return replace(ask, declared_us=min([ask.horizon_us, *sessions]))


def _charges(chains: Sequence[Chain]) -> list[str]:
    return [chain.group.name for chain in chains if chain.group is not None]


def _waiting(session: Session) -> dict[str, int]:
    """How many wait for each slice type."""
    rows = session.execute(
        sa.select(QueueRequest.slice_type, sa.func.count())
        .where(QueueRequest.state == "waiting")
        .group_by(QueueRequest.slice_type)
    ).all()
    return {row[0]: row[1] for row in rows}


def _left(checks: Sequence[Check], rules: GrantRules, now: int) -> Iterator[str]:
    """Each limit once, however many slice types and groups it was seen for."""
    said = set()
    for check in checks:
        rule = check.rule
        if check.limit is None or rule.kind == "slice-types":
            continue
        zone = zone_of(rule.zone)
        end_us = None
        if rule.period.kind != "rolling":
            end_us = window(rule.period, zone, now).end_us
        text = words.left(rule, check.limit, check.used, check.held, end_us, zone, rules.currency)
        if text not in said:
            said.add(text)
            yield text
