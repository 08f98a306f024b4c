"""Each known way from the hub to root on its host, as calls of docker-py on a :class:`World`."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from engineproxy import EngineProxy
from filterworld import Filtered

SOCKET = "/var/run/docker.sock"


@dataclass
class World:
    """A hub's view: a lease that is prepared, a container that is its own, and one that is not."""

    filtered: Filtered
    hub: docker.APIClient
    proxy: EngineProxy
    root: docker.DockerClient
    node_id: str
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

    def by_body(self, way: str) -> str:
        """Tries one of :data:`BODIES`."""
        fields, _ = BODIES[way]
        labels = fields.get("Labels", {})
        if "gpuslice.lease" in labels:
            filled = {**labels, "gpuslice.lease": labels["gpuslice.lease"] or self.lease}
            fields = {**fields, "Labels": filled}
        return self.create(**fields)


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


#: A container that is not ours is as one that is not there.
OTHERS: dict[str, Callable[[World, str], Any]] = {
    "start": lambda w, other: w.hub.start(other),
    "stop": lambda w, other: w.hub.stop(other),
    "inspect": lambda w, other: w.hub.inspect_container(other),
    "logs": lambda w, other: w.hub.logs(other, tail=1),
    "remove": lambda w, other: w.hub.remove_container(other),
}
