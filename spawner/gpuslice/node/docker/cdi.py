"""CDI specifications as engines read them: typed, merged, and of the lowest version that fits.

An engine does not load a file that has a field which its version does not know, so a file says no
more than it has to, and what somebody else's says that is not understood here is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from gpuslice import containers

#: The first in which a device's name may begin with a digit; nothing that we write needs more.
_VERSION = "0.5.0"


class _Part(BaseModel):
    """Fields are named as in the files (``hostPath`` is ``host_path``); 0 and empty mean absent."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )


class DeviceNode(_Part):
    """A device node to make in the container; without ``host_path`` it has the same one there.

    Given ``type`` and ``major`` the engine takes all numbers from here, else from the host's node.
    """

    path: str
    host_path: str | None = None
    type: str | None = None
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str | None = None
    uid: int | None = None
    gid: int | None = None

    @property
    def on_host(self) -> str:
        return self.host_path or self.path


class Mount(_Part):
    """A file or folder of the host to mount in the container."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str | None = None


class Hook(_Part):
    """A program of the host that the runtime runs as root; ``timeout`` in seconds."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Edits(_Part):
    """What a device changes in a container. Groups are read only: not every engine joins them."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    hooks: tuple[Hook, ...] = ()
    mounts: tuple[Mount, ...] = ()
    additional_gids: tuple[int, ...] = ()


class Device(_Part):
    """One device of a file. Annotations are read, and mean nothing to an engine."""

    name: str
    annotations: dict[str, str] = Field(default_factory=dict)
    container_edits: Edits


class Spec(_Part):
    """One file: devices of one kind, and the edits that come with each of them."""

    cdi_version: str
    kind: str
    annotations: dict[str, str] = Field(default_factory=dict)
    devices: tuple[Device, ...]
    container_edits: Edits = Edits()

    def document(self) -> dict[str, Any]:
        """The file's content."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def slice_spec(lease_id: str, edits: Edits, env: Mapping[str, str]) -> Spec:
    """The file of a lease, with its one device. ``env`` has the last word over the edits' own."""
    edits = edits.model_copy(update={"env": with_last(edits.env, env)})
    return Spec(
        cdi_version=_VERSION,
        kind=containers.CDI_KIND,
        devices=(Device(name=lease_id, container_edits=edits),),
    )


def device_of(spec: Spec, name: str) -> Device | None:
    return next((device for device in spec.devices if device.name == name), None)


def joined(first: Edits, second: Edits) -> Edits:
    """Both, in the engine's order: what a file gives with every device, then the device's own."""
    return Edits(
        env=with_last(first.env, _pairs(second.env)),
        device_nodes=first.device_nodes + second.device_nodes,
        hooks=first.hooks + second.hooks,
        mounts=first.mounts + second.mounts,
    )


def with_last(entries: Iterable[str], last: Mapping[str, str]) -> tuple[str, ...]:
    """The variables in ``entries`` (``NAME=value``) and ``last``, each once; the later one wins."""
    return tuple(f"{name}={value}" for name, value in {**_pairs(entries), **last}.items())


def _pairs(entries: Iterable[str]) -> dict[str, str]:
    return {name: value for name, _, value in (entry.partition("=") for entry in entries)}
