"""The spawn page's form: one card per slice, with what it is, its price and whether it is free, and
what else there is to choose: image, hours, who pays, and whether to wait if nothing is free."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gpuslice.units import HOUR_US, format_memory, format_money, now_us, to_datetime
from gpuslice.wire import Choices, Enforcement, Offer, SliceTerms


def options_form(choices: Choices, default: str, images: Mapping[str, str] | None = None) -> str:
    """HTML of the form's fields; everything in it is escaped.

    Args:
        choices: What the service offers this user.
        default: The slice chosen beforehand if it is free; without one the user has to choose.
        images: Reference to title; with one or none there is nothing to choose.
    """
    terms = {one.slice: one for one in choices.terms}
    reserved = _reserved(choices)
    cards = [_card(offer, terms.get(offer.slice), default, reserved) for offer in choices.offers]
    return _render(
        "options_form.html",
        cards=cards,
        simulated=any(offer.simulated for offer in choices.offers),
        left=_left(choices),
        limits=choices.limits,
        line=_line(choices),
        hours=_hours(choices),
        charges=choices.charges if len(choices.charges) > 1 else [],
        may_wait=any(card["waitable"] for card in cards),
        gpu_problem=choices.gpu_problem,
        images=images if images and len(images) > 1 else {},
    )


def unavailable_form() -> str:
    """Instead of the form while the service does not answer."""
    return _render("options_unavailable.html")


def _left(choices: Choices) -> str:
    """How many slices the user's limit leaves, as a sentence."""
    held = f"You hold {choices.leases_held} {_slices(choices.leases_held)} now"
    if choices.leases_limit is None:
        return f"{held}; there is no limit."
    left = max(0, choices.leases_limit - choices.leases_held)
    allowed = f"may hold {choices.leases_limit} at a time"
    if left == 0:
        return f"{held} and {allowed}: stop one of your servers before you start another."
    return f"{held} and {allowed}: {left} left."


def _slices(count: int) -> str:
    return "slice" if count == 1 else "slices"


def _reserved(choices: Choices) -> str | None:
    """The slice type that is reserved for this server now."""
    request = choices.request
    if request is None or request.state not in ("offered", "starting"):
        return None
    return request.slice


def _line(choices: Choices) -> dict[str, Any] | None:
    """This server's place in the queue, or what is reserved for it."""
    request = choices.request
    if request is None:
        return None
    title = next((o.title for o in choices.offers if o.slice == request.slice), request.slice)
    if request.position is not None:
        text = (
            f"This server waits for {title}: number {request.position} of {request.waiting} in "
            f"line. {request.outlook(now_us())} It keeps its place whatever you start "
            "elsewhere."
        )
        return {"reserved": False, "text": text}
    til = request.offer_til_us
    until = f" until {to_datetime(til):%H:%M} UTC" if til is not None else ""
    return {"reserved": True, "text": f"It is your turn: {title} is reserved for you{until}."}


def _hours(choices: Choices) -> dict[str, Any]:
    """The field for how long the server is needed."""
    longest = None if choices.longest_us is None else f"{choices.longest_us / HOUR_US:.6g}"
    return {"needed": choices.hours_needed, "longest": longest}


def _card(
    offer: Offer, terms: SliceTerms | None, default: str, reserved: str | None
) -> dict[str, Any]:
    mine = offer.slice == reserved
    free = offer.free > 0 or mine
    refused = None if terms is None or mine else terms.refused
    # What a limit refuses for now is refused at a start, too, so it cannot be chosen; what is only
    # taken now can be waited for.
    takeable = refused is None and (free or offer.total > 0)
    return {
        "name": offer.slice,
        "title": offer.title,
        "details": _details(offer),
        "cap": _cap(offer),
        "price": _price(offer),
        "simulated": offer.simulated,
        "takeable": takeable,
        "waitable": takeable and not free,
        "refused": refused,
        "reserved": mine,
        "note": offer.reserved_note or "",
        "available": "one is set aside for you" if mine else _available(offer, terms),
        "checked": mine or (free and takeable and reserved is None and offer.slice == default),
    }


def _available(offer: Offer, terms: SliceTerms | None) -> str:
    said = offer.unavailable or "none free now"
    if offer.free > 0:
        said = f"{offer.free} of {offer.total} free"
    waiting = 0 if terms is None else terms.waiting
    if not waiting:
        return said
    return f"{said.rstrip('.')}; {waiting} wait{'s' if waiting == 1 else ''} for one"


def _details(offer: Offer) -> str:
    parts = []
    if offer.memory_bytes is not None:
        parts.append(f"{format_memory(offer.memory_bytes)} GPU memory")
    if offer.share_milli is not None:
        parts.append(f"{offer.share_milli / 10:g} % of a GPU")
    return ", ".join(parts)


def _cap(offer: Offer) -> str:
    """What holds the memory cap, where something has to: shares and MIG instances."""
    if offer.share_milli is None or offer.enforcement is Enforcement.EXCLUSIVE:
        return ""
    if offer.enforcement is Enforcement.ADVISORY:
        return "Memory cap is advice: nothing enforces it here"
    return f"Memory cap held by {offer.enforcement.label}"


def _price(offer: Offer) -> str:
    if offer.rate_u_per_hour == 0:
        return "free of charge"
    exact = offer.rate_u_per_hour % 10_000 == 0
    rate = format_money(offer.rate_u_per_hour, offer.currency, places=2 if exact else 4)
    return f"{rate} per hour"


@lru_cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("gpuslice.spawners"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(template: str, **values: object) -> str:
    return str(_environment().get_template(template).render(**values))
