"""The administrator's pages of policies and prices, as plain values that are ready to print."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from gpuslice.broker.moneyviews import PricePreview, PriceView, SetPrice
from gpuslice.quotas.policytext import document_lines
from gpuslice.quotas.views import PolicyKind, PolicyView
from gpuslice.service import text
from gpuslice.service.pages import Page
from gpuslice.service.platform import Platform
from gpuslice.wire import Wire

_WHOM = {"everyone": "Everybody", "group": "Group", "user": "User"}
#: What a new policy's editor holds: what can be said, where nothing is said yet.
_EXAMPLE = {
    "each": {
        "slices": 1,
        "slice_types": ["quarter", "cpu"],
        "gpu_hours": [{"at_most": "20", "per": "week"}],
    },
    "total": {"money": [{"at_most": "50", "per": "month"}]},
}


@dataclass(frozen=True)
class PolicyRow:
    """One version of a policy in words."""

    kind: str
    name: str
    whom: str
    lines: list[str]
    version: int
    since: str
    til: str
    actor: str
    reason: str


@dataclass(frozen=True)
class Editor:
    """A policy's editor: whose it is, what it says as JSON, and which version that is."""

    kind: PolicyKind
    name: str
    whom: str
    document: str
    #: Empty: there is no such policy yet.
    version: str
    history: list[PolicyRow]
    #: Prints all versions, where the page has only the newest.
    history_command: str


@dataclass(frozen=True)
class PriceRow:
    """One price from a time on."""

    price_list: str
    slice: str
    rate: str
    since: str
    til: str
    when: str
    actor: str


@dataclass(frozen=True)
class Announcement:
    """A price that is about to be announced, and whom it touches."""

    price_list: str
    slice: str
    rate: str
    rate_text: str
    from_text: str
    #: As the form sends it again.
    from_utc: str
    now: str
    #: When one that is announced already follows it; empty: none does.
    til_text: str
    leases: list[str]


def policies_page(
    policies: Sequence[PolicyView], following: int | None, query: Wire, platform: Platform, *,
    may_change: bool,
) -> Page:  # fmt: skip
    """One page of policies that hold now, in words; for ``following`` see `text.walked`."""
    return Page(
        "policies.html",
        "Policies",
        {
            "tab": "policies", "platform": platform, "may_change": may_change,
            "rows": [policy_row(policy) for policy in policies],
            **text.walked(query.model_dump(exclude_defaults=True), following),
        },
        script="admin.js",
    )  # fmt: skip


def policy_page(
    kind: PolicyKind, name: str | None, history: Sequence[PolicyView], platform: Platform, *,
    older: bool, may_change: bool,
) -> Page:  # fmt: skip
    """One policy with its editor and its newest versions; ``older``: there are more."""
    current = next((one for one in history if one.til_us is None), None)
    document: object = _example(kind)
    if current is not None:
        document = current.document.model_dump(mode="json", exclude_defaults=True)
    editor = Editor(
        kind=kind,
        name=name or "",
        whom=_whom(kind, name),
        document=json.dumps(document, indent=2, ensure_ascii=False),
        version="" if current is None else str(current.version),
        history=[policy_row(one) for one in history],
        history_command=shlex.join(
            ["gpuslice", "quota", "show", kind, *([name] if name else []), "--history"]
        ),
    )
    return Page(
        "policy.html",
        f"Policy: {editor.whom}",
        {
            "tab": "policies", "platform": platform, "may_change": may_change, "editor": editor,
            "older": older,
            "current": policy_row(current) if current is not None else None,
        },
    )  # fmt: skip


def _example(kind: PolicyKind) -> dict[str, object]:
    """A start for a policy that is not there yet; only a group has limits in all."""
    return {key: part for key, part in _EXAMPLE.items() if kind == "group" or key == "each"}


def policy_row(policy: PolicyView) -> PolicyRow:
    """A version in the words of the command line."""
    return PolicyRow(
        kind=policy.kind,
        name=policy.name or "",
        whom=_whom(policy.kind, policy.name),
        lines=list(document_lines(policy.document.model_dump(mode="json", exclude_defaults=True))),
        version=policy.version,
        since=text.moment(policy.since_us),
        til=text.moment(policy.til_us),
        actor=policy.actor,
        reason=policy.reason or "",
    )


def _whom(kind: PolicyKind, name: str | None) -> str:
    return f"{_WHOM[kind]} {name}" if name else _WHOM[kind]


def prices_page(
    prices: Sequence[PriceView], slices: Sequence[tuple[str, str]],
    announcement: Announcement | None, platform: Platform, now: int, currency: str, *,
    may_change: bool,
) -> Page:  # fmt: skip
    """Every price there was, is or is announced; and the one that is about to be."""
    return Page(
        "prices.html",
        "Prices",
        {
            "tab": "prices", "platform": platform, "may_change": may_change,
            "rows": [_price_row(price, now, currency) for price in prices],
            "slices": slices, "currency": currency, "next": announcement,
        },
    )  # fmt: skip


def announcement(
    body: SetPrice, preview: PricePreview, rate: str, from_utc: str, currency: str
) -> Announcement:
    """What the second step shows before it is done."""
    before = preview.rate_now_u_per_hour
    return Announcement(
        price_list=body.price_list,
        slice=body.slice,
        rate=rate,
        rate_text=text.rate(body.rate_u_per_hour, currency),
        from_text="from now on" if body.from_us is None else f"from {text.moment(body.from_us)} on",
        from_utc=from_utc,
        now="no price yet" if before is None else text.rate(before, currency),
        til_text="" if preview.til_us is None else text.moment(preview.til_us),
        leases=preview.leases,
    )


def _price_row(price: PriceView, now: int, currency: str) -> PriceRow:
    over = price.til_us is not None and price.til_us <= now
    when = "announced" if price.from_us > now else "over" if over else "holds now"
    return PriceRow(
        price_list=price.price_list,
        slice=price.slice,
        rate=text.rate(price.rate_u_per_hour, currency),
        since=text.moment(price.from_us),
        til=text.moment(price.til_us),
        when=when,
        actor=price.actor,
    )
