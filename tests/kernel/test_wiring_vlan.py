"""VLAN tags on a trunk: pushed by who sends, popped from what comes, read back, taken away."""

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from terway_core.errors import WiringError
from terway_core.lab.ping import ping
from terway_core.wiring import netlink
from terway_core.wiring.engine import Engine
from terway_core.wiring.inspect import HostState
from terway_core.wiring.netlink import NetlinkSocket
from terway_core.wiring.objects import (
    Address,
    Clsact,
    LinkUp,
    Neighbor,
    Veth,
    VlanPop,
    VlanPush,
    Wiring,
)

from .wirings import Rig

pytestmark = [pytest.mark.kernel, pytest.mark.uml]

MAC, FAR_MAC = "00:16:3e:00:00:01", "ee:ff:ff:ff:ff:ff"
HERE = ip_interface("192.168.0.2/24"), ip_interface("2001:db8::2/64")
BEYOND = ip_interface("192.168.0.1/24"), ip_interface("2001:db8::1/64")
SHARED = (Clsact(dev="eth1"), VlanPop(dev="eth1"))
FULL = Wiring(node=SHARED, host=tuple(VlanPush(dev="eth1", src=one.ip, vid=7) for one in HERE))


def link_of(dev, own, others, mac):
    """A link with addresses that knows the others; asking would be without a tag."""
    return (
        LinkUp(dev=dev),
        *(Address(dev=dev, address=address) for address in own),
        *(Neighbor(dev=dev, address=address.ip, mac=mac) for address in others),
    )


@pytest.fixture
def rig(terway_netns):
    """A host whose ``eth1`` leads to somebody who hears only VLAN 7."""
    rig, beyond = Rig(terway_netns(), terway_netns()), terway_netns()
    engine = Engine(beyond)
    pair = Veth(name="far", peer="eth1", mac=FAR_MAC, peer_mac=MAC)
    engine.apply(Wiring(host=(pair,)), rig.host, "test")
    with NetlinkSocket(beyond) as sock:
        (reply,) = sock.send([netlink.new_vlan("far.7", sock.links(["far"])["far"].index, 7)])
    assert reply.errno == 0
    engine.apply(Wiring(host=link_of("far.7", BEYOND, HERE, MAC)), None, "test")
    engine.close()
    rig.engine.apply(Wiring(host=link_of("eth1", HERE, BEYOND, FAR_MAC)), None, "test")
    yield rig
    rig.engine.close()


def reached(rig, timeout):
    return [rig.host.run(ping, address.ip, timeout=timeout) is not None for address in BEYOND]


def test_packets_have_the_tag_outside_and_not_inside(rig):
    assert reached(rig, 0.3) == [False, False]
    for _ in range(2):
        rig.apply(FULL)
        assert rig.diff(FULL) == []
    assert reached(rig, 10.0) == [True, True]
    rig.remove(FULL)
    assert reached(rig, 0.3) == [False, False]
    assert HostState.read(rig.host).snapshot.vlan_filters == set()


def test_another_vlan_takes_the_place_of_the_first(rig):
    """As when a pod with a fixed address comes back with another member ENI."""
    rig.apply(replace(FULL, host=tuple(replace(push, vid=9) for push in FULL.host)))
    assert rig.diff(FULL) == [
        f"host: vlan 7 pushed onto what {one.ip} sends by eth1: is vlan 9 instead" for one in HERE
    ]
    rig.apply(FULL)
    assert rig.diff(FULL) == []


def test_filters_that_nobody_declares_are_strays(rig):
    rig.apply(FULL)
    assert HostState.read(rig.host).strays([FULL]) == []
    lost, kept = FULL.host
    strays = HostState.read(rig.host).strays([Wiring(node=SHARED, host=(kept,))])
    assert [stray.description for stray in strays] == [f"vlan 7 pushed onto what {lost.src} sends by eth1"]
    for stray in HostState.read(rig.host).strays([]):
        stray.remove(rig.engine)
    assert {line.partition(": ")[0] for line in rig.diff(FULL)} == {"node", "host"}
    rig.by_hand("host", "tc filter add dev eth1 ingress prio 3 protocol 802.1Q u32 match u32 0 0 action ok")
    assert HostState.read(rig.host).strays([]) == []  # others' filters are not ours


def test_what_the_kernel_refuses_is_named(rig):
    wrong = Wiring(node=SHARED, host=(VlanPush(dev="eth1", src=HERE[0].ip, vid=4096),))
    with pytest.raises(WiringError, match=r"refused vlan 4096 pushed onto what 192\.168\.0\.2 sends by eth1"):
        rig.apply(wrong)
    rig.remove(wrong)  # forgives that it never was
