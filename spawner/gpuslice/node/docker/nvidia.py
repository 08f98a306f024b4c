"""What a container needs for a real GPU, as the host's NVIDIA container toolkit states it.

The toolkit describes all that a GPU can be used for. A notebook computes, so it gets the libraries
and the nodes for that, and none of these:

* other devices' nodes, nor ``/dev/nvidia-caps/nvidia-cap1`` and ``2``, which change MIG's layout;
* ``/dev/dri`` and ``/dev/nvidia-modeset``, and the hooks that look after them: they are for
  screens;
* the sockets of ``nvidia-persistenced`` and the fabric manager and the pipes of MPS: a daemon of
  the host listens at their other end; CUDA needs none of them, a start would fail whenever that
  daemon is down, and clients of one MPS end each other;
* groups: nodes that are not for everybody are given to the container's user instead, because
  Docker 26 forgets groups of CDI devices;
* ``apply-cuda-memory-limits``: it takes limits from a variable that an image can set too, and its
  soft limit outlives the container.

What is left is checked: without its card's node, ``/dev/nvidia-uvm`` or, for a MIG instance, its
two capabilities, a container starts and finds no GPU. The toolkit only logs that it has not found
them (its issue 787 for Kubernetes' driver), so they are demanded here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Collection, Sequence
from contextlib import suppress

from pydantic import ValidationError

from gpuslice.errors import Refused
from gpuslice.node.docker.cdi import Edits, Hook, Mount, Spec, device_of, joined
from gpuslice.node.environment import is_the_nodes

#: How long the toolkit may take: without persistence mode the driver wakes each GPU for it.
LIMIT_S = 20.0
#: How long a killed one may take to end.
_END_LIMIT_S = 1.0
#: In every version from 1.13 on; ``nvml``, because devices are named as NVML does.
_ARGUMENTS = ("cdi", "generate", "--mode=nvml", "--format=json", "--device-name-strategy=uuid")

ADVICE = "Run gpuslice doctor on that machine: it checks the driver and the toolkit."

_CONTROL = frozenset({"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"})
_NEEDED = ("/dev/nvidiactl", "/dev/nvidia-uvm")
_CARD = re.compile(r"/dev/nvidia[0-9]+")
#: 1 and 2 are ``config`` and ``monitor``: they are no instance's.
_CAPABILITY = re.compile(r"/dev/nvidia-caps/nvidia-cap(?![12]$)[0-9]+")
#: Of the GPU instance, and of the compute instance in it.
_CAPABILITIES = 2
#: Where daemons have their sockets and pipes, as the container would see them.
_OF_DAEMONS = ("/run/", "/var/run/", "/tmp/")  # noqa: S108  (in the container)
_SCREENS = "/dev/dri"
_MEMORY_LIMITS = "apply-cuda-memory-limits"
#: A hook without any environment inherits the container's, and runs as root (CVE-2025-23266).
_HOOK_ENV = ("NVIDIA_CTK_DEBUG=false",)
#: No hook of theirs has one; the lease's start waits for it.
_HOOK_LIMIT_S = 30
#: What their hooks and libraries read, and users cannot gain anything by.
_THEIRS = "NVIDIA_CTK_"


class Toolkit:
    """The host's NVIDIA container toolkit. It is asked anew each time: MIG instances change."""

    def __init__(self, command: Sequence[str], *, limit_s: float = LIMIT_S) -> None:
        self._command = tuple(command)
        self._limit_s = limit_s
        # Many may start at once; each call opens every GPU.
        self._few = asyncio.Semaphore(4)

    async def edits(self, uuid: str) -> Edits:
        """What a container needs for this GPU or MIG instance. Raises Refused."""
        async with self._few:
            text = await self._generate()
        return device_edits(_spec(text), uuid)

    async def _generate(self) -> str:
        command = f"The command {self._command[0]}"
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *_ARGUMENTS,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                # The toolkit reads NVIDIA_CTK_* as options, one of them where to write.
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError as problem:
            text = f"{command} of the NVIDIA container toolkit cannot be run ({problem.strerror})"
            raise _unavailable(text) from problem
        try:
            out, err = await asyncio.wait_for(process.communicate(), self._limit_s)
        except TimeoutError:
            raise _unavailable(f"{command} has not answered for {self._limit_s:g} s") from None
        finally:
            if process.returncode is None:
                # With what it has started.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                # One that waits in the driver cannot be killed, and is not waited for.
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), _END_LIMIT_S)
        if process.returncode:
            said = _last_line(err) or f"exit code {process.returncode}"
            raise _unavailable(f"{command} failed: {said}")
        return out.decode(errors="replace")


def device_edits(spec: Spec, uuid: str) -> Edits:
    """What of the toolkit's specification a container with this device needs.

    Raises:
        Refused: the device is not in it, or nodes that it cannot be used without.
    """
    device = device_of(spec, uuid)
    if device is None:
        raise _unavailable(f"The NVIDIA container toolkit knows no device {uuid}")
    common, own = spec.container_edits.device_nodes, device.container_edits.device_nodes
    nodes = {node.path: node for node in common if node.path in _CONTROL}
    nodes |= {node.path: node for node in own if _is_own(node.path, uuid)}
    _check(nodes, uuid)
    edits = joined(spec.container_edits, device.container_edits)
    return Edits(
        env=tuple(entry for entry in edits.env if _harmless(entry.partition("=")[0])),
        device_nodes=tuple(nodes.values()),
        hooks=tuple(_bounded(hook) for hook in edits.hooks if _for_computing(hook)),
        mounts=tuple(_read_only(mount) for mount in edits.mounts if _is_a_file(mount)),
    )


def _is_own(path: str, uuid: str) -> bool:
    if _CAPABILITY.fullmatch(path):
        return _is_mig(uuid)
    return path in _CONTROL or _CARD.fullmatch(path) is not None


def _check(paths: Collection[str], uuid: str) -> None:
    for path in _NEEDED:
        if path not in paths:
            raise _unavailable(f"The NVIDIA container toolkit has not found {path}")
    if sum(_CARD.fullmatch(path) is not None for path in paths) != 1:
        raise _unavailable(f"The NVIDIA container toolkit states no single card for {uuid}")
    capabilities = sum(_CAPABILITY.fullmatch(path) is not None for path in paths)
    if _is_mig(uuid) and capabilities != _CAPABILITIES:
        raise _unavailable(f"The two nodes in /dev/nvidia-caps that {uuid} needs are missing")


def _is_mig(uuid: str) -> bool:
    return uuid.startswith("MIG-")


def _harmless(variable: str) -> bool:
    return variable.startswith(_THEIRS) or not is_the_nodes(variable)


def _for_computing(hook: Hook) -> bool:
    return _MEMORY_LIMITS not in hook.args and not any(_SCREENS in arg for arg in hook.args)


def _bounded(hook: Hook) -> Hook:
    return hook.model_copy(
        update={"env": hook.env or _HOOK_ENV, "timeout": hook.timeout or _HOOK_LIMIT_S}
    )


def _is_a_file(mount: Mount) -> bool:
    return not mount.container_path.startswith(_OF_DAEMONS)


def _read_only(mount: Mount) -> Mount:
    others = [option for option in mount.options if option not in ("ro", "rw")]
    return mount.model_copy(update={"options": ("ro", *others)})


def _spec(text: str) -> Spec:
    """The first document: newer toolkits may append others, with parts of the same devices."""
    try:
        document, _ = json.JSONDecoder().raw_decode(text.lstrip())
        return Spec.model_validate(document)
    except ValidationError as problem:
        error = problem.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in error["loc"])
        raise _unavailable(
            f"What the NVIDIA container toolkit says is not understood ({where}: {error['msg']})"
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise _unavailable("What the NVIDIA container toolkit says is no JSON") from problem


def _last_line(text: bytes) -> str:
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else ""


def _unavailable(text: str) -> Refused:
    return Refused("device-unavailable", f"{text}. {ADVICE}")
