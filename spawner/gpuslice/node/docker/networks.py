"""One network of its own for every lease: the notebook, the gates to hub and proxy, nobody else.

The engine's default address pools end after some 30 networks, so each gets an explicit /29 out of
``docker.network_pool``. What the engine would do to a gate is taken care of here: a stopped
container that is still configured for a network that is gone cannot start again, and a container
sends what goes elsewhere through the first of its networks in the order of their names (which is
why ours have a name that comes last).
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from weakref import WeakValueDictionary

from gpuslice import containers
from gpuslice.errors import Refused
from gpuslice.node.docker.api import DockerApi, EngineSaysNo, Json
from gpuslice.settings import DockerSettings

#: Eight addresses: the network's, the bridge's, the notebook's, four gates', the broadcast.
PREFIX = 29
#: A route as wide as these says where everything goes, not that the addresses are in use.
_WIDE_PREFIX = 8
#: Others may take addresses between our look and our call, or connect while we disconnect.
_TRIES = 8

_LOG = logging.getLogger(__name__)
_LEAF = re.compile(r"\|-- ([0-9.]+)")
_ROUTE = re.compile(r"/([0-9]+) \S+ (UNICAST|LOCAL|BLACKHOLE|UNREACHABLE|PROHIBIT|THROW)")


@dataclass(frozen=True, slots=True)
class Gate:
    """A container that is connected to every lease's network, and its name there."""

    container: str
    alias: str

    @classmethod
    def parse(cls, entry: str) -> Gate:
        """``container`` or ``container:alias``."""
        container, _, alias = entry.partition(":")
        return cls(container, alias or container)


class Networks:
    """The leases' networks on this node's engine.

    Raises Refused, and what :class:`DockerApi` raises: then nothing is known.
    """

    def __init__(self, policy: DockerSettings, api: DockerApi, node_id: str) -> None:
        self._policy = policy
        self._api = api
        self._node_id = node_id
        self._pool = IPv4Network(policy.network_pool)
        self._gates = [Gate.parse(entry) for entry in policy.gates]
        #: Subnets that a call of this process is about to use.
        self._reserved: set[IPv4Network] = set()
        #: The search goes on where the last one ended, see :func:`free_subnet`.
        self._after = secrets.randbelow(self._pool.num_addresses)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._missing: set[str] = set()

    async def ensure(self, lease_id: str) -> str:
        """The name of the lease's network, which is there now with every gate in it."""
        name = containers.network_name(lease_id)
        gates = [(gate, await self._gate_id(gate)) for gate in self._gates]
        async with self._lock(lease_id):
            found = await self._api.network(name) or await self._create(name, lease_id)
            labels = found.get("Labels") or {}
            if (labels.get(containers.LABEL_LEASE), labels.get(containers.LABEL_NODE)) != (
                lease_id,
                self._node_id,
            ):
                raise Refused("network-taken", f"A network {name} is there and is not ours.")
            for gate, container in gates:
                await self._connect(name, container, gate)
        return name

    async def remove(self, lease_id: str) -> None:
        """Takes everything out of the lease's network and deletes it. Idempotent."""
        name, reason = containers.network_name(lease_id), ""
        async with self._lock(lease_id):
            for _ in range(_TRIES):
                for gate in self._gates:
                    inspected = await self._api.container(gate.container)
                    if inspected is not None and name in _networks_of(inspected):
                        await self._disconnect(name, str(inspected["Id"]))
                network = await self._api.network(name)
                if network is None:
                    return
                for container in network.get("Containers") or {}:
                    await self._disconnect(name, container)
                try:
                    await self._api.remove_network(name)
                except EngineSaysNo as no:
                    # Something came in meanwhile: once more.
                    reason = no.message
                else:
                    return
        raise Refused(
            "network-in-use", f"The network {name} could not be removed: {reason}", status=503
        )

    async def connect_gates(self) -> None:
        """Puts gates that were made anew back into every network. Cheap when all are there.

        A gate also leaves networks of ours that are gone: with them it could not start again.
        What one gate cannot be connected to is raised when everything else is done.
        """
        refusals: list[Refused] = []
        present = {containers.network_name(lease): lease for lease in await self.present()}
        for gate in self._gates:
            inspected = await self._api.container(gate.container)
            self._note(gate, there=inspected is not None)
            if inspected is None:
                continue
            connected, container = _networks_of(inspected), str(inspected["Id"])
            for name, lease_id in present.items():
                lock = self._lock(lease_id)
                if name in connected or lock.locked():
                    continue  # locked: it is being made or removed just now
                async with lock:
                    try:
                        if await self._api.network(name) is not None:
                            await self._connect(name, container, gate)
                    except Refused as refused:
                        refusals.append(refused)
            for name in connected - set(present):
                if _is_ours(name) and await self._api.network(name) is None:
                    await self._disconnect(name, container)
        if refusals:
            raise refusals[0]

    async def present(self) -> set[str]:
        """The leases that have a network on this node."""
        found = await self._api.networks(f"{containers.LABEL_NODE}={self._node_id}")
        return {
            lease
            for network in found
            if (lease := (network.get("Labels") or {}).get(containers.LABEL_LEASE))
        }

    # --- inside -----------------------------------------------------------------------------

    def _lock(self, lease_id: str) -> asyncio.Lock:
        lock = self._locks.get(lease_id)
        if lock is None:
            lock = self._locks[lease_id] = asyncio.Lock()
        return lock

    async def _gate_id(self, gate: Gate) -> str:
        inspected = await self._api.container(gate.container)
        if inspected is None:
            raise Refused(
                "gate-missing",
                f"The container {gate.container!r} of docker.gates does not exist, so nobody "
                "would reach the notebook. Start it, or correct docker.gates.",
                status=503,
                retry_after_s=10,
            )
        return str(inspected["Id"])

    async def _create(self, name: str, lease_id: str) -> Json:
        taken: set[IPv4Network] = set()
        for _ in range(_TRIES):
            used = {*taken, *self._reserved, *await self._in_use()}
            subnet = free_subnet(self._pool, used, after=self._after)
            if subnet is None:
                raise self._full(used)
            self._after = int(subnet.broadcast_address) + 1 - int(self._pool.network_address)
            self._reserved.add(subnet)
            try:
                await self._api.create_network(self._body(name, lease_id, subnet))
            except EngineSaysNo as no:
                if no.status == 409:
                    break  # the name is taken: what is there now is looked at below
                if "overlap" not in no.message:
                    text = f"The engine refused a network: {no.message}"
                    raise Refused("network-refused", text) from no
                taken.add(subnet)
            else:
                break
            finally:
                self._reserved.discard(subnet)
        else:
            raise Refused(
                "network-pool-taken",
                f"Others take addresses out of docker.network_pool {self._pool} all the time; "
                "give the leases' networks a pool of their own.",
                status=503,
            )
        found = await self._api.network(name)
        if found is None:
            raise Refused("network-gone", f"The network {name} was removed at once.", status=503)
        return found

    def _body(self, name: str, lease_id: str, subnet: IPv4Network) -> Json:
        # A name that firewall rules of the host can be written for: gs-+
        options = {"com.docker.network.bridge.name": f"gs-{lease_id[-12:]}"}
        if self._gates and not self._policy.internet:
            # The host need not be in there at all: the gates reach the notebook without it.
            options["com.docker.network.bridge.inhibit_ipv4"] = "true"
        return {
            "Name": name,
            "Driver": "bridge",
            "Internal": not self._policy.internet,
            "EnableIPv6": False,
            "IPAM": {"Driver": "default", "Config": [{"Subnet": str(subnet)}]},
            "Options": options,
            "Labels": {
                containers.LABEL_LEASE: lease_id,
                containers.LABEL_NODE: self._node_id,
            },
        }

    async def _in_use(self) -> set[IPv4Network]:
        """What the engine's networks and the host's routes and addresses take."""
        subnets: set[IPv4Network] = set()
        for network in await self._api.networks():
            for config in (network.get("IPAM") or {}).get("Config") or ():
                subnet = ip_network(config.get("Subnet") or "0.0.0.0/32", strict=False)
                if isinstance(subnet, IPv4Network):
                    subnets.add(subnet)
        return subnets | host_networks(Path(self._policy.host_root))

    def _full(self, used: Iterable[IPv4Network]) -> Refused:
        within = sorted(net for net in used if net.overlaps(self._pool))
        shown = ", ".join(str(net) for net in within[:3])
        return Refused(
            "network-pool-full",
            f"No addresses are left in docker.network_pool {self._pool}: {len(within)} networks "
            f"and routes of this machine lie in it ({shown}, …). Choose another pool, or a "
            "larger one.",
            status=503,
        )

    async def _connect(self, network: str, container: str, gate: Gate) -> None:
        try:
            await self._api.connect(network, container, [gate.alias])
        except EngineSaysNo as no:
            inspected = await self._api.container(container)
            if inspected is not None and network in _networks_of(inspected):
                return  # it was in there already
            raise Refused(
                "gate-not-connected",
                f"The container {gate.container!r} of docker.gates could not be connected to "
                f"the network {network}: {no.message}",
                status=503,
            ) from no

    async def _disconnect(self, network: str, container: str) -> None:
        try:
            await self._api.disconnect(network, container)
        except EngineSaysNo as no:
            # Gone, or not in there: the removal that follows tells if that was not it.
            _LOG.debug("not disconnected from %s: %s", network, no.message)

    def _note(self, gate: Gate, *, there: bool) -> None:
        """One line in the log when a gate goes, not one every few seconds."""
        if there:
            self._missing.discard(gate.container)
        elif gate.container not in self._missing:
            self._missing.add(gate.container)
            _LOG.warning("the container %r of docker.gates does not exist", gate.container)


# --- pure ---------------------------------------------------------------------------------------


def free_subnet(
    pool: IPv4Network, used: Iterable[IPv4Network], *, prefix: int = PREFIX, after: int = 0
) -> IPv4Network | None:
    """The first free subnet of the pool, from the address number ``after`` on and then around.

    Not simply the first one: for a moment after a lease's end the proxy may still know the address
    of its notebook, which must not be another person's by then.
    """
    size = 1 << (32 - prefix)
    start, end = int(pool.network_address), int(pool.broadcast_address)
    taken = sorted((int(net.network_address), int(net.broadcast_address)) for net in used)
    middle = start + -(-after // size) * size
    for first, last in ((middle, end), (start, min(middle - 1, end))):
        candidate = first
        for low, high in taken:
            if low >= candidate + size:
                break
            if high >= candidate:
                candidate = start + -(-(high + 1 - start) // size) * size
        if candidate <= last:
            return IPv4Network((candidate, prefix))
    return None


def host_networks(root: Path) -> set[IPv4Network]:
    """The host's own addresses and where it has routes to, without the way to everywhere else.

    ``root`` is the host's root folder; the first process there has the host's network.
    """
    path = root / "proc/1/net/fib_trie"
    try:
        return parse_fib_trie(path.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as problem:
        raise Refused(
            "host-routes",
            f"The node cannot read the host's routes ({path}: {problem}), so it cannot tell which "
            "addresses are free.",
            status=503,
        ) from problem


def parse_fib_trie(text: str) -> set[IPv4Network]:
    """All routes of all tables in the kernel's ``fib_trie``, but for very wide ones."""
    found: set[IPv4Network] = set()
    leaf = ""
    for line in text.splitlines():
        if (match := _LEAF.search(line)) is not None:
            leaf = match[1]
        elif leaf and (match := _ROUTE.search(line)) is not None and int(match[1]) >= _WIDE_PREFIX:
            found.add(IPv4Network(f"{leaf}/{match[1]}", strict=False))
    return found


def _networks_of(inspected: Json) -> set[str]:
    """Names of the networks a container is configured for, whether or not it runs."""
    return set((inspected.get("NetworkSettings") or {}).get("Networks") or {})


def _is_ours(name: str) -> bool:
    return name.startswith(containers.network_name(""))
