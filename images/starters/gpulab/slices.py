"""What this notebook's slice is, how much GPU memory is in use, and what it costs so far.

The lease and its cost come from the gpuslice service, the GPU from NVML. Each is a value or a
sentence why there is none; nothing is guessed.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Literal

from gpuslice.nvml import DeviceInfo, NotAvailable, Nvml, NvmlUnavailable
from gpuslice.units import cost_u, format_memory, format_money
from gpuslice.wire import LeaseView, Me, SliceKind

_TIMEOUT_S = 5
_LARGEST_ANSWER = 1 << 20
_LIVE = ("granted", "running", "stopping")


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU, or the part of one, that this notebook sees; memory is in bytes."""

    model: str
    memory_total: int | None
    memory_used: int | None
    simulated: bool


@dataclass(frozen=True, slots=True)
class MySlice:
    """What this notebook runs on; print it.

    Attributes:
        name: The slice's name, None outside the platform.
        lease: What the service says of it, or why it says nothing.
        gpu: What NVML shows of it, or why it shows nothing.
        simulated: Whether the GPU is only simulated.
    """

    name: str | None
    lease: LeaseView | str
    gpu: Gpu | str
    simulated: bool

    def cost(self, seconds: float) -> str:
        """What some seconds of this slice cost, as text."""
        if isinstance(self.lease, str):
            return f"not known ({self.lease})"
        amount = cost_u(self.lease.rate_u_per_hour, round(seconds * 1_000_000))
        return f"about {_money(amount, self.lease)}{self._no_real_money()}"

    def __str__(self) -> str:
        return "\n".join((self._what(), self._gpu(), self._cost()))

    __repr__ = __str__

    def _what(self) -> str:
        if self.name is None:
            return "Slice: none, this notebook was not started by gpuslice"
        title = self.name if isinstance(self.lease, str) else self.lease.title
        return f"Slice: {title}" + (" (SIMULATED: there is no real GPU)" if self.simulated else "")

    def _gpu(self) -> str:
        lease = None if isinstance(self.lease, str) else self.lease
        if lease and lease.kind is SliceKind.CPU:
            return "GPU: none, this slice is CPU only"
        if isinstance(self.gpu, str):
            return f"GPU: {self.gpu}"
        text = f"GPU: {self.gpu.model}{' (SIMULATED)' if self.gpu.simulated else ''}"
        yours = lease.memory_bytes if lease else None
        if yours is not None and yours != self.gpu.memory_total:
            return f"{text}, {format_memory(yours)} of its memory is yours"
        if self.gpu.memory_total is None:
            return text
        return f"{text} with {format_memory(self.gpu.memory_total)} of memory"

    def _cost(self) -> str:
        if isinstance(self.lease, str):
            return f"Cost: not known ({self.lease})"
        price = format_money(self.lease.rate_u_per_hour, self.lease.currency)
        so_far = _money(self.lease.cost_u, self.lease)
        return f"Cost: {so_far} so far, at {price} per hour{self._no_real_money()}"

    def _no_real_money(self) -> str:
        return " (SIMULATED, no real money)" if self.simulated else ""


def my_slice() -> MySlice:
    """Ask the service and NVML about this notebook's slice; takes a moment, changes nothing."""
    lease = _lease()
    gpu = _gpu()
    simulated = (
        os.environ.get("GPUSLICE_SIMULATED") == "1"
        or (isinstance(lease, LeaseView) and lease.simulated)
        or (isinstance(gpu, Gpu) and gpu.simulated)
    )
    return MySlice(os.environ.get("GPUSLICE_SLICE") or None, lease, gpu, simulated)


def memory_used() -> str:
    """One line about the GPU memory that is in use now, of a shared GPU only your part."""
    lease = _lease()
    if isinstance(lease, LeaseView) and lease.kind is SliceKind.SHARED:
        return _memory_of_share(lease)
    gpu = _gpu()
    if isinstance(gpu, str):
        return f"GPU memory: {gpu}"
    if gpu.memory_used is None or gpu.memory_total is None:
        return "GPU memory: not known, this GPU does not tell"
    used, total = format_memory(gpu.memory_used), format_memory(gpu.memory_total)
    return f"GPU memory: {used} of {total} in use{' (SIMULATED)' if gpu.simulated else ''}"


def _memory_of_share(lease: LeaseView) -> str:
    """From the service: the card's own numbers would tell about its other users."""
    used = lease.use.memory_used_bytes if lease.use else None
    if used is None or lease.memory_bytes is None:
        why = lease.use.reason if lease.use and lease.use.reason else "nothing was measured yet"
        return f"GPU memory: not known ({why.rstrip('.')})"
    text = f"GPU memory: {format_memory(used)} of your {format_memory(lease.memory_bytes)} in use"
    return text + (" (SIMULATED)" if lease.simulated else "")


def _money(amount_u: int, lease: LeaseView) -> str:
    # Minutes of a slice cost fractions of a cent: four places.
    return format_money(amount_u, lease.currency, places=4)


# ----------------------------------------------------------------------------------------- the GPU


def _gpu() -> Gpu | str:
    try:
        with Nvml.open() as nvml:
            mine = _mine(nvml.devices())
            if mine is None:
                return "none, this notebook was given none"
            memory = nvml.device_state(mine.uuid, details=False).memory
            return Gpu(
                model=mine.model,
                memory_total=_known(mine.memory_total),
                memory_used=None if isinstance(memory, NotAvailable) else memory.used,
                simulated=nvml.simulated,
            )
    except NvmlUnavailable as error:
        if error.kind in ("library not found", "driver not loaded"):
            return "none, there is no NVIDIA driver here"
        return f"none, {error.reason}"
    except LookupError:
        return "none, it has just disappeared"


def _mine(devices: list[DeviceInfo]) -> DeviceInfo | None:
    """The device this notebook was given; where the variable names none of them, the first."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None and not given.strip():
        return None
    # A card in MIG mode cannot be used itself, only its instances.
    usable = [device for device in devices if device.mig_enabled is not True]
    named = [device for device in usable if given and device.uuid in given.split(",")]
    return next(iter(named or usable), None)


def _known(value: int | NotAvailable) -> int | None:
    return None if isinstance(value, NotAvailable) else value


# ------------------------------------------------------------------------------------- the service


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token somewhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> Literal[None]:
        return None


def _lease() -> LeaseView | str:
    """What the service says of this server's lease, or why it says nothing."""
    url = os.environ.get("GPUSLICE_SERVICE_URL", "")
    token = os.environ.get("JUPYTERHUB_API_TOKEN", "")
    if not url or not token:
        return "there is no gpuslice service here"
    if not url.startswith(("http://", "https://")):
        return "the service's address is not understood"
    request = urllib.request.Request(  # noqa: S310  the scheme is checked above
        f"{url.rstrip('/')}/api/me", headers={"Authorization": f"token {token}"}
    )
    # No proxy: one for the internet must not see the token.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            # A newer service may say more.
            me = Me.model_validate_json(answer.read(_LARGEST_ANSWER), extra="ignore")
    except urllib.error.HTTPError as error:
        return f"the gpuslice service refused to say: {error.code}"
    except OSError:
        return "the gpuslice service does not answer"
    except ValueError:  # pydantic's is one too
        return "the gpuslice service's answer is not understood"
    live = [lease for lease in me.leases if lease.state in _LIVE]
    own = [lease for lease in live if lease.lease_id == os.environ.get("GPUSLICE_LEASE")]
    found = own or (live if me.server is not None else [])
    return found[0] if found else "the gpuslice service knows of no slice here"
