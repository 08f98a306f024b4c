"""``gpuslice ledger``: the proof of the books, their digests, and all of their rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import click

from gpuslice.cli.options import CONFIG, JSON, STATE, account_options, page_options, whose
from gpuslice.cli.text import MOMENT, count_of, moment_of, more, of, show, table

_DIGESTS = (
    count_of("number", "number"),
    of("day", "day"),
    count_of("entries", "entries"),
    count_of("up to entry", "last_entry"),
    of("sha256", "sha256"),
    of("key", "key_id"),
    moment_of("signed", "created_us"),
)


@click.group()
def ledger() -> None:
    """Look into the ledger."""


@ledger.command()
@STATE
@CONFIG
@click.option("--public-key", "key_files", multiple=True, metavar="FILE",
              type=click.Path(dir_okay=False, path_type=Path),
              help="Of whom the daily digests must be, as 'gpuslice ledger key' printed it; "
              "repeatable.  [default: the data folder's own]")  # fmt: skip
def verify(state: Path, config: Path | None, key_files: Sequence[Path]) -> None:
    """Check the books: segments, entries, claims, projections, and the signed digest of each day.

    Exit code 1 if anything differs.
    """
    from gpuslice.cli.ledger import given_keys, own_keys, problems

    folder = state.absolute()
    keys = given_keys(key_files) if key_files else own_keys(folder)
    found = problems(folder, config, keys)
    for problem in found:
        click.echo(problem)
    if not keys:
        click.echo("Signatures were not checked: no key; name one with --public-key.", err=True)
    if found:
        click.echo(f"{len(found)} difference{'s' if len(found) > 1 else ''}.", err=True)
        sys.exit(1)
    click.echo("The ledger is in order.")


@ledger.command()
@STATE
def key(state: Path) -> None:
    """Print the public key of the daily digests; keep a copy on another machine."""
    from gpuslice.cli.ledger import public_key

    click.echo(public_key(state.absolute()), nl=False)


@ledger.command()
@page_options(1000)
@STATE
@CONFIG
@JSON
def digests(
    limit: int, before: str | None, state: Path, config: Path | None, as_json: bool
) -> None:
    """The signed digests, newest first."""
    from gpuslice.cli.operator import operator

    found = operator(state, config).get("api/admin/digests", limit=limit, before=before)
    show(found, [*table(found["digests"], _DIGESTS), *more(found["next"])], as_json)


@ledger.command()
@click.argument("target", metavar="[FILE]", default="-",
                type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))  # fmt: skip
@click.option("--form", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
@account_options
@click.option("--from", "from_us", type=MOMENT, metavar="TIME", help="Written from then on.")
@click.option("--til", "til_us", type=MOMENT, metavar="TIME", help="Written before then.")
@STATE
@CONFIG
def export(
    target: Path, form: str, user: str | None, group: str | None, from_us: int | None,
    til_us: int | None, state: Path, config: Path | None,
) -> None:  # fmt: skip
    """All entries, oldest first, to FILE or the standard output.

    Money is in millionths and times are UTC microseconds, as everywhere in REST.
    """
    from gpuslice.cli.export import whole_file
    from gpuslice.cli.operator import operator

    service = operator(state, config)
    path, named = "api/admin/entries/export", whose(user, group)

    def copy_to(out: BinaryIO) -> None:
        service.stream(path, out.write, form=form, from_us=from_us, til_us=til_us, **named)

    if str(target) == "-":
        copy_to(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    with whole_file(target) as file:
        copy_to(file)
