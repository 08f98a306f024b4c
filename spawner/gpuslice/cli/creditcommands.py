"""``gpuslice credit``: money given in advance, and what is left of it."""

from __future__ import annotations

from pathlib import Path

import click

from gpuslice.cli.options import CONFIG, JSON, REASON, STATE, account_options, page_options, whose
from gpuslice.cli.text import (
    MOMENT,
    MONEY,
    Column,
    count_of,
    moment,
    moment_of,
    money,
    money_of,
    more,
    plain,
    show,
    table,
)

_COLUMNS = (
    count_of("number", "credit_id"),
    Column("whose", lambda row: plain(f"{row['whose']} {row['name']}")),
    money_of("given", "amount_u"),
    money_of("used", "used_u"),
    Column("left", lambda row: money(row["amount_u"] - row["used_u"]), number=True),
    count_of("priority", "priority"),
    Column("expires", lambda row: moment(row["expires_us"]) or "never"),
    moment_of("since", "created_us"),
)


@click.group()
def credit() -> None:
    """Money given to users and groups in advance."""


@credit.command("list")
@account_options
@page_options(1000)
@STATE
@CONFIG
@JSON
def list_command(
    user: str | None, group: str | None, limit: int, before: str | None, state: Path,
    config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Credit that was given, newest first."""
    from gpuslice.cli.operator import operator

    found = operator(state, config).get(
        "api/admin/credits", limit=limit, before=before, **whose(user, group)
    )
    show(found, [*table(found["credits"], _COLUMNS), *more(found["next"])], as_json)


@credit.command()
@click.argument("kind", type=click.Choice(["user", "group"]))
@click.argument("name")
@click.argument("amount", type=MONEY)
@click.option("--expires", type=MOMENT, metavar="TIME", help="What is left then is taken back.")
@click.option("--priority", type=click.IntRange(-1000, 1000), default=0, show_default=True,
              help="Lower is used first, then what expires sooner.")  # fmt: skip
@REASON
@STATE
@CONFIG
@JSON
def give(
    kind: str, name: str, amount: int, expires: int | None, priority: int, reason: str,
    state: Path, config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Give AMOUNT (25.00) to a user or a group."""
    from gpuslice.cli.operator import operator

    body = {
        "whose": kind, "name": name, "amount_u": amount, "priority": priority,
        "expires_us": expires, "reason": reason,
    }  # fmt: skip
    made = operator(state, config).send("POST", "api/admin/credits", body)
    show(made, table([made], _COLUMNS), as_json)
