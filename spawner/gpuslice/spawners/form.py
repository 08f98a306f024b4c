"""The spawn page's form: one radio button per slice, with its price and whether it is free."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gpuslice.units import format_memory, format_money
from gpuslice.wire import Offer


def options_form(offers: list[Offer], default: str) -> str:
    """HTML of the form's fields; everything in it is escaped.

    ``default`` is chosen beforehand if it is free; without one the user has to choose.
    """
    rows = [_row(offer, default) for offer in offers]
    simulated = any(offer.simulated for offer in offers)
    return _render("options_form.html", rows=rows, simulated=simulated)


def unavailable_form() -> str:
    """Instead of the form while the service does not answer."""
    return _render("options_unavailable.html")


def _row(offer: Offer, default: str) -> dict[str, Any]:
    free = offer.free > 0
    return {
        "name": offer.slice,
        "title": offer.title,
        "details": _details(offer),
        "price": _price(offer),
        "simulated": offer.simulated,
        "free": free,
        "available": f"{offer.free} of {offer.total} free"
        if free
        else (offer.unavailable or "none free now"),
        "checked": free and offer.slice == default,
    }


def _details(offer: Offer) -> str:
    parts = []
    if offer.memory_bytes is not None:
        parts.append(f"{format_memory(offer.memory_bytes)} GPU memory")
    if offer.share_milli is not None:
        parts.append(f"{offer.share_milli / 10:g} % of a GPU")
    if offer.device_model is not None:
        parts.append(offer.device_model)
    return ", ".join(parts)


def _price(offer: Offer) -> str:
    if offer.rate_u_per_hour == 0:
        return "free of charge"
    return f"{format_money(offer.rate_u_per_hour, offer.currency)} per hour"


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
