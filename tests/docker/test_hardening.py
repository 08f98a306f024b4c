"""What a server's container really is, as the kernel shows it: item by item of the hardening.

The servers are asked for as the hub does it, with docker-py through the filter, and looked at from
the host: nothing in the container has to be believed.
"""

from __future__ import annotations

import io
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, ImageNotFound

from dockernode import DockerNode
from filterworld import Filtered, served_filter
from gpuslice import wire
from gpuslice.containers import network_name
from gpuslice.node.docker.environment import container_environment
from gpuslice.settings import DockerSettings, ImageSettings

pytestmark = pytest.mark.docker

MIB = 1 << 20
RAM = 64 * MIB
NodeOf = Callable[..., DockerNode]


@dataclass
class Server:
    """A running server: as the engine inspects it, and as the kernel has it."""

    shown: dict[str, Any]

    @property
    def pid(self) -> int:
        pid: int = self.shown["State"]["Pid"]
        assert pid > 1
        return pid

    @property
    def host(self) -> dict[str, Any]:
        found: dict[str, Any] = self.shown["HostConfig"]
        return found

    def proc(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def status(self, name: str) -> str:
        found = re.search(rf"^{name}:\s*(.*)$", self.proc("status"), re.MULTILINE)
        assert found is not None
        return found[1]

    def environment(self) -> dict[str, str]:
        entries = self.proc("environ").split("\0")[:-1]
        return dict(entry.split("=", 1) for entry in entries)

    def mounts(self) -> dict[str, Mount]:
        return {mount.at: mount for mount in map(parse_mount, self.proc("mountinfo").splitlines())}

    def cgroup(self, controller: str) -> Path:
        """The folder with the limits of this controller, whatever version of cgroups this is."""
        for line in self.proc("cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                return Path(f"/sys/fs/cgroup/{controllers}") / path.lstrip("/")
        line = next(line for line in self.proc("cgroup").splitlines() if line.startswith("0::"))
        return Path("/sys/fs/cgroup") / line.split(":", 2)[2].lstrip("/")

    def limit(self, controller: str, *names: str) -> str:
        """The content of the first of these files that is there."""
        folder = self.cgroup(controller)
        found = [folder / name for name in names if (folder / name).exists()]
        assert found, f"none of {names} in {folder}"
        return found[0].read_text().strip()


@dataclass(frozen=True)
class Mount:
    """One line of ``mountinfo``: where, from which folder of its file system, and how."""

    at: str
    root: str
    kind: str
    options: frozenset[str]
    #: Of the file system: sizes are here.
    super_options: frozenset[str]


def parse_mount(line: str) -> Mount:
    before, after = line.split(" - ")
    fields, rest = before.split(" "), after.split(" ")
    return Mount(
        fields[4], fields[3], rest[0], frozenset(fields[5].split(",")),
        frozenset(rest[2].split(",")),
    )  # fmt: skip


@contextmanager
def served(node: DockerNode, api_socket: Path) -> Iterator[Filtered]:
    with served_filter(api_socket, node.leases, node.api, node.policy) as filtered:
        try:
            yield filtered
        finally:
            filtered.call(node.leases.close())


def start(
    filtered: Filtered, node: DockerNode, client: docker.DockerClient, **changes: Any
) -> Server:
    """Starts a server as the hub does it; ``changes`` are of the body, or (piece=…) the slice."""
    piece = filtered.call(node.prepare(**changes.pop("piece", {})))
    body = {**node.wanted(piece), "Cmd": ["/tiny", "serve"], **changes}
    with filtered.client() as hub:
        made = hub.create_container_from_config(body, node.name(piece))["Id"]
        hub.start(made)
    return running(client, made)


def running(client: docker.DockerClient, container: str) -> Server:
    """The server as soon as its own program runs: for a moment after the start it is runc."""
    server = Server(client.api.inspect_container(container))
    deadline = time.monotonic() + 60
    while Path(f"/proc/{server.pid}/exe").readlink() != Path("/tiny"):
        assert time.monotonic() < deadline, "the container's program never began"
        time.sleep(0.01)
    return server


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared data"
    folder.mkdir(mode=0o755)
    (folder / "data").write_text("for all")
    return folder


@pytest.fixture
def policy(policy: DockerSettings, shared: Path) -> DockerSettings:
    return policy.model_copy(
        update={"shared": str(shared), "tmp": 8 * MIB, "pids": 77, "home_size": 1 << 30}
    )


@pytest.fixture
def server(node: DockerNode, tmp_path: Path, client: docker.DockerClient) -> Iterator[Server]:
    with served(node, tmp_path / "f.sock") as filtered:
        yield start(filtered, node, client)


# --- rights -------------------------------------------------------------------------------------


def test_no_capability_at_all(server: Server) -> None:
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(server.status(kind), 16) == 0, kind
    assert (server.host["CapDrop"], server.host["CapAdd"]) == (["ALL"], None)
    assert server.host["Privileged"] is False


def test_no_new_privileges_seccomp_and_apparmor(
    server: Server, client: docker.DockerClient
) -> None:
    assert server.status("NoNewPrivs") == "1"
    # 2: filtered.
    assert server.status("Seccomp") == "2"
    assert server.host["SecurityOpt"] == ["no-new-privileges:true"]
    host_has = any("apparmor" in option for option in client.info()["SecurityOptions"])
    assert server.shown["AppArmorProfile"] == ("docker-default" if host_has else "")
    if host_has:
        assert server.proc("attr/current").startswith("docker-default (enforce)")


def test_the_user_is_not_root(server: Server) -> None:
    assert server.status("Uid").split() == ["1000"] * 4
    assert server.status("Gid").split() == ["100"] * 4
    assert server.status("Groups").split() == ["100"]
    assert server.host["GroupAdd"] is None


def test_namespaces_are_its_own(server: Server) -> None:
    for kind in ("mnt", "pid", "ipc", "uts", "net", "cgroup"):
        own, ours = (Path(f"/proc/{pid}/ns/{kind}").readlink() for pid in (server.pid, "self"))
        assert own != ours, kind
    for mode in ("PidMode", "UTSMode", "UsernsMode"):
        assert server.host[mode] == "", mode
    assert (server.host["IpcMode"], server.host["CgroupnsMode"]) == ("private", "private")


# --- limits -------------------------------------------------------------------------------------


def test_memory_and_no_swap(server: Server) -> None:
    assert int(server.limit("memory", "memory.limit_in_bytes", "memory.max")) == RAM
    swap = server.limit("memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
    # The older kind counts both together.
    assert int(swap) == (RAM if (server.cgroup("memory") / "memory.memsw.limit_in_bytes").exists()
                         else 0)  # fmt: skip
    assert server.host["OomKillDisable"] in (False, None)


def test_processors(server: Server) -> None:
    found = server.limit("cpu", "cpu.cfs_quota_us", "cpu.max").split()
    period = found[1] if len(found) > 1 else server.limit("cpu", "cpu.cfs_period_us")
    assert int(found[0]) / int(period) == 0.5


def test_processes_files_and_core_dumps(server: Server) -> None:
    assert int(server.limit("pids", "pids.max")) == 77
    limits = server.proc("limits")
    assert re.search(r"^Max core file size +0 +0 +bytes", limits, re.MULTILINE)
    assert re.search(r"^Max open files +16384 +16384 +files", limits, re.MULTILINE)
    assert server.proc("oom_score_adj").strip() == "500"


# --- files --------------------------------------------------------------------------------------


def test_the_root_file_system_is_read_only(server: Server) -> None:
    root = server.mounts()["/"]
    assert root.kind == "overlay"
    assert "ro" in root.options


def test_folders_in_memory_are_bounded(server: Server) -> None:
    mounts = server.mounts()
    sizes = {"/tmp": 8 * MIB, "/var/tmp": RAM // 2, "/dev/shm": RAM // 2}
    for at, size in sizes.items():
        mount = mounts[at]
        assert mount.kind == "tmpfs", at
        assert {"rw", "nosuid", "nodev"} <= mount.options, at
        assert ("noexec" in mount.options) is (at != "/tmp"), at
        assert f"size={size // 1024}k" in mount.super_options, at


def test_of_the_host_there_is_the_home_and_the_shared_folder(
    server: Server, node: DockerNode, shared: Path
) -> None:
    found = {one["Destination"]: (one["Type"], one["RW"]) for one in server.shown["Mounts"]}
    assert found == {"/home/jovyan": ("bind", True), "/shared": ("bind", False)}
    engines_own = {"/etc/resolv.conf", "/etc/hostname", "/etc/hosts"}
    mounts = server.mounts()
    of_the_host = {
        at for at, mount in mounts.items()
        if mount.kind not in ("overlay", "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup",
                              "cgroup2")
    }  # fmt: skip
    under_proc = {at for at in mounts if at.startswith(("/proc/", "/sys/"))}
    assert of_the_host - under_proc - engines_own <= {"/home/jovyan", "/shared"}
    assert {"/home/jovyan", "/shared"} <= set(mounts)
    assert mounts["/home/jovyan"].root.startswith(node.policy.home)
    assert "rw" in mounts["/home/jovyan"].options
    assert mounts["/shared"].root.endswith(str(shared).replace(" ", r"\040"))
    assert "ro" in mounts["/shared"].options
    assert "docker.sock" not in server.proc("mountinfo")


def test_the_home_belongs_to_the_user_alone(server: Server, node: DockerNode) -> None:
    (home,) = Path(node.policy.home).iterdir()
    found = home.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1000, 100, 0o700)


def test_of_proc_and_sys_what_is_dangerous_is_hidden(server: Server) -> None:
    mounts = server.mounts()
    # Not every kernel has all of these.
    hidden = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware")
    for at in (at for at in hidden if Path(at).exists()):
        assert mounts[at].kind in ("tmpfs", "devtmpfs"), at
    fixed = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus")
    for at in (at for at in fixed if Path(at).exists()):
        assert "ro" in mounts[at].options, at
    assert "/proc/sys" in mounts
    assert "ro" in mounts["/sys"].options


def test_no_device_of_the_host(server: Server) -> None:
    assert server.host["Devices"] is None
    assert not server.host["DeviceCgroupRules"]
    requests = server.host["DeviceRequests"]
    lease = server.shown["Config"]["Labels"]["gpuslice.lease"]
    assert [(one["Driver"], one["DeviceIDs"]) for one in requests] == [
        ("cdi", [f"gpuslice.dev/slice={lease}"])
    ]
    nodes = {node.name for node in Path(f"/proc/{server.pid}/root/dev").iterdir()}
    assert nodes <= {
        "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero", "console",
    }  # fmt: skip
    rules = server.cgroup("devices") / "devices.list"
    if rules.exists():
        assert "a *:* rwm" not in rules.read_text()


# --- network, logs, life ------------------------------------------------------------------------


def test_its_own_network_and_no_port_of_the_host(server: Server) -> None:
    lease = server.shown["Config"]["Labels"]["gpuslice.lease"]
    network = network_name(lease)
    assert server.host["NetworkMode"] == network
    assert set(server.shown["NetworkSettings"]["Networks"]) == {network}
    assert not server.host["PortBindings"]
    assert server.host["PublishAllPorts"] is False
    assert server.shown["NetworkSettings"]["Ports"] == {"8888/tcp": None}
    assert not server.host["ExtraHosts"]
    assert not server.host["Links"]


def test_logs_are_bounded(server: Server) -> None:
    assert server.host["LogConfig"] == {
        "Type": "json-file", "Config": {"max-size": str(10 * MIB), "max-file": "3"},
    }  # fmt: skip


def test_one_life_and_no_removal_by_itself(server: Server) -> None:
    assert server.host["AutoRemove"] is False
    assert server.host["RestartPolicy"]["Name"] == "no"
    assert server.shown["Config"]["StopSignal"] == "SIGTERM"


def test_names_and_labels(server: Server, node: DockerNode) -> None:
    labels = server.shown["Config"]["Labels"]
    lease = labels["gpuslice.lease"]
    ours = {name: text for name, text in labels.items() if name.startswith("gpuslice.")}
    del ours["gpuslice.test.source"]
    assert ours == {
        "gpuslice.lease": lease, "gpuslice.user": node.user, "gpuslice.server": "",
        "gpuslice.slice_type": "cpu", "gpuslice.node": node.node_id,
        "gpuslice.base_url": "/user/ada/",
    }  # fmt: skip
    assert re.fullmatch(rf"/gpuslice-[a-z0-9-]+-{lease[:12]}", server.shown["Name"])


def test_the_environment(server: Server) -> None:
    env = server.environment()
    lease = server.shown["Config"]["Labels"]["gpuslice.lease"]
    assert {name: env[name] for name in env if name not in ("PATH", "HOSTNAME")} == {
        "JUPYTER_RUNTIME_DIR": "/tmp/jupyter-runtime",
        "OMP_NUM_THREADS": "1",
        "JUPYTERHUB_USER": "ada",
        "HOME": "/home/jovyan",
        "GPUSLICE_LEASE": lease,
        "GPUSLICE_SLICE": "cpu",
        "GPUSLICE_HOME_LIMIT": str(1 << 30),
        "CUDA_VISIBLE_DEVICES": "",
        "NVIDIA_VISIBLE_DEVICES": "void",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    }


def test_a_writable_root_where_the_settings_say_so(
    node: DockerNode, tmp_path: Path, client: docker.DockerClient
) -> None:
    node.policy = node.policy.model_copy(update={"read_only": False})
    node.unlock()
    node.open()
    with served(node, tmp_path / "f.sock") as filtered:
        mounts = start(filtered, node, client).mounts()
    assert "rw" in mounts["/"].options
    assert "/var/tmp" not in mounts
    assert mounts["/tmp"].kind == "tmpfs"


# --- an image that wants more -------------------------------------------------------------------

#: What images and users say to get another device, or to switch a cap off.
WIDENING = {
    "NVIDIA_VISIBLE_DEVICES": "all",
    "NVIDIA_DRIVER_CAPABILITIES": "all",
    "NVIDIA_GPU_MEMORY_LIMIT": "0",
    "NVIDIA_DISABLE_REQUIRE": "1",
    "NVIDIA_MIG_CONFIG_DEVICES": "all",
    "DOCKER_RESOURCE_GPU": "all",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
    "CUDA_MPS_PIPE_DIRECTORY": "/tmp/nvidia-mps",
    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "100",
    "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=80G",
    "CUDA_DEVICE_MEMORY_LIMIT": "0",
    "CUDA_DEVICE_SM_LIMIT": "100",
    "CUDA_DISABLE_CONTROL": "true",
    "CUDA_OVERSUBSCRIBE": "true",
    "CUDA_TASK_PRIORITY": "0",
    "GPU_CORE_UTILIZATION_POLICY": "disable",
    "LD_PRELOAD": "/evil.so",
    "LD_AUDIT": "/evil.so",
    "LD_LIBRARY_PATH": "./evil:",
    "GLIBC_TUNABLES": "glibc.malloc.check=1",
    "NVMLSIM_STATE": "/evil",
    "NVMLSIM_VIEW": "host",
    "NVMLSIM_VISIBLE": "all",
    "GPUSLICE_LEASE": "f" * 32,
    "GPUSLICE_HOME_LIMIT": "1",
    "HOME": "/root",
}


@pytest.fixture
def build(client: docker.DockerClient, tiny: str) -> Iterator[Callable[[str], str]]:
    """Builds an image on top of the tiny one; removed afterwards."""
    made: list[str] = []

    def build(lines: str) -> str:
        reference = f"gpuslice-test/widen:{uuid.uuid4().hex[:12]}"
        made.append(reference)
        client.images.build(
            fileobj=io.BytesIO(f"FROM {tiny}\n{lines}\n".encode()), tag=reference, rm=True,
            forcerm=True,
        )  # fmt: skip
        return reference

    yield build
    for reference in made:
        with suppress(ImageNotFound):
            client.images.remove(reference, force=True)


def of_image(node: DockerNode, reference: str) -> None:
    """From now on the node's servers are started from this image."""
    image = (ImageSettings(reference=reference),)
    node.policy = node.policy.model_copy(update={"image": image})
    node.unlock()
    node.open()


def test_neither_image_nor_hub_widens_a_slice(
    node: DockerNode, tmp_path: Path, client: docker.DockerClient, build: Callable[[str], str]
) -> None:
    lines = "\n".join(f"ENV {name}={value}" for name, value in WIDENING.items())
    image = build(
        f"{lines}\nENV KEPT=image\nUSER root\nWORKDIR /root\nSTOPSIGNAL SIGKILL\n"
        "LABEL gpuslice.lease=ffffffffffffffffffffffffffffffff gpuslice.user=bob "
        "gpuslice.node=evil gpuslice.base_url=//evil/ gpuslice.server=x gpuslice.slice_type=x"
    )
    of_image(node, image)
    asked = [f"{name}={value}" for name, value in WIDENING.items()]
    with served(node, tmp_path / "f.sock") as filtered:
        both = start(filtered, node, client, Env=[*asked, "JUPYTERHUB_USER=ada"])
        for server in (both, start(filtered, node, client)):
            env = server.environment()
            lease = server.shown["Config"]["Labels"]["gpuslice.lease"]
            assert env.pop("KEPT") == "image"
            assert {name: env[name] for name in env if name not in ("PATH", "HOSTNAME")} == {
                "JUPYTER_RUNTIME_DIR": "/tmp/jupyter-runtime",
                "OMP_NUM_THREADS": "1",
                "JUPYTERHUB_USER": "ada",
                "HOME": "/home/jovyan",
                "GPUSLICE_LEASE": lease,
                "GPUSLICE_SLICE": "cpu",
                "GPUSLICE_HOME_LIMIT": str(1 << 30),
                "CUDA_VISIBLE_DEVICES": "",
                "NVIDIA_VISIBLE_DEVICES": "void",
                "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
            }
            test_the_user_is_not_root(server)
            test_no_capability_at_all(server)
            test_names_and_labels(server, node)
            assert Path(f"/proc/{server.pid}/cwd").readlink() == Path("/home/jovyan")
            assert server.shown["Config"]["StopSignal"] == "SIGTERM"


def test_an_image_with_volumes_is_refused(
    node: DockerNode, tmp_path: Path, client: docker.DockerClient, build: Callable[[str], str]
) -> None:
    of_image(node, build("VOLUME /var/run/nvidia-container-devices/all"))
    before = {volume.name for volume in client.volumes.list()}
    with served(node, tmp_path / "f.sock") as filtered, pytest.raises(APIError) as refused:
        start(filtered, node, client)
    assert "nvidia-container-devices" in refused.value.explanation
    assert refused.value.response.json()["reason"] == "image-refused"
    assert {volume.name for volume in client.volumes.list()} <= before


def test_a_name_that_moves_on_does_not_take_the_container_along(
    node: DockerNode, tmp_path: Path, client: docker.DockerClient, build: Callable[[str], str]
) -> None:
    """Between the look at an image and the create call its name can be given to another."""
    looked_at, other = build("ENV WHICH=first"), build("ENV WHICH=second LD_PRELOAD=/evil.so")
    of_image(node, looked_at)
    ask = node.api.image

    async def moved(reference: str) -> dict[str, Any] | None:
        found = await ask(reference)
        client.images.get(other).tag(*looked_at.split(":"))
        return found

    node.api.image = moved  # type: ignore[method-assign]
    with served(node, tmp_path / "f.sock") as filtered:
        env = start(filtered, node, client).environment()
    assert env["WHICH"] == "first"
    assert "LD_PRELOAD" not in env


def test_the_engine_drops_what_is_named_without_a_value(
    client: docker.DockerClient, build: Callable[[str], str]
) -> None:
    """What ``container_environment`` relies on."""
    image = build("ENV LD_PRELOAD=/evil.so LD_AUDIT=/evil.so")
    piece = wire.PrepareSlice(
        lease_id="0" * 32, user="ada", server="", slice_type="cpu", kind=wire.SliceKind.CPU,
        device_uuid=None, memory_bytes=None, share_milli=None,
        enforcement=wire.Enforcement.ADVISORY, ram_bytes=1,
    )  # fmt: skip
    entries = container_environment({}, piece, ["LD_PRELOAD=/evil.so"], None)
    made = client.api.create_container_from_config(
        {
            "Image": image,
            "Cmd": ["/tiny", "env"],
            "Env": entries,
            "User": "1000",
            "HostConfig": {"NetworkMode": "none"},
        }
    )["Id"]
    try:
        client.api.start(made)
        env = running(client, made).environment()
    finally:
        client.api.remove_container(made, force=True, v=True)
    assert "LD_PRELOAD" not in env
    assert env["LD_AUDIT"] == "/evil.so"
