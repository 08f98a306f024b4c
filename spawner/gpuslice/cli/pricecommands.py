"""``gpuslice price``: what slices cost, and from when on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpuslice.cli.options import CONFIG, JSON, REASON, STATE, YES
from gpuslice.cli.text import (
    MOMENT,
    MONEY,
    Column,
    moment,
    moment_of,
    money,
    money_of,
    of,
    plain,
    show,
    table,
)

if TYPE_CHECKING:
    from gpuslice.cli.operator import Operator

_COLUMNS = (
    of("list", "price_list"),
    of("slice", "slice"),
    money_of("per hour", "rate_u_per_hour"),
    moment_of("from", "from_us"),
    Column("until", lambda row: moment(row["til_us"]) or "further notice"),
    of("by", "actor"),
)
_SLICE = click.argument("slice_type", metavar="SLICE")
_RATE = click.argument("rate", type=MONEY)
_FROM = click.option("--from", "from_us", type=MOMENT, metavar="TIME",
                     help="From then on, not before now.  [default: now]")  # fmt: skip
_LIST = click.option("--list", "price_list", default="default", show_default=True,
                     help="The price list; a group's policy may name another one.")  # fmt: skip


@click.group()
def price() -> None:
    """What slices cost: every price with its time. What has passed is never changed."""


@price.command("list")
@STATE
@CONFIG
@JSON
@click.option("--all", "everything", is_flag=True, help="Prices of the past, too.")
def list_command(state: Path, config: Path | None, as_json: bool, everything: bool) -> None:
    """Prices that hold now or are announced."""
    from gpuslice.cli.operator import operator
    from gpuslice.units import now_us

    now = now_us()
    found = [
        row
        for row in operator(state, config).get("api/admin/prices")
        if everything or row["til_us"] is None or row["til_us"] > now
    ]
    show(found, table(found, _COLUMNS), as_json)


@price.command()
@_SLICE
@_RATE
@_FROM
@_LIST
@STATE
@CONFIG
@JSON
def preview(
    slice_type: str, rate: int, from_us: int | None, price_list: str, state: Path,
    config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """What a price would change; nothing is written."""
    from gpuslice.cli.operator import operator

    service = operator(state, config)
    body = _body(slice_type, rate, from_us, price_list, "a preview")
    found = service.send("POST", "api/admin/prices/preview", body)
    show(found, _preview_lines(service, body, found), as_json)


@price.command("set")
@_SLICE
@_RATE
@_FROM
@_LIST
@REASON
@YES
@STATE
@CONFIG
@JSON
def set_command(
    slice_type: str, rate: int, from_us: int | None, price_list: str, reason: str, yes: bool,
    state: Path, config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Announce RATE per hour (2.75) for a slice type; shows whom it touches, and asks."""
    from gpuslice.cli.operator import operator

    service = operator(state, config)
    body = _body(slice_type, rate, from_us, price_list, reason)
    if not yes:
        found = service.send("POST", "api/admin/prices/preview", body)
        for line in _preview_lines(service, body, found):
            click.echo(line, err=True)
        click.confirm("Announce it?", abort=True, err=True)
    made = service.send("POST", "api/admin/prices", body)
    show(made, table([made], _COLUMNS), as_json)


def _body(
    slice_type: str, rate: int, from_us: int | None, price_list: str, reason: str
) -> dict[str, Any]:
    return {
        "slice": slice_type, "rate_u_per_hour": rate, "from_us": from_us,
        "price_list": price_list, "reason": reason,
    }  # fmt: skip


def _preview_lines(service: Operator, body: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """The change in words, and the running leases that would pay it."""
    before = found["rate_now_u_per_hour"]
    now = "has no price now" if before is None else f"costs {money(before)} now"
    since = "at once" if body["from_us"] is None else f"from {moment(body['from_us'])}"
    yield (
        f"{body['slice']} in list {body['price_list']} {now}, "
        f"then {money(body['rate_u_per_hour'], service.currency)} per hour, {since}."
    )
    if found["til_us"] is not None:
        yield f"Another price is announced already and follows it at {moment(found['til_us'])}."
    touched = set(found["leases"])
    if not touched:
        yield "No running lease would pay it."
        return
    yield f"{len(touched)} running lease{'s' * (len(touched) > 1)} would pay it:"
    for lease in _live(service):
        if lease["lease_id"] in touched:
            server = f"/{lease['server']}" if lease["server"] else ""
            yield f"  {lease['lease_id']}  {plain(lease['user'] + server)}"


def _live(service: Operator) -> Iterator[dict[str, Any]]:
    before = None
    while True:
        page = service.get("api/admin/leases", live="true", limit=200, before=before)
        yield from page["leases"]
        before = page["next"]
        if before is None:
            return
