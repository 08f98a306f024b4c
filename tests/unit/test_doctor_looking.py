"""gpuslice doctor: what it looks at, on machines made of folders, sockets and small programs."""

from __future__ import annotations

import grp
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import doctorfacts as good
from doctorfacts import engine_socket, engine_that_says
from gpuslice.cli.doctor import database, examine, gpus, host, places, privatefiles, wiring
from gpuslice.cli.doctor.access import group_members, look_at_socket
from gpuslice.cli.doctor.findings import Finding, NotLooked
from gpuslice.cli.doctor.machine import Machine, run_program
from gpuslice.cli.secrets import ensure_secrets
from gpuslice.cli.state import State
from gpuslice.ledger import migrate
from gpuslice.ledger.database import make_engine
from gpuslice.settings import load_settings

ROOT = os.geteuid() == 0


# ----------------------------------------------------------------------------- a machine of files


class FakeHost:
    """A host's root folder, and programs and an engine's socket of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "host"
        self.state = State(folder / "state")
        self.socket = folder / "e.sock"
        self.programs = folder / "bin"
        self.config = folder / "gpuslice.toml"
        self.programs.mkdir()
        monkeypatch.setenv("PATH", f"{self.programs}:/usr/bin:/bin")
        self.file("proc/1/mountinfo", "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
        self.file("proc/1/net/fib_trie", "Main:\n  +-- 0.0.0.0/0 3 0 5\n")
        self.file("etc/group", "root:x:0:\ndocker:x:111:\n")
        self.file("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
        self.settings()

    def file(self, path: str, text: str = "") -> Path:
        made = self.root / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(text)
        return made

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def settings(self, docker: str = "", more: str = "") -> None:
        self.config.write_text(
            f'{more}\n[hub]\napi_url = "http://127.0.0.1:9/hub/api"\n'
            f'[service]\nport = 9\n'
            f'[docker]\nsocket = "{self.socket}"\nhost_root = "{self.root}"\n{docker}\n'
        )  # fmt: skip

    def machine(self, kind: examine.EngineKind = "docker") -> Machine:
        return Machine(load_settings(self.config), self.state, kind)

    def findings(self, **wishes: Any) -> dict[str, Finding]:
        """By id, the worst one; from the whole examination."""
        asked = {"config": self.config, "state": self.state.root, "engine": "docker"} | wishes
        found: dict[str, Finding] = {}
        for finding in examine.examine(examine.Wishes(**asked)).findings:
            assert "broke off" not in finding.verdict.what, finding
            found.setdefault(finding.id, finding)
        return found


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return FakeHost(tmp_path, monkeypatch)


def levels(found: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.level.value for name, finding in found.items()}


# ------------------------------------------------------------------------------------- the engine


def test_an_engine_that_is_too_old(fake: FakeHost) -> None:
    old = {"Version": "24.0.7", "ApiVersion": "1.43", "MinAPIVersion": "1.12"}
    with engine_socket(fake.socket, engine_that_says(old, good.INFO | {"CDISpecDirs": None})):
        found = levels(fake.findings())
    assert found["engine.version"] == found["engine.api"] == "problem"
    assert "engine.cdi" not in found


def test_an_engine_without_cdi(fake: FakeHost) -> None:
    version = {"Version": "26.1.5", "ApiVersion": "1.45", "MinAPIVersion": "1.24"}
    with engine_socket(fake.socket, engine_that_says(version, good.INFO | {"CDISpecDirs": []})):
        found = levels(fake.findings())
    assert (found["engine.version"], found["engine.cdi"]) == ("ok", "problem")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda _: (500, b'{"message": "kaputt"}'), "status 500"),
        (lambda _: (200, b"no JSON"), "Expecting value"),
        (lambda _: (200, b"[1]"), "not understood"),
        (lambda _: None, "without response"),
    ],
)
def test_an_engine_that_fails(
    fake: FakeHost, answer: Callable[[str], tuple[int, bytes] | None], words: str
) -> None:
    with engine_socket(fake.socket, answer):
        found = fake.findings()
    assert levels(found)["engine.look"] == "problem"
    assert words in found["engine.look"].verdict.what
    # What needs the engine says that it was not looked at, and the rest goes on.
    assert levels(found)["docker.look"] == "unknown"
    assert "host.clock" in found
    assert "gpus.present" in found


def test_an_engine_that_hangs(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuslice.cli.doctor.machine.ENGINE_LIMIT_S", 0.1)
    go_on = threading.Event()

    def answer(_path: str) -> None:
        go_on.wait()

    with engine_socket(fake.socket, answer):
        found = fake.findings()
        go_on.set()
    assert levels(found)["engine.look"] == "problem"
    assert "timed out" in found["engine.look"].verdict.what


def test_no_engine(fake: FakeHost) -> None:
    found = fake.findings()
    assert levels(found)["socket.access"] == "problem"
    assert levels(found)["engine.look"] == "problem"


@pytest.mark.skipif(not ROOT, reason="only root may give a file to a group of its choice")
def test_who_may_use_the_socket(fake: FakeHost) -> None:
    group = grp.getgrgid(0)
    fake.file("etc/group", "root:x:0:root,ada\ndocker:x:111:bob\nbroken\n")
    fake.file("etc/passwd", "root:x:0:0::/root:/bin/sh\neve:x:1001:0::/home/eve:/bin/sh\n")
    with engine_socket(fake.socket, engine_that_says()):
        fake.socket.chmod(0o660)
        facts = look_at_socket(fake.machine())
        assert (facts.group, facts.members) == (group.gr_name, ("ada", "eve"))
        fake.socket.chmod(0o640)
        assert look_at_socket(fake.machine()).members == ()
    assert group_members(111, "docker:x:111:bob\n", "") == ("docker", ("bob",))
    assert group_members(5, "", "") == (None, ())


# --------------------------------------------------------------------------------------- the GPUs

SMI = """\
case "$1" in
-L) cat <<'END'
GPU 0: NVIDIA H100 80GB HBM3 (UUID: {gpu})
GPU 1: NVIDIA A30 (UUID: {other})
  MIG 1g.6gb      Device  0: (UUID: {instance})
END
;;
*) cat <<'END'
0, {gpu}, NVIDIA H100 80GB HBM3, 570.133.20, Disabled, Disabled
1, {other}, NVIDIA A30, 570.133.20, Enabled, Enabled
END
;;
esac"""
NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Feb 27 21:44:33 UTC 2024\n"


def test_a_machine_with_real_gpus(fake: FakeHost) -> None:
    fake.program("nvidia-smi", SMI.format(gpu=good.GPU, other=good.MIG_GPU, instance=good.INSTANCE))
    fake.program("nvidia-ctk", "echo 'NVIDIA Container Toolkit CLI version 1.17.7'")
    fake.file("proc/driver/nvidia/version", NVRM.format("570.133.20"))
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap21"):
        fake.file(f"dev/{name}")
    fake.file("etc/cdi/nvidia.yaml", f"devices:\n- name: {good.GPU}\n- name: MIG-gone-1\n")
    fake.file("etc/nvidia-container-runtime/config.toml", "[nvidia-container-cli]\n")
    info = good.INFO | {"Runtimes": {"nvidia": {}}, "DefaultRuntime": "nvidia"}
    with engine_socket(fake.socket, engine_that_says(info=info)):
        found = fake.findings()
    assert "2 real GPUs: NVIDIA A30, NVIDIA H100 80GB HBM3" in found["gpus.present"].verdict.what
    assert levels(found)["gpus.driver"] == "warning"
    assert levels(found)["gpus.device-files"] == "ok"
    assert "1 MIG instances on 1 GPUs" in found["gpus.mig"].verdict.what
    assert f"lacks {good.INSTANCE}" in found["gpus.cdi"].verdict.what
    assert "MIG-gone-1, which is gone" in found["gpus.cdi"].verdict.what
    assert levels(found)["toolkit.version"] == "problem"
    assert "CVE-2025-23266" in found["toolkit.advisories"].verdict.what
    assert levels(found)["toolkit.environment"] == levels(found)["engine.runtime"] == "warning"


def test_a_driver_that_was_updated_under_its_programs(fake: FakeHost) -> None:
    fake.program("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'\n"
                               "exit 18")  # fmt: skip
    fake.file("proc/driver/nvidia/version", NVRM.format("550.54.15"))
    with engine_socket(fake.socket, engine_that_says()):
        found = fake.findings()
    assert levels(found)["gpus.present"] == "problem"
    assert "Driver/library version mismatch" in found["gpus.present"].verdict.what
    # A real GPU without the toolkit can be leased to nobody.
    assert levels(found)["toolkit.version"] == "problem"


def test_in_a_container_the_host_s_nvidia_smi_is_asked(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.program("chroot", 'echo "$@" >>$0.asked; shift; shift; ' + SMI.format(
        gpu=good.GPU, other=good.MIG_GPU, instance=good.INSTANCE
    ))  # fmt: skip
    monkeypatch.setattr("gpuslice.cli.doctor.machine.shutil.which", lambda _: None)
    assert [gpu.uuid for gpu in gpus.look(fake.machine()).gpus] == [good.GPU, good.MIG_GPU]
    asked = (fake.programs / "chroot.asked").read_text().splitlines()
    assert {line.split()[0] for line in asked} == {str(fake.root)}
    # On the host itself there is no other.
    assert gpus.look(fake.machine("local")).gpus == ()


def test_a_program_that_hangs_is_left() -> None:
    answer = run_program(["sleep", "60"], limit_s=0.05)
    assert (answer.worked, answer.err) == (False, "sleep did not answer in 0.05 s")
    assert not run_program(["/no/such/program"]).worked
    assert run_program(["sh", "-c", "echo out; echo err >&2; exit 3"]).code == 3


# ------------------------------------------------------------------------------------------ places


def test_links_lead_where_they_lead_on_that_machine(tmp_path: Path) -> None:
    (tmp_path / "run" / "cdi").mkdir(parents=True)
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "run").symlink_to("/run")
    (tmp_path / "var" / "up").symlink_to("../run/./cdi")
    (tmp_path / "loop").symlink_to("/loop")
    root = str(tmp_path)
    assert places.below(root, "/var/run/cdi") == tmp_path / "run" / "cdi"
    assert places.below(root, "/var/up/x") == tmp_path / "run" / "cdi" / "x"
    assert places.below(root, "/var/../../run") == tmp_path / "run"
    assert str(places.followed(root, "/loop/x")) == "/loop/x"
    assert places.below("/", "/no/such/place") == Path("/no/such/place")


def test_a_place_is_seen_as_it_is(tmp_path: Path) -> None:
    root = str(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "f").write_text("x")
    (tmp_path / "a" / "f").chmod(0o640)
    (tmp_path / "l").symlink_to("a")
    assert places.look_at("/a/b", root=root).kind == "folder"
    seen = places.look_at("/a/f", root=root)
    assert (seen.kind, seen.shown_mode, seen.owner, seen.by_link) == (
        "file",
        "0640",
        os.geteuid(),
        False,
    )
    assert (seen.others_read, seen.others_write) == (True, False)
    assert places.look_at("/l/f", root=root).by_link
    assert places.look_at("/no", root=root).kind == "missing"
    assert places.look_at("/a/f/below", root=root).kind == "hidden"


def test_folders_above_in_which_others_can_put_another_place(tmp_path: Path) -> None:
    below = tmp_path / "open" / "closed"
    below.mkdir(parents=True)
    tmp_path.chmod(0o755)
    assert places.look_at("/open/closed", root=str(tmp_path)).weak == ()
    (tmp_path / "open").chmod(0o775)
    (weak,) = places.look_at("/open/closed", root=str(tmp_path)).weak
    assert weak == "/open can be changed by others (0775)"
    # With the sticky bit only owners can replace what is theirs.
    (tmp_path / "open").chmod(0o1777)
    assert places.look_at("/open/closed", root=str(tmp_path)).weak == ()


@pytest.mark.skipif(not ROOT, reason="only root may give a folder away")
def test_a_folder_above_that_belongs_to_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "theirs" / "mine").mkdir(parents=True)
    os.chown(tmp_path / "theirs", 4321, 4321)
    (weak,) = places.look_at("/theirs/mine", root=str(tmp_path)).weak
    assert weak == "/theirs belongs to user 4321"


MOUNTS = """\
22 1 0:21 / /proc rw - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 8:1 / /srv rw,relatime shared:1 - xfs /dev/sdb rw,prjquota
31 27 8:1 / /srv/ho\\040me ro - nfs4 server:/home rw,vers=4.2
broken
"""


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/srv/data/x", "/srv", "xfs"),
        ("/srv/ho me/ada", "/srv/ho me", "nfs4"),
        ("/srvx", "/", "ext4"),
        ("/", "/", "ext4"),
    ],
)
def test_the_file_system_of_a_path(path: str, point: str, kind: str) -> None:
    mount = places.mount_of(MOUNTS, path)
    assert mount
    assert (mount.point, mount.kind) == (point, kind)
    assert mount.network is (kind == "nfs4")
    assert mount.project_quotas is (kind == "xfs")
    assert ("ro" in mount.options) is (kind == "nfs4")


def test_no_mounts_are_no_file_system() -> None:
    assert places.mount_of("", "/srv") is None


# --------------------------------------------------------------------------------------- settings


def test_the_settings_of_docker_against_a_host(fake: FakeHost) -> None:
    for path in ("srv/homes", "var/lib/gpuslice/host", "run/cdi", "shared"):
        (fake.root / path).mkdir(parents=True)
    (fake.root / "var/run").symlink_to("/run")
    fake.file("proc/1/mountinfo", "1 1 8:1 / / rw - ext4 d rw\n"
              "2 1 8:2 / /srv rw - xfs d rw,prjquota\n")  # fmt: skip
    fake.file("proc/1/net/fib_trie", "Local:\n  |-- 10.213.7.0\n     /24 universe UNICAST\n")
    fake.settings(
        'home = "/srv/homes"\nhome_size = "10GiB"\nshared = "/shared"\ngates = ["hub-1:hub"]\n'
    )
    with engine_socket(fake.socket, engine_that_says()):
        found = fake.findings()
    said = {name: finding.verdict.what for name, finding in found.items()}
    assert levels(found)["docker.images"] == "warning"
    assert said["docker.home"] == "Homes are in /srv/homes, on xfs."
    assert levels(found)["docker.home-size"] == "note"
    assert levels(found)["docker.shared"] == "ok"
    assert "10.213.7.0/24" in said["docker.network-pool"]
    assert "hub-1" in said["docker.gates"]
    owners = "ok" if ROOT else "problem"
    assert levels(found)["docker.cdi-dir"] == levels(found)["docker.host-dir"] == owners


def test_wrong_settings_are_the_only_finding(fake: FakeHost) -> None:
    fake.config.write_text("[docker]\nsockte = 1\n[timing]\nkeep_s = -1\n")
    (finding,) = fake.findings().values()
    assert (finding.id, finding.level.value) == ("settings.file", "problem")
    assert "timing.keep_s: should be greater" in finding.verdict.what
    assert "and 1 more" in finding.verdict.what


# ------------------------------------------------------------------------------------------- files


def test_secrets_as_they_are_made_are_well(fake: FakeHost) -> None:
    fake.state.prepare()
    ensure_secrets(fake.state.secrets)
    found = levels(fake.findings(engine="local"))
    assert found["files.secrets"] == found["files.folder"] == "ok"
    (fake.state.secrets / "node_token").chmod(0o644)
    (fake.state.secrets / "cookie_secret").unlink()
    fake.state.secrets.chmod(0o755)
    again = fake.findings(engine="local")
    assert levels(again)["files.folder"] == "warning"
    facts = privatefiles.look(fake.machine("local"))
    said = " ".join(one.what for one in privatefiles.secrets(facts))
    assert "node_token" in said
    assert "cookie_secret" in said


def test_without_a_data_folder_there_are_no_files_to_look_at(fake: FakeHost) -> None:
    assert levels(fake.findings())["files.look"] == "note"


# ------------------------------------------------------------------------------------------ ledger


def test_a_ledger_that_is_there(fake: FakeHost) -> None:
    fake.state.prepare()
    file = fake.state.root / "ledger.sqlite"
    assert levels(fake.findings(engine="local"))["database.reachable"] == "note"
    assert not file.exists()
    engine = make_engine(f"sqlite:///{file}")
    migrate.upgrade(engine)
    engine.dispose()
    file.chmod(0o600)
    found = levels(fake.findings(engine="local"))
    assert {name: found[f"database.{name}"] for name in database.CHECKS if name != "server"} == {
        "reachable": "ok", "schema": "ok", "durable": "ok", "permissions": "ok", "books": "note",
    }  # fmt: skip


def test_ledgers_that_are_not_well(fake: FakeHost) -> None:
    fake.state.prepare()
    file = fake.state.root / "ledger.sqlite"
    file.write_bytes(b"this is no database at all" * 100)
    found = fake.findings(engine="local")
    assert levels(found)["database.reachable"] == "problem"
    assert "not a database" in found["database.reachable"].verdict.what
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE gpuslice_version (version_num TEXT)")
        connection.execute("INSERT INTO gpuslice_version VALUES ('from the future')")
    connection.close()
    found = fake.findings(engine="local")
    assert levels(found)["database.schema"] == "problem"
    assert levels(found)["database.durable"] == "warning"


def test_a_database_whose_password_is_missing(fake: FakeHost) -> None:
    fake.settings(
        more='[database]\nurl = "postgresql://gpuslice@127.0.0.1:9/x"\npassword_file = "/no/such"'
    )
    found = fake.findings(engine="local")
    assert levels(found)["database.look"] == "problem"
    assert "/no/such" in found["database.look"].verdict.what


def test_a_server_that_does_not_answer(fake: FakeHost) -> None:
    fake.settings(more='[database]\nurl = "postgresql://gpuslice:geheim@127.0.0.1:9/x"')
    found = fake.findings(engine="local")
    assert levels(found)["database.reachable"] == "problem"
    assert "refused" in found["database.reachable"].verdict.what
    assert "geheim" not in json.dumps([one.verdict.what for one in found.values()])


@pytest.mark.postgres
def test_a_postgresql(fake: FakeHost, postgres_url: str) -> None:
    fake.settings(more=f'[database]\nurl = "{postgres_url}"')
    found = levels(fake.findings(engine="local"))
    assert found["database.reachable"] == found["database.server"] == "ok"
    assert found["database.schema"] == "note"
    # The tests' own server is quick and forgetful on purpose.
    assert found["database.durable"] == "problem"
    engine = make_engine(postgres_url)
    migrate.upgrade(engine)
    engine.dispose()
    assert levels(fake.findings(engine="local"))["database.schema"] == "ok"


# ------------------------------------------------------------------------------------------- parts


class _Part(BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, Any]]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        status, body = self.answers.get(self.path, (404, "no"))
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"/elsewhere{self.path}")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def part() -> Iterator[tuple[str, type[_Part]]]:
    """A server for hub, service and proxy at once: its address, and what it answers."""

    class Part(_Part):
        answers: dict[str, tuple[int, Any]] = {}  # noqa: RUF012
        asked: list[tuple[str, str | None]] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Part)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Part
    server.shutdown()
    thread.join()
    server.server_close()


def test_parts_that_know_each_other(fake: FakeHost, part: tuple[str, type[_Part]]) -> None:
    address, answers = part
    fake.config.write_text(f'[hub]\napi_url = "{address}/hub/api"\n[service]\nurl = "{address}"\n')
    fake.state.prepare()
    ensure_secrets(fake.state.secrets)
    me = good.wiring().ourselves
    assert me
    answers.answers.update({
        "/hub/api/": (200, {"version": "6.1.1"}),
        "/hub/api/user": (200, dict(me.body)),
        "/hub/health": (200, ""),
        "/services/gpuslice/api/health": (200, good.HEALTH),
        "/services/gpuslice/api/broker/offers": (200, [{"name": "cpu"}]),
    })  # fmt: skip
    found = levels(fake.findings(engine="local", url=f"{address}/"))
    assert {name: found[f"wiring.{name}"] for name in wiring.CHECKS} == {
        "running": "ok", "hub": "ok", "token": "ok", "service": "ok", "offers": "ok",
        "proxy": "ok", "node": "problem",
    }  # fmt: skip
    # Each token is shown to whom it is for, and to nobody else.
    shown = {token: path for path, token in answers.asked if token}
    for name, path in (
        ("service_token", "/hub/api/user"),
        ("broker_token", "/services/gpuslice/api/broker/offers"),
    ):
        assert shown.pop(f"token {(fake.state.secrets / name).read_text().strip()}") == path
    assert not shown
    # `gpuslice up` leaves its address in the data folder.
    (fake.state.run / "up.lock").write_text(json.dumps({"pid": 1, "address": address}))
    assert levels(fake.findings(engine="local"))["wiring.proxy"] == "ok"


def test_the_token_follows_no_redirect(part: tuple[str, type[_Part]]) -> None:
    address, answers = part
    answers.answers["/hub/api/user"] = (302, "")
    assert wiring.get(f"{address}/hub/api/user", "geheim").status == 302
    assert answers.asked == [("/hub/api/user", "token geheim")]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://127.0.0.1:x/", "http://[::1/"])
def test_what_cannot_be_reached_is_no_reply(url: str) -> None:
    reply = wiring.get(url)
    assert not reply.there
    assert reply.error


# ----------------------------------------------------------------------------------------- machine


def test_the_kernel_says_something_of_its_clock() -> None:
    assert host.clock_synchronised() in (True, False)


def test_disks_are_those_of_the_platform(fake: FakeHost) -> None:
    (fake.root / "var/lib/docker").mkdir(parents=True)
    with engine_socket(fake.socket, engine_that_says()):
        facts = host.look(fake.machine())
    assert [disk.use for disk in facts.disks] == ["ledger and logs"]
    assert facts.disks[0].total_bytes > facts.disks[0].free_bytes > 0


# --------------------------------------------------------------------------------- the whole thing


def test_the_command(fake: FakeHost) -> None:
    with engine_socket(fake.socket, engine_that_says()):
        done = subprocess.run(
            [
                sys.executable, "-m", "gpuslice", "doctor", "--json", "--engine", "docker",
                "--config", str(fake.config), "--state", str(fake.state.root),
                "--node-socket", str(fake.state.node / "control.sock"),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    report = json.loads(done.stdout)
    assert done.returncode == report["exit_code"] in (0, 1)
    groups = {finding["group"] for finding in report["findings"]}
    assert groups == set(examine.TITLES) - {"gpu-test"}


def test_only_some_groups(fake: FakeHost) -> None:
    found = fake.findings(only=frozenset({"host"}), engine="local")
    assert {finding.group for finding in found.values()} == {"settings", "host"}


def test_the_local_engine_needs_no_docker(fake: FakeHost) -> None:
    groups = {finding.group for finding in fake.findings(engine="local", gpu=True).values()}
    assert groups == {"settings", "gpus", "files", "database", "wiring", "host"}


def test_a_group_that_does_not_exist_is_named(fake: FakeHost) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpuslice", "doctor", "--only", "hots"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "There is no group hots" in done.stderr


def test_the_engine_is_the_running_nodes(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = examine.Wishes(fake.config, fake.state.root, only=frozenset({"host"}))
    assert examine.examine(wishes).engine == "local"
    monkeypatch.setattr(Machine, "inventory", good.inventory(engine="docker"))
    assert examine.examine(wishes).engine == "docker"


def test_a_file_system_that_hangs_takes_only_its_group(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr(host, "look", lambda _: never.wait())
    monkeypatch.setitem(
        examine._GROUPS, "host", lambda machine, _: replace(host.group(machine), limit_s=0.05)
    )
    found = levels(fake.findings(engine="local"))
    never.set()
    assert found["host.look"] == "unknown"
    assert "gpus.present" in found


def test_gpus_are_not_tried_without_an_engine(fake: FakeHost) -> None:
    found = fake.findings(gpu=True)
    assert levels(found)["gpu-test.look"] == "unknown"


def test_facts_of_gpus_come_from_the_node_where_there_is_no_nvidia_smi(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "inventory", good.inventory())
    facts = gpus.look(fake.machine("local"))
    assert facts.gpus == ()
    assert gpus.present(facts).level.value == "ok"
    with pytest.raises(NotLooked):
        privatefiles.look(fake.machine())
