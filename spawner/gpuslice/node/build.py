"""Puts a node together: its engine, what samples the devices, and its two doors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tornado.web import Application

from gpuslice import wire
from gpuslice.node.app import control_app, engine_app
from gpuslice.node.demo import Demo
from gpuslice.node.environment import Simulation
from gpuslice.node.inventory import NvmlDevices
from gpuslice.node.launch import Launcher
from gpuslice.node.leases import Leases
from gpuslice.node.live import LocalServers
from gpuslice.node.ports import Engine, LiveServers
from gpuslice.node.server import Door, Owner
from gpuslice.node.store import Store
from gpuslice.node.use import UseSampler


@dataclass(frozen=True, slots=True)
class Plan:
    """What every node is told. ``library`` is the NVML to open; None: the host's."""

    state: Path
    node_id: str
    service_url: str
    token_file: Path
    control_socket: Path
    engine_socket: Path
    owner: Owner
    library: Path | None


@dataclass(frozen=True, slots=True)
class Node:
    """What is served, and where."""

    engine: Engine
    doors: tuple[Door, Door]


def local_node(
    plan: Plan, store: Store, *, simulation: Simulation | None, patience_s: float
) -> Node:
    """Servers are processes of this machine, of whoever runs the node: nothing holds any cap.

    Args:
        patience_s: How long a start waits for the service.
    """
    devices = NvmlDevices(
        plan.node_id, "local", plan.library, simulated=simulation is not None,
        ceiling=wire.Enforcement.ADVISORY,
    )  # fmt: skip
    launcher = Launcher(plan.service_url, plan.token_file, patience_s)
    servers = LocalServers(store)
    uses = watch_devices(servers, devices, plan.library, simulation)
    leases = Leases(plan.node_id, store, launcher, devices, uses, simulation)
    return Node(leases, doors(plan, leases, devices, engine_app(leases)))


def watch_devices(
    servers: LiveServers,
    devices: NvmlDevices,
    library: Path | None,
    simulation: Simulation | None,
) -> UseSampler:
    """Samples what servers use; simulated devices show what the servers really do."""
    uses = UseSampler(servers, library)
    if simulation is not None:
        # The library finds the simulated devices by these, in our process too.
        os.environ["NVMLSIM_STATE"] = str(simulation.state)
        os.environ["NVMLSIM_VIEW"] = "host"
        os.environ.pop("NVMLSIM_VISIBLE", None)
        demo = Demo(simulation.state, servers)
        devices.before_check = demo.refresh
        demo.start()
    uses.start()
    return uses


def doors(
    plan: Plan, engine: Engine, devices: NvmlDevices, spawners: Application
) -> tuple[Door, Door]:
    """The service's, and the spawner's."""
    return (
        Door(plan.control_socket, control_app(engine, devices), plan.owner),
        Door(plan.engine_socket, spawners, plan.owner),
    )
