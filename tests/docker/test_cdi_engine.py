"""The leases' CDI devices in containers of a real engine: what is seen inside, and what is not.

The containers are the tiny image with this machine's own Python and pynvml mounted into it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import stat
import sys
import sysconfig
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pynvml
import pytest
from docker.errors import APIError
from docker.types import DeviceRequest

from cdiworld import (
    GPU_0,
    GPU_1,
    H100S,
    MIG_1G,
    MIG_2G,
    MIGS,
    build_host,
    ctk,
    make_program,
    needs_root,
    new_piece,
    recorded_file,
    rewritten,
)
from dockerworld import CDI_DIR, cdi_file
from gpuslice import wire
from gpuslice.containers import CDI_KIND, LABEL_LEASE, LABEL_NODE, cdi_device
from gpuslice.node.docker.cdi import Spec
from gpuslice.node.docker.devices import SliceDevices
from gpuslice.node.docker.hostfiles import prepare_simulation
from gpuslice.settings import DockerSettings
from nvmlsim import Fleet

pytestmark = [pytest.mark.docker, needs_root]

#: What NVML shows in a container: its own devices, and what it says of the others.
LOOK = """
import json, os, sys, pynvml

def said(function, *arguments):
    try:
        return function(*arguments)
    except pynvml.NVMLError as problem:
        return type(problem).__name__

def memory(handle):
    found = said(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    return found if isinstance(found, str) else [found.total, found.used]

seen = {}
pynvml.nvmlInit()
for index in range(pynvml.nvmlDeviceGetCount()):
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    migs = []
    for place in range(said(pynvml.nvmlDeviceGetMaxMigDeviceCount, gpu)):
        mig = said(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, place)
        if not isinstance(mig, str):
            migs.append([pynvml.nvmlDeviceGetUUID(mig), memory(mig)])
    seen[pynvml.nvmlDeviceGetUUID(gpu)] = {"memory": memory(gpu), "migs": migs}
others = {
    uuid: said(pynvml.nvmlDeviceGetHandleByUUID, uuid)
    for uuid in sys.argv[1:] if isinstance(said(pynvml.nvmlDeviceGetHandleByUUID, uuid), str)
}
print(json.dumps({"seen": seen, "others": others, "uid": os.getuid()}))
"""

#: What there is in a container: its environment, its nodes, who may open what.
INSPECT = """
import json, os, stat, sys

def opened(path):
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as problem:
        return problem.errno
    return 0

nodes = {}
for folder, _, names in os.walk("/dev"):
    for name in names:
        path = os.path.join(folder, name)
        found = os.lstat(path)
        if "nvidia" in path and stat.S_ISCHR(found.st_mode):
            nodes[path] = [os.major(found.st_rdev), os.minor(found.st_rdev),
                           stat.S_IMODE(found.st_mode), [found.st_uid, found.st_gid], opened(path)]

def made(major, minor):
    path = f"/dev/shm/probe-{major}-{minor}"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
    return opened(path)

print(json.dumps({
    "env": dict(os.environ),
    "nodes": nodes,
    "open": {f"{pair[0]}:{pair[1]}": made(*pair) for pair in json.loads(sys.argv[1])},
    "mounts": [line.split()[1:4:2] for line in open("/proc/self/mounts")],
}))
"""

#: What the engine starts besides the container's own program has the environment of its creation:
#: without the device's. What the program itself starts has the program's.
AS_STARTED = """
import os, sys
os.environ.clear()
for entry in open("/proc/1/environ").read().split("\\0"):
    name, equals, value = entry.partition("=")
    if equals:
        os.environ[name] = value
sys.path.insert(0, "/probe")
"""

PYTHON = Path(sys.executable).resolve()
WAIT = "import signal; signal.pause()"


# --- containers with this machine's Python --------------------------------------------------------


def python_mounts() -> dict[str, dict[str, str]]:
    """Python as it is on this machine, by the same paths, with pynvml beside it."""
    variables = sysconfig.get_config_vars()
    shared = Path(str(variables["LIBDIR"])) / str(variables["LDLIBRARY"])
    libraries = Path("/lib") / str(variables["MULTIARCH"])
    paths = [
        PYTHON,
        Path(sysconfig.get_path("stdlib")),
        Path("/lib64"),
        libraries,
    ]
    if shared.suffix != ".a" and shared.parent != libraries:
        paths.append(shared)
    mounts = {str(path): {"bind": str(path), "mode": "ro"} for path in paths}
    mounts[str(Path(pynvml.__file__))] = {"bind": "/probe/pynvml.py", "mode": "ro"}
    return mounts


class Box:
    """A container with one lease's device."""

    def __init__(self, container: Any) -> None:
        self.container = container

    def python(self, program: str, *arguments: str) -> dict[str, Any]:
        """Runs a program in it as one of the server's own, and returns the object it prints."""
        command = [str(PYTHON), "-c", AS_STARTED + program, *arguments]
        done = self.container.exec_run(command)
        assert done.exit_code == 0, done.output.decode()
        data: dict[str, Any] = json.loads(done.output)
        return data


BoxMaker = Callable[..., Box]


@pytest.fixture
def box(client: docker.DockerClient, tiny: str, node_id: str) -> BoxMaker:
    """Makes containers for leases; ``start=False`` leaves one as it was created."""

    def make(piece: wire.PrepareSlice, *, start: bool = True, **options: Any) -> Box:
        container = client.containers.create(
            tiny,
            [str(PYTHON), "-c", WAIT],
            name=f"gpuslice-cdi-{piece.lease_id[:12]}",
            labels={LABEL_NODE: node_id, LABEL_LEASE: piece.lease_id},
            device_requests=[DeviceRequest(driver="cdi", device_ids=[cdi_device(piece.lease_id)])],
            volumes=python_mounts(),
            network_mode="none",
            **options,
        )
        if start:
            container.start()
        return Box(container)

    return make


def write(devices: SliceDevices, piece: wire.PrepareSlice) -> wire.PrepareSlice:
    asyncio.run(devices.write(piece))
    return piece


NewPiece = Callable[..., wire.PrepareSlice]


@pytest.fixture
def piece(new_lease: Callable[[], str]) -> NewPiece:
    """Makes pieces whose CDI devices are removed afterwards."""
    return lambda device, **more: new_piece(device, lease_id=new_lease(), **more)


# --- simulated devices ----------------------------------------------------------------------------


@pytest.fixture
def simulated(tmp_path: Path, library: Path) -> Iterator[tuple[SliceDevices, Fleet]]:
    """Devices of the demo fleet: two H100s, and an A100 in three parts."""
    policy = DockerSettings(host_dir=str(tmp_path / "host"))
    simulation = prepare_simulation(policy, library)
    with Fleet.open(simulation.state) as fleet:
        yield SliceDevices(policy, simulation), fleet


def everything(fleet: Fleet) -> list[str]:
    return [uuid for gpu in fleet.gpus() for uuid in (gpu.uuid, *(m.uuid for m in gpu.migs()))]


def test_a_user_sees_the_own_gpu_and_no_other(
    simulated: tuple[SliceDevices, Fleet], piece: NewPiece, box: BoxMaker
):
    devices, fleet = simulated
    gpu = fleet.gpu(1)
    # As hardened as servers are.
    mine = box(
        write(devices, piece(gpu.uuid)), user="1000:100", read_only=True, cap_drop=["ALL"],
        tmpfs={"/run": "noexec"}, security_opt=["no-new-privileges:true"],
    )  # fmt: skip
    gpu.used = 5 << 30
    look = mine.python(LOOK, *everything(fleet))
    assert look == {
        "seen": {gpu.uuid: {"memory": [gpu.total, 5 << 30], "migs": []}},
        "others": {u: "NVMLError_NotFound" for u in everything(fleet) if u != gpu.uuid},
        "uid": 1000,
    }
    # Live, and never written to from inside.
    gpu.used = 6 << 30
    assert mine.python(LOOK)["seen"][gpu.uuid]["memory"] == [gpu.total, 6 << 30]


def test_a_user_sees_the_own_instance_and_of_its_gpu_nothing(
    simulated: tuple[SliceDevices, Fleet], piece: NewPiece, box: BoxMaker
):
    devices, fleet = simulated
    gpu = fleet.gpu(2)
    mig = gpu.migs()[1]
    mine = box(write(devices, piece(mig.uuid)), user="1000:100")
    look = mine.python(LOOK, *everything(fleet))
    assert look["seen"] == {
        gpu.uuid: {"memory": "NVMLError_NoPermission", "migs": [[mig.uuid, [mig.total, 0]]]}
    }
    assert set(look["others"]) == set(everything(fleet)) - {gpu.uuid, mig.uuid}


def test_two_leases_see_two_devices(
    simulated: tuple[SliceDevices, Fleet], piece: NewPiece, box: BoxMaker
):
    devices, fleet = simulated
    uuids = [fleet.gpu(0).uuid, fleet.gpu(1).uuid]
    boxes = [box(write(devices, piece(uuid)), user="1000:100") for uuid in uuids]
    assert [list(one.python(LOOK)["seen"]) for one in boxes] == [[uuid] for uuid in uuids]


def test_the_device_has_the_last_word_over_what_the_user_says(
    simulated: tuple[SliceDevices, Fleet], piece: NewPiece, box: BoxMaker
):
    devices, fleet = simulated
    mine, other = fleet.gpu(0).uuid, fleet.gpu(1).uuid
    greedy = {
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "all",
        "CUDA_VISIBLE_DEVICES": other,
        "NVMLSIM_VIEW": "host",
        "NVMLSIM_VISIBLE": f"{mine},{other}",
        "NVMLSIM_STATE": "/tmp/mine",
        "KEPT": "1",
    }
    inside = box(write(devices, piece(mine)), environment=greedy)
    env = inside.python(INSPECT, "[]")["env"]
    assert {name: env[name] for name in greedy} == {
        "NVIDIA_VISIBLE_DEVICES": "void",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "CUDA_VISIBLE_DEVICES": mine,
        "NVMLSIM_VIEW": "shared-container",
        "NVMLSIM_VISIBLE": mine,
        "NVMLSIM_STATE": "/usr/share/nvmlsim/fleet",
        "KEPT": "1",
    }
    assert list(inside.python(LOOK)["seen"]) == [mine]


def test_a_cpu_lease_sees_no_device(
    simulated: tuple[SliceDevices, Fleet], piece: NewPiece, box: BoxMaker
):
    inside = box(write(simulated[0], piece(None)), environment={"CUDA_VISIBLE_DEVICES": "0"})
    found = inside.python(INSPECT, "[]")
    assert found["env"]["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert found["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert not [mount for mount in found["mounts"] if "nvml" in mount[0].replace("pynvml", "")]


def test_nobody_inside_can_change_the_simulation(
    simulated: tuple[SliceDevices, Fleet], piece: NewPiece, box: BoxMaker
):
    """Not even root: another's numbers are in the same file."""
    devices, fleet = simulated
    inside = box(write(devices, piece(fleet.gpu(0).uuid)))
    options = dict(inside.python(INSPECT, "[]")["mounts"])
    for path in ("/usr/share/nvmlsim/fleet", "/usr/lib/libnvidia-ml.so.1"):
        assert "ro" in options[path].split(",")
        assert {"nosuid", "nodev"} <= set(options[path].split(","))
    assert "noexec" in options["/usr/share/nvmlsim/fleet"].split(",")


# --- the fence ------------------------------------------------------------------------------------


def test_without_its_file_a_created_container_cannot_start_and_a_running_one_goes_on(
    simulated: tuple[SliceDevices, Fleet], piece: NewPiece, box: BoxMaker
):
    devices, fleet = simulated
    gpu = fleet.gpu(0)
    running = write(devices, piece(gpu.uuid))
    created = write(devices, piece(gpu.uuid))
    runs, waits = box(running), box(created, start=False)
    for lease in (running, created):
        asyncio.run(devices.remove(lease.lease_id))
        assert not cdi_file(lease.lease_id).exists()
    with pytest.raises(APIError, match="unresolvable CDI devices"):
        waits.container.start()
    assert list(runs.python(LOOK)["seen"]) == [gpu.uuid]
    # Once it has ended it is a created one again.
    runs.container.kill()
    runs.container.wait()
    with pytest.raises(APIError, match="unresolvable CDI devices"):
        runs.container.start()


def test_files_beside_ours_change_nothing(
    simulated: tuple[SliceDevices, Fleet], piece: NewPiece, box: BoxMaker
):
    devices, fleet = simulated
    gpu = fleet.gpu(0)
    mine = piece(gpu.uuid)
    texts = {
        "json": "{ torn",
        "yaml": 'cdiVersion: "0.5.0"\nkind: gpuslice.test/foreign\nunknown: 1\ndevices: []\n',
        "tmp": json.dumps(
            {
                "cdiVersion": "0.5.0",
                "kind": CDI_KIND,
                "devices": [{"name": mine.lease_id, "containerEdits": {"env": ["OTHER=1"]}}],
            }
        ),
    }
    CDI_DIR.mkdir(parents=True, exist_ok=True)
    files = [CDI_DIR / f"test-{uuid.uuid4().hex}.{suffix}" for suffix in texts]
    try:
        for file in files:
            file.write_text(texts[file.suffix[1:]])
        assert list(box(write(devices, mine)).python(LOOK)["seen"]) == [gpu.uuid]
        assert mine.lease_id in devices.present()
        asyncio.run(devices.remove(mine.lease_id))
        assert all(file.exists() for file in files)
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_the_engine_reads_a_device_as_soon_as_it_is_there(
    simulated: tuple[SliceDevices, Fleet], piece: NewPiece, box: BoxMaker
):
    """It watches the folder; a start that comes right after the file must not be too early."""
    devices, fleet = simulated
    for _ in range(5):
        lease = piece(fleet.gpu(0).uuid)
        created = box(lease, start=False)
        write(devices, lease)
        created.container.start()
        created.container.kill()


# --- real cards, as far as a machine without one goes ---------------------------------------------


@contextmanager
def real_host(folder: Path, machine: str, change: Callable[[Any], None]) -> Iterator[SliceDevices]:
    """A machine whose driver is in ``folder``: there its nodes, libraries and hooks really are."""
    data = rewritten(json.loads(recorded_file(machine).read_text()), lambda path: f"{folder}{path}")
    change(data)
    build_host(Path("/"), Spec.model_validate(data))
    file = folder / "spec.json"
    file.write_text(json.dumps(data))
    make_program(
        folder / "usr/bin/nvidia-cdi-hook",
        f'#!/bin/sh\n/usr/bin/env | /usr/bin/sort | /usr/bin/tr "\\n" " " >>{folder}/hooks\n'
        f'echo "$@" >>{folder}/hooks\n',
    )
    yield SliceDevices(DockerSettings(nvidia_ctk=ctk("print", file)), None)


def unchanged(data: Any) -> None:
    pass


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    folder = tmp_path / "driver"
    folder.mkdir()
    return folder


def opens(found: dict[str, Any]) -> dict[str, str]:
    """Whether the device behind a number could be asked for: its driver is not on this machine."""
    words = {errno.EPERM: "refused", errno.ENXIO: "allowed", errno.ENODEV: "allowed", 0: "allowed"}
    return {pair: words[number] for pair, number in found["open"].items()}


PAIRS = [[195, 0], [195, 1], [195, 255], [507, 0], [237, 12], [237, 48], [237, 49], [237, 120]]


def test_two_leases_of_whole_gpus_have_different_nodes(
    driver: Path, piece: NewPiece, box: BoxMaker
):
    with real_host(driver, H100S, unchanged) as devices:
        found = [
            box(write(devices, piece(device)), tmpfs={"/dev/shm": "dev"}).python(
                INSPECT, json.dumps(PAIRS)
            )
            for device in (GPU_0, GPU_1)
        ]
    for number, inside in enumerate(found):
        assert {path: tuple(numbers[:3]) for path, numbers in inside["nodes"].items()} == {
            "/dev/nvidiactl": (195, 255, 0o666),
            "/dev/nvidia-uvm": (507, 0, 0o666),
            "/dev/nvidia-uvm-tools": (507, 1, 0o666),
            f"/dev/nvidia{number}": (195, number, 0o666),
        }
        # Who makes the other card's node by hand cannot open it.
        assert {pair for pair, word in opens(inside).items() if word == "allowed"} == {
            "195:255", "507:0", f"195:{number}",
        }  # fmt: skip
        assert inside["env"]["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_two_leases_of_one_gpus_instances_have_different_nodes(
    driver: Path, piece: NewPiece, box: BoxMaker
):
    with real_host(driver, MIGS, unchanged) as devices:
        found = [
            box(write(devices, piece(device)), tmpfs={"/dev/shm": "dev"}).python(
                INSPECT, json.dumps(PAIRS)
            )
            for device in (MIG_2G, MIG_1G)
        ]
    control = {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0"}
    caps = "/dev/nvidia-caps/nvidia-cap"
    assert set(found[0]["nodes"]) == control | {caps + "48", caps + "49"}
    assert set(found[1]["nodes"]) == control | {caps + "120", caps + "121"}
    assert found[0]["nodes"][caps + "48"][:3] == [237, 48, 0o444]
    allowed = [{pair for pair, word in opens(one).items() if word == "allowed"} for one in found]
    assert allowed == [
        {"195:0", "195:255", "237:48", "237:49"},
        {"195:0", "195:255", "237:120"},
    ]


def test_libraries_are_mounted_and_hooks_run_with_an_environment_of_their_own(
    driver: Path, piece: NewPiece, box: BoxMaker
):
    with real_host(driver, MIGS, unchanged) as devices:
        inside = box(
            write(devices, piece(MIG_1G)), environment={"LD_LIBRARY_PATH": "/of-the-image"}
        )
        mounts = dict(inside.python(INSPECT, "[]")["mounts"])
    library = "/usr/lib/x86_64-linux-gnu/libcuda.so.570.133.20"
    assert "ro" in mounts[library].split(",")
    assert "/run/nvidia-persistenced/socket" not in mounts
    ran = (driver / "hooks").read_text()
    assert "create-symlinks --link libcuda.so.1::" in ran
    assert "update-ldcache --folder" in ran
    assert "of-the-image" not in ran
    assert "NVIDIA_CTK_DEBUG=false" in ran


def test_a_hook_that_fails_stops_the_start(driver: Path, piece: NewPiece, box: BoxMaker):
    with real_host(driver, H100S, unchanged) as devices:
        lease = write(devices, piece(GPU_0))
        make_program(driver / "usr/bin/nvidia-cdi-hook", "#!/bin/sh\necho no-cache >&2\nexit 1\n")
        with pytest.raises(APIError, match="no-cache"):
            box(lease)


def test_a_card_for_a_group_of_the_host_can_be_opened_by_the_user(
    driver: Path, piece: NewPiece, box: BoxMaker
):
    with real_host(driver, H100S, unchanged) as devices:
        (driver / "dev/nvidia0").chmod(0o660)
        lease = write(devices, piece(GPU_0))
        found = box(lease, user="1000:100", cap_drop=["ALL"]).python(INSPECT, "[]")
    assert found["nodes"]["/dev/nvidia0"] == [195, 0, 0o660, [1000, 100], errno.ENXIO]
    assert found["nodes"]["/dev/nvidiactl"][4] == errno.ENXIO


def test_the_file_is_the_engines_to_read_and_nobody_elses(
    simulated: tuple[SliceDevices, Fleet], piece: NewPiece, box: BoxMaker
):
    lease = write(simulated[0], piece(simulated[1].gpu(0).uuid))
    assert stat.S_IMODE(cdi_file(lease.lease_id).stat().st_mode) == 0o600
    assert box(lease).python(LOOK)["seen"]
