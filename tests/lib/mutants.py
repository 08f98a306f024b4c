"""Bugs to plant in the product, one function each; the lease model must catch every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gpuslice.broker import broker as broker_module
from gpuslice.broker import fleetcache, grant, lifecycle, reconcile, reconciler
from gpuslice.ledger import billing, segments
from gpuslice.units import cost_u

Plant = Callable[[pytest.MonkeyPatch], None]


def _round_each_interval(patch: pytest.MonkeyPatch) -> None:
    """Rounds each segment by itself instead of cumulatively."""
    real = segments.pieces

    def pieces(**given: Any) -> list[segments.Piece]:
        rates = {rate.price_id: rate.rate_u_per_hour for rate in given["known"]}
        return [
            replace(p, amount_u=cost_u(rates[p.price_id], p.til_us - p.from_us))
            for p in real(**given)
        ]

    patch.setattr(segments, "pieces", pieces)


def _bill_to_now(patch: pytest.MonkeyPatch) -> None:
    """Settles to the service's clock instead of the engine's end."""
    real = lifecycle.settle

    def settle(session: Any, lease_id: str, finished_us: Any, *rest: Any, now: int) -> None:
        real(session, lease_id, now if finished_us else None, *rest, now=now)

    patch.setattr(lifecycle, "settle", settle)


def _ignore_liveness(patch: pytest.MonkeyPatch) -> None:
    """A server whose end is unknown is billed to now, not to where it was last seen."""
    real = lifecycle.settle

    def settle(session: Any, lease_id: str, finished_us: Any, *rest: Any, now: int) -> None:
        real(session, lease_id, finished_us or now, *rest, now=now)

    patch.setattr(lifecycle, "settle", settle)


def _skip_granted(patch: pytest.MonkeyPatch) -> None:
    """The reconciler overlooks granted leases whose server runs."""
    patch.setattr(reconcile, "_granted", lambda lease, report, now: [reconcile.Wait()])


def _drop_stop_intent(patch: pytest.MonkeyPatch) -> None:
    """A stop is answered but not committed."""
    patch.setattr(
        lifecycle,
        "request_stop",
        lambda session, lease_id, *_, now: lifecycle.get(session, lease_id),
    )


def _start_from_own_clock(patch: pytest.MonkeyPatch) -> None:
    """The start is the service's clock, not the engine's."""
    real = lifecycle._run
    patch.setattr(
        lifecycle,
        "_run",
        lambda session, lease, started_us, boot, now: real(session, lease, now + 1, boot, now),
    )


def _trust_old_lists(patch: pytest.MonkeyPatch) -> None:
    """Decides with a list that was taken before the lease changed."""
    real = reconcile.decide
    patch.setattr(
        reconcile,
        "decide",
        lambda lease, report, *, asked_us, now, timing: real(
            lease, report, asked_us=1 << 62, now=now, timing=timing
        ),
    )


def _free_at_settlement(patch: pytest.MonkeyPatch) -> None:
    """Frees the slice when its bill is final, before the node has cleared it."""
    real = reconciler._apply

    def apply(session: Any, lease_id: str, decision: Any, todo: Any, *rest: Any) -> None:
        real(session, lease_id, decision, todo, *rest)
        if isinstance(decision, reconcile.Settle):
            grant.release_claims(session, lease_id)

    patch.setattr(reconciler, "_apply", apply)


def _no_fence(patch: pytest.MonkeyPatch) -> None:
    """Cancels a lease that has not started in time without fencing it."""

    async def fence(self: Any, lease_ids: list[str]) -> None:
        for lease_id in lease_ids:
            await self._write(lambda s, now: lifecycle.cancel(s, lease_id, None, now=now))  # noqa: B023

    patch.setattr(broker_module.Broker, "_fence", fence)


def _leak_hold(patch: pytest.MonkeyPatch) -> None:
    """Never gives reserved money back."""
    patch.setattr(billing, "close_hold", lambda session, lease, *, now: None)


def _user_pays_for_stopping(patch: pytest.MonkeyPatch) -> None:
    """Bills the time after the stop request to the user."""
    real = segments.pieces
    patch.setattr(
        segments, "pieces", lambda **given: real(**(given | {"payers": segments.Payers()}))
    )


def _two_tenants(patch: pytest.MonkeyPatch) -> None:
    """Places on a device without looking at who is there."""
    real = fleetcache.FleetCache.look

    def blind(self: Any, session: Any, reserve: int) -> Any:
        seen = real(self, session, reserve)
        return replace(seen, nodes=tuple(map(_emptied, seen.nodes)))

    patch.setattr(fleetcache.FleetCache, "look", blind)


def _emptied(node: Any) -> Any:
    return replace(node, devices=tuple(replace(one, claims=()) for one in node.devices))


def _pay_twice(patch: pytest.MonkeyPatch) -> None:
    """Forgets up to where a lease is paid after a beat."""
    real = billing.bill

    def bill(session: Any, due: Any, **given: Any) -> None:
        paid = [lease.billed_us for lease, _ in due]
        real(session, due, **given)
        if not given["final"]:
            for (lease, _), before in zip(due, paid, strict=True):
                lease.billed_us = before

    patch.setattr(billing, "bill", bill)


def _node_silence_is_death(patch: pytest.MonkeyPatch) -> None:
    """Takes a node that does not answer for one on which nothing runs."""
    real = broker_module.Broker.reconcile

    async def reconcile_(self: Any) -> None:
        try:
            await real(self)
        except broker_module.NodeUnavailable:
            views, _ = await self.leases(None, True, 100, None)
            for view in views:
                if view.state in ("running", "stopping"):
                    await self._write(
                        lambda s, now, i=view.lease_id: lifecycle.settle(
                            s, i, None, None, "gone", self._billing, now=now
                        )
                    )

    patch.setattr(broker_module.Broker, "reconcile", reconcile_)


MUTANTS: dict[str, Plant] = {
    plant.__name__.removeprefix("_"): plant
    for plant in (
        _round_each_interval,
        _bill_to_now,
        _ignore_liveness,
        _skip_granted,
        _drop_stop_intent,
        _start_from_own_clock,
        _trust_old_lists,
        _free_at_settlement,
        _no_fence,
        _leak_hold,
        _user_pays_for_stopping,
        _two_tenants,
        _pay_twice,
        _node_silence_is_death,
    )
}
