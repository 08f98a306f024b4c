"""What of the NVIDIA toolkit's answer a lease gets, on recorded and on made-up machines."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdiworld import (
    GPU_0,
    GPU_1,
    H100S,
    MIG_1G,
    MIG_2G,
    MIG_3G,
    MIGS,
    ctk,
    document,
    recorded,
    recorded_file,
)
from gpuslice.errors import Refused
from gpuslice.node.docker.cdi import Edits, Spec
from gpuslice.node.docker.nvidia import Toolkit, device_edits

CONTROL = {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}
CAPS = "/dev/nvidia-caps/nvidia-cap"


def nodes(edits: Edits) -> set[str]:
    return {node.path for node in edits.device_nodes}


# --- what a container gets ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "device", "own"),
    [
        (H100S, GPU_0, {"/dev/nvidia0"}),
        (H100S, GPU_1, {"/dev/nvidia1"}),
        (MIGS, MIG_3G, {"/dev/nvidia0", CAPS + "12", CAPS + "13"}),
        (MIGS, MIG_2G, {"/dev/nvidia0", CAPS + "48", CAPS + "49"}),
        (MIGS, MIG_1G, {"/dev/nvidia0", CAPS + "120", CAPS + "121"}),
    ],
)
def test_the_nodes_are_the_cards_own_and_the_drivers(machine: str, device: str, own: set[str]):
    assert nodes(device_edits(recorded(machine), device)) == CONTROL | own


def test_libraries_and_programs_are_mounted_and_no_daemons_socket_is():
    edits = device_edits(recorded(H100S), GPU_0)
    paths = {mount.container_path for mount in edits.mounts}
    everything = {mount["containerPath"] for mount in document(H100S)["containerEdits"]["mounts"]}
    assert everything - paths == {
        "/run/nvidia-persistenced/socket",
        "/run/nvidia-fabricmanager/socket",
    }
    assert "/usr/lib/x86_64-linux-gnu/libcuda.so.580.105.08" in paths
    mps = {mount.container_path for mount in device_edits(recorded(MIGS), MIG_1G).mounts}
    assert not {path for path in mps if path.startswith(("/run", "/tmp"))}


def test_files_of_the_host_are_mounted_read_only_whatever_the_toolkit_says():
    data = document(H100S)
    data["containerEdits"]["mounts"][5]["options"] = ["rw", "nosuid", "bind"]
    data["containerEdits"]["mounts"][6]["options"] = ["bind"]
    edits = device_edits(Spec.model_validate(data), GPU_0)
    for mount in edits.mounts:
        assert "ro" in mount.options
        assert "rw" not in mount.options
    assert ("ro", "nosuid", "bind") in {mount.options for mount in edits.mounts}


def test_hooks_are_those_that_find_libraries_and_guard_the_driver():
    edits = device_edits(recorded(H100S), GPU_0)
    assert [(hook.hook_name, hook.args[1]) for hook in edits.hooks] == [
        ("createContainer", "create-symlinks"),
        ("createContainer", "enable-cuda-compat"),
        ("createContainer", "update-ldcache"),
        ("createContainer", "disable-device-node-modification"),
        ("createContainer", "update-application-profile"),
    ]


@pytest.mark.parametrize(("machine", "device"), [(H100S, GPU_1), (MIGS, MIG_2G)])
def test_a_hook_never_inherits_an_environment_and_never_runs_for_ever(machine: str, device: str):
    """CVE-2025-23266: without one of its own it runs as root with the image's LD_PRELOAD."""
    hooks = device_edits(recorded(machine), device).hooks
    assert hooks
    assert all(hook.env and hook.timeout for hook in hooks)


def test_variables_that_choose_devices_are_not_the_toolkits_to_say():
    data = document(H100S)
    data["containerEdits"]["env"] = [
        "NVIDIA_VISIBLE_DEVICES=all", "CUDA_VISIBLE_DEVICES=0,1", "NVIDIA_GPU_MEMORY_LIMIT=99999",
        "LD_PRELOAD=/x.so", "CUDA_MPS_PIPE_DIRECTORY=/tmp", "NVIDIA_CTK_LIBCUDA_DIR=/lib",
        "OTHER=1",
    ]  # fmt: skip
    edits = device_edits(Spec.model_validate(data), GPU_0)
    assert edits.env == ("NVIDIA_CTK_LIBCUDA_DIR=/lib", "OTHER=1")


@pytest.mark.parametrize("device", [GPU_0, GPU_1])
def test_no_group_is_joined(device: str):
    assert recorded(H100S).devices[0].container_edits.additional_gids == (44, 110)
    assert device_edits(recorded(H100S), device).additional_gids == ()


def test_the_right_to_change_migs_layout_is_never_given():
    data = document(MIGS)
    for device in data["devices"]:
        for minor in (1, 2):
            node = {"path": f"{CAPS}{minor}", "major": 237, "minor": minor}
            device["containerEdits"]["deviceNodes"].append(node)
    data["containerEdits"]["deviceNodes"] += [
        {"path": CAPS + "1", "major": 237, "minor": 1},
        {"path": CAPS + "12", "major": 237, "minor": 12},
        {"path": "/dev/nvidia7", "major": 195, "minor": 7},
    ]
    edits = device_edits(Spec.model_validate(data), MIG_1G)
    assert nodes(edits) == CONTROL | {"/dev/nvidia0", CAPS + "120", CAPS + "121"}


def test_a_whole_gpu_needs_no_capability():
    data = document(H100S)
    node = {"path": CAPS + "12", "major": 237, "minor": 12}
    data["devices"][0]["containerEdits"]["deviceNodes"].append(node)
    assert nodes(device_edits(Spec.model_validate(data), GPU_0)) == CONTROL | {"/dev/nvidia0"}


# --- no device of anybody else ------------------------------------------------------------------


def own_nodes(spec: Spec, device: str) -> set[str]:
    """The nodes that stand for this device in the toolkit's answer."""
    return {
        node.path
        for found in spec.devices
        if found.name == device
        for node in found.container_edits.device_nodes
    }


def assert_alone(spec: Spec, device: str) -> None:
    """The lease of ``device`` names nothing of another, but the card that MIG instances share."""
    given_nodes = nodes(device_edits(spec, device))
    mine = own_nodes(spec, device)
    for other in {found.name for found in spec.devices} - {device, "all"}:
        assert not given_nodes & (own_nodes(spec, other) - mine), other
    foreign_caps = {path for path in given_nodes if path.startswith(CAPS)} - mine
    assert not foreign_caps


@pytest.mark.parametrize("machine", [H100S, MIGS])
@given(data=st.data())
def test_no_recorded_device_is_in_anothers_lease(machine: str, data: st.DataObject):
    devices = [d for d in document(machine)["devices"] if d["name"] != "all"]
    subset = data.draw(
        st.lists(st.sampled_from(devices), min_size=1, unique_by=lambda d: d["name"])
    )
    spec = Spec.model_validate({**document(machine), "devices": subset})
    for device in subset:
        assert_alone(spec, device["name"])


@st.composite
def machines(draw: st.DrawFn) -> dict[str, Any]:
    """Up to eight GPUs, each whole or cut into instances, in the toolkit's form."""
    devices: list[dict[str, Any]] = []
    for minor in range(draw(st.integers(1, 8))):
        card = {"path": f"/dev/nvidia{minor}", "major": 195, "minor": minor}
        instances = draw(st.lists(st.integers(0, 14), max_size=7, unique=True))
        if not instances or draw(st.booleans()):
            screen = {"path": f"/dev/dri/card{minor}", "major": 226, "minor": minor}
            edits: dict[str, Any] = {"deviceNodes": [card, screen]}
            devices.append({"name": f"GPU-{minor}", "containerEdits": edits})
        for instance in instances:
            first = 3 + 135 * minor + 9 * instance
            caps = [
                {"path": f"{CAPS}{number}", "major": 237, "minor": number}
                for number in (first, first + 1)
            ]
            edits = {"deviceNodes": [card, *caps]}
            devices.append({"name": f"MIG-{minor}-{instance}", "containerEdits": edits})
    common = document(H100S)["containerEdits"]
    return {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices,
            "containerEdits": common}  # fmt: skip


@given(machines())
def test_no_device_of_any_machine_is_in_anothers_lease(machine: dict[str, Any]):
    spec = Spec.model_validate(machine)
    for device in spec.devices:
        assert_alone(spec, device.name)
        mine = own_nodes(spec, device.name)
        wanted = {path for path in mine if not path.startswith("/dev/dri")}
        assert nodes(device_edits(spec, device.name)) == CONTROL | wanted


# --- what cannot be used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "device", "missing", "named"),
    [
        (H100S, GPU_0, "/dev/nvidia-uvm", "/dev/nvidia-uvm"),
        (H100S, GPU_0, "/dev/nvidiactl", "/dev/nvidiactl"),
        (H100S, GPU_0, "/dev/nvidia0", GPU_0),
        (MIGS, MIG_2G, "/dev/nvidia0", MIG_2G),
        (MIGS, MIG_2G, CAPS + "48", "/dev/nvidia-caps"),
        (MIGS, MIG_2G, CAPS + "49", "/dev/nvidia-caps"),
    ],
)
def test_a_device_without_a_node_it_needs_is_refused(
    machine: str, device: str, missing: str, named: str
):
    """The toolkit leaves out what it does not find, with a warning in its log only."""
    data = document(machine)
    for edits in (data["containerEdits"], *(d["containerEdits"] for d in data["devices"])):
        edits["deviceNodes"] = [n for n in edits["deviceNodes"] if n["path"] != missing]
    with pytest.raises(Refused, match=named) as refused:
        device_edits(Spec.model_validate(data), device)
    assert refused.value.refusal.reason == "device-unavailable"


def test_two_cards_for_one_device_are_refused():
    data = document(H100S)
    data["devices"][0]["containerEdits"]["deviceNodes"].append(
        {"path": "/dev/nvidia1", "major": 195, "minor": 1}
    )
    with pytest.raises(Refused, match=GPU_0):
        device_edits(Spec.model_validate(data), GPU_0)


# --- asking the toolkit -------------------------------------------------------------------------


def ask(*command: str, device: str = GPU_0, limit_s: float = 60.0) -> Edits:
    return asyncio.run(Toolkit(command, limit_s=limit_s).edits(device))


def refusal(*command: str, device: str = GPU_0, limit_s: float = 60.0) -> str:
    with pytest.raises(Refused) as refused:
        ask(*command, device=device, limit_s=limit_s)
    assert refused.value.refusal.reason == "device-unavailable"
    message = refused.value.refusal.message
    assert "gpuslice doctor" in message
    return message


def test_the_toolkit_is_asked_in_words_that_it_understands():
    assert ask(*ctk("print", recorded_file(H100S))) == device_edits(recorded(H100S), GPU_0)


def test_a_second_document_of_newer_toolkits_changes_nothing():
    assert ask(*ctk("twice", recorded_file(H100S))) == device_edits(recorded(H100S), GPU_0)


def test_the_nodes_own_environment_is_no_option_of_the_toolkits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NVIDIA_CTK_CDI_OUTPUT_FILE_PATH", str(tmp_path / "elsewhere"))
    assert ask(*ctk("print", recorded_file(H100S))) == device_edits(recorded(H100S), GPU_0)
    assert not (tmp_path / "elsewhere").exists()


def test_a_toolkit_that_is_not_there_is_named():
    assert "nvidia-ctk-nowhere" in refusal("nvidia-ctk-nowhere")


def test_why_the_toolkit_failed_is_said():
    assert "Driver Not Loaded" in refusal(*ctk("fail", recorded_file(H100S)))


def test_a_torn_answer_is_no_answer():
    assert "no JSON" in refusal(*ctk("torn", recorded_file(H100S)))


def test_an_answer_that_is_not_understood_is_refused_by_field(tmp_path: Path):
    file = tmp_path / "spec.json"
    text = recorded_file(H100S).read_text()
    file.write_text(text.replace('"fileMode"', '"fileModus"', 1))
    assert "fileModus" in refusal(*ctk("print", file))


def test_a_device_that_the_toolkit_does_not_know_is_named():
    assert MIG_1G in refusal(*ctk("print", recorded_file(H100S)), device=MIG_1G)


def test_a_toolkit_that_hangs_is_named(tmp_path: Path):
    assert "has not answered" in refusal(*ctk("hang", tmp_path / "pids"), limit_s=0.2)


def test_a_toolkit_that_is_given_up_is_ended_with_all_that_it_started(tmp_path: Path):
    pids = tmp_path / "pids"

    async def give_up() -> None:
        asked = asyncio.ensure_future(Toolkit(ctk("hang", pids), limit_s=600.0).edits(GPU_0))
        while not pids.exists() or len(pids.read_text().split()) < 2:
            assert not asked.done()
            await asyncio.sleep(0.05)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(give_up())
    deadline = time.monotonic() + 60
    while any(alive(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline, "processes of the toolkit are left"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended and whose parent has not noticed does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_many_questions_at_once_are_all_answered():
    async def many() -> list[Edits]:
        toolkit = Toolkit(ctk("print", recorded_file(H100S)), limit_s=120.0)
        return list(await asyncio.gather(*(toolkit.edits(GPU_1) for _ in range(9))))

    assert set(asyncio.run(many())) == {device_edits(recorded(H100S), GPU_1)}


def test_the_path_of_the_node_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "some-ctk"
    words = " ".join(f"'{word}'" for word in ctk("print", recorded_file(MIGS)))
    script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert ask("some-ctk", device=MIG_3G) == device_edits(recorded(MIGS), MIG_3G)
