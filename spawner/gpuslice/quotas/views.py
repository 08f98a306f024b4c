"""Policies and verdicts as the REST surface and the command line show them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpuslice.quotas.documents import PolicyDocument
from gpuslice.wire import Micros, Reason, SliceName, UserName, Wire

PolicyKind = Literal["everyone", "user", "group"]


class PolicyView(Wire):
    """One version of a policy; ``name`` is the user or the group, null for everyone."""

    kind: PolicyKind
    name: str | None
    version: int
    document: PolicyDocument
    since_us: Micros
    til_us: Micros | None
    actor: str
    reason: str | None


class SetPolicy(Wire):
    """Replaces a policy as a whole. ``version`` is the one that was read; null: there was none."""

    document: PolicyDocument
    version: int | None
    reason: Reason


class RemovePolicy(Wire):
    """Removes a policy: what it said is inherited again."""

    version: int
    reason: Reason


class ExplainRequest(Wire):
    """Asks what a user would be told now; ``groups`` null: those the hub has the user in."""

    user: UserName
    slice: SliceName
    groups: Annotated[list[str], Field(max_length=1000)] | None = None
    group: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    declared_us: Annotated[int, Field(gt=0, le=1 << 50)] | None = None


class CheckView(Wire):
    """One limit, looked at. Units by ``kind``: slices; GPU time in microseconds; micro-units.

    ``text`` says the same for people. ``limit`` null is *unlimited*.
    """

    kind: str
    source: str
    account: str
    period: str
    slice: str | None
    limit: int | None
    used: int
    held: int
    asked: int
    ok: bool
    again_us: Micros | None
    text: str


class VerdictView(Wire):
    """What one chain of accounts says: all its limits, and whether they admit."""

    group: str | None
    accounts: list[str]
    ok: bool
    checks: list[CheckView]
    hold_u: int
    hold_kind: str
    price_list: str
    session_us: int | None
    priority: int


class Explanation(Wire):
    """Whether a user would be admitted now, and why; the first chain that admits is charged."""

    user: str
    slice: SliceName
    ok: bool
    refusal: str | None
    verdicts: list[VerdictView]
