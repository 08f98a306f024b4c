"""Prometheus metrics: every label value is there from the start, and no user's name is one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

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
        for route in (*routes, NO_ROUTE):
            self._duration.labels(route)
            for code in _CODES:
                self._answers.labels(route, code)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._duration.labels(route).observe(seconds)
        self._answers.labels(route, f"{status // 100}xx").inc()

    def exposition(self, snapshot: Mapping[str, object] | None) -> tuple[bytes, str]:
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
    """``Broker.metrics_snapshot()`` as metric families.

    Keys: ``leases`` {(state, kind): n}, ``devices`` {state: n}, ``reconcile_age_s`` (None: not
    yet), ``node_reachable``, ``errors`` {what: n so far}.
    """

    def __init__(self, snapshot: Mapping[str, object]) -> None:
        self._snapshot: Mapping[str, Any] = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        leases = GaugeMetricFamily(
            "gpuslice_lease_hold_leases", "Live leases", labels=["state", "kind"]
        )
        for state in _LIVE:
            for kind in SliceKind:
                count = snapshot["leases"].get((state.value, kind.value), 0)
                leases.add_metric([state.value, kind.value], count)
        yield leases
        devices = GaugeMetricFamily(
            "gpuslice_device_list_devices", "Devices known", labels=["state"]
        )
        for device_state in DeviceState:
            devices.add_metric([device_state.value], snapshot["devices"].get(device_state.value, 0))
        yield devices
        age = snapshot["reconcile_age_s"]
        yield GaugeMetricFamily(
            "gpuslice_node_reconcile_age_seconds",
            "Time since leases were last compared with the node's list; NaN: not yet",
            value=float("nan") if age is None else age,
        )
        yield GaugeMetricFamily(
            "gpuslice_node_reach_success",
            "1 if the node answered last time",
            value=1 if snapshot["node_reachable"] else 0,
        )
        errors = CounterMetricFamily(
            "gpuslice_error_raise", "Errors of the broker's work, by what failed", labels=["what"]
        )
        for what, count in sorted(snapshot["errors"].items()):
            errors.add_metric([what], count)
        yield errors
