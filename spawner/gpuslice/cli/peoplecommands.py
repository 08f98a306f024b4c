"""``gpuslice user`` and ``gpuslice group``: accounts, renames, lists of people, over REST."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from gpuslice.cli.options import CONFIG, JSON, REASON, STATE

if TYPE_CHECKING:
    from gpuslice.cli.operator import Operator


@click.group()
def user() -> None:
    """Accounts of users: who there is, renames, closing, whole lists."""


@click.group()
def group() -> None:
    """Groups above groups."""


def _path(kind: str, name: str, tail: str = "") -> str:
    return f"api/admin/{kind}s/{quote(name, safe='')}{tail}"


def _accounts(service: Operator, **query: str | None) -> list[dict[str, Any]]:
    """All pages of a search for accounts."""
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = service.get("api/admin/accounts", after=after, limit=1000, **query)
        found += page["accounts"]
        after = page["next"]
    return found


def _currency(config: Path | None) -> str:
    from gpuslice.settings import load_settings

    return load_settings(config).currency


@user.command("list")
@click.argument("find", required=False)
@click.option("--state-of", "which", type=click.Choice(["open", "missing", "closed", "all"]),
              default="open", show_default=True,
              help="'missing': open, and the hub has no such user any more.")  # fmt: skip
@click.option("--kind", type=click.Choice(["user", "group"]), default="user", show_default=True)
@STATE
@CONFIG
@JSON
def list_command(
    find: str | None, which: str, kind: str, state: Path, config: Path | None, as_json: bool
) -> None:
    """All accounts, or those that have, or had, FIND in a name."""
    from gpuslice.cli.operator import operator
    from gpuslice.cli.peopletext import account_line

    found = _accounts(operator(state, config), kind=kind, state=which, find=find)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for account in found:
        click.echo(account_line(account))


@user.command()
@click.argument("name")
@STATE
@CONFIG
@JSON
def show(name: str, state: Path, config: Path | None, as_json: bool) -> None:
    """One account: by the user's name, or (closed ones too) by its number, as in '#12'."""
    from gpuslice.cli.operator import operator
    from gpuslice.cli.peopletext import account_lines

    number = name.removeprefix("#")
    by_number = name.startswith("#") and number.isascii() and number.isdigit()
    path = f"api/admin/accounts/{number}" if by_number else _path("user", name)
    found = operator(state, config).get(path)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo("\n".join(account_lines(found, _currency(config))))


@user.command()
@click.argument("old")
@click.argument("new")
@REASON
@STATE
@CONFIG
def rename(old: str, new: str, reason: str, state: Path, config: Path | None) -> None:
    """Another name for the same account, as when the hub has renamed the user.

    Money, limits and history stay. Not while a server of theirs runs.
    """
    from gpuslice.cli.operator import operator

    service = operator(state, config)
    version = service.get(_path("user", old))["version"]
    body = {"to": new, "version": version, "reason": reason}
    found = service.send("POST", _path("user", old, "/rename"), body)
    click.echo(f"Account {found['account_id']} is {found['name']} now.")


@user.command()
@click.argument("name")
@REASON
@STATE
@CONFIG
def close(name: str, reason: str, state: Path, config: Path | None) -> None:
    """Close a user's account for ever.

    Whoever comes next under this name begins with nothing. Credit that is left goes back.
    """
    from gpuslice.cli.operator import operator

    service = operator(state, config)
    version = service.get(_path("user", name))["version"]
    found = service.send("POST", _path("user", name, "/close"),
                         {"version": version, "reason": reason})  # fmt: skip
    click.echo(f"Account {found['account_id']} is closed; {name} is free.")


@user.command("close-missing")
@click.option("--count", type=click.IntRange(1), required=True, help="How many you expect.")
@REASON
@STATE
@CONFIG
def close_missing(count: int, reason: str, state: Path, config: Path | None) -> None:
    """Close the accounts of all users whom the hub has had no more for timing.user_gone_s.

    That happens by itself, unless they are more than a quarter of all.
    """
    from gpuslice.cli.operator import operator

    service = operator(state, config)
    body = {"count": count, "reason": reason}
    found = service.send("POST", "api/admin/accounts/close-missing", body)
    click.echo(f"Closed: {', '.join(found['names'])}.")


@user.command("import")
@click.argument("source", metavar="FILE.csv", type=click.File("rb"))
@click.option("--dry-run", is_flag=True, help="Only say what would be changed.")
@click.option("--reason", help="Why, for the audit.  [default: the file's name]")
@click.option(
    "--credit-name",
    metavar="NAME",
    help="What a credit column is for (winter-2026): it is given once per name.",
)
@click.option(
    "--hub-token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A private file with a hub token that may make users (admin:users, groups).",
)
@click.option("--hub-api", metavar="URL", help="The hub's API.  [default: hub.api_url]")
@click.option("--keep-case", is_flag=True, help="Take names with capital letters as they are.")
@STATE
@CONFIG
def import_command(
    source: Any, dry_run: bool, reason: str | None, credit_name: str | None,
    hub_token_file: Path | None, hub_api: str | None, keep_case: bool, state: Path,
    config: Path | None,
) -> None:  # fmt: skip
    """Set limits and credit of all users of a list; the same again changes nothing.

    \b
    name,group,slices,types,gpu_hours,money,session_hours,prepaid,priority,credit
    ada,students,1,quarter;cpu,20/week,50/month,4,no,0,10
    """
    from gpuslice.cli import peopleimport
    from gpuslice.cli.operator import operator

    wishes = peopleimport.Wishes(
        name=Path(str(source.name)).name, raw=source.read(), dry_run=dry_run, reason=reason,
        credit_name=credit_name, hub_token_file=hub_token_file, hub_api=hub_api,
        keep_case=keep_case, config=config,
    )  # fmt: skip
    peopleimport.run(operator(state, config), wishes, click.echo)


@group.command()
@click.argument("name", metavar="GROUP")
@click.argument("parent_name", metavar="[PARENT]", required=False)
@click.option("--none", "no_parent", is_flag=True, help="Below none.")
@click.option("--reason", help="Why, for the audit; needed for a change.")
@STATE
@CONFIG
def parent(
    name: str, parent_name: str | None, no_parent: bool, reason: str | None, state: Path,
    config: Path | None,
) -> None:  # fmt: skip
    """Show or set the group above a group: what that says in total holds for this one too."""
    from gpuslice.cli.operator import operator
    from gpuslice.cli.trouble import Trouble

    service = operator(state, config)
    if parent_name and no_parent:
        raise click.UsageError("Name a group, or give --none; not both.")
    found = _accounts(service, kind="group", state="open", find=name)
    known = next((one for one in found if one["name"] == name), None)
    if parent_name is None and not no_parent:
        if known is None:
            raise Trouble(f"There is no account of group {name!r}.")
        click.echo(known["parent"] or "none")
        return
    if not reason:
        raise Trouble("Say why with --reason.")
    body = {
        "parent": parent_name, "version": known["version"] if known else None, "reason": reason,
    }  # fmt: skip
    after = service.send("PUT", _path("group", name, "/parent"), body)
    click.echo(f"{name} is below {after['parent'] or 'none'}.")
