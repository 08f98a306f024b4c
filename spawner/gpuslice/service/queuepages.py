"""The queue on pages: a user's own requests as cards, everybody's as an administrator's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpuslice import wire
from gpuslice.service import text
from gpuslice.service.pages import Page
from gpuslice.service.platform import Platform

_WAITS = ("waiting", "offered", "starting")
_STATES = {
    "waiting": "waiting",
    "offered": "it is your turn",
    "starting": "it is your turn",
}
_HEADINGS = {"waiting": "In line for", "offered": "Your turn:", "starting": "Your turn:"}


@dataclass(frozen=True)
class RequestCard:
    """One place in line, with what its user may do about it."""

    request_id: str
    heading: str
    slice: str
    server: str
    state: str
    sentence: str
    since: str
    #: What the last look at it found in the way, if anything.
    reason: str
    waiting: bool
    auto_start: bool
    #: The lease that is reserved for it.
    lease_id: str
    version: int
    #: (name, title) of the slice types it may wait for instead.
    others: list[tuple[str, str]]


@dataclass(frozen=True)
class RequestRow:
    """One place in line as an administrator sees it."""

    request_id: str
    place: str
    user: str
    server: str
    slice: str
    since: str
    expected: str
    auto_start: bool
    state: str
    reason: str


def cards(
    requests: Sequence[wire.RequestView], offers: Sequence[wire.Offer],
    terms: Sequence[wire.SliceTerms], now: int,
) -> list[RequestCard]:  # fmt: skip
    """The requests of a user that are not over."""
    titles = {offer.slice: offer.title for offer in offers}
    never = {one.slice for one in terms if one.forbidden}
    return [
        RequestCard(
            request_id=one.request_id,
            heading=f"{_HEADINGS[one.state]} {titles.get(one.slice, one.slice)}",
            slice=one.slice,
            server=one.server or "default server",
            state=_STATES[one.state],
            sentence=_sentence(one, now),
            since=text.moment(one.created_us),
            reason=one.reason or "",
            waiting=one.state == "waiting",
            auto_start=one.auto_start,
            lease_id=one.lease_id or "",
            version=one.version,
            others=[
                (name, title)
                for name, title in titles.items()
                if name != one.slice and name not in never
            ],
        )
        for one in requests
        if one.state in _WAITS
    ]


def _sentence(request: wire.RequestView, now: int) -> str:
    if request.state == "starting":
        return "The slice is reserved, and your server starts by itself now. Open it soon."
    if request.state == "offered":
        until = text.moment(request.offer_til_us)
        return f"The slice is reserved for you until {until}. It costs nothing until you start."
    place = f"You are number {request.position} of {request.waiting} in line."
    if request.position is None:
        place = "Your place is not known now: this slice type is not on offer."
    return f"{place} {request.outlook(now)}"


def queue_page(
    requests: Sequence[wire.RequestView], platform: Platform, now: int, *, may_change: bool
) -> Page:
    """Everybody who waits, in the order in which they are served."""
    return Page(
        "queue.html",
        "Queue",
        {
            "tab": "queue", "platform": platform, "may_change": may_change,
            "rows": [_row(one, now) for one in requests],
        },
        script="admin.js",
    )  # fmt: skip


def _row(one: wire.RequestView, now: int) -> RequestRow:
    has_turn = one.state in ("offered", "starting")
    expected = f"reserved until {text.moment(one.offer_til_us)}" if has_turn else one.outlook(now)
    return RequestRow(
        request_id=one.request_id,
        place="its turn" if has_turn else ("–" if one.position is None else str(one.position)),
        user=one.user,
        server=one.server or "default server",
        slice=one.slice,
        since=text.moment(one.created_us),
        expected=_of_somebody(expected),
        auto_start=one.auto_start,
        state=one.state,
        reason=one.reason or "",
    )


def _of_somebody(sentence: str) -> str:
    """What is said to who waits, said of them."""
    for yours, theirs in (("Your", "The"), ("your", "the"), ("before you", "before")):
        sentence = sentence.replace(yours, theirs)
    return sentence


def reserved_leases(requests: Sequence[wire.RequestView]) -> Mapping[str, int | None]:
    """Leases that are reserved and not started, with when that ends."""
    return {
        one.lease_id: one.offer_til_us
        for one in requests
        if one.lease_id is not None and one.state == "offered"
    }
