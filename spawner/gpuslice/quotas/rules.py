"""What follows from the policies of a chain: which limits hold, and whose. Pure, no I/O.

For what a user may have, the nearest word counts: the user's own policy, else what the group
says for each member, else a group above it, else what holds for everybody. What groups say in
total holds all the way up: every account above the user must admit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from gpuslice.quotas.chain import Chain
from gpuslice.quotas.documents import (
    EachLimits,
    HoursLimit,
    Limits,
    MoneyLimit,
    PolicyDocument,
)
from gpuslice.quotas.periods import Period

T = TypeVar("T")
Kind = Literal["slice-types", "slices", "slices-of-type", "gpu-hours", "money", "credit"]
HoldKind = Literal["rolling", "safe"]
WhenLowered = Literal["grace", "next-start"]
LIFE = Period("life")


@dataclass(frozen=True)
class Rule:
    """One limit that binds one account. ``limit`` None is *unlimited*.

    Units: slices; microseconds of GPU time; micro-units of money. ``allowed``: for slice types.
    """

    kind: Kind
    account_id: int
    limit: int | None
    source: str
    period: Period = LIFE
    zone: str = "UTC"
    slice_type: str | None = None
    allowed: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Effective:
    """Everything that holds for one user, one group and one slice type."""

    rules: tuple[Rule, ...]
    session_us: int | None
    session_source: str
    priority: int
    hold: HoldKind
    when_lowered: WhenLowered
    price_list: str | None


@dataclass(frozen=True)
class _Word:
    """A document that may say something about a user, and how a refusal calls it."""

    each: EachLimits
    source: str
    zone: str


def effective(chain: Chain, slice_type: str, timezone: str) -> Effective:
    """The limits of a chain for one slice type; ``timezone`` where a policy names none."""
    words = list(_words(chain, timezone))
    user = chain.user.account_id
    rules = [*_each(words, user, slice_type)]
    for link in chain.groups:
        if link.policy is not None and link.policy.document.total is not None:
            zone = link.policy.document.timezone or timezone
            source = f"group {link.name} in total"
            rules += _totals(link.policy.document.total, link.account_id, slice_type, source, zone)
    session: tuple[int | str, _Word] | None = _first(words, lambda each: each.session_hours)
    hold: tuple[HoldKind, _Word] | None = _first(words, lambda each: each.hold)
    lowered: tuple[WhenLowered, _Word] | None = _first(words, lambda each: each.when_lowered)
    priority = _first(words, lambda each: each.priority)
    documents = [link.policy.document for link in chain.groups if link.policy is not None]
    own = [chain.user.policy.document] if chain.user.policy is not None else []
    all_others = [chain.everyone.document] if chain.everyone is not None else []
    return Effective(
        rules=tuple(rules),
        session_us=None if session is None else _number(session[0]),
        session_source="" if session is None else session[1].source,
        priority=0 if priority is None else priority[0],
        hold="rolling" if hold is None else hold[0],
        when_lowered="grace" if lowered is None else lowered[0],
        price_list=next(
            (d.price_list for d in [*own, *documents, *all_others] if d.price_list), None
        ),
    )


def _words(chain: Chain, timezone: str) -> Iterator[_Word]:
    def word(document: PolicyDocument, source: str) -> _Word:
        return _Word(document.each, source, document.timezone or timezone)

    if chain.user.policy is not None:
        yield word(chain.user.policy.document, "your own limit")
    for link in chain.groups:
        if link.policy is not None:
            yield word(link.policy.document, f"each member of group {link.name}")
    if chain.everyone is not None:
        yield word(chain.everyone.document, "the limit for everybody")


def _first(words: list[_Word], said: Callable[[EachLimits], T | None]) -> tuple[T, _Word] | None:
    """The nearest word that says something, with what it says."""
    for word in words:
        value = said(word.each)
        if value is not None:
            return value, word
    return None


def _each(words: list[_Word], user: int, slice_type: str) -> Iterator[Rule]:
    if types := _first(words, lambda each: each.slice_types):
        named, word = types
        allowed = None if isinstance(named, str) else tuple(named)
        yield Rule("slice-types", user, None, word.source, allowed=allowed)
    slices: tuple[int | str, _Word] | None = _first(words, lambda each: each.slices)
    if slices:
        number, word = slices
        yield Rule("slices", user, _number(number), word.source)
    of_type: tuple[int | str, _Word] | None = _first(
        words, lambda each: each.slices_by_type.get(slice_type)
    )
    if of_type:
        number, word = of_type
        yield Rule("slices-of-type", user, _number(number), word.source, slice_type=slice_type)
    if hours := _first(words, lambda each: each.gpu_hours or None):
        limits, word = hours
        yield from (_hours(limit, user, word.source, word.zone) for limit in limits)
    if money := _first(words, lambda each: each.money or None):
        sums, word = money
        yield from (_money(limit, user, word.source, word.zone) for limit in sums)
    if (prepaid := _first(words, lambda each: each.prepaid)) and prepaid[0]:
        yield Rule("credit", user, None, prepaid[1].source)


def _hours(limit: HoursLimit, account_id: int, source: str, zone: str) -> Rule:
    return Rule("gpu-hours", account_id, _number(limit.at_most), source, limit.per, zone)


def _money(limit: MoneyLimit, account_id: int, source: str, zone: str) -> Rule:
    return Rule("money", account_id, _number(limit.at_most), source, limit.per, zone)


def _totals(
    total: Limits, account_id: int, slice_type: str, source: str, zone: str
) -> Iterator[Rule]:
    if total.slices is not None:
        yield Rule("slices", account_id, _number(total.slices), source)
    of_type = total.slices_by_type.get(slice_type)
    if of_type is not None:
        yield Rule("slices-of-type", account_id, _number(of_type), source, slice_type=slice_type)
    yield from (_hours(limit, account_id, source, zone) for limit in total.gpu_hours)
    yield from (_money(limit, account_id, source, zone) for limit in total.money)
    if total.prepaid:
        yield Rule("credit", account_id, None, source)


def _number(value: int | str) -> int | None:
    return None if isinstance(value, str) else value
