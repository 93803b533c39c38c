"""Children of an ENI, and what leads past the VPC into the host's stack: made, read back, taken away."""

import itertools
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from terway_core.errors import WiringError
from terway_core.lab.ping import ping
from terway_core.wiring import probe
from terway_core.wiring.engine import Engine
from terway_core.wiring.inspect import HostState
from terway_core.wiring.netlink import NetlinkSocket
from terway_core.wiring.netns import Namespace, temporary_netns
from terway_core.wiring.objects import (
    Address,
    Clsact,
    Ipvlan,
    LinkUp,
    Neighbor,
    Redirect,
    Route,
    Sysctl,
    Veth,
    Wiring,
    describe,
)

from .conftest import wait_for
from .wirings import OWNER, Rig, run_in, traces

pytestmark = [pytest.mark.kernel, pytest.mark.uml]

ENI_MAC, GATEWAY_MAC = "00:16:3e:00:00:01", "ee:ff:ff:ff:ff:ff"
GATEWAY, GATEWAY6 = ip_address("192.168.0.253"), ip_address("2001:db8::fd")
NODE, NODE6 = ip_interface("192.168.0.10/32"), ip_interface("2001:db8::a/128")
SERVICES, SERVICES6 = ip_network("172.21.0.0/20"), ip_network("fd21::/112")
#: Shared by the pods of an ENI.
SHARED = (
    LinkUp(dev="eth1"),
    Ipvlan(name="ipvl_3", parent="eth1", arp=False),
    Clsact(dev="eth1"),
    Address(dev="ipvl_3", address=NODE),
    Address(dev="ipvl_3", address=NODE6),
    Sysctl(key="ipv4/conf/ipvl_3/forwarding", value="1"),
    Redirect(dev="eth1", dst=SERVICES, to="ipvl_3"),
    Redirect(dev="eth1", dst=SERVICES6, to="ipvl_3"),
)


def wiring(number: int = 1, ifname: str = "eth0") -> Wiring:
    pod4, pod6 = ip_interface(f"192.168.0.{20 + number}/32"), ip_interface(f"2001:db8::{20 + number}/128")
    return Wiring(
        node=SHARED,
        host=(
            Route(dst=ip_network(pod4), dev="ipvl_3"),
            Route(dst=ip_network(pod6), dev="ipvl_3"),
            Redirect(dev="eth1", dst=ip_network(pod4), to="eth1"),
            Redirect(dev="eth1", dst=ip_network(pod6), to="eth1"),
        ),
        pod=(
            Ipvlan(name=ifname, parent="eth1"),
            Sysctl(key=f"ipv6/conf/{ifname}/accept_dad", value="0"),
            Address(dev=ifname, address=pod4),
            Address(dev=ifname, address=pod6),
            Neighbor(dev=ifname, address=NODE.ip, mac=ENI_MAC),
            Neighbor(dev=ifname, address=NODE6.ip, mac=ENI_MAC),
            Neighbor(dev=ifname, address=GATEWAY, mac=GATEWAY_MAC),
            Neighbor(dev=ifname, address=GATEWAY6, mac=GATEWAY_MAC),
            Route(dst=ip_network(NODE), dev=ifname),
            Route(dst=ip_network(NODE6), dev=ifname),
            Route(dst=ip_network("0.0.0.0/0"), dev=ifname, via=GATEWAY),
            Route(dst=ip_network("::/0"), dev=ifname, via=GATEWAY6),
        ),
    )


FULL = wiring()


def plug_in(host: Namespace, beyond: Namespace) -> None:
    """Give the host an ENI and an ``eth0`` of its own; what the ENI sends vanishes beyond."""
    engine = Engine(beyond)
    eni = Veth(name="far1", peer="eth1", mac=GATEWAY_MAC, peer_mac=ENI_MAC)
    primary = Veth(name="far0", peer="eth0", mac="0a:00:00:00:00:01", peer_mac="0a:00:00:00:00:02")
    engine.apply(Wiring(host=(eni, primary)), host, "test")
    engine.close()


@pytest.fixture
def rig(terway_netns):
    rig = Rig(terway_netns(), terway_netns())
    plug_in(rig.host, terway_netns())
    yield rig
    rig.engine.close()


@pytest.fixture(scope="module")
def world():
    """A rig that many tests share: each leaves it wired as ``FULL`` says."""
    with temporary_netns() as host, temporary_netns() as pod, temporary_netns() as beyond:
        plug_in(host, beyond)
        rig = Rig(host, pod)
        rig.apply(FULL)
        yield rig
        rig.engine.close()


def reaches(namespace: Namespace, address: object, timeout: float = 2.0) -> bool:
    return namespace.run(ping, ip_address(str(address)), timeout=timeout) is not None


def test_this_kernel_has_what_another_lacks():
    samples = [
        Ipvlan(name="child", parent=probe.LINK),
        Clsact(dev=probe.LINK),
        Redirect(dev=probe.LINK, dst=SERVICES, to="child"),
        Redirect(dev=probe.LINK, dst=SERVICES6, to="child"),
    ]
    assert probe.preflight(samples, "") is None


BROKEN = [
    ("pod", "ip link set eth0 mtu 1400", {"pod: ipvlan eth0 link eth1 mode l2 mtu 1500: has mtu 1400"}),
    ("pod", "ip -6 addr del 2001:db8::21/128 dev eth0", {"pod: address 2001:db8::21/128 dev eth0: missing"}),
    (
        "pod",
        "ip neigh replace 192.168.0.10 dev eth0 lladdr 0a:00:00:00:00:09 nud permanent",
        {
            "pod: neighbour 192.168.0.10 lladdr 00:16:3e:00:00:01 dev eth0 permanent: "
            "has lladdr 0a:00:00:00:00:09"
        },
    ),
    (
        "host",
        "ip link set ipvl_3 arp on",
        {"node: ipvlan ipvl_3 link eth1 mode l2 mtu 1500 noarp: resolves neighbours"},
    ),
    (
        "host",
        "tc filter del dev eth1 egress pref 40112 protocol ip",
        {"node: redirect 172.21.0.0/20 from eth1 egress to ipvl_3 ingress: missing"},
    ),
    (
        "host",
        "tc filter del dev eth1 egress pref 40200 protocol ipv6",
        {"host: redirect 2001:db8::21/128 from eth1 egress to eth1 ingress: missing"},
    ),
    (
        "host",
        "tc filter replace dev eth1 egress pref 40112 protocol ip handle 0xac150fff flower"
        " dst_ip 172.21.0.0/20 action mirred ingress redirect dev eth0",
        {
            "node: redirect 172.21.0.0/20 from eth1 egress to ipvl_3 ingress: "
            "is redirect 172.21.0.0/20 from eth1 egress to eth0 ingress instead"
        },
    ),
    (
        "host",
        "ip route del 192.168.0.21",
        {"host: route 192.168.0.21/32 dev ipvl_3: missing"},
    ),
]


@pytest.mark.parametrize(("where", "command", "named"), BROKEN, ids=[command for _, command, _ in BROKEN])
def test_diff_names_what_was_broken_and_applying_again_mends_it(world, where, command, named):
    world.by_hand(where, command)
    found = set(world.diff(FULL))
    world.apply(FULL)
    assert (found, world.diff(FULL)) == (named, [])


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("tc qdisc del dev eth1 clsact", {"node: clsact dev eth1: missing"}),
        (
            "ip link del ipvl_3",
            {
                "node: ipvlan ipvl_3 link eth1 mode l2 mtu 1500 noarp: missing",
                "node: redirect 172.21.0.0/20 from eth1 egress to ipvl_3 ingress: "
                "is redirect 172.21.0.0/20 from eth1 egress to a lost link ingress instead",
                "host: route 192.168.0.21/32 dev ipvl_3: missing, and so is its link ipvl_3",
            },
        ),
    ],
)
def test_diff_names_also_what_went_with_it(world, command, named):
    world.by_hand("host", command)
    found = set(world.diff(FULL))
    world.apply(FULL)
    assert (named - found, world.diff(FULL)) == (set(), [])


def test_another_kind_of_link_is_no_child(world):
    world.by_hand("pod", "ip link del eth0; ip link add eth0 up type dummy")
    found = world.diff(FULL)
    world.by_hand("pod", "ip link del eth0")
    world.apply(FULL)
    assert "pod: ipvlan eth0 link eth1 mode l2 mtu 1500: is a link of kind dummy" in found
    assert world.diff(FULL) == []


def test_node_and_pods_reach_each_other(rig, terway_netns):
    other, second = terway_netns(), wiring(2)
    rig.apply(FULL)
    rig.engine.apply(second, other, "m:net/c2/eth0")
    for address in ("192.168.0.21", "2001:db8::21", "192.168.0.22"):
        assert reaches(rig.host, address)
    for address in (NODE.ip, NODE6.ip, "192.168.0.22", "2001:db8::22"):
        assert reaches(rig.pod, address)
    assert reaches(other, "192.168.0.21")
    # The ENI sends nothing of this: beyond it nobody would answer.
    rig.engine.remove(replace(second, pod=()), None, "m:net/c2/eth0")
    assert not reaches(rig.pod, "192.168.0.22", timeout=0.3)


def test_a_service_address_of_the_host_answers(rig):
    run_in(rig.host, "ip addr add 172.21.0.53/32 dev lo; ip addr add fd21::53/128 dev lo")
    rig.apply(FULL)
    assert reaches(rig.pod, "172.21.0.53")
    assert reaches(rig.pod, "fd21::53")
    rig.engine.remove_shared(obj for obj in SHARED if isinstance(obj, Redirect))
    assert not reaches(rig.pod, "172.21.0.53", timeout=0.3)


def test_the_longest_prefix_wins(rig):
    run_in(rig.host, "ip link add trap up type dummy; ip addr add 172.21.0.53/32 dev lo")
    rig.apply(replace(FULL, node=(*SHARED, Redirect(dev="eth1", dst=ip_network("172.21.0.53"), to="trap"))))
    run_in(rig.host, "tc qdisc add dev trap clsact; tc filter add dev trap ingress matchall action drop")
    assert not reaches(rig.pod, "172.21.0.53", timeout=0.3)
    run_in(rig.host, "tc qdisc del dev trap clsact")
    assert reaches(rig.pod, "172.21.0.53")


def test_everything_undeclared_is_a_stray_and_can_go(rig):
    run_in(rig.host, "ip link set eth1 up; tc qdisc add dev eth1 clsact")
    foreign = (
        "tc filter add dev eth1 egress pref 40000 protocol ip u32 match ip dst 172.21.0.0/20 action drop"
    )
    run_in(rig.host, foreign)
    before = traces(rig.host, rig.pod)
    rig.apply(FULL)
    state = HostState.read(rig.host)
    assert state.strays([FULL]) == []
    marked = {describe(obj) for obj in (*FULL.node, *FULL.host) if isinstance(obj, Redirect)}
    assert {stray.description for stray in state.strays([])} == {"link ipvl_3 of nobody", *marked}
    for stray in state.strays([]):
        stray.remove(rig.engine)
    assert HostState.read(rig.host).strays([]) == []
    assert traces(rig.host, rig.pod)[0] == before[0]
    assert "40000" in run_in(rig.host, "tc filter show dev eth1 egress")


def test_removing_one_of_two_spares_the_other(rig, terway_netns):
    other, second = terway_netns(), wiring(2)
    rig.apply(FULL)
    before = traces(rig.host, rig.pod)
    rig.engine.apply(second, other, "m:net/c2/eth0")
    rig.engine.remove(second, other, "m:net/c2/eth0")
    assert traces(rig.host, rig.pod) == before
    assert run_in(other, "ip -o link").count("\n") == 1  # lo


class Killed(Exception):
    """Stands for SIGKILL: whatever was under way ends here."""


@pytest.fixture
def killed_at(monkeypatch):
    """Have the process killed, as it were, before it sends its Nth batch of messages."""
    send = NetlinkSocket.send

    def at(number: int) -> None:
        left = itertools.count(number, -1)

        def sending(self, messages):
            if messages and next(left) == 0:
                monkeypatch.setattr(NetlinkSocket, "send", send)
                raise Killed
            return send(self, messages)

        monkeypatch.setattr(NetlinkSocket, "send", sending)

    return at


def test_what_a_kill_left_half_made_can_be_removed_and_completed(rig, killed_at):
    clean = traces(rig.host, rig.pod)
    for step in itertools.count():
        killed_at(step)
        try:
            rig.apply(FULL)
        except Killed:
            rig.remove(FULL)
            assert traces(rig.host, rig.pod) == clean, f"killed at step {step}, then removed"
            killed_at(step)
            with pytest.raises(Killed):
                rig.apply(FULL)
            rig.apply(FULL)
            assert rig.diff(FULL) == [], f"killed at step {step}, then made again"
            rig.remove(FULL)
        else:
            break
    assert step > 5


def test_a_kill_while_removing_is_made_good_by_removing_again(rig, killed_at):
    clean = traces(rig.host, rig.pod)
    for step in itertools.count():
        rig.apply(FULL)
        killed_at(step)
        try:
            rig.remove(FULL)
        except Killed:
            rig.remove(FULL)
        else:
            break
        assert traces(rig.host, rig.pod) == clean, f"killed at step {step}"
    assert step > 3


def test_a_foreign_link_is_left_alone(rig):
    rig.by_hand("pod", "ip link add eth0 type dummy")
    with pytest.raises(WiringError, match="a link eth0 in the pod exists and is not ours"):
        rig.apply(FULL)
    rig.remove(FULL)
    assert "dummy" in rig.by_hand("pod", "ip -d link show eth0")


def test_a_foreign_link_on_the_host_is_left_alone(rig):
    run_in(rig.host, "ip link add ipvl_3 type dummy")
    with pytest.raises(WiringError, match="a link ipvl_3 exists and is not ours"):
        rig.apply(FULL)
    rig.remove(FULL)
    assert "dummy" in run_in(rig.host, "ip -d link show ipvl_3")


@pytest.mark.parametrize("part", ["node", "pod"])
def test_a_missing_parent_is_named(rig, part):
    child = Ipvlan(name="child", parent="eth7")
    with pytest.raises(WiringError, match="the host has no link eth7"):
        rig.apply(Wiring(**{part: (child,)}))


def test_two_interfaces_of_one_pod(rig):
    second = wiring(2, "net1")
    second = replace(second, pod=second.pod[:4])
    rig.apply(FULL)
    rig.engine.apply(second, rig.pod, "m:net/c1/net1")
    assert reaches(rig.host, "192.168.0.21")
    rig.engine.remove(second, rig.pod, "m:net/c1/net1")
    assert rig.diff(FULL) == []


def test_whether_the_pod_lives_is_seen_without_its_namespace(terway_netns):
    rig = Rig(terway_netns(), terway_netns())
    plug_in(rig.host, terway_netns())
    with temporary_netns() as pod:
        rig.engine.ensure(FULL.node)
        rig.engine.apply(FULL, pod, OWNER)
        before = traces(rig.host, rig.pod)
        assert rig.engine.has_link(FULL, OWNER)
        assert traces(rig.host, rig.pod) == before
    # The kernel takes a namespace apart when it has time.
    wait_for(lambda: not rig.engine.has_link(FULL, OWNER), "the pod's link is gone")
    assert traces(rig.host, rig.pod) == before
    rig.engine.close()
