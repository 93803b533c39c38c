"""The token buckets do what their numbers say, on both ends of a pod's link."""

import socket
from ipaddress import ip_interface, ip_network

import pytest

from terway_core.bandwidth import plugin
from terway_core.hookspecs import hookimpl
from terway_core.registry import Drivers
from terway_core.types import Attachment, GcReport, Lease, Node, Outcome, Pod
from terway_core.wiring.engine import Engine
from terway_core.wiring.inspect import diff
from terway_core.wiring.objects import Address, Neighbor, Route, Veth, Wiring

pytestmark = pytest.mark.kernel

HOST, POD = ip_interface("192.0.2.1/32"), ip_interface("192.0.2.2/32")
LEASE = Lease(addresses=(POD,))


class Driver:
    @hookimpl
    def terway_allocate(self, attachment, node):
        return LEASE

    @hookimpl
    def terway_setup(self, attachment, lease, node):
        name, mac, pod_mac = attachment.host_ifname, attachment.mac("host"), attachment.mac("pod")
        # Neighbours, because an ARP request right after the link came up may wait a second for its answer.
        return Wiring(
            host=(
                Veth(name=name, peer="eth0", mac=mac, peer_mac=pod_mac),
                Address(dev=name, address=HOST),
                Neighbor(dev=name, address=POD.ip, mac=pod_mac),
                Route(dst=ip_network(POD), dev=name),
            ),
            pod=(
                Address(dev="eth0", address=POD),
                Neighbor(dev="eth0", address=HOST.ip, mac=mac),
                Route(dst=ip_network(HOST), dev="eth0"),
            ),
        )

    @hookimpl
    def terway_teardown(self, attachment, lease):
        return Outcome(changed=True)

    @hookimpl
    def terway_gc(self, live, node):
        return GcReport()


@pytest.fixture
def namespaces(terway_netns):
    return terway_netns(), terway_netns()


@pytest.fixture
def engine(namespaces):
    engine = Engine(namespaces[0])
    yield engine
    engine.close()


def wiring_for(annotations):
    attachment = Attachment(
        network="terway", container_id="c0ffee", ifname="eth0", pod=Pod(name="cart", annotations=annotations)
    )
    drivers = Drivers()
    drivers.register("m", Driver())
    drivers.register_wrapper("bandwidth", plugin)
    return drivers.setup("m", attachment, LEASE, Node(name="node-a"))


def delivered(source, target, address, count=100, size=1000):
    """How many of ``count`` datagrams, sent at once, arrive."""
    receiver = target.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    sender = source.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiver.bind((str(address.ip), 0))
        receiver.settimeout(0.2)
        # A sender waits for room in its buffer: with a large one it is the queue that decides.
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for _ in range(count):
            sender.sendto(bytes(size), receiver.getsockname())
        arrived = 0
        try:
            while True:
                receiver.recv(size)
                arrived += 1
        except TimeoutError:
            return arrived


INGRESS, EGRESS = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"


@pytest.mark.parametrize("limited", [(), (INGRESS,), (EGRESS,), (INGRESS, EGRESS)])
def test_only_the_limited_direction_loses_what_does_not_fit(namespaces, engine, limited):
    host, pod = namespaces
    # 1 kB/s: burst 3000 and limit 3025 bytes let a handful of 1000-byte datagrams through.
    engine.apply(wiring_for(dict.fromkeys(limited, "8k")), pod, "owner")
    into, out = delivered(host, pod, POD), delivered(pod, host, HOST)
    assert (into < 50) == (INGRESS in limited)
    assert (out < 50) == (EGRESS in limited)
    if not limited:
        assert (into, out) == (100, 100)


@pytest.mark.parametrize("rate", ["1k", "10M", "999999", "10G", "100G", "1P"])
def test_kernel_holds_what_is_declared(namespaces, engine, rate):
    host, pod = namespaces
    wiring = wiring_for({INGRESS: rate, EGRESS: rate})
    for _ in range(2):
        engine.apply(wiring, pod, "owner")
        assert diff(wiring, pod, host=host) == []
