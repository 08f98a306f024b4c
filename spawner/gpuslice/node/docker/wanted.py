"""What the hub may say of a container: reads a create body, and refuses all the rest by name.

The hub sends what docker-py makes of image, command, environment and labels: these, and dozens of
fields that say nothing. Who takes the hub over sends something else. Names are compared exactly:
Go reads ``hostconfig`` as ``HostConfig``, so a name that is merely similar is unknown and refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from gpuslice import containers, wire
from gpuslice.errors import Refused
from gpuslice.settings import DockerSettings

#: An environment, a command and labels; real ones have some thousand bytes.
MAX_BODY = 256 * 1024
_MAX_ITEMS = 500
#: What the kernel accepts as one argument or variable.
_MAX_TEXT = 128 * 1024 - 1
_SHOWN = 80

_LEASE = re.compile(r"[0-9a-f]{32}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}")
#: A path of whole segments, as the hub escapes it, with a slash at both ends.
_BASE_URL = re.compile(r"/(?:(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+/)*")
_DOTS = re.compile(r"/(?:\.|%2[Ee]){1,2}/")
_MAX_URL = 2_000

_READ = frozenset({
    "Image", "Cmd", "Env", "Labels", "ExposedPorts", "HostConfig", "NetworkingConfig",
    "AttachStdout", "AttachStderr",
})  # fmt: skip

#: All that docker-py can put into a body; here it may only be empty.
EMPTY = frozenset({
    "AttachStdin", "Domainname", "Entrypoint", "Healthcheck", "Hostname", "MacAddress",
    "NetworkDisabled", "OpenStdin", "Runtime", "StdinOnce", "StopSignal", "StopTimeout", "Tty",
    "User", "Volumes", "WorkingDir",
})  # fmt: skip

#: The same for ``HostConfig``.
HOST_EMPTY = frozenset({
    "AutoRemove", "Binds", "BlkioDeviceReadBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteBps",
    "BlkioDeviceWriteIOps", "BlkioWeight", "BlkioWeightDevice", "CPURealtimePeriod",
    "CPURealtimeRuntime", "CapAdd", "CapDrop", "CgroupParent", "CgroupnsMode", "CpuCount",
    "CpuPercent", "CpuPeriod", "CpuQuota", "CpuShares", "CpusetCpus", "CpusetMems",
    "DeviceCgroupRules", "DeviceRequests", "Devices", "Dns", "DnsOptions", "DnsSearch",
    "ExtraHosts", "GroupAdd", "Init", "InitPath", "IpcMode", "Isolation", "KernelMemory", "Links",
    "LogConfig", "LxcConf", "Memory", "MemoryReservation", "MemorySwap", "MemorySwappiness",
    "Mounts", "NanoCpus", "OomKillDisable", "OomScoreAdj", "PidMode", "PidsLimit", "PortBindings",
    "Privileged", "PublishAllPorts", "ReadonlyRootfs", "RestartPolicy", "Runtime", "SecurityOpt",
    "ShmSize", "StorageOpt", "Sysctls", "Tmpfs", "UTSMode", "Ulimits", "UsernsMode",
    "VolumeDriver", "VolumesFrom",
})  # fmt: skip
#: What docker-py and dockerspawner write where nothing was asked for; the lease's network is used.
_NO_NETWORK = ("default", "bridge")


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that the hub says of a container."""

    #: One of the references in the settings.
    image: str
    #: Empty: the image's own command.
    cmd: tuple[str, ...]
    env: dict[str, str]
    #: The path under which the hub serves the notebook.
    base_url: str


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises Refused: too large, no object, the same name twice."""
    if len(raw) > MAX_BODY:
        raise Refused("bad-body", f"The body is larger than {MAX_BODY} bytes.", status=413)
    try:
        body = json.loads(raw, object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Refused("bad-body", "The body is not JSON.", status=400) from None
    if type(body) is not dict:
        raise Refused("bad-body", "The body is not a JSON object.", status=400)
    return body


def lease_of_body(body: dict[str, Any]) -> str:
    """Which lease a create body is for; the rest of it is not looked at."""
    labels = body.get("Labels")
    lease_id = labels.get(containers.LABEL_LEASE) if type(labels) is dict else None
    if type(lease_id) is not str or not _LEASE.fullmatch(lease_id):
        _refuse(f"Labels.{containers.LABEL_LEASE}", "has to name the lease", status=400)
    return lease_id


def read_wanted(body: dict[str, Any], piece: wire.PrepareSlice, policy: DockerSettings) -> Wanted:
    """Raises Refused, which names the field, unless ``body`` says what the hub may say, only."""
    if type(body) is not dict:
        raise Refused("bad-body", "The body is not a JSON object.", status=400)
    for name, value in body.items():
        if name not in _READ:
            _empty(name, value, name in EMPTY)
    for name in ("AttachStdout", "AttachStderr"):
        # True in most bodies of docker-py. It is the client that attaches, or does not.
        if type(body.get(name)) not in (bool, type(None)):
            _refuse(name, "is true or false", status=400)
    _host_config(body.get("HostConfig"))
    _networking_config(body.get("NetworkingConfig"))
    _ports(body.get("ExposedPorts"))
    return Wanted(
        image=_image(body.get("Image"), policy),
        cmd=tuple(_texts("Cmd", body.get("Cmd"))),
        env=_environment(_texts("Env", body.get("Env"))),
        base_url=_base_url(body.get("Labels"), piece),
    )


# --- fields that may only be empty --------------------------------------------------------------


def _empty(path: str, value: Any, known: bool) -> None:
    if not known or not _is_empty(value):
        _refuse(
            path,
            "is not for the hub to set: it says Image, Cmd, Env and Labels, "
            "the node says everything else",
        )


def _is_empty(value: Any) -> bool:
    """Whether the value says nothing: null, false, 0, or an empty text, list or object."""
    return value is None or (type(value) in (bool, int, str, list, dict) and not value)


def _host_config(config: Any) -> None:
    if config is None:
        return
    if type(config) is not dict:
        _refuse("HostConfig", "is an object", status=400)
    for name, value in config.items():
        if name == "NetworkMode" and type(value) is str and value in _NO_NETWORK:
            continue
        _empty(f"HostConfig.{_shown(name)}", value, name in HOST_EMPTY or name == "NetworkMode")


def _networking_config(config: Any) -> None:
    if config is None:
        return
    if type(config) is not dict:
        _refuse("NetworkingConfig", "is an object", status=400)
    for name, value in config.items():
        _empty(f"NetworkingConfig.{_shown(name)}", value, name == "EndpointsConfig")


def _ports(ports: Any) -> None:
    if _is_empty(ports):
        return
    port = f"{containers.NOTEBOOK_PORT}/tcp"
    if type(ports) is not dict or set(ports) != {port} or not _is_empty(ports[port]):
        _refuse("ExposedPorts", f"is {port} and no other")


# --- fields with content ------------------------------------------------------------------------


def _image(image: Any, policy: DockerSettings) -> str:
    if type(image) is not str:
        _refuse("Image", "has to be a text", status=400)
    for allowed in policy.image:
        if allowed.reference == image:
            return allowed.reference
    text = f"Image: {_shown(image)} is not among the images that servers are started from."
    raise Refused("image-refused", text, status=403)


def _environment(entries: list[str]) -> dict[str, str]:
    env: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            _refuse("Env", f"has {_shown(name)}, which is no NAME=value", status=400)
        if name in env:
            _refuse("Env", f"has {name} twice", status=400)
        env[name] = value
    return env


def _base_url(labels: Any, piece: wire.PrepareSlice) -> str:
    if type(labels) is not dict:
        _refuse("Labels", "has to be an object", status=400)
    ours = {
        containers.LABEL_LEASE: piece.lease_id,
        containers.LABEL_USER: piece.user,
        containers.LABEL_SERVER: piece.server,
        containers.LABEL_SLICE: piece.slice_type,
    }
    for name, value in labels.items():
        if type(value) is not str:
            _refuse(f"Labels.{_shown(name)}", "has to be a text", status=400)
        if name in ours:
            if value != ours[name]:
                _refuse(f"Labels.{name}", "is not what this lease was prepared with")
        elif name != containers.LABEL_BASE_URL:
            _refuse(f"Labels.{_shown(name)}", "is not for the hub to set")
    if containers.LABEL_LEASE not in labels:
        _refuse(f"Labels.{containers.LABEL_LEASE}", "has to name the lease", status=400)
    url: str = labels.get(containers.LABEL_BASE_URL, "")
    if len(url) > _MAX_URL or not _BASE_URL.fullmatch(url) or _DOTS.search(url):
        _refuse(f"Labels.{containers.LABEL_BASE_URL}", "has to be a path of a URL", status=400)
    return url


def _texts(path: str, values: Any) -> list[str]:
    if values is None:
        return []
    if type(values) is not list or len(values) > _MAX_ITEMS:
        _refuse(path, f"is a list of at most {_MAX_ITEMS} texts", status=400)
    for value in values:
        if type(value) is not str or "\0" in value or not _encodable(value):
            _refuse(path, "is a list of texts without zero bytes", status=400)
        if len(value.encode()) > _MAX_TEXT:
            _refuse(path, f"has a text of more than {_MAX_TEXT} bytes", status=400)
    return values


def _encodable(text: str) -> bool:
    """Not half of a surrogate pair, which JSON can say and the engine would replace."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- refusals -----------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Refused("bad-body", f"The body names {_shown(name)} twice.", status=400)
        found[name] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _refuse(path: str, why: str, *, status: int = 403) -> NoReturn:
    """403: nobody may say this; 400: it is of the wrong kind."""
    reason = "field-refused" if status == 403 else "bad-body"
    raise Refused(reason, f"{_shown(path, 2 * _SHOWN)} {why}.", status=status)


def _shown(text: str, limit: int = _SHOWN) -> str:
    """Somebody else's text, bounded and clean."""
    clean = text if text.isascii() and text.isprintable() else ascii(text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
