"""Whatever is granted and released in whatever order: nothing is ever leased twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuslice.fleet import SliceType
from gpuslice.fleet.mig import profile_compute
from gpuslice.placement import (
    Claim,
    DeviceSnapshot,
    FleetSnapshot,
    HostSnapshot,
    MigInstance,
    NodeAnswers,
    NodeSnapshot,
    NoPlace,
    Placement,
    capacity,
    host_overlaps,
    overlaps,
    place,
)
from gpuslice.placement.place import (
    _REASONS,
    _Fit,
    _fit,
    _free_ram,
    _host_refusal,
    _Order,
    _placement,
)
from gpuslice.units import GIB
from gpuslice.wire import DeviceState, Enforcement, SliceKind

RESERVE = GIB
RAM = GIB
MODELS = {"NVIDIA H100 80GB HBM3": 80, "NVIDIA A30": 24, "NVIDIA L4": 23}
PROFILES = {
    "NVIDIA H100 80GB HBM3": [
        ("1g.10gb", 1, [0, 1, 2, 3, 4, 5, 6]),
        ("1g.20gb", 2, [0, 2, 4, 6]),
        ("2g.20gb", 2, [0, 2, 4]),
        ("3g.40gb", 4, [0, 4]),
        ("4g.40gb", 4, [0, 4]),
        ("7g.80gb", 8, [0]),
    ],
    "NVIDIA A30": [("1g.6gb", 1, [0, 1, 2, 3]), ("2g.12gb", 2, [0, 2]), ("4g.24gb", 4, [0])],
}


def offering(name: str, kind: SliceKind, **more) -> SliceType:
    fields = {
        "title": "", "model": None, "memory_bytes": None, "share_milli": None, "mig_profile": None,
        "cpu_milli": 0, "ram_bytes": RAM, "rate_u_per_hour": 0,
        "minimum_enforcement": Enforcement.WATCHDOG,
    }  # fmt: skip
    return SliceType(name=name, kind=kind, **(fields | more))


TYPES = [
    offering("cpu", SliceKind.CPU, cpu_milli=1500),
    offering("whole", SliceKind.EXCLUSIVE),
    offering("whole-h100", SliceKind.EXCLUSIVE, model="H100", cpu_milli=500),
    offering("half", SliceKind.SHARED, share_milli=500),
    offering("third", SliceKind.SHARED, share_milli=333),
    offering("quarter", SliceKind.SHARED, share_milli=250),
    offering("all", SliceKind.SHARED, share_milli=1000),
    # Three of these are all of an A30 and leave no reserve.
    offering("8-gib", SliceKind.SHARED, memory_bytes=8 * GIB),
    # All of an L4: without the reserve it would fit.
    offering("23-gib", SliceKind.SHARED, memory_bytes=23 * GIB),
    offering("busy", SliceKind.SHARED, memory_bytes=GIB, share_milli=600),
    offering("22-gib", SliceKind.SHARED, memory_bytes=22 * GIB, share_milli=100),
    *(
        offering(profile, SliceKind.MIG, mig_profile=profile)
        for profiles in PROFILES.values()
        for profile, _, _ in profiles
    ),
]
STATES = st.sampled_from([*[DeviceState.OK] * 10, *DeviceState])


@st.composite
def instances(draw: st.DrawFn, model: str, uuid: str) -> tuple[MigInstance, ...]:
    """MIG instances, overlapping ones too: a listing made while the layout changes."""
    known = PROFILES[model]
    kinds = draw(st.lists(st.sampled_from(known), min_size=1, max_size=2))
    found = []
    for number in range(draw(st.integers(1, 7))):
        name, size, starts = draw(st.sampled_from(kinds))
        start = draw(st.sampled_from(starts))
        compute = draw(st.sampled_from([None, profile_compute(name)]))
        state = draw(STATES)
        found.append(MigInstance(f"MIG-{uuid}-{number}", name, start, size, compute, GIB, state))
    return tuple(found)


@st.composite
def fleets(draw: st.DrawFn) -> FleetSnapshot:
    """One or two hosts, few GPUs: so that the steps of one example meet on the same device."""
    hosts = tuple(
        HostSnapshot(f"n{n}", 4000, draw(st.sampled_from([64, 64, 64, 5, 2, 1])) * GIB, GIB, 0)
        for n in range(draw(st.integers(1, 2)))
    )
    devices = []
    # Few models, so that equal devices, and ties between them, are common.
    models = draw(st.lists(st.sampled_from(sorted(MODELS)), min_size=1, max_size=2))
    for number in range(draw(st.sampled_from([1, 1, 2, 4]))):
        model = draw(st.sampled_from(models))
        uuid = f"GPU-{number}"
        has_mig = model in PROFILES and draw(st.booleans())
        devices.append(
            DeviceSnapshot(
                node_id=f"n{draw(st.sampled_from([0, 0, 1]))}",
                uuid=uuid,
                model=model,
                memory_bytes=draw(st.sampled_from([*[MODELS[model] * GIB] * 9, None])),
                state=draw(STATES),
                version=0,
                mig_enabled=has_mig,
                simulated=draw(st.booleans()),
                share_enforcement=draw(st.sampled_from([Enforcement.CGROUP, Enforcement.ADVISORY])),
                instances=draw(instances(model, uuid)) if has_mig else (),
            )
        )
    return FleetSnapshot(tuple(replace(h, state=draw(STATES)) for h in hosts), tuple(devices))


def kinds_for(fleet: FleetSnapshot) -> st.SearchStrategy[SliceType]:
    """Mostly types that some device of this fleet could carry, MIG ones by what exists there."""
    profiles = {i.profile for device in fleet.devices for i in device.instances}
    likely = [kind for kind in TYPES if kind.mig_profile in profiles]
    if any(not device.mig_enabled for device in fleet.devices):
        likely += [kind for kind in TYPES if kind.mig_profile is None]
    return st.sampled_from(likely * 4 + TYPES)


def steps_for(fleet: FleetSnapshot) -> st.SearchStrategy[list]:
    kinds = kinds_for(fleet)
    return st.lists(
        st.one_of(
            kinds,
            kinds,
            st.integers(0, 30),  # release the lease at this position
            st.tuples(st.integers(0, 3), STATES),  # a device changes its state
            # MIG mode is switched behind our back, while leases live
            st.tuples(st.integers(0, 3), st.none()),
        ),
        min_size=4,
        max_size=30,
    )


CEILINGS = {"n0": Enforcement.EXCLUSIVE, "n1": Enforcement.ADVISORY}


def put(fleet: FleetSnapshot, kind: SliceType, lease: str = "probe"):
    return place(fleet, kind, reserve_bytes=RESERVE, ceilings=CEILINGS, lease_id=lease)


def with_claims(fleet: FleetSnapshot, found: Placement) -> FleetSnapshot:
    hosts = tuple(
        replace(h, claims=(*h.claims, found.host_claim)) if h.node_id == found.node_id else h
        for h in fleet.hosts
    )
    devices = tuple(
        replace(d, claims=(*d.claims, found.device_claim), version=d.version + 1)
        if found.device_claim is not None and d.uuid == found.device_uuid
        else d
        for d in fleet.devices
    )
    return FleetSnapshot(hosts, devices)


def without_claims(fleet: FleetSnapshot, lease: str) -> FleetSnapshot:
    def kept(claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return tuple(claim for claim in claims if claim.lease_id != lease)

    return FleetSnapshot(
        tuple(replace(h, claims=kept(h.claims)) for h in fleet.hosts),
        tuple(replace(d, claims=kept(d.claims)) for d in fleet.devices),
    )


def with_change(fleet: FleetSnapshot, number: int, state: DeviceState | None) -> FleetSnapshot:
    """A device in another state, or with MIG mode switched if ``state`` is None."""

    def changed(device: DeviceSnapshot) -> DeviceSnapshot:
        if state is None:
            return replace(device, mig_enabled=not device.mig_enabled)
        return replace(device, state=state)

    devices = [changed(d) if index == number else d for index, d in enumerate(fleet.devices)]
    return replace(fleet, devices=tuple(devices))


def check_by_counting(fleet: FleetSnapshot) -> None:
    """No oversubscription, counted here again: neither with place() nor with overlaps()."""
    for device in fleet.devices:
        kinds = Counter(
            "whole" if c.whole else "mig" if c.mig_uuid else "shared" for c in device.claims
        )
        assert len(kinds) <= 1
        assert kinds["whole"] <= 1
        if kinds["shared"]:
            assert device.memory_bytes is not None
            assert sum(c.memory_bytes for c in device.claims) + RESERVE <= device.memory_bytes
            assert sum(c.share_milli for c in device.claims) <= 1000
        painted: list[int] = []
        compute = 0
        profiles = {i.uuid: i.profile for i in device.instances}
        for claim in device.claims:
            if claim.mig_uuid is not None:
                assert claim.mig_start is not None and claim.mig_size is not None
                painted += range(claim.mig_start, claim.mig_start + claim.mig_size)
                compute += int(profiles[claim.mig_uuid][0])
        assert len(painted) == len(set(painted))
        assert compute <= (4 if "A30" in device.model else 7)
    for host in fleet.hosts:
        ram = sum(c.ram_bytes for c in host.claims)
        assert ram == 0 or ram + host.reserve_ram <= host.ram_bytes
        assert sum(c.cpu_milli for c in host.claims) <= host.cpu_milli


def check_the_grant(fleet: FleetSnapshot, kind: SliceType, found: Placement) -> None:
    """What was chosen is healthy, of the right kind, and carries the snapshot's versions."""
    host = next(h for h in fleet.hosts if h.node_id == found.node_id)
    assert host.state is DeviceState.OK
    assert found.host_version == host.version
    if kind.kind is SliceKind.CPU:
        assert found.device_uuid is None
        return
    device = next(d for d in fleet.devices if d.uuid == found.device_uuid)
    assert device.node_id == found.node_id
    assert device.state is DeviceState.OK
    assert found.device_version == device.version
    assert kind.suits_model(device.model)
    assert device.mig_enabled == (kind.kind is SliceKind.MIG)
    if kind.kind is SliceKind.MIG:
        instance = next(i for i in device.instances if i.uuid == found.mig_uuid)
        assert (instance.state, instance.profile) == (DeviceState.OK, kind.mig_profile)
    if kind.kind is SliceKind.SHARED and not device.simulated:
        assert found.enforcement >= kind.minimum_enforcement
    assert found.enforcement <= CEILINGS[found.node_id]


@settings(max_examples=300, deadline=None)
@given(fleet=fleets(), data=st.data())
def test_no_sequence_of_grants_and_releases_oversubscribes(fleet, data) -> None:
    live: list[str] = []
    for number, step in enumerate(data.draw(steps_for(fleet))):
        match step:
            case SliceType():
                found = put(fleet, step, f"lease-{number}")
                if isinstance(found, Placement):
                    check_the_grant(fleet, step, found)
                    fleet = with_claims(fleet, found)
                    live.append(f"lease-{number}")
            case int():
                if live:
                    fleet = without_claims(fleet, live.pop(step % len(live)))
            case (device, state):
                fleet = with_change(fleet, device, state)
        check_by_counting(fleet)
        for device in fleet.devices:
            assert overlaps(device, device.claims, reserve_bytes=RESERVE) == []
        for host in fleet.hosts:
            assert host_overlaps(host, host.claims) == []


@settings(max_examples=300, deadline=None)
@given(model=st.sampled_from(sorted(PROFILES)), data=st.data())
def test_a_mig_slice_is_granted_exactly_when_one_is_free(model: str, data) -> None:
    listed = data.draw(instances(model, "0"))
    gpu = DeviceSnapshot(
        "n0", "GPU-0", model, MODELS[model] * GIB, DeviceState.OK, 0,
        mig_enabled=True, instances=listed,
    )  # fmt: skip
    fleet = FleetSnapshot((HostSnapshot("n0", 4000, 64 * GIB, GIB, 0),), (gpu,))
    budget = 4 if model == "NVIDIA A30" else 7
    kinds = [kind for kind in TYPES if kind.mig_profile in {i.profile for i in listed}]
    live: list[MigInstance] = []
    for number, kind in enumerate(data.draw(st.lists(st.sampled_from(kinds), max_size=8))):
        possible = {
            one.uuid
            for one in listed
            if one.profile == kind.mig_profile
            and one.state is DeviceState.OK
            and _slots(one).isdisjoint(slot for other in live for slot in _slots(other))
            and sum(int(other.profile[0]) for other in [*live, one]) <= budget
        }
        found = put(fleet, kind, f"lease-{number}")
        assert isinstance(found, Placement) == bool(possible)
        if isinstance(found, Placement):
            assert found.mig_uuid in possible
            live += [one for one in listed if one.uuid == found.mig_uuid]
            fleet = with_claims(fleet, found)


@settings(max_examples=200, deadline=None)
@given(model=st.sampled_from(sorted(MODELS)), data=st.data())
def test_a_share_is_granted_exactly_when_there_is_room(model: str, data) -> None:
    gpu = DeviceSnapshot(
        "n0", "GPU-0", model, MODELS[model] * GIB, DeviceState.OK, 0,
        share_enforcement=Enforcement.CGROUP,
    )  # fmt: skip
    fleet = FleetSnapshot((HostSnapshot("n0", 4000, 64 * GIB, GIB, 0),), (gpu,))
    room = MODELS[model] * GIB - RESERVE
    shares = [kind for kind in TYPES if kind.kind is SliceKind.SHARED]
    memory = milli = 0
    for number, kind in enumerate(data.draw(st.lists(st.sampled_from(shares), max_size=12))):
        asked = kind.share_milli or 0
        cap = kind.memory_bytes if kind.memory_bytes is not None else room * asked // 1000
        fits = memory + cap <= room and milli + asked <= 1000
        found = put(fleet, kind, f"lease-{number}")
        assert isinstance(found, Placement) == fits
        if isinstance(found, Placement):
            assert found.device_claim is not None
            assert found.device_claim.memory_bytes == cap
            memory, milli = memory + cap, milli + asked
            fleet = with_claims(fleet, found)


def _slots(instance: MigInstance) -> set[int]:
    assert instance.start is not None and instance.size is not None
    return set(range(instance.start, instance.start + instance.size))


@settings(max_examples=150, deadline=None)
@given(fleet=fleets(), data=st.data())
def test_what_is_released_can_be_granted_again(fleet, data) -> None:
    granted: list[tuple[SliceType, Placement]] = []
    for number, kind in enumerate(data.draw(st.lists(kinds_for(fleet), max_size=25))):
        found = put(fleet, kind, f"lease-{number}")
        if isinstance(found, Placement):
            granted.append((kind, found))
            fleet = with_claims(fleet, found)
    if granted:
        kind, old = data.draw(st.sampled_from(granted))
        again = put(without_claims(fleet, old.host_claim.lease_id), kind, "again")
        assert isinstance(again, Placement)
    for _, old in granted:
        fleet = without_claims(fleet, old.host_claim.lease_id)
    assert all(not part.claims for part in (*fleet.hosts, *fleet.devices))


@settings(max_examples=150, deadline=None)
@given(fleet=fleets(), data=st.data())
def test_the_order_of_rows_does_not_matter(fleet, data) -> None:
    *before, kind = data.draw(st.lists(kinds_for(fleet), min_size=1, max_size=10))
    for number, earlier in enumerate(before):
        found = put(fleet, earlier, f"lease-{number}")
        if isinstance(found, Placement):
            fleet = with_claims(fleet, found)
    shuffled = FleetSnapshot(
        fleet.hosts[::-1],
        tuple(
            replace(device, claims=device.claims[::-1], instances=device.instances[::-1])
            for device in reversed(fleet.devices)
        ),
    )
    assert put(fleet, kind) == put(shuffled, kind) == put(fleet, kind)


@settings(max_examples=200, deadline=None)
@given(fleet=fleets(), data=st.data())
def test_capacity_is_what_placing_finds(fleet, data) -> None:
    bare = fleet
    *before, kind = data.draw(st.lists(kinds_for(fleet), min_size=1, max_size=10))
    for number, earlier in enumerate(before):
        found = put(fleet, earlier, f"lease-{number}")
        if isinstance(found, Placement):
            fleet = with_claims(fleet, found)
    counted = capacity(fleet, kind, reserve_bytes=RESERVE, ceilings=CEILINGS)
    assert counted == (_fill(fleet, kind), _fill(bare, kind))


# --- asked node by node ----------------------------------------------------------------------


def full_scan(
    fleet: FleetSnapshot, kind: SliceType, ceilings: Mapping[str, Enforcement]
) -> Placement | NoPlace:
    """The reference: every device and every host is looked at, every time."""
    hosts = {host.node_id: host for host in fleet.hosts}
    refused: set[str] = set()
    fits: list[tuple[tuple, _Fit | None, HostSnapshot]] = []
    if kind.kind is SliceKind.CPU:
        for host in fleet.hosts:
            why = _host_refusal(host, kind)
            if why is None:
                fits.append(((_free_ram(host), host.node_id), None, host))
            else:
                refused.add(why)
    else:
        for device in fleet.devices:
            ceiling = ceilings.get(device.node_id, Enforcement.ADVISORY)
            fit = _fit(device, kind, RESERVE, ceiling)
            on = hosts.get(device.node_id)
            if isinstance(fit, str):
                refused.add(fit)
            elif on is None:
                refused.add("host-down")
            elif (why := _host_refusal(on, kind)) is not None:
                refused.add(why)
            else:
                order = _Order(*fit.order, _free_ram(on), device.node_id, device.uuid)
                fits.append((order, fit, on))
    if fits:
        _, fit, host = min(fits, key=lambda one: one[0])
        return _placement(fit, host, kind, ceilings, "")
    nothing = "host-down" if kind.kind is SliceKind.CPU else "no-such-device"
    slug = next((one for one in _REASONS if one in refused), nothing)
    return NoPlace(slug, _REASONS[slug])


@st.composite
def wide_fleets(draw: st.DrawFn) -> FleetSnapshot:
    """Some small fleets beside each other."""
    parts = [draw(fleets()) for _ in range(draw(st.integers(1, 4)))]
    return FleetSnapshot(
        tuple(
            replace(host, node_id=f"{number}{host.node_id}")
            for number, part in enumerate(parts) for host in part.hosts
        ),
        tuple(
            replace(device, node_id=f"{number}{device.node_id}", uuid=f"{number}{device.uuid}")
            for number, part in enumerate(parts) for device in part.devices
        ),
    )  # fmt: skip


def as_nodes(fleet: FleetSnapshot, before: list[NodeSnapshot]) -> list[NodeSnapshot]:
    """The fleet's nodes; one that has not changed stays the same object."""
    known = {node.node_id: node for node in before}
    hosts = {host.node_id: host for host in fleet.hosts}
    found = []
    for name in sorted({*hosts, *(device.node_id for device in fleet.devices)}):
        host = hosts.get(name)
        devices = tuple(device for device in fleet.devices if device.node_id == name)
        old = known.get(name)
        same = old is not None and (old.host, old.devices) == (host, devices)
        found.append(old if old is not None and same else NodeSnapshot(name, host, devices))
    return found


@settings(max_examples=200, deadline=None)
@given(fleet=wide_fleets(), data=st.data())
def test_asking_node_by_node_finds_what_a_full_scan_finds(fleet, data) -> None:
    """With one memory through grants, releases, sick devices and hosts, and other ceilings."""
    answers = NodeAnswers()
    nodes: list[NodeSnapshot] = []
    levels = st.sampled_from([Enforcement.EXCLUSIVE, Enforcement.ADVISORY])
    ceilings: dict[str, Enforcement] = {}
    live: list[str] = []
    # Few of them, so that the same is asked again after something has changed.
    kinds = data.draw(st.lists(kinds_for(fleet), min_size=1, max_size=2))
    for number in range(data.draw(st.integers(1, 15))):
        nodes = as_nodes(fleet, nodes)
        kind = data.draw(st.sampled_from(kinds))
        found = answers.place(nodes, kind, reserve_bytes=RESERVE, ceilings=ceilings)
        assert found == full_scan(fleet, kind, ceilings)
        assert found == place(fleet, kind, reserve_bytes=RESERVE, ceilings=ceilings)
        match data.draw(
            st.sampled_from(["grant", "grant", "release", "device", "host", "ceiling"])
        ):
            case "grant" if isinstance(found, Placement):
                taken = place(
                    fleet, kind, reserve_bytes=RESERVE, ceilings=ceilings, lease_id=f"l{number}"
                )
                fleet = with_claims(fleet, taken)
                live.append(f"l{number}")
            case "release" if live:
                fleet = without_claims(fleet, live.pop(data.draw(st.integers(0, 30)) % len(live)))
            case "device":
                at = data.draw(st.integers(0, len(fleet.devices) - 1))
                fleet = with_change(fleet, at, data.draw(st.one_of(STATES, st.none())))
            case "host":
                at = data.draw(st.integers(0, len(fleet.hosts) - 1))
                state = data.draw(STATES)
                hosts = [replace(h, state=state) if i == at else h
                         for i, h in enumerate(fleet.hosts)]  # fmt: skip
                fleet = replace(fleet, hosts=tuple(hosts))
            case "ceiling":
                ceilings = ceilings | {data.draw(st.sampled_from(nodes)).node_id: data.draw(levels)}


def _fill(fleet: FleetSnapshot, kind: SliceType) -> int:
    count = 0
    while isinstance(found := put(fleet, kind, f"fill-{count}"), Placement):
        fleet = with_claims(fleet, found)
        count += 1
    return count


@settings(max_examples=300, deadline=None)
@given(
    claims=st.lists(
        st.builds(
            Claim,
            lease_id=st.uuids().map(str),
            mig_uuid=st.uuids().map(str),
            mig_start=st.integers(0, 6),
            mig_size=st.sampled_from([1, 2]),
        ),
        max_size=4,
    )
)
def test_the_checker_agrees_with_painting_slots(claims: list[Claim]) -> None:
    gpu = DeviceSnapshot(
        "n0", "GPU-0", "NVIDIA H100 80GB HBM3", 80 * GIB, DeviceState.OK, 0, mig_enabled=True
    )
    slots = [
        s for c in claims for s in range(c.mig_start or 0, (c.mig_start or 0) + (c.mig_size or 0))
    ]
    assert (overlaps(gpu, claims) != []) == (len(slots) != len(set(slots)))
