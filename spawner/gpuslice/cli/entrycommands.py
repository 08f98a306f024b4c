"""``gpuslice entry``: the ledger's rows, and corrections of them."""

from __future__ import annotations

from pathlib import Path

import click

from gpuslice.cli.options import CONFIG, JSON, REASON, STATE, account_options, page_options, whose
from gpuslice.cli.text import MONEY, count_of, moment_of, money_of, more, of, show, table

ENTRY_COLUMNS = (
    count_of("entry", "entry_id"),
    moment_of("written", "at_us"),
    of("kind", "kind"),
    of("from", "debit"),
    of("to", "credit"),
    money_of("amount", "amount_u"),
    of("slice", "slice"),
    of("corrects", "corrects"),
    of("by", "actor"),
    of("memo", "memo"),
)


@click.group()
def entry() -> None:
    """The ledger's rows: each moves money from one account to another."""


@entry.command("list")
@account_options
@page_options(1000)
@STATE
@CONFIG
@JSON
def list_command(
    user: str | None, group: str | None, limit: int, before: str | None, state: Path,
    config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Entries, newest first."""
    from gpuslice.cli.operator import operator

    found = operator(state, config).get(
        "api/admin/entries", limit=limit, before=before, **whose(user, group)
    )
    show(found, [*table(found["entries"], ENTRY_COLUMNS), *more(found["next"])], as_json)


@entry.command()
@click.argument("number", type=click.IntRange(1))
@click.argument("kind", type=click.Choice(["refund", "surcharge"]))
@click.argument("amount", type=MONEY)
@REASON
@STATE
@CONFIG
@JSON
def correct(
    number: int, kind: str, amount: int, reason: str, state: Path, config: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Give back a part of what an entry paid, or take more. The entry itself stays."""
    from gpuslice.cli.operator import operator

    body = {"entry_id": number, "kind": kind, "amount_u": amount, "reason": reason}
    made = operator(state, config).send("POST", "api/admin/corrections", body)
    show(made, table([made], ENTRY_COLUMNS), as_json)
