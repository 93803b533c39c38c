"""Which pods the eni mode takes, and what it offers to Kubernetes."""

from types import SimpleNamespace

import pytest
from terway_driver_eni import EniDriver

from terway_core.registry import Drivers
from terway_core.testing.fakes import NoCloud
from terway_core.types import Node, Pod, Services

NODE = Node(name="node-1")
PLAIN = Pod(namespace="default", name="plain")
ASKING = Pod(namespace="default", name="asking", requests={"aliyun/eni": 1})
NONE = Pod(namespace="default", name="none", requests={"aliyun/eni": 0})


@pytest.fixture
def start(terway_store, terway_clock):
    """Start the driver; the answer says which pods it takes, and what it offers."""

    def start(*, kube=True, **options):
        drivers, offered = Drivers(), {}
        drivers.register("eni", EniDriver())
        pool = SimpleNamespace(capacity=lambda: 3)
        cluster = SimpleNamespace(node=SimpleNamespace(offer=offered.__setitem__))
        services = Services(
            options=options,
            node=NODE,
            store=terway_store,
            cloud=NoCloud(),
            eni_pool=lambda use: pool,
            kube=cluster if kube else None,
            clock=terway_clock,
        )
        drivers.start("eni", services)
        taken = [pod.name for pod in (PLAIN, ASKING, NONE) if drivers.claim("eni", pod, NODE)]
        return taken, {name: amount() for name, amount in offered.items()}

    return start


def test_with_kubernetes_pods_that_request_an_eni(start):
    assert start() == (["asking"], {"aliyun/eni": 3})


def test_without_kubernetes_every_pod(start):
    assert start(kube=False) == (["plain", "asking", "none"], {})


def test_every_pod_if_so_configured(start):
    assert start(every_pod=True) == (["plain", "asking", "none"], {"aliyun/eni": 3})
