"""``gpuslice quota``: policies shown, changed and explained, over the service's REST."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gpuslice.cli.options import CONFIG, JSON, REASON, STATE

#: Whose policy: `everyone`, `user NAME`, `group NAME`.
_KIND = click.argument("kind", type=click.Choice(["everyone", "user", "group"]))
_NAME = click.argument("name", required=False)


@click.group()
def quota() -> None:
    """Limits of everyone, users and groups: what holds, and why somebody was refused."""


@quota.command("list")
@STATE
@CONFIG
@JSON
def list_command(state: Path, config: Path | None, as_json: bool) -> None:
    """All policies that hold now."""
    from gpuslice.cli.operator import operator
    from gpuslice.quotas.policytext import policy_lines

    found = operator(state, config).pages("api/admin/policies", "policies", "after")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for policy in found:
        click.echo("\n".join(policy_lines(policy)))


@quota.command()
@_KIND
@_NAME
@STATE
@CONFIG
@JSON
@click.option("--history", is_flag=True, help="All versions, newest first.")
def show(
    kind: str, name: str | None, state: Path, config: Path | None, as_json: bool, history: bool
) -> None:
    """One policy: of everyone, of a user, or of a group."""
    from gpuslice.cli.operator import operator
    from gpuslice.cli.quotatext import policy_path
    from gpuslice.quotas.policytext import policy_lines

    service, path = operator(state, config), policy_path(kind, name)
    if history:
        found: Any = service.pages(f"{path}/history", "versions", "before")
    else:
        found = service.get(path)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for policy in found if history else [found]:
        click.echo("\n".join(policy_lines(policy)))


_EACH = (
    click.option("--slices", help="At a time, of all types, or 'unlimited'."),
    click.option("--slices-of", multiple=True, metavar="TYPE=N", help="At a time, of one type."),
    click.option("--types", help="The only slice types allowed: quarter,cpu; or 'unlimited'."),
    click.option("--gpu-hours", multiple=True, metavar="N/PERIOD",
                 help="20/week, 5/day, 100/30d (rolling), unlimited/week; shares count as such."),
    click.option("--money", multiple=True, metavar="N/PERIOD", help="50/month, 500/life."),
    click.option("--session-hours", help="The longest session, or 'unlimited'."),
    click.option("--prepaid/--no-prepaid", default=None, help="Nothing beyond granted credit."),
    click.option("--priority", type=int, help="In the queue; higher is first."),
    click.option("--hold", type=click.Choice(["rolling", "safe"]),
                 help="Reserve the next minutes, or the whole declared time."),
    click.option("--when-lowered", type=click.Choice(["grace", "next-start"]),
                 help="What a lowered limit does to what runs."),
    click.option("--total-slices", help="Of a group, all members together."),
    click.option("--total-slices-of", multiple=True, metavar="TYPE=N",
                 help="Of a group in total, of one type."),
    click.option("--total-gpu-hours", multiple=True, metavar="N/PERIOD",
                 help="Of a group in total: 200/week."),
    click.option("--total-money", multiple=True, metavar="N/PERIOD",
                 help="Of a group in total: 50/month."),
    click.option("--total-prepaid/--no-total-prepaid", default=None,
                 help="The group: nothing beyond its credit."),
    click.option("--timezone", help="Where days, weeks and months begin: Europe/Berlin."),
    click.option("--price-list",
                 help="Which prices are paid; a user's own policy counts before the group's."),
    click.option("--clear", multiple=True, metavar="WHAT",
                 help="Inherit it again: slices, gpu-hours, total-money, …"),
    click.option("--file", "source", type=click.File("rb"),
                 help="A whole policy as JSON or TOML instead of options."),
)  # fmt: skip


def _with_each(command: Any) -> Any:
    for option in reversed(_EACH):
        command = option(command)
    return command


@quota.command("set")
@_KIND
@_NAME
@_with_each
@REASON
@STATE
@CONFIG
@JSON
def set_command(
    kind: str, name: str | None, reason: str, state: Path, config: Path | None, as_json: bool,
    **said: Any,
) -> None:  # fmt: skip
    """Change a policy; what no option names stays as it is.

    \b
    gpuslice quota set group students --slices 1 --types quarter,cpu \\
        --gpu-hours 20/week --total-money 50/month --reason "winter term"
    """
    from gpuslice.cli.operator import operator
    from gpuslice.cli.quotatext import changed_document, policy_path
    from gpuslice.quotas.policytext import policy_lines

    service = operator(state, config)
    path = policy_path(kind, name)
    # A policy that is not there yet is an empty history, and no error.
    newest = service.get(f"{path}/history", limit=1)["versions"]
    current = newest[0] if newest and newest[0]["til_us"] is None else None
    document = changed_document(current["document"] if current else {}, said)
    body = {
        "document": document, "version": current["version"] if current else None,
        "reason": reason,
    }  # fmt: skip
    found = service.send("PUT", path, body)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(policy_lines(found)))


@quota.command()
@_KIND
@_NAME
@REASON
@STATE
@CONFIG
def remove(kind: str, name: str | None, reason: str, state: Path, config: Path | None) -> None:
    """Remove a policy: what it said is inherited again."""
    from gpuslice.cli.operator import operator
    from gpuslice.cli.quotatext import policy_path

    service = operator(state, config)
    path = policy_path(kind, name)
    version = service.get(path)["version"]
    service.send("DELETE", path, {"version": version, "reason": reason})
    click.echo("Removed.")


@quota.command()
@click.argument("user")
@click.argument("slice_type", metavar="SLICE")
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="As if the user were in this group; repeatable.  [default: as in the hub]",
)
@click.option("--charge", help="The group to be charged.")
@click.option("--hours", type=float, help="How long the user would ask for.")
@STATE
@CONFIG
@JSON
def explain(
    user: str, slice_type: str, groups: Sequence[str], charge: str | None, hours: float | None,
    state: Path, config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Every limit that would be looked at, and what it would say.

    The same code that decides. Exit code 1 if the user would be refused.
    """
    import math
    import sys

    from gpuslice.cli.operator import operator
    from gpuslice.quotas.policytext import explanation_lines
    from gpuslice.units import HOUR_US

    if hours is not None and not math.isfinite(hours):
        raise click.UsageError(f"--hours: give a number of hours, not {hours}.")
    body = {
        "user": user, "slice": slice_type, "groups": list(groups) or None, "group": charge,
        "declared_us": None if hours is None else round(hours * HOUR_US),
    }  # fmt: skip
    found = operator(state, config).send("POST", "api/admin/explain", body)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(explanation_lines(found)))
    sys.exit(0 if found["ok"] else 1)
