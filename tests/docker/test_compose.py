"""The compose deployment: parts that have only what they need, users apart, restarts, the end.

`gpuslice up --engine docker` starts it as a new user does, with the images of `make images`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import docker
import pytest

from composeworld import PARTS, Deployment, addresses_of, lease_of, micros, until
from dockerworld import cdi_file
from gpuslice.containers import LABEL_SLICE, network_name
from gpuslice.fleet import slice_types
from gpuslice.settings import load_settings
from gpuslice.wire import Inventory

SETTINGS = Path(__file__).parents[2] / "hub_config" / "docker" / "gpuslice.toml"

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def world(client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    deployment = Deployment(client, tmp_path_factory.mktemp("compose"))
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.remove()


# --- what each part has -----------------------------------------------------------------------


def test_it_says_where_it_is_and_that_the_gpus_are_simulated(world: Deployment) -> None:
    text = world.text()
    for words in (world.url, world.secret("hub", "demo_password"), "SIMULATED", "NVIDIA H100"):
        assert words in text
    for part in PARTS:
        assert f"{part} is ready" in text
    assert world.secret("hub", "admin_password") not in text


def test_secrets_are_in_private_files_and_in_nothing_that_can_be_inspected(
    world: Deployment,
) -> None:
    secrets = {}
    for part in ("hub", "proxy", "service", "node"):
        folder = "/var/lib/gpuslice/secrets"
        for name in world.run_in(part, "ls", folder).split():
            secrets[name] = world.secret(part, name)
            mode = world.run_in(part, "stat", "-c", "%a %U", f"{folder}/{name}").split()
            assert mode == ["600", "root" if part == "node" else "gpuslice"]
    assert len(secrets) >= 9 and "database_password" in secrets
    for part in (*PARTS, "init"):
        inspected = json.dumps(world.container(part).attrs)
        log = world.container(part).logs().decode(errors="replace")
        for name, secret in secrets.items():
            assert secret not in inspected, (part, name)
            assert secret not in log, (part, name)


def test_every_part_but_the_node_is_locked_down(world: Deployment) -> None:
    for part in ("postgres", "proxy", "service", "hub"):
        host = world.container(part).attrs["HostConfig"]
        assert host["ReadonlyRootfs"] is True, part
        assert host["CapDrop"] == ["ALL"] and not host["CapAdd"], part
        assert "no-new-privileges:true" in host["SecurityOpt"], part
        assert host["Privileged"] is False and not host["PidMode"], part
        assert host["Memory"] > 0 and 0 < host["PidsLimit"] <= 512, part
        assert host["LogConfig"] == {
            "Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"},
        }, part  # fmt: skip
        assert host["RestartPolicy"]["Name"] == "unless-stopped", part
        assert world.run_in(part, "id", "-u").strip() == ("999" if part == "postgres" else "10001")
        status = world.run_in(part, "cat", "/proc/1/status")
        assert "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status, part


def test_nobody_but_the_node_has_the_engine_s_socket(world: Deployment) -> None:
    sockets = {
        "hub": {"/run/gpuslice/engine/engine.sock"},
        "service": {"/run/gpuslice/control/control.sock"},
    }
    files = {"hub": {"gpuslice.toml", "jupyterhub_config.py"}, "service": {"gpuslice.toml"}}
    for part in ("postgres", "proxy", "service", "hub", "init"):
        mounts = world.container(part).attrs["Mounts"]
        binds = {Path(mount["Source"]).name for mount in mounts if mount["Type"] == "bind"}
        assert binds == files.get(part, set()), part
        if part != "init":
            found = world.run_in(part, "find", "/run", "-type", "s").split()
            assert set(found) == sockets.get(part, set()), part


def test_only_the_proxy_is_published_and_on_this_machine_only(world: Deployment) -> None:
    for part in PARTS:
        bindings = world.container(part).attrs["HostConfig"]["PortBindings"] or {}
        wanted = [{"HostIp": "127.0.0.1", "HostPort": str(world.port)}]
        assert bindings == ({"8000/tcp": wanted} if part == "proxy" else {}), part


def test_who_shares_a_network(world: Deployment) -> None:
    def networks(part: str) -> set[str]:
        found = world.container(part).attrs["NetworkSettings"]["Networks"]
        return {name.removeprefix(f"{world.project}_") for name in found if "zz-" not in name}

    assert {part: networks(part) for part in PARTS} == {
        "postgres": {"data"},
        "service": {"control", "data"},
        "node": {"control"},
        "proxy": {"control", "front"},
        "hub": {"control", "front"},
    }
    for name in ("control", "data"):
        network = world.client.networks.get(f"{world.project}_{name}")
        assert network.attrs["Internal"] is True


# --- two people --------------------------------------------------------------------------------

_DEVICES = """
import json, pynvml
pynvml.nvmlInit()
handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
found = []
for handle in handles:
    migs = []
    try:
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                migs.append(pynvml.nvmlDeviceGetUUID(
                    pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)))
            except pynvml.NVMLError_NotFound:
                pass
    except pynvml.NVMLError:
        pass
    found += migs or [pynvml.nvmlDeviceGetUUID(handle)]
print(json.dumps(found))
"""


def test_two_users_see_each_only_their_own_slice(world: Deployment) -> None:
    ada, bob = (world.login(world.new_user(name)) for name in ("ada", "bob"))
    whole, cut = world.spawn(ada, "whole"), world.spawn(bob, "1g.10gb")
    for container in (whole, cut):
        lease = world.lease(lease_of(container))
        assert world.python(container, _DEVICES) == [lease["device_uuid"]]
    assert whole.labels[LABEL_SLICE] == "whole" and cut.labels[LABEL_SLICE] == "1g.10gb"
    # Each has the RAM that its slice has of this machine, as a limit.
    ram = derived_ram(world)
    for container in (whole, cut):
        assert container.attrs["HostConfig"]["Memory"] == ram[container.labels[LABEL_SLICE]]
    # Each gets in at their own server, and only there.
    assert world.notebook(ada, "api/status").ok and world.notebook(bob, "api/status").ok
    assert bob.get(f"/user/{ada.user}/api/status").status_code in (403, 404)
    world.end_all(ada, bob)


def derived_ram(world: Deployment) -> dict[str, int]:
    """What a whole machine like this one gives each slice, in bytes."""
    seen = world.run_in(
        "service", "gpuslice", "devices", "--json",
        "--node-socket", "/run/gpuslice/control/control.sock",
    )  # fmt: skip
    types = slice_types(load_settings(SETTINGS), [Inventory.model_validate_json(seen)]).types
    return {kind.name: kind.ram_bytes for kind in types}


#: Tries each (name or address, port) of its arguments for a connection.
_REACH = """
import json, socket, sys
found = {}
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        found[target] = "open"
    except socket.gaierror:
        found[target] = "no such name"
    except OSError as error:
        found[target] = type(error).__name__
print(json.dumps(found))
"""


def test_whom_a_notebook_reaches(world: Deployment) -> None:
    ada, bob = (world.login(world.new_user(name)) for name in ("ada", "bob"))
    mine, theirs = world.spawn(ada, "cpu"), world.spawn(bob, "cpu")
    network = network_name(lease_of(mine))
    addresses = {part: world.addresses(part) for part in PARTS}
    gateway = mine.attrs["NetworkSettings"]["Networks"][network]["Gateway"]

    def reach(*targets: str) -> dict[str, str]:
        return dict(world.python(mine, _REACH, *targets))

    allowed = ["hub:8081", "proxy:8000", "localhost:8888"]
    assert reach(*allowed) == dict.fromkeys(allowed, "open")
    names = [
        "service:8085",
        "postgres:5432",
        "node:8888",
        "proxy-api:8001",
        f"{world.project}-service:8085",
    ]
    assert reach(*names) == dict.fromkeys(names, "no such name")
    # The same by address: nobody has to know a name.
    closed = [
        # The proxy's own interface, also in the network that we share with it.
        *(f"{address}:8001" for address in addresses["proxy"].values()),
        *(f"{address}:8085" for address in addresses["service"].values()),
        *(f"{address}:5432" for address in addresses["postgres"].values()),
        *(f"{address}:8888" for address in addresses_of(theirs).values()),
        # The published port is for browsers of this machine.
        f"{gateway}:{world.port}",
    ]  # fmt: skip

    # More than once only where others make networks meanwhile: for some milliseconds Docker then
    # has no rules between networks (docs/administrators/docker.md). What is open stays open.
    def all_closed() -> bool:
        return "open" not in reach(*closed).values()

    until("nothing else is open", all_closed, patience_s=60)
    # The addresses are those at which others do find them.
    control = addresses["service"][f"{world.project}_control"]
    assert world.ask_from("hub", _REACH, f"{control}:8085") == {f"{control}:8085": "open"}
    data = addresses["postgres"][f"{world.project}_data"]
    assert world.ask_from("service", _REACH, f"{data}:5432") == {f"{data}:5432": "open"}
    api = addresses["proxy"][f"{world.project}_control"]
    assert world.ask_from("hub", _REACH, f"{api}:8001") == {f"{api}:8001": "open"}
    assert world.ask_from("hub", _REACH, f"{data}:5432")[f"{data}:5432"] != "open"
    world.end_all(ada, bob)


# --- restarts ---------------------------------------------------------------------------------


def test_a_hub_that_is_killed_finds_its_servers_again(world: Deployment) -> None:
    ada = world.login(world.new_user("ada"))
    container = world.spawn(ada, "quarter")
    lease = world.lease(lease_of(container))
    assert world.notebook(ada, "api/status").ok
    hub = world.container("hub")
    hub.kill()
    until("the hub has ended", lambda: world.container("hub").status == "exited")
    # The notebook goes on and is reached through the proxy; so is the service.
    assert world.notebook(ada, "api/status").ok
    assert world.python(container, "print(6 * 7)") == 42
    assert world.lease(lease["lease_id"])["state"] == "running"
    hub.start()
    world.wait_healthy("hub")
    until("the server is there again", lambda: (world.server(ada.user) or {}).get("ready"))
    assert world.container_of(ada.user).id == container.id
    assert world.lease(lease["lease_id"])["started_us"] == lease["started_us"]

    # A hub that is made anew (an upgrade) gets back into the server's network by itself.
    world.compose("up", "--detach", "--force-recreate", "--no-deps", "hub")
    world.wait_healthy("hub")
    network = network_name(lease["lease_id"])
    until("the new hub is in its network", lambda: network in world.networks("hub"))
    until("the server is there again", lambda: (world.server(ada.user) or {}).get("ready"))
    assert world.notebook(ada, "api/status").ok
    assert world.container_of(ada.user).id == container.id
    world.end_all(ada)
    assert world.verify() == "The ledger is in order.\n"


def test_a_service_that_is_killed_goes_on_at_once(world: Deployment) -> None:
    """In its next life it has another table of processes, and its last beat is fresh."""
    ada = world.login(world.new_user("ada"))
    container = world.spawn(ada, "quarter")
    before = world.lease(lease_of(container))
    service = world.container("service")
    service.kill()
    until("the service has ended", lambda: world.container("service").status == "exited")
    service.start()
    world.wait_healthy("service")
    after = world.lease(lease_of(container))
    assert (after["state"], after["started_us"]) == ("running", before["started_us"])
    assert after["cost_u"] >= before["cost_u"]
    # It never stood by for a beat to go stale.
    log = service.logs().decode(errors="replace")
    assert log.count('"listening"') == 2 and '"standby"' not in log
    world.end_all(ada)
    assert world.verify() == "The ledger is in order.\n"


def test_a_backup_is_made_and_put_back(world: Deployment, tmp_path: Path) -> None:
    """As docs/administrators/backup.md says, while a server runs."""
    ada = world.login(world.new_user("ada"))
    container = world.spawn(ada, "quarter")
    before = world.lease(lease_of(container))
    os.chown(tmp_path, 10001, 10001)

    def run(*command: str) -> str:
        return world.compose(
            "run", "--rm", "--no-deps", "-v", f"{tmp_path}:/backup", "service", "gpuslice",
            *command, "--state", "/var/lib/gpuslice", "--config", "/etc/gpuslice/gpuslice.toml",
        )  # fmt: skip

    assert "lease" in run("backup", "/backup/ledger")
    assert {path.name for path in tmp_path.iterdir()} == {"ledger", "ledger.manifest.json"}
    world.compose("stop", "service")
    said = run(
        "restore", "/backup/ledger", "--replace", "--reason", "a test",
        "--node-socket", "/run/gpuslice/control/control.sock",
    )  # fmt: skip
    assert "The ledger is as of" in said
    world.compose("start", "service")
    world.wait_healthy("service")
    after = world.lease(lease_of(container))
    assert (after["state"], after["started_us"]) == ("running", before["started_us"])
    # An administrator's command, in the service's container.
    listed = world.run_in(
        "service", "gpuslice", "unaccounted", "list", "--state", "/var/lib/gpuslice",
        "--config", "/etc/gpuslice/gpuslice.toml",
    )  # fmt: skip
    assert listed == "Everything that runs has a lease.\n"
    world.end_all(ada)
    assert world.verify() == "The ledger is in order.\n"


def test_the_end_leaves_nothing_and_the_next_start_finds_what_was_left(
    world: Deployment,
) -> None:
    ada, bob = (world.login(world.new_user(name)) for name in ("ada", "bob"))
    containers = [world.spawn(ada, "half"), world.spawn(bob, "cpu")]
    leases = [lease_of(container) for container in containers]
    started = [container.attrs["State"]["StartedAt"] for container in containers]

    # A second one says where the first is.
    second = subprocess.run(
        world.command(), env=world.environment, capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert world.url in second.stderr and second.stderr.count("\n") == 1

    # Ctrl-C drains, and then nothing is left but volumes.
    ends = world.ends_of(containers)
    assert world.stop() == 0
    finished = ends()
    assert "all leases settled" in world.text()
    assert world.left_over() == []
    assert not [lease for lease in leases if cdi_file(lease).exists()]

    # The same again: the accounts are there, the leases are over, and what user and platform pay
    # together is for the engine's own time.
    world.start()
    for lease_id, start, end in zip(leases, started, finished, strict=True):
        lease = world.lease(lease_id)
        assert lease["state"] == "ended" and not lease["finished_at_unknown"]
        assert (lease["started_us"], lease["finished_us"]) == (micros(start), micros(end))
        owed = Fraction(lease["rate_u_per_hour"] * (micros(end) - micros(start)), 3_600_000_000)
        assert abs(lease["cost_u"] + lease["writeoff_u"] - owed) <= 1
    assert world.lease(leases[0])["cost_u"] > 0
    assert world.verify() == "The ledger is in order.\n"

    # A second Ctrl-C ends the parts at once: the notebook goes on, and the next start finds it.
    ada = world.login(ada.user)
    container = world.spawn(ada, "half")
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        world.signal(number)
    assert world.wait() == 130
    assert "servers go on" in world.text()
    container.reload()
    assert container.status == "running"
    world.start()
    until("the server is there again", lambda: (world.server(ada.user) or {}).get("ready"))
    assert world.container_of(ada.user).id == container.id
    until("its hub is in its network", lambda: world.notebook(ada, "api/status").ok)
    assert world.lease(lease_of(container))["state"] == "running"
    assert world.stop() == 0
    assert world.left_over() == []
