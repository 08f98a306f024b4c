"""``gpuslice lease``: everybody's leases: look, stop, let go on, give money back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from gpuslice.cli.entrycommands import ENTRY_COLUMNS
from gpuslice.cli.options import CONFIG, JSON, REASON, STATE, page_options
from gpuslice.cli.text import (
    MOMENT,
    MONEY,
    Column,
    moment,
    moment_of,
    money,
    money_of,
    more,
    of,
    plain,
    show,
    table,
)

_COLUMNS = (
    of("lease", "lease_id"),
    of("user", "user"),
    of("server", "server"),
    of("slice", "slice"),
    of("state", "state"),
    Column("since", lambda row: moment(row["started_us"] or row["granted_us"])),
    money_of("cost", "cost_u"),
)
_LINES = (
    moment_of("from", "from_us"),
    moment_of("until", "til_us"),
    money_of("per hour", "rate_u_per_hour"),
    of("paid by", "payer"),
    money_of("amount", "amount_u"),
    of("entry", "entry_id"),
)
_LEASE = click.argument("lease_id", metavar="LEASE")


@click.group()
def lease() -> None:
    """Leases of everybody."""


@lease.command("list")
@click.option("--user", help="Only this user's.")
@click.option("--all", "everything", is_flag=True, help="Those that are over, too.")
@page_options(200)
@STATE
@CONFIG
@JSON
def list_command(
    user: str | None, everything: bool, limit: int, before: str | None, state: Path,
    config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Leases that live, newest first."""
    from gpuslice.cli.operator import operator

    live = None if everything else "true"
    found = operator(state, config).get(
        "api/admin/leases", user=user, live=live, limit=limit, before=before
    )
    show(found, [*table(found["leases"], _COLUMNS), *more(found["next"])], as_json)


@lease.command("show")
@_LEASE
@STATE
@CONFIG
@JSON
def show_command(lease_id: str, state: Path, config: Path | None, as_json: bool) -> None:
    """One lease with its bill."""
    from gpuslice.cli.operator import operator

    found = operator(state, config).get(f"{_path('api/leases', lease_id)}/bill")
    show(found, _bill_lines(found), as_json)


@lease.command()
@_LEASE
@REASON
@STATE
@CONFIG
@JSON
def stop(lease_id: str, reason: str, state: Path, config: Path | None, as_json: bool) -> None:
    """Stop one; its user reads the reason, and does not pay for the time after it."""
    from gpuslice.cli.operator import operator

    path = f"{_path('api/leases', lease_id)}/stop"
    found = operator(state, config).send("POST", path, {"reason": reason})
    show(found, table([found], _COLUMNS), as_json)


@lease.command("more")
@_LEASE
@click.option("--until", type=MOMENT, metavar="TIME", help="No limit ends it before then.")
@click.option("--money", "amount", type=MONEY,
              help="So much more than its limits on money say, until they reset.")  # fmt: skip
@REASON
@STATE
@CONFIG
@JSON
def more_command(
    lease_id: str, until: int | None, amount: int | None, reason: str, state: Path,
    config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Let a running one go on beyond its limits: by time, by money, or both."""
    from gpuslice.cli.operator import operator

    if until is None and amount is None:
        raise click.UsageError("Give --until, --money, or both.")
    service = operator(state, config)
    body = {"until_us": until, "money_u": amount, "reason": reason}
    service.send("POST", f"{_path('api/admin/leases', lease_id)}/more", body)
    found = service.get(_path("api/leases", lease_id))
    show(found, table([found], _COLUMNS), as_json)


@lease.command()
@_LEASE
@click.option("--amount", type=MONEY, help="Newest payments first.  [default: all that was paid]")
@REASON
@STATE
@CONFIG
@JSON
def refund(
    lease_id: str, amount: int | None, reason: str, state: Path, config: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Give back what a lease cost its user, or a part of it."""
    from gpuslice.cli.operator import operator

    path = f"{_path('api/admin/leases', lease_id)}/refund"
    made = operator(state, config).send("POST", path, {"amount_u": amount, "reason": reason})
    show(made, table(made, ENTRY_COLUMNS), as_json)


def _path(base: str, lease_id: str) -> str:
    """Where a lease is over REST.

    Raises:
        BadParameter: no lease has such a number.
    """
    if len(lease_id) != 32 or set(lease_id) - set("0123456789abcdef"):
        raise click.BadParameter(f"{lease_id!r} is not the 32 digits of a lease.")
    return f"{base}/{lease_id}"


def _bill_lines(found: dict[str, Any]) -> Iterator[str]:
    one, currency = found["lease"], found["lease"]["currency"]
    server = f"/{one['server']}" if one["server"] else ""
    yield f"{one['lease_id']}: {plain(one['user'] + server)}, {one['slice']}, {one['state']}"
    for words, field in (
        ("granted", "granted_us"), ("started", "started_us"),
        ("stop requested", "stop_requested_us"), ("finished", "finished_us"),
    ):  # fmt: skip
        if one[field] is not None:
            yield f"  {words} {moment(one[field])}"
    for words, field in (("stopped because", "stop_reason"), ("ended", "end_reason")):
        if one[field] is not None:
            yield f"  {words}: {plain(one[field])}"
    yield (
        f"  {money(one['rate_u_per_hour'], currency)} per hour; cost {money(one['cost_u'])}, "
        f"paid by the platform {money(one['writeoff_u'])}"
    )
    if back := found["corrected_u"]:
        what = f"given back {money(back)}" if back > 0 else f"charged in addition {money(-back)}"
        yield f"  {what}; the user pays {money(one['cost_u'] - back)}"
    if found["lines"]:
        yield from table(found["lines"], _LINES)
