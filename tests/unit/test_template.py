"""The create body: what the hub may say of it, and what the node makes of that."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest
from docker.types import containers as docker_py

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.node.docker.environment import container_environment
from gpuslice.node.docker.homes import HomeMount
from gpuslice.node.docker.images import split_reference
from gpuslice.node.docker.template import container_body
from gpuslice.node.docker.wanted import (
    EMPTY,
    HOST_EMPTY,
    MAX_BODY,
    lease_of_body,
    parse_body,
    read_wanted,
)
from gpuslice.settings import DockerSettings, ImageSettings

LEASE = "0123456789abcdef0123456789abcdef"
DEVICE = "GPU-11111111-2222-3333-4444-555555555555"
REFERENCE = "gpuslice/notebook:latest"
GIB = 1 << 30

PIECE = wire.PrepareSlice(
    lease_id=LEASE, user="ada", server="train", slice_type="quarter", kind=wire.SliceKind.SHARED,
    device_uuid=DEVICE, memory_bytes=10 * GIB, share_milli=250,
    enforcement=wire.Enforcement.WATCHDOG, cpu_milli=2500, ram_bytes=8 * GIB,
)  # fmt: skip
POLICY = DockerSettings(image=(ImageSettings(reference=REFERENCE),), shared="/srv/data")
IMAGE = {"Id": "sha256:" + "a" * 64, "Config": {"Env": ["PATH=/usr/bin", "LANG=C.UTF-8"]}}
HOME = HomeMount("volume", "gpuslice-home-ada", None, enforced=False)


def wanted(**fields: Any) -> dict[str, Any]:
    """What the hub sends, with these fields instead."""
    return {
        "Image": REFERENCE,
        "Cmd": ["jupyterhub-singleuser", "--debug"],
        "Env": ["JUPYTERHUB_API_TOKEN=secret", "EMPTY=", "EQUALS=a=b"],
        "Labels": {"gpuslice.lease": LEASE, "gpuslice.base_url": "/hub%20x/user/ada/train/"},
        **fields,
    }


def made(body: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"piece": PIECE, "policy": POLICY, "image": IMAGE, "home": HOME}
    return container_body(
        wanted() if body is None else body,
        **{**chosen, "node_id": "gpu-1", "network": "net-of-the-lease", **options},
    )


def refusal(body: dict[str, Any], **options: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        made(body, **options)
    return refused.value


# --- what is made -------------------------------------------------------------------------------


def test_the_whole_body() -> None:
    assert made() == {
        "Image": IMAGE["Id"],
        "Cmd": ["jupyterhub-singleuser", "--debug"],
        "User": "1000:100",
        "WorkingDir": "/home/jovyan",
        "Env": [
            "JUPYTER_RUNTIME_DIR=/tmp/jupyter-runtime",
            "OMP_NUM_THREADS=3",
            "JUPYTERHUB_API_TOKEN=secret",
            "EMPTY=",
            "EQUALS=a=b",
            "HOME=/home/jovyan",
            f"GPUSLICE_LEASE={LEASE}",
            "GPUSLICE_SLICE=quarter",
            f"CUDA_VISIBLE_DEVICES={DEVICE}",
            "NVIDIA_VISIBLE_DEVICES=void",
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        ],
        "Labels": {
            "gpuslice.lease": LEASE,
            "gpuslice.user": "ada",
            "gpuslice.server": "train",
            "gpuslice.slice_type": "quarter",
            "gpuslice.node": "gpu-1",
            "gpuslice.base_url": "/hub%20x/user/ada/train/",
        },
        "ExposedPorts": {"8888/tcp": {}},
        "StopSignal": "SIGTERM",
        "HostConfig": {
            "Memory": 8 * GIB,
            "MemorySwap": 8 * GIB,
            "NanoCpus": 2_500_000_000,
            "PidsLimit": 4096,
            "ShmSize": 4 * GIB,
            "Ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "nofile", "Soft": 16384, "Hard": 16384},
            ],
            "OomScoreAdj": 500,
            "Privileged": False,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "ReadonlyRootfs": True,
            "Tmpfs": {
                "/tmp": f"rw,nosuid,nodev,exec,mode=1777,size={2 * GIB}",
                "/var/tmp": f"rw,nosuid,nodev,noexec,mode=1777,size={64 << 20}",
            },
            "Mounts": [
                {
                    "Type": "volume",
                    "Source": "gpuslice-home-ada",
                    "Target": "/home/jovyan",
                    "VolumeOptions": {"NoCopy": True},
                },
                {"Type": "bind", "Source": "/srv/data", "Target": "/shared", "ReadOnly": True},
            ],
            "DeviceRequests": [{"Driver": "cdi", "DeviceIDs": [f"gpuslice.dev/slice={LEASE}"]}],
            "NetworkMode": "net-of-the-lease",
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            "Init": False,
            "LogConfig": {
                "Type": "json-file",
                "Config": {"max-size": str(10 << 20), "max-file": "3"},
            },
        },
        "NetworkingConfig": {"EndpointsConfig": {"net-of-the-lease": {}}},
    }


def test_the_policy_is_followed() -> None:
    policy = POLICY.model_copy(
        update={
            "user": "2000:3000", "shm": GIB, "tmp": 64 << 20, "pids": 99, "shared": None,
            "read_only": False, "log_size": 7 << 20, "log_files": 9,
        }
    )  # fmt: skip
    body = made(policy=policy, home=HomeMount("bind", "/nfs/ada", 5 * GIB, enforced=True))
    host = body["HostConfig"]
    assert body["User"] == "2000:3000"
    assert (host["ShmSize"], host["PidsLimit"], host["ReadonlyRootfs"]) == (GIB, 99, False)
    assert host["Tmpfs"] == {"/tmp": f"rw,nosuid,nodev,exec,mode=1777,size={64 << 20}"}
    assert host["Mounts"] == [{"Type": "bind", "Source": "/nfs/ada", "Target": "/home/jovyan"}]
    assert host["LogConfig"]["Config"] == {"max-size": str(7 << 20), "max-file": "9"}
    assert f"GPUSLICE_HOME_LIMIT={5 * GIB}" in body["Env"]


def test_a_slice_without_a_gpu() -> None:
    piece = PIECE.model_copy(update={"kind": wire.SliceKind.CPU, "device_uuid": None})
    body = made(piece=piece)
    assert "CUDA_VISIBLE_DEVICES=" in body["Env"]
    assert "NVIDIA_VISIBLE_DEVICES=void" in body["Env"]
    assert body["HostConfig"]["DeviceRequests"] == made()["HostConfig"]["DeviceRequests"]


def test_folders_in_memory_leave_room_for_the_server() -> None:
    host = made(piece=PIECE.model_copy(update={"ram_bytes": 20 << 20}))["HostConfig"]
    sizes = [int(re.search(r"size=(\d+)", text)[1]) for text in host["Tmpfs"].values()]
    assert sizes == [10 << 20] * 2
    assert host["ShmSize"] == 10 << 20


def test_no_slice_is_without_a_memory_limit() -> None:
    with pytest.raises(Refused, match="no RAM"):
        made(piece=PIECE.model_copy(update={"ram_bytes": 0}))


def test_no_command_is_the_images_own() -> None:
    body = wanted()
    del body["Cmd"]
    assert "Cmd" not in made(body)
    assert "Cmd" not in made(wanted(Cmd=[]))


@pytest.mark.parametrize("folder", ["/data", "/home/jovyan/work", "//tmp", "/"])
def test_an_image_with_a_volume_of_its_own_is_refused(folder: str) -> None:
    refused = refusal(wanted(), image={**IMAGE, "Config": {"Volumes": {folder: {}}}})
    assert folder in refused.refusal.message
    assert refused.refusal.reason == "image-refused"


def test_volumes_that_ours_cover_do_not_matter() -> None:
    covered = {"/home/jovyan": {}, "/tmp/": {}, "/var/tmp": {}}
    assert made(image={**IMAGE, "Config": {"Volumes": covered}})["Image"] == IMAGE["Id"]
    writable = POLICY.model_copy(update={"read_only": False})
    assert "/var/tmp" in str(refusal(wanted(), policy=writable, image={
        **IMAGE, "Config": {"Volumes": {"/var/tmp": {}}}}))  # fmt: skip


# --- the environment ----------------------------------------------------------------------------

THE_NODES = [
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_ANYTHING",
    "CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "CUDA_DEVICE_MEMORY_LIMIT", "CUDA_DEVICE_SM_LIMIT", "CUDA_DISABLE_CONTROL",
    "CUDA_OVERSUBSCRIBE", "CUDA_TASK_PRIORITY", "GPU_CORE_UTILIZATION_POLICY", "LD_PRELOAD",
    "LD_AUDIT", "GLIBC_TUNABLES", "DOCKER_RESOURCE_GPU", "NVMLSIM_STATE", "NVMLSIM_VIEW",
    "NVMLSIM_VISIBLE", "GPUSLICE_LEASE", "GPUSLICE_HOME_LIMIT",
]  # fmt: skip


def environment(
    wanted: dict[str, str],
    image: list[str],
    limit: int | None = None,
    piece: wire.PrepareSlice = PIECE,
) -> tuple[dict[str, str], set[str]]:
    """What the container has of ours, and which variables of the image it has not."""
    entries = container_environment(wanted, piece, image, limit)
    names = [entry.partition("=")[0] for entry in entries]
    assert len(set(names)) == len(names)
    return (
        dict(entry.split("=", 1) for entry in entries if "=" in entry),
        {entry for entry in entries if "=" not in entry},
    )


@pytest.mark.parametrize("name", THE_NODES)
def test_neither_hub_nor_image_says_what_the_node_decides(name: str) -> None:
    ours, _ = environment({}, [])
    asked, _ = environment({name: "evil"}, [])
    assert asked == ours
    imaged, unset = environment({name: "evil"}, [f"{name}=evil", "KEPT=1"])
    assert imaged == ours
    assert unset == {name} - set(ours)


def test_everything_else_is_the_hubs_then_the_images() -> None:
    ours, unset = environment({"A": "hub", "LD_RUN_PATH": "/x"}, ["A=image", "B=image", "LD_BIND"])
    assert (ours["A"], ours["LD_RUN_PATH"]) == ("hub", "/x")
    # Not named: the engine takes the image's.
    assert "B" not in ours
    assert not unset


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/usr/local/cuda/lib64", True),
        ("/usr/local/nvidia/lib:/usr/local/nvidia/lib64", True),
        ("/usr/lib:", False),
        (":/usr/lib", False),
        ("lib", False),
        ("/usr/lib:./lib", False),
        ("", False),
    ],
)
def test_an_image_may_name_folders_of_its_own_libraries(path: str, kept: bool) -> None:
    ours, unset = environment({"LD_LIBRARY_PATH": "/hub"}, [f"LD_LIBRARY_PATH={path}"])
    assert "LD_LIBRARY_PATH" not in ours
    assert ("LD_LIBRARY_PATH" not in unset) is kept


def test_the_home_is_ours_and_the_runtime_folder_may_be_the_hubs() -> None:
    ours, _ = environment({"HOME": "/root", "JUPYTER_RUNTIME_DIR": "/run/j"}, [], 17)
    assert ours["HOME"] == "/home/jovyan"
    assert ours["JUPYTER_RUNTIME_DIR"] == "/run/j"
    assert ours["GPUSLICE_HOME_LIMIT"] == "17"
    assert environment({}, [])[0]["JUPYTER_RUNTIME_DIR"].startswith("/tmp/")


def test_threads_are_those_of_the_slice_unless_the_hub_says_otherwise() -> None:
    assert environment({}, [])[0]["OMP_NUM_THREADS"] == "3"
    assert environment({"OMP_NUM_THREADS": "1"}, ["OMP_NUM_THREADS=8"])[0]["OMP_NUM_THREADS"] == "1"
    whole = PIECE.model_copy(update={"cpu_milli": 4000})
    assert environment({}, [], piece=whole)[0]["OMP_NUM_THREADS"] == "4"
    unlimited = PIECE.model_copy(update={"cpu_milli": 0})
    assert "OMP_NUM_THREADS" not in environment({}, [], piece=unlimited)[0]


# --- what docker-py sends -----------------------------------------------------------------------


def test_every_field_of_docker_py_is_known() -> None:
    """A new docker-py may write more; each of its fields has to be looked at."""
    host = set(re.findall(r"self\['(\w+)'\] =", inspect.getsource(docker_py.HostConfig)))
    host |= set(re.findall(r'self\["(\w+)"\] =', inspect.getsource(docker_py.HostConfig)))
    assert host == HOST_EMPTY | {"NetworkMode"}
    config = set(docker_py.ContainerConfig("1.44", "image", []))
    said = {"Image", "Cmd", "Env", "Labels", "ExposedPorts", "HostConfig", "NetworkingConfig"}
    assert config == EMPTY | said | {"AttachStdout", "AttachStderr"}


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("network", [None, "bridge"])
def test_what_docker_py_makes_of_the_same_is_taken(detach: bool, network: str | None) -> None:
    host = docker_py.HostConfig(
        "1.44", binds={}, links={}, mounts=[], auto_remove=False, network_mode=network
    )
    body = docker_py.ContainerConfig(
        "1.44", REFERENCE, ["jupyterhub-singleuser", "--debug"], detach=detach, host_config=host,
        environment=["JUPYTERHUB_API_TOKEN=secret", "EMPTY=", "EQUALS=a=b"], volumes=[],
        labels=wanted()["Labels"], ports=[8888],
    )  # fmt: skip
    assert made(parse_body(json.dumps(body).encode())) == made()
    assert made(json.loads(json.dumps({**body, "ExposedPorts": {"8888/tcp": None}}))) == made()


# --- what is refused ----------------------------------------------------------------------------


def test_the_labels_may_say_what_is_true_and_nothing_else() -> None:
    true = {
        **wanted()["Labels"],
        "gpuslice.user": "ada",
        "gpuslice.server": "train",
        "gpuslice.slice_type": "quarter",
    }
    assert made(wanted(Labels=true)) == made()
    for name in true:
        # Of a base URL the hub knows more than the node.
        if name == "gpuslice.base_url":
            continue
        refused = refusal(wanted(Labels={**true, name: "bob"}))
        assert refused.status == 403
        assert f"Labels.{name}" in refused.refusal.message
    for other in ("gpuslice.node", "gpuslice.home", "com.example", "Gpuslice.lease"):
        assert f"Labels.{other}" in refusal(wanted(Labels={**true, other: "x"})).refusal.message


@pytest.mark.parametrize("name", ["gpuslice.lease", "gpuslice.base_url"])
def test_both_labels_are_needed(name: str) -> None:
    labels = dict(wanted()["Labels"])
    del labels[name]
    assert name in refusal(wanted(Labels=labels)).refusal.message


@pytest.mark.parametrize(
    "url",
    [
        "", "user/ada/", "/user/ada", "/user//ada/", "/user/../", "/./", "/%2e%2E/", "/.%2e/",
        "/user ada/", "/ü/", "/%zz/", "/%2/", "/a?b/", "/a#b/", "/a\\b/", "/a\n/", "/\n",
        "/a/\n", "//host/", "http://evil/", "@evil/", "/" + "a" * 2000 + "/", '/"/', "/<b>/",
    ],
)  # fmt: skip
def test_a_base_url_is_a_path(url: str) -> None:
    labels = {"gpuslice.lease": LEASE, "gpuslice.base_url": url}
    assert "gpuslice.base_url" in refusal(wanted(Labels=labels)).refusal.message


@pytest.mark.parametrize(
    "url", ["/", "/user/ada/", "/hub%20x/user/%C3%BC@b~c/a.b/", "/user/..a/", "/user/.../"]
)
def test_base_urls_of_the_hub_are_taken(url: str) -> None:
    labels = {"gpuslice.lease": LEASE, "gpuslice.base_url": url}
    assert made(wanted(Labels=labels))["Labels"]["gpuslice.base_url"] == url


@pytest.mark.parametrize(
    "image",
    [
        "debian", "gpuslice/notebook", "gpuslice/notebook:other", "gpuslice/notebook:latest ",
        "GPUSLICE/notebook:latest", "gpuslice/notebook@sha256:" + "0" * 64, "sha256:" + "a" * 64,
        "", None, 7, ["gpuslice/notebook:latest"],
    ],
)  # fmt: skip
def test_an_image_is_one_of_the_settings(image: Any) -> None:
    assert "Image" in refusal(wanted(Image=image)).refusal.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("Env", "A=b"), ("Env", {"A": "b"}), ("Env", ["A"]), ("Env", ["=b"]), ("Env", ["A=1", 2]),
        ("Env", ["A=1", "A=2"]), ("Env", ["A=\0"]), ("Env", ["A=\ud800"]), ("Env", ["A B=1"]),
        ("Env", ["A\n=1"]), ("Env", ["A=" + "x" * (128 * 1024)]), ("Env", ["A=b"] * 501),
        ("Env", [["A=b"]]), ("Env", ["Ü=1"]), ("Env", True), ("Env", ["1A=b"]),
        ("Cmd", "sh"), ("Cmd", [1]), ("Cmd", ["a\0"]), ("Cmd", [["a"]]), ("Cmd", {"a": 1}),
        ("Cmd", ["x"] * 501), ("Cmd", [None]),
        ("Labels", None), ("Labels", []), ("Labels", {"gpuslice.lease": 1}),
        ("HostConfig", []), ("HostConfig", "x"), ("HostConfig", True),
        ("NetworkingConfig", []), ("NetworkingConfig", 1),
        ("AttachStdout", 1), ("AttachStderr", "true"), ("AttachStdin", True),
        ("ExposedPorts", {"22/tcp": {}}), ("ExposedPorts", {"8888/tcp": {}, "1/tcp": {}}),
        ("ExposedPorts", {"8888/udp": {}}), ("ExposedPorts", {"8888/tcp": {"x": 1}}),
        ("ExposedPorts", ["8888/tcp"]), ("ExposedPorts", "8888/tcp"),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused_by_name(field: str, value: Any) -> None:
    refused = refusal(wanted(**{field: value}))
    assert field in refused.refusal.message
    assert refused.status in (400, 403)


#: What says something, of every type that JSON has.
LOUD = [True, 1, -1, 0.5, 0.0, "x", " ", ["x"], [None], [[]], {"x": 1}, {"x": None}, {"": {}}]


@pytest.mark.parametrize("name", sorted(EMPTY))
def test_every_other_field_is_refused_by_name(name: str) -> None:
    for value in LOUD:
        refused = refusal(wanted(**{name: value}))
        assert (refused.status, refused.refusal.reason) == (403, "field-refused")
        assert refused.refusal.message.startswith(f"{name} is not for the hub to set")
    for value in (None, False, 0, "", [], {}):
        assert made(wanted(**{name: value})) == made()


@pytest.mark.parametrize("name", sorted(HOST_EMPTY | {"NetworkMode"}))
def test_every_field_of_the_host_config_is_refused_by_name(name: str) -> None:
    for value in LOUD:
        refused = refusal(wanted(HostConfig={name: value}))
        assert (refused.status, refused.refusal.reason) == (403, "field-refused")
        assert refused.refusal.message.startswith(f"HostConfig.{name} is not for the hub to set")
    for value in (None, False, 0, "", [], {}):
        assert made(wanted(HostConfig={name: value})) == made()


def folded(name: str) -> set[str]:
    """Names that Go's JSON decoder reads as ``name`` although they are another text."""
    return {
        name.lower(), name.upper(), name.swapcase(), name[0].lower() + name[1:],
        # The long s and the Kelvin sign fold to s and k.
        name.replace("s", "\u017f", 1), name.replace("k", "\u212a", 1),
        name.replace("S", "\u017f", 1), name.replace("K", "\u212a", 1),
    } - {name}  # fmt: skip


@pytest.mark.parametrize(
    "name", sorted(EMPTY | {"HostConfig", "Image", "Cmd", "Env", "Labels", "NetworkingConfig"})
)
def test_names_that_are_merely_similar_are_unknown(name: str) -> None:
    for similar in folded(name):
        for value in ({"Privileged": True}, "x", None, {}):
            refused = refusal(wanted(**{similar: value}))
            assert (refused.status, refused.refusal.reason) == (403, "field-refused")


@pytest.mark.parametrize("name", sorted(HOST_EMPTY | {"NetworkMode"}))
def test_so_they_are_in_the_host_config(name: str) -> None:
    for similar in folded(name):
        for value in (True, "host", None, {}):
            refused = refusal(wanted(HostConfig={similar: value}))
            assert (refused.status, refused.refusal.reason) == (403, "field-refused")
            assert "HostConfig." in refused.refusal.message


@pytest.mark.parametrize(
    "unknown", ["Unheard", "", "\n", "Image\n", " Image", "x" * 100_000, "\ud800", "ÜMLAUT"]
)
def test_unknown_fields_are_refused_even_if_they_say_nothing(unknown: str) -> None:
    for body in (
        wanted(**{unknown: None}),
        wanted(HostConfig={unknown: None}),
        wanted(NetworkingConfig={unknown: None}),
    ):
        refused = refusal(body)
        assert refused.status == 403
        # Of somebody else's text no more than a line, and clean.
        assert len(refused.refusal.message) < 400
        assert refused.refusal.message.replace("…", "").isascii()
        assert refused.refusal.message.replace("…", "").isprintable()


def test_a_network_of_the_callers_is_refused() -> None:
    for config in ({"other": {}}, {"other": {"IPAMConfig": {}}}):
        refused = refusal(wanted(NetworkingConfig={"EndpointsConfig": config}))
        assert "NetworkingConfig.EndpointsConfig" in refused.refusal.message
    assert made(wanted(NetworkingConfig={"EndpointsConfig": {}})) == made()


# --- bodies as bytes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"null", b"[]", b"7", b'"x"', b"{", b"{'a':1}", b'{"a":NaN}', b'{"a":Infinity}',
        b'{"a":1,"a":1}', b'{"HostConfig":{"Privileged":false,"Privileged":true}}',
        b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b'{"a":' + b"9" * 5000 + b"}",
        b"{}" + b" " * MAX_BODY, b'{"a":1} {"b":2}',
    ],
)  # fmt: skip
def test_a_body_is_one_json_object(raw: bytes) -> None:
    with pytest.raises(Refused) as refused:
        parse_body(raw)
    assert refused.value.refusal.reason == "bad-body"
    assert refused.value.status in (400, 413)


def test_the_lease_of_a_body() -> None:
    assert lease_of_body(wanted()) == LEASE
    wrong: list[Any] = [
        {}, {"Labels": None}, {"Labels": []}, {"Labels": {}}, {"labels": wanted()["Labels"]},
        *({"Labels": {"gpuslice.lease": lease}} for lease in
          ("", None, 7, LEASE + "\n", LEASE.upper(), LEASE[:-1], "../" + LEASE)),
    ]  # fmt: skip
    for body in wrong:
        with pytest.raises(Refused, match=r"Labels\.gpuslice\.lease"):
            lease_of_body(body)


def test_a_body_for_another_lease_is_refused() -> None:
    other = PIECE.model_copy(update={"lease_id": "f" * 32})
    with pytest.raises(Refused, match=r"Labels\.gpuslice\.lease"):
        read_wanted(wanted(), other, POLICY)


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("debian", ("debian", "latest")),
        ("debian:12", ("debian", "12")),
        ("host:5000/a/b", ("host:5000/a/b", "latest")),
        ("host:5000/a/b:1", ("host:5000/a/b", "1")),
        ("a@sha256:00", ("a", "sha256:00")),
        ("host:5000/a:1@sha256:00", ("host:5000/a", "sha256:00")),
    ],
)
def test_references_are_split_as_docker_does(reference: str, parts: tuple[str, str]) -> None:
    assert split_reference(reference) == parts
