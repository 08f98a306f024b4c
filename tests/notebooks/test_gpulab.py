"""gpulab never pretends: a GPU is one that has computed, and a cost is what the service says."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fakegpu
import numpy as np
import pytest
from starterworld import HERE

import gpulab
from gpulab import GpuRequired, open_lab
from gpuslice import wire
from notebookworld import ServiceStub, a_lease, a_me
from simfleet import three_models

VARIABLES = (
    "GPULAB_BACKEND", "GPUSLICE_SLICE", "GPUSLICE_LEASE", "GPUSLICE_SIMULATED",
    "GPUSLICE_SERVICE_URL", "JUPYTERHUB_API_TOKEN", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The fake CuPy, importable until the end of the test."""
    fakegpu.install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    import cupy  # type: ignore[import-not-found]

    yield cupy
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("cupy", "cupyx", "cucim"):
            del sys.modules[name]


# ------------------------------------------------------------------------------------ which library


def test_a_gpu_that_works_is_taken(gpu: types.ModuleType) -> None:
    lab = open_lab()
    assert lab.on == "GPU" and lab.why == fakegpu.NAME
    assert str(lab) == f"Computing on the GPU ({fakegpu.NAME}) with CuPy and cuCIM."
    there = lab.to_device(np.arange(3))
    assert isinstance(there, fakegpu.DeviceArray)
    assert lab.to_host(there).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"cuda": types.SimpleNamespace(is_available=lambda: False)}, "no GPU is visible here"),
        ({"arange": lambda n: np.zeros(n, int)}, "the GPU computes wrongly"),
        ({"arange": lambda n: 1 / 0}, "the GPU does not work (division by zero)"),
    ],
)
def test_a_gpu_that_does_not_work_is_not(
    gpu: types.ModuleType, monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any], why: str
) -> None:
    for name, value in broken.items():
        monkeypatch.setattr(gpu, name, value)
    lab = open_lab()
    assert lab.on == "CPU" and lab.why == why and lab.xp is np
    with pytest.raises(GpuRequired, match=r"A GPU was asked for, but .*\."):
        open_lab("gpu")


def test_a_simulated_gpu_computes_nothing(
    gpu: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSLICE_SIMULATED", "1")
    assert open_lab().why == "the GPU of this slice is SIMULATED"
    with pytest.raises(GpuRequired):
        open_lab("gpu")


def test_the_cpu_can_be_asked_for(gpu: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULAB_BACKEND", "cpu")
    assert open_lab().on == "CPU"
    monkeypatch.setenv("GPULAB_BACKEND", "tpu")
    with pytest.raises(ValueError, match="'tpu'"):
        open_lab()


@pytest.mark.skipif("cupy" in sys.modules, reason="CuPy is installed")
def test_without_cupy_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert open_lab().on == "CPU"
    assert "cupy" in open_lab().why


def test_the_clock_runs_while_the_work_does() -> None:
    done: list[int] = []
    seconds = open_lab("cpu").seconds(lambda: done.append(1), repeat=3)
    assert seconds >= 0 and len(done) == 4


# ----------------------------------------------------------------------------------- slice and cost


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceStub]:
    with ServiceStub() as stub:
        for name, value in stub.environment.items():
            monkeypatch.setenv(name, value)
        yield stub


def test_outside_the_platform_nothing_is_known() -> None:
    here = gpulab.my_slice()
    assert here.name is None and not here.simulated
    assert here.lease == "there is no gpuslice service here"
    assert here.cost(60) == "not known (there is no gpuslice service here)"


def test_the_lease_of_this_notebook(service: ServiceStub, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = a_lease(lease_id="b" * 32, simulated=False), a_lease(lease_id="c" * 32)
    service.me = lambda: a_me(other, mine, simulated=False)
    service.extra = {"from_a_newer_service": 1}
    monkeypatch.setenv("GPUSLICE_LEASE", "b" * 32)
    monkeypatch.setenv("GPUSLICE_SLICE", "whole")
    here = gpulab.my_slice()
    assert here.lease == mine
    assert here.cost(1800) == "about 1.8000 EUR"
    assert "Cost: 0.0500 EUR so far, at 3.60 EUR per hour" in str(here)
    assert "SIMULATED" not in str(here)
    assert service.asked == [("GET", "api/me")]


def test_of_a_shared_gpu_only_your_part_is_shown(service: ServiceStub) -> None:
    share = {"kind": wire.SliceKind.SHARED, "memory_bytes": 20 << 30, "share_milli": 250}
    service.me = lambda: a_me(a_lease(**share))
    assert gpulab.memory_used() == "GPU memory: not known (nothing was measured yet)"
    used = wire.Use(sampled_us=1, memory_used_bytes=3 << 30)
    service.me = lambda: a_me(a_lease(**share, use=used))
    assert gpulab.memory_used() == "GPU memory: 3 GiB of your 20 GiB in use (SIMULATED)"
    service.me = lambda: a_me(a_lease(**share, use=wire.Use(sampled_us=1, reason="It is silent.")))
    assert gpulab.memory_used() == "GPU memory: not known (It is silent)"


def test_simulated_is_said_of_slice_and_cost(service: ServiceStub) -> None:
    here = gpulab.my_slice()
    assert here.simulated
    assert here.cost(1).endswith("(SIMULATED, no real money)")
    assert str(here).count("SIMULATED") >= 1


def test_a_slice_that_is_over_costs_nothing_known(service: ServiceStub) -> None:
    service.me = lambda: a_me(a_lease(state=wire.LeaseState.ENDED))
    assert gpulab.my_slice().lease == "the gpuslice service knows of no slice here"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((403, b"{}"), "refused to say: 403"),
        ((302, b""), "refused to say: 302"),
        ((200, b"<html>"), "is not understood"),
        ((200, b'{"user": 1}'), "is not understood"),
    ],
)
def test_a_service_that_does_not_say(
    service: ServiceStub, answer: tuple[int, bytes], said: str
) -> None:
    service.broken = answer
    lease = gpulab.my_slice().lease
    assert isinstance(lease, str) and said in lease


def test_the_token_goes_nowhere_else(service: ServiceStub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"{service.url}api/me")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GPUSLICE_SERVICE_URL", f"http://127.0.0.1:{server.server_port}")
        lease = gpulab.my_slice().lease
        server.shutdown()
    assert lease == "the gpuslice service refused to say: 302"
    assert service.asked == []


def test_a_service_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")
    with ServiceStub() as gone:
        monkeypatch.setenv("GPUSLICE_SERVICE_URL", gone.url)
    assert gpulab.my_slice().lease == "the gpuslice service does not answer"
    monkeypatch.setenv("GPUSLICE_SERVICE_URL", "file:///etc/passwd")
    assert gpulab.my_slice().lease == "the service's address is not understood"


# -------------------------------------------------------------------------------------- GPU memory

_TELL = "import gpulab; print(gpulab.my_slice()); print(gpulab.memory_used())"


def _told(library: Path, state: Path, **env: str) -> str:
    """What gpulab says in a process that sees the simulated NVML."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    clean |= {
        "LD_LIBRARY_PATH": str(library.parent),
        "NVMLSIM_STATE": str(state),
        "PYTHONPATH": os.pathsep.join(
            str(HERE.parents[1] / folder) for folder in ("images/starters", "spawner")
        ),
    }
    done = subprocess.run(
        [sys.executable, "-c", _TELL], env=clean | env, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_memory_of_the_gpu_that_was_given(library: Path, tmp_path: Path) -> None:
    with three_models(tmp_path / "fleet") as fleet:
        last, mig = fleet.gpu(2).uuid, fleet.gpu(1).migs()[0].uuid
        said = _told(library, tmp_path / "fleet", CUDA_VISIBLE_DEVICES=last)
        assert "GPU: NVIDIA L4 (SIMULATED) with " in said
        assert " in use (SIMULATED)" in said
        assert "GPU: NVIDIA A100" in _told(library, tmp_path / "fleet", CUDA_VISIBLE_DEVICES=mig)
        none = _told(library, tmp_path / "fleet", CUDA_VISIBLE_DEVICES="")
        assert none.count("none, this notebook was given none") == 2
