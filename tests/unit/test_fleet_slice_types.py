"""Which slice types are on offer for which hardware and settings, and why the others are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from gpuslice.fleet import SliceCatalogue, slice_types
from gpuslice.settings import SettingsError, load_settings
from gpuslice.units import GIB, MIB
from gpuslice.wire import DeviceReport, Enforcement, HostReport, Inventory, SliceKind, SliceName

H100, L4, L40S = "NVIDIA H100 80GB HBM3", "NVIDIA L4", "NVIDIA L40S"


def gpu(index: int = 0, model: str = H100, memory: int | None = 80 * GIB, **more) -> DeviceReport:
    return DeviceReport(
        uuid=f"GPU-{index}", kind="gpu", index=index, model=model, memory_bytes=memory, **more
    )


def instance(parent: int, number: int, profile: str, memory: int | None = 10 * GIB) -> DeviceReport:
    return DeviceReport(
        uuid=f"MIG-{parent}-{number}", kind="mig", index=number, model="MIG", memory_bytes=memory,
        parent_uuid=f"GPU-{parent}", mig_profile=profile,
    )  # fmt: skip


def node(*devices: DeviceReport, ceiling: Enforcement = Enforcement.EXCLUSIVE, **more) -> Inventory:
    fields = {
        "node_id": "local", "boot_id": "b", "engine": "docker", "now_us": 0, "boottime_us": 0,
        "simulated": False, "driver_version": "580.1", "gpu_problem": None,
        "host": HostReport(cpu_milli=8000, ram_bytes=32 * GIB),
    }  # fmt: skip
    return Inventory(**(fields | more), devices=list(devices), enforcement_ceiling=ceiling)


@pytest.fixture
def offer(tmp_path: Path):
    def offer(text: str, *inventories: Inventory, strict: bool = True) -> SliceCatalogue:
        path = tmp_path / "gpuslice.toml"
        path.write_text(text, encoding="utf-8")
        return slice_types(load_settings(path), inventories, strict=strict)

    return offer


def names(catalogue: SliceCatalogue) -> list[str]:
    return [kind.name for kind in catalogue.types]


def reasons(catalogue: SliceCatalogue) -> dict[str, str]:
    return {missing.name: missing.reason for missing in catalogue.not_offered}


# --- derived from the hardware --------------------------------------------------------------


def test_a_machine_without_a_gpu_offers_cpu_and_says_why_no_more(offer) -> None:
    catalogue = offer("", node(gpu_problem="no NVIDIA driver on this machine"))
    assert names(catalogue) == ["cpu"]
    cpu = catalogue.get("cpu")
    assert cpu is not None and cpu.kind is SliceKind.CPU
    assert (cpu.rate_u_per_hour, cpu.price_source) == (0, "free")
    assert (cpu.cpu_milli, cpu.ram_bytes) == (0, 4 * GIB)
    assert reasons(catalogue) == {"whole": "node 'local': no NVIDIA driver on this machine"}
    assert reasons(offer("", node())) == {"whole": "no node has a GPU"}


def test_nothing_is_offered_before_a_node_reports(offer) -> None:
    catalogue = offer("")
    assert names(catalogue) == []
    assert reasons(catalogue)["cpu"] == "no node has reported what it has yet"
    assert reasons(offer('[[slice]]\nname="x"\nkind="cpu"')) == {
        "x": "no node has reported what it has yet"
    }


def test_a_real_gpu_is_offered_whole_and_not_in_parts(offer) -> None:
    catalogue = offer("", node(gpu()))
    assert names(catalogue) == ["whole", "cpu"]
    whole = catalogue.get("whole")
    assert whole is not None
    assert (whole.rate_u_per_hour, whole.price_source) == (3_500_000, "table")
    assert whole.memory_bytes == 80 * GIB
    assert reasons(catalogue)["quarter"] == (
        "the memory cap of a share 'NVIDIA H100 80GB HBM3' is held here only as 'advisory', and "
        "minimum_enforcement is 'watchdog'"
    )


def test_shares_of_a_real_gpu_need_the_minimum_lowered_or_reached(offer) -> None:
    lowered = '[fleet]\nminimum_enforcement = "advisory"'
    assert names(offer(lowered, node(gpu()))) == ["whole", "half", "quarter", "cpu"]
    held = gpu(share_enforcement=Enforcement.CGROUP)
    assert "quarter" in names(offer("", node(held)))
    # The engine holds nothing, whatever the device could.
    assert "quarter" not in names(offer("", node(held, ceiling=Enforcement.ADVISORY)))


def test_a_simulated_gpu_is_offered_in_parts(offer) -> None:
    catalogue = offer("", node(gpu(simulated=True), ceiling=Enforcement.ADVISORY))
    assert names(catalogue) == ["whole", "half", "quarter", "cpu"]
    half, quarter = catalogue.get("half"), catalogue.get("quarter")
    assert half is not None and quarter is not None
    assert quarter.memory_bytes == (80 * GIB - 512 * MIB) // 4
    assert (half.rate_u_per_hour, quarter.rate_u_per_hour) == (1_750_000, 875_000)
    assert half.share_milli == 500


def test_mig_instances_that_exist_are_offered(offer) -> None:
    catalogue = offer(
        "",
        node(
            gpu(mig_enabled=True),
            instance(0, 0, "3g.40gb", 40 * GIB),
            instance(0, 1, "1g.10gb", 9 * GIB),
            instance(0, 2, "1g.10gb"),
            ceiling=Enforcement.ADVISORY,
        ),
    )
    assert names(catalogue) == ["3g.40gb", "1g.10gb", "cpu"]
    three, one = catalogue.get("3g.40gb"), catalogue.get("1g.10gb")
    assert three is not None and one is not None
    # 4 of 8 memory slots outweigh 3 of 7 compute slices; 1 of 7 compute outweighs 1 of 8.
    assert (three.rate_u_per_hour, one.rate_u_per_hour) == (1_750_000, 500_000)
    assert one.memory_bytes == 9 * GIB
    assert one.kind is SliceKind.MIG and one.mig_profile == "1g.10gb"


def test_mig_mode_without_instances_is_explained(offer) -> None:
    catalogue = offer("", node(gpu(mig_enabled=True)))
    assert names(catalogue) == ["cpu"]
    assert "has no MIG instance" in reasons(catalogue)["mig"]


def test_a_name_that_one_model_offers_stays_plain(offer) -> None:
    """An A100 in MIG mode beside H100s: nobody else has its profiles, nobody else its quarters."""
    inventory = node(
        gpu(0, H100, simulated=True),
        gpu(1, "NVIDIA A100-SXM4-80GB", mig_enabled=True, simulated=True),
        instance(1, 0, "1g.10gb"),
    )
    assert names(offer("", inventory)) == ["whole", "half", "quarter", "1g.10gb", "cpu"]


def test_several_models_give_every_type_its_model(offer) -> None:
    inventory = node(gpu(0, L4, 24 * GIB), gpu(1, L40S, 48 * GIB), gpu(2, H100), gpu(3, L4, None))
    catalogue = offer("", inventory)
    assert names(catalogue) == ["whole-l4", "whole-l40s", "whole-h100-80gb", "cpu"]
    assert catalogue == offer("", inventory)
    l4 = catalogue.get("whole-l4")
    assert l4 is not None
    assert l4.suits_model(L4) and not l4.suits_model(L40S)
    # The memory of one of them is not available, so none is promised.
    assert l4.memory_bytes is None


def test_names_are_always_slice_names_and_unique(offer) -> None:
    models = ["NVIDIA X", "Tesla X", "GPU", "???", "NVIDIA " + "Very Long " * 9, "Größe 9"]
    devices = [gpu(number, model, simulated=True) for number, model in enumerate(models)]
    found = names(offer("", node(*devices)))
    assert len(set(found)) == len(found) == 3 * len(models) + 1
    for name in found:
        TypeAdapter(SliceName).validate_python(name)


def test_a_gpu_of_unknown_memory_is_not_shared(offer) -> None:
    catalogue = offer("", node(gpu(memory=None, simulated=True)))
    assert names(catalogue) == ["whole", "cpu"]
    assert "so no cap can be set" in reasons(catalogue)["half"]


def test_a_gpu_smaller_than_the_reserve_is_not_shared(offer) -> None:
    catalogue = offer("", node(gpu(memory=512 * MIB, simulated=True)))
    assert "too little to share" in reasons(catalogue)["half"]


def test_a_host_without_ram_to_spare_offers_nothing_and_does_not_stop(offer) -> None:
    catalogue = offer("", node(gpu(), host=HostReport(cpu_milli=1000, ram_bytes=GIB)))
    assert names(catalogue) == []
    assert "of RAM" in reasons(catalogue)["cpu"]


def test_another_currency_has_no_default_prices(offer) -> None:
    catalogue = offer('currency = "JPY"', node(gpu()))
    assert names(catalogue) == ["cpu"]
    assert "no default prices in JPY" in reasons(catalogue)["whole"]


# --- from [[slice]] tables ------------------------------------------------------------------


def test_with_tables_exactly_those_are_offered(offer) -> None:
    catalogue = offer(
        '[[slice]]\nname = "big"\nkind = "exclusive"\nprice = "9.99"\ncpu = 2\nram = "4GiB"\n'
        '[[slice]]\nname = "none"\nkind = "cpu"\ntitle = "Only CPU"\n',
        node(gpu(simulated=True)),
    )
    assert names(catalogue) == ["big", "none"]
    big, none = catalogue.types
    assert (big.rate_u_per_hour, big.price_source) == (9_990_000, "configured")
    assert (big.cpu_milli, big.ram_bytes) == (2000, 4 * GIB)
    assert none.title == "Only CPU"
    assert catalogue.not_offered == ()


def test_a_default_price_follows_the_larger_share_of_the_dearest_model(offer) -> None:
    text = '[[slice]]\nname = "s"\nkind = "shared"\nmemory = "12 GiB"\nshare = 0.25\n'
    devices = [gpu(0, L4, 24 * GIB, simulated=True), gpu(1, H100, simulated=True)]
    (cheap,) = offer(text + 'model = "l4"', node(*devices)).types
    assert cheap.rate_u_per_hour == 300_000  # half of an L4's memory
    (dear,) = offer(text, node(*devices)).types
    assert dear.rate_u_per_hour == 875_000  # a quarter of an H100's compute
    assert dear.memory_bytes == 12 * GIB


def test_a_fraction_follows_the_device_it_is_on(offer) -> None:
    text = '[[slice]]\nname = "s"\nkind = "shared"\nshare = 0.5\n'
    devices = [gpu(0, L4, 24 * GIB, simulated=True), gpu(1, H100, simulated=True)]
    (share,) = offer(text, node(*devices)).types
    assert share.memory_bytes is None
    assert share.memory_on(24 * GIB, 512 * MIB) == (24 * GIB - 512 * MIB) // 2
    assert share.memory_on(None, 512 * MIB) is None


def test_a_slice_own_minimum_wins(offer) -> None:
    text = '[[slice]]\nname = "s"\nkind = "shared"\nshare = 0.5\nminimum_enforcement = "{}"'
    assert names(offer(text.format("advisory"), node(gpu()))) == ["s"]
    assert "only as 'advisory'" in reasons(offer(text.format("cgroup"), node(gpu())))["s"]


TOO_LARGE = [
    ('kind = "shared"\nmemory = "80 GiB"', "slice[s].memory", "80 GiB of GPU memory"),
    ('kind = "cpu"\nram = "64 GiB"', "slice[s].ram", "the largest host has 31 GiB"),
    ('kind = "cpu"\ncpu = 9', "slice[s].cpu", "9 cores; the largest host has 8"),
]


@pytest.mark.parametrize(("text", "key", "reason"), TOO_LARGE)
def test_a_slice_larger_than_anything_stops_the_start(offer, tmp_path, text, key, reason) -> None:
    table = f'[[slice]]\nname = "s"\n{text}'
    with pytest.raises(SettingsError) as caught:
        offer(table, node(gpu()))
    assert str(caught.value).startswith(f"{tmp_path / 'gpuslice.toml'}: {key}: ")
    assert reason in str(caught.value)
    # While the platform runs, hardware that was taken away must not stop it.
    assert reason in reasons(offer(table, node(gpu()), strict=False))["s"]


def test_a_slice_for_hardware_that_is_not_there_is_not_offered(offer) -> None:
    text = '[[slice]]\nname = "s"\n'
    shared = text + 'kind = "exclusive"\nmodel = "B200"'
    assert reasons(offer(shared, node(gpu()))) == {"s": "no GPU 'B200'"}
    broken = node(gpu_problem="driver not loaded")
    assert reasons(offer(shared, broken)) == {
        "s": "no GPU 'B200' (node 'local': driver not loaded)"
    }
    assert reasons(offer(text + 'kind = "mig"\nmig_profile = "1g.10gb"', node(gpu()))) == {
        "s": "no MIG instance 1g.10gb exists"
    }
    assert reasons(offer(text + 'kind = "exclusive"', node(gpu(mig_enabled=True)))) == {
        "s": "every GPU is in MIG mode"
    }


def test_model_words_do_not_take_in_longer_names(offer) -> None:
    text = '[[slice]]\nname = "s"\nkind = "exclusive"\nmodel = "{}"'
    inventory = node(gpu(0, L40S, 48 * GIB))
    assert names(offer(text.format("l40s"), inventory)) == ["s"]
    assert names(offer(text.format("L40"), inventory)) == []
    assert names(offer(text.format("L4"), inventory)) == []


def test_a_profile_outside_the_table_is_priced_by_its_name_and_memory(offer) -> None:
    catalogue = offer(
        "",
        node(
            gpu(0, "NVIDIA B200", 180 * GIB, mig_enabled=True), instance(0, 0, "2g.45gb", 90 * GIB)
        ),
    )
    two = catalogue.get("2g.45gb")
    assert two is not None and two.rate_u_per_hour == 3_250_000
