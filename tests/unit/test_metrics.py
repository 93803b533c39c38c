"""What Prometheus reads of the cloud's calls."""

from __future__ import annotations

from terway_core.cloud.client import Observer
from terway_core.daemon.metrics import Metrics


def test_calls_of_the_cloud_by_action_and_code() -> None:
    metrics = Metrics(dict)
    observer: Observer = metrics
    observer.cloud_waited("AttachNetworkInterface", 4.0)
    observer.cloud_called("AttachNetworkInterface", "Throttling", 0.2)
    observer.cloud_called("AttachNetworkInterface", "OK", 0.3)
    lines = metrics.render().decode().splitlines()
    assert 'terway_cloud_calls_total{action="AttachNetworkInterface",code="Throttling"} 1.0' in lines
    assert 'terway_cloud_calls_total{action="AttachNetworkInterface",code="OK"} 1.0' in lines
    assert 'terway_cloud_seconds_sum{action="AttachNetworkInterface"} 0.5' in lines
    assert 'terway_cloud_limiter_wait_seconds_sum{action="AttachNetworkInterface"} 4.0' in lines
