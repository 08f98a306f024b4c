"""The leases' CDI devices on a node: written, checked, removed, and never anybody else's."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from cdiworld import (
    GPU_0,
    GPU_1,
    H100S,
    MIG_1G,
    MIG_2G,
    MIG_3G,
    MIGS,
    below,
    build_host,
    ctk,
    make_file,
    make_node,
    needs_root,
    new_piece,
    node_settings,
    recorded,
    recorded_file,
)
from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.node.docker.devices import SliceDevices
from gpuslice.node.environment import Simulation
from gpuslice.settings import DockerSettings

FOREIGN = ("nvidia.yaml", "gpuslice-notes.json", "other.json", "gpuslice-0123.json")


def document(policy: DockerSettings, piece: wire.PrepareSlice) -> dict[str, Any]:
    """The lease's file as an engine reads it."""
    text = (Path(policy.cdi_dir) / f"gpuslice-{piece.lease_id}.json").read_text()
    data: dict[str, Any] = json.loads(text)
    return data


def edits(policy: DockerSettings, piece: wire.PrepareSlice) -> dict[str, Any]:
    data = document(policy, piece)
    assert data["kind"] == "gpuslice.dev/slice"
    (device,) = data["devices"]
    assert device["name"] == piece.lease_id
    found: dict[str, Any] = device["containerEdits"]
    return found


def refused(*steps: Any) -> str:
    with pytest.raises(Refused) as no:
        for step in steps:
            asyncio.run(step)
    assert no.value.refusal.reason == "device-unavailable"
    return no.value.refusal.message


# --- CPU leases: no toolkit, no simulation --------------------------------------------------------


@pytest.fixture
def policy(tmp_path: Path) -> DockerSettings:
    (tmp_path / "root").mkdir()
    return node_settings(tmp_path, nvidia_ctk=("no-such-toolkit",))


@pytest.fixture
def devices(policy: DockerSettings) -> SliceDevices:
    return SliceDevices(policy, None)


def test_a_cpu_leases_device_is_its_environment_and_nothing_else(
    policy: DockerSettings, devices: SliceDevices
):
    piece = new_piece(None)
    asyncio.run(devices.write(piece))
    assert edits(policy, piece) == {
        "env": [
            "CUDA_VISIBLE_DEVICES=",
            "NVIDIA_VISIBLE_DEVICES=void",
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        ]
    }
    asyncio.run(devices.check(piece))


def test_a_device_is_there_until_it_is_removed(policy: DockerSettings, devices: SliceDevices):
    assert devices.present() == set()
    pieces = [new_piece(None) for _ in range(3)]
    for piece in pieces:
        asyncio.run(devices.write(piece))
        asyncio.run(devices.write(piece))
    assert devices.present() == {piece.lease_id for piece in pieces}
    gone = pieces.pop()
    for _ in range(2):
        asyncio.run(devices.remove(gone.lease_id))
    assert devices.present() == {piece.lease_id for piece in pieces}
    assert sorted(path.name for path in Path(policy.cdi_dir).iterdir()) == sorted(
        f"gpuslice-{piece.lease_id}.json" for piece in pieces
    )
    assert "is gone" in refused(devices.check(gone))


def test_removing_before_there_is_a_folder_is_well(policy: DockerSettings, devices: SliceDevices):
    asyncio.run(devices.remove(new_piece(None).lease_id))
    assert not Path(policy.cdi_dir).exists()


def test_the_file_is_roots_and_the_folder_everybodys(policy: DockerSettings, devices: SliceDevices):
    """An engine is root; the folder holds others' devices too, whatever the node's umask is."""
    piece = new_piece(None)
    old = os.umask(0o077)
    try:
        asyncio.run(devices.write(piece))
    finally:
        os.umask(old)
    (file,) = Path(policy.cdi_dir).iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o755


def test_others_files_are_neither_counted_nor_touched(
    policy: DockerSettings, devices: SliceDevices
):
    folder = Path(policy.cdi_dir)
    folder.mkdir()
    folder.chmod(0o750)
    for name in FOREIGN:
        (folder / name).write_text(f"not ours: {name}")
    piece = new_piece(None)
    asyncio.run(devices.write(piece))
    assert devices.present() == {piece.lease_id}
    asyncio.run(devices.remove(piece.lease_id))
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        name: f"not ours: {name}" for name in FOREIGN
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_a_reader_sees_a_whole_file_or_none(policy: DockerSettings, devices: SliceDevices):
    """As an engine reads: every file of the folder that ends in ``.json`` or ``.yaml``."""
    piece = new_piece(None)
    folder = Path(policy.cdi_dir)
    folder.mkdir()
    seen, done = [0], threading.Event()

    def read() -> None:
        while not done.is_set():
            for path in folder.iterdir():
                if path.suffix in (".json", ".yaml"):
                    try:
                        text = path.read_text()
                    except FileNotFoundError:
                        continue
                    assert json.loads(text)["devices"][0]["name"] == piece.lease_id
                    seen[0] += 1

    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            read()
        except BaseException as problem:
            failures.append(problem)

    reader = threading.Thread(target=guarded)
    reader.start()
    while seen[0] < 50 and not failures:
        asyncio.run(devices.write(piece))
        asyncio.run(devices.remove(piece.lease_id))
    done.set()
    reader.join()
    assert not failures


def test_what_a_crash_left_is_no_device_and_can_be_removed(
    policy: DockerSettings, devices: SliceDevices, monkeypatch: pytest.MonkeyPatch
):
    piece = new_piece(None)

    def crash(self: Path, target: Path) -> Path:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(SystemExit):
            asyncio.run(devices.write(piece))
    (left,) = Path(policy.cdi_dir).iterdir()
    assert left.suffix not in (".json", ".yaml")
    assert devices.present() == {piece.lease_id}
    asyncio.run(devices.remove(piece.lease_id))
    assert list(Path(policy.cdi_dir).iterdir()) == []


def test_written_and_removed_are_on_the_disk(
    policy: DockerSettings, devices: SliceDevices, monkeypatch: pytest.MonkeyPatch
):
    """What was true in the folder at each moment when it was waited for."""
    piece = new_piece(None)
    folder = Path(policy.cdi_dir)
    synced: list[tuple[bool, bool]] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((path == folder, (folder / f"gpuslice-{piece.lease_id}.json").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    asyncio.run(devices.write(piece))
    # The content first, then its name.
    assert synced == [(False, False), (True, True)]
    synced.clear()
    asyncio.run(devices.remove(piece.lease_id))
    assert synced == [(True, False)]


def written(kind: str, name: str, edits: dict[str, Any]) -> str:
    device = {"name": name, "containerEdits": edits}
    return json.dumps({"cdiVersion": "0.5.0", "kind": kind, "devices": [device]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"cdiVersion": "0.5.0", "kind": "gpuslice.dev/slice", "devices": []}',
        written("gpuslice.dev/slice", "LEASE", {"unknown": 1}),
        written("nvidia.com/gpu", "LEASE", {}),
        written("gpuslice.dev/slice", "another", {}),
    ],
)
def test_a_file_that_is_not_what_was_written_stops_the_start(
    policy: DockerSettings, devices: SliceDevices, text: str
):
    piece = new_piece(None)
    asyncio.run(devices.write(piece))
    file = Path(policy.cdi_dir) / f"gpuslice-{piece.lease_id}.json"
    file.write_text(text.replace("LEASE", piece.lease_id))
    assert str(file) in refused(devices.check(piece))


# --- real cards: a fake host, and a stand-in for the toolkit's command ---------------------------


def host_of(tmp_path: Path, machine: str) -> DockerSettings:
    root = tmp_path / "root"
    root.mkdir()
    build_host(root, recorded(machine))
    return node_settings(tmp_path, nvidia_ctk=ctk("print", recorded_file(machine)))


@pytest.fixture
def h100s(tmp_path: Path) -> DockerSettings:
    return host_of(tmp_path, H100S)


@pytest.fixture
def migs(tmp_path: Path) -> DockerSettings:
    return host_of(tmp_path, MIGS)


@needs_root
def test_a_real_cards_device_is_composed_of_the_toolkits_and_ours(h100s: DockerSettings):
    piece = new_piece(GPU_1)
    devices = SliceDevices(h100s, None)
    asyncio.run(devices.write(piece))
    asyncio.run(devices.check(piece))
    found = edits(h100s, piece)
    assert document(h100s, piece)["cdiVersion"] == "0.5.0"
    assert found["env"] == [
        "NVIDIA_CTK_LIBCUDA_DIR=/usr/lib/x86_64-linux-gnu",
        f"CUDA_VISIBLE_DEVICES={GPU_1}",
        "NVIDIA_VISIBLE_DEVICES=void",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ]

    def node(path: str, major: int, minor: int) -> dict[str, Any]:
        return {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666,
                "permissions": "rw"}  # fmt: skip

    first = node("/dev/nvidia-uvm", 507, 0)
    del first["minor"]
    assert found["deviceNodes"] == [
        first,
        node("/dev/nvidia-uvm-tools", 507, 1),
        node("/dev/nvidiactl", 195, 255),
        node("/dev/nvidia1", 195, 1),
    ]
    assert found["mounts"][6] == {
        "hostPath": "/usr/bin/nvidia-smi",
        "containerPath": "/usr/bin/nvidia-smi",
        "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
    }
    assert found["hooks"][1] == {
        "hookName": "createContainer",
        "path": "/usr/bin/nvidia-cdi-hook",
        "args": ["nvidia-cdi-hook", "enable-cuda-compat", "--host-driver-version=580.105.08"],
        "env": ["NVIDIA_CTK_DEBUG=false"],
        "timeout": 30,
    }


@needs_root
def test_leases_of_different_devices_have_no_node_in_common_but_the_drivers(
    h100s: DockerSettings, tmp_path: Path
):
    def own(policy: DockerSettings, device: str) -> set[tuple[int, int]]:
        piece = new_piece(device)
        asyncio.run(SliceDevices(policy, None).write(piece))
        return {(node["major"], node.get("minor", 0)) for node in
                edits(policy, piece)["deviceNodes"]}  # fmt: skip

    control = {(507, 0), (507, 1), (195, 255)}
    assert own(h100s, GPU_0) == control | {(195, 0)}
    assert own(h100s, GPU_1) == control | {(195, 1)}
    (tmp_path / "other").mkdir()
    migs = host_of(tmp_path / "other", MIGS)
    control = {(510, 0), (510, 1), (195, 255), (195, 0)}
    assert own(migs, MIG_3G) == control | {(237, 12), (237, 13)}
    assert own(migs, MIG_2G) == control | {(237, 48), (237, 49)}
    assert own(migs, MIG_1G) == control | {(237, 120), (237, 121)}


def absent(settings: DockerSettings, path: str) -> Path:
    """Takes a file of the fake host away; returns where it was."""
    gone = below(Path(settings.host_root), path)
    gone.unlink()
    return gone


NEEDED = [
    "/dev/nvidia0",
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-caps/nvidia-cap49",
    "/usr/lib/x86_64-linux-gnu/libcuda.so.570.133.20",
    "/usr/bin/nvidia-cdi-hook",
]


@needs_root
@pytest.mark.parametrize("path", NEEDED)
def test_a_missing_node_library_or_hook_is_refused_by_name(migs: DockerSettings, path: str):
    absent(migs, path)
    devices = SliceDevices(migs, None)
    message = refused(devices.write(new_piece(MIG_2G)))
    assert path in message
    assert "gpuslice doctor" in message
    assert devices.present() == set()


@needs_root
@pytest.mark.parametrize("path", NEEDED)
def test_what_goes_missing_after_the_grant_stops_the_start(migs: DockerSettings, path: str):
    piece = new_piece(MIG_2G)
    devices = SliceDevices(migs, None)
    asyncio.run(devices.write(piece))
    absent(migs, path)
    assert path in refused(devices.check(piece))


@needs_root
def test_another_instances_nodes_may_come_and_go(migs: DockerSettings):
    piece = new_piece(MIG_2G)
    devices = SliceDevices(migs, None)
    asyncio.run(devices.write(piece))
    absent(migs, "/dev/nvidia-caps/nvidia-cap12")
    absent(migs, "/run/nvidia-persistenced/socket")
    asyncio.run(devices.check(piece))


@needs_root
def test_a_node_that_is_another_device_now_stops_the_start(h100s: DockerSettings):
    """As after the driver was loaded again and found the cards in another order."""
    piece = new_piece(GPU_0)
    devices = SliceDevices(h100s, None)
    asyncio.run(devices.write(piece))
    make_node(absent(h100s, "/dev/nvidia0"), 195, 1)
    assert "/dev/nvidia0 is 195:1 now and was 195:0" in refused(devices.check(piece))


@needs_root
def test_numbers_that_the_toolkit_remembers_and_the_host_has_no_more_are_refused(
    h100s: DockerSettings,
):
    make_node(absent(h100s, "/dev/nvidia-uvm"), 511, 0)
    assert "511:0 now and was 507:0" in refused(SliceDevices(h100s, None).write(new_piece(GPU_0)))


@needs_root
def test_a_card_that_is_for_a_group_on_the_host_is_the_users_in_the_container(
    h100s: DockerSettings,
):
    make_node(absent(h100s, "/dev/nvidia0"), 195, 0, 0o660)
    piece = new_piece(GPU_0)
    asyncio.run(SliceDevices(h100s, None).write(piece))
    owners = {node["path"]: (node["fileMode"], node.get("uid"), node.get("gid")) for node in
              edits(h100s, piece)["deviceNodes"]}  # fmt: skip
    assert owners["/dev/nvidia0"] == (0o660, 1000, 100)
    assert owners["/dev/nvidiactl"] == (0o666, None, None)


@needs_root
def test_a_share_of_a_card_gets_the_whole_cards_nodes(h100s: DockerSettings):
    piece = new_piece(GPU_0, kind=wire.SliceKind.SHARED)
    asyncio.run(SliceDevices(h100s, None).write(piece))
    assert {node["path"] for node in edits(h100s, piece)["deviceNodes"]} >= {"/dev/nvidia0"}


@pytest.mark.parametrize("how", ["fail", "torn"])
def test_a_toolkit_that_does_not_work_leaves_no_device(tmp_path: Path, how: str):
    (tmp_path / "root").mkdir()
    policy = node_settings(tmp_path, nvidia_ctk=ctk(how, recorded_file(H100S)))
    devices = SliceDevices(policy, None)
    assert "gpuslice doctor" in refused(devices.write(new_piece(GPU_0)))
    assert devices.present() == set()


# --- simulated ------------------------------------------------------------------------------------


@pytest.fixture
def simulated(tmp_path: Path) -> tuple[DockerSettings, SliceDevices]:
    policy = node_settings(tmp_path, nvidia_ctk=("no-such-toolkit",))
    for name in ("lib", "fleet"):
        make_file(tmp_path / "root/h" / name)
    simulation = Simulation(state=Path("/h/fleet"), library=Path("/h/lib"))
    return policy, SliceDevices(policy, simulation)


@pytest.mark.parametrize(
    ("device", "kind", "view"),
    [
        (GPU_0, wire.SliceKind.EXCLUSIVE, "shared-container"),
        (GPU_0, wire.SliceKind.SHARED, "shared-container"),
        (MIG_1G, wire.SliceKind.MIG, "mig-container"),
    ],
)
def test_a_simulated_device_is_the_library_the_fleet_and_whom_to_show(
    simulated: tuple[DockerSettings, SliceDevices], device: str, kind: wire.SliceKind, view: str
):
    policy, devices = simulated
    piece = new_piece(device, kind=kind)
    asyncio.run(devices.write(piece))
    asyncio.run(devices.check(piece))
    assert edits(policy, piece) == {
        "env": [
            f"CUDA_VISIBLE_DEVICES={device}",
            "NVIDIA_VISIBLE_DEVICES=void",
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            "NVMLSIM_STATE=/usr/share/nvmlsim/fleet",
            f"NVMLSIM_VIEW={view}",
            f"NVMLSIM_VISIBLE={device}",
        ],
        "mounts": [
            {
                "hostPath": "/h/lib",
                "containerPath": "/usr/lib/libnvidia-ml.so.1",
                "options": ["ro", "nosuid", "nodev", "bind"],
            },
            {
                "hostPath": "/h/fleet",
                "containerPath": "/usr/share/nvmlsim/fleet",
                "options": ["ro", "nosuid", "nodev", "noexec", "bind"],
            },
        ],
    }


def test_a_cpu_lease_sees_no_simulated_device_either(
    simulated: tuple[DockerSettings, SliceDevices],
):
    policy, devices = simulated
    piece = new_piece(None)
    asyncio.run(devices.write(piece))
    assert set(edits(policy, piece)) == {"env"}
    assert not any("NVMLSIM" in entry for entry in edits(policy, piece)["env"])


def test_a_host_folder_that_only_the_node_has_is_named(
    simulated: tuple[DockerSettings, SliceDevices],
):
    policy, devices = simulated
    absent(policy, "/h/lib")
    message = refused(devices.write(new_piece(GPU_0)))
    assert "/h/lib does not exist" in message
    assert "docker.host_dir" in message
