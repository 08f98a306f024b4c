"""The commands and their options; each imports its work only when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from gpuslice.cli import backupcommands
from gpuslice.cli.creditcommands import credit
from gpuslice.cli.devicecommands import device
from gpuslice.cli.entrycommands import entry
from gpuslice.cli.leasecommands import lease
from gpuslice.cli.ledgercommands import ledger
from gpuslice.cli.options import CONFIG, STATE
from gpuslice.cli.peoplecommands import group, user
from gpuslice.cli.pricecommands import price
from gpuslice.cli.queuecommands import queue
from gpuslice.cli.quotacommands import quota
from gpuslice.cli.reservecommands import reserve
from gpuslice.cli.usagecommands import usage


class _Clean(click.Group):
    """Turns the errors that commands raise for people into one sentence and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        from gpuslice.cli.trouble import Trouble

        try:
            return super().invoke(ctx)
        except Trouble as trouble:
            click.echo(f"gpuslice: {trouble}", err=True)
            ctx.exit(1)


@click.group(cls=_Clean, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Lease GPU slices to JupyterHub users, and bill them exactly."""


@main.command("up")
@STATE
@CONFIG
@click.option(
    "--engine",
    type=click.Choice(["local", "docker"]),
    default="local",
    show_default=True,
    help="What runs notebook servers: 'local' are processes of this machine, a demo; 'docker' "
    "are containers of their own, and so are the platform's parts.",
)
@click.option("--port", type=click.IntRange(1, 65535),
              help="Where browsers find it, on this machine only.  [default: 8000]")  # fmt: skip
@click.option("--proxy-api-port", type=click.IntRange(1, 65535),
              help="Where a local hub tells its proxy the routes.  [default: port+1]")  # fmt: skip
@click.option("--simulated", is_flag=True, help="Use simulated GPUs even if there are real ones.")
@click.option("--hub-config", type=click.Path(dir_okay=False, exists=True, path_type=Path),
              help="A jupyterhub_config.py of your own instead of the demo's.")  # fmt: skip
@click.option("--drain-timeout", type=click.FloatRange(1, 3600), default=90, show_default=True,
              help="Seconds that Ctrl-C waits for servers and leases to end.")  # fmt: skip
def up_command(
    state: Path,
    config: Path | None,
    engine: str,
    port: int | None,
    proxy_api_port: int | None,
    simulated: bool,
    hub_config: Path | None,
    drain_timeout: float,
) -> None:
    """Start proxy, hub, service and node on this machine, until Ctrl-C."""
    config = config.absolute() if config else None
    hub_config = hub_config.absolute() if hub_config else None
    if engine == "docker":
        from gpuslice.cli import up_docker

        if proxy_api_port is not None:
            raise click.UsageError("--proxy-api-port does nothing with --engine docker.")
        sys.exit(
            up_docker.run(
                up_docker.Wishes(
                    state=state.absolute(),
                    config=config,
                    hub_config=hub_config,
                    port=port,
                    simulated=simulated,
                    drain_timeout_s=drain_timeout,
                )
            )
        )
    from gpuslice.cli import up

    port = port or 8000
    sys.exit(
        up.run(
            up.Wishes(
                state=state.absolute(),
                config=config,
                port=port,
                proxy_api_port=proxy_api_port or (port + 1 if port < 65535 else port - 1),
                simulated=simulated,
                hub_config=hub_config,
                drain_timeout_s=drain_timeout,
            )
        )
    )


@main.command()
@STATE
@click.option("--hand-out", type=click.Path(file_okay=False, exists=True, path_type=Path),
              help="A folder for one folder per part, with copies of its secrets.")  # fmt: skip
@click.option("--owner", type=(str, int), multiple=True, metavar="PART UID",
              help="Who a part runs as, and owns its copies; without it root.")  # fmt: skip
def init(state: Path, hand_out: Path | None, owner: Sequence[tuple[str, int]]) -> None:
    """Make the data folder and its secrets; what is there already is kept."""
    from gpuslice.cli import handout
    from gpuslice.cli.secrets import ensure_secrets
    from gpuslice.cli.state import State

    layout = State(state.absolute())
    if hand_out is None:
        layout.prepare()
        ensure_secrets(layout.secrets)
    else:
        owners = dict.fromkeys(handout.HANDED_OUT, (0, 0))
        owners.update((part, (uid, uid)) for part, uid in owner)
        handout.hand_out(layout.secrets, hand_out, owners)
    click.echo(f"The secrets are in {layout.secrets}")


_NODE_SOCKET = click.option(
    "--node-socket",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The node's control.sock.  [default: the one in the data folder]",
)


@main.command()
@STATE
@_NODE_SOCKET
@click.option("--json", "as_json", is_flag=True, help="Everything that the node says of them.")
def devices(state: Path, node_socket: Path | None, as_json: bool) -> None:
    """List the devices that the node has."""
    import asyncio

    from gpuslice.cli.console import device_lines
    from gpuslice.cli.state import State
    from gpuslice.cli.trouble import Trouble
    from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable

    node = NodeClient(node_socket or State(state.absolute()).node)
    try:
        seen = asyncio.run(node.inventory())
    except (NodeUnavailable, NodeRefused) as error:
        raise Trouble(str(error)) from None
    if as_json:
        click.echo(seen.model_dump_json())
        return
    click.echo("simulated" if seen.simulated else "real")
    for line in device_lines(seen):
        click.echo(line.strip())


@main.command()
@STATE
@CONFIG
@_NODE_SOCKET
@click.option("--timeout", type=click.FloatRange(1, 3600), default=90, show_default=True,
              help="Seconds to wait for servers and leases to end.")  # fmt: skip
def drain(state: Path, config: Path | None, node_socket: Path | None, timeout: float) -> None:
    """End all servers and settle all leases. The service grants no more until its next start.

    Exit code 1 if leases are left, 2 if the service does not answer.
    """
    from gpuslice.cli.drain import Doors
    from gpuslice.cli.drain import drain as end_all
    from gpuslice.cli.state import State
    from gpuslice.cli.trouble import Trouble
    from gpuslice.settings import SettingsError, load_settings
    from gpuslice.spawners.configure import service_url

    try:
        settings = load_settings(config)
    except SettingsError as error:
        raise Trouble(str(error)) from None
    layout = State(state.absolute())
    doors = Doors(
        service_url=service_url(settings),
        token_file=layout.secrets / "broker_token",
        node=node_socket or layout.node,
        stop_grace_s=settings.timing.stop_grace_s,
    )
    left = end_all(doors, timeout, click.echo, lambda: False, actor="gpuslice drain")
    sys.exit(2 if left is None else min(left, 1))


@main.command()
@STATE
@CONFIG
@_NODE_SOCKET
@click.option("--engine", type=click.Choice(["local", "docker"]),
              help="What runs notebook servers.  [default: the node's]")  # fmt: skip
@click.option("--url", help="Where browsers reach the hub.  [default: what gpuslice up says]")
@click.option("--only", multiple=True, metavar="GROUP", help="This group of checks; repeatable.")
@click.option("--gpu", is_flag=True, help="Try each GPU in a container of the first image.")
@click.option("--json", "as_json", is_flag=True, help="For programs; its form is documented.")
def doctor(
    state: Path,
    config: Path | None,
    node_socket: Path | None,
    engine: Literal["local", "docker"] | None,
    url: str | None,
    only: Sequence[str],
    gpu: bool,
    as_json: bool,
) -> None:
    """Look whether this machine can run the platform, and say what to do where it cannot.

    Exit code 0: no problem. 1: a problem. 2: no problem, but something could not be looked at.
    """
    from gpuslice.cli.doctor import examine

    strange = set(only) - set(examine.TITLES)
    if strange:
        raise click.UsageError(
            f"There is no group {', '.join(sorted(strange))}; there are "
            f"{', '.join(examine.TITLES)}."
        )
    wishes = examine.Wishes(
        config=config, state=state.absolute(), node=node_socket, engine=engine, url=url, gpu=gpu,
        only=frozenset(only),
    )  # fmt: skip
    sys.exit(examine.run(wishes, as_json_text=as_json))


_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@main.command(context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def node(arguments: Sequence[str]) -> None:
    """Run the node daemon; its own options follow (gpuslice node --help)."""
    _become("gpuslice.node", arguments)


@main.command(context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def service(arguments: Sequence[str]) -> None:
    """Run the service; its own options follow (gpuslice service --help)."""
    _become("gpuslice.service", arguments)


main.add_command(quota)
main.add_command(user)
main.add_command(group)
main.add_command(reserve)
main.add_command(price)
main.add_command(credit)
main.add_command(lease)
main.add_command(device)
main.add_command(entry)
main.add_command(queue)
main.add_command(usage)
main.add_command(ledger)
backupcommands.add_to(main)


def _become(module: str, arguments: Sequence[str]) -> None:
    """Replace this process, so that signals reach the daemon itself."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
