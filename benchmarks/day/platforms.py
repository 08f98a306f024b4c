"""Two platforms of one kind of server: gpuslice's, and a JupyterHub with its own local spawner."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import requests
from platform_world import Platform, free_ports, until

from gpuslice.cli.proxy import proxy_command
from gpuslice.cli.secrets import read_secret
from nvmlsim import Fleet, GpuSpec

HERE = Path(__file__).parent
#: Quarters of one GPU.
PER_GPU = 4
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

SETTINGS = """\
[service]
port = {service}
[hub]
api_url = "http://127.0.0.1:{hub}/hub/api"
[limits]
leases_per_user = 1
[[slice]]
name = "quarter"
kind = "shared"
model = "L4"
share = "1/4"
ram = "16 MiB"
price = "0.36"
"""
#: What everybody is bound by: a look at all these limits is part of each start.
POLICY = {
    "each": {"slices": 1, "gpu_hours": [{"at_most": "20", "per": "week"}]},
    "total": {"money": [{"at_most": "50", "per": "month"}]},
}


class Ours(Platform):
    """``gpuslice up`` with simulated GPUs."""

    name = "gpuslice"

    def __init__(self, folder: Path, people: Sequence[str], password: str, slots: int) -> None:
        folder.mkdir()
        super().__init__(folder)
        self.config.write_text(SETTINGS.format(service=self.service_port, hub=self.hub_port))
        self._hub_config = HERE / "hub_ours.py"
        self._gpus = -(-slots // PER_GPU)
        os.environ.update(BENCH_PEOPLE=" ".join(people), BENCH_PASSWORD=password)

    def _make_fleet(self) -> None:
        path = self.state / "nvmlsim" / "fleet"
        path.parent.mkdir(mode=0o700, parents=True)
        Fleet.create(path, [GpuSpec("NVIDIA L4")] * self._gpus).close()

    def start(self) -> None:
        super().start()
        answer = requests.put(
            f"http://127.0.0.1:{self.service_port}/services/gpuslice"
            "/api/admin/policies/groups/course",
            headers={"Authorization": f"token {self._operator()}"},
            json={"document": POLICY, "version": None, "reason": "a benchmark"},
            timeout=60,
        )
        answer.raise_for_status()

    def _operator(self) -> str:
        return read_secret(self.state / "secrets", "operator_token")

    def processor_s(self) -> dict[str, float]:
        """Seconds of processor time that each part has used so far."""
        return {part: processor_s(self.pid(part)) for part in ("proxy", "hub", "service", "node")}

    def end(self) -> list[str]:
        """Ends in order; what ``gpuslice ledger verify`` finds wrong then."""
        self.stop()
        return self.verify()

    def kill(self) -> None:
        self.kill_everything()


class Stock:
    """Proxy and hub, with SimpleLocalProcessSpawner."""

    name = "SimpleLocalProcessSpawner"

    def __init__(self, folder: Path, people: Sequence[str], password: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.port, self.proxy_api, self.hub_port = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port}"
        self._people, self._password = list(people), password
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        token = {"CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(32)}
        proxy = [
            *proxy_command(), "--ip", "127.0.0.1", "--port", str(self.port),
            "--api-ip", "127.0.0.1", "--api-port", str(self.proxy_api),
            "--default-target", f"http://127.0.0.1:{self.hub_port}",
        ]  # fmt: skip
        self._run("proxy", proxy, token)
        env = {
            "BENCH_URL": self.url, "BENCH_HUB_PORT": str(self.hub_port),
            "BENCH_PROXY_API": f"http://127.0.0.1:{self.proxy_api}",
            "BENCH_HOMES": str(self.folder / "homes"),
            "BENCH_PEOPLE": " ".join(self._people), "BENCH_PASSWORD": self._password,
        }  # fmt: skip
        hub = [sys.executable, "-m", "jupyterhub", "-f", str(HERE / "hub_stock.py")]
        self._run("hub", hub, env | token)
        until("the stock hub answers", self._answers, patience_s=150)

    def _run(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                argv, cwd=self.folder, env={**os.environ, **env}, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def _answers(self) -> bool:
        for name, process in self._processes.items():
            if process.poll() is not None:
                text = (self.folder / f"{name}.log").read_text(errors="replace")
                raise RuntimeError(f"{name} of {self.name} ended:\n{text[-2000:]}")
        with suppress(requests.RequestException):
            return requests.get(f"{self.url}/hub/api/", timeout=5).ok
        return False

    def processor_s(self) -> dict[str, float]:
        """Seconds of processor time that each part has used so far."""
        return {name: processor_s(process.pid) for name, process in self._processes.items()}

    def end(self) -> None:
        """Ends the hub first, which ends the servers that are left."""
        for name in ("hub", "proxy"):
            process = self._processes.pop(name, None)
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60)


def processor_s(pid: int) -> float:
    """Seconds of processor time of one process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
