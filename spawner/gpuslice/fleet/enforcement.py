"""How strongly the memory cap of a slice is really held: what a host can give, what a lease gets.

The ladder and its conditions are section 3 of the facts on GPU slicing: ``exclusive > mig >
cgroup > preload > watchdog > advisory``.
"""

from __future__ import annotations

import re
from typing import Protocol

from gpuslice.wire import Enforcement, SliceKind

#: First driver branch with a GPU memory limit per cgroup.
CGROUP_DRIVER = 615


class HoldsShares(Protocol):
    """A device, as reported or as in a snapshot."""

    @property
    def share_enforcement(self) -> Enforcement: ...

    @property
    def simulated(self) -> bool: ...


def achieved(kind: SliceKind, device: HoldsShares | None, ceiling: Enforcement) -> Enforcement:
    """The level a lease really gets; ``ceiling`` is ``Inventory.enforcement_ceiling``.

    A CPU slice has no GPU memory, and no device node to reach any through, so nothing is left to
    hold: it counts as ``exclusive``, up to the ceiling (under the local engine every process can
    open every device, so there it is ``advisory`` like the rest).
    """
    match kind:
        case SliceKind.EXCLUSIVE | SliceKind.CPU:
            level = Enforcement.EXCLUSIVE
        case SliceKind.MIG:
            level = Enforcement.MIG
        case SliceKind.SHARED:
            level = Enforcement.ADVISORY if device is None else device.share_enforcement
    return min(level, ceiling)


def may_share(device: HoldsShares, ceiling: Enforcement, minimum: Enforcement) -> bool:
    """Whether shares of this device may be leased: held at ``minimum``, or nothing real at stake.

    Whole GPUs and MIG instances are not asked this: that they are leased once is the ledger's
    doing, and needs nobody to hold a cap.
    """
    return device.simulated or achieved(SliceKind.SHARED, device, ceiling) >= minimum


def share_level(
    *,
    driver_version: str | None,
    cgroup2: bool,
    can_cgroup_limits: bool,
    preload: bool = False,
    watchdog: bool = False,
    mig_enabled: bool = False,
) -> Enforcement:
    """The strongest cap that a share of one GPU can have on a host.

    Args:
        driver_version: as NVML states it, ``"615.71.09"``; None if it does not answer.
        cgroup2: the host runs the unified cgroup hierarchy.
        can_cgroup_limits: something here sets the limit and verifies it after the start (a
            toolkit of at least 1.20.1, or a hook of our own); an older toolkit ignores it silently.
        preload: the intercepting library is installed on the host and loads in the images.
        watchdog: the node sees host pids in NVML's process list and stops what exceeds its cap.
        mig_enabled: the driver has no cgroup limits on a GPU in MIG mode.
    """
    major = _major(driver_version)
    driver_can = major is not None and major >= CGROUP_DRIVER and not mig_enabled
    if driver_can and cgroup2 and can_cgroup_limits:
        return Enforcement.CGROUP
    if preload:
        return Enforcement.PRELOAD
    if watchdog:
        return Enforcement.WATCHDOG
    return Enforcement.ADVISORY


def _major(driver_version: str | None) -> int | None:
    match = re.match(r"(\d{1,5})(\.|$)", driver_version or "")
    return int(match[1]) if match else None
