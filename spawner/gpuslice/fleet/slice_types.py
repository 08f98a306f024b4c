"""The slice types on offer: those of ``gpuslice.toml``, or without any, what the hardware has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from gpuslice.fleet import mig
from gpuslice.fleet.enforcement import achieved, may_share
from gpuslice.fleet.prices import NEAR_PARITY, gpu_price, part_price_u
from gpuslice.fleet.ram import cpu_ram, gpu_ram, mig_part
from gpuslice.settings import Settings, SliceSettings
from gpuslice.units import format_memory
from gpuslice.wire import DeviceReport, Enforcement, Inventory, SliceKind


@dataclass(frozen=True)
class SliceType:
    """One offering. What it needs on a device is decided by ``kind``.

    ``memory_bytes`` of a share is its cap; with None the cap is ``share_milli`` of the memory (less
    the reserve) of whichever device it is placed on. For the other kinds it only informs.
    """

    name: str
    title: str
    kind: SliceKind
    #: Only devices of this model: all of NVML's name if ``model_exact``, else words out of it.
    model: str | None
    memory_bytes: int | None
    share_milli: int | None
    mig_profile: str | None
    cpu_milli: int
    ram_bytes: int
    rate_u_per_hour: int
    #: Only looked at for shares.
    minimum_enforcement: Enforcement
    #: Where the rate comes from: ``configured``, ``table``, ``generic`` or ``free``.
    price_source: str = "configured"
    model_exact: bool = False
    #: How much of a GPU it is, thousandths: the largest part of any GPU that could carry it.
    gpu_milli: int = 0

    def __post_init__(self) -> None:
        # Without these a type would need nothing, and any number of it would fit anywhere.
        assert self.ram_bytes > 0 and self.cpu_milli >= 0 and self.rate_u_per_hour >= 0
        assert (self.mig_profile is not None) == (self.kind is SliceKind.MIG)
        if self.kind is SliceKind.SHARED:
            assert self.memory_bytes or self.share_milli
            assert self.share_milli is None or 0 < self.share_milli <= 1000

    def suits_model(self, model: str) -> bool:
        """Whether a GPU of this model (as NVML names it) may carry this slice type."""
        if self.model is None:
            return True
        if self.model_exact:
            return self.model == model
        return _has_words(model, self.model)

    def memory_on(self, device_bytes: int | None, reserve_bytes: int) -> int | None:
        """The cap in bytes that a share of this type has on a device of this size.

        None if the device's memory is not available, so no part of it can be named.
        """
        if device_bytes is None:
            return None
        if self.memory_bytes is not None:
            return self.memory_bytes
        return max(0, device_bytes - reserve_bytes) * (self.share_milli or 0) // 1000


@cache
def _has_words(model: str, words: str) -> bool:
    # Whole words: "L4" must not take in an L40S, nor "A10" an A100. Asked of every device at every
    # grant, and there are few models.
    pattern = rf"(?<![a-z0-9]){re.escape(words.lower())}(?![a-z0-9])"
    return re.search(pattern, model.lower()) is not None


@dataclass(frozen=True)
class NotOffered:
    """A slice type that could be, but is not, on offer here, and why, in words."""

    name: str
    reason: str


@dataclass(frozen=True)
class SliceCatalogue:
    """What is offered and what is not, both in a fixed order."""

    types: tuple[SliceType, ...]
    not_offered: tuple[NotOffered, ...]

    def get(self, name: str) -> SliceType | None:
        """The offered type of this name."""
        return next((offered for offered in self.types if offered.name == name), None)


def slice_types(
    settings: Settings, inventories: Sequence[Inventory], *, strict: bool = True
) -> SliceCatalogue:
    """What can be leased on these nodes: exactly the ``[[slice]]`` tables if there are any.

    Without tables: whole GPUs, halves and quarters where a share's cap holds (or is simulated), the
    MIG instances that exist, and ``cpu``. A name is plain while one GPU model offers it
    (``quarter``), else it ends in the model (``quarter-h100-80gb``). No inventory: nothing.

    Raises:
        SettingsError: a ``[[slice]]`` is larger than any device or host. With ``strict=False``, for
            hardware that changes while the platform runs, it is listed as not offered instead.
    """
    gpus = list(_gpus(inventories))
    offered: list[SliceType] = []
    missing: list[NotOffered] = []
    if settings.slice:
        attempts = [_configured(entry, settings) for entry in settings.slice]
    else:
        attempts = list(_derived(settings, inventories, gpus))
        missing += _unused_hardware(inventories, gpus)
    for draft in attempts:
        try:
            offered.append(_fitted(draft, settings, inventories, gpus))
        except _Unfit as exc:
            if exc.key and settings.slice and strict:
                key = f"slice[{draft.type.name}].{exc.key}"
                raise settings.error(key, exc.reason) from None
            missing.append(NotOffered(draft.type.name, exc.reason))
    return SliceCatalogue(tuple(offered), tuple(missing))


# --- hardware -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gpu:
    """A GPU with its MIG instances and the strongest enforcement of its node."""

    report: DeviceReport
    ceiling: Enforcement
    instances: tuple[DeviceReport, ...]


def _gpus(inventories: Iterable[Inventory]) -> Iterator[_Gpu]:
    for inventory in inventories:
        gpus = [device for device in inventory.devices if device.kind == "gpu"]
        for gpu in sorted(gpus, key=lambda device: device.index):
            inside = [d for d in inventory.devices if d.kind == "mig" and d.parent_uuid == gpu.uuid]
            yield _Gpu(gpu, inventory.enforcement_ceiling, tuple(inside))


def _unused_hardware(inventories: Sequence[Inventory], gpus: Sequence[_Gpu]) -> list[NotOffered]:
    """What a user of derived types would look for and not find, with the reason."""
    missing = [
        NotOffered("whole", f"node '{inventory.node_id}': {inventory.gpu_problem}")
        for inventory in inventories
        if inventory.gpu_problem
    ]
    if not inventories:
        missing.append(NotOffered("cpu", "no node has reported what it has yet"))
    elif not gpus and not missing:
        missing.append(NotOffered("whole", "no node has a GPU"))
    empty = {gpu.report.model for gpu in gpus if gpu.report.mig_enabled and not gpu.instances}
    for model in sorted(empty):
        reason = f"a GPU '{model}' is in MIG mode and has no MIG instance"
        missing.append(NotOffered("mig", reason))
    return missing


# --- drafts: from the settings, or from the hardware ----------------------------------------


@dataclass(frozen=True)
class _Draft:
    """A slice type before it is known to fit; ``price_u`` None asks for the default price."""

    type: SliceType
    price_u: int | None


def _configured(entry: SliceSettings, settings: Settings) -> _Draft:
    minimum = entry.minimum_enforcement
    if minimum is None:
        minimum = settings.fleet.minimum_enforcement
    return _Draft(
        SliceType(
            name=entry.name,
            title=entry.title or _title(entry.kind, entry.model, entry.mig_profile, entry.share),
            kind=entry.kind,
            model=entry.model,
            memory_bytes=entry.memory,
            share_milli=entry.share,
            mig_profile=entry.mig_profile,
            cpu_milli=entry.cpu,
            ram_bytes=entry.ram,
            rate_u_per_hour=0,
            minimum_enforcement=minimum,
        ),
        entry.price,
    )


def _derived(
    settings: Settings, inventories: Sequence[Inventory], gpus: Sequence[_Gpu]
) -> Iterator[_Draft]:
    reserve = settings.fleet.host_reserve_ram
    models = list(dict.fromkeys(gpu.report.model for gpu in gpus))
    parts = {model: _parts([gpu for gpu in gpus if gpu.report.model == model]) for model in models}
    suffixes = _suffixes(models)
    offered_by = Counter(part.base for found in parts.values() for part in found)
    for model in models:
        for part in parts[model]:
            suffix = suffixes[model] if offered_by[part.base] > 1 else ""
            ram = gpu_ram(inventories, reserve, model, part.of_gpu)
            yield _derived_draft(part, part.base + suffix, model, ram, settings)
    ram = cpu_ram(inventories, reserve)
    yield _derived_draft(_Part("cpu", SliceKind.CPU, Fraction(0)), "cpu", None, ram, settings)


class _Part(NamedTuple):
    """A way in which a GPU model can be had, and what it is called while one model offers it."""

    base: str
    kind: SliceKind
    #: Of the host's RAM it gets this part of what a whole GPU gets.
    of_gpu: Fraction
    share_milli: int | None = None
    profile: str | None = None


def _parts(of_model: Sequence[_Gpu]) -> list[_Part]:
    found = []
    if any(not gpu.report.mig_enabled for gpu in of_model):
        found += [
            _Part("whole", SliceKind.EXCLUSIVE, Fraction(1)),
            _Part("half", SliceKind.SHARED, Fraction(1, 2), share_milli=500),
            _Part("quarter", SliceKind.SHARED, Fraction(1, 4), share_milli=250),
        ]
    return found + [
        _Part(profile, SliceKind.MIG, _least_part(of_model, profile), profile=profile)
        for profile in _profiles(of_model)
    ]


def _least_part(of_model: Sequence[_Gpu], profile: str) -> Fraction:
    return min(
        mig_part(gpu.report, instance)
        for gpu in of_model
        for instance in gpu.instances
        if instance.mig_profile == profile
    )


def _derived_draft(
    part: _Part, name: str, model: str | None, ram: int, settings: Settings
) -> _Draft:
    return _Draft(
        SliceType(
            name=name,
            title=_title(part.kind, model, part.profile, part.share_milli),
            kind=part.kind,
            model=model,
            memory_bytes=None,
            share_milli=part.share_milli,
            mig_profile=part.profile,
            cpu_milli=0,
            ram_bytes=ram,
            rate_u_per_hour=0,
            minimum_enforcement=settings.fleet.minimum_enforcement,
            model_exact=True,
        ),
        None,
    )


def _profiles(gpus: Iterable[_Gpu]) -> list[str]:
    """The profiles that exist, large ones first."""
    names = {i.mig_profile for gpu in gpus for i in gpu.instances if i.mig_profile}
    return sorted(names, key=lambda name: (-(mig.profile_compute(name) or 0), name))


def _suffixes(models: Sequence[str]) -> dict[str, str]:
    """What each model adds to a name that several offer, as in ``-h100-80gb``."""
    suffixes: dict[str, str] = {}
    for model in models:
        words = re.findall(r"[a-z0-9]+", model.lower())
        noise = re.compile(r"nvidia|tesla|geforce|graphics|gpu|hbm\d\w*")
        slug = "-".join(word for word in words if not noise.fullmatch(word))[:40].strip("-")
        suffix, number = f"-{slug or 'gpu'}", 2
        while suffix in suffixes.values():
            suffix, number = f"-{slug or 'gpu'}-{number}", number + 1
        suffixes[model] = suffix
    return suffixes


def _title(kind: SliceKind, model: str | None, profile: str | None, share: int | None) -> str:
    gpu = model or "GPU"
    match kind:
        case SliceKind.CPU:
            return "No GPU, CPU only"
        case SliceKind.EXCLUSIVE:
            return f"{gpu}, whole"
        case SliceKind.MIG:
            return f"{gpu}, MIG {profile}"
        case SliceKind.SHARED:
            names = {500: "half", 250: "quarter", None: "shared"}
            return f"{gpu}, {names.get(share) or f'{Fraction(share or 0, 10)} %'}"


# --- does it fit, and what does it cost -----------------------------------------------------


class _Unfit(Exception):
    """Not on offer; with ``key``, because that key of its table asks more than anything has."""

    def __init__(self, reason: str, key: str = "") -> None:
        self.reason = reason
        self.key = key
        super().__init__(reason)


def _fitted(
    draft: _Draft, settings: Settings, inventories: Sequence[Inventory], gpus: Sequence[_Gpu]
) -> SliceType:
    """The draft with its memory and price, or :class:`_Unfit`."""
    if not inventories:
        raise _Unfit("no node has reported what it has yet")
    wanted = draft.type
    _check_hosts(wanted, settings, inventories)
    match wanted.kind:
        case SliceKind.CPU:
            return _priced(draft, settings, [])
        case SliceKind.EXCLUSIVE:
            return _fitted_whole(draft, settings, inventories, gpus)
        case SliceKind.MIG:
            return _fitted_mig(draft, settings, inventories, gpus)
        case SliceKind.SHARED:
            return _fitted_share(draft, settings, inventories, gpus)


def _check_hosts(wanted: SliceType, settings: Settings, inventories: Sequence[Inventory]) -> None:
    cpu = max(inventory.host.cpu_milli for inventory in inventories)
    ram = max(i.host.ram_bytes for i in inventories) - settings.fleet.host_reserve_ram
    if wanted.cpu_milli > cpu:
        raise _Unfit(
            f"{wanted.cpu_milli / 1000:g} cores; the largest host has {cpu / 1000:g}", "cpu"
        )
    if wanted.ram_bytes > ram:
        room = format_memory(max(0, ram))
        raise _Unfit(
            f"{format_memory(wanted.ram_bytes)} of RAM; the largest host has {room} beside "
            "fleet.host_reserve_ram",
            "ram",
        )


def _fitted_whole(
    draft: _Draft, settings: Settings, inventories: Sequence[Inventory], gpus: Sequence[_Gpu]
) -> SliceType:
    found = _not_mig(draft.type, inventories, gpus)
    wanted = replace(draft.type, memory_bytes=_least(gpu.report.memory_bytes for gpu in found))
    return _priced(replace(draft, type=wanted), settings, [(gpu, Fraction(1)) for gpu in found])


def _fitted_mig(
    draft: _Draft, settings: Settings, inventories: Sequence[Inventory], gpus: Sequence[_Gpu]
) -> SliceType:
    profile = draft.type.mig_profile
    found = [
        (gpu, instance)
        for gpu in gpus
        if draft.type.suits_model(gpu.report.model)
        for instance in gpu.instances
        if instance.mig_profile == profile
    ]
    if not found:
        raise _Unfit(f"no MIG instance {profile} exists{_of(draft.type)}{_problems(inventories)}")
    wanted = replace(draft.type, memory_bytes=_least(i.memory_bytes for _, i in found))
    parts = [(gpu, _mig_part(gpu.report, instance)) for gpu, instance in found]
    return _priced(replace(draft, type=wanted), settings, parts)


def _fitted_share(
    draft: _Draft, settings: Settings, inventories: Sequence[Inventory], gpus: Sequence[_Gpu]
) -> SliceType:
    wanted = draft.type
    reserve = settings.fleet.reserve_memory
    found = [g for g in _not_mig(wanted, inventories, gpus) if g.report.memory_bytes is not None]
    if not found:
        raise _Unfit(f"the memory of no GPU{_of(wanted)} is available, so no cap can be set")
    fitting = [gpu for gpu in found if _cap_fits(wanted, gpu, reserve)]
    if not fitting:
        raise _too_large(wanted, found, reserve)
    held = [g for g in fitting if may_share(g.report, g.ceiling, wanted.minimum_enforcement)]
    if not held:
        raise _too_weak(wanted, fitting)
    caps = {wanted.memory_on(gpu.report.memory_bytes, reserve) for gpu in held}
    wanted = replace(wanted, memory_bytes=caps.pop() if len(caps) == 1 else None)
    parts = [(gpu, _share_part(wanted, gpu.report, reserve)) for gpu in held]
    return _priced(replace(draft, type=wanted), settings, parts)


def _cap_fits(wanted: SliceType, gpu: _Gpu, reserve: int) -> bool:
    cap = wanted.memory_on(gpu.report.memory_bytes, reserve) or 0
    return 0 < cap <= (gpu.report.memory_bytes or 0) - reserve


def _too_large(wanted: SliceType, found: Iterable[_Gpu], reserve: int) -> _Unfit:
    room = max(gpu.report.memory_bytes or 0 for gpu in found) - reserve
    has = f"the largest GPU{_of(wanted)} has {format_memory(max(0, room))} beside the reserve"
    if wanted.memory_bytes is None:
        # A fraction follows the device, so it is not the table that asks too much.
        return _Unfit(f"{has} (fleet.reserve_memory), too little to share")
    return _Unfit(f"{format_memory(wanted.memory_bytes)} of GPU memory; {has}", "memory")


def _too_weak(wanted: SliceType, found: Iterable[_Gpu]) -> _Unfit:
    best = max(achieved(SliceKind.SHARED, gpu.report, gpu.ceiling) for gpu in found)
    return _Unfit(
        f"the memory cap of a share{_of(wanted)} is held here only as '{best.label}', and "
        f"minimum_enforcement is '{wanted.minimum_enforcement.label}'"
    )


def _not_mig(
    wanted: SliceType, inventories: Sequence[Inventory], gpus: Sequence[_Gpu]
) -> list[_Gpu]:
    """The GPUs that can be leased as a whole or shared."""
    suited = [gpu for gpu in gpus if wanted.suits_model(gpu.report.model)]
    if not suited:
        raise _Unfit(f"no GPU{_of(wanted)}{_problems(inventories)}")
    found = [gpu for gpu in suited if not gpu.report.mig_enabled]
    if not found:
        raise _Unfit(f"every GPU{_of(wanted)} is in MIG mode")
    return found


def _of(wanted: SliceType) -> str:
    return f" '{wanted.model}'" if wanted.model else ""


def _problems(inventories: Iterable[Inventory]) -> str:
    known = [f"node '{i.node_id}': {i.gpu_problem}" for i in inventories if i.gpu_problem]
    return f" ({'; '.join(known)})" if known else ""


def _least(values: Iterable[int | None]) -> int | None:
    """What every one of them has at least; None if that is not available for all."""
    sizes = list(values)
    known = [size for size in sizes if size is not None]
    return min(known) if known and len(known) == len(sizes) else None


def _share_part(wanted: SliceType, gpu: DeviceReport, reserve: int) -> Fraction:
    """The larger of its memory and compute shares; the reserve is nobody's, so it is not sold."""
    assert gpu.memory_bytes
    cap = wanted.memory_on(gpu.memory_bytes, reserve) or 0
    return max(Fraction(cap, gpu.memory_bytes), Fraction(wanted.share_milli or 0, 1000))


def _mig_part(gpu: DeviceReport, instance: DeviceReport) -> Fraction:
    """The larger of its compute and memory shares: g/7 and slots/8 (of an A30 both in fourths)."""
    layout = mig.geometry(gpu.model, gpu.memory_bytes)
    name = instance.mig_profile or ""
    profile = layout.profile(name) if layout else None
    if layout is not None and profile is not None:
        return max(
            Fraction(profile.compute, layout.compute_slices),
            Fraction(profile.size, layout.memory_slots),
        )
    # Not in our table: the name states the compute slices, NVML the memory.
    parts = [Fraction(min(7, mig.profile_compute(name) or 7), 7)]
    if instance.memory_bytes and gpu.memory_bytes:
        parts.append(min(Fraction(1), Fraction(instance.memory_bytes, gpu.memory_bytes)))
    return max(parts)


def _priced(draft: _Draft, settings: Settings, parts: Sequence[tuple[_Gpu, Fraction]]) -> SliceType:
    """With the configured price, else the dearest default over the GPUs that could carry it."""
    of_gpu = round(max((part for _, part in parts), default=Fraction(0)) * 1000)
    wanted = replace(draft.type, gpu_milli=of_gpu)
    if draft.price_u is not None:
        return replace(wanted, rate_u_per_hour=draft.price_u, price_source="configured")
    if wanted.kind is SliceKind.CPU:
        return replace(wanted, rate_u_per_hour=0, price_source="free")
    if settings.currency not in NEAR_PARITY:
        raise _Unfit(
            f"there are no default prices in {settings.currency}; set 'price' in a [[slice]] table"
        )
    quotes = []
    for gpu, part in parts:
        price = gpu_price(gpu.report.model, gpu.report.memory_bytes)
        quotes.append((part_price_u(price.rate_u_per_hour, part), price.source))
    rate, source = max(quotes)
    return replace(wanted, rate_u_per_hour=rate, price_source=source)


__all__ = ["NotOffered", "SliceCatalogue", "SliceType", "slice_types"]
