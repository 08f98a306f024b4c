"""Who of those that wait may have a slice now, and when the others can expect one. Pure, no I/O.

Requests come in their order. Who fits is offered a place; the first ones that do not fit are
*protected* (EASY backfill, as batch schedulers do it, for the first few instead of the first one):
a later, smaller request may pass only if it is over before the protected one's reservation time,
or takes nothing that one needs then. Where the ends of what runs are unknown there is no such
time; then small ones pass until the large one has lost patience, and from then on one device is
kept clear for it; where it lacks its host's RAM or processors, one host. What is reserved for
somebody now is theirs: nobody is protected against that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpuslice.fleet.slice_types import SliceType
from gpuslice.placement.fleets import (
    Rules,
    leases_in,
    with_claims,
    without_device,
    without_host,
    without_leases,
)
from gpuslice.placement.place import place
from gpuslice.placement.reserved import Keep, left_over
from gpuslice.placement.snapshot import FleetSnapshot, Placement
from gpuslice.wire import SliceKind

#: So many requests that do not fit are protected; those behind them wait for theirs to move up.
PROTECTED = 3


@dataclass(frozen=True)
class Waiting:
    """A request, in its place in line; times in UTC microseconds.

    ``longest_us``: it runs at most so long; None: nobody knows. ``impatient``: it has waited so
    long that nobody may pass it any more, even where no reservation time is known. ``keeps``: what
    is kept for others now and in the time to come.
    """

    request_id: str
    slice_type: SliceType
    longest_us: int | None = None
    impatient: bool = False
    keeps: tuple[Keep, ...] = ()


@dataclass(frozen=True)
class Outlook:
    """What a request may expect.

    ``placement``: it may start now. ``reserved_us``: it starts by then at the latest, as far as
    the ends that are certain go. ``expected_us``: a guess from how long others stay; None: nobody
    can know.
    """

    request_id: str
    placement: Placement | None
    reserved_us: int | None
    expected_us: int | None


def outlooks(
    waiting: Sequence[Waiting],
    fleet: FleetSnapshot,
    *,
    ends: Mapping[str, int],
    guesses: Mapping[str, int],
    stays: Mapping[str, int],
    rules: Rules,
    now: int,
) -> list[Outlook]:
    """The outlook of every request, in the order given.

    Args:
        waiting: In the order in which they are to be served.
        fleet: As it is now, with the claims of all live leases.
        ends: When leases end at the latest, by lease; who is missing may stay for ever.
        guesses: When leases will probably end, for all of which anything is known.
        stays: How long a slice of a type is usually kept, by its name.
    """
    likely = _expected(waiting, fleet, guesses, stays, rules, now)
    line = in_turn(waiting, fleet, ends=ends, rules=rules, now=now)
    return [
        Outlook(one.request_id, placement, at, now if placement is not None else expected)
        for one, (placement, at), expected in zip(waiting, line.found, likely, strict=True)
    ]


@dataclass(frozen=True)
class Served:
    """What those who wait leave to one who comes after them.

    ``found``: for each of them a place that may be had now, or None; and when there is one.
    ``fleet``: with those in it who have a place. ``protected``: whom nobody may delay, and when
    each starts at the latest, if that is known.
    """

    found: tuple[tuple[Placement | None, int | None], ...]
    fleet: FleetSnapshot
    ends: Mapping[str, int]
    protected: tuple[tuple[Waiting, int | None], ...]

    def place(self, last: Waiting, rules: Rules, now: int) -> Placement | None:
        """Where somebody could start now as the last in line; None: that would delay others, or
        there is no room."""
        return _may_start(last, self.fleet, self.ends, self.protected, rules, now)

    def certain_us(self) -> int | None:
        """When the first of the protected starts whose time is known."""
        return min((at for _, at in self.protected if at is not None), default=None)


def in_turn(
    waiting: Sequence[Waiting], fleet: FleetSnapshot, *, ends: Mapping[str, int], rules: Rules,
    now: int,
) -> Served:  # fmt: skip
    """Serve the line as far as it goes now; arguments as of `outlooks`."""
    protected: list[tuple[Waiting, int | None]] = []
    known = dict(ends)
    found: list[tuple[Placement | None, int | None]] = []
    for one in waiting:
        placement = _may_start(one, fleet, known, protected, rules, now)
        if placement is not None:
            fleet = with_claims(fleet, placement)
            if one.longest_us is not None:
                known[one.request_id] = now + one.longest_us
            found.append((placement, now))
            continue
        at = _earliest(one, fleet, known, rules, now)
        if len(protected) < PROTECTED:
            protected.append((one, at))
        found.append((None, at))
    return Served(tuple(found), fleet, known, tuple(protected))


def earliest(
    wanted: SliceType, fleet: FleetSnapshot, ends: Mapping[str, int], rules: Rules, now: int,
    *, keeps: Sequence[Keep] = (), longest_us: int | None = None,
) -> int | None:  # fmt: skip
    """When a slice of this type has a place, if every lease stays until its end; None: unknown.

    Args:
        keeps: What is kept for others, and when.
        longest_us: It runs at most so long; None: nobody knows.
    """
    gone: set[str] = set()
    # Room comes when a lease ends, and when what was kept for others no longer is.
    moments = [(now, ""), *((max(now, at), lease_id) for lease_id, at in ends.items())]
    moments += [(keep.til_us, "") for keep in keeps if keep.til_us > now]
    for at, lease_id in sorted(moments):
        gone.add(lease_id)
        then = without_leases(fleet, gone)
        # What is left over is never more: where the whole has no room, that has none.
        if _place(then, wanted, rules) is None:
            continue
        if not keeps:
            return at
        then = left_over(then, keeps, rules, at=at, longest_us=longest_us)
        if _place(then, wanted, rules) is not None:
            return at
    return None


def _earliest(
    one: Waiting, fleet: FleetSnapshot, ends: Mapping[str, int], rules: Rules, now: int
) -> int | None:
    return earliest(
        one.slice_type, fleet, ends, rules, now, keeps=one.keeps, longest_us=one.longest_us
    )


# --- passing ----------------------------------------------------------------------------------


def _may_start(
    one: Waiting,
    fleet: FleetSnapshot,
    ends: Mapping[str, int],
    protected: Sequence[tuple[Waiting, int | None]],
    rules: Rules,
    now: int,
) -> Placement | None:
    """Where it may start now without delaying anybody who is protected."""
    open_to_it = left_over(fleet, one.keeps, rules, at=now, longest_us=one.longest_us)
    protected = [pair for pair in protected if not _kept_for(one, pair[0], fleet, now)]
    for large, at in protected:
        if at is None and large.impatient:
            device = _kept_clear(large.slice_type, fleet, rules)
            if device is not None:
                open_to_it = without_device(open_to_it, device)
            else:
                host = _host_kept_clear(large.slice_type, fleet, rules)
                open_to_it = without_host(open_to_it, host)
    over_us = None if one.longest_us is None else now + one.longest_us
    after = dict(ends) | ({one.request_id: over_us} if over_us is not None else {})
    # What best fit prefers may be what somebody else waits for: then the next best.
    while (placement := _place(open_to_it, one.slice_type, rules, one.request_id)) is not None:
        taken = with_claims(fleet, placement)
        if not any(
            _delays(taken, after, over_us, large, at, rules, now) for large, at in protected
        ):
            return placement
        if placement.device_uuid is None:
            return None
        open_to_it = without_device(open_to_it, (placement.node_id, placement.device_uuid))
    return None


def _kept_for(one: Waiting, large: Waiting, fleet: FleetSnapshot, now: int) -> bool:
    """Whether what it takes is kept from ``large`` now, and for its own people."""
    there = leases_in(fleet)
    return any(
        one.request_id in keep.members
        and keep.start_us <= now < keep.til_us
        and len(keep.members & there) < keep.count
        for keep in large.keeps
    )


def _delays(
    taken: FleetSnapshot, ends: Mapping[str, int], over_us: int | None, large: Waiting,
    at: int | None, rules: Rules, now: int,
) -> bool:  # fmt: skip
    """Whether a lease that has been added, over at ``over_us``, keeps ``large`` waiting longer."""
    if at is None or (over_us is not None and over_us <= at):
        return False
    then = _earliest(large, taken, ends, rules, now)
    return then is None or then > at


def _kept_clear(wanted: SliceType, fleet: FleetSnapshot, rules: Rules) -> tuple[str, str] | None:
    """The device that will be clear for it with the fewest ends to wait for."""
    if wanted.kind is SliceKind.CPU:
        return None
    best: tuple[int, str, str] | None = None
    for device in fleet.devices:
        alone = FleetSnapshot(
            tuple(host for host in fleet.hosts if host.node_id == device.node_id),
            (replace(device, claims=()),),
        )
        freed = without_leases(alone, {claim.lease_id for claim in device.claims})
        if _place(freed, wanted, rules) is None:
            continue
        rank = (len(device.claims), device.node_id, device.uuid)
        best = rank if best is None else min(best, rank)
    return None if best is None else best[1:]


def _host_kept_clear(wanted: SliceType, fleet: FleetSnapshot, rules: Rules) -> str | None:
    """The host that has room for it with the fewest ends to wait for, where no device's ends give
    it any: what it lacks is RAM or processors, which all that run there hold."""
    if _place(fleet, wanted, rules) is not None:
        # What keeps it waiting is none of these.
        return None
    best: tuple[int, str] | None = None
    for host in fleet.hosts:
        alone = FleetSnapshot(
            (replace(host, claims=()),),
            tuple(replace(one, claims=()) for one in fleet.devices if one.node_id == host.node_id),
        )
        if _place(alone, wanted, rules) is None:
            continue
        rank = (len(host.claims), host.node_id)
        best = rank if best is None else min(best, rank)
    return None if best is None else best[1]


def _place(
    fleet: FleetSnapshot, wanted: SliceType, rules: Rules, lease_id: str = ""
) -> Placement | None:
    found = place(
        fleet, wanted, reserve_bytes=rules.reserve_bytes, ceilings=rules.ceilings,
        lease_id=lease_id,
    )  # fmt: skip
    return found if isinstance(found, Placement) else None


# --- guessing ---------------------------------------------------------------------------------


def _expected(
    waiting: Sequence[Waiting],
    fleet: FleetSnapshot,
    guesses: Mapping[str, int],
    stays: Mapping[str, int],
    rules: Rules,
    now: int,
) -> list[int | None]:
    """When each will probably start if all are served strictly in turn.

    A slice that is handed on later counts as taken from now on, so a guess is rather too late
    than too early.
    """
    ends = dict(guesses)
    found: list[int | None] = []
    for one in waiting:
        at = _earliest(one, fleet, ends, rules, now)
        found.append(at)
        if at is None:
            continue
        gone = {lease_id for lease_id, end in ends.items() if end <= at}
        then = left_over(
            without_leases(fleet, gone), one.keeps, rules, at=at, longest_us=one.longest_us
        )
        placement = _place(then, one.slice_type, rules, one.request_id)
        if placement is None:
            continue
        fleet = with_claims(fleet, placement)
        stay = stays.get(one.slice_type.name, one.longest_us)
        if stay is not None:
            ends[one.request_id] = at + stay
    return found
