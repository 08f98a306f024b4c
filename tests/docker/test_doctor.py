"""gpuslice doctor on a real engine: as it is, failing, with a GPU, with GPUs for everybody."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException
from requests.exceptions import RequestException

from dockerworld import CDI_DIR
from doctorworld import PYTHON_IMAGE, build_cuda, python_image, python_layer
from engineproxy import EngineProxy
from gpuslice.cli.doctor import examine, gputest, wiring
from gpuslice.cli.doctor.findings import Finding
from gpuslice.cli.doctor.machine import Machine
from gpuslice.cli.state import State
from gpuslice.settings import load_settings
from hubworld import DockerPlatform
from pyscript import write_script

pytestmark = pytest.mark.docker

GPU = "GPU-01234567-89ab-cdef-0123-456789abcdef"
ONE = GPU[4:].replace("-", "")
PATIENCE_S = 60.0


class World:
    """Settings for the doctor, and what programs and CDI devices a test adds to the machine."""

    def __init__(self, folder: Path, socket: str, image: str, patch: pytest.MonkeyPatch) -> None:
        self.kind = f"gpuslice.test/doctor{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.state = folder / "state"
        self.config = folder / "gpuslice.toml"
        self.config.write_text(
            '[hub]\napi_url = "http://127.0.0.1:9/hub/api"\n[service]\nport = 9\n'
            f'[docker]\nsocket = "{socket}"\nhost_dir = "{folder}/host"\n'
            f'[[docker.image]]\nreference = "{image}"\n'
        )
        self._patch = patch
        self._programs = folder / "bin"
        self._programs.mkdir()
        patch.setenv("PATH", f"{self._programs}:{os.environ['PATH']}")

    @property
    def cdi_file(self) -> Path:
        return CDI_DIR / f"{self.kind.replace('/', '-')}.json"

    def machine(self) -> Machine:
        return Machine(load_settings(self.config), State(self.state), "docker")

    def findings(self, **wishes: Any) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = {}
        asked = {"config": self.config, "state": self.state, "engine": "docker"} | wishes
        for finding in examine.examine(examine.Wishes(**asked)).findings:
            assert "broke off" not in finding.verdict.what, finding
            found.setdefault(finding.id, []).append(finding)
        return found

    def gpu(self, library: Path, *, uuids: str = ONE, given: str = GPU, **variables: str) -> None:
        """``nvidia-smi`` lists one GPU, and a CDI device has a CUDA driver that sees ``uuids``."""
        program = self._programs / "nvidia-smi"
        listing = f"GPU 0: Some GPU (UUID: {GPU})"
        program.write_text(
            f'#!/bin/sh\n[ "$1" = -L ] && echo "{listing}" ||\n'
            f'echo "0, {GPU}, Some GPU, 615.71.09, Disabled, Disabled"\n'
        )
        program.chmod(0o755)
        node = {"path": "/dev/nvidia0", "hostPath": "/dev/null", "type": "c"}
        mount = {"hostPath": str(library), "containerPath": "/usr/lib/libcuda.so.1"}
        variables = {"FAKE_CUDA_UUIDS": uuids, **variables}
        edits = {
            "env": [f"{name}={value}" for name, value in variables.items()],
            "mounts": [{**mount, "options": ["ro", "bind"]}],
            "deviceNodes": [{**node, "major": 1, "minor": 3}],
        }
        spec = {
            "cdiVersion": "0.6.0", "kind": self.kind,
            "devices": [{"name": given, "containerEdits": edits}],
        }  # fmt: skip
        temporary = self.cdi_file.with_suffix(".new")
        temporary.write_text(json.dumps(spec))
        temporary.replace(self.cdi_file)

    def tried(self) -> gputest.TrialFacts:
        return gputest.look(self.machine(), self.kind)


@pytest.fixture
def world(
    tmp_path: Path, client: docker.DockerClient, proxy: EngineProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    CDI_DIR.mkdir(parents=True, exist_ok=True)
    world = World(tmp_path, proxy.socket, python_image(client), monkeypatch)
    yield world
    world.cdi_file.unlink(missing_ok=True)
    for container in ours(client):
        container.remove(force=True)


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cuda(tmp_path_factory.mktemp("cuda"))


def ours(client: docker.DockerClient) -> list[Any]:
    listed = client.containers.list(all=True, filters={"label": gputest.LABEL}, ignore_removed=True)
    return list(listed)


# ------------------------------------------------------------------------------ the engine as it is


def test_a_real_engine_is_judged_by_what_it_says(world: World, client: docker.DockerClient) -> None:
    found = {name: finding[0].verdict for name, finding in world.findings().items()}
    info = client.info()
    assert info["ServerVersion"].split("+")[0] in found["engine.version"].what
    assert found["engine.api"].level.value == "ok"
    assert found["engine.cdi"].level.value == "ok"
    assert found["engine.limits"].level.value == ("ok" if info["SwapLimit"] else "warning")
    grouped = {"1": {"note", "warning"}, "2": {"ok"}}
    assert found["engine.cgroup"].level.value in grouped[info["CgroupVersion"]]
    assert found["docker.images"].level.value == "ok"
    assert found["docker.home"].what.startswith("Homes are volumes of the engine, on ")
    assert found["docker.network-pool"].level.value in ("ok", "problem")
    assert "host.disks" in found


@pytest.mark.parametrize("fails", ["500", "hangs", "resets", "is cut", "is away"])
def test_an_engine_that_fails_is_a_problem_and_takes_nothing_with_it(
    world: World, proxy: EngineProxy, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuslice.cli.doctor.machine.ENGINE_LIMIT_S", 0.2)
    match fails:
        case "500":
            proxy.answer("", "")
        case "hangs":
            proxy.hang("", "")
        case "resets":
            proxy.reset("", "")
        case "is cut":
            proxy.cut("GET", "/info", 100)
        case "is away":
            proxy.down()
    found = world.findings(gpu=True)
    levels = {name: finding[0].level.value for name, finding in found.items()}
    assert levels["engine.look"] == "problem"
    assert levels["docker.look"] == levels["gpu-test.look"] == "unknown"
    assert {"gpus.present", "files.look", "wiring.running", "host.disks"} <= set(levels)
    if fails == "is away":
        proxy.up()


def test_an_engine_that_fails_later_is_told(world: World, proxy: EngineProxy) -> None:
    proxy.answer("GET", "/images/")
    found = world.findings()
    assert found["engine.version"][0].level.value == "ok"
    assert found["docker.look"][0].level.value == "unknown"


def test_an_image_that_is_not_here(world: World) -> None:
    world.config.write_text(world.config.read_text().replace(PYTHON_IMAGE, "gpuslice-test/none:1"))
    found = world.findings()
    assert "gpuslice-test/none:1" in found["docker.images"][0].verdict.what


# ------------------------------------------------------------------------------ GPUs in containers


def test_a_gpu_that_works_in_a_container(
    world: World, cuda: Path, client: docker.DockerClient
) -> None:
    world.gpu(cuda)
    facts = world.tried()
    (verdict,) = gputest.devices(facts)
    assert (verdict.level.value, facts.devices[0].files) == ("ok", ("nvidia0",)), verdict
    assert "64 MiB" in verdict.what
    # Neither of the containers without a device has it.
    assert [attempt.files for attempt in facts.without] == [(), ()]
    assert ours(client) == []


@pytest.mark.parametrize(
    ("spoilt", "level", "words"),
    [
        ({"uuids": ONE + "f" * 32}, "problem", "f" * 32),
        ({"uuids": "f" * 32}, "problem", "alone sees"),
        ({"uuids": ""}, "problem", "none"),
        ({"FAKE_CUDA_FAIL": "cuMemAlloc_v2"}, "problem", "cuMemAlloc_v2 failed"),
        ({"FAKE_CUDA_CORRUPT": "1"}, "problem", "not what was written"),
        ({"given": "GPU-another"}, "unknown", "knows no CDI device"),
    ],
)
def test_a_gpu_that_does_not(
    world: World, cuda: Path, client: docker.DockerClient, spoilt: dict[str, str], level: str,
    words: str,
) -> None:  # fmt: skip
    world.gpu(cuda, **spoilt)
    (verdict,) = gputest.devices(world.tried())
    assert verdict.level.value == level, verdict
    assert words in verdict.what
    assert ours(client) == []


def test_an_image_without_python_says_so(
    world: World, cuda: Path, tiny: str, client: docker.DockerClient
) -> None:
    world.gpu(cuda)
    world.config.write_text(world.config.read_text().replace(PYTHON_IMAGE, tiny))
    (verdict,) = gputest.devices(world.tried())
    assert (verdict.level.value, "python3" in verdict.what) == ("unknown", True)
    assert ours(client) == []


def test_without_a_gpu_nothing_is_claimed(world: World) -> None:
    found = world.findings(gpu=True, only=frozenset({"gpu-test"}))
    (devices,) = found["gpu-test.devices"]
    assert (devices.level.value, "no GPU is seen" in devices.verdict.what) == ("unknown", True)
    if not any(Path("/dev").glob("nvidia*")):
        assert found["gpu-test.without"][0].level.value == "unknown"


def test_what_an_earlier_run_left_is_removed(
    world: World, cuda: Path, proxy: EngineProxy, client: docker.DockerClient
) -> None:
    world.gpu(cuda)
    proxy.answer("DELETE", "/containers/")
    assert gputest.devices(world.tried())[0].level.value == "ok"
    assert ours(client) != []
    proxy.clear()
    world.tried()
    assert ours(client) == []


def test_a_container_that_does_not_end_is_ended(
    world: World, cuda: Path, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.gpu(cuda)
    monkeypatch.setattr(gputest, "CONTAINER_LIMIT_S", 0.5)
    endless = {"Entrypoint": ["python3"], "Cmd": ["-c", "while True: pass"]}
    made = gputest.container_body
    monkeypatch.setattr(gputest, "container_body", lambda *a, **k: {**made(*a, **k), **endless})
    (verdict,) = gputest.devices(world.tried())
    assert (verdict.level.value, "did not end" in verdict.what) == ("problem", True)
    assert ours(client) == []


def test_the_command_on_a_real_engine(world: World) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "gpuslice", "doctor", "--engine", "docker", "--gpu",
            "--config", str(world.config), "--state", str(world.state),
            "--node-socket", str(world.state / "control.sock"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2), done.stderr
    assert "gpu-test.devices" in done.stdout
    assert done.stdout.rstrip().endswith("fine.")


# --------------------------------------------------------------------------------- a whole platform


def test_a_platform_that_is_well(client: docker.DockerClient, tiny: str, tmp_path: Path) -> None:
    """The engine is the node's, without being told."""
    platform = DockerPlatform(tmp_path, client, [tiny])
    try:
        platform.start()
        done = subprocess.run(
            [
                sys.executable, "-m", "gpuslice", "doctor", "--json",
                "--config", str(platform.config), "--state", str(platform.state),
                "--url", platform.url,
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        platform.end()
    report = json.loads(done.stdout)
    assert report["engine"] == "docker"
    wrong = [one for one in report["findings"] if one["level"] in ("problem", "unknown")]
    # A machine may have no clock that is synchronised, but its kernel says so.
    assert (done.returncode, wrong) == (0, [])
    fine = {one["id"] for one in report["findings"] if one["level"] == "ok"}
    assert {f"wiring.{name}" for name in wiring.CHECKS} <= fine
    assert {"engine.cdi", "docker.images", "docker.cdi-dir", "files.sockets"} <= fine


# ------------------------------------------------------ an engine whose default runtime is NVIDIA's

#: As NVIDIA's does it in its legacy mode: what the environment asks for is given.
RUNTIME = """\
import json, os, sys
arguments = sys.argv[1:]
if "create" in arguments:
    bundle = arguments[arguments.index("--bundle") + 1]
    path = os.path.join(bundle, "config.json")
    with open(path) as stream:
        config = json.load(stream)
    with open({gives!r}) as stream:
        gives = json.load(stream)
    env = dict(entry.partition("=")[::2] for entry in config["process"]["env"])
    if env.get("NVIDIA_VISIBLE_DEVICES") in gives:
        node = {{"path": "/dev/nvidia0", "type": "c", "major": 1, "minor": 3}}
        config["linux"].setdefault("devices", []).append(node)
        with open(path, "w") as stream:
            json.dump(config, stream)
os.execvp("runc", ["runc", *arguments])
"""


@dataclass
class OwnEngine:
    """An engine of these tests whose default runtime is called ``nvidia``."""

    socket: str
    #: What must be in ``NVIDIA_VISIBLE_DEVICES`` for the runtime to give a GPU: a JSON list.
    gives: Path


@pytest.fixture(scope="module")
def nvidia_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnEngine]:
    if os.geteuid() != 0:
        pytest.skip("only root can start an engine")
    folder = tmp_path_factory.mktemp("engine")
    own = OwnEngine(f"{folder}/e.sock", folder / "gives.json")
    runtime, data = folder / "nvidia-container-runtime", folder / "data"
    write_script(runtime, RUNTIME.format(gives=str(own.gives)))
    (folder / "daemon.json").write_text(json.dumps({"features": {"cdi": True}}))
    log = folder / "dockerd.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                # An engine without a bridge removes docker0: not the one of this machine's.
                "unshare", "--net",
                "dockerd", "--host", f"unix://{own.socket}", "--config-file", "daemon.json",
                "--data-root", str(data), "--exec-root", str(folder / "x"),
                "--pidfile", str(folder / "pid"), "--bridge", "none", "--iptables=false",
                "--ip6tables=false", "--add-runtime", f"nvidia={runtime}",
                "--default-runtime", "nvidia",
            ],
            stdout=stream, stderr=subprocess.STDOUT, cwd=folder,
        )  # fmt: skip
    try:
        client = docker.DockerClient(base_url=f"unix://{own.socket}", version="1.44", timeout=60)
        _wait_for(client, process, log)
        changes = ["ENV PATH=/usr/bin:/bin"]
        client.api.import_image_from_data(python_layer(), *PYTHON_IMAGE.split(":"), changes=changes)
        client.close()
        yield own
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        # It leaves its folder mounted on itself.
        subprocess.run(["umount", str(data)], check=False, capture_output=True)
        shutil.rmtree(data, ignore_errors=True)


def _wait_for(client: docker.DockerClient, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            client.ping()
        except (DockerException, RequestException):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize(
    ("gives", "runtime", "without", "words"),
    [
        (("all",), "ok", "problem", "NVIDIA_VISIBLE_DEVICES=all, sees nvidia0"),
        (("all", "void"), "problem", "problem", "NVIDIA_VISIBLE_DEVICES=void, sees nvidia0"),
        ((), "ok", "ok", "sees none"),
    ],
)
def test_a_default_runtime_that_gives_gpus_away(
    nvidia_engine: OwnEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    gives: tuple[str, ...], runtime: str, without: str, words: str,
) -> None:  # fmt: skip
    """Without ``--gpu`` it is suspected, with it known: void must be void, and all is no order."""
    nvidia_engine.gives.write_text(json.dumps(gives))
    world = World(tmp_path, nvidia_engine.socket, PYTHON_IMAGE, monkeypatch)
    only = frozenset({"engine", "gpu-test"})
    assert world.findings(only=only)["engine.runtime"][0].level.value == "warning"
    # This machine may have no GPU, so no device files that could be told apart from none.
    monkeypatch.setattr(gputest, "_has_gpu_files", lambda _: True)
    found = world.findings(gpu=True, only=only)
    assert found["engine.runtime"][0].level.value == runtime, found
    assert found["gpu-test.without"][0].level.value == without
    assert words in " ".join(one.verdict.what for one in found["gpu-test.without"])
