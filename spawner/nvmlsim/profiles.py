"""What the simulated models are like: memory, limits, and where MIG instances may lie on them.

Slots and starts are those of `nvidia-smi mig -lgipp`; memory of an instance is what is usable in
it, rounded where only gigabytes are published. Real code must read all of this from the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MigProfile:
    """A kind of MIG instance.

    Attributes:
        name: As NVML spells it after " MIG ", for example "1g.10gb".
        profile_id: NVML's id of the profile on this model.
        starts: Memory slots at which it may begin.
        size: Memory slots it takes.
        compute_slices: Compute slices it takes.
        memory_mib: Usable memory in MiB.
        multiprocessors: SMs it has.
        maximum: How many fit at most.
    """

    name: str
    profile_id: int
    starts: tuple[int, ...]
    size: int
    compute_slices: int
    memory_mib: int
    multiprocessors: int
    maximum: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model of GPU; memory in MiB, power in watts, clocks in MHz."""

    name: str
    memory_mib: int
    compute_capability: tuple[int, int]
    power_limit_w: int
    pci_device_id: int
    reserved_mib: int = 512
    max_sm_clock: int = 1980
    max_memory_clock: int = 2619
    pcie_generation: int = 5
    fan: bool = False
    mig: tuple[MigProfile, ...] = field(default=())

    @property
    def gpm(self) -> bool:
        """Whether GPM metrics exist: Hopper and newer."""
        return self.compute_capability >= (9, 0)

    @property
    def compute_slices(self) -> int:
        """Compute slices that MIG instances share out; 0 without MIG."""
        return max((profile.compute_slices for profile in self.mig), default=0)

    @property
    def memory_slots(self) -> int:
        """Memory slots that MIG instances share out; 0 without MIG."""
        return max((profile.size for profile in self.mig), default=0)

    def mig_profile(self, name: str) -> MigProfile:
        """Return the profile called `name`.

        Raises:
            ValueError: This model has none of that name.
        """
        for profile in self.mig:
            if profile.name == name:
                return profile
        known = ", ".join(profile.name for profile in self.mig) or "no MIG"
        raise ValueError(f"{self.name} has no MIG profile {name!r} (it has: {known})")


def _eight_slots(
    names: tuple[str, ...], memory_mib: tuple[int, ...], multiprocessors: tuple[int, ...]
) -> tuple[MigProfile, ...]:
    """Build the seven profiles of an A100, H100 or H200; a 1g with double memory is the third."""
    shapes = (  # profile id, starts, size, compute slices, maximum
        (19, (0, 1, 2, 3, 4, 5, 6), 1, 1, 7),
        (20, (0, 1, 2, 3, 4, 5, 6), 1, 1, 1),
        (15, (0, 2, 4, 6), 2, 1, 4),
        (14, (0, 2, 4), 2, 2, 3),
        (9, (0, 4), 4, 3, 2),
        (5, (0,), 4, 4, 1),
        (0, (0,), 8, 7, 1),
    )
    return tuple(
        MigProfile(name, profile_id, starts, size, compute, memory, sms, maximum)
        for name, memory, sms, (profile_id, starts, size, compute, maximum) in zip(
            names, memory_mib, multiprocessors, shapes, strict=True
        )
    )


_80GB = ("1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
_40GB = ("1g.5gb", "1g.5gb+me", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb")
_141GB = ("1g.18gb", "1g.18gb+me", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb")
_A100_SMS = (14, 14, 14, 28, 42, 56, 98)
_HOPPER_SMS = (16, 16, 26, 32, 60, 64, 132)

_A30 = (
    MigProfile("1g.6gb", 14, (0, 1, 2, 3), 1, 1, 5952, 14, 4),
    MigProfile("2g.12gb", 5, (0, 2), 2, 2, 12032, 28, 2),
    MigProfile("4g.24gb", 0, (0,), 4, 4, 24125, 56, 1),
)

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            "NVIDIA H100 80GB HBM3",
            81559,
            (9, 0),
            700,
            0x233010DE,
            mig=_eight_slots(_80GB, (9984, 9984, 20096, 20096, 40448, 40448, 81152), _HOPPER_SMS),
        ),
        Model(
            "NVIDIA H200",
            143771,
            (9, 0),
            700,
            0x233510DE,
            mig=_eight_slots(
                _141GB, (16384, 16384, 33024, 33024, 71168, 71168, 143360), _HOPPER_SMS
            ),
        ),
        Model(
            "NVIDIA A100-SXM4-80GB",
            81920,
            (8, 0),
            400,
            0x20B210DE,
            max_sm_clock=1410,
            max_memory_clock=1593,
            pcie_generation=4,
            mig=_eight_slots(_80GB, (9856, 9856, 19968, 19968, 40192, 40192, 81024), _A100_SMS),
        ),
        Model(
            "NVIDIA A100-SXM4-40GB",
            40960,
            (8, 0),
            400,
            0x20B010DE,
            max_sm_clock=1410,
            max_memory_clock=1215,
            pcie_generation=4,
            mig=_eight_slots(_40GB, (4864, 4864, 9856, 9856, 19968, 19968, 40192), _A100_SMS),
        ),
        Model(
            "NVIDIA A30",
            24576,
            (8, 0),
            165,
            0x20B710DE,
            max_sm_clock=1440,
            max_memory_clock=1215,
            pcie_generation=4,
            mig=_A30,
        ),
        Model(
            "NVIDIA L4",
            23034,
            (8, 9),
            72,
            0x27B810DE,
            max_sm_clock=2040,
            max_memory_clock=6251,
            pcie_generation=4,
        ),
        Model(
            "NVIDIA L40S",
            46068,
            (8, 9),
            350,
            0x26B910DE,
            max_sm_clock=2520,
            max_memory_clock=9001,
            pcie_generation=4,
        ),
        Model(
            "Tesla T4",
            15360,
            (7, 5),
            70,
            0x1EB810DE,
            max_sm_clock=1590,
            max_memory_clock=5001,
            pcie_generation=3,
        ),
        Model(
            "NVIDIA GeForce RTX 4090",
            24564,
            (8, 9),
            450,
            0x268410DE,
            max_sm_clock=3105,
            max_memory_clock=10501,
            pcie_generation=4,
            fan=True,
        ),
    )
}
