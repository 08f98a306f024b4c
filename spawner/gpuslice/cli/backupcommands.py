"""``gpuslice backup``, ``restore``, ``restored`` and ``unaccounted``: the ledger saved and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from gpuslice.cli.options import CONFIG, JSON, REASON, STATE

_FILE = click.Path(dir_okay=False, path_type=Path)


def _url(state: Path, config: Path | None) -> str:
    from gpuslice.cli.trouble import Trouble
    from gpuslice.service.databaseurl import database_url
    from gpuslice.service.secretfiles import SecretFileError
    from gpuslice.settings import SettingsError, load_settings

    try:
        return database_url(load_settings(config), state.absolute())
    except (SettingsError, SecretFileError) as error:
        raise Trouble(str(error)) from None


@click.command()
@click.argument("target", metavar="DEST", type=_FILE)
@STATE
@CONFIG
def backup(target: Path, state: Path, config: Path | None) -> None:
    """Save the ledger to the new file DEST while everything runs, and a manifest beside it."""
    from gpuslice.cli.backup import backup as save
    from gpuslice.cli.backupfile import manifest_of

    made = save(_url(state, config), target)
    rows = ", ".join(f"{name} {count}" for name, count in made.counts.items())
    click.echo(f"Saved to {target} and {manifest_of(target).name}: {rows}.")


@click.command()
@click.argument("source", type=_FILE)
@click.option("--replace", is_flag=True, help="Move the ledger that is there aside.")
@click.option("--node-socket", type=_FILE,
              help="The node's control.sock.  [default: the one in the data folder]")  # fmt: skip
@REASON
@STATE
@CONFIG
def restore(
    source: Path, replace: bool, node_socket: Path | None, reason: str, state: Path,
    config: Path | None,
) -> None:  # fmt: skip
    """Make the backup SOURCE the ledger. Stop the service first, and each standby."""
    from gpuslice.broker.hostlock import HostLock
    from gpuslice.cli import lacks
    from gpuslice.cli.operator import login
    from gpuslice.cli.restore import Wish
    from gpuslice.cli.restore import restore as put_back
    from gpuslice.cli.state import State
    from gpuslice.units import now_us

    url, layout = _url(state, config), State(state.absolute())
    done = put_back(
        Wish(
            url=url, source=source, replace=replace, actor=login(), reason=reason, now=now_us(),
            lock=HostLock(layout.secrets),
        )
    )  # fmt: skip
    click.echo(f"The ledger is as of {lacks.moment(done.manifest.taken_us)}.")
    if done.aside is not None:
        click.echo(f"The one before it is now {done.aside}.")
    for line in lacks.compare(url, node_socket or layout.node):
        click.echo(line)
    click.echo(
        "Start the service: it bills what is missing. Then look: gpuslice restored, "
        "gpuslice ledger verify"
    )


@click.command()
@STATE
@CONFIG
def restored(state: Path, config: Path | None) -> None:
    """What was billed anew since the ledger was last restored."""
    from gpuslice.cli import lacks

    for line in lacks.read(_url(state, config), lacks.recreated):
        click.echo(line)


@click.group()
def unaccounted() -> None:
    """Servers that run without a lease, as after a restore; they close their node."""


@unaccounted.command("list")
@STATE
@CONFIG
@JSON
def list_command(state: Path, config: Path | None, as_json: bool) -> None:
    """What runs on the node that the ledger does not know."""
    from gpuslice.cli import lacks
    from gpuslice.cli.operator import operator

    found = operator(state, config).get("api/admin/unaccounted")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        since = "?" if one["started_us"] is None else lacks.moment(one["started_us"])
        ending = ", is being ended" if one["ending"] else ""
        click.echo(
            f"{one['lease_id']}  {one['user']}/{one['server']}  {one['slice'] or '?'}  "
            f"since {since}{ending}"
        )
    if not found:
        click.echo("Everything that runs has a lease.")


_LEASE = click.argument("lease_id", metavar="LEASE")


@unaccounted.command()
@_LEASE
@click.option("--group", "groups", multiple=True, help="A group of the user's; repeatable.")
@click.option("--charge", help="The group to be charged.")
@REASON
@STATE
@CONFIG
def adopt(
    lease_id: str, groups: Sequence[str], charge: str | None, reason: str, state: Path,
    config: Path | None,
) -> None:  # fmt: skip
    """Make the lease anew: the server goes on, and is billed from its start on."""
    from gpuslice.cli.operator import operator

    body = {"groups": list(groups), "group": charge, "reason": reason}
    operator(state, config).send("POST", f"api/admin/unaccounted/{lease_id}/adopt", body)
    click.echo("Adopted.")


@unaccounted.command()
@_LEASE
@REASON
@STATE
@CONFIG
def stop(lease_id: str, reason: str, state: Path, config: Path | None) -> None:
    """End the server; nobody pays for it."""
    from gpuslice.cli.operator import operator

    operator(state, config).send(
        "POST", f"api/admin/unaccounted/{lease_id}/stop", {"reason": reason}
    )
    click.echo("It is being ended; gpuslice unaccounted list shows when it is over.")


def add_to(group: click.Group) -> None:
    """Register these commands."""
    for command in (backup, restore, restored, unaccounted):
        group.add_command(command)
