"""The program that gpuslice doctor --gpu runs in a container, on a CUDA driver that is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from doctorworld import build_cuda
from gpuslice.cli.doctor import cudaprobe

ONE, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cuda(tmp_path_factory.mktemp("cuda"))


def run(cuda: Path | None, *words: str, **variables: str) -> dict[str, Any]:
    """As in the container: the text of the program, and nothing of gpuslice."""
    environment = {"PATH": os.environ["PATH"], **variables}
    if cuda is not None:
        environment["LD_LIBRARY_PATH"] = str(cuda.parent)
    text = Path(cudaprobe.__file__).read_text("utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "-c", text, *words],
        env=environment, cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert line.startswith(cudaprobe.MARK)
    found: dict[str, Any] = json.loads(line.removeprefix(cudaprobe.MARK))
    return found


def test_a_device_that_works(cuda: Path) -> None:
    found = run(cuda, "cuda", FAKE_CUDA_UUIDS=ONE)
    assert (found["uuids"], found["bytes"]) == ([ONE], cudaprobe.BYTES)
    assert "error" not in found
    assert isinstance(found["devices"], list)


def test_every_device_that_is_seen_is_told(cuda: Path) -> None:
    assert run(cuda, "cuda", FAKE_CUDA_UUIDS=ONE + OTHER)["uuids"] == [ONE, OTHER]
    assert run(cuda, "cuda")["uuids"] == []


@pytest.mark.parametrize(
    "call",
    [
        "cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetUuid_v2", "cuCtxCreate_v2",
        "cuMemAlloc_v2", "cuMemsetD8_v2", "cuMemcpyDtoH_v2", "cuMemFree_v2", "cuCtxDestroy_v2",
    ],
)  # fmt: skip
def test_a_call_that_fails_is_named(cuda: Path, call: str) -> None:
    found = run(cuda, "cuda", FAKE_CUDA_UUIDS=ONE, FAKE_CUDA_FAIL=call)
    assert found["error"] == f"{call} failed with CUDA error 999"
    assert "bytes" not in found


def test_memory_that_forgets(cuda: Path) -> None:
    found = run(cuda, "cuda", FAKE_CUDA_UUIDS=ONE, FAKE_CUDA_CORRUPT="1")
    assert found["error"] == "what was read is not what was written"


def test_no_driver() -> None:
    assert "libcuda.so.1" in run(None, "cuda")["error"]


def test_without_a_device_nothing_of_cuda_is_touched() -> None:
    assert set(run(None)) == {"devices"}
