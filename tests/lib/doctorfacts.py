"""Facts of a machine on which ``gpuslice doctor`` finds nothing, for tests that spoil one thing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from threading import Thread
from typing import Any

from gpuslice.cli.doctor.access import SocketFacts
from gpuslice.cli.doctor.database import DatabaseFacts
from gpuslice.cli.doctor.dockersettings import GateFacts, ImageFacts, SettingsFacts
from gpuslice.cli.doctor.engine import EngineFacts, engine_facts
from gpuslice.cli.doctor.findings import Verdict, Verdicts
from gpuslice.cli.doctor.gpus import GpuFacts, SmiGpu
from gpuslice.cli.doctor.gputest import Attempt, TrialFacts
from gpuslice.cli.doctor.host import Disk, HostFacts
from gpuslice.cli.doctor.machine import Answer
from gpuslice.cli.doctor.places import Mount, Place
from gpuslice.cli.doctor.privatefiles import PrivateFacts
from gpuslice.cli.doctor.toolkit import ToolkitFacts
from gpuslice.cli.doctor.wiring import Reply, WiringFacts
from gpuslice.cli.secrets import SECRETS
from gpuslice.settings import DockerSettings
from gpuslice.spawners.configure import SERVICE_SCOPES
from gpuslice.units import GIB
from gpuslice.wire import DeviceReport, Enforcement, HostReport, Inventory

GPU = "GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5"
MIG_GPU = "GPU-11111111-2222-3333-4444-555555555555"
INSTANCE = "MIG-5c89852c-d268-c3f3-1b07-005d5ae1dc3f"

#: What an engine of the kind that is wanted answers, as far as it is looked at.
VERSION = {"Version": "29.1.2", "ApiVersion": "1.52", "MinAPIVersion": "1.44"}
INFO: dict[str, Any] = {
    "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
    "LiveRestoreEnabled": True,
    "LoggingDriver": "local",
    "DefaultRuntime": "runc",
    "Runtimes": {"runc": {"path": "runc"}, "io.containerd.runc.v2": {"path": "runc"}},
    "CgroupDriver": "systemd",
    "CgroupVersion": "2",
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"],
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "Warnings": None,
    "Swarm": {"LocalNodeState": "inactive"},
    "DockerRootDir": "/var/lib/docker",
}


def socket_facts(**spoilt: Any) -> SocketFacts:
    return SocketFacts(**{"path": "/run/docker.sock", "mode": 0o140660, "group": "docker"} | spoilt)


def engine(version: Mapping[str, Any] = VERSION, **spoilt: Any) -> EngineFacts:
    """From an engine's answers; keys in capitals spoil ``/info``, others the facts."""
    info = INFO | {key: value for key, value in spoilt.items() if key[0].isupper()}
    more = {key: value for key, value in spoilt.items() if not key[0].isupper()}
    return engine_facts(dict(version), info, more.pop("daemon", None), **more)


def toolkit(printed: str = "NVIDIA Container Toolkit CLI version 1.20.1", **spoilt: Any) -> Any:
    answer = spoilt.pop("answer", Answer(0, f"{printed}\ncommit: 5505e2f\n"))
    return ToolkitFacts(**{"command": "nvidia-ctk", "answer": answer, "real_gpus": True} | spoilt)


def device(**spoilt: Any) -> DeviceReport:
    facts = {
        "uuid": GPU, "kind": "gpu", "index": 0, "model": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 80 * GIB, "share_enforcement": Enforcement.CGROUP,
    }  # fmt: skip
    return DeviceReport(**facts | spoilt)


def inventory(*devices: DeviceReport, **spoilt: Any) -> Inventory:
    facts = {
        "node_id": "local", "boot_id": "b", "engine": "docker", "now_us": 1, "boottime_us": 1,
        "simulated": False, "driver_version": "615.71.09", "gpu_problem": None,
        "host": HostReport(cpu_milli=8000, ram_bytes=64 * GIB),
        "devices": list(devices) or [device()], "enforcement_ceiling": Enforcement.EXCLUSIVE,
    }  # fmt: skip
    return Inventory(**facts | spoilt)


def smi(**spoilt: Any) -> SmiGpu:
    facts = {"index": 0, "uuid": GPU, "name": "NVIDIA H100 80GB HBM3", "driver": "615.71.09"}
    return SmiGpu(**facts | {"mig": "Disabled", "mig_pending": "Disabled"} | spoilt)


def gpus(**spoilt: Any) -> GpuFacts:
    facts = {
        "inventory": inventory(), "gpus": (smi(),), "kernel": (615, 71, 9),
        "device_files": frozenset({"nvidia0", "nvidiactl", "nvidia-uvm"}),
        "cdi_files": {"/var/run/cdi/nvidia.yaml": frozenset({GPU})},
    }  # fmt: skip
    return GpuFacts(**facts | spoilt)


LOCAL = Mount("/", "ext4", frozenset({"rw"}))
QUOTA = Mount("/srv", "xfs", frozenset({"rw", "prjquota"}))
NFS = Mount("/srv", "nfs4", frozenset({"rw"}))


def place(path: str, kind: str = "folder", mode: int = 0o755, **spoilt: Any) -> Place:
    return Place(**{"path": path, "kind": kind, "mode": mode, "mount": LOCAL} | spoilt)


def docker_settings(settings: DockerSettings | None = None, **spoilt: Any) -> SettingsFacts:
    facts = {
        "settings": settings or DockerSettings(home="/srv/homes"),
        "images": (ImageFacts("gpuslice/notebook:latest", True),),
        "home": place("/srv/homes"), "shared": None,
        "host_dir": place("/var/lib/gpuslice/host"), "cdi_dir": place("/var/run/cdi"),
        "gates": (GateFacts("hub", "running"),), "in_pool": (),
    }  # fmt: skip
    return SettingsFacts(**facts | spoilt)


def private(**spoilt: Any) -> PrivateFacts:
    folder = "/var/lib/gpuslice/secrets"
    facts = {
        "folder": place(folder, mode=0o700),
        "secrets": tuple(place(f"{folder}/{name}", "file", 0o600) for name in SECRETS),
        "sockets": (place("/var/lib/gpuslice/node/control.sock", "socket", 0o700),),
    }  # fmt: skip
    return PrivateFacts(**facts | spoilt)


def sqlite(**spoilt: Any) -> DatabaseFacts:
    facts = {
        "kind": "sqlite", "name": "the SQLite file /srv/ledger.sqlite", "revision": "0002",
        "head": "0002", "known": frozenset({"0001", "0002"}), "journal": "wal",
        "file": place("/srv/ledger.sqlite", "file", 0o600),
    }  # fmt: skip
    return DatabaseFacts(**facts | spoilt)


def postgres(**spoilt: Any) -> DatabaseFacts:
    on = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
    facts = {"kind": "postgresql", "name": "the database db", "server": 150006, "durable": on}
    return sqlite(**facts | {"file": None, "journal": None} | spoilt)


HUB = "http://127.0.0.1:8081/hub/api"
HEALTH = {"status": "ok"}


def wiring(**spoilt: Any) -> WiringFacts:
    me = {"kind": "service", "name": "gpuslice", "scopes": [*SERVICE_SCOPES, "read:users:name"]}
    facts = {
        "hub": Reply(f"{HUB}/", 200, {"version": "6.1.1"}),
        "service": Reply("http://127.0.0.1:8085/services/gpuslice/api/health", 200, HEALTH),
        "offers": Reply("http://127.0.0.1:8085/services/gpuslice/api/broker/offers", 200, items=3),
        "node": inventory(), "ourselves": Reply(f"{HUB}/user", 200, me),
        "public_service": Reply("https://hub/services/gpuslice/api/health", 200, HEALTH),
        "public_hub": Reply("https://hub/hub/health", 200), "engine": "docker",
    }  # fmt: skip
    return WiringFacts(**facts | spoilt)


def nothing(url: str) -> Reply:
    return Reply(url, None, error="[Errno 111] Connection refused")


def host(**spoilt: Any) -> HostFacts:
    disk = Disk("/srv", "ledger", 500 * GIB, 200 * GIB, 30_000_000, 29_000_000)
    return HostFacts(**{"synchronised": True, "disks": (disk,)} | spoilt)


def attempt(given: str, **spoilt: Any) -> Attempt:
    """A container that was given the good GPU."""
    seen = {"files": ("nvidia0",), "uuids": (GPU[4:].replace("-", ""),), "tried_bytes": 64 << 20}
    return Attempt(**{"given": given} | seen | spoilt)


def trial(**spoilt: Any) -> TrialFacts:
    facts = {
        "devices": (attempt(GPU),), "without": (Attempt("void"), Attempt("all")),
        "nothing": "", "gpu_files": True,
    }  # fmt: skip
    return TrialFacts(**facts | spoilt)


def level(found: Verdicts) -> str:
    """The worst level of what a check found; ``-`` when it does not apply."""
    verdicts = [found] if isinstance(found, Verdict) else found or []
    order = ["problem", "unknown", "warning", "note", "ok"]
    return min((one.level.value for one in verdicts), key=order.index, default="-")


def text(found: Verdicts) -> str:
    """All that a check says."""
    verdicts = [found] if isinstance(found, Verdict) else found or []
    return " ".join(f"{one.what} {one.do} {' '.join(one.references)}" for one in verdicts)


# --- a stand-in for the engine's socket -----------------------------------------------------


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    answer: Callable[[str], tuple[int, bytes] | None]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        answer = self.server.answer(self.path)
        if answer is None:
            return
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def engine_socket(path: Path, answer: Callable[[str], tuple[int, bytes] | None]) -> Iterator[str]:
    """A socket on which ``answer(path)`` says status and body; None closes the connection."""
    server = _Server(str(path), _Handler)
    server.answer = answer
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield str(path)
    finally:
        server.shutdown()
        server.server_close()
        path.unlink(missing_ok=True)


def engine_that_says(
    version: Mapping[str, Any] = VERSION, info: Mapping[str, Any] = INFO
) -> Callable[[str], tuple[int, bytes] | None]:
    """An engine with these answers and nothing in it: no image, container or network."""

    def answer(path: str) -> tuple[int, bytes]:
        plain = path.partition("?")[0]
        if plain == "/version":
            return 200, json.dumps(version).encode()
        if plain == "/info":
            return 200, json.dumps(info).encode()
        if plain.endswith(("/networks", "/containers/json")):
            return 200, b"[]"
        return 404, b'{"message": "no such thing"}'

    return answer
