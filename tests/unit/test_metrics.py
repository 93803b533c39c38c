"""What Prometheus scrapes."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from terway_core.daemon.metrics import CONTENT_TYPE, Metrics
from terway_core.daemon.queue import WorkQueue


def samples(metrics):
    """Name and labels → value, as Prometheus reads them."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_attachments_are_counted_at_each_scrape_and_not_before():
    counts, asked = {("vpc", "ready"): 3, ("eni", "wiring"): 1}, []

    def count():
        asked.append(1)
        return counts

    metrics = Metrics(count)
    assert asked == []
    found = samples(metrics)
    assert found["terway_attachments", ("driver", "vpc"), ("state", "ready")] == 3
    assert found["terway_attachments", ("driver", "eni"), ("state", "wiring")] == 1
    del counts["eni", "wiring"]
    assert ("terway_attachments", ("driver", "eni"), ("state", "wiring")) not in samples(metrics)


def test_each_daemon_counts_for_itself():
    one, other = Metrics(dict), Metrics(dict)
    one.requests.labels("ADD", "0").inc()
    name = ("terway_cni_requests_total", ("code", "0"), ("command", "ADD"))
    assert samples(one)[name] == 1
    assert name not in samples(other)


def test_queue_is_seen_while_it_is_long():
    metrics = Metrics(dict)
    queue = WorkQueue(1, waited=metrics.queue_seconds.observe)
    metrics.queue_length.set_function(lambda: len(queue))
    with queue.place(timeout=0):
        pass
    assert samples(metrics)["terway_queue_wait_seconds_count",] == 1
    assert samples(metrics)["terway_queue_length",] == 0


@pytest.mark.parametrize(
    "name",
    [
        "terway_queue_length",
        "terway_gc_last_success_timestamp_seconds",
        "terway_gc_released_total",
        "terway_gc_problems_total",
    ],
)
def test_what_alarms_look_at_is_there_from_the_start(name):
    assert samples(Metrics(dict))[name,] == 0


def test_every_metric_has_our_prefix_and_a_help_text():
    families = list(text_string_to_metric_families(Metrics(dict).render().decode()))
    assert all(family.name.startswith("terway_") and family.documentation for family in families)
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
