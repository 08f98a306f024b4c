"""Each lease's network on a real engine: who reaches whom, and what becomes of the gates."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import docker
import pytest
from docker.models.containers import Container
from hypothesis import given
from hypothesis import strategies as st

from dockerworld import networks_of
from engineproxy import EngineProxy
from gpuslice.containers import LABEL_LEASE, LABEL_NODE, network_name
from gpuslice.errors import Refused
from gpuslice.node.docker.api import DockerApi, EngineDown
from gpuslice.node.docker.networks import Gate, Networks, free_subnet, parse_fib_trie
from gpuslice.settings import DockerSettings

on_engine = pytest.mark.docker
T = TypeVar("T")
Lease = Callable[[], str]


# --------------------------------------------------------------------------------- pure functions


def nets(*texts: str) -> list[IPv4Network]:
    return [IPv4Network(text) for text in texts]


POOL = IPv4Network("10.0.1.0/24")
#: Around the pool, so that many lie in it, over its ends, or beside it.
near_pool = st.builds(
    lambda start, prefix: IPv4Network((start, prefix), strict=False),
    st.integers(int(POOL.network_address) - 64, int(POOL.broadcast_address) + 64),
    st.integers(24, 32),
)


@given(used=st.lists(near_pool, max_size=40), after=st.integers(0, 300))
def test_the_next_free_subnet_is_found_if_there_is_one(used: list[IPv4Network], after: int) -> None:
    free = [net for net in POOL.subnets(new_prefix=29) if not any(net.overlaps(u) for u in used)]
    later = [net for net in free if int(net.network_address) >= int(POOL.network_address) + after]
    expected = next(iter(later or free), None)
    assert free_subnet(POOL, used, after=after) == expected


FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 4
     |-- 0.0.0.0
        /0 universe UNICAST
        /1 universe UNICAST
     +-- 10.0.0.0/8 2 0 2
        |-- 10.0.0.0
           /8 universe UNICAST
        |-- 10.213.7.0
           /24 link UNICAST
           /29 universe BLACKHOLE
     |-- 128.0.0.0
        /1 universe UNICAST
Local:
  +-- 0.0.0.0/0 3 0 4
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.2
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
Id 200:
  +-- 198.51.100.0/24 2 0 2
     |-- 198.51.100.0
        /24 universe UNREACHABLE
"""


def test_the_hosts_routes_and_addresses_are_read() -> None:
    assert parse_fib_trie(FIB_TRIE) == set(
        nets(
            "10.0.0.0/8", "10.213.7.0/24", "10.213.7.0/29", "192.0.2.2/32", "198.51.100.0/24"
        )
    )  # fmt: skip


def test_a_gate_has_an_alias_of_its_own_or_its_name() -> None:
    assert Gate.parse("jupyter-hub-1:hub") == Gate("jupyter-hub-1", "hub")
    assert Gate.parse("hub") == Gate("hub", "hub")


# ------------------------------------------------------------------------------------- the world

_ASK = """
import concurrent.futures as futures, json, socket, sys

def answers(target):
    try:
        with socket.create_connection(target, 3) as there:
            there.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            answer = b""
            while piece := there.recv(4096):
                answer += piece
            return answer.endswith(b"{}")
    except OSError:
        return False

with futures.ThreadPoolExecutor(20) as pool:
    print(json.dumps(list(pool.map(answers, map(tuple, json.loads(sys.argv[1]))))))
"""
#: A question for an address, as the engine's own name server gets it; the answer's last 4 bytes.
_RESOLVE = """
import socket, struct, sys
name = b"".join(bytes([len(p)]) + p for p in sys.argv[1].encode().split(b"."))
there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
there.settimeout(20)
there.sendto(struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + name + bytes(5)[:1] + b"\\0\\1\\0\\1",
             ("127.0.0.11", 53))
answer = there.recv(4096)
print(socket.inet_ntoa(answer[-4:]) if struct.unpack(">H", answer[6:8])[0] else "")
"""


class World:
    """Containers and networks of one test, and what can be reached from inside them."""

    def __init__(self, client: docker.DockerClient, image: str, node_id: str) -> None:
        self.client, self.image, self.node_id = client, image, node_id

    def run(self, name: str, network: str, **options: Any) -> Container:
        """A container that answers HTTP on port 8888; as good as a notebook, a hub, a database."""
        return self.client.containers.run(
            self.image, name=f"{self.node_id}-{name}", network=network, detach=True,
            labels={LABEL_NODE: self.node_id}, **options,
        )  # fmt: skip

    def network(self, name: str, subnet: str | None = None) -> str:
        """A network as somebody else makes it, for instance compose."""
        pools = [docker.types.IPAMPool(subnet=subnet)] if subnet else []
        self.client.networks.create(
            f"{name}_{self.node_id}", labels={LABEL_NODE: self.node_id},
            ipam=docker.types.IPAMConfig(pool_configs=pools),
        )  # fmt: skip
        return f"{name}_{self.node_id}"

    def reach(self, source: Container, *targets: tuple[str, int]) -> list[bool]:
        """Which of these answer, asked from inside ``source``."""
        found: list[bool] = json.loads(self._inside(source, _ASK, json.dumps(targets)))
        return found

    def resolve(self, source: Container, name: str) -> str:
        """The address of a name for who is inside ``source``; empty when it has none."""
        return self._inside(source, _RESOLVE, name).strip()

    def default_route(self, source: Container) -> str | None:
        """The gateway of the container's default route."""
        for line in Path(f"/proc/{pid(source)}/net/route").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] == "00000000":
                return socket.inet_ntoa(bytes.fromhex(fields[2])[::-1])
        return None

    def _inside(self, source: Container, program: str, argument: str) -> str:
        command = ["nsenter", "-t", str(pid(source)), "-n", sys.executable, "-c", program, argument]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def pid(container: Container) -> int:
    container.reload()
    return int(container.attrs["State"]["Pid"])


def address(container: Container, network: str) -> str:
    container.reload()
    return str(container.attrs["NetworkSettings"]["Networks"][network]["IPAddress"])


def gateway(client: docker.DockerClient, network: str) -> str:
    (config,) = client.networks.get(network).attrs["IPAM"]["Config"]
    return str(IPv4Network(config["Subnet"])[1])


@pytest.fixture
def world(client: docker.DockerClient, tiny: str, node_id: str) -> World:
    return World(client, tiny, node_id)


Made = Callable[..., Networks]


@pytest.fixture
def networks(policy: DockerSettings, node_id: str) -> Made:
    """Makes what is tested, with some settings changed."""

    def make(**changes: Any) -> Networks:
        changed = policy.model_copy(update=changes)
        return Networks(changed, DockerApi(changed.socket, timeout_s=30), node_id)

    return make


def call(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def gathered(*work: Coroutine[Any, Any, T]) -> list[T]:
    async def all_of_it() -> list[T]:
        return await asyncio.gather(*work)

    return asyncio.run(all_of_it())


# ----------------------------------------------------------------------------- made and removed


@on_engine
def test_one_network_per_lease_however_often_it_is_asked_for(
    world: World, networks: Made, new_lease: Lease, policy: DockerSettings
) -> None:
    made, first, second = networks(), new_lease(), new_lease()
    asked = [first, second] * 4
    assert gathered(*map(made.ensure, asked)) == [network_name(lease) for lease in asked]
    found = {net.name: net.attrs for net in networks_of(world.client, world.node_id)}
    assert set(found) == {network_name(first), network_name(second)}
    subnets = []
    for lease in (first, second):
        attrs = found[network_name(lease)]
        assert attrs["Labels"] == {LABEL_LEASE: lease, LABEL_NODE: world.node_id}
        assert attrs["Driver"] == "bridge"
        assert not attrs["EnableIPv6"]
        assert re.fullmatch(r"gs-[0-9a-f]{12}", attrs["Options"]["com.docker.network.bridge.name"])
        (config,) = attrs["IPAM"]["Config"]
        subnets.append(IPv4Network(config["Subnet"]))
    assert not subnets[0].overlaps(subnets[1])
    for subnet in subnets:
        assert subnet.prefixlen == 29
        assert subnet.subnet_of(IPv4Network(policy.network_pool))
    assert call(made.present()) == {first, second}
    # Another node on the same engine does not take them for its own.
    other = Networks(policy, DockerApi(policy.socket), f"{world.node_id}-other")
    assert call(other.present()) == set()
    for _ in range(2):
        call(made.remove(first))
        assert call(made.present()) == {second}


@on_engine
def test_a_subnet_is_not_given_out_again_at_once(
    world: World, networks: Made, new_lease: Lease
) -> None:
    made, leases = networks(), [new_lease() for _ in range(4)]
    subnets = set()
    for lease in leases:
        name = call(made.ensure(lease))
        subnets.add(world.client.networks.get(name).attrs["IPAM"]["Config"][0]["Subnet"])
        call(made.remove(lease))
    assert len(subnets) == len(leases)


@on_engine
def test_someone_elses_network_under_the_name_is_left_alone(
    world: World, networks: Made, new_lease: Lease
) -> None:
    lease = new_lease()
    world.client.networks.create(network_name(lease), labels={LABEL_NODE: world.node_id})
    with pytest.raises(Refused, match="is not ours"):
        call(networks().ensure(lease))
    assert world.client.networks.list(names=[network_name(lease)])


@on_engine
def test_removal_takes_out_whoever_is_in_it(world: World, networks: Made, new_lease: Lease) -> None:
    made, lease = networks(), new_lease()
    name = call(made.ensure(lease))
    notebook, other = world.run("notebook", name), world.run("other", name)
    call(made.remove(lease))
    assert call(made.present()) == set()
    for container in (notebook, other):
        container.reload()
        assert container.status == "running"


# ----------------------------------------------------------------------------------- addresses


@on_engine
def test_a_full_pool_is_refused_in_words(
    world: World, networks: Made, new_lease: Lease, policy: DockerSettings
) -> None:
    pool = IPv4Network(policy.network_pool)
    lower, upper = (str(half) for half in pool.subnets())
    world.network("a", lower)
    made = networks()
    name = call(made.ensure(new_lease()))
    (config,) = world.client.networks.get(name).attrs["IPAM"]["Config"]
    assert IPv4Network(config["Subnet"]).subnet_of(IPv4Network(upper))
    (full,) = world.client.networks.list(names=[name])
    full.remove()
    world.network("b", upper)
    with pytest.raises(Refused, match=f"No addresses are left in docker.network_pool {pool}") as no:
        call(made.ensure(new_lease()))
    assert no.value.status == 503
    assert lower in str(no.value)


@on_engine
def test_routes_of_the_host_are_left_alone(
    networks: Made, new_lease: Lease, policy: DockerSettings, tmp_path: Path
) -> None:
    table = tmp_path / "proc/1/net/fib_trie"
    table.parent.mkdir(parents=True)
    pool = IPv4Network(policy.network_pool)
    table.write_text(f"Main:\n  |-- {pool.network_address}\n     /{pool.prefixlen} link UNICAST\n")
    with pytest.raises(Refused, match="No addresses are left"):
        call(networks(host_root=str(tmp_path)).ensure(new_lease()))
    table.unlink()
    with pytest.raises(Refused, match="cannot read the host's routes") as no:
        call(networks(host_root=str(tmp_path)).ensure(new_lease()))
    assert no.value.status == 503


@on_engine
def test_who_takes_the_subnet_between_look_and_call_keeps_it(
    world: World,
    networks: Made,
    new_lease: Lease,
    policy: DockerSettings,
    proxy: EngineProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("secrets.randbelow", lambda _: 0)
    made, lease = networks(), new_lease()
    lower = str(next(IPv4Network(policy.network_pool).subnets()))

    async def both() -> str:
        seen = proxy.hang("POST", "^/networks/create", times=1)
        asked = asyncio.create_task(made.ensure(lease))
        await asyncio.to_thread(seen.wait_hit)
        await asyncio.to_thread(world.network, "quick", lower)
        seen.release()
        return await asked

    (config,) = world.client.networks.get(call(both())).attrs["IPAM"]["Config"]
    assert not IPv4Network(config["Subnet"]).overlaps(IPv4Network(lower))
    # Refused once, and not again: the next try is beside what was taken.
    assert proxy.count("POST", "^/networks/create") == 2


@on_engine
def test_an_engine_that_fails_says_nothing(
    networks: Made, new_lease: Lease, proxy: EngineProxy
) -> None:
    made, lease = networks(), new_lease()
    call(made.ensure(lease))
    proxy.answer("", "")
    for ask in (made.ensure(lease), made.remove(lease), made.present(), made.connect_gates()):
        with pytest.raises(EngineDown):
            call(ask)
    proxy.clear()
    assert call(made.present()) == {lease}


# ------------------------------------------------------------------------------ who reaches whom


@on_engine
@pytest.mark.parametrize("internet", [True, False])
def test_a_notebook_reaches_the_gates_and_nobody_else(
    world: World, networks: Made, new_lease: Lease, internet: bool
) -> None:
    control = world.network("gpuslice")
    hub, database = world.run("hub", control), world.run("database", control)
    made = networks(gates=(f"{hub.name}:hub",), internet=internet)
    one, two = (call(made.ensure(new_lease())) for _ in range(2))
    mine, theirs = world.run("mine", one), world.run("theirs", two)

    def at(container: Container, network: str) -> tuple[str, int]:
        return address(container, network), 8888

    # The hub is `hub` for the notebook, with its own address in that network.
    assert world.resolve(mine, "hub") == address(hub, one)
    assert world.resolve(theirs, "hub") == address(hub, two)
    assert world.resolve(hub, mine.name) == address(mine, one)
    assert world.reach(mine, at(hub, one), at(mine, one)) == [True, True]
    assert world.reach(hub, at(mine, one), at(theirs, two), at(database, control)) == [True] * 3
    others = [at(theirs, two), at(hub, two), at(hub, control), at(database, control)]
    assert world.reach(mine, *others) == [False] * 4
    assert world.reach(theirs, at(mine, one), at(database, control)) == [False] * 2
    for name in (theirs.name, database.name):
        assert world.resolve(mine, name) == ""
    assert (world.default_route(mine) is not None) == internet
    assert world.default_route(hub) == gateway(world.client, control)


@on_engine
def test_without_internet_the_host_itself_is_out_of_reach(
    world: World, networks: Made, new_lease: Lease
) -> None:
    hub = world.run("hub", world.network("gpuslice"))
    closed = networks(gates=(hub.name,), internet=False)
    open_to_all = networks(gates=(hub.name,))
    shut, wide = (call(made.ensure(new_lease())) for made in (closed, open_to_all))
    inside, outside = world.run("inside", shut), world.run("outside", wide)
    with listening("0.0.0.0") as port:
        # What the machine offers to everybody can be asked from a notebook with internet, so the
        # question itself is a good one.
        machine = gateway(world.client, wide)
        assert world.reach(outside, (machine, port)) == [True]
        anywhere = [(machine, port), (gateway(world.client, shut), port)]
        assert world.reach(inside, *anywhere) == [False] * 2


@contextmanager
def listening(host: str) -> Iterator[int]:
    """A server of this machine, as ``tiny`` is one; the port it has."""
    program = (
        "import http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(b'{}')\n"
        f"s = h.HTTPServer(({host!r}, 0), H); print(s.server_port, flush=True); s.serve_forever()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
        finally:
            server.kill()


# -------------------------------------------------------------------------------------- the gates


@on_engine
def test_a_gate_that_is_missing_is_named_and_nothing_is_made(
    networks: Made, new_lease: Lease, node_id: str
) -> None:
    made = networks(gates=(f"{node_id}-hub:hub",))
    with pytest.raises(Refused, match=f"{node_id}-hub") as no:
        call(made.ensure(new_lease()))
    assert (no.value.status, no.value.refusal.reason) == (503, "gate-missing")
    assert call(made.present()) == set()


@on_engine
def test_a_gate_made_anew_is_connected_again(
    world: World, networks: Made, new_lease: Lease, proxy: EngineProxy, caplog: Any
) -> None:
    control = world.network("gpuslice")
    hub, web = world.run("hub", control), world.run("web", control)
    made = networks(gates=(f"{hub.name}:hub", f"{web.name}:proxy"))
    names = gathered(*(made.ensure(new_lease()) for _ in range(3)))
    notebooks = [world.run(f"notebook{i}", name) for i, name in enumerate(names)]
    hub.remove(force=True)
    for _ in range(3):
        call(made.connect_gates())
    assert [
        record.getMessage() for record in caplog.records if hub.name in record.getMessage()
    ] == [f"the container '{hub.name}' of docker.gates does not exist"]
    hub = world.run("hub", control)
    call(made.connect_gates())
    for name, notebook in zip(names, notebooks, strict=True):
        assert world.resolve(notebook, "hub") == address(hub, name)
        assert world.reach(notebook, (address(hub, name), 8888)) == [True]
        assert world.resolve(notebook, "proxy") == address(web, name)
    # With nothing to do it costs one look at the networks and one at each gate.
    before = len(proxy.calls)
    call(made.connect_gates())
    assert len(proxy.calls) - before == 3


@on_engine
def test_a_stopped_gate_can_start_again_whatever_happened_to_the_networks(
    world: World, networks: Made, new_lease: Lease
) -> None:
    hub = world.run("hub", world.network("gpuslice"))
    made = networks(gates=(hub.name,))
    kept, removed, pruned = leases = [new_lease() for _ in range(3)]
    gathered(*map(made.ensure, leases))
    hub.stop(timeout=0)
    call(made.remove(removed))
    hub.start()
    hub.stop(timeout=0)
    world.client.networks.get(network_name(pruned)).remove()  # by hand
    # New ones may come while it is down, and wait for it.
    late = new_lease()
    call(made.ensure(late))
    call(made.connect_gates())
    hub.start()
    hub.reload()
    connected = set(hub.attrs["NetworkSettings"]["Networks"])
    assert {network_name(kept), network_name(late)} <= connected
    assert not {network_name(removed), network_name(pruned)} & connected


@on_engine
def test_everything_at_once_leaves_what_should_be_there(
    world: World, networks: Made, new_lease: Lease
) -> None:
    hub = world.run("hub", world.network("gpuslice"))
    made = networks(gates=(hub.name,))
    kept, ended = ([new_lease() for _ in range(4)] for _ in range(2))
    gathered(*map(made.ensure, [*kept[:2], *ended]))

    async def all_of_it() -> None:
        await asyncio.gather(
            *map(made.remove, ended),
            *(made.connect_gates() for _ in range(3)),
            *map(made.ensure, kept),
            *map(made.remove, ended),
        )

    call(all_of_it())
    assert call(made.present()) == set(kept)
    hub.restart(timeout=0)
    hub.reload()
    connected = set(hub.attrs["NetworkSettings"]["Networks"])
    assert connected == {f"gpuslice_{world.node_id}", *map(network_name, kept)}


@on_engine
def test_many_leases_and_no_connection_of_the_gate_breaks(
    world: World, networks: Made, new_lease: Lease
) -> None:
    """40 networks come and go; the engine's own address pools would end after some 30."""
    # As compose names it: before a network that begins with "gpuslice-" in the order of names it
    # is not.
    front = world.network("gpuslice")
    hub = world.run("hub", front, ports={"8888/tcp": ("127.0.0.1", None)})
    elsewhere = gateway(world.client, world.network("elsewhere"))
    route = world.default_route(hub)
    pool = f"10.{128 + uuid.uuid4().int % 64}.{2 * (uuid.uuid4().int % 128)}.0/23"
    made = networks(gates=(f"{hub.name}:hub",), network_pool=pool)
    leases = [new_lease() for _ in range(40)]
    with (
        socket.create_connection(("127.0.0.1", published(hub))) as incoming,
        outgoing(hub, elsewhere) as still_there,
    ):
        names = gathered(*map(made.ensure, leases))
        assert len(networks_of(world.client, world.node_id)) == 42
        assert world.default_route(hub) == route
        last = world.run("last", names[-1])
        assert world.resolve(last, "hub") == address(hub, names[-1])
        assert world.reach(hub, (address(last, names[-1]), 8888)) == [True]
        still_there()
        gathered(*map(made.remove, leases))
        assert call(made.present()) == set()
        assert world.default_route(hub) == route
        still_there()
        incoming.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert incoming.recv(4096).startswith(b"HTTP/1.1 200")


def published(container: Container) -> int:
    """Where the container's port 8888 is on this machine's loopback."""
    container.reload()
    (binding,) = container.attrs["NetworkSettings"]["Ports"]["8888/tcp"]
    return int(binding["HostPort"])


@contextmanager
def outgoing(source: Container, host: str) -> Iterator[Callable[[], None]]:
    """A connection from inside a container to elsewhere; what it gives checks that it lives."""
    program = (
        "import socket, sys\n"
        "there = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "while piece := there.recv(100): there.sendall(piece)\n"
    )
    with socket.create_server((host, 0)) as listener:
        listener.settimeout(30)
        port = str(listener.getsockname()[1])
        command = ["nsenter", "-t", str(pid(source)), "-n", sys.executable, "-c", program]
        with subprocess.Popen([*command, host, port]) as process:
            accepted, _ = listener.accept()
            accepted.settimeout(30)

            def still_there() -> None:
                accepted.sendall(b"?")
                assert accepted.recv(1) == b"?"

            try:
                yield still_there
            finally:
                accepted.close()
                process.kill()
