"""ENIs of the lab are real: what the API says of them is so in the network, at once and in both families."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pyroute2 import IPRoute

from terway_core.cloud import Cloud, ecs
from terway_core.cloud.ecs import NetworkInterface
from terway_core.config import CloudConfig
from terway_core.lab.build import down, up
from terway_core.lab.describe import describe
from terway_core.lab.ping import ping
from terway_core.lab.state import Lab, Spec
from terway_core.wiring.engine import Engine
from terway_core.wiring.netns import Namespace, create_netns, delete_netns
from terway_core.wiring.objects import (
    Address,
    Clsact,
    LinkUp,
    Neighbor,
    Route,
    Rule,
    Sysctl,
    VlanPop,
    VlanPush,
    Wiring,
    WiringObject,
)
from terway_core.wiring.snapshot import Link, Snapshot

from .packets import arrives

pytestmark = pytest.mark.kernel

NODE_2, NODE_2_IPV6 = "192.168.0.2", "2001:db8:0:100::2"
GATEWAY_MAC = "ee:ff:ff:ff:ff:ff"
TABLE = 1001


class Node:
    """A node of the lab, and the cloud as it is called from there."""

    def __init__(self, lab: Lab, netns: Namespace) -> None:
        self.netns = netns
        facts = describe(lab)
        region = facts["region"]
        self.instance_id = facts["nodes"][0]["instance_id"]
        self.vpc_id, self.security_group_id = region["vpc_id"], region["security_group_id"]
        self.vswitches = [text.split("=")[0] for text in region["vswitches"]]
        endpoint = region["endpoint"].removeprefix("http://")
        env = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": region["access_key_id"],
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": region["access_key_secret"],
        }
        config = CloudConfig(region_id=region["region_id"], ecs_endpoint=endpoint, protocol="http")
        self._cloud = Cloud(config, env=env)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.netns.run(function, self._cloud, *args, **kwargs)

    @contextmanager
    def attached(
        self, vswitch: int = 1, *, trunk_eni_id: str = "", **options: Any
    ) -> Iterator[NetworkInterface]:
        eni = self.call(
            ecs.create_network_interface,
            vswitch_id=self.vswitches[vswitch],
            security_group_ids=[self.security_group_id],
            tags={},
            client_token=str(uuid4()),
            **options,
        )
        place: dict[str, str] = {"trunk_eni_id": trunk_eni_id}
        self.call(ecs.attach_network_interface, eni.eni_id, self.instance_id, **place)
        try:
            yield eni
        finally:
            self.call(ecs.detach_network_interface, eni.eni_id, self.instance_id, **place)
            self.call(ecs.delete_network_interface, eni.eni_id)

    def link(self, eni: NetworkInterface) -> Link | None:
        return find(self.netns, eni.mac)


def find(netns: Namespace, mac: str) -> Link | None:
    """The link with this MAC address in a namespace."""
    return next((link for link in netns.run(Snapshot.take).links.values() if link.mac == mac), None)


@contextmanager
def configured(node: Node, eni: NetworkInterface) -> Iterator[None]:
    """Addresses of ``eni`` on its link, and everything from them leaving by it."""
    link = node.link(eni)
    assert link
    objects: list[WiringObject] = [
        LinkUp(dev=link.name),
        Sysctl(key=f"ipv6/conf/{link.name}/accept_dad", value="0"),
    ]
    third = eni.primary_ip.packed[2]
    gateways = {
        4: ip_address(f"192.168.{third}.253"),
        6: ip_address(f"2001:db8:0:10{third}:ffff:ffff:ffff:fffd"),
    }
    for version in (4, 6):
        everything = ip_network("0.0.0.0/0" if version == 4 else "::/0")
        objects.append(Route(dst=everything, dev=link.name, via=gateways[version], table=TABLE))
    for address in (*eni.ipv4, *eni.ipv6, *(prefix[3] for prefix in eni.ipv4_prefixes)):
        objects.append(Address(dev=link.name, address=ip_interface(address)))
        objects.append(Rule(priority=500, src=ip_network(address), table=TABLE))
    wiring = Wiring(host=tuple(objects))
    engine = Engine(node.netns)
    engine.apply(wiring, None, "test")
    try:
        yield
    finally:
        engine.remove(wiring, None, "test")
        engine.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("eni") / "lab")
    spec = Spec(
        nodes=2,
        drivers=("vpc",),
        ip_stack="dual",
        vswitches=("192.168.9.0/28",),
        instance_type="ecs.g7.4xlarge",  # it takes a trunk ENI
    )
    up(lab, spec, lambda share, step: None)
    yield lab
    down(lab)


@pytest.fixture(scope="module")
def node(lab: Lab) -> Iterator[Node]:
    with Namespace.open(lab.node("node-1").netns) as netns:
        yield Node(lab, netns)


@pytest.fixture(scope="module")
def node_2(lab: Lab) -> Iterator[Namespace]:
    with Namespace.open(lab.node("node-2").netns) as netns:
        yield netns


@pytest.fixture
def pod(lab: Lab) -> Iterator[Namespace]:
    name = f"terway-lab-{lab.id}-test-pod"
    with Namespace.open(create_netns(name)) as netns:
        try:
            yield netns
        finally:
            delete_netns(name)


def move(link: Link, source: Namespace, target: Namespace, name: str) -> None:
    """Move a link into another namespace, under another name."""

    def run() -> None:
        with IPRoute() as ipr:
            ipr.link("set", index=link.index, net_ns_fd=target.fd, ifname=name)

    source.run(run)


def wait_for(condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + 10
    while not (answer := condition()):
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)
    return answer


def test_an_eni_is_plugged_in_down_and_without_addresses(node: Node) -> None:
    with node.attached() as first, node.attached() as second:
        found = [node.link(eni) for eni in (first, second)]
        assert [(link.name, link.up) for link in found if link] == [("eth1", False), ("eth2", False)]
        assert not {dev for dev, _ in node.netns.run(Snapshot.take).addresses} & {"eth1", "eth2"}
    assert node.link(first) is None
    with node.attached() as again:
        link = node.link(again)
        assert link
        assert link.name == "eth1"


def test_an_eni_may_send_from_its_own_addresses_only(node: Node, node_2: Namespace) -> None:
    with node.attached(ipv4_count=1, ipv6_count=1) as eni, configured(node, eni):
        for address in eni.ipv4:
            assert arrives(node.netns, str(address), node_2, NODE_2, timeout=5)
        assert arrives(node.netns, str(eni.ipv6[0]), node_2, NODE_2_IPV6, timeout=5)
        with node.attached(ipv6_count=1) as other:
            # By the first ENI, with an address of the second: routed there, but dropped on the way.
            with configured(node, replace(eni, ipv4=other.ipv4, ipv6=other.ipv6)):
                assert not arrives(node.netns, str(other.primary_ip), node_2, NODE_2)
                assert not arrives(node.netns, str(other.ipv6[0]), node_2, NODE_2_IPV6)
            with configured(node, other):
                assert arrives(node.netns, str(other.primary_ip), node_2, NODE_2, timeout=5)
                assert arrives(node.netns, str(other.ipv6[0]), node_2, NODE_2_IPV6, timeout=5)


def test_enis_without_a_common_group_do_not_reach_each_other(node: Node, node_2: Namespace) -> None:
    params = {"VpcId": node.vpc_id, "SecurityGroupName": "other"}
    other = node.call(Cloud.call, "ecs", "CreateSecurityGroup", params)["SecurityGroupId"]

    def reached(eni: NetworkInterface, timeout: float) -> list[bool]:
        return [node_2.run(ping, one, timeout=timeout) is not None for one in (*eni.ipv4, *eni.ipv6)]

    with node.attached(ipv6_count=1) as eni:
        node.call(ecs.modify_network_interface, eni.eni_id, security_group_ids=[other])
        more = node.call(ecs.assign_ipv4, eni.eni_id, 1, client_token=str(uuid4()))
        eni = replace(eni, ipv4=(*eni.ipv4, *more))
        with configured(node, eni):
            assert reached(eni, 0.3) == [False] * 3
            both = [other, node.security_group_id]
            node.call(ecs.modify_network_interface, eni.eni_id, security_group_ids=both)
            assert reached(eni, 5) == [True] * 3
            node.call(ecs.modify_network_interface, eni.eni_id, security_group_ids=[other])
            assert reached(eni, 0.3) == [False] * 3


def test_without_the_policy_rules_packets_leave_by_the_primary_eni_and_are_dropped(
    node: Node, node_2: Namespace
) -> None:
    with node.attached() as eni:
        assert not arrives(node.netns, str(eni.primary_ip), node_2, NODE_2)


@pytest.mark.parametrize(
    ("assign", "unassign", "field"),
    [
        (ecs.assign_ipv4, ecs.unassign_ipv4, "ipv4"),
        (ecs.assign_ipv6, ecs.unassign_ipv6, "ipv6"),
        (ecs.assign_ipv4_prefixes, ecs.unassign_ipv4_prefixes, "ipv4_prefixes"),
    ],
)
def test_an_address_works_from_assigning_to_unassigning(
    node: Node, node_2: Namespace, assign: Any, unassign: Any, field: str
) -> None:
    with node.attached() as eni:
        (given,) = node.call(assign, eni.eni_id, 1, client_token=str(uuid4()))
        address = given[3] if field == "ipv4_prefixes" else given
        target = NODE_2_IPV6 if address.version == 6 else NODE_2
        with configured(node, replace(eni, **{field: (given,)})):
            assert node_2.run(ping, address) is not None
            assert arrives(node.netns, str(address), node_2, target, timeout=5)
            node.call(unassign, eni.eni_id, [given])
            assert node_2.run(ping, address, timeout=0.5) is None
            assert not arrives(node.netns, str(address), node_2, target)


def test_every_vswitch_has_its_gateway(node: Node) -> None:
    for vswitch, gateway in ((0, "192.168.0.253"), (1, "192.168.1.253"), (4, "192.168.9.13")):
        with node.attached(vswitch) as eni:
            link = node.link(eni)
            assert link
            wiring = Wiring(
                host=(
                    Address(dev=link.name, address=ip_interface(eni.primary_ip)),
                    LinkUp(dev=link.name),
                    Rule(priority=500, src=ip_network(eni.primary_ip), table=TABLE),
                    Route(dst=ip_network(gateway), dev=link.name, table=TABLE),
                    Route(dst=ip_network(gateway), dev=link.name),
                )
            )
            engine = Engine(node.netns)
            engine.apply(wiring, None, "test")
            assert node.netns.run(ping, ip_address(gateway)) is not None
            arp = node.netns.run(Path("/proc/thread-self/net/arp").read_text)
            assert [line.split()[3] for line in arp.splitlines() if link.name in line] == [GATEWAY_MAC]
            engine.remove(wiring, None, "test")
            engine.close()


def test_detaching_takes_it_out_of_a_pod(node: Node, pod: Namespace) -> None:
    with node.attached() as eni:
        link = node.link(eni)
        assert link
        move(link, node.netns, pod, "eth0")
        inside = find(pod, eni.mac)
        assert inside
        assert inside.name == "eth0"
    assert find(pod, eni.mac) is None
    assert node.link(eni) is None


def test_it_works_in_a_pod(node: Node, node_2: Namespace, pod: Namespace) -> None:
    with node.attached(ipv6_count=1) as eni:
        link = node.link(eni)
        assert link
        move(link, node.netns, pod, "eth0")
        gateway, gateway_ipv6 = (
            ip_address("192.168.1.253"),
            ip_address("2001:db8:0:101:ffff:ffff:ffff:fffd"),
        )
        wiring = Wiring(
            host=(
                LinkUp(dev="eth0"),
                Address(dev="eth0", address=ip_interface(eni.primary_ip)),
                Address(dev="eth0", address=ip_interface(eni.ipv6[0])),
                Neighbor(dev="eth0", address=gateway_ipv6, mac=GATEWAY_MAC),
                Route(dst=ip_network("0.0.0.0/0"), dev="eth0", via=gateway),
                Route(dst=ip_network("::/0"), dev="eth0", via=gateway_ipv6),
            )
        )
        engine = Engine(pod)
        engine.apply(wiring, None, "test")
        engine.close()
        for target, source in ((NODE_2, eni.primary_ip), (NODE_2_IPV6, eni.ipv6[0])):
            assert pod.run(ping, ip_address(target)) is not None
            assert node_2.run(ping, source) is not None


def test_it_falls_back_to_the_node_when_the_pods_namespace_is_gone(node: Node, node_2: Namespace) -> None:
    name = f"terway-lab-test-{uuid4().hex[:6]}"
    with node.attached(ipv6_count=1) as eni:
        link = node.link(eni)
        assert link
        with Namespace.open(create_netns(name)) as pod:
            move(link, node.netns, pod, "eth0")
            assert node.link(eni) is None
        delete_netns(name)
        back = wait_for(lambda: node.link(eni))
        assert (back.name, back.up) == ("dev0", False)
        with configured(node, eni):
            assert arrives(node.netns, str(eni.primary_ip), node_2, NODE_2, timeout=5)
            assert arrives(node.netns, str(eni.ipv6[0]), node_2, NODE_2_IPV6, timeout=5)
    assert node.link(eni) is None


@contextmanager
def tagged(node: Node, trunk: NetworkInterface, eni: NetworkInterface, vid: int) -> Iterator[None]:
    """Addresses of ``eni`` on the trunk's link, what they send with a tag."""
    link = node.link(trunk)
    assert link
    filters = (
        Clsact(dev=link.name),
        VlanPop(dev=link.name),
        *(VlanPush(dev=link.name, src=address, vid=vid) for address in (*eni.ipv4, *eni.ipv6)),
    )
    with configured(node, replace(eni, mac=trunk.mac)):
        engine = Engine(node.netns)
        engine.apply(Wiring(host=filters), None, "test")
        yield
        engine.remove(Wiring(host=filters), None, "test")
        engine.close()


def test_a_member_is_known_by_its_tag(node: Node, node_2: Namespace) -> None:
    """Also when its trunk has been in a namespace that is gone."""

    def arrive(timeout: float) -> list[bool]:
        pairs = (member.primary_ip, NODE_2), (member.ipv6[0], NODE_2_IPV6)
        return [arrives(node.netns, str(source), node_2, target, timeout=timeout) for source, target in pairs]

    with (
        node.attached(type="Trunk", ipv6_count=1) as trunk,
        node.attached(trunk_eni_id=trunk.eni_id, ipv6_count=1) as member,
        node.attached(0, trunk_eni_id=trunk.eni_id) as other,
    ):
        ids = [member.eni_id, other.eni_id]
        found = {eni.eni_id: eni for eni in node.call(ecs.describe_network_interfaces, eni_ids=ids)}
        vid, wrong = (found[eni_id].device_index for eni_id in ids)
        with tagged(node, trunk, member, vid):
            assert arrive(5) == [True, True]
            assert [node_2.run(ping, one) is not None for one in (*member.ipv4, *member.ipv6)] == [True] * 2
        with tagged(node, trunk, member, wrong):
            assert arrive(0.3) == [False, False]
        link, name = node.link(trunk), f"terway-lab-test-{uuid4().hex[:6]}"
        assert link
        with Namespace.open(create_netns(name)) as pod:
            move(link, node.netns, pod, "eth0")
        delete_netns(name)
        wait_for(lambda: node.link(trunk))
        with tagged(node, trunk, member, vid):
            wait_for(lambda: arrive(1) == [True, True])
