"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The daemon's counters, in a registry of their own.

    :param attachments: (driver, state) → how many, counted when somebody asks.
    """

    def __init__(self, attachments: Callable[[], Mapping[tuple[str, ...], int]]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "terway_cni_requests",
            "CNI commands by their CNI error code, 0 for success.",
            ["command", "code"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "terway_cni_seconds",
            "How long a CNI command took in the daemon, waiting included.",
            ["command"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_length = Gauge(
            "terway_queue_length", "CNI commands that wait for a worker.", registry=self.registry
        )
        self.queue_seconds = Histogram(
            "terway_queue_wait_seconds",
            "How long a CNI command waited for a worker.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.gc_success = Gauge(
            "terway_gc_last_success_timestamp_seconds",
            "When a gc round last ended without a problem.",
            registry=self.registry,
        )
        self.gc_released = Counter(
            "terway_gc_released", "Things that gc gave back or took away.", registry=self.registry
        )
        self.gc_problems = Counter(
            "terway_gc_problems", "Things gc could not deal with.", registry=self.registry
        )
        self.driver_started = Gauge(
            "terway_driver_started",
            "1 when the driver is started, 0 while it is not.",
            ["driver"],
            registry=self.registry,
        )
        self._cloud_calls = Counter(
            "terway_cloud_calls",
            "Tries of OpenAPI calls by the service's code, OK, or no answer.",
            ["action", "code"],
            registry=self.registry,
        )
        self._cloud_seconds = Histogram(
            "terway_cloud_seconds",
            "How long one try of an OpenAPI call took.",
            ["action"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._cloud_waits = Histogram(
            "terway_cloud_limiter_wait_seconds",
            "How long a try waited because the action may be called so often and not more.",
            ["action"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.watch("terway_attachments", "Attachments in the journal.", ["driver", "state"], attachments)

    def watch(
        self,
        name: str,
        documentation: str,
        labels: list[str],
        count: Callable[[], Mapping[tuple[str, ...], int]],
    ) -> None:
        """A gauge that is counted when somebody asks: values of ``labels`` → how many."""
        self.registry.register(_Counted(name, documentation, labels, count))

    def cloud_called(self, action: str, code: str, seconds: float) -> None:
        """See :class:`terway_core.cloud.client.Observer`."""
        self._cloud_calls.labels(action, code).inc()
        self._cloud_seconds.labels(action).observe(seconds)

    def cloud_waited(self, action: str, seconds: float) -> None:
        """See :class:`terway_core.cloud.client.Observer`."""
        self._cloud_waits.labels(action).observe(seconds)

    def render(self) -> bytes:
        """The text format."""
        return generate_latest(self.registry)


class _Counted(Collector):
    def __init__(
        self,
        name: str,
        documentation: str,
        labels: list[str],
        count: Callable[[], Mapping[tuple[str, ...], int]],
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._count = count

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, number in sorted(self._count().items()):
            family.add_metric(labels, number)
        yield family

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # registering must not count
