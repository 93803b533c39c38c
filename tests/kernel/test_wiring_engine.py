"""Apply, diff and remove against the kernel itself."""

import errno
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terway_core.errors import WiringError
from terway_core.wiring.inspect import diff
from terway_core.wiring.netlink import LinkInfo, NetlinkSocket
from terway_core.wiring.objects import (
    Address,
    LinkUp,
    Neighbor,
    Route,
    Rule,
    Sysctl,
    TokenBucket,
    Veth,
    Wiring,
    describe,
)

from .conftest import require, wait_for
from .wirings import ALL4, FULL, HOP4, HOST, MAC, NODE, OWNER, POD, POD4, POD_MAC, VETH, Rig, dump

pytestmark = pytest.mark.kernel


@pytest.fixture
def rig(terway_netns):
    require("ip", "tc", "nft")
    rig = Rig(terway_netns(), terway_netns())
    yield rig
    rig.engine.close()


def subset(objects):
    return st.lists(st.sampled_from(objects), unique=True).map(tuple)


wirings = st.builds(
    Wiring, node=subset(NODE), host=subset(HOST).map(lambda objects: (VETH, *objects)), pod=subset(POD)
)


@given(wirings)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_wiring_comes_and_goes(rig, wiring):
    before = rig.state()
    for _ in range(2):
        rig.apply(wiring)
        assert rig.diff(wiring) == []
    assert rig.state() != before
    for _ in range(2):
        rig.remove(wiring)
        assert rig.state() == before


def test_everything_at_once(rig):
    before = rig.state()
    rig.apply(FULL)
    assert rig.diff(FULL) == []
    rig.remove(FULL)
    assert rig.state() == before


def test_where_the_kernel_keeps_the_other_end_to_itself_it_is_looked_up(rig, monkeypatch):
    with NetlinkSocket(rig.host) as sock, NetlinkSocket(rig.pod) as inside:
        rig.apply(FULL)
        assert sock.links([VETH.name])[VETH.name].peer == inside.links([VETH.peer])[VETH.peer].index
    rig.remove(FULL)
    monkeypatch.setattr(LinkInfo, "peer", None)
    rig.apply(FULL)
    assert rig.diff(FULL) == []


def test_shared_objects_stay_when_an_attachment_goes(rig):
    rig.apply(FULL)
    rig.engine.remove(FULL, rig.pod, OWNER)
    assert rig.diff(Wiring(node=NODE)) == []


def test_removing_what_was_never_made_is_no_error(rig):
    before = rig.state()
    rig.remove(FULL)
    assert rig.state() == before


def test_remove_after_the_pod_is_gone(rig):
    before = dump(rig.host)
    rig.apply(FULL)
    rig.engine.remove(FULL, None, OWNER)
    rig.engine.remove_shared(NODE)
    assert dump(rig.host) == before


def test_a_wiring_for_a_pod_needs_one(rig):
    before = rig.state()
    for wiring in (Wiring(host=(VETH,)), Wiring(pod=POD)):
        with pytest.raises(WiringError, match="needs the pod's network namespace"):
            rig.engine.apply(wiring, None, OWNER)
    assert rig.state() == before


def test_a_wiring_without_a_pod_needs_none(rig):
    only_host = Wiring(host=(Rule(priority=512, dst=ip_network(POD4)),))
    rig.engine.apply(only_host, None, OWNER)
    assert rig.diff(only_host) == []


# -- what a hand can break --------------------------------------------------------------------------------

BREAKS = [
    ("pod", "ip link set eth0 mtu 1300", "pod", VETH, "has mtu 1300"),
    ("host", "ip link set cali0 mtu 1300", "host", VETH, "has mtu 1300"),
    ("host", "ip link set cali0 alias other", "host", VETH, "belongs to other"),
    ("pod", "ip link set lo down", "pod", LinkUp(dev="lo"), "is down"),
    ("pod", "ip -6 addr del fd00::2/128 dev eth0", "pod", POD[2], "missing"),
    ("pod", "ip neigh del 169.254.1.1 dev eth0", "pod", POD[3], "missing"),
    (
        "pod",
        "ip neigh replace fe80::1 dev eth0 lladdr 0a:00:00:00:00:09",
        "pod",
        POD[4],
        "has lladdr 0a:00:00:00:00:09",
    ),
    (
        "host",
        "ip neigh replace 172.20.0.2 dev cali0 lladdr 0a:00:00:00:00:02 nud reachable",
        "host",
        HOST[3],
        "is not permanent",
    ),
    ("pod", "ip route del default", "pod", POD[5], "missing"),
    (
        "pod",
        "ip route replace default via 169.254.1.2 dev eth0 onlink",
        "pod",
        POD[5],
        "is route default via 169.254.1.2 dev eth0 instead",
    ),
    ("pod", "ip -6 route del default", "pod", POD[6], "missing"),
    ("host", "ip route del 172.20.0.2/32", "host", HOST[5], "missing"),
    ("host", "ip -6 route del fd08::/16 table 100000", "host", HOST[8], "missing"),
    ("pod", "ip rule del priority 512 from 172.20.0.2", "pod", POD[8], "missing"),
    ("pod", "ip -6 rule del priority 512", "pod", POD[9], "missing"),
    ("host", "ip rule del priority 2051", "host", HOST[14], "missing"),
    ("host", "ip rule del priority 2052", "host", HOST[15], "missing"),
    ("host", "tc qdisc del dev cali0 root", "host", HOST[18], "missing"),
    (
        "pod",
        "tc qdisc replace dev eth0 root tbf rate 1mbit burst 64k limit 128k",
        "pod",
        POD[11],
        "has rate 125000 B/s",
    ),
    ("host", "sysctl -qw net.ipv4.conf.cali0.rp_filter=2", "host", HOST[16], "is 2"),
    ("host", "sysctl -qw net.ipv4.ip_forward=0", "node", NODE[1], "is 0"),
    ("host", "ip rule del priority 3000", "node", NODE[2], "missing"),
    ("host", "ip route flush table 102", "node", NODE[3], "missing"),
    ("host", "nft flush chain inet terway postrouting", "node", NODE[4], "missing"),
]


@pytest.mark.parametrize(("where", "command", "part", "obj", "problem"), BREAKS, ids=[b[1] for b in BREAKS])
def test_diff_names_exactly_what_was_broken(rig, where, command, part, obj, problem):
    # The second masquerade goes with the first when the chain is flushed.
    wiring = replace(FULL, node=NODE[:5])
    rig.apply(wiring)
    rig.by_hand(where, command)
    (difference,) = rig.diff(wiring)
    if obj is VETH and part == "pod":
        assert difference.startswith("pod: veth eth0 mac 0a:00:00:00:00:02")
    else:
        assert difference.startswith(f"{part}: {describe(obj)}: ")
    assert problem in difference


DESTRUCTIVE = [
    ("pod", "ip link set eth0 down", "pod", "eth0", "is down"),
    ("host", "ip link set cali0 down", "host", "cali0", "is down"),
    ("host", "ip link del cali0", "host", "cali0", "missing"),
    ("pod", "ip link del eth0", "pod", "eth0", "missing"),
    ("pod", "ip link set eth0 down name eth9", "pod", "eth0", "missing"),
    # A new MAC address makes the kernel forget the neighbours, the last address of a family its routes.
    ("pod", "ip link set eth0 address 0a:00:00:00:00:09", "pod", "veth eth0", "has mac 0a:00:00:00:00:09"),
    ("pod", "ip addr del 172.20.0.2/32 dev eth0", "pod", "address 172.20.0.2/32", "missing"),
    ("host", "ip addr del 192.0.2.1/32 dev cali0", "host", "address 192.0.2.1/32", "missing"),
]


@pytest.mark.parametrize(
    ("where", "command", "part", "what", "problem"), DESTRUCTIVE, ids=[b[1] for b in DESTRUCTIVE]
)
def test_diff_names_what_goes_with_what_was_broken(rig, where, command, part, what, problem):
    rig.apply(FULL)
    rig.by_hand(where, command)
    found = rig.diff(FULL)
    assert any(line.startswith(f"{part}: ") and what in line and problem in line for line in found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("command", [b[1] for b in BREAKS if b[0] == "pod"])
def test_applying_again_repairs_the_pod(rig, command):
    rig.apply(FULL)
    rig.by_hand("pod", command)
    assert rig.diff(FULL)
    rig.apply(FULL)
    assert rig.diff(FULL) == []


def test_links_that_belong_to_another_are_named(rig):
    rig.apply(Wiring(host=(VETH,)), owner="m:net/c2/eth0")
    (difference,) = rig.diff(Wiring(host=(VETH,)))
    assert difference.endswith("belongs to m:net/c2/eth0")


# -- what the kernel refuses ------------------------------------------------------------------------------


def refused(dev):
    """For each kind an object that the kernel does not take."""
    return (
        Sysctl(key="ipv4/no/such/key", value="1"),
        Sysctl(key="ipv4/ip_forward", value="many"),
        Sysctl(key="../kernel/hostname", value="x"),
        LinkUp(dev=dev, mtu=2**31),
        Address(dev=dev, address=ip_interface("ff02::1/128")),
        Neighbor(dev=dev, address=HOP4, mac="0a:00"),
        Route(dst=ALL4, dev=dev, via=ip_address("224.0.0.1")),
        Route(dst=ALL4, dev="nowhere", via=HOP4),
        Rule(priority=1, iif="a-name-that-is-far-too-long"),
        TokenBucket(dev=dev, rate=0, burst=0, limit=0),
    )


@pytest.mark.parametrize("number", range(len(refused(""))))
@pytest.mark.parametrize("where", ["host", "pod"])
def test_a_refused_object_is_named_and_all_goes_again(rig, where, number):
    before = rig.state()
    bad = refused("cali0" if where == "host" else "eth0")[number]
    wiring = replace(FULL, node=(), **{where: (*getattr(FULL, where), bad)})
    with pytest.raises(WiringError) as caught:
        rig.engine.apply(wiring, rig.pod, OWNER)
    assert describe(bad) in caught.value.message
    assert isinstance(bad, Sysctl) or f" on the {where}" in caught.value.message
    rig.engine.remove(wiring, rig.pod, OWNER)
    assert rig.state() == before


@pytest.mark.parametrize(
    "bad",
    [
        Veth(name="a/b", peer="eth0", mac=MAC, peer_mac=POD_MAC),
        Veth(name="cali0", peer="eth0", mac="00:00:00:00:00:00", peer_mac=POD_MAC),
        Veth(name="cali0", peer="eth0", mac=MAC, peer_mac="ff:ff:ff:ff:ff:ff"),
        Veth(name="cali0", peer="eth0", mac=MAC, peer_mac=POD_MAC, mtu=66_000),
        Veth(name="cali0", peer="a-name-that-is-far-too-long", mac=MAC, peer_mac=POD_MAC),
    ],
    ids=describe,
)
def test_a_refused_veth_is_named_and_leaves_nothing(rig, bad):
    before = rig.state()
    with pytest.raises(WiringError) as caught:
        rig.apply(Wiring(host=(bad,)))
    assert describe(bad) in caught.value.message
    rig.remove(Wiring(host=(bad,)))
    assert rig.state() == before


def test_the_kernel_explains_itself(rig):
    obj = Route(dst=ip_network("10.0.0.0/8"), dev="cali0", via=ip_address("224.0.0.1"))
    with pytest.raises(WiringError, match="Nexthop has invalid gateway") as caught:
        rig.apply(Wiring(host=(VETH, obj)))
    assert caught.value.details == f"errno {errno.errorcode[errno.EINVAL]}"


# -- what is not ours -------------------------------------------------------------------------------------


def test_a_foreign_link_on_the_host_is_left_alone(rig):
    rig.by_hand("host", "ip link add cali0 type veth peer name foreign0")
    before = rig.state()
    with pytest.raises(WiringError, match="a link cali0 on the host exists and is not ours"):
        rig.engine.apply(FULL, rig.pod, OWNER)
    rig.engine.remove(Wiring(host=(VETH,)), rig.pod, OWNER)
    assert rig.state() == before


def test_a_foreign_link_in_the_pod_is_left_alone(rig):
    rig.by_hand("pod", "ip link add eth0 type veth peer name foreign0")
    before = rig.state()
    with pytest.raises(WiringError, match="a link eth0 in the pod exists and is not ours"):
        rig.engine.apply(FULL, rig.pod, OWNER)
    rig.engine.remove(Wiring(host=(VETH,)), rig.pod, OWNER)
    assert rig.state() == before


def test_a_link_of_another_attachment_is_left_alone(rig):
    other, theirs = "m:net/c2/eth0", Wiring(host=(VETH,))
    rig.apply(theirs, other)
    with pytest.raises(WiringError, match="is not ours"):
        rig.engine.apply(FULL, rig.pod, OWNER)
    rig.engine.remove(FULL, rig.pod, OWNER)
    assert diff(theirs, rig.pod, owner=other, host=rig.host) == []


def test_a_link_that_a_kill_left_unnamed_is_taken_in(rig):
    rig.apply(Wiring(host=(VETH,)))
    rig.by_hand("host", "ip link set cali0 down alias ''")
    rig.engine.apply(FULL, rig.pod, OWNER)
    assert rig.diff(replace(FULL, node=())) == []


def test_foreign_rules_routes_and_addresses_stay(rig):
    for command in (
        "ip link add up0 type veth peer name up1",
        "ip link set up1 up addrgenmode none",
        "ip link set up0 up addrgenmode none",
        "ip addr add 172.20.0.9/24 dev up0",
        "ip route add 10.8.0.0/16 dev up0",
        "ip rule add to 172.20.0.2 priority 511",
        "nft add table inet other",
    ):
        rig.by_hand("host", command)
    for link in ("up0", "up1"):
        wait_for(lambda link=link: "state UP" in rig.by_hand("host", f"ip link show {link}"), f"{link} is up")
    before = rig.state()
    rig.apply(FULL)
    rig.remove(FULL)
    assert rig.state() == before


def test_links_of_one_name_in_many_pods(rig, terway_netns):
    with ExitStack() as stack:
        for number in range(3):
            other = replace(VETH, name=f"cali{number}")
            pod = terway_netns()
            rig.engine.apply(Wiring(host=(other,)), pod, OWNER)
            stack.callback(rig.engine.remove, Wiring(host=(other,)), pod, OWNER)
            with NetlinkSocket(pod) as sock:
                assert set(sock.links(["eth0"])) == {"eth0"}
