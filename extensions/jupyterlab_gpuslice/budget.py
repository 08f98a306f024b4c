"""What the slice costs, from one answer of the service and the time since then; no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from gpuslice.units import SECOND_US, cost_u
from gpuslice.wire import LeaseState, LeaseView, Me, SliceKind, Use

#: So long after the service's last answer the cost is still counted on. Longer, and a price or a
#: stop that we do not know of could make it wrong.
FRESH_US = 90 * SECOND_US


@dataclass(frozen=True, slots=True)
class Bill:
    """One lease's money as of ``as_of_us``. Times are of this machine's clock, not the service's.

    Attributes:
        heard_us: When the service said so.
        stop_requested_us: From here on the user pays nothing.
        deadline_us: When a limit stops it, as things are; None: none does.
    """

    lease_id: str
    title: str
    kind: SliceKind
    state: LeaseState
    device_uuid: str | None
    memory_bytes: int | None
    share_milli: int | None
    rate_u_per_hour: int
    cost_u: int
    currency: str
    simulated: bool
    as_of_us: int
    heard_us: int
    stop_requested_us: int | None
    stop_reason: str | None
    use: Use | None
    deadline_us: int | None = None
    deadline_reason: str | None = None

    def ticking(self, now_us: int) -> bool:
        """Whether it costs more every second, for all we know."""
        return (
            self.state is LeaseState.RUNNING
            and self.stop_requested_us is None
            and now_us - self.heard_us <= FRESH_US
        )

    def cost_at(self, now_us: int) -> int | None:
        """Micro-units up to ``now_us``; None where nobody here can know."""
        if now_us - self.heard_us > FRESH_US:
            return None
        if self.state not in (LeaseState.RUNNING, LeaseState.STOPPING):
            return self.cost_u
        end = now_us
        if self.stop_requested_us is not None:
            end = min(end, self.stop_requested_us)
        elif self.state is not LeaseState.RUNNING:
            return self.cost_u
        return self.cost_u + cost_u(self.rate_u_per_hour, max(0, end - self.as_of_us))


def bill_of(me: Me, heard_us: int) -> Bill | None:
    """The bill of the one server that the answer is about; None when it has no live lease."""
    if me.server is None or not me.leases:
        return None
    lease = me.leases[-1]
    # The service's clock may differ from ours; what it says about time is moved over.
    shift = heard_us - me.now_us
    stop, deadline = lease.stop_requested_us, lease.deadline_us
    return Bill(
        lease_id=lease.lease_id,
        title=lease.title,
        kind=lease.kind,
        state=lease.state,
        device_uuid=lease.device_uuid,
        memory_bytes=lease.memory_bytes,
        share_milli=lease.share_milli,
        rate_u_per_hour=lease.rate_u_per_hour,
        cost_u=lease.cost_u,
        currency=lease.currency,
        simulated=lease.simulated or me.simulated,
        as_of_us=_as_of(lease, me.now_us) + shift,
        heard_us=heard_us,
        stop_requested_us=None if stop is None else stop + shift,
        stop_reason=lease.stop_reason,
        use=lease.use,
        deadline_us=None if deadline is None else deadline + shift,
        deadline_reason=lease.deadline_reason,
    )


def _as_of(lease: LeaseView, now_us: int) -> int:
    """Up to when ``cost_u`` counts."""
    if lease.covered_us is not None:
        return lease.covered_us
    return lease.started_us if lease.started_us is not None else now_us
