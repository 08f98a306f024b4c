"""The node's command line: from options to a running node."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from gpuslice.node.build import Node, Plan, local_node
from gpuslice.node.environment import Simulation
from gpuslice.node.events import log_event
from gpuslice.node.server import Owner, serve
from gpuslice.node.store import StateInUseError, Store
from gpuslice.nodeclient import node_sockets
from gpuslice.settings import Settings, SettingsError, load_settings
from nvmlsim import BuildError

log = logging.getLogger("gpuslice.node")

#: In the environment: not empty means ``--simulated``.
SIMULATED_VARIABLE = "GPUSLICE_SIMULATED"


def parser() -> argparse.ArgumentParser:
    """The options of ``gpuslice node`` and ``python -m gpuslice.node``."""
    options = argparse.ArgumentParser(prog="gpuslice node", description=__doc__)
    options.add_argument("--state", type=Path, required=True, help="folder of this node's own")
    options.add_argument(
        "--engine", choices=["local", "docker"], default="local", help="what runs servers"
    )
    options.add_argument("--config", type=Path, help="gpuslice.toml, with [docker] and [node]")
    options.add_argument("--node-id", help="this machine's name in the ledger, instead of node.id")
    options.add_argument("--service-url", type=_http, help="where the service is, instead of "
                         "[service]'s address")  # fmt: skip
    options.add_argument("--token-file", type=Path, required=True, help="what the service is shown")
    options.add_argument(
        "--nvml", type=Path, help="the NVML library to open, instead of the host's"
    )
    sockets = options.add_argument_group("sockets", "in the node's folder unless named here")
    sockets.add_argument("--control-socket", type=Path, help="the service's")
    sockets.add_argument("--engine-socket", type=Path, help="the spawner's")
    sockets.add_argument("--socket-uid", type=_number, help="the user who may reach them")
    sockets.add_argument("--socket-gid", type=_number, help="the group that may reach them")
    local = options.add_argument_group("the local engine")
    local.add_argument(
        "--patience", type=float, default=10.0, help="seconds a start waits for the service"
    )
    local.add_argument(
        "--demo", type=Path, help="simulated devices: their state file; needs --nvml"
    )
    docker = options.add_argument_group("the docker engine")
    docker.add_argument(
        "--simulated", action="store_true", default=bool(os.environ.get(SIMULATED_VARIABLE)),
        help="simulated devices even where there are real ones; also by the environment: "
        f"{SIMULATED_VARIABLE}=1",
    )  # fmt: skip
    return options


def main(argv: list[str] | None = None) -> int:
    """Runs the node until SIGTERM; returns its exit code."""
    options = parser()
    chosen = options.parse_args(argv)
    if chosen.engine == "docker" and chosen.demo is not None:
        options.error("--demo is the local engine's; use --simulated")
    if chosen.demo is not None and chosen.nvml is None:
        options.error("--demo needs --nvml, the stand-in library that reads the state file")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    os.umask(0o077)
    try:
        settings = load_settings(chosen.config)
        plan = _plan(chosen, settings)
        store = Store(plan.state)
        store.open()
    except (SettingsError, StateInUseError, OSError) as problem:
        sys.stderr.write(f"gpuslice node: {problem}\n")
        return 1
    try:
        asyncio.run(_run(chosen, plan, store, settings))
    except (BuildError, OSError) as problem:
        log_event(log, "failed", logging.ERROR, problem=repr(problem))
        return 1
    return 0


def _plan(chosen: argparse.Namespace, settings: Settings) -> Plan:
    state: Path = chosen.state.resolve()
    control, engine = node_sockets(state)
    return Plan(
        state=state,
        node_id=chosen.node_id or settings.node.id,
        service_url=chosen.service_url or settings.service.address,
        token_file=chosen.token_file.resolve(),
        control_socket=chosen.control_socket or control,
        engine_socket=chosen.engine_socket or engine,
        owner=Owner(chosen.socket_uid, chosen.socket_gid),
        library=chosen.nvml and chosen.nvml.resolve(),
    )


async def _run(chosen: argparse.Namespace, plan: Plan, store: Store, settings: Settings) -> None:
    node = _node(chosen, plan, store, settings)
    await serve(node.engine, node.doors)


def _node(chosen: argparse.Namespace, plan: Plan, store: Store, settings: Settings) -> Node:
    if chosen.engine == "docker":
        # Only here: a node without containers needs nothing of it.
        from gpuslice.node.docker.build import docker_node

        return docker_node(plan, store, settings.docker, simulated=chosen.simulated)
    simulation = None
    if chosen.demo is not None and plan.library is not None:
        simulation = Simulation(chosen.demo.resolve(), plan.library)
    return local_node(plan, store, simulation=simulation, patience_s=chosen.patience)


def _http(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is no http address")
    return text


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
