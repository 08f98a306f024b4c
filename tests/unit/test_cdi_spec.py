"""CDI files as values: what they say, in which order, and of which version."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cdiworld import H100S, MIGS, document, recorded
from gpuslice.node.docker.cdi import (
    DeviceNode,
    Edits,
    Hook,
    Mount,
    Spec,
    joined,
    slice_spec,
    with_last,
)

LEASE = "0123456789abcdef0123456789abcdef"


def test_a_leases_file_says_what_is_needed_and_nothing_more():
    edits = Edits(
        env=("NVIDIA_CTK_LIBCUDA_DIR=/lib",),
        device_nodes=(DeviceNode(path="/dev/nvidia0", type="c", major=195, file_mode=0o666),),
        mounts=(Mount(host_path="/h/a", container_path="/a", options=("ro",)),),
        hooks=(Hook(hook_name="createContainer", path="/h/hook", args=("hook", "x"), timeout=3),),
    )
    assert slice_spec(LEASE, edits, {"CUDA_VISIBLE_DEVICES": "GPU-1"}).document() == {
        "cdiVersion": "0.5.0",
        "kind": "gpuslice.dev/slice",
        "devices": [
            {
                "name": LEASE,
                "containerEdits": {
                    "env": ["NVIDIA_CTK_LIBCUDA_DIR=/lib", "CUDA_VISIBLE_DEVICES=GPU-1"],
                    "deviceNodes": [
                        {"path": "/dev/nvidia0", "type": "c", "major": 195, "fileMode": 0o666}
                    ],
                    "mounts": [{"hostPath": "/h/a", "containerPath": "/a", "options": ["ro"]}],
                    "hooks": [
                        {
                            "hookName": "createContainer",
                            "path": "/h/hook",
                            "args": ["hook", "x"],
                            "timeout": 3,
                        }
                    ],
                },
            }
        ],
    }


@pytest.mark.parametrize("machine", [H100S, MIGS])
def test_what_is_read_is_written_again_unchanged(machine: str):
    assert recorded(machine).document() == document(machine)


@pytest.mark.parametrize(
    "where",
    [(), ("containerEdits",), ("devices", 0), ("devices", 0, "containerEdits"),
     ("containerEdits", "mounts", 0), ("containerEdits", "deviceNodes", 0),
     ("containerEdits", "hooks", 0)],
)  # fmt: skip
def test_a_field_that_is_not_known_is_refused_wherever_it_is(where: tuple[str | int, ...]):
    data = document(H100S)
    part = data
    for step in where:
        part = part[step]
    part["netDevices"] = []
    with pytest.raises(ValidationError, match="netDevices"):
        Spec.model_validate_json(json.dumps(data))


def test_a_files_own_edits_come_before_its_devices():
    first = Edits(env=("A=1", "B=1"), mounts=(Mount(host_path="/1", container_path="/1"),))
    second = Edits(
        env=("B=2",),
        mounts=(Mount(host_path="/2", container_path="/2"),),
    )
    both = joined(first, second)
    assert both.env == ("A=1", "B=2")
    assert [mount.host_path for mount in both.mounts] == ["/1", "/2"]


names = st.text("ABC_", min_size=1, max_size=3)
values = st.text("xyz=/", max_size=4)


@given(st.lists(st.tuples(names, values)), st.dictionaries(names, values))
def test_the_last_word_is_ours(entries: list[tuple[str, str]], ours: dict[str, str]):
    result = with_last([f"{name}={value}" for name, value in entries], ours)
    pairs = [entry.split("=", 1) for entry in result]
    assert len({name for name, _ in pairs}) == len(pairs)
    # As the engine reads it: the last one of a name counts.
    assert dict(pairs) == {**dict(entries), **ours}
