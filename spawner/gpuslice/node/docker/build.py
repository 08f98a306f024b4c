"""Puts together a node whose servers are containers."""

from __future__ import annotations

import logging

from gpuslice import wire
from gpuslice.node.build import Node, Plan, doors, watch_devices
from gpuslice.node.docker import gpus
from gpuslice.node.docker.api import DockerApi
from gpuslice.node.docker.devices import SliceDevices
from gpuslice.node.docker.filter import filter_app
from gpuslice.node.docker.homes import Homes
from gpuslice.node.docker.hostroot import reachable_root
from gpuslice.node.docker.leases import DockerLeases
from gpuslice.node.docker.live import ContainerServers
from gpuslice.node.docker.networks import Networks
from gpuslice.node.docker.started import ServiceDoor
from gpuslice.node.events import log_event
from gpuslice.node.inventory import NvmlDevices
from gpuslice.node.store import Store
from gpuslice.settings import DockerSettings

log = logging.getLogger("gpuslice.node")

#: So long a look at the engine may take: who asks the node does not wait for it much longer.
LOOK_LIMIT_S = 3.0


def docker_node(plan: Plan, store: Store, policy: DockerSettings, *, simulated: bool) -> Node:
    """Servers are containers, each with exactly its device.

    Args:
        simulated: Even if the host has real GPUs.

    Raises:
        BuildError, OSError: the simulated GPUs cannot be made, or the host's files not be seen.
    """
    root = reachable_root(policy.host_root, policy.socket)
    policy = policy.model_copy(update={"host_root": root})
    chosen = gpus.choose(policy, plan.library, plan.state / "nvmlsim", simulated=simulated)
    if chosen.because is not None:
        log_event(log, "gpus-simulated", logging.WARNING, because=chosen.because)
    devices = NvmlDevices(
        plan.node_id, "docker", chosen.library, simulated=chosen.simulation is not None,
        # Whole GPUs and MIG instances are device nodes: who is given none cannot open it.
        ceiling=wire.Enforcement.EXCLUSIVE,
    )  # fmt: skip
    servers = ContainerServers()
    api = DockerApi(policy.socket, timeout_s=LOOK_LIMIT_S)
    leases = DockerLeases(
        plan.node_id, store, api, policy,
        devices=devices,
        cdi=SliceDevices(policy, chosen.simulation),
        networks=Networks(policy, api, plan.node_id),
        homes=Homes(policy, api),
        service=ServiceDoor(plan.service_url, plan.token_file),
        uses=watch_devices(servers, devices, chosen.library, chosen.simulation),
        servers=servers,
    )  # fmt: skip
    return Node(leases, doors(plan, leases, devices, filter_app(leases, api, policy, leases)))
