"""What is left of a fleet for those whom a reservation is not for, and who stands in its way. Pure.

What is reserved is set aside by claims of leases that do not exist, placed like any lease. So
grants, offers and the queue, which place on what `left_over` gives, all see the same smaller
fleet. Setting aside takes no more than there is: what others hold is theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpuslice.fleet.slice_types import SliceType
from gpuslice.placement.fleets import (
    Rules,
    leases_in,
    only_at,
    put_back,
    with_claims,
    without_leases,
)
from gpuslice.placement.place import place
from gpuslice.placement.snapshot import FleetSnapshot, Placement
from gpuslice.wire import SliceKind

#: What the id of a lease begins with that only sets something aside.
PHANTOM = "reserved:"


@dataclass(frozen=True)
class Keep:
    """So many slices of a type for some people, from one moment to another (UTC microseconds).

    ``lead_us``: so long before it begins, whoever else would take them needs an end before that.
    ``slack_us``: so long a lease may wait after its grant until it begins to run.
    ``members``: leases (and requests) of those people for this type, which count towards it.
    """

    key: str
    slice_type: SliceType
    count: int
    start_us: int
    til_us: int
    lead_us: int = 0
    slack_us: int = 0
    members: frozenset[str] = frozenset()

    def binds(self, at: int, longest_us: int | None) -> bool:
        """Whether it is in the way of a lease that is granted at ``at`` and runs at most so long.

        None: nobody knows how long.
        """
        if not self.start_us - self.lead_us <= at < self.til_us:
            return False
        return longest_us is None or at + self.slack_us + longest_us > self.start_us


def left_over(
    fleet: FleetSnapshot, keeps: Sequence[Keep], rules: Rules, *, at: int, longest_us: int | None
) -> FleetSnapshot:
    """The fleet as it is at ``at`` for a lease that runs at most so long (None: unknown).

    Args:
        keeps: Only those that are not for whoever asks.
    """
    return set_aside(fleet, [keep for keep in keeps if keep.binds(at, longest_us)], rules)


def set_aside(fleet: FleetSnapshot, keeps: Iterable[Keep], rules: Rules) -> FleetSnapshot:
    """The fleet less what is to be kept and not yet held by its members, as far as there is room.

    The largest slices first; the same fleet gives the same answer.
    """
    there = leases_in(fleet)
    for keep in _in_order(keeps):
        held = keep.members & there
        there -= set(sorted(held)[: keep.count])
        fleet, _ = _fill(fleet, keep, keep.count - len(held), rules)
    return fleet


def in_the_way(
    fleet: FleetSnapshot, keeps: Iterable[Keep], may_go: Mapping[str, Sequence[str]], rules: Rules
) -> dict[str, list[str]]:
    """Which leases would have to end so that everything can be set aside, by keep.

    Only as many as are needed: on the devices where the fewest end for what is gained, of those
    the first in the order given that suffice. What cannot be had even so is left to the chance
    that something becomes free.

    Args:
        fleet: As it will be when all keeps hold.
        may_go: By keep, the leases that may be ended, those to be ended first first. A keep that
            is missing ends nothing.
    """
    there = leases_in(fleet)
    found: dict[str, list[str]] = {}
    for keep in _in_order(keeps):
        held = keep.members & there
        there -= set(sorted(held)[: keep.count])
        before, wanted = fleet, keep.count - len(held)
        fleet, missing = _fill(before, keep, wanted, rules)
        ended: list[str] = []
        candidates = [one for one in may_go.get(keep.key, ()) if one not in held]
        touched: set[_Place] = set()
        while missing > 0:
            best = _best_room(fleet, keep, missing, candidates, touched, rules)
            if best is None:
                break
            ended += best.leases
            touched.add(best.where)
            candidates = [one for one in candidates if one not in best.leases]
            fleet = without_leases(fleet, set(best.leases))
            fleet, missing = _fill(fleet, keep, missing, rules)
        if ended:
            rank = {lease_id: number for number, lease_id in enumerate(may_go[keep.key])}
            ended.sort(key=rank.__getitem__)
            ended = _needed(before, keep, wanted, missing, ended, rules)
            fleet, _ = _fill(without_leases(before, set(ended)), keep, wanted, rules)
            found[keep.key] = ended
    return found


# --- setting aside ----------------------------------------------------------------------------


def _in_order(keeps: Iterable[Keep]) -> list[Keep]:
    """What needs most room first: small ones find a place between large ones, not the reverse."""
    return sorted(keeps, key=lambda keep: (-keep.slice_type.gpu_milli, keep.start_us, keep.key))


def _fill(fleet: FleetSnapshot, keep: Keep, count: int, rules: Rules) -> tuple[FleetSnapshot, int]:
    """The fleet with up to ``count`` more set aside, and how many had no room."""
    missing = max(0, count)
    while missing > 0:
        first = _place(fleet, keep, rules, missing)
        if first is None:
            break
        # Best fit stays on a device until it is full, so the others need not be looked at.
        part = only_at(fleet, first.node_id, first.device_uuid)
        more: Placement | None = first
        while more is not None:
            part = with_claims(part, more)
            missing -= 1
            more = _place(part, keep, rules, missing) if missing else None
        fleet = put_back(fleet, part)
    return fleet, missing


def _place(fleet: FleetSnapshot, keep: Keep, rules: Rules, number: int) -> Placement | None:
    found = place(
        fleet, keep.slice_type, reserve_bytes=rules.reserve_bytes, ceilings=rules.ceilings,
        lease_id=f"{PHANTOM}{keep.key}:{number}",
    )  # fmt: skip
    return found if isinstance(found, Placement) else None


# --- making room ------------------------------------------------------------------------------

#: A device, by node and UUID; a host alone has none.
_Place = tuple[str, str | None]


@dataclass(frozen=True)
class _Room:
    """Leases of one device (or host), without which so many more have room there."""

    where: _Place
    leases: tuple[str, ...]
    gained: int


def _best_room(
    fleet: FleetSnapshot, keep: Keep, missing: int, candidates: Sequence[str],
    touched: Collection[_Place], rules: Rules,
) -> _Room | None:  # fmt: skip
    """Where the fewest leases end for what is gained; places that are touched already first."""
    rank = {lease_id: number for number, lease_id in enumerate(candidates)}
    best: tuple[tuple[bool, float, int], _Room] | None = None
    for where, part in _parts(fleet, keep.slice_type.kind):
        room = _room(where, part, keep, missing, rank, rules)
        if room is None:
            continue
        cost = len(room.leases) / room.gained
        key = (where not in touched, cost, min(rank[one] for one in room.leases))
        if best is None or key < best[0]:
            best = (key, room)
    return None if best is None else best[1]


def _needed(
    fleet: FleetSnapshot, keep: Keep, wanted: int, missing: int, ended: list[str], rules: Rules
) -> list[str]:  # fmt: skip
    """Those of the ended that cannot stay: a later one may have made more room than was missing."""
    for lease_id in reversed(tuple(ended)):
        fewer = [one for one in ended if one != lease_id]
        if _fill(without_leases(fleet, set(fewer)), keep, wanted, rules)[1] <= missing:
            ended = fewer
    return ended


def _parts(fleet: FleetSnapshot, kind: SliceKind) -> list[tuple[_Place, FleetSnapshot]]:
    if kind is SliceKind.CPU:
        return [((host.node_id, None), FleetSnapshot((host,), ())) for host in fleet.hosts]
    hosts = {host.node_id: host for host in fleet.hosts}
    return [
        ((device.node_id, device.uuid), FleetSnapshot((hosts[device.node_id],), (device,)))
        for device in fleet.devices
        if device.node_id in hosts
    ]


def _room(
    where: _Place, part: FleetSnapshot, keep: Keep, missing: int, rank: dict[str, int],
    rules: Rules,
) -> _Room | None:  # fmt: skip
    """The first of the candidates here without which one more fits, and none that need not go."""
    claims = part.devices[0].claims if part.devices else part.hosts[0].claims
    here = sorted((c.lease_id for c in claims if c.lease_id in rank), key=lambda one: rank[one])
    going: list[str] = []
    for lease_id in here:
        going.append(lease_id)
        if _place(without_leases(part, set(going)), keep, rules, missing) is not None:
            break
    else:
        return None
    for lease_id in reversed(tuple(going)):
        fewer = [one for one in going if one != lease_id]
        if _place(without_leases(part, set(fewer)), keep, rules, missing) is not None:
            going = fewer
    _, left = _fill(without_leases(part, set(going)), keep, missing, rules)
    return _Room(where, tuple(going), missing - left)


def empty(fleet: FleetSnapshot) -> FleetSnapshot:
    """The fleet if nobody held anything: what can be promised for later."""
    return FleetSnapshot(
        tuple(replace(host, claims=()) for host in fleet.hosts),
        tuple(replace(device, claims=()) for device in fleet.devices),
    )


def missing(fleet: FleetSnapshot, keeps: Iterable[Keep], rules: Rules) -> int:
    """How many of what is to be kept have no room in this fleet."""
    short = 0
    for keep in _in_order(keeps):
        fleet, more = _fill(fleet, keep, keep.count, rules)
        short += more
    return short
