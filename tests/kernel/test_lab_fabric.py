"""The lab's VPC drops what the real one would drop, and obeys its route table. Real packets throughout."""

import socket
import urllib.request
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from terway_core.cloud import Cloud, vpc
from terway_core.config import CloudConfig
from terway_core.lab import fabric
from terway_core.lab.build import down, up
from terway_core.lab.describe import describe
from terway_core.lab.ping import ping
from terway_core.lab.state import Lab, Spec
from terway_core.wiring.engine import Engine
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import Address, Wiring

from .packets import IP_TRANSPARENT, arrives, free_port, udp

pytestmark = pytest.mark.kernel

NODE_1, NODE_2 = ip_address("192.168.0.1"), ip_address("192.168.0.2")
NODE_1_IPV6, NODE_2_IPV6 = ip_address("2001:db8:0:100::1"), ip_address("2001:db8:0:100::2")
GATEWAY_IPV6 = ip_address("2001:db8:0:100:ffff:ffff:ffff:fffd")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("fabric") / "lab")
    up(lab, Spec(nodes=2, drivers=("vpc",), ip_stack="dual"), lambda share, step: None)
    yield lab
    down(lab)


@pytest.fixture(scope="module")
def node_1(lab: Lab) -> Iterator[Namespace]:
    with Namespace.open(lab.node("node-1").netns) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def node_2(lab: Lab) -> Iterator[Namespace]:
    with Namespace.open(lab.node("node-2").netns) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def internet(lab: Lab) -> Iterator[Namespace]:
    with Namespace.open(lab.netns("internet")) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def cloud(lab: Lab) -> Cloud:
    """The real client, as somebody outside the nodes with a key pair uses it."""
    region = describe(lab)["region"]
    config = CloudConfig(
        region_id=region["region_id"],
        vpc_endpoint=region["endpoint"].removeprefix("http://"),
        protocol="http",
    )
    env = {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": region["access_key_id"],
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": region["access_key_secret"],
    }
    return Cloud(config, env=env)


@pytest.mark.parametrize(
    "target",
    [
        *(NODE_2, ip_address("192.168.0.253"), fabric.METADATA, fabric.OPENAPI, fabric.INTERNET_HOST),
        *(NODE_2_IPV6, GATEWAY_IPV6, fabric.INTERNET_HOST_IPV6),
    ],
    ids=str,
)
def test_a_node_reaches_everything_in_and_beyond_the_vpc(node_1, target):
    assert node_1.run(ping, target) is not None


def test_everything_is_behind_the_gateways_mac(node_1):
    node_1.run(ping, NODE_2)
    entries = [line.split() for line in node_1.run(Path("/proc/thread-self/net/arp").read_text).splitlines()]
    assert {entry[3] for entry in entries if entry[0] in {"192.168.0.253", str(NODE_2)}} == {
        "ee:ff:ff:ff:ff:ff"
    }


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (str(NODE_1), str(NODE_2)),
        (str(NODE_1_IPV6), str(NODE_2_IPV6)),
        ("172.20.1.7", str(NODE_2)),  # of the pod CIDR that the route table leads to node-1
        ("fd20:0:0:1::7", str(NODE_2_IPV6)),
    ],
)
def test_a_packet_from_an_address_of_the_eni_passes(node_1, node_2, source, target):
    assert arrives(node_1, source, node_2, target, timeout=5)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("192.168.0.77", str(NODE_2)),  # nobody's
        ("172.20.2.7", str(NODE_2)),  # of node-2's pod CIDR
        ("10.1.2.3", str(NODE_2)),
        ("2001:db8:0:100::77", str(NODE_2_IPV6)),
        ("fd20:0:0:2::7", str(NODE_2_IPV6)),
    ],
)
def test_a_packet_from_any_other_address_is_dropped(node_1, node_2, source, target):
    assert not arrives(node_1, source, node_2, target)


@pytest.mark.parametrize("cidr", ["172.30.5.0/24", "fd30:5::/64"])
def test_a_route_entry_makes_packets_flow_and_its_removal_stops_them(lab, cloud, node_1, node_2, cidr):
    network = ip_network(cidr)
    facts = describe(lab)
    table, instance = facts["region"]["route_table_id"], facts["nodes"][0]["instance_id"]
    receiver = NODE_2 if network.version == 4 else NODE_2_IPV6
    engine = Engine(node_1)
    pod = Wiring(host=(Address(dev="lo", address=ip_interface(network[9])),))
    engine.apply(pod, None, "test")
    try:
        assert node_2.run(ping, network[9], timeout=0.5) is None
        node_2.run(vpc.create_route_entry, cloud, table, network, instance)
        assert node_2.run(ping, network[9]) is not None
        assert arrives(node_1, str(network[9]), node_2, str(receiver), timeout=5)
        node_2.run(vpc.delete_route_entry, cloud, table, network, instance)
        assert node_2.run(ping, network[9], timeout=0.5) is None
        assert not arrives(node_1, str(network[9]), node_2, str(receiver))
    finally:
        engine.remove(pod, None, "test")
        engine.close()


def test_the_nat_gateway_hides_nodes_and_nobody_else(node_1, internet):
    target = str(fabric.INTERNET_HOST)

    def source_seen(source: str, timeout: float = 5) -> str | None:
        port = free_port()
        with internet.run(udp, fabric.INTERNET_HOST) as sock, node_1.run(udp, NODE_1) as client:
            sock.bind((target, port))
            sock.settimeout(timeout)
            client.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            client.bind((source, 0))
            client.sendto(b"hello", (target, port))
            try:
                return str(sock.recvfrom(16)[1][0])
            except TimeoutError:
                return None

    def answer() -> None:
        with udp(NODE_1) as sock:
            sock.sendto(b"hello", ("172.20.1.7", 9))

    assert source_seen(str(NODE_1)) == str(fabric.NAT_GATEWAY)
    assert source_seen(str(NODE_2), timeout=0.3) is None  # not this ENI's
    # Not translated, so no answer: the internet knows no way back to it.
    assert source_seen("172.20.1.7") == "172.20.1.7"
    with pytest.raises(OSError, match="unreachable"):
        internet.run(answer)


def test_each_node_finds_itself_in_the_metadata_at_its_real_address(lab, node_1, node_2):
    def instance_id() -> str:
        url = "http://100.100.100.200/latest/meta-data/instance-id"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()

    expected = [node["instance_id"] for node in describe(lab)["nodes"]]
    assert [node_1.run(instance_id), node_2.run(instance_id)] == expected


def test_pod_cidrs_of_nodes_do_not_overlap():
    cidrs = [fabric.pod_cidr(number) for number in range(1, 251)]
    assert len(set(cidrs)) == 250
    assert all(isinstance(cidr, IPv4Network) and cidr.subnet_of(fabric.POD_CIDR) for cidr in cidrs)
