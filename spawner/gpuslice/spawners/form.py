"""The spawn page's form: one card per slice, with what it is, its price and whether it is free."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gpuslice.units import format_memory, format_money
from gpuslice.wire import Choices, Enforcement, Offer


def options_form(choices: Choices, default: str, images: Mapping[str, str] | None = None) -> str:
    """HTML of the form's fields; everything in it is escaped.

    Args:
        choices: What the service offers this user.
        default: The slice chosen beforehand if it is free; without one the user has to choose.
        images: Reference to title; with one or none there is nothing to choose.
    """
    return _render(
        "options_form.html",
        cards=[_card(offer, default) for offer in choices.offers],
        simulated=any(offer.simulated for offer in choices.offers),
        left=_left(choices),
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


def _card(offer: Offer, default: str) -> dict[str, Any]:
    free = offer.free > 0
    return {
        "name": offer.slice,
        "title": offer.title,
        "details": _details(offer),
        "cap": _cap(offer),
        "price": _price(offer),
        "simulated": offer.simulated,
        "free": free,
        "available": f"{offer.free} of {offer.total} free"
        if free
        else (offer.unavailable or "none free now"),
        "reserved": offer.reserved_note or "",
        "checked": free and offer.slice == default,
    }


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
