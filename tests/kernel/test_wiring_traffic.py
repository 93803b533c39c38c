"""Wirings at work: packets are shaped, and leave with the right address."""

import contextlib
import json
import socket
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from terway_core.wiring.objects import (
    Address,
    LinkUp,
    Masquerade,
    Neighbor,
    Route,
    Sysctl,
    TokenBucket,
    Veth,
    Wiring,
)

from .conftest import require, wait_for
from .packets import free_port, udp
from .wirings import OWNER, Rig, run_in

pytestmark = pytest.mark.kernel


@pytest.fixture
def rig(terway_netns):
    require("ip", "tc", "nft")
    rig = Rig(terway_netns(), terway_netns())
    yield rig
    rig.engine.close()


def link(name, number, host, pod, *, dev="eth0"):
    """A veth pair between addresses that know each other's MAC addresses."""
    mac, pod_mac = f"0a:00:00:00:01:{number:02x}", f"0a:00:00:00:02:{number:02x}"
    return Wiring(
        host=(
            Veth(name=name, peer=dev, mac=mac, peer_mac=pod_mac),
            *(Address(dev=name, address=ip_interface(ip)) for ip in host),
            *(Neighbor(dev=name, address=ip_address(ip), mac=pod_mac) for ip in pod),
            *(Route(dst=ip_network(ip), dev=name) for ip in pod),
        ),
        pod=(
            LinkUp(dev="lo"),
            *(Address(dev=dev, address=ip_interface(ip)) for ip in pod),
            *(Neighbor(dev=dev, address=ip_address(ip), mac=mac) for ip in host),
            *(Route(dst=ip_network(ip), dev=dev) for ip in host),
            *(
                Route(dst=ip_network("0.0.0.0/0" if "." in ip else "::/0"), dev=dev, via=ip_address(ip))
                for ip in host
            ),
        ),
    )


def exchange(server, client, port, target):
    """Datagrams until one arrives: a link that has just come up loses the first. The source of that one."""

    def arrived():
        client.sendto(b"ask", (target, port))
        with contextlib.suppress(TimeoutError):
            return server.recvfrom(16)[1]

    server.settimeout(0.1)
    return wait_for(arrived, f"something arrives at {target}")


@pytest.mark.parametrize("shaped", [True, False])
def test_a_token_bucket_lets_its_burst_pass_and_drops_what_cannot_wait(rig, shaped):
    wiring = link("cali0", 0, ["192.0.2.1"], ["192.0.2.2"])
    target, port = "192.0.2.2", free_port()
    # At 1 byte a second nothing but the burst and what may wait gets anywhere in the time of a test.
    bucket = TokenBucket(dev="cali0", rate=1, burst=5_000, limit=10_000)
    rig.apply(wiring)
    with rig.pod.run(udp, ip_address(target)) as server, rig.host.run(udp, ip_address(target)) as client:
        server.bind((target, port))
        exchange(server, client, port, target)
        before = received(rig)
        if shaped:
            rig.apply(Wiring(host=(*wiring.host, bucket), pod=wiring.pod))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for _ in range(100):
            client.sendto(bytes(1000), (target, port))
    if shaped:
        (qdisc,) = json.loads(run_in(rig.host, "tc -s -j qdisc show dev cali0"))
        assert qdisc["kind"] == "tbf"
        assert qdisc["packets"] == 4  # of 1042 bytes with their headers
        assert qdisc["qlen"] + qdisc["drops"] == 96
        assert qdisc["backlog"] <= 10_000 < qdisc["backlog"] + 1042
    assert (received(rig) - before < 20) == shaped


def received(rig):
    """Packets that got into the pod."""
    (eth0,) = json.loads(run_in(rig.pod, "ip -s -j link show eth0"))
    return eth0["stats64"]["rx"]["packets"]


FAMILIES = {
    4: {
        "host": "169.254.1.1",
        "pod": "172.20.0.2",
        "node": "192.0.2.1",
        "outside": "192.0.2.2",
        "inside": "10.0.0.1",
        "pods": "172.20.0.0/24",
        "vpc": "10.0.0.0/8",
        "forwarding": "ipv4/ip_forward",
    },
    6: {
        "host": "fe80::1",
        "pod": "fd00:20::2",
        "node": "2001:db8::1",
        "outside": "2001:db8::2",
        "inside": "fd00:10::1",
        "pods": "fd00:20::/64",
        "vpc": "fd00:10::/32",
        "forwarding": "ipv6/conf/all/forwarding",
    },
}


@pytest.mark.parametrize("version", [4, 6])
def test_masquerading_hides_the_pod_from_the_world_but_not_from_the_vpc(rig, terway_netns, version):
    net = FAMILIES[version]
    world = terway_netns()
    node = (
        Sysctl(key=net["forwarding"], value="1"),
        Masquerade(src=ip_network(net["pods"]), exclude=(ip_network(net["vpc"]),)),
    )
    pod_side = link("cali0", 0, [net["host"]], [net["pod"]])
    world_side = link("up0", 1, [net["node"]], [net["outside"], net["inside"]])
    rig.apply(Wiring(node=node, host=pod_side.host, pod=pod_side.pod))
    rig.engine.apply(world_side, world, "world")

    def source_of_what_arrives(target):
        """The pod sends; the answer must find its way back, too."""
        port = free_port()
        with world.run(udp, ip_address(target)) as server, rig.pod.run(udp, ip_address(target)) as client:
            client.settimeout(5)
            server.bind((target, port))
            source = exchange(server, client, port, target)
            server.sendto(b"answer", source)
            assert client.recv(16) == b"answer"
            return source[0]

    assert source_of_what_arrives(net["outside"]) == net["node"]
    assert source_of_what_arrives(net["inside"]) == net["pod"]
    rig.engine.remove_shared(node[1:])
    assert source_of_what_arrives(net["outside"]) == net["pod"]
    rig.engine.remove(pod_side, rig.pod, OWNER)
