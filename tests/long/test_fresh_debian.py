"""`make run` on a Debian that has nothing: git, make and python3, no Node, no compiler.

An empty root is made by debootstrap from this machine's own package sources, a checkout is put into
it under a path with spaces, and a user without rights sets it up and runs it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = "/home/demo/a checkout/gpuslice"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: What tells pip and Node how to reach their registries from here, besides the address itself.
_CARRIED = re.compile(
    r"(?i)^((http|https|no|all)_proxy|PIP_(CERT|INDEX_URL|DEFAULT_TIMEOUT)|"
    r"SSL_CERT_FILE|NODE_EXTRA_CA_CERTS|REQUESTS_CA_BUNDLE|YARN_\w+|npm_config_\w+)$"
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Debian:
    """An empty machine, in a folder."""

    root: Path

    def command(self, line: str, user: str = "demo") -> list[str]:
        """What runs `line` inside; its mounts end with it."""
        carried = [f"{name}={value}" for name, value in os.environ.items() if _CARRIED.match(name)]
        inside = [
            "chroot", f"--userspec={user}", str(self.root),
            "env", "-i", "HOME=/home/demo", f"PATH={_PATH}", *carried, "sh", "-c", line,
        ]  # fmt: skip
        mounts = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", mounts, str(self.root), *inside]

    def run(self, line: str, user: str = "demo") -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(line, user), capture_output=True, text=True, check=False)

    def make(self, target: str) -> subprocess.CompletedProcess[str]:
        return self.run(f'cd "{CHECKOUT}" && make {target}')


def _mirror() -> tuple[str, str] | None:
    """Address and code name of this machine's own distribution, as apt has them."""
    if not shutil.which("apt-get"):
        return None
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    system = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text()))
    for line in listed.splitlines():
        address, _, codename = line.partition(" ")
        if codename == system.get("VERSION_CODENAME"):
            return address, codename
    return None


def _missing() -> str | None:
    if os.geteuid() != 0:
        return "making an empty Debian takes root"
    if not shutil.which("debootstrap"):
        return "no debootstrap: apt-get install debootstrap"
    if _mirror() is None:
        return "apt knows no package source of this machine's release: apt-get update"
    return None


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    if reason := _missing():
        pytest.skip(reason)
    mirror = _mirror()
    assert mirror
    address, codename = mirror
    root = tmp_path_factory.mktemp("debian") / "root"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=git,make,python3,ca-certificates",
         codename, str(root), address],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    machine = Debian(root)
    shutil.copy("/etc/resolv.conf", root / "etc")
    for name in ("SSL_CERT_FILE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE"):
        if bundle := os.environ.get(name):
            inside = root / bundle.lstrip("/")
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(bundle, inside)
    assert machine.run("useradd --create-home demo", "root").returncode == 0
    checkout = root / CHECKOUT.lstrip("/")
    # The files as they are here, committed or not.
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for file in filter(None, files):
        if (ROOT / file).exists():
            (checkout / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, checkout / file)
    assert machine.run("chown -R demo /home/demo", "root").returncode == 0
    yield machine
    shutil.rmtree(root, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_from_nothing_to_a_running_hub(debian: Debian) -> None:
    assert debian.run("command -v cc gcc clang node npm pip").stdout == ""

    # Python without its venv module: one sentence, and its command is the right one.
    refused = debian.make("setup")
    said = re.search(
        r"(?m)^gpuslice: Python's venv module is .*: (?:sudo )?(.*)\.$", refused.stderr
    )
    assert refused.returncode and said, refused.stdout + refused.stderr
    assert refused.stderr.count("\n") == 2  # the sentence, and make's own line
    brought = debian.run(f"apt-get update -q && {said[1]} -y --no-install-recommends", "root")
    assert brought.returncode == 0, brought.stderr

    done = debian.make("setup")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no C compiler" in done.stdout
    steps = [line for line in done.stdout.splitlines() if line.startswith("==> ")]
    assert len(steps) >= 6

    started = time.monotonic()
    again = debian.make("setup")
    assert (again.returncode, again.stdout) == (0, "")
    assert time.monotonic() - started < 5

    # Nothing outside the checkout but pip's and the shell's usual caches, and nothing git sees.
    listed = debian.run("ls -A /home/demo").stdout.split("\n")
    assert {name for name in listed if name} <= {
        "a checkout", ".cache", ".bashrc", ".profile", ".bash_logout",
    }  # fmt: skip

    _runs_and_ends(debian)


def _runs_and_ends(debian: Debian) -> None:
    port = _free_port()
    line = f"cd '{CHECKOUT}' && make run UP_ARGS='--port {port} --simulated'"
    log = debian.root / "make-run.log"
    with log.open("w") as stream:
        running = subprocess.Popen(
            debian.command(line), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 180
            while "Ctrl-C stops it" not in log.read_text():
                assert running.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            address = f"http://127.0.0.1:{port}"
            assert address in log.read_text() and "SIMULATED" in log.read_text()
            with urllib.request.urlopen(f"{address}/hub/login", timeout=20) as page:
                assert page.status == 200
            os.killpg(running.pid, signal.SIGINT)  # what Ctrl-C does
            running.wait(120)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
    assert "All parts have ended" in log.read_text()
