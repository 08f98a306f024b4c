"""``gpuslice reserve``: slices for a group and a time, over the service's REST."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from gpuslice.cli.options import CONFIG, JSON, REASON, STATE

_PATH = "api/admin/reservations"
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_NUMBER = click.argument("number", type=click.IntRange(min=1))


@click.group()
def reserve() -> None:
    """Slices set aside for a group: 40 students, Tuesdays at 10:00."""


@reserve.command("list")
@click.option("--all", "over", is_flag=True, help="Also what is over or cancelled.")
@STATE
@CONFIG
@JSON
def list_command(over: bool, state: Path, config: Path | None, as_json: bool) -> None:
    """What is reserved, with the next dates."""
    from gpuslice.cli.operator import operator

    service = operator(state, config)
    found: list[dict[str, Any]] = []
    before: int | None = None
    while True:
        page = service.get(_PATH, over=str(over).lower(), limit=200, before=before)
        found += page["reservations"]
        before = page["next"]
        if before is None:
            break
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        click.echo("\n".join(_lines(one)))
    if not found:
        click.echo("Nothing is reserved.")


@reserve.command()
@click.argument("group")
@click.argument("slice_type", metavar="SLICE")
@click.argument("count", type=click.IntRange(min=1))
@click.option(
    "--weekday",
    "weekdays",
    multiple=True,
    type=click.Choice(_WEEKDAYS),
    help="Repeatable; without it every day.",
)
@click.option("--from", "from_time", required=True, metavar="HH:MM", help="When it begins.")
@click.option(
    "--til",
    "til_time",
    required=True,
    metavar="HH:MM",
    help="When it is over; at or before --from: on the next day.",
)
@click.option("--first", "first_day", required=True, metavar="DAY", help="As in 2026-12-01.")
@click.option("--last", "last_day", metavar="DAY", help="[default: the first day]")
@click.option("--timezone", help="[default: the platform's]")
@click.option(
    "--notice",
    help="How long before they are stopped for it leases are told: 15m, 1h; "
    "without it they go on, and the group gets what is free.",
)
@click.option("--title", default="", help="What others read of it.  [default: the group's name]")
@REASON
@STATE
@CONFIG
@JSON
def add(
    group: str, slice_type: str, count: int, weekdays: Sequence[str], from_time: str,
    til_time: str, first_day: str, last_day: str | None, timezone: str | None, notice: str | None,
    title: str, reason: str, state: Path, config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Reserve COUNT slices of type SLICE for GROUP, once or every week.

    \b
    gpuslice reserve add course quarter 40 --weekday tue --from 10:00 --til 12:00 \\
        --first 2026-12-01 --last 2027-02-28 --notice 15m --reason "deep learning lab"
    """
    from gpuslice.cli.operator import operator

    body = {
        "group": group, "slice": slice_type, "count": count, "weekdays": list(weekdays),
        "from_time": from_time, "til_time": til_time, "first_day": first_day,
        "last_day": last_day or first_day, "timezone": timezone or _timezone(config),
        "notice_us": None if notice is None else _duration_us(notice), "title": title,
        "reason": reason,
    }  # fmt: skip
    found = operator(state, config).send("POST", _PATH, body)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


#: What a reservation says, and a change may replace.
_SAID = (
    "slice", "count", "title", "timezone", "first_day", "last_day", "weekdays", "from_time",
    "til_time", "notice_us",
)  # fmt: skip


@reserve.command()
@_NUMBER
@click.option("--slice", "slice_type", metavar="SLICE", help="Slices of another type.")
@click.option("--count", type=click.IntRange(min=1), help="So many of them.")
@click.option(
    "--weekday",
    "weekdays",
    multiple=True,
    type=click.Choice(_WEEKDAYS),
    help="Repeatable; replaces those of before.",
)
@click.option("--from", "from_time", metavar="HH:MM", help="When it begins.")
@click.option("--til", "til_time", metavar="HH:MM", help="When it is over.")
@click.option("--first", "first_day", metavar="DAY", help="As in 2026-12-01.")
@click.option("--last", "last_day", metavar="DAY", help="As in 2027-02-28.")
@click.option("--timezone", help="As in Europe/Berlin.")
@click.option("--notice", help="As in 15m or 1h; none: what runs goes on.")
@click.option("--title", help="What others read of it; empty: the group's name.")
@REASON
@STATE
@CONFIG
@JSON
def change(
    number: int, slice_type: str | None, count: int | None, weekdays: Sequence[str],
    from_time: str | None, til_time: str | None, first_day: str | None, last_day: str | None,
    timezone: str | None, notice: str | None, title: str | None, reason: str, state: Path,
    config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Change a reservation, by its number in the list; what is not named stays as it is.

    \b
    gpuslice reserve change 3 --count 30 --til 13:00 --reason "a smaller class, a longer lesson"
    """
    from gpuslice.cli.operator import operator

    given = {
        "slice": slice_type, "count": count, "weekdays": list(weekdays) or None,
        "from_time": from_time, "til_time": til_time, "first_day": first_day,
        "last_day": last_day, "timezone": timezone, "title": title,
    }  # fmt: skip
    changes: dict[str, Any] = {name: to for name, to in given.items() if to is not None}
    if notice is not None:
        changes["notice_us"] = None if notice == "none" else _duration_us(notice)
    if not changes:
        raise click.UsageError("Say what is to change, for example --count 30.")
    service = operator(state, config)
    path = f"{_PATH}/{number}"
    before = service.get(path)
    body = {name: before[name] for name in _SAID} | changes
    found = service.send("PUT", path, {**body, "version": before["version"], "reason": reason})
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


@reserve.command()
@_NUMBER
@REASON
@STATE
@CONFIG
def cancel(number: int, reason: str, state: Path, config: Path | None) -> None:
    """Cancel a reservation, by its number in the list; from now on it holds nothing."""
    from gpuslice.cli.operator import operator

    service = operator(state, config)
    path = f"{_PATH}/{number}"
    version = service.get(path)["version"]
    service.send("DELETE", path, {"version": version, "reason": reason})
    click.echo("Cancelled.")


def _timezone(config: Path | None) -> str:
    from gpuslice.cli.trouble import Trouble
    from gpuslice.settings import SettingsError, load_settings

    try:
        return load_settings(config).timezone
    except SettingsError as error:
        raise Trouble(str(error)) from None


def _duration_us(text: str) -> int:
    """``15m`` or ``2h`` to microseconds.

    Raises:
        Trouble: it is neither.
    """
    from gpuslice.cli.trouble import Trouble
    from gpuslice.units import HOUR_US, MINUTE_US

    number, unit = text[:-1], {"m": MINUTE_US, "h": HOUR_US}.get(text[-1:])
    if unit is None or not (number.isascii() and number.isdigit()) or len(number) > 6:
        raise Trouble(f"--notice {text!r}: write minutes or hours, for example 15m or 2h.")
    return int(number) * unit


def _lines(one: Mapping[str, Any]) -> Iterator[str]:
    """A reservation for people: what, for whom, when, what will not work."""
    yield f"{one['reservation_id']}: {one['count']} {one['slice']} for group {one['group']}" + (
        f" ({one['title']})" if one["title"] != f"group {one['group']}" else ""
    )
    days = "every day" if len(one["weekdays"]) == 7 else ", ".join(one["weekdays"])
    yield (
        f"  {days} {one['from_time']} to {one['til_time']} ({one['timezone']}), "
        f"{one['first_day']} to {one['last_day']}"
    )
    notice = one["notice_us"]
    yield (
        "  what runs goes on"
        if notice is None
        else (f"  what is in the way is told {notice / 60_000_000:g} minutes before and stopped")
    )
    if one["cancelled_us"] is not None:
        yield "  cancelled"
    for number, time in enumerate(one["next"]):
        yield f"  {'next' if number == 0 else 'then'}: {time['text']}"
    for warning in one["warnings"]:
        yield f"  WARNING: {warning}"
