"""Paths of the host as the engine will find them, seen from where the node runs.

The node may itself be in a container that sees the host's root folder somewhere else. Links there
mean what they mean on the host: ``/var/run -> /run`` is the host's ``/run``.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path, PurePosixPath

from gpuslice.errors import Refused
from gpuslice.node.docker.cdi import DeviceNode, Edits, Hook, Mount

#: As many as the kernel follows.
_MAX_LINKS = 40
#: Making nodes is nothing that a container has to do.
_PERMISSIONS = "rw"


class HostRoot:
    """The host's root folder. Every method raises OSError as the file system does."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def stat(self, path: str) -> os.stat_result:
        return self.find(path).stat(follow_symlinks=False)

    def find(self, path: str) -> Path:
        """Where a path of the host is found from here, with all its links followed."""
        ahead = _parts(path)
        done: list[str] = []
        links = 0
        while ahead:
            part = ahead.pop(0)
            if part == "..":
                del done[-1:]
                continue
            here = self._root.joinpath(*done, part)
            if not stat.S_ISLNK(here.lstat().st_mode):
                done.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            link = here.readlink()
            if link.is_absolute():
                done.clear()
            ahead[:0] = _parts(str(link))
        return self._root.joinpath(*done)


def reachable_root(root: str, engine_socket: str) -> str:
    """``docker.host_root``, or the engine's own root folder where that one is shut.

    ``/proc/1/root`` may be shut even for root: a first process can be one that nobody may look
    into. The engine is what all paths are named to, so its root is as good.

    Raises:
        PermissionError: neither can be entered.
    """
    if _opens(root):
        return root
    engines = f"/proc/{_listening(engine_socket)}/root"
    if _opens(engines):
        return engines
    raise PermissionError(
        errno.EACCES, f"neither docker.host_root nor the engine's {engines} can be entered", root
    )


def _opens(root: str) -> bool:
    try:
        os.close(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError:
        return False
    return True


def _listening(path: str) -> int:
    """The process that listens on a socket; 0: one that is none of this process's world."""
    with socket.socket(socket.AF_UNIX) as call:
        call.connect(path)
        creds = call.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", creds)[0]
    return pid


def _parts(path: str) -> list[str]:
    return [part for part in PurePosixPath(path).parts if part != "/"]


def as_on_host(edits: Edits, host: HostRoot, advice: str) -> Edits:
    """The edits with each device node as it is on the host now.

    Args:
        advice: What to do when something is wrong, as one sentence.

    Raises:
        Refused: a path is missing, or is something else than it has to be; the text names it. The
            engine would find that out half-way, and blame a container.
    """
    try:
        return edits.model_copy(
            update={
                "device_nodes": tuple(_node(node, host) for node in edits.device_nodes),
                "mounts": tuple(_mount(mount, host) for mount in edits.mounts),
                "hooks": tuple(_hook(hook, host) for hook in edits.hooks),
            }
        )
    except _Unusable as problem:
        raise Refused("device-unavailable", f"{problem}. {advice}") from problem


class _Unusable(Exception):
    """What is wrong with a path."""


def _node(node: DeviceNode, host: HostRoot) -> DeviceNode:
    found = _found("device node", node.on_host, host)
    if not stat.S_ISCHR(found.st_mode):
        raise _Unusable(f"{node.on_host} is no device node")
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    if node.major and (node.major, node.minor) != (major, minor):
        raise _Unusable(
            f"The device node {node.on_host} is {major}:{minor} now and was {node.major}:"
            f"{node.minor} before"
        )
    return node.model_copy(
        update={
            "type": "c",
            "major": major,
            "minor": minor,
            "file_mode": stat.S_IMODE(found.st_mode),
            "permissions": _PERMISSIONS,
        }
    )


def _mount(mount: Mount, host: HostRoot) -> Mount:
    _found("file", mount.host_path, host)
    return mount


def _hook(hook: Hook, host: HostRoot) -> Hook:
    found = _found("hook", hook.path, host)
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & stat.S_IXUSR:
        raise _Unusable(f"The hook {hook.path} is no program")
    return hook


def _found(what: str, path: str, host: HostRoot) -> os.stat_result:
    try:
        return host.stat(path)
    except FileNotFoundError:
        raise _Unusable(f"The {what} {path} does not exist on this machine") from None
    except OSError as problem:
        raise _Unusable(f"The {what} {path} is out of reach ({problem.strerror})") from problem
