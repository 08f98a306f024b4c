"""Prometheus metrics: every label value is there from the start, and no user's name is one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gpuslice.broker.stats import Counts, Snapshot
from gpuslice.units import MICRO, SECOND_US
from gpuslice.wire import DeviceState, LeaseState, SliceKind

#: Answers are counted by class: ``2xx`` and so on.
_CODES = ("2xx", "3xx", "4xx", "5xx")
#: Requests that match no route.
NO_ROUTE = "none"
_BUCKETS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
#: States in which a lease holds something.
_LIVE = (
    LeaseState.GRANTED,
    LeaseState.RUNNING,
    LeaseState.STOPPING,
    LeaseState.SETTLED,
    LeaseState.REVOKING,
)
#: Why a slice, or a place in the queue, was refused; all other reasons count as `OTHER_REASON`.
REASONS = (
    # limits
    "leases-limit",
    "slice-type-limit",
    "slice-not-allowed",
    "gpu-hours-limit",
    "budget-limit",
    "credit-limit",
    "session-limit",
    "queue-limit",
    # nothing free, or nothing that could give it
    "reserved",
    "others-wait",
    "gpu-full",
    "host-cpu-full",
    "host-ram-full",
    "host-down",
    "devices-sick",
    "enforcement-too-low",
    "memory-unknown",
    "slice-too-large",
    "no-such-device",
    "slice-not-offered",
    "no-price",
    "runtime-unavailable",
    "ledger-unavailable",
    "shutting-down",
    "standby",
    # what this server has, or waits for, already
    "already-leased",
    "previous-session-ending",
    "attempt-over",
    "already-waiting",
    "offer-waits",
    "offer-shorter",
    "offer-charged",
    # what was asked for
    "unknown-slice",
    "duration-missing",
    "not-in-group",
    "group-not-charged",
    "unknown-user",
    "unknown-option",
    "attempt-reused",
)
OTHER_REASON = "other"
#: Who pays for a slice's time: its user; the platform, for what it absorbs; nobody.
_PAYERS = ("user", "writeoff", "idle")


class Metrics:
    """The service's own counters, and the broker's numbers as of one snapshot."""

    def __init__(self, routes: Collection[str]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(namespace="gpuslice", registry=self._registry)
        self._duration = Histogram(
            "gpuslice_request_duration_seconds",
            "How long requests took",
            ["route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._answers = Counter(
            "gpuslice_request_answer_total",
            "Requests answered, by class of status",
            ["route", "code"],
            registry=self._registry,
        )
        self._refusals = Counter(
            "gpuslice_refusal_answer_total",
            "Requests refused, by reason",
            ["reason"],
            registry=self._registry,
        )
        for reason in (*REASONS, OTHER_REASON):
            self._refusals.labels(reason)
        for route in (*routes, NO_ROUTE):
            self._duration.labels(route)
            for code in _CODES:
                self._answers.labels(route, code)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._duration.labels(route).observe(seconds)
        self._answers.labels(route, f"{status // 100}xx").inc()

    def refused(self, reason: str) -> None:
        """Count one refusal."""
        self._refusals.labels(reason if reason in REASONS else OTHER_REASON).inc()

    def exposition(self, snapshot: Snapshot | None) -> tuple[bytes, str]:
        """All metrics as text with its content type; ``snapshot`` is the broker's.

        Without one the service stands by, and says no more than that.
        """
        of_broker = CollectorRegistry()
        of_broker.register(_Active(snapshot is not None))
        if snapshot is not None:
            of_broker.register(_Snapshot(snapshot))
        text = generate_latest(self._registry) + generate_latest(of_broker)
        return text, CONTENT_TYPE_LATEST


class _Active(Collector):
    """Whether this service does the work, or waits for the end of the one that does."""

    def __init__(self, active: bool) -> None:
        self._active = active

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "gpuslice_service_active_success",
            "1 if this service does the work, 0 if it stands by",
            value=int(self._active),
        )


class _Snapshot(Collector):
    """What the broker counts as metric families."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot, ledger = self._snapshot, self._snapshot.ledger
        yield from _leases(ledger)
        yield _by_slice(
            ledger, "gpuslice_queue_wait_requests", "Requests that wait",
            lambda name: ledger.waiting.count.get(name, 0),
        )  # fmt: skip
        yield _by_slice(
            ledger, "gpuslice_queue_wait_oldest_seconds", "How long the oldest of them has waited",
            lambda name: ledger.waiting.oldest_us.get(name, 0) / SECOND_US,
        )  # fmt: skip
        yield _by_slice(
            ledger, "gpuslice_queue_offer_requests", "Requests that a slice is reserved for now",
            lambda name: ledger.offers.get(name, 0),
        )  # fmt: skip
        yield from _totals(ledger)
        devices = GaugeMetricFamily(
            "gpuslice_device_list_devices", "Devices known", labels=["state"]
        )
        for device_state in DeviceState:
            devices.add_metric([device_state.value], ledger.devices.get(device_state.value, 0))
        yield devices
        age = snapshot.reconcile_age_s
        yield GaugeMetricFamily(
            "gpuslice_node_reconcile_age_seconds",
            "Time since leases were last compared with the node's list; NaN: not yet",
            value=float("nan") if age is None else age,
        )
        yield GaugeMetricFamily(
            "gpuslice_node_reach_success",
            "1 if the node answered last time",
            value=1 if snapshot.node_reachable else 0,
        )
        errors = CounterMetricFamily(
            "gpuslice_error_raise", "Errors of the broker's work, by what failed", labels=["what"]
        )
        for what, count in sorted(snapshot.errors.items()):
            errors.add_metric([what], count)
        yield errors


def _leases(ledger: Counts) -> Iterator[Metric]:
    """Live leases twice: by what kind of slice, and by which slice type."""
    by_kind = GaugeMetricFamily(
        "gpuslice_lease_hold_leases", "Live leases by kind", labels=["state", "kind"]
    )
    by_slice = GaugeMetricFamily(
        "gpuslice_slice_hold_leases", "Live leases by slice type", labels=["state", "slice"]
    )
    for state in _LIVE:
        mine = {key[1:]: n for key, n in ledger.leases.items() if key[0] == state.value}
        for kind in SliceKind:
            count = sum(n for (of_kind, _), n in mine.items() if of_kind == kind.value)
            by_kind.add_metric([state.value, kind.value], count)
        for name in ledger.slice_types:
            count = sum(n for (_, of_type), n in mine.items() if of_type == name)
            by_slice.add_metric([state.value, name], count)
    yield from (by_kind, by_slice)


def _by_slice(
    ledger: Counts, name: str, text: str, value: Callable[[str], float]
) -> GaugeMetricFamily:
    found = GaugeMetricFamily(name, text, labels=["slice"])
    for slice_type in ledger.slice_types:
        found.add_metric([slice_type], value(slice_type))
    return found


def _totals(ledger: Counts) -> Iterator[Metric]:
    """Time and money since the ledger began: they only grow, also over a restart."""
    seconds = CounterMetricFamily(
        "gpuslice_slice_bill_seconds", "Leased time that is billed, by who pays",
        labels=["slice", "payer"],
    )  # fmt: skip
    money = CounterMetricFamily(
        "gpuslice_slice_bill_money", "What it cost, in units of the currency, by who pays",
        labels=["slice", "payer"],
    )  # fmt: skip
    corrected = CounterMetricFamily(
        "gpuslice_slice_correct_money", "What was given back or taken later, by which of the two",
        labels=["slice", "kind"],
    )  # fmt: skip
    for name in ledger.slice_types:
        for payer in _PAYERS:
            time_us, amount = ledger.totals.get((name, payer), (0, 0))
            seconds.add_metric([name, payer], time_us / SECOND_US)
            money.add_metric([name, payer], amount / MICRO)
        for kind in ("refund", "surcharge"):
            corrected.add_metric([name, kind], ledger.totals.get((name, kind), (0, 0))[1] / MICRO)
    yield from (seconds, money, corrected)
