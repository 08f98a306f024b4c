"""The node's command line: from options to a running node."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from gpuslice.node.app import control_app, engine_app
from gpuslice.node.demo import Demo
from gpuslice.node.environment import Simulation
from gpuslice.node.events import log_event
from gpuslice.node.inventory import NvmlDevices
from gpuslice.node.launch import Launcher
from gpuslice.node.leases import Leases
from gpuslice.node.live import LocalServers
from gpuslice.node.server import Door, serve
from gpuslice.node.store import StateInUseError, Store
from gpuslice.node.use import UseSampler
from gpuslice.nodeclient import node_sockets

log = logging.getLogger("gpuslice.node")


def parser() -> argparse.ArgumentParser:
    """The options of ``gpuslice node`` and ``python -m gpuslice.node``."""
    options = argparse.ArgumentParser(prog="gpuslice node", description=__doc__)
    options.add_argument("--state", type=Path, required=True, help="folder of this node's own")
    options.add_argument("--node-id", default="local", help="this machine's name in the ledger")
    options.add_argument("--engine", choices=["local"], default="local", help="what runs servers")
    options.add_argument("--service-url", required=True, type=_http, help="where the service is")
    options.add_argument(
        "--token-file", type=Path, required=True, help="what supervisors show the service"
    )
    options.add_argument(
        "--patience", type=float, default=10.0, help="seconds a start waits for the service"
    )
    options.add_argument(
        "--nvml", type=Path, help="the NVML library to open, instead of the host's"
    )
    options.add_argument(
        "--demo", type=Path, help="simulated devices: their state file; needs --nvml"
    )
    return options


def main(argv: list[str] | None = None) -> int:
    """Runs the node until SIGTERM; returns its exit code."""
    options = parser()
    chosen = options.parse_args(argv)
    if chosen.demo is not None and chosen.nvml is None:
        options.error("--demo needs --nvml, the stand-in library that reads the state file")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    os.umask(0o077)
    state: Path = chosen.state.resolve()
    store = Store(state)
    try:
        store.open()
    except (StateInUseError, OSError) as problem:
        sys.stderr.write(f"gpuslice node: {problem}\n")
        return 1
    try:
        asyncio.run(_run(chosen, state, store))
    except OSError as problem:
        log_event(log, "failed", logging.ERROR, problem=repr(problem))
        return 1
    return 0


async def _run(chosen: argparse.Namespace, state: Path, store: Store) -> None:
    simulation = None
    if chosen.demo is not None:
        simulation = Simulation(chosen.demo.resolve(), chosen.nvml.resolve())
        # The library finds the simulated devices by this variable, in our process too.
        os.environ["NVMLSIM_STATE"] = str(simulation.state)
        os.environ["NVMLSIM_VIEW"] = "host"
        os.environ.pop("NVMLSIM_VISIBLE", None)
    simulated = simulation is not None
    devices = NvmlDevices(chosen.node_id, chosen.engine, chosen.nvml, simulated=simulated)
    launcher = Launcher(chosen.service_url, chosen.token_file.resolve(), chosen.patience)
    servers = LocalServers(store)
    uses = UseSampler(servers, chosen.nvml)
    leases = Leases(chosen.node_id, store, launcher, devices, uses, simulation)
    if simulation is not None:
        demo = Demo(simulation.state, servers)
        devices.before_check = demo.refresh
        demo.start()
    uses.start()
    control, engine = node_sockets(state)
    await serve(
        leases, [Door(control, control_app(leases, devices)), Door(engine, engine_app(leases))]
    )


def _http(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is no http address")
    return text


if __name__ == "__main__":
    sys.exit(main())
