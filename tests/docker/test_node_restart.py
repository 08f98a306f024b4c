"""A node that dies at any moment, a machine that is restarted, and what others leave behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from dockernode import DockerNode, asynchronous, until
from dockerworld import cdi_file, containers_of, networks_of, own_pool
from engineproxy import EngineProxy
from gpuslice import wire
from gpuslice.containers import (
    LABEL_BASE_URL,
    LABEL_LEASE,
    LABEL_NODE,
    container_name,
    network_name,
)
from gpuslice.errors import Refused
from gpuslice.node.docker.reports import parse_time
from gpuslice.nodeclient import NodeClient, NodeRefused, NodeUnavailable
from gpuslice.settings import DockerSettings
from gpuslice.units import MIB
from gpuslice.wire import ServerState
from realnode import SPAWNER, FakeService, cpu_slice

pytestmark = pytest.mark.docker


def engine_times(client: docker.DockerClient, container_id: str) -> tuple[int | None, int | None]:
    state = client.api.inspect_container(container_id)["State"]
    return parse_time(state["StartedAt"]), parse_time(state["FinishedAt"])


# --- the node dies --------------------------------------------------------------------------

#: Every call of the way to a running server that changes something, and the look after the start.
STEPS = [
    ("POST", "/networks/create"),
    ("POST", "/containers/create"),
    ("POST", "/start$"),
    ("GET", r"/containers/[0-9a-f]{64}/json"),
]


@pytest.mark.parametrize("done", [False, True], ids=["lost", "done"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join(step))
@asynchronous
async def test_a_node_that_dies_during_a_start(
    node: DockerNode,
    client: docker.DockerClient,
    proxy: EngineProxy,
    step: tuple[str, str],
    *,
    done: bool,
) -> None:
    """The next one adopts what came about: with its exact start, or to be taken back."""
    piece = await node.prepare()
    lease = piece.lease_id
    held = proxy.hang(*step, after=done, times=1)

    async def way() -> None:
        await node.create(piece)
        await node.leases.start(lease)

    starting = asyncio.create_task(way())
    await asyncio.to_thread(held.wait_hit)

    async def at_the_point() -> bool:
        return held.held

    await until(at_the_point, "the engine has done its part")
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await node.again()
    if not done:
        # What hung is not carried out any more.
        proxy.break_off(step[1])
    server = await node.listed(lease)
    found = containers_of(client, node.node_id)
    if server is not None and server.started_us is not None:
        (container,) = found
        await node.leases.watch_once()
        assert await node.leases.lease_of(container.id) == lease
        started = server.started_us
        assert started == engine_times(client, container.id)[0]
        await node.leases.stop(lease, 10)
        ended = await node.wait(lease, ServerState.EXITED)
        assert (ended.started_us, ended.finished_us) == engine_times(client, container.id)
    elif node.marker(lease) == "started":
        # A second attempt never succeeds, whatever became of the first.
        with pytest.raises(Refused, match="before"):
            await node.leases.start(lease)
    await node.take_back(lease)
    assert node.leftovers(client, lease) == []


@asynchronous
async def test_a_container_whose_id_was_never_heard_is_adopted_and_can_be_started(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy
) -> None:
    piece = await node.prepare()
    held = proxy.hang("POST", "/containers/create", after=True)
    creating = asyncio.create_task(node.create(piece))
    await asyncio.to_thread(held.wait_hit)

    async def made() -> bool:
        return bool(containers_of(client, node.node_id))

    await until(made, "the container")
    creating.cancel()
    await asyncio.gather(creating, return_exceptions=True)
    await node.again()
    server = await node.listed(piece.lease_id)
    assert server is not None
    assert server.state is ServerState.CREATED
    assert await node.leases.lease_of(node.name(piece)) == piece.lease_id
    await node.leases.start(piece.lease_id)
    assert (await node.wait(piece.lease_id, ServerState.RUNNING)).started_us is not None
    await node.take_back(piece.lease_id)


@asynchronous
async def test_a_running_server_outlives_its_node_and_keeps_its_times(
    node: DockerNode, client: docker.DockerClient
) -> None:
    piece = await node.prepare()
    container_id = await node.create(piece)
    await node.leases.start(piece.lease_id)
    before = await node.wait(piece.lease_id, ServerState.RUNNING)
    for _ in range(2):
        await node.again()
        await node.leases.watch_once()
    after = await node.wait(piece.lease_id, ServerState.RUNNING)
    assert (after.started_us, after.url) == (before.started_us, before.url)
    assert after.alive_til_us is not None
    assert before.alive_til_us is not None
    assert after.alive_til_us > before.alive_til_us
    client.api.kill(container_id)
    await node.again()
    ended = await node.wait(piece.lease_id, ServerState.EXITED)
    assert (ended.started_us, ended.finished_us) == engine_times(client, container_id)
    await node.release(piece.lease_id)


@asynchronous
async def test_a_stop_survives_the_node(node: DockerNode, proxy: EngineProxy) -> None:
    """Also one that the engine had not heard of yet."""
    lease = (await node.run("/tiny", "stubborn")).lease_id
    held = proxy.hang("POST", "/stop")
    await node.leases.stop(lease, 600)
    await asyncio.to_thread(held.wait_hit)
    await node.again()
    proxy.break_off("/stop")
    proxy.clear()
    await node.wait(lease, ServerState.RUNNING)
    # Its time is up by now.
    node.clock.boottime_us += 601_000_000

    async def ended() -> bool:
        await node.leases.watch_once()
        server = await node.listed(lease)
        return server is not None and server.state is ServerState.EXITED

    await until(ended, "it is killed")
    await node.release(lease)


@asynchronous
async def test_a_release_that_died_half_way(
    node: DockerNode, client: docker.DockerClient, proxy: EngineProxy
) -> None:
    lease = (await node.run("/tiny", "exit", "0")).lease_id
    await node.wait(lease, ServerState.EXITED)
    held = proxy.hang("DELETE", "/networks/", after=True)
    releasing = asyncio.create_task(node.release(lease))
    await asyncio.to_thread(held.wait_hit)
    releasing.cancel()
    await asyncio.gather(releasing, return_exceptions=True)
    await node.again()
    held.release()
    assert node.store.get(lease) is not None
    # Nobody but the service ends what is still on the disk.
    await node.leases.watch_once()
    assert node.store.get(lease) is not None
    assert (await node.release(lease)).clean
    assert node.leftovers(client, lease) == []


@asynchronous
async def test_a_burial_that_died_half_way(node: DockerNode, client: docker.DockerClient) -> None:
    """The result is written, the folder is still there."""
    lease = (await node.run("/tiny", "exit", "0")).lease_id
    await node.wait(lease, ServerState.EXITED)
    unclean = wire.ReleaseResult(clean=False, reason="as it was judged then")
    (node.store.ended / lease).write_text(unclean.model_dump_json())
    await node.again()
    assert await node.release(lease) == unclean
    assert node.leftovers(client, lease) == []


@asynchronous
async def test_what_is_torn_on_the_disk_is_rebuilt_from_the_engine(
    node: DockerNode, client: docker.DockerClient
) -> None:
    piece = await node.prepare()
    container_id = await node.create(piece)
    await node.leases.start(piece.lease_id)
    lease = node.store.get(piece.lease_id)
    assert lease is not None
    for torn in ("", "{", "[]", '{"name": 7}', '{"unknown": 1}'):
        (lease.path / "life.json").write_text(torn)
        await node.again()
        server = await node.listed(piece.lease_id)
        assert server is not None
        assert (server.state, server.started_us) == (
            ServerState.RUNNING, engine_times(client, container_id)[0]
        )  # fmt: skip
        await node.leases.watch_once()
        assert (lease.read_json("life.json") or {})["container_id"] == container_id
    client.api.kill(container_id)
    ended = await node.wait(piece.lease_id, ServerState.EXITED)
    assert (ended.started_us, ended.finished_us) == engine_times(client, container_id)
    await node.release(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_a_lease_whose_folder_says_nothing_gives_its_device_back_as_unclean(
    node: DockerNode, client: docker.DockerClient
) -> None:
    """Its server is ended: nobody can tell whose it is."""
    lease_id = (await node.run()).lease_id
    lease = node.store.get(lease_id)
    assert lease is not None
    for name in ("life.json", "slice.json"):
        (lease.path / name).write_text("{")
    assert await node.listed(lease_id) is None
    result = await node.release(lease_id)
    assert (result.clean, result.reason) == (False, "which device it had is unreadable")
    assert node.leftovers(client, lease_id) == []


# --- the machine is restarted ---------------------------------------------------------------


@asynchronous
async def test_after_a_restart_of_the_machine_nobody_knows_when_a_server_ended(
    node: DockerNode, client: docker.DockerClient
) -> None:
    """An engine that comes up dates the ends of what it finds dead by its own start."""
    piece = await node.prepare()
    container_id = await node.create(piece)
    await node.leases.start(piece.lease_id)
    before = await node.wait(piece.lease_id, ServerState.RUNNING)
    node.clock.restart_machine()
    await node.again()
    client.api.kill(container_id)
    ended = await node.wait(piece.lease_id, ServerState.EXITED)
    assert (ended.started_us, ended.finished_us) == (before.started_us, None)
    assert ended.boot_id == before.boot_id != node.clock.boot_id
    assert ended.message is not None
    assert "restarted" in ended.message
    # And it stays so, however often it is asked.
    await node.leases.watch_once()
    await node.again()
    assert await node.listed(piece.lease_id) == ended
    await node.release(piece.lease_id)
    assert node.leftovers(client, piece.lease_id) == []


@asynchronous
async def test_an_end_before_the_restart_of_the_machine_is_exact(
    node: DockerNode, client: docker.DockerClient
) -> None:
    piece = await node.prepare()
    container_id = await node.create(piece)
    await node.leases.start(piece.lease_id)
    client.api.stop(container_id)
    node.clock.restart_machine()
    await node.again()
    ended = await node.wait(piece.lease_id, ServerState.EXITED)
    assert (ended.started_us, ended.finished_us) == engine_times(client, container_id)
    await node.release(piece.lease_id)


# --- strangers and leftovers ----------------------------------------------------------------


@asynchronous
async def test_a_container_that_borrows_the_label_of_a_lease_is_not_its_server(
    node: DockerNode, client: docker.DockerClient, tiny: str
) -> None:
    """It is never billed, never adopted, never freed a device by, and goes with the lease."""
    labels = {LABEL_NODE: node.node_id}
    piece = await node.prepare()
    lease = piece.lease_id
    before = client.containers.run(tiny, labels={**labels, LABEL_LEASE: lease}, detach=True)
    assert await node.listed(lease) is None
    container_id = await node.create(piece)
    await node.leases.start(lease)
    after = client.containers.run(tiny, labels={**labels, LABEL_LEASE: lease}, detach=True)
    server = await node.wait(lease, ServerState.RUNNING)
    assert server.started_us == engine_times(client, container_id)[0]
    await node.leases.watch_once()
    for one in (before, after):
        one.reload()
        assert one.status == "running"

    await node.leases.stop(lease, 10)
    ended = await node.wait(lease, ServerState.EXITED)
    assert (ended.started_us, ended.finished_us) == engine_times(client, container_id)
    # They carry the lease's label, so they may hold its device: they go before it is given on.
    assert (await node.release(lease)).clean
    assert node.leftovers(client, lease) == []


@asynchronous
async def test_a_container_with_the_label_of_an_unknown_lease_is_told_of_and_left_alone(
    node: DockerNode, client: docker.DockerClient, tiny: str
) -> None:
    unknown = uuid.uuid4().hex
    labels = {LABEL_NODE: node.node_id, LABEL_LEASE: unknown}
    stranger = client.containers.run(tiny, labels=labels, detach=True)
    # A label is anybody's text: this one would be a folder of the node's.
    nonsense = client.containers.run(
        tiny, labels={**labels, LABEL_LEASE: f"{node.store.ended}"}, detach=True
    )
    elsewhere = client.containers.run(
        tiny, labels={LABEL_NODE: f"{node.node_id}-2", LABEL_LEASE: unknown}, detach=True
    )
    try:
        await node.leases.watch_once()
        listing = await node.leases.listing()
        (server,) = listing.servers
        assert (server.lease_id, server.state) == (unknown, ServerState.RUNNING)
        assert (server.started_us, server.alive_til_us) == (None, None)
        with pytest.raises(Refused, match="still there"):
            await node.release(unknown)
        for one in (stranger, nonsense, elsewhere):
            one.reload()
            assert one.status == "running"

        # Unless the service says so: then it is stopped, and cleared away.
        await node.leases.stop(unknown, 10)
        await node.wait(unknown, ServerState.EXITED)
        result = await node.release(unknown)
        assert (result.clean, result.reason) == (False, "which device it had is unreadable")
        assert [one.id for one in containers_of(client, node.node_id)] == [nonsense.id]
        elsewhere.reload()
        assert elsewhere.status == "running"
    finally:
        elsewhere.remove(force=True)


@asynchronous
async def test_a_node_that_has_lost_its_folder_gives_nothing_back_that_runs(
    node: DockerNode, client: docker.DockerClient
) -> None:
    lease = (await node.run()).lease_id
    await node.leases.close()
    shutil.rmtree(node.folder / "node")
    node.unlock()
    node.open()
    await node.leases.watch_once()
    server = await node.listed(lease)
    assert server is not None
    assert (server.state, server.started_us) == (ServerState.RUNNING, None)
    assert len(networks_of(client, node.node_id)) == 1
    with pytest.raises(Refused, match="still there"):
        await node.release(lease)
    await node.leases.stop(lease, 10)
    await node.wait(lease, ServerState.EXITED)
    assert not (await node.release(lease)).clean
    assert node.leftovers(client, lease) == []


@asynchronous
async def test_leftovers_of_leases_that_are_over_are_cleared_away_and_no_others(
    node: DockerNode,
    client: docker.DockerClient,
    tiny: str,
    tmp_path: Path,
    new_lease: Callable[[], str],
) -> None:
    living, over, elsewhere = await node.run(), await node.prepare(server="2"), new_lease()
    await node.create(over)
    await node.leases.fence(over.lease_id)
    # What a node that died in the middle may have left of it.
    await node.networks.ensure(over.lease_id)
    cdi_file(over.lease_id).write_text("{}")
    client.containers.create(tiny, labels={LABEL_NODE: node.node_id, LABEL_LEASE: over.lease_id})
    # A network without a folder; and things of another node, which has its devices there too.
    await node.networks.ensure(lost := new_lease())
    cdi_file(elsewhere).write_text("{}")
    other = client.networks.create(
        network_name(elsewhere), labels={LABEL_NODE: "another", LABEL_LEASE: elsewhere}
    )
    try:
        await node.again()
        await node.leases.watch_once()
        names = {network.name for network in networks_of(client, node.node_id)}
        assert names == {network_name(living.lease_id)}
        assert network_name(lost) not in names
        assert not cdi_file(over.lease_id).exists()
        assert cdi_file(living.lease_id).exists()
        assert cdi_file(elsewhere).exists()
        assert {one.labels[LABEL_LEASE] for one in containers_of(client, node.node_id)} == {
            living.lease_id
        }
        await node.wait(living.lease_id, ServerState.RUNNING)
        other.reload()
    finally:
        other.remove()
    await node.take_back(living.lease_id)


@asynchronous
async def test_one_thing_that_cannot_be_cleared_away_holds_up_nothing_else(
    node: DockerNode, proxy: EngineProxy, new_lease: Callable[[], str],
    client: docker.DockerClient,
) -> None:  # fmt: skip
    piece = await node.prepare()
    container_id = await node.create(piece)
    await node.leases.start(piece.lease_id)
    client.api.kill(container_id)
    await node.wait(piece.lease_id, ServerState.EXITED)
    await node.networks.ensure(new_lease())
    proxy.answer("DELETE", "/networks/")
    with pytest.raises(Refused):
        await node.leases.watch_once()
    lease = node.store.get(piece.lease_id)
    assert lease is not None
    assert (lease.read_json("life.json") or {})["end"] is not None
    proxy.clear()
    await node.leases.watch_once()
    await node.release(piece.lease_id)
    assert node.leftovers(client) == []


# --- a real process -------------------------------------------------------------------------


class Process:
    """``python -m gpuslice.node --engine docker`` as it is run."""

    def __init__(
        self, folder: Path, node_id: str, service_url: str, policy: DockerSettings
    ) -> None:
        self.folder = folder
        self.state = folder / "state"
        (folder / "token").write_text("secret-of-the-node\n")
        self.config = folder / "gpuslice.toml"
        self.config.write_text(
            f'[node]\nid = "{node_id}"\n[docker]\nsocket = "{policy.socket}"\n'
            f'home = "{policy.home}"\nhost_dir = "{policy.host_dir}"\n'
            f'network_pool = "{policy.network_pool}"\n'
            f'[[docker.image]]\nreference = "{policy.image[0].reference}"\n'
        )
        self.service_url = service_url
        self.client = NodeClient(self.state, timeout_s=60)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        with (self.folder / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-P", "-m", "gpuslice.node", "--engine", "docker",
                    "--config", self.config, "--state", self.state, "--simulated",
                    "--service-url", self.service_url, "--token-file", self.folder / "token",
                    *options,
                ],
                env={**os.environ, "PYTHONPATH": str(SPAWNER)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    async def ready(self) -> wire.Listing:
        async def listing() -> wire.Listing | None:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            try:
                return await self.client.listing()
            except NodeUnavailable:
                return None

        return await until(listing, f"the node answers: {self.log()}")

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def log(self) -> str:
        return (self.folder / "node.log").read_text()[-4000:]


@pytest.fixture
def process(
    tmp_path: Path, node_id: str, user: str, tiny: str, service: FakeService
) -> Iterator[Process]:
    folder = tmp_path / "node"
    folder.mkdir()
    policy = DockerSettings(
        socket="/var/run/docker.sock", image=({"reference": tiny},),  # type: ignore[arg-type]
        host_dir=str(folder / "host"), network_pool=own_pool(),
    )  # fmt: skip
    process = Process(folder, node_id, service.url, policy)
    yield process
    process.kill()


def through_the_filter(process: Process) -> docker.APIClient:
    """What the spawner has: docker-py on the node's socket."""
    return docker.APIClient(base_url=f"unix://{process.state}/engine.sock", version="1.44")


@asynchronous
async def test_a_node_process_that_is_killed_between_any_two_steps(
    process: Process,
    client: docker.DockerClient,
    node_id: str,
    user: str,
    tiny: str,
    new_lease: Callable[[], str],
    service: FakeService,
) -> None:
    lease = new_lease()

    async def restart() -> None:
        process.kill()
        process.start()
        await process.ready()

    async def report() -> wire.ServerReport | None:
        return await process.client.server(lease)

    process.start()
    await process.ready()
    inventory = await process.client.inventory()
    assert (inventory.engine, inventory.simulated, inventory.node_id) == ("docker", True, node_id)
    assert inventory.enforcement_ceiling is wire.Enforcement.EXCLUSIVE
    device = next(one for one in inventory.devices if not one.mig_enabled)

    piece = cpu_slice(
        lease, user=user, ram_bytes=64 * MIB, kind=wire.SliceKind.EXCLUSIVE,
        device_uuid=device.uuid, slice_type="gpu", memory_bytes=device.memory_bytes,
    )  # fmt: skip
    await process.client.prepare(piece)
    await restart()
    await process.client.prepare(piece)
    name = container_name(user, "", lease)
    body: dict[str, Any] = {"Image": tiny, "Labels": {LABEL_LEASE: lease, LABEL_BASE_URL: "/"}}
    spawner = through_the_filter(process)
    made = await asyncio.to_thread(spawner.create_container_from_config, body, name)
    await restart()
    created = await report()
    assert created is not None
    assert created.state is ServerState.CREATED
    await asyncio.to_thread(spawner.start, made["Id"])
    await restart()
    running = await report()
    assert running is not None
    assert (running.state, running.started_us) == (
        ServerState.RUNNING, engine_times(client, made["Id"])[0]
    )  # fmt: skip
    assert [said["started_us"] for _, _, said in service.asked] == [running.started_us]

    async def used() -> bool:
        server = await report()
        return server is not None and server.use is not None and bool(server.use.memory_used_bytes)

    await until(used, "its use of the simulated device")
    with pytest.raises(NodeRefused, match="still there"):
        await process.client.release(lease)
    await process.client.stop(lease, 30)
    await restart()

    async def ended() -> bool:
        server = await report()
        return server is not None and server.state is ServerState.EXITED

    await until(ended, "the stop is carried out")
    server = await report()
    assert server is not None
    assert (server.started_us, server.finished_us) == engine_times(client, made["Id"])
    await restart()
    assert await report() == server
    assert (await process.client.release(lease)).clean
    await restart()
    assert (await process.client.release(lease)).clean
    listing = await process.client.listing()
    assert (listing.servers, listing.slices) == ([], [])
    assert containers_of(client, node_id) == []
    assert networks_of(client, node_id) == []
    assert not cdi_file(lease).exists()
    spawner.close()


@asynchronous
async def test_a_node_whose_engine_is_down_comes_up_and_says_so(
    process: Process, tmp_path: Path
) -> None:
    text = process.config.read_text().replace("/var/run/docker.sock", str(tmp_path / "none.sock"))
    process.config.write_text(text)
    process.start()

    async def refused() -> bool:
        assert process.process is not None
        assert process.process.poll() is None, process.log()
        try:
            await process.client.listing()
        except NodeUnavailable as problem:
            return problem.reason == "runtime-unavailable"
        return False

    await until(refused, "runtime-unavailable")
    assert (await process.client.inventory()).devices
    with pytest.raises(NodeUnavailable, match="does not answer"):
        await process.client.prepare(cpu_slice(uuid.uuid4().hex))


@asynchronous
async def test_its_sockets_are_where_and_whose_they_are_wanted(
    process: Process, tmp_path: Path
) -> None:
    control, engine = tmp_path / "c.sock", tmp_path / "e2.sock"
    process.client = NodeClient(control, timeout_s=60)
    process.start(
        "--control-socket", str(control), "--engine-socket", str(engine),
        "--socket-uid", "4711", "--socket-gid", "4712",
    )  # fmt: skip
    await process.ready()
    for path in (control, engine):
        found = path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (4711, 4712, 0o660)
    process.kill()
    process.start("--control-socket", str(control), "--engine-socket", str(engine))
    await process.ready()
    for path in (control, engine):
        found = path.stat()
        assert (found.st_uid, found.st_mode & 0o777) == (os.geteuid(), 0o600)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config", "/no/such/file"], "/no/such/file"),
        (["--demo", "/x"], "--simulated"),
        (["--socket-uid", "root"], "no number"),
    ],
)
def test_what_is_wrong_with_the_options_is_said(
    process: Process, options: list[str], said: str
) -> None:
    process.start(*options)
    assert process.process is not None
    assert process.process.wait(60) != 0
    assert said in process.log()
