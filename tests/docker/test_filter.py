"""Whoever takes the hub over does not become root: each known way, tried on a real engine."""

from __future__ import annotations

import io
import json
import re
import tarfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
import requests
from docker.errors import APIError, ImageNotFound, NotFound

from dockerworld import containers_of
from engineproxy import EngineProxy
from filterworld import Filtered, PlainGate, served_filter
from gpuslice import wire
from gpuslice.containers import LABEL_LEASE, LABEL_NODE
from gpuslice.node.docker.api import DockerApi
from gpuslice.node.docker.homes import HomeMount
from gpuslice.nodeclient import NodeClient
from gpuslice.settings import DockerSettings

pytestmark = pytest.mark.docker

SOCKET = "/var/run/docker.sock"


@dataclass
class World:
    """A hub's view: a lease that is prepared, a container that is its own, and one that is not."""

    filtered: Filtered
    hub: docker.APIClient
    gate: PlainGate
    proxy: EngineProxy
    root: docker.DockerClient
    image: str
    lease: str
    name: str
    own: str
    foreign: str

    def body(self, **fields: Any) -> dict[str, Any]:
        labels = {"gpuslice.lease": self.lease, "gpuslice.base_url": "/user/ada/"}
        return {"Image": self.image, "Cmd": ["/tiny", "serve"], "Labels": labels, **fields}

    def create(self, name: str | None = None, **fields: Any) -> str:
        made = self.hub.create_container_from_config(self.body(**fields), name or self.name)
        found: str = made["Id"]
        return found

    def host(self, **fields: Any) -> str:
        return self.create(HostConfig=fields)


def piece(lease_id: str, user: str) -> wire.PrepareSlice:
    return wire.PrepareSlice(
        lease_id=lease_id, user=user, server="", slice_type="cpu", kind=wire.SliceKind.CPU,
        device_uuid=None, memory_bytes=None, share_milli=None,
        enforcement=wire.Enforcement.ADVISORY, cpu_milli=500, ram_bytes=64 << 20,
    )  # fmt: skip


@pytest.fixture
def world(
    tmp_path: Path,
    client: docker.DockerClient,
    proxy: EngineProxy,
    policy: DockerSettings,
    tiny: str,
    node_id: str,
) -> Iterator[World]:
    api = DockerApi(proxy.socket, timeout_s=30)
    home = tmp_path / "home"
    home.mkdir()
    mount = HomeMount("bind", str(home), None, enforced=False)
    # Containers of this file are created, and with the engine's own network never started.
    gate = PlainGate(api, policy, node_id, "bridge", mount)
    lease, mine = uuid.uuid4().hex, uuid.uuid4().hex
    name = gate.prepare(piece(lease, f"ada {node_id}"))
    gate.prepare(piece(mine, f"ada {node_id}"))
    with served_filter(tmp_path / "f.sock", gate, api, policy) as filtered:
        hub = filtered.client()
        own = hub.create_container_from_config(
            {
                "Image": tiny,
                "Labels": {"gpuslice.lease": mine, "gpuslice.base_url": "/user/ada/"},
                "Env": ["JUPYTERHUB_API_TOKEN=not-to-be-seen"],
            },
            gate.name(mine),
        )["Id"]
        # Somebody else's, with all our labels on it.
        foreign = client.api.create_container_from_config(
            {"Image": tiny, "Labels": {LABEL_NODE: node_id, LABEL_LEASE: lease}},
            f"gpuslice-evil-{lease[:12]}",
        )["Id"]
        proxy.calls.clear()
        yield World(filtered, hub, gate, proxy, client, tiny, lease, name, own, foreign)
        hub.close()


# --- each known way to root ---------------------------------------------------------------------

Try = Callable[[World], Any]

#: Fields of a create body: the way, what it sends, and the name under which it is refused.
BODIES: dict[str, tuple[dict[str, Any], str]] = {
    "privileged": ({"HostConfig": {"Privileged": True}}, "HostConfig.Privileged"),
    "the host's root folder": ({"HostConfig": {"Binds": ["/:/host"]}}, "HostConfig.Binds"),
    "the engine's socket": ({"HostConfig": {"Binds": [f"{SOCKET}:{SOCKET}"]}}, "HostConfig.Binds"),
    "another user's volume": (
        {"HostConfig": {"Binds": ["gpuslice-home-bob:/home/jovyan"]}},
        "HostConfig.Binds",
    ),
    "a bind as a mount": (
        {"HostConfig": {"Mounts": [{"Type": "bind", "Source": "/", "Target": "/host"}]}},
        "HostConfig.Mounts",
    ),
    "a volume as a mount": (
        {"HostConfig": {"Mounts": [{"Type": "volume", "Source": "gpuslice-home-bob",
                                    "Target": "/x"}]}},
        "HostConfig.Mounts",
    ),
    "a volume that is a bind": (
        {"HostConfig": {"Mounts": [{
            "Type": "volume", "Target": "/x", "VolumeOptions": {"DriverConfig": {
                "Name": "local", "Options": {"type": "none", "device": "/", "o": "bind"}}}}]}},
        "HostConfig.Mounts",
    ),
    "a mount of memory": (
        {"HostConfig": {"Mounts": [{"Type": "tmpfs", "Target": "/x"}]}}, "HostConfig.Mounts",
    ),
    "volumes of another container": (
        {"HostConfig": {"VolumesFrom": ["other:rw"]}}, "HostConfig.VolumesFrom",
    ),
    "an anonymous volume": ({"Volumes": {"/x": {}}}, "Volumes"),
    "a volume driver": ({"HostConfig": {"VolumeDriver": "evil"}}, "HostConfig.VolumeDriver"),
    "the disk": (
        {"HostConfig": {"Devices": [{"PathOnHost": "/dev/vda", "PathInContainer": "/dev/vda",
                                     "CgroupPermissions": "rwm"}]}},
        "HostConfig.Devices",
    ),
    "all devices": (
        {"HostConfig": {"DeviceCgroupRules": ["a *:* rwm"]}}, "HostConfig.DeviceCgroupRules",
    ),
    "all GPUs": (
        {"HostConfig": {"DeviceRequests": [{"Driver": "nvidia", "Count": -1,
                                            "Capabilities": [["gpu"]]}]}},
        "HostConfig.DeviceRequests",
    ),
    "another lease's device": (
        {"HostConfig": {"DeviceRequests": [{
            "Driver": "cdi", "DeviceIDs": ["gpuslice.dev/slice=" + "f" * 32]}]}},
        "HostConfig.DeviceRequests",
    ),
    "the vendor's devices": (
        {"HostConfig": {"DeviceRequests": [{"Driver": "cdi",
                                            "DeviceIDs": ["nvidia.com/gpu=all"]}]}},
        "HostConfig.DeviceRequests",
    ),
    "a capability": ({"HostConfig": {"CapAdd": ["SYS_ADMIN"]}}, "HostConfig.CapAdd"),
    "no capability dropped": ({"HostConfig": {"CapDrop": ["NET_RAW"]}}, "HostConfig.CapDrop"),
    "no seccomp": (
        {"HostConfig": {"SecurityOpt": ["seccomp=unconfined"]}}, "HostConfig.SecurityOpt",
    ),
    "no AppArmor": (
        {"HostConfig": {"SecurityOpt": ["apparmor=unconfined"]}}, "HostConfig.SecurityOpt",
    ),
    "new privileges": (
        {"HostConfig": {"SecurityOpt": ["no-new-privileges:false"]}}, "HostConfig.SecurityOpt",
    ),
    "nothing masked": ({"HostConfig": {"MaskedPaths": []}}, "HostConfig.MaskedPaths"),
    "nothing read-only": ({"HostConfig": {"ReadonlyPaths": []}}, "HostConfig.ReadonlyPaths"),
    "the host's processes": ({"HostConfig": {"PidMode": "host"}}, "HostConfig.PidMode"),
    "a container's processes": (
        {"HostConfig": {"PidMode": "container:x"}}, "HostConfig.PidMode",
    ),
    "the host's IPC": ({"HostConfig": {"IpcMode": "host"}}, "HostConfig.IpcMode"),
    "a container's IPC": ({"HostConfig": {"IpcMode": "container:x"}}, "HostConfig.IpcMode"),
    "the host's name": ({"HostConfig": {"UTSMode": "host"}}, "HostConfig.UTSMode"),
    "the host's users": ({"HostConfig": {"UsernsMode": "host"}}, "HostConfig.UsernsMode"),
    "the host's cgroups": ({"HostConfig": {"CgroupnsMode": "host"}}, "HostConfig.CgroupnsMode"),
    "the host's network": ({"HostConfig": {"NetworkMode": "host"}}, "HostConfig.NetworkMode"),
    "a container's network": (
        {"HostConfig": {"NetworkMode": "container:x"}}, "HostConfig.NetworkMode",
    ),
    "another user's network": (
        {"HostConfig": {"NetworkMode": "gpuslice-" + "f" * 32}}, "HostConfig.NetworkMode",
    ),
    "a second network": (
        {"NetworkingConfig": {"EndpointsConfig": {"bridge": {}}}},
        "NetworkingConfig.EndpointsConfig",
    ),
    "a cgroup": ({"HostConfig": {"CgroupParent": "/"}}, "HostConfig.CgroupParent"),
    "another runtime": ({"HostConfig": {"Runtime": "nvidia"}}, "HostConfig.Runtime"),
    "another runtime, above": ({"Runtime": "nvidia"}, "Runtime"),
    "kernel parameters": (
        {"HostConfig": {"Sysctls": {"kernel.shm_rmid_forced": "1"}}}, "HostConfig.Sysctls",
    ),
    "never killed for memory": ({"HostConfig": {"OomKillDisable": True}},
                                "HostConfig.OomKillDisable"),
    "killed last": ({"HostConfig": {"OomScoreAdj": -1000}}, "HostConfig.OomScoreAdj"),
    "more memory": ({"HostConfig": {"Memory": 1 << 40}}, "HostConfig.Memory"),
    "swap": ({"HostConfig": {"MemorySwap": -1}}, "HostConfig.MemorySwap"),
    "more processors": ({"HostConfig": {"NanoCpus": 10**12}}, "HostConfig.NanoCpus"),
    "other processors": ({"HostConfig": {"CpusetCpus": "0-99"}}, "HostConfig.CpusetCpus"),
    "more processes": ({"HostConfig": {"PidsLimit": -1}}, "HostConfig.PidsLimit"),
    "other limits": (
        {"HostConfig": {"Ulimits": [{"Name": "core", "Soft": -1, "Hard": -1}]}},
        "HostConfig.Ulimits",
    ),
    "logs somewhere else": (
        {"HostConfig": {"LogConfig": {"Type": "syslog",
                                      "Config": {"syslog-address": "tcp://10.0.0.1:1"}}}},
        "HostConfig.LogConfig",
    ),
    "restarts": ({"HostConfig": {"RestartPolicy": {"Name": "always"}}}, "HostConfig.RestartPolicy"),
    "removed by itself": ({"HostConfig": {"AutoRemove": True}}, "HostConfig.AutoRemove"),
    "writable root": ({"HostConfig": {"ReadonlyRootfs": True}}, "HostConfig.ReadonlyRootfs"),
    "a larger disk": ({"HostConfig": {"StorageOpt": {"size": "1T"}}}, "HostConfig.StorageOpt"),
    "groups": ({"HostConfig": {"GroupAdd": ["docker"]}}, "HostConfig.GroupAdd"),
    "hosts": ({"HostConfig": {"ExtraHosts": ["hub:10.0.0.1"]}}, "HostConfig.ExtraHosts"),
    "links": ({"HostConfig": {"Links": ["db:db"]}}, "HostConfig.Links"),
    "name servers": ({"HostConfig": {"Dns": ["10.0.0.1"]}}, "HostConfig.Dns"),
    "a port of the host": (
        {"HostConfig": {"PortBindings": {"8888/tcp": [{"HostIp": "0.0.0.0", "HostPort": "80"}]}}},
        "HostConfig.PortBindings",
    ),
    "all ports": ({"HostConfig": {"PublishAllPorts": True}}, "HostConfig.PublishAllPorts"),
    "another port": ({"ExposedPorts": {"22/tcp": {}}}, "ExposedPorts"),
    "an init of the caller's": ({"HostConfig": {"Init": True}}, "HostConfig.Init"),
    "an init program": ({"HostConfig": {"InitPath": "/evil"}}, "HostConfig.InitPath"),
    "annotations": ({"HostConfig": {"Annotations": {"cdi.k8s.io/x": "nvidia.com/gpu=all"}}},
                    "HostConfig.Annotations"),
    "a file for the id": ({"HostConfig": {"ContainerIDFile": "/etc/cron.d/x"}},
                          "HostConfig.ContainerIDFile"),
    "another program": ({"Entrypoint": ["/bin/sh"]}, "Entrypoint"),
    "root": ({"User": "0"}, "User"),
    "root by name": ({"User": "root:root"}, "User"),
    "a health check": ({"Healthcheck": {"Test": ["CMD", "id"]}}, "Healthcheck"),
    "for later builds": ({"OnBuild": ["RUN id"]}, "OnBuild"),
    "a hardware address": ({"MacAddress": "02:42:ac:11:00:02"}, "MacAddress"),
    "another name": ({"Hostname": "hub", "Domainname": "x"}, "Hostname"),
    "another folder": ({"WorkingDir": "/"}, "WorkingDir"),
    "another shell": ({"Shell": ["/bin/sh"]}, "Shell"),
    "another signal": ({"StopSignal": "SIGKILL"}, "StopSignal"),
    "a terminal": ({"Tty": True, "OpenStdin": True}, "Tty"),
    "an image that is not listed": ({"Image": "debian:bookworm-slim"}, "Image"),
    "an image by its id": ({"Image": "sha256:" + "a" * 64}, "Image"),
    "another lease": (
        {"Labels": {"gpuslice.lease": "f" * 32, "gpuslice.base_url": "/"}}, "no slice is prepared",
    ),
    "another user": (
        {"Labels": {"gpuslice.lease": None, "gpuslice.user": "bob",
                    "gpuslice.base_url": "/"}}, "Labels.gpuslice.user",
    ),
    "a label of others": (
        {"Labels": {"gpuslice.lease": None, "gpuslice.base_url": "/",
                    "com.docker.compose.project": "x"}}, "Labels.com.docker.compose.project",
    ),
    "small letters": ({"hostconfig": {"Privileged": True}}, "hostconfig"),
    "capitals": ({"HOSTCONFIG": {"Privileged": True}}, "HOSTCONFIG"),
    "small letters inside": ({"HostConfig": {"privileged": True}}, "HostConfig.privileged"),
    "a long s": ({"Ho\u017ftConfig": {"Privileged": True}}, "'Ho\\u017ftConfig'"),
    "a Kelvin sign": ({"HostConfig": {"Networ\u212aMode": "host"}},
                      "HostConfig.'Networ\\u212aMode'"),
    "a field that nobody knows": ({"Unheard": 0}, "Unheard"),
}  # fmt: skip


@pytest.mark.parametrize("way", BODIES)
def test_each_known_way_by_a_body(world: World, way: str) -> None:
    fields, named = BODIES[way]
    if (labels := fields.get("Labels")) and "gpuslice.lease" in labels:
        filled = {**labels, "gpuslice.lease": labels["gpuslice.lease"] or world.lease}
        fields = {**fields, "Labels": filled}
    before = {one.id for one in containers_of(world.root, world.gate.node_id)}
    with pytest.raises(APIError) as refused:
        world.create(**fields)
    assert refused.value.explanation.startswith(named) or way == "another lease"
    assert named in refused.value.explanation
    assert refused.value.status_code == (409 if way == "another lease" else 403)
    assert world.proxy.calls == []
    assert {one.id for one in containers_of(world.root, world.gate.node_id)} == before


def archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("etc/cron.d/evil"))
    return packed.getvalue()


def stock(world: World, **options: Any) -> Any:
    """The same by docker-py's own arguments."""
    host = {key[5:]: options.pop(key) for key in list(options) if key.startswith("host_")}
    return world.hub.create_container(
        world.image, name=world.name, host_config=world.hub.create_host_config(**host),
        labels=world.body()["Labels"], **options,
    )  # fmt: skip


#: Calls: the way, how docker-py makes it, and the path that the refusal names.
CALLS: dict[str, tuple[Try, str]] = {
    # into a container
    "run in it": (lambda w: w.hub.exec_create(w.own, ["id"], privileged=True), "/exec"),
    "run in another": (lambda w: w.hub.exec_create(w.foreign, ["id"]), "/exec"),
    "start what is to run": (lambda w: w.hub.exec_start("a" * 64), "/start"),
    "look at what runs": (lambda w: w.hub.exec_inspect("a" * 64), "/json"),
    "attach": (lambda w: w.hub.attach(w.own, stream=False), "/attach"),
    "attach by a socket": (lambda w: w.hub.attach_socket(w.own), "/attach"),
    "write files": (lambda w: w.hub.put_archive(w.own, "/", archive()), "/archive"),
    "read files": (lambda w: w.hub.get_archive(w.own, "/etc/shadow"), "/archive"),
    "all files": (lambda w: next(w.hub.export(w.own)), "/export"),
    "changed files": (lambda w: w.hub.diff(w.own), "/changes"),
    # a container's life
    "more rights later": (lambda w: w.hub.update_container(w.own, mem_limit="9g"), "/update"),
    "another name": (lambda w: w.hub.rename(w.own, "evil"), "/rename"),
    "kill": (lambda w: w.hub.kill(w.own), "/kill"),
    "restart": (lambda w: w.hub.restart(w.own), "/restart"),
    "pause": (lambda w: w.hub.pause(w.own), "/pause"),
    "go on": (lambda w: w.hub.unpause(w.own), "/unpause"),
    "wait": (lambda w: w.hub.wait(w.own), "/wait"),
    "resize": (lambda w: w.hub.resize(w.own, 1, 1), "/resize"),
    "processes": (lambda w: w.hub.top(w.own), "/top"),
    "numbers": (lambda w: w.hub.stats(w.own, stream=False), "/stats"),
    "all containers": (lambda w: w.hub.containers(all=True), "/containers/json"),
    "away with ended ones": (lambda w: w.hub.prune_containers(), "/containers/prune"),
    "away by force": (lambda w: w.hub.remove_container(w.own, force=True), "force=True"),
    "away with a link": (lambda w: w.hub.remove_container(w.own, link=True), "link=True"),
    "the whole log for ever": (lambda w: w.hub.logs(w.own, follow=True, tail=1), "follow=1"),
    "the log since": (lambda w: w.hub.logs(w.own, since=1, tail=1), "since"),
    "another architecture": (
        lambda w: w.hub.create_container_from_config(w.body(), w.name, platform="linux/arm64"),
        "platform",
    ),
    # images
    "an image of a container": (lambda w: w.hub.commit(w.own, "evil"), "/commit"),
    "build": (
        lambda w: list(w.hub.build(fileobj=io.BytesIO(archive()), custom_context=True)),
        "/build",
    ),
    "prune builds": (lambda w: w.hub.prune_builds(), "/build/prune"),
    "load": (lambda w: list(w.hub.load_image(archive())), "/images/load"),
    "import": (
        lambda w: w.hub.import_image_from_data(archive(), repository="evil"), "repo",
    ),
    "import from an address": (
        lambda w: w.hub.import_image_from_url("http://10.0.0.1/x", repository="evil"), "repo",
    ),
    "import over a listed image": (
        lambda w: w.hub._result(w.hub._post(w.hub._url("/images/create"), params={
            "fromImage": w.image, "fromSrc": "-"}, data=archive())), "fromSrc",
    ),
    "pull with changes": (
        lambda w: w.hub._result(w.hub._post(w.hub._url("/images/create"), params={
            "fromImage": w.image, "changes": "USER root"})), "changes",
    ),
    "another image under a listed name": (
        lambda w: w.hub.tag("debian:bookworm-slim", *w.image.split(":")), "/tag",
    ),
    "pull another image": (lambda w: w.hub.pull("debian", "latest"), "debian:latest"),
    "pull another tag": (lambda w: w.hub.pull(w.image.split(":")[0], "evil"), ":evil"),
    "pull a digest": (
        lambda w: w.hub.pull(w.image.split(":")[0] + "@sha256:" + "0" * 64), "@sha256:0",
    ),
    "pull for another machine": (
        lambda w: w.hub.pull(*w.image.split(":"), platform="windows"), "platform",
    ),
    "push": (lambda w: w.hub.push(w.image), "/push"),
    "save": (lambda w: next(w.hub.get_image(w.image)), "/get"),
    "remove an image": (lambda w: w.hub.remove_image(w.image, force=True), "/images/"),
    "away with images": (lambda w: w.hub.prune_images(), "/images/prune"),
    "all images": (lambda w: w.hub.images(), "/images/json"),
    "an image's past": (lambda w: w.hub.history(w.image), "/history"),
    "look for images": (lambda w: w.hub.search("evil"), "/images/search"),
    "another image": (lambda w: w.hub.inspect_image("debian:bookworm-slim"), "debian:bookworm"),
    "a registry": (
        lambda w: w.hub.inspect_distribution("debian"), "/distribution/debian/json",
    ),
    # the rest of the engine
    "networks": (lambda w: w.hub.networks(), "/networks"),
    "a network": (lambda w: w.hub.create_network("evil", driver="host"), "/networks/create"),
    "into a network": (
        lambda w: w.hub.connect_container_to_network(w.own, "bridge"), "/networks/bridge/connect",
    ),
    "out of a network": (
        lambda w: w.hub.disconnect_container_from_network(w.own, "bridge"), "/disconnect",
    ),
    "look at a network": (lambda w: w.hub.inspect_network("bridge"), "/networks/bridge"),
    "away with a network": (lambda w: w.hub.remove_network("bridge"), "/networks/bridge"),
    "away with networks": (lambda w: w.hub.prune_networks(), "/networks/prune"),
    "volumes": (lambda w: w.hub.volumes(), "/volumes"),
    "a volume that is a bind": (
        lambda w: w.hub.create_volume("evil", "local", {"type": "none", "device": "/",
                                                        "o": "bind"}), "/volumes/create",
    ),
    "look at a volume": (lambda w: w.hub.inspect_volume("gpuslice-home-bob"), "/volumes/gpuslice"),
    "away with a volume": (
        lambda w: w.hub.remove_volume("gpuslice-home-bob", force=True), "/volumes/gpuslice",
    ),
    "away with volumes": (lambda w: w.hub.prune_volumes(), "/volumes/prune"),
    "plugins": (lambda w: w.hub.plugins(), "/plugins"),
    "a plugin": (
        lambda w: list(w.hub.pull_plugin("evil", [{"Name": "mount", "Value": ["/"]}])),
        "/plugins/pull",
    ),
    "a plugin's rights": (lambda w: w.hub.plugin_privileges("evil"), "/plugins/privileges"),
    "a plugin of one's own": (
        lambda w: w.hub.create_plugin("evil", str(Path(__file__).parent)), "/plugins/create",
    ),
    "a plugin on": (lambda w: w.hub.enable_plugin("evil"), "/plugins/evil/enable"),
    "a swarm": (lambda w: w.hub.init_swarm(), "/swarm/init"),
    "another swarm": (lambda w: w.hub.join_swarm(["10.0.0.1"], "t"), "/swarm/join"),
    "look at the swarm": (lambda w: w.hub.inspect_swarm(), "/swarm"),
    "nodes": (lambda w: w.hub.nodes(), "/nodes"),
    "services": (lambda w: w.hub.services(), "/services"),
    "a service": (
        lambda w: w.hub.create_service(docker.types.TaskTemplate(
            docker.types.ContainerSpec("debian", mounts=["/:/host:rw"]))), "/services/create",
    ),
    "tasks": (lambda w: w.hub.tasks(), "/tasks"),
    "secrets": (lambda w: w.hub.secrets(), "/secrets"),
    "a secret": (lambda w: w.hub.create_secret("evil", b"x"), "/secrets/create"),
    "configs": (lambda w: w.hub.configs(), "/configs"),
    "a config": (lambda w: w.hub.create_config("evil", b"x"), "/configs/create"),
    "a login": (lambda w: w.hub.login("bob", "secret", registry="10.0.0.1"), "/auth"),
    "the host": (lambda w: w.hub.info(), "/info"),
    "the disk": (lambda w: w.hub.df(), "/system/df"),
    "events": (lambda w: w.hub._result(w.hub._get(w.hub._url("/events"))), "/events"),
    "a build's session": (
        lambda w: w.hub._result(w.hub._post(w.hub._url("/session"))), "/session",
    ),
    "a builder": (lambda w: w.hub._result(w.hub._post(w.hub._url("/grpc"))), "/grpc"),
    "a checkpoint": (
        lambda w: w.hub._result(w.hub._post_json(
            w.hub._url("/containers/{0}/checkpoints", w.own), data={
                "CheckpointID": "x", "CheckpointDir": "/etc"})), "/checkpoints",
    ),
    "back to a checkpoint": (
        lambda w: w.hub._result(w.hub._post(w.hub._url("/containers/{0}/start", w.own), params={
            "checkpoint": "x", "checkpoint-dir": "/etc"})), "checkpoint",
    ),
    "a host config with the start": (
        lambda w: w.hub._result(w.hub._post_json(w.hub._url("/containers/{0}/start", w.own), data={
            "Privileged": True, "Binds": ["/:/host"]})), "with a body",
    ),
    "keys with the start": (
        lambda w: w.hub._result(w.hub._post(w.hub._url("/containers/{0}/start", w.own), params={
            "detachKeys": "ctrl-a"})), "detachKeys",
    ),
    "another signal with the stop": (
        lambda w: w.hub._result(w.hub._post(w.hub._url("/containers/{0}/stop", w.own), params={
            "signal": "SIGSTOP"})), "signal",
    ),
    # the same by docker-py's own arguments
    "docker-py: privileged": (lambda w: stock(w, host_privileged=True), "HostConfig.Privileged"),
    "docker-py: root folder": (
        lambda w: stock(w, host_binds={"/": {"bind": "/host"}}), "HostConfig.Binds",
    ),
    "docker-py: the host's network": (
        lambda w: stock(w, host_network_mode="host"), "HostConfig.NetworkMode",
    ),
    "docker-py: devices": (
        lambda w: stock(w, host_devices=["/dev/vda:/dev/vda:rwm"]), "HostConfig.Devices",
    ),
    "docker-py: root": (lambda w: stock(w, user="root"), "User"),
    "docker-py: another program": (lambda w: stock(w, entrypoint="/bin/sh"), "Entrypoint"),
    "docker-py: another lease's name": (lambda w: w.create("gpuslice-ada-ffffffffffff"), "name"),
    "docker-py: no name": (
        lambda w: w.hub.create_container_from_config(w.body()), "name",
    ),
    # containers that are not ours
    "start another by name": (lambda w: w.hub.start("registry"), "/containers/registry/start"),
    "stop another by name": (lambda w: w.hub.stop("registry"), "/containers/registry/stop"),
    "look at another by name": (
        lambda w: w.hub.inspect_container("registry"), "/containers/registry/json",
    ),
    "read another by name": (
        lambda w: w.hub._result(w.hub._get(w.hub._url("/containers/registry/logs"))),
        "/containers/registry/logs",
    ),
    "away with another by name": (
        lambda w: w.hub.remove_container("registry"), "/containers/registry",
    ),
    "an id cut short": (lambda w: w.hub.inspect_container(w.own[:12]), "/containers/"),
}  # fmt: skip


@pytest.mark.parametrize("way", CALLS)
def test_each_known_way_by_a_call(world: World, way: str) -> None:
    attempt, named = CALLS[way]
    with pytest.raises(APIError) as refused:
        attempt(world)
    assert named in refused.value.explanation
    assert refused.value.status_code == 403
    # docker-py itself looks at a container before it attaches, and before it reads a log.
    assert set(world.proxy.calls) <= {("GET", f"/containers/{world.own}/json")}


#: A container that is not ours is as one that is not there.
OTHERS: dict[str, Callable[[World, str], Any]] = {
    "start": lambda w, other: w.hub.start(other),
    "stop": lambda w, other: w.hub.stop(other),
    "inspect": lambda w, other: w.hub.inspect_container(other),
    "logs": lambda w, other: w.hub.logs(other, tail=1),
    "remove": lambda w, other: w.hub.remove_container(other),
}


@pytest.mark.parametrize("call", OTHERS)
def test_a_container_that_is_not_ours_is_not_there(world: World, call: str) -> None:
    said = set()
    for other in (world.foreign, f"gpuslice-evil-{world.lease[:12]}", "0" * 64, world.name):
        with pytest.raises(NotFound) as refused:
            OTHERS[call](world, other)
        said.add(refused.value.explanation.replace(other, "X"))
    assert said == {"No such container: X"}
    assert world.proxy.calls == []
    assert world.root.containers.get(world.foreign).status == "created"


# --- what no client library would send ----------------------------------------------------------


def tricks(own: str, lease: str) -> dict[str, bytes]:
    """Requests that mean one thing to one reader of HTTP, and another to the next."""
    host = b"Host: docker\r\n"
    inspect = f"/containers/{own}/json".encode()
    start = f"/containers/{own}/start".encode()

    def get(path: bytes, headers: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
        return b"GET " + path + b" " + version + b"\r\n" + host + headers + b"\r\n"

    body = json.dumps({"Labels": {"gpuslice.lease": lease}, "HostConfig": {"Privileged": True}})
    sized = b"Content-Length: %d\r\n" % len(body)
    create = b"POST /containers/create?name=x HTTP/1.1\r\n" + host
    return {
        "two slashes": get(b"//containers/json"),
        "two slashes within": get(b"/v1.44//info"),
        "up": get(b"/images/../info"),
        "up from a version": get(b"/v1.44/../info"),
        "up, escaped": get(b"/containers/%2e%2e/info"),
        "up, escaped as an image": get(b"/images/%2e%2e%2finfo%3f/json"),
        "up after an image": get(b"/images/gpuslice-test/tiny:latest/../../info/json"),
        "a slash, escaped": get(b"/containers%2Fjson"),
        "a question mark, escaped": get(inspect[:-5] + b"%3fx/json"),
        "escaped twice": get(b"/%252e%252e/info"),
        "a parameter of the path": get(b"/info;x=1"),
        "a parameter within": get(inspect.replace(b"/json", b";x/json")),
        "capitals": get(b"/INFO"),
        "capitals of ours": get(inspect.replace(b"json", b"JSON")),
        "capitals of an id": get(inspect.upper()),
        "a slash at the end": get(inspect + b"/"),
        "a zero byte": get(inspect + b"\0"),
        "a zero byte, escaped": get(inspect + b"%00"),
        "a line end, escaped": get(inspect + b"%0a"),
        "an address in full": get(b"http://docker" + inspect),
        "an address of somebody else": get(b"http://10.0.0.1/info"),
        "the end of an address": get(inspect + b"#x"),
        "a parameter of nobody": get(inspect + b"?size=1"),
        "a parameter twice": get(f"/containers/{own}/logs?tail=1&tail=2".encode()),
        "a number in other letters": get(f"/containers/{own}/logs?tail=%D9%A1".encode()),
        "a number too long": get(f"/containers/{own}/logs?tail={'0' * 12}9999".encode()),
        "no number": get(f"/containers/{own}/logs?tail=all".encode()),
        "an old version of HTTP": get(inspect, version=b"HTTP/1.0"),
        "no version of HTTP": b"GET " + inspect + b"\r\n\r\n",
        "another version of HTTP": get(inspect, version=b"HTTP/2.0"),
        "a connection to somewhere": b"CONNECT 10.0.0.1:80 HTTP/1.1\r\n" + host + b"\r\n",
        "everything": b"OPTIONS * HTTP/1.1\r\n" + host + b"\r\n",
        "small letters": b"get " + inspect + b" HTTP/1.1\r\n" + host + b"\r\n",
        "a method of nobody": b"EVIL " + inspect + b" HTTP/1.1\r\n" + host + b"\r\n",
        "a head of ours": b"HEAD " + inspect + b" HTTP/1.1\r\n" + host + b"\r\n",
        "another method": b"PUT " + start + b" HTTP/1.1\r\n" + host + b"Content-Length: 0\r\n\r\n",
        "another method in a header": get(start, b"X-HTTP-Method-Override: POST\r\n"),
        "another path in a header": get(b"/info", b"X-Original-URL: /_ping\r\n"),
        "a stream": get(inspect, b"Connection: Upgrade\r\nUpgrade: tcp\r\n"),
        "a web socket": get(
            f"/containers/{own}/attach/ws".encode(),
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: eA==\r\n",
        ),
        "HTTP/2": get(inspect, b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                               b"HTTP2-Settings: \r\n"),
        "two lengths": create + sized + b"Content-Length: 2\r\n\r\n" + body.encode(),
        "a length and pieces": create + sized + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + body.encode(),
        "pieces": create + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
            len(body), body.encode()),
        "other pieces": create + b"Transfer-Encoding: xchunked\r\n\r\n" + body.encode(),
        "compressed": create + b"Content-Encoding: gzip\r\n" + sized + b"\r\n" + body.encode(),
        "a length below zero": create + b"Content-Length: -1\r\n\r\n" + body.encode(),
        "a length with a plus": create + b"Content-Length: +5\r\n\r\n" + body.encode(),
        "too long": create + b"Content-Length: 99999999999\r\n\r\n" + body.encode(),
        "a form": create + b"Content-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 6\r\n\r\nname=y",
        "a form in parts": create + b"Content-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 5\r\n\r\n--x--",
        "a name in two lines": create + b"Content-Length\r\n : 2\r\n\r\n{}",
        "a body where none is": b"POST " + start + b" HTTP/1.1\r\n" + host
        + b"Content-Length: 2\r\n\r\n{}",
        "a body with a look": get(inspect, b"Content-Length: 2\r\n") + b"{}",
        "no host": b"GET " + inspect + b"\x0b HTTP/1.1\r\n\r\n",
        "a name of the container twice": create.replace(b"name=x", b"name=x&name=y") + sized
        + b"\r\n" + body.encode(),
        "nothing": b"\r\n\r\n",
        "something else": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    }  # fmt: skip


@pytest.mark.parametrize("trick", tricks("x", "x"))
def test_tricks_with_http_do_not_reach_the_engine(world: World, trick: str) -> None:
    answer = world.filtered.raw(tricks(world.own, world.lease)[trick])
    assert re.match(rb"HTTP/1\.[01] 4[0-9]{2} ", answer), answer
    assert world.proxy.calls == []
    assert world.hub.ping()


@pytest.mark.parametrize("where", ["path", "header", "lines"])
def test_a_request_without_end_is_not_read_to_its_end(world: World, where: str) -> None:
    start, piece = {
        "path": (b"GET /", b"a"),
        "header": (b"GET /info HTTP/1.1\r\nHost: d\r\nX: ", b"a"),
        "lines": (b"GET /info HTTP/1.1\r\nHost: d\r\n", b"X: a\r\n"),
    }[where]
    with world.filtered.connect() as connection, pytest.raises(ConnectionError):
        connection.sendall(start)
        while True:
            connection.sendall(piece * 65536)
    assert world.proxy.calls == []


def test_two_requests_at_once_are_two_requests(world: World) -> None:
    answer = world.filtered.raw(
        b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n"
        b"GET /info HTTP/1.1\r\nHost: d\r\n\r\n"
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{}",
        answers=3,
    )
    statuses = re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answer)
    assert statuses == [b"200", b"403", b"400"]
    assert world.proxy.calls == [("GET", "/_ping")]


def test_a_body_that_is_too_large_or_not_one(world: World) -> None:
    url = world.hub._url("/containers/create")
    bodies = {
        b"[]": 400, b"": 400, b"{": 400, b'{"Labels":1}': 400,
        b"{" + b" " * (300 << 10) + b"}": 413, b'{"Image":"a","Image":"b"}': 400,
        b"[" * 200_000: 400,
    }  # fmt: skip
    for body, status in bodies.items():
        answer = world.hub.post(url, data=body, params={"name": world.name}, timeout=30)
        assert (answer.status_code, answer.json()["reason"]) == (status, "bad-body")
    # This much is not even read.
    with pytest.raises(requests.RequestException):
        world.hub.post(url, data=b" " * (2 << 20), timeout=30).raise_for_status()
    assert world.proxy.calls == []


# --- what the hub can do ------------------------------------------------------------------------


def test_the_life_of_a_container(world: World) -> None:
    made = world.create(Env=["JUPYTERHUB_API_TOKEN=not-to-be-seen"])
    assert world.hub.inspect_container(world.name)["Id"] == made
    found = world.hub.inspect_container(made)
    assert found["State"]["Status"] == "created"
    assert found["Config"]["Labels"]["gpuslice.lease"] == world.lease
    assert "not-to-be-seen" not in json.dumps(found)
    assert world.root.containers.get(made).attrs["Config"]["Env"][1].endswith("not-to-be-seen")
    with pytest.raises(APIError) as refused:
        world.hub.remove_container(made, v=True)
    assert (refused.value.status_code, refused.value.explanation) == (
        409, "the end of this lease is not settled yet",
    )  # fmt: skip
    world.gate.settled.add(world.lease)
    world.hub.remove_container(made)
    with pytest.raises(NotFound):
        world.hub.inspect_container(made)


def test_every_version_of_the_api_and_none(world: World) -> None:
    for version in ("1.24", "1.44", "1.99", "auto"):
        with world.filtered.client(version) as hub:
            assert hub.ping()
            assert hub.inspect_container(world.own)["Id"] == world.own
    with world.filtered.client("auto") as hub:
        assert hub.api_version == "1.44"
        assert set(hub.version()) == {"Version", "Os", "Arch", "ApiVersion", "MinAPIVersion"}
    answer = world.filtered.raw(b"HEAD /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nApi-Version: 1.44\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")
    for other in ("v2.0", "v1", "v1.", "v1.444", "v01.44", "1.44"):
        answer = world.filtered.raw(f"GET /{other}/_ping HTTP/1.1\r\nHost: d\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403 "), other


def test_an_image_of_the_list_can_be_looked_at(world: World) -> None:
    found = world.hub.inspect_image(world.image)
    assert found["Id"] == world.root.images.get(world.image).id
    assert found["Config"]["Cmd"] == ["/tiny", "serve"]
    assert "Env" not in found["Config"]
    assert [path for _, path in world.proxy.calls] == [f"/images/{world.image}/json"]
    # The same image, said in another way: asked for as the settings have it.
    assert world.hub.inspect_image(world.image.removesuffix(":latest"))["Id"] == found["Id"]
    assert {path for _, path in world.proxy.calls} == {f"/images/{world.image}/json"}
    world.proxy.answer("GET", "/images/", 404, "nothing here")
    with pytest.raises(ImageNotFound):
        world.hub.inspect_image(world.image)


def test_a_stop_has_a_bound(world: World) -> None:
    for grace in (-1, 601, 10**9):
        with pytest.raises(APIError, match="t is a number from 0 to 600"):
            world.hub.stop(world.own, timeout=grace)
    assert world.proxy.calls == []
    # An engine answers the same for one that does not run.
    world.hub.stop(world.own, timeout=3)
    assert world.proxy.calls == [("POST", f"/containers/{world.own}/stop?t=3")]


def test_the_nodes_own_calls_are_here_too(world: World) -> None:
    import asyncio

    node = NodeClient(world.filtered.socket)
    report = asyncio.run(node.server(world.lease))
    assert report is not None
    assert report.lease_id == world.lease
    assert asyncio.run(node.log_tail(world.lease, 7)) == f"7 lines of {world.lease}"
    assert asyncio.run(node.server("0" * 32)) is None
    mine = next(lease for lease in world.gate.made)
    asyncio.run(node.stop_server(mine, 2))
    assert world.proxy.calls == [("POST", f"/containers/{world.own}/stop?t=2")]


# --- an engine that fails -----------------------------------------------------------------------

LOOKS: dict[str, Try] = {
    "ping": lambda w: w.hub.ping(),
    "version": lambda w: w.hub.version(),
    "image": lambda w: w.hub.inspect_image(w.image),
    "inspect": lambda w: w.hub.inspect_container(w.own),
    "logs": lambda w: w.hub.logs(w.own, tail=1),
    "create": lambda w: w.create(),
    "start": lambda w: w.hub.start(w.own),
    "pull": lambda w: w.hub.pull(*w.image.split(":")),
}


@pytest.mark.parametrize("call", LOOKS)
def test_no_answer_is_said_to_be_none(world: World, call: str) -> None:
    def failure() -> tuple[int, str, str]:
        with pytest.raises(APIError) as failed:
            LOOKS[call](world)
        said = failed.value.response.json()
        return failed.value.status_code, said["reason"], said["message"]

    failing = world.proxy.answer("", "", 500, "no space left")
    assert failure() == (500, "engine-failed", "the engine failed: no space left")
    world.proxy.remove(failing)
    world.proxy.reset("", "")
    status, reason, text = failure()
    assert (status, reason) == (503, "runtime-unavailable")
    assert "does not answer" in text
    world.proxy.down()
    assert failure()[:2] == (503, "runtime-unavailable")


def test_a_refusal_of_the_engine_keeps_its_status_and_words(world: World) -> None:
    world.proxy.answer("POST", "/containers/create", 409, "that name is taken")
    with pytest.raises(APIError) as failed:
        world.create()
    assert (failed.value.status_code, failed.value.explanation) == (409, "that name is taken")


def test_a_slow_engine_holds_up_nobody_else(world: World) -> None:
    held = world.proxy.hang("POST", "/images/create")
    url = world.hub._url("/images/create")
    with world.filtered.connect() as connection:
        path = url.removeprefix("http+docker://localhost") + f"?fromImage={world.image}"
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n".encode())
        held.wait_hit()
        assert world.hub.ping()
