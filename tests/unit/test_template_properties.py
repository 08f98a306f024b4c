"""Whatever a create body says: it is refused, or nothing but the four things allowed is in ours."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.node.docker.homes import HomeMount
from gpuslice.node.docker.template import container_body
from gpuslice.node.docker.wanted import EMPTY, HOST_EMPTY, parse_body
from gpuslice.settings import DockerSettings, ImageSettings

LEASE = "0123456789abcdef0123456789abcdef"
REFERENCES = ("gpuslice/notebook:latest", "gpuslice/cuda@sha256:" + "b" * 64)
PIECE = wire.PrepareSlice(
    lease_id=LEASE, user="ada", server="", slice_type="cpu", kind=wire.SliceKind.CPU,
    device_uuid=None, memory_bytes=None, share_milli=None,
    enforcement=wire.Enforcement.ADVISORY, cpu_milli=1000, ram_bytes=1 << 30,
)  # fmt: skip
POLICY = DockerSettings(image=tuple(ImageSettings(reference=name) for name in REFERENCES))
IMAGE = {"Id": "sha256:" + "a" * 64, "Config": {"Env": ["PATH=/usr/bin", "LD_PRELOAD=/x.so"]}}
HOME = HomeMount("volume", "gpuslice-home-ada", None, enforced=False)

#: Everything that version 1.45 of the engine's API knows in the body of a create call.
TOP = """
Hostname Domainname User AttachStdin AttachStdout AttachStderr ExposedPorts Tty OpenStdin
StdinOnce Env Cmd Healthcheck ArgsEscaped Image Volumes WorkingDir Entrypoint NetworkDisabled
MacAddress OnBuild Labels StopSignal StopTimeout Shell HostConfig NetworkingConfig Runtime Platform
""".split()  # noqa: SIM905
HOST = """
CpuShares Memory CgroupParent BlkioWeight BlkioWeightDevice BlkioDeviceReadBps
BlkioDeviceWriteBps BlkioDeviceReadIOps BlkioDeviceWriteIOps CpuPeriod CpuQuota
CpuRealtimePeriod CpuRealtimeRuntime CpusetCpus CpusetMems Devices DeviceCgroupRules
DeviceRequests KernelMemory KernelMemoryTCP MemoryReservation MemorySwap MemorySwappiness NanoCpus
OomKillDisable Init PidsLimit Ulimits CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth Binds
ContainerIDFile LogConfig NetworkMode PortBindings RestartPolicy AutoRemove VolumeDriver
VolumesFrom Mounts ConsoleSize Annotations CapAdd CapDrop CgroupnsMode Dns DnsOptions DnsSearch
ExtraHosts GroupAdd IpcMode Cgroup Links OomScoreAdj PidMode Privileged PublishAllPorts
ReadonlyRootfs SecurityOpt StorageOpt Tmpfs UTSMode UsernsMode ShmSize Sysctls Runtime Isolation
MaskedPaths ReadonlyPaths
""".split()  # noqa: SIM905
#: What a wish of somebody who took the hub over looks like; in none of our bodies.
MARK = "wish-"

quiet = st.sampled_from([None, False, 0, "", [], {}])
wish = st.recursive(
    st.one_of(
        st.builds(lambda text: MARK + text, st.text(max_size=5)),
        st.sampled_from([f"{MARK}host", f"/:/{MARK}host", f"container:{MARK}x", f"{MARK}ALL"]),
        st.integers(), st.booleans(), st.none(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.just(f"{MARK}name"), inner),
    ),
    max_leaves=5,
)  # fmt: skip
value = st.one_of(quiet, quiet, quiet, wish)


def respelled(name: str) -> st.SearchStrategy[str]:
    """Mostly the name itself; now and then one that a lenient reader takes for it."""
    return st.sampled_from(
        [name] * 12 + [name.lower(), name.upper(), name.replace("s", "\u017f"), name + " "]
    )


def table(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    some = st.lists(st.sampled_from(names).flatmap(respelled), max_size=6, unique=True)
    return some.flatmap(lambda chosen: st.fixed_dictionaries(dict.fromkeys(chosen, value)))


env = st.lists(
    st.builds(
        lambda name, value: f"{name}={value}",
        st.sampled_from(["A", "B", "PATH", "LD_PRELOAD", "NVIDIA_VISIBLE_DEVICES", "HOME"]),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
    ),
    max_size=4,
    unique_by=lambda entry: entry.split("=")[0],
)
allowed = st.fixed_dictionaries({
    "Image": st.sampled_from(REFERENCES),
    "Cmd": st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
    "Env": env,
    "Labels": st.just({"gpuslice.lease": LEASE, "gpuslice.base_url": "/user/ada/"}),
})  # fmt: skip
HOSTS = st.one_of(table(HOST), table(HOST), value)
NETWORKS = st.one_of(table(["EndpointsConfig"]), value)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A body, and what of it the hub is allowed to say."""
    said = draw(allowed)
    more = draw(table([name for name in TOP if name not in said]))
    if draw(st.booleans()):
        more["HostConfig"] = draw(HOSTS)
    if draw(st.booleans()):
        more["NetworkingConfig"] = draw(NETWORKS)
    items = [*said.items(), *more.items()]
    return dict(draw(st.permutations(items))), said


def made(body: dict[str, Any]) -> dict[str, Any]:
    return container_body(
        body, PIECE, POLICY, IMAGE, node_id="n", network="lease-net", home=HOME
    )  # fmt: skip


@given(bodies())
@settings(max_examples=1500, deadline=None)
def test_nothing_but_the_four_gets_through(drawn: tuple[dict[str, Any], dict[str, Any]]) -> None:
    body, said = drawn
    expected = made(said)
    try:
        found = made(parse_body(json.dumps(body).encode()))
    except Refused as refused:
        assert refused.status in (400, 403)
    else:
        assert found == expected
        assert MARK not in json.dumps({**found, "Cmd": None, "Env": None})
        assert not loud(body)


def loud(body: dict[str, Any]) -> list[str]:
    """Fields beside the four that say something; only what docker-py always says is left out."""
    flat = {name: body[name] for name in body if name not in ("HostConfig", "NetworkingConfig")}
    for outer in ("HostConfig", "NetworkingConfig"):
        inner = body.get(outer)
        if isinstance(inner, dict):
            flat |= {f"{outer}.{name}": value for name, value in inner.items()}
        else:
            flat[outer] = inner
    attached = ("AttachStdout", "AttachStderr")
    return [
        name
        for name, value in flat.items()
        if value not in (None, False, 0, "", [], {})
        and name not in ("Image", "Cmd", "Env", "Labels")
        and not (name in attached and value is True)
    ]


@given(
    allowed,
    st.dictionaries(st.sampled_from(sorted(EMPTY)), quiet),
    st.dictionaries(st.sampled_from(sorted(HOST_EMPTY)), quiet),
)
def test_fields_of_docker_py_that_say_nothing_are_never_refused(
    said: dict[str, Any], top: dict[str, Any], host: dict[str, Any]
) -> None:
    assert made({**said, **top, "HostConfig": host}) == made(said)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=9,
)
spoiled = st.sampled_from([
    "Image", "Cmd", "Env", "Labels", "HostConfig", "NetworkingConfig", "ExposedPorts",
    "AttachStdout", "Privileged", "",
])  # fmt: skip


@given(st.dictionaries(spoiled, json_values), st.booleans())
@settings(max_examples=500, deadline=None)
def test_whatever_it_is_the_answer_is_a_refusal_or_ours(
    changes: dict[str, Any], complete: bool
) -> None:
    said = {
        "Image": REFERENCES[0],
        "Labels": {"gpuslice.lease": LEASE, "gpuslice.base_url": "/user/ada/"},
    }
    body = {**said, **changes} if complete else changes
    try:
        found = made(parse_body(json.dumps(body).encode()))
    except Refused:
        return
    assert found["HostConfig"] == made(said)["HostConfig"]
    assert found["Labels"] == made(said)["Labels"]


@given(st.binary(max_size=200))
def test_bytes_are_a_body_or_refused(raw: bytes) -> None:
    try:
        assert type(parse_body(raw)) is dict
    except Refused as refused:
        assert refused.refusal.reason == "bad-body"
