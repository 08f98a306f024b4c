"""gpuslice doctor: every judgement over facts, both ways; none breaks off, whatever they are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import doctorfacts as good
from doctorfacts import level, text
from gpuslice.cli.doctor import (
    access,
    database,
    dockersettings,
    engine,
    gpus,
    gputest,
    host,
    privatefiles,
    toolkit,
    wiring,
)
from gpuslice.cli.doctor.dockersettings import GateFacts, ImageFacts, SettingsFacts
from gpuslice.cli.doctor.findings import Group, Level
from gpuslice.cli.doctor.gputest import Attempt
from gpuslice.cli.doctor.host import Disk
from gpuslice.cli.doctor.machine import Answer
from gpuslice.cli.doctor.places import Mount, Place
from gpuslice.cli.doctor.versions import open_advisories, version_in
from gpuslice.cli.doctor.wiring import Reply
from gpuslice.settings import DockerSettings
from gpuslice.units import GIB, MIB
from gpuslice.wire import Enforcement

GOOD: dict[str, tuple[Any, Any]] = {
    "socket": (good.socket_facts(), {"access": access.socket_file}),
    "engine": (good.engine(), engine.CHECKS),
    "toolkit": (good.toolkit(), toolkit.CHECKS),
    "docker": (good.docker_settings(), dockersettings.CHECKS),
    "gpus": (good.gpus(), gpus.CHECKS),
    "files": (good.private(), privatefiles.CHECKS),
    "sqlite": (good.sqlite(), database.CHECKS),
    "postgres": (good.postgres(), database.CHECKS),
    "wiring": (good.wiring(), wiring.CHECKS),
    "host": (good.host(), host.CHECKS),
    "gpu-test": (good.trial(), gputest.CHECKS),
}


@pytest.mark.parametrize("name", GOOD)
def test_on_a_good_machine_nothing_is_wrong(name: str) -> None:
    facts, checks = GOOD[name]
    found = Group(name, lambda: facts, checks).findings()
    assert found
    # The first asks for a limit that is optional, the second for a command that is long.
    allowed = {"docker.home-size", "sqlite.books", "postgres.books"}
    assert [one for one in found if one.level is not Level.OK and one.id not in allowed] == []


# ---------------------------------------------------------------------------------- the engine


@pytest.mark.parametrize(
    ("facts", "expected", "words"),
    [
        (good.socket_facts(mode=None), "problem", "no engine socket"),
        (good.socket_facts(mode=0o100660), "problem", "no socket"),
        (good.socket_facts(mode=0o140666), "problem", "everybody is root"),
        (good.socket_facts(mode=0o140662), "problem", "chmod o-rwx /run/docker.sock"),
        (good.socket_facts(mode=0o140664), "ok", "Only root"),
        (good.socket_facts(members=("ada", "bob")), "warning", "ada, bob"),
    ],
)
def test_socket(facts: access.SocketFacts, expected: str, words: str) -> None:
    found = access.socket_file(facts)
    assert level(found) == expected
    assert words in text(found)


@pytest.mark.parametrize(
    ("check", "facts", "expected", "words"),
    [
        ("version", good.engine({"Version": "24.0.7"}), "problem", "Docker 24.0.7"),
        ("version", good.engine({"Version": "26.1.5+dfsg1"}), "ok", "26.1.5"),
        ("version", good.engine({"Version": "unknown"}), "unknown", "'unknown'"),
        ("version", good.engine({}), "unknown", "25.0"),
        ("api", good.engine({"ApiVersion": "1.43", "MinAPIVersion": "1.24"}), "problem", "1.44"),
        ("api", good.engine({"ApiVersion": "1.60", "MinAPIVersion": "1.50"}), "problem", "1.50"),
        ("api", good.engine({"ApiVersion": "1.44"}), "ok", ""),
        ("api", good.engine({}), "unknown", "1.44"),
        ("cdi", good.engine(CDISpecDirs=None), "problem", '"features": {"cdi": true}'),
        ("cdi", good.engine(CDISpecDirs=[]), "problem", '"features": {"cdi": true}'),
        ("cdi", good.engine({"Version": "24.0.7"}, CDISpecDirs=[]), "-", ""),
        ("cdi", good.engine(CDISpecDirs=["/etc/cdi"]), "problem", "/var/run/cdi"),
        ("cdi", good.engine(CDISpecDirs=["/run/cdi/"]), "ok", ""),
        ("cdi", good.engine(cdi_dir="/etc/cdi"), "ok", "/etc/cdi"),
        ("live-restore", good.engine(LiveRestoreEnabled=False), "warning", "systemctl reload"),
        ("live-restore", good.engine(LiveRestoreEnabled=None), "unknown", ""),
        (
            "live-restore",
            good.engine(LiveRestoreEnabled=False, Swarm={"LocalNodeState": "active"}),
            "warning",
            "swarm leave",
        ),
        ("logs", good.engine(LoggingDriver="json-file"), "note", "no limit"),
        (
            "logs",
            good.engine(LoggingDriver="json-file", daemon='{"log-opts": {"max-size": "9m"}}'),
            "ok",
            "",
        ),
        ("logs", good.engine(LoggingDriver="json-file", daemon="{broken"), "note", ""),
        ("logs", good.engine(LoggingDriver="journald"), "ok", "journald"),
        ("logs", good.engine(LoggingDriver=None), "-", ""),
        ("runtime", good.engine(DefaultRuntime="nvidia"), "warning", "doctor --gpu"),
        ("runtime", good.engine(DefaultRuntime="nvidia", void_sees_gpus=True), "problem", "sees"),
        ("runtime", good.engine(DefaultRuntime="nvidia", void_sees_gpus=False), "ok", "none"),
        ("runtime", good.engine(DefaultRuntime=None), "unknown", ""),
        ("cgroup-driver", good.engine(CgroupDriver="none"), "problem", "no limit"),
        ("cgroup-driver", good.engine(real_gpus=True), "note", "daemon-reload"),
        ("cgroup-driver", good.engine(CgroupDriver="cgroupfs", real_gpus=True), "ok", ""),
        ("cgroup-driver", good.engine(CgroupDriver=None), "-", ""),
        ("cgroup", good.engine({"Version": "26.1.5"}, CgroupVersion="1"), "note", "version 1"),
        ("cgroup", good.engine(CgroupVersion="1"), "warning", "drop"),
        ("cgroup", good.engine(CgroupVersion=None), "unknown", ""),
        ("limits", good.engine(MemoryLimit=False), "problem", "cgroup_enable=memory"),
        ("limits", good.engine(SwapLimit=False), "warning", "SwapLimit"),
        ("limits", good.engine(PidsLimit=False, CpuCfsQuota=False), "warning", "CpuCfsQuota"),
        ("seccomp", good.engine(SecurityOptions=["name=apparmor"]), "warning", "no seccomp"),
        (
            "seccomp",
            good.engine(SecurityOptions=["name=seccomp,profile=unconfined"]),
            "problem",
            "unconfined",
        ),
        ("userns", good.engine(SecurityOptions=["name=userns"]), "warning", "userns-remap"),
        ("userns", good.engine(SecurityOptions=["name=rootless"]), "warning", "rootless"),
        (
            "exposed",
            good.engine(
                Warnings=["WARNING: API is accessible on http://0.0.0.0:2375 without encryption."]
            ),
            "problem",
            "0.0.0.0:2375",
        ),
        ("exposed", good.engine(Warnings=["WARNING: No swap limit support"]), "ok", ""),
    ],
)
def test_engine(check: str, facts: engine.EngineFacts, expected: str, words: str) -> None:
    found = engine.CHECKS[check](facts)
    assert level(found) == expected
    assert words in text(found)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@given(
    version=st.fixed_dictionaries({}, optional=dict.fromkeys(good.VERSION, ANYTHING)),
    info=st.fixed_dictionaries({}, optional=dict.fromkeys(good.INFO, ANYTHING)),
    daemon=st.none() | st.text(max_size=30) | ANYTHING.map(str),
)
@settings(max_examples=300)
def test_no_check_breaks_off_whatever_an_engine_answers(
    version: Any, info: Any, daemon: Any
) -> None:
    def look() -> engine.EngineFacts:
        return engine.engine_facts(version, info, daemon)

    found = Group("engine", look, engine.CHECKS).findings()
    assert [one for one in found if "broke off" in one.verdict.what] == []
    assert "engine.version" in {one.id for one in found}


# ---------------------------------------------------------------------------------- the toolkit


@pytest.mark.parametrize(
    ("text_", "expected"),
    [
        ("NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80\n", (1, 17, 8)),
        ("26.1.5+dfsg1", (26, 1, 5)),
        ("1:1.18.2-1", (1, 18, 2)),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar", (550, 54, 15)),
        ("6", None),
        ("v1.20.0-rc.1", (1, 20, 0)),
        (None, None),
    ],
)
def test_versions_are_found_in_texts(text_: str | None, expected: tuple[int, ...] | None) -> None:
    assert version_in(text_) == expected


@pytest.mark.parametrize(
    ("version", "flaws"),
    [
        ("1.16.1", 10),
        ("1.16.2", 8),
        ("1.17.0", 7),
        ("1.17.3", 4),
        ("1.17.4", 3),
        ("1.17.7", 3),
        ("1.17.8", 1),
        ("1.19.0", 1),
        ("1.19.1", 0),
        ("1.20.0", 0),
    ],
)
def test_flaws_of_each_version_of_the_toolkit(version: str, flaws: int) -> None:
    """By NVIDIA's bulletins 5582, 5585, 5599, 5616, 5659 and 5850."""
    found = version_in(version)
    assert found
    assert len(open_advisories(found)) == flaws


def ctk(version: str) -> str:
    return f"NVIDIA Container Toolkit CLI version {version}"


@pytest.mark.parametrize(
    ("check", "facts", "expected", "words"),
    [
        ("version", good.toolkit(ctk("1.18.2")), "ok", "1.18.2"),
        ("version", good.toolkit(ctk("1.18.1")), "problem", "could get all"),
        ("version", good.toolkit(ctk("1.17.7")), "problem", "CVE-2025-23266"),
        ("version", good.toolkit("a word"), "unknown", "a word"),
        (
            "version",
            good.toolkit(answer=Answer(None, err="nvidia-ctk: No such file or directory")),
            "problem",
            "no lease of a real GPU",
        ),
        (
            "version",
            good.toolkit(answer=Answer(None, err="nvidia-ctk: No such file"), real_gpus=False),
            "note",
            "none is needed",
        ),
        ("version", good.toolkit(answer=Answer(3)), "problem", "ended with an error"),
        ("advisories", good.toolkit(ctk("1.19.1")), "-", ""),
        ("advisories", good.toolkit(ctk("1.18.2")), "warning", "CVE-2026-24260"),
        ("advisories", good.toolkit(ctk("1.17.7")), "problem", "CVE-2025-23266"),
        ("advisories", good.toolkit(ctk("1.16.1")), "problem", "a_id/5582"),
        ("advisories", good.toolkit("a word"), "-", ""),
        ("environment", good.toolkit(), "-", ""),
        ("environment", good.toolkit(runtimes=("nvidia", "runc")), "note", "in-place"),
        ("environment", good.toolkit(default_runtime="nvidia"), "warning", "in-place"),
        (
            "environment",
            good.toolkit(
                default_runtime="nvidia",
                config="accept-nvidia-visible-devices-envvar-when-unprivileged = false\n",
            ),
            "ok",
            "",
        ),
        (
            "environment",
            good.toolkit(
                runtimes=("nvidia",),
                config="accept-nvidia-visible-devices-envvar-when-unprivileged = true\n",
            ),
            "note",
            "",
        ),
        ("environment", good.toolkit(runtimes=("nvidia",), config="= broken"), "unknown", ""),
        ("caps", good.toolkit(ctk("1.20.0"), driver=(615, 71), cgroup2=True), "note", "1.20.1"),
        ("caps", good.toolkit(ctk("1.20.1"), driver=(615, 71), cgroup2=True), "-", ""),
        ("caps", good.toolkit(ctk("1.20.0"), driver=(580, 1), cgroup2=True), "-", ""),
        ("caps", good.toolkit(ctk("1.20.0"), driver=(615, 71), cgroup2=False), "-", ""),
    ],
)
def test_toolkit(check: str, facts: toolkit.ToolkitFacts, expected: str, words: str) -> None:
    found = toolkit.CHECKS[check](facts)
    assert level(found) == expected
    assert words in text(found)


# ------------------------------------------------------------------------------------- the GPUs

QUERY = """\
0, GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5, NVIDIA A100-SXM4-40GB, 550.54.15, Enabled, Disabled
1, GPU-11111111-2222-3333-4444-555555555555, NVIDIA L4, 550.54.15, [N/A], [N/A]
what is this
"""
LISTING = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5)
  MIG 3g.20gb     Device  0: (UUID: MIG-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)
  MIG 1g.5gb      Device  1: (UUID: MIG-b8ea3855-1111-c3f3-1b07-005d5ae1dc3f)
GPU 1: NVIDIA L4 (UUID: GPU-11111111-2222-3333-4444-555555555555)
"""


def test_what_nvidia_smi_lists_is_read() -> None:
    first, second = gpus.smi_gpus(QUERY, LISTING)
    assert (first.index, first.name, first.driver) == (0, "NVIDIA A100-SXM4-40GB", "550.54.15")
    assert (first.mig, first.mig_pending) == ("Enabled", "Disabled")
    assert first.instances == (
        "MIG-5c89852c-d268-c3f3-1b07-005d5ae1dc3f",
        "MIG-b8ea3855-1111-c3f3-1b07-005d5ae1dc3f",
    )
    assert (second.uuid, second.mig, second.instances) == (good.MIG_GPU, "", ())


@given(st.text(), st.text())
def test_whatever_nvidia_smi_prints_is_no_error(query: str, listing: str) -> None:
    gpus.smi_gpus(query, listing)


@pytest.mark.parametrize(
    "text_",
    [
        f"devices:\n    - name: {good.GPU}\n      containerEdits:\n    - name: all\n",
        f'devices:\n- containerEdits: {{}}\n  name: "{good.GPU}"\n- name: "0"\n',
        f'{{"kind": "nvidia.com/gpu", "devices": [{{"name": "{good.GPU}"}}, {{"name":"0"}}]}}',
    ],
)
def test_the_devices_in_a_cdi_file_are_found(text_: str) -> None:
    assert gpus.cdi_uuids(text_) == {good.GPU}


MIG = good.smi(mig="Enabled", mig_pending="Enabled", instances=(good.INSTANCE,))
CDI = "/var/run/cdi/nvidia.yaml"
SIMULATED = good.inventory(good.device(simulated=True), simulated=True)


@pytest.mark.parametrize(
    ("check", "facts", "expected", "words"),
    [
        ("present", good.gpus(inventory=SIMULATED, gpus=()), "note", "SIMULATED"),
        ("present", good.gpus(gpus=()), "ok", "1 real devices"),
        (
            "present",
            good.gpus(inventory="away", gpus=(), smi_problem="No devices were found"),
            "problem",
            "No devices were found",
        ),
        (
            "present",
            good.gpus(inventory="away", gpus=(), kernel=None, smi_problem="no nvidia-smi"),
            "note",
            "no nvidia-smi",
        ),
        ("driver", good.gpus(gpus=(good.smi(driver="550.54.15"),), kernel=None), "warning", "580"),
        ("driver", good.gpus(gpus=(good.smi(driver="580.10"),), kernel=None), "note", "615"),
        ("driver", good.gpus(kernel=(610, 1)), "problem", "Restart the machine"),
        ("driver", good.gpus(gpus=(), kernel=(550, 54, 15)), "warning", "550.54.15"),
        ("driver", good.gpus(gpus=(), kernel=None), "-", ""),
        ("node", good.gpus(inventory="away"), "-", ""),
        (
            "node",
            good.gpus(inventory=good.inventory(gpu_problem="the driver is not loaded")),
            "problem",
            "the driver is not loaded",
        ),
        ("node", good.gpus(gpus=(good.smi(), good.smi(uuid="GPU-9"))), "warning", "GPU-9"),
        ("node", good.gpus(inventory=SIMULATED), "warning", "simulated GPUs although"),
        (
            "node",
            good.gpus(inventory=good.inventory(good.device(healthy=False, health_reason="lost"))),
            "problem",
            "lost",
        ),
        ("mig", good.gpus(gpus=(MIG,)), "ok", "1 MIG instances"),
        ("mig", good.gpus(), "-", ""),
        ("mig", good.gpus(gpus=(good.smi(mig_pending="Enabled"),)), "warning", "--gpu-reset -i 0"),
        (
            "mig",
            good.gpus(gpus=(good.smi(mig="Enabled", mig_pending="Enabled"),)),
            "warning",
            "without any instance",
        ),
        ("cdi", good.gpus(cdi_files={}), "note", "nvidia-ctk cdi generate"),
        ("cdi", good.gpus(gpus=(), cdi_files={}), "-", ""),
        ("cdi", good.gpus(gpus=(MIG,)), "warning", f"lacks {good.INSTANCE}"),
        ("cdi", good.gpus(cdi_files={CDI: frozenset({good.GPU, "MIG-1"})}), "warning", "MIG-1"),
        (
            "cdi",
            good.gpus(gpus=(MIG,), cdi_files={CDI: frozenset({good.INSTANCE, good.GPU})}),
            "ok",
            "",
        ),
        ("device-files", good.gpus(gpus=()), "-", ""),
        (
            "device-files",
            good.gpus(device_files=frozenset({"nvidia0", "nvidiactl"})),
            "problem",
            "nvidia-uvm",
        ),
        (
            "device-files",
            good.gpus(device_files=frozenset({"nvidiactl", "nvidia-uvm", "nvidia-modeset"})),
            "problem",
            "nvidia0",
        ),
        ("device-files", good.gpus(gpus=(MIG,)), "problem", "nvidia-cap"),
        (
            "device-files",
            good.gpus(
                gpus=(MIG,),
                device_files=good.gpus().device_files | {"nvidia-caps/nvidia-cap21"},
            ),
            "ok",
            "",
        ),
        ("shares", good.gpus(inventory="away"), "-", ""),
        ("shares", good.gpus(inventory=SIMULATED), "-", ""),
        ("shares", good.gpus(inventory=good.inventory(good.device(mig_enabled=True))), "-", ""),
        (
            "shares",
            good.gpus(
                inventory=good.inventory(good.device(share_enforcement=Enforcement.ADVISORY))
            ),
            "note",
            "'advisory'",
        ),
        (
            "shares",
            good.gpus(inventory=good.inventory(enforcement_ceiling=Enforcement.PRELOAD),
                      minimum=Enforcement.CGROUP),
            "note",
            "'preload'",
        ),
    ],
)  # fmt: skip
def test_gpus(check: str, facts: gpus.GpuFacts, expected: str, words: str) -> None:
    found = gpus.CHECKS[check](facts)
    assert level(found) == expected
    assert words in text(found)


# ------------------------------------------------------------------------------------- [docker]


def docker(home: str = "/srv/homes", **keys: Any) -> DockerSettings:
    return DockerSettings(home=home, **keys)


def spoilt(settings_: DockerSettings | None = None, **facts: Any) -> SettingsFacts:
    return good.docker_settings(settings_, **facts)


SIZED = docker(home_size=10 * GIB)
VOLUMES = docker("volume", home_size=10 * GIB)


@pytest.mark.parametrize(
    ("check", "facts", "expected", "words"),
    [
        ("images", spoilt(images=(ImageFacts("a:1", False),)), "warning", "a:1"),
        ("images", spoilt(images=(ImageFacts("a:1", True, True),)), "note", "digest"),
        ("images", spoilt(images=(ImageFacts("a@sha256:1", True, True),)), "ok", ""),
        ("home", spoilt(docker("volume")), "ok", "volumes"),
        ("home", spoilt(home=Place("/srv/homes", "missing")), "problem", "does not exist"),
        ("home", spoilt(home=Place("/srv/homes", "hidden")), "unknown", "root"),
        ("home", spoilt(home=good.place("/srv/homes", "file")), "problem", "no folder"),
        ("home", spoilt(home=good.place("/srv/homes", by_link=True)), "problem", "link"),
        ("home", spoilt(home=good.place("/srv/homes", mode=0o777)), "problem", "chmod o-w"),
        (
            "home",
            spoilt(home=good.place("/srv/homes", mount=Mount("/srv", "xfs", frozenset({"ro"})))),
            "problem",
            "read-only",
        ),
        ("home", spoilt(home=good.place("/srv/homes", mount=good.NFS)), "note", "root_squash"),
        ("home-size", spoilt(), "note", "no size limit"),
        ("home-size", spoilt(SIZED), "warning", "only warned"),
        ("home-size", spoilt(SIZED, home=good.place("/srv", mount=good.QUOTA)), "note", "project"),
        ("home-size", spoilt(SIZED, home=good.place("/srv", mount=None)), "unknown", "findmnt"),
        ("home-size", spoilt(VOLUMES, home=good.place("/v", mount=good.QUOTA)), "ok", ""),
        (
            "home-size",
            spoilt(
                VOLUMES,
                home=good.place("/v", mount=Mount("/v", "ext4", frozenset({"prjquota"}))),
            ),
            "warning",
            "ext4",
        ),
        ("shared", spoilt(), "-", ""),
        ("shared", spoilt(shared=good.place("/srv/shared")), "ok", ""),
        ("shared", spoilt(shared=Place("/srv/shared", "missing")), "problem", "missing"),
        ("shared", spoilt(shared=good.place("/srv/s", by_link=True)), "problem", "behind a link"),
        ("shared", spoilt(shared=good.place("/srv/s", mode=0o750)), "warning", "chmod o+rx"),
        ("host-dir", spoilt(host_dir=Place("/h", "missing")), "note", "makes it"),
        ("host-dir", spoilt(host_dir=Place("/h", "hidden")), "unknown", ""),
        ("host-dir", spoilt(host_dir=good.place("/h", "file")), "problem", "no folder"),
        ("host-dir", spoilt(host_dir=good.place("/h", owner=1000)), "problem", "user 1000"),
        ("host-dir", spoilt(host_dir=good.place("/h", mode=0o775)), "problem", "0775"),
        ("cdi-dir", spoilt(cdi_dir=good.place("/c", weak=("/ is open",))), "problem", "/ is open"),
        ("cdi-dir", spoilt(cdi_dir=good.place("/c", mode=0o757)), "problem", "chmod go-w"),
        ("network-pool", spoilt(in_pool=None), "unknown", "ip route"),
        ("network-pool", spoilt(in_pool=("a route (10.213.0.0/24)",)), "problem", "a route"),
        ("gates", spoilt(gates=()), "-", ""),
        ("gates", spoilt(gates=(GateFacts("hub", None),)), "problem", "no container hub"),
        ("gates", spoilt(gates=(GateFacts("hub", "exited"),)), "warning", "hub"),
    ],
)
def test_docker_settings(check: str, facts: SettingsFacts, expected: str, words: str) -> None:
    found = dockersettings.CHECKS[check](facts)
    assert level(found) == expected
    assert words in text(found)


def network(name: str, subnet: str, **labels: str) -> dict[str, Any]:
    return {"Name": name, "Labels": labels, "IPAM": {"Config": [{"Subnet": subnet}]}}


@pytest.mark.parametrize(
    ("networks", "routes", "expected"),
    [
        ([], [], []),
        ([network("bridge", "172.17.0.0/16")], ["172.17.0.0/16", "192.168.1.0/24"], []),
        ([network("other", "10.213.4.0/24")], ["10.213.4.0/24"], ["network other"]),
        # A lease's network belongs there, with its routes and its gateway's address.
        (
            [network("gpuslice-1", "10.213.0.8/29", **{"gpuslice.node": "local"})],
            ["10.213.0.8/29", "10.213.0.9/32", "10.213.0.15/32"],
            [],
        ),
        ([], ["10.213.9.0/24"], ["host (10.213.9.0/24)"]),
        ([], ["10.0.0.0/8"], ["host (10.0.0.0/8)"]),
        ([{"Name": "odd", "IPAM": {"Config": None}}, network("six", "fd00::/64")], [], []),
        ([{"Name": "odd", "IPAM": None, "Labels": None}, network("bad", "x")], [], []),
    ],
)
def test_what_else_has_addresses_of_the_pool(
    networks: list[dict[str, Any]], routes: list[str], expected: list[str]
) -> None:
    from ipaddress import IPv4Network

    pool = IPv4Network("10.213.0.0/16")
    found = dockersettings.overlaps(pool, networks, [IPv4Network(route) for route in routes])
    assert len(found) == len(expected)
    assert all(words in said for words, said in zip(expected, found, strict=True))


# ------------------------------------------------------------------------ files, ledger, machine


def secrets_with(name: str, **changed: Any) -> tuple[Place, ...]:
    from dataclasses import replace

    return tuple(
        replace(one, **changed) if one.path.endswith(f"/{name}") else one
        for one in good.private().secrets
    )


HANDED = ("node_token",)


@pytest.mark.parametrize(
    ("check", "facts", "expected", "words"),
    [
        ("secrets", good.private(folder=Place("/s", "hidden")), "unknown", "/s"),
        (
            "secrets",
            good.private(secrets=secrets_with("broker_token", kind="missing")),
            "warning",
            "broker_token",
        ),
        (
            "secrets",
            good.private(secrets=secrets_with("broker_token", mode=0o640)),
            "problem",
            "broker_token",
        ),
        (
            "secrets",
            good.private(secrets=secrets_with("broker_token", kind="other")),
            "problem",
            "no files",
        ),
        (
            "secrets",
            good.private(secrets=secrets_with("broker_token", owner=1234)),
            "problem",
            "1234",
        ),
        # What a container of the deployment is handed is all that it needs.
        (
            "secrets",
            good.private(
                secrets=tuple(
                    one if one.path.endswith(HANDED) else Place(one.path, "missing")
                    for one in good.private().secrets
                )
            ),
            "ok",
            "",
        ),
        ("folder", good.private(folder=Place("/s", "missing")), "-", ""),
        ("folder", good.private(folder=good.place("/s", mode=0o750)), "warning", "chmod 700 /s"),
        ("folder", good.private(folder=good.place("/s", mode=0o770)), "problem", "0770"),
        ("folder", good.private(folder=good.place("/s", weak=("/ x",))), "problem", "/ x"),
        ("sockets", good.private(sockets=(Place("/c.sock", "missing"),)), "-", ""),
        ("sockets", good.private(sockets=(good.place("/c.sock", "socket", 0o766),)), "problem", ""),
        (
            "sockets",
            good.private(sockets=(good.place("/c.sock", "socket", 0o700, weak=("/ x",)),)),
            "problem",
            "/ x",
        ),
    ],
)  # fmt: skip
def test_private_files(
    check: str, facts: privatefiles.PrivateFacts, expected: str, words: str
) -> None:
    found = privatefiles.CHECKS[check](facts)
    assert level(found) == expected
    assert words in text(found)


MISSING = Place("/srv/ledger.sqlite", "missing")
OFF = {"fsync": "on", "synchronous_commit": "off"}


@pytest.mark.parametrize(
    ("check", "facts", "expected", "words"),
    [
        ("reachable", good.sqlite(file=MISSING, revision=None), "note", "no ledger yet"),
        ("reachable", good.sqlite(file=Place("/x", "hidden")), "unknown", "root"),
        ("reachable", good.postgres(problem="connection refused"), "problem", "connection refused"),
        ("schema", good.sqlite(file=MISSING), "-", ""),
        ("schema", good.postgres(problem="away"), "-", ""),
        ("schema", good.postgres(revision="0001"), "note", "backup"),
        ("schema", good.postgres(revision=None), "note", "empty"),
        ("schema", good.postgres(revision="9999"), "problem", "newer"),
        ("server", good.sqlite(), "-", ""),
        ("server", good.postgres(server=120018), "problem", "PostgreSQL 12.18"),
        ("server", good.postgres(server=130001), "ok", "13.1"),
        ("durable", good.postgres(durable=OFF), "problem", "synchronous_commit"),
        ("durable", good.postgres(problem="away"), "-", ""),
        ("durable", good.sqlite(journal="delete"), "warning", "'delete'"),
        (
            "durable",
            good.sqlite(file=good.place("/n/l", "file", 0o600, mount=good.NFS)),
            "problem",
            "nfs4",
        ),
        ("permissions", good.postgres(), "-", ""),
        ("permissions", good.sqlite(file=good.place("/l", "file", 0o644)), "warning", "0644"),
        ("permissions", good.sqlite(file=good.place("/l", "file", 0o660)), "problem", "0660"),
        (
            "permissions",
            good.sqlite(file=good.place("/l", "file", 0o600, weak=("/ x",))),
            "problem",
            "chmod",
        ),
        ("books", good.sqlite(), "note", "ledger verify"),
        ("books", good.sqlite(problem="broken"), "-", ""),
        ("books", good.sqlite(revision="0001"), "-", ""),
    ],
)
def test_database(check: str, facts: database.DatabaseFacts, expected: str, words: str) -> None:
    found = database.CHECKS[check](facts)
    assert level(found) == expected
    assert words in text(found)


def disk(free: int, total: int = 500 * GIB, files: int = 100, free_files: int = 90) -> Disk:
    return Disk("/srv", "homes", total, free, files, free_files)


@pytest.mark.parametrize(
    ("check", "facts", "expected", "words"),
    [
        ("clock", good.host(synchronised=False), "warning", "chrony"),
        ("clock", good.host(synchronised=None), "unknown", "timedatectl"),
        ("disks", good.host(disks=()), "unknown", "df"),
        ("disks", good.host(disks=(disk(300 * MIB),)), "problem", "300 MiB"),
        ("disks", good.host(disks=(disk(4 * GIB, 20 * GIB),)), "warning", "4 GiB"),
        ("disks", good.host(disks=(disk(20 * GIB, 500 * GIB),)), "warning", "20 GiB"),
        ("disks", good.host(disks=(disk(100 * GIB, files=10_000, free_files=5),)), "problem", "5 "),
        # Some file systems (btrfs) count no files.
        ("disks", good.host(disks=(disk(100 * GIB, files=0, free_files=0),)), "ok", ""),
        ("disks", good.host(disks=(disk(100 * GIB), disk(0))), "problem", "0 B"),
    ],
)
def test_host(check: str, facts: host.HostFacts, expected: str, words: str) -> None:
    found = host.CHECKS[check](facts)
    assert level(found) == expected
    assert words in text(found)


# ------------------------------------------------------------------------------------ the parts

AWAY = good.nothing("http://127.0.0.1:8081/hub/api/")
STILL = {"hub": AWAY, "service": AWAY, "node": "the node does not answer"}


@pytest.mark.parametrize(
    ("check", "facts", "expected", "words"),
    [
        ("running", good.wiring(**STILL), "note", "Nothing runs"),
        *[(name, good.wiring(**STILL), "-", "") for name in wiring.CHECKS if name != "running"],
        ("hub", good.wiring(hub=AWAY), "problem", "Connection refused"),
        ("hub", good.wiring(hub=Reply("u", 404)), "problem", "no hub"),
        ("hub", good.wiring(hub=Reply("u", 200, {"version": 7})), "problem", "no hub"),
        ("hub", good.wiring(hub=Reply("u", 200, {"version": "5.4.4"})), "problem", "CVE-2026-4"),
        ("token", good.wiring(ourselves=None, token_problem="x: no"), "unknown", "x: no"),
        ("token", good.wiring(ourselves=Reply("u", 403)), "problem", "does not know"),
        ("token", good.wiring(ourselves=Reply("u", 200, {"name": "ada"})), "problem", "'ada'"),
        (
            "token",
            good.wiring(ourselves=Reply("u", 200, {"name": "gpuslice", "scopes": ["list:users"]})),
            "problem",
            "delete:servers",
        ),
        ("token", good.wiring(hub=AWAY), "-", ""),
        ("service", good.wiring(service=AWAY), "problem", "does not answer"),
        ("service", good.wiring(service=Reply("u", 404)), "problem", "not the service"),
        ("service", good.wiring(service=Reply("u", 200, {"status": "lost"})), "problem", "not the"),
        ("service", good.wiring(service=Reply("u", 503, {"message": "locked"})), "problem", ""),
        ("service", good.wiring(service=Reply("u", 200, {"status": "degraded"})), "problem", ""),
        ("offers", good.wiring(service=AWAY), "-", ""),
        ("offers", good.wiring(offers=None, token_problem="x: no"), "unknown", "x: no"),
        ("offers", good.wiring(offers=Reply("u", 403)), "problem", "broker_token"),
        ("offers", good.wiring(offers=Reply("u", 500)), "unknown", "500"),
        ("offers", good.wiring(offers=Reply("u", 200, items=0)), "warning", "Nothing is on offer"),
        ("node", good.wiring(node="the node does not answer"), "problem", "The node does not"),
        ("node", good.wiring(engine="local"), "problem", "'docker'"),
        ("node", good.wiring(node_id="gpu1"), "problem", "'gpu1'"),
        ("proxy", good.wiring(public_hub=None, public_service=None), "note", "--url"),
        ("proxy", good.wiring(public_hub=AWAY), "problem", "Nothing answers"),
        ("proxy", good.wiring(public_hub=Reply("u", 503)), "problem", "503"),
        ("proxy", good.wiring(public_service=Reply("u", 404)), "problem", "to the service"),
    ],
)  # fmt: skip
def test_wiring(check: str, facts: wiring.WiringFacts, expected: str, words: str) -> None:
    found = wiring.CHECKS[check](facts)
    assert level(found) == expected
    assert words in text(found)


@given(ANYTHING, ANYTHING, st.none() | st.integers(100, 599))
def test_no_check_breaks_off_whatever_a_part_answers(body: Any, other: Any, status: Any) -> None:
    bodies = [one if isinstance(one, dict) else {"version": one} for one in (body, other)]
    replies = [Reply("u", status, one) for one in bodies]
    for hub in replies:
        for service in replies:
            facts = good.wiring(
                hub=hub, service=service, ourselves=service, public_hub=hub, public_service=service
            )
            found = Group("wiring", lambda facts=facts: facts, wiring.CHECKS).findings()
            assert [one for one in found if "broke off" in one.verdict.what] == []


# --------------------------------------------------------------------------- GPUs in containers

MINE = good.GPU[4:].replace("-", "")


def refused(said: str) -> Any:
    return good.trial(devices=(Attempt(good.GPU, refused=said),))


@pytest.mark.parametrize(
    ("check", "facts", "expected", "words"),
    [
        ("devices", good.trial(), "ok", "64 MiB"),
        ("devices", good.trial(nothing="the GPUs are simulated", devices=()), "unknown", "simul"),
        ("devices", refused("unresolvable CDI devices nvidia.com/gpu=x"), "unknown", "generate"),
        ("devices", refused("No such image: a:1"), "unknown", "make images"),
        ("devices", refused('exec: "python3": executable file not found'), "unknown", "python3"),
        ("devices", refused("hook failed"), "problem", "hook failed"),
        (
            "devices",
            good.trial(devices=(good.attempt(good.GPU, error="cuInit failed: 999"),)),
            "problem",
            "999",
        ),
        (
            "devices",
            good.trial(devices=(good.attempt(good.GPU, error="x failed with CUDA error 2"),)),
            "unknown",
            "in use",
        ),
        (
            "devices",
            good.trial(devices=(good.attempt(good.GPU, error="x failed with CUDA error 209"),)),
            "problem",
            "209",
        ),
        (
            "devices",
            good.trial(devices=(good.attempt(good.GPU, uuids=(MINE, "ff")),)),
            "problem",
            "ff",
        ),
        ("devices", good.trial(devices=(Attempt(good.GPU),)), "problem", "none"),
        (
            "devices",
            good.trial(devices=(good.attempt(good.INSTANCE),)),
            "problem",
            good.INSTANCE,
        ),
        ("without", good.trial(gpu_files=False), "unknown", "no device files"),
        (
            "without",
            good.trial(without=(Attempt("void", ("nvidia0",)),)),
            "problem",
            "VISIBLE_DEVICES=void, sees nvidia0",
        ),
        (
            "without",
            good.trial(without=(Attempt("void"), good.attempt("all"))),
            "problem",
            "VISIBLE_DEVICES=all",
        ),
        ("without", good.trial(without=(Attempt("all", refused="No such image"),)), "unknown", ""),
    ],
)  # fmt: skip
def test_gpus_in_containers(
    check: str, facts: gputest.TrialFacts, expected: str, words: str
) -> None:
    found = gputest.CHECKS[check](facts)
    assert level(found) == expected
    assert words in text(found)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (good.trial(), False),
        (good.trial(without=(good.attempt("void"),)), True),
        (good.trial(without=(Attempt("void", refused="it failed"),)), None),
        (good.trial(without=()), None),
        # Without any device file there was nothing to be seen.
        (good.trial(gpu_files=False), None),
    ],
)
def test_whether_a_container_without_a_device_sees_one(
    facts: gputest.TrialFacts, expected: bool | None
) -> None:
    assert facts.sees_gpus("void") is expected


@given(st.dictionaries(st.sampled_from(["devices", "uuids", "bytes", "error", "x"]), ANYTHING))
def test_no_check_breaks_off_whatever_a_container_prints(found: Any) -> None:
    import json

    from gpuslice.cli.doctor.cudaprobe import MARK

    attempt = gputest.attempt_of(good.GPU, 0, f"noise\n{MARK}{json.dumps(found)}\n")
    facts = good.trial(devices=(attempt,), without=(attempt,))
    verdicts = Group("gpu-test", lambda: facts, gputest.CHECKS).findings()
    assert [one for one in verdicts if "broke off" in one.verdict.what] == []


@pytest.mark.parametrize("log", ["", "Traceback\nSystemError: no", "gpuslice-doctor:{broken"])
def test_a_container_that_prints_something_else_was_refused(log: str) -> None:
    attempt = gputest.attempt_of(good.GPU, 1, log)
    assert attempt.refused
    assert "code 1" in attempt.refused


# ------------------------------------------------------------------------------------ all of them


def test_every_sentence_is_one() -> None:
    """With a full stop at its end, none in front of another, and a capital or a name first."""
    for name, (facts, checks) in GOOD.items():
        for finding in Group(name, lambda facts=facts: facts, checks).findings():
            what, do = finding.verdict.what, finding.verdict.do
            assert what.endswith("."), what
            assert ".." not in what.replace("nvidia0 …", ""), what
            assert not do or do.endswith((".", "…")), do
