"""Limits and refusals in words: the reason, the limit, and when to try again."""

from __future__ import annotations

from datetime import tzinfo

from gpuslice.quotas.rules import Rule
from gpuslice.units import HOUR_US, MINUTE_US, format_money, to_datetime

_MINUTE = "%a %Y-%m-%d %H:%M"


def amount(rule: Rule, value: int | None, currency: str = "") -> str:
    """A limit or a use of its kind, for people: ``20 GPU-hours a week``, ``2 slices``."""
    if rule.kind == "slice-types":
        return "all" if rule.allowed is None else ", ".join(rule.allowed) or "none"
    if value is None:
        return "unlimited"
    match rule.kind:
        case "slices" | "slices-of-type":
            of = f" of {rule.slice_type}" if rule.slice_type else ""
            return f"{value} slice{'' if value == 1 else 's'}{of} at a time"
        case "gpu-hours":
            return f"{hours(value)} GPU-hours {rule.period.words}"
        case "money":
            return f"{format_money(value, currency)} {rule.period.words}"
    return f"{format_money(value, currency)} of credit"


def hours(us: int) -> str:
    return f"{us / HOUR_US:.2f}".rstrip("0").rstrip(".")


def in_hours(us: int) -> str:
    """How long something lasts: ``1 hour``, ``2.5 hours``, ``20 minutes``."""
    unit, name = (HOUR_US, "hour") if us >= HOUR_US else (MINUTE_US, "minute")
    said = f"{us / unit:.2f}".rstrip("0").rstrip(".")
    return f"{said} {name}{'' if said == '1' else 's'}"


def plain(rule: Rule, value: int) -> str:
    """A use in the unit of its limit, without the period."""
    match rule.kind:
        case "gpu-hours":
            return hours(value)
        case "money" | "credit":
            return format_money(value)
    return str(value)


def left(rule: Rule, limit: int, used: int, held: int, end_us: int | None, zone: tzinfo,
         currency: str) -> str:  # fmt: skip
    """What is left of a limit, in a sentence: ``16.5 of 20 GPU-hours a week left (…).``

    Args:
        end_us: When it counts anew; None: never, or bit by bit.
    """
    rest = max(0, limit - used - held)
    if rule.kind == "credit":
        found = f"{format_money(rest, currency)} of credit left ({rule.source})"
    else:
        found = f"{plain(rule, rest)} of {amount(rule, limit, currency)} left ({rule.source})"
    counted = [(used, "used"), (held, "held" if rule.kind.startswith("slices") else "reserved")]
    said = ", ".join(f"{plain(rule, value)} {what}" for value, what in counted if value)
    if said:
        found += f": {said}"
    if end_us is not None:
        local = to_datetime(end_us).astimezone(zone)
        found += f"; it counts anew from {local.strftime(_MINUTE)} ({local.tzname()}) on"
    return f"{found}."


def reset_words(moment: int | None, zone: tzinfo) -> str:
    """When it is worth another try; an honest nothing where nobody knows."""
    if moment is None:
        return ""
    local = to_datetime(moment).astimezone(zone)
    return f" Try again after {local.strftime(_MINUTE)} ({local.tzname()})."


def refusal_text(
    rule: Rule, limit: int | None, used: int, held: int, asked: int, again_us: int | None,
    slice_type: str, zone: tzinfo, currency: str,
) -> str:  # fmt: skip
    """Why a lease was refused, in one or two sentences for its user."""
    said = amount(rule, limit, currency)
    again = reset_words(again_us, zone)
    match rule.kind:
        case "slice-types":
            refused = f"You may not take slices of type {slice_type} ({rule.source})"
            if not rule.allowed:
                return f"{refused}: no slice type is allowed."
            return f"{refused}; you may take: {said}."
        case "slices" | "slices-of-type":
            return _too_many(rule, limit, said)
        case "credit":
            return (
                f"There is {said} left ({rule.source}), {plain(rule, held)} of it reserved, and "
                f"this needs {plain(rule, asked)} to begin with; ask an administrator for credit."
            )
    reserved = f" and {plain(rule, held)} reserved" if held else ""
    return (
        f"The limit is {said} ({rule.source}): {plain(rule, used)} used{reserved}, and this needs "
        f"{plain(rule, asked)} to begin with.{again}"
    )


def _too_many(rule: Rule, limit: int | None, said: str) -> str:
    """Why there is not one slice more: of one's own, which one can stop, or of a whole group."""
    together = rule.source.startswith("group ")
    who = "All together may hold" if together else "You may hold"
    if not limit:
        of = f" of {rule.slice_type}" if rule.slice_type else ""
        return f"{who} no slice{of} ({rule.source}); ask an administrator."
    if together:
        return (
            f"{who} {said} ({rule.source}), and that many are held; wait until one is free, or ask "
            "an administrator for more."
        )
    return (
        f"{who} {said} ({rule.source}) and hold as many already; stop one of the servers first, or "
        "ask an administrator for more."
    )
