"""The far end of a trunk: each VLAN leads to a port of its own, and what leaves by a port has its tag."""

from ipaddress import ip_interface

import pytest

from terway_core.lab import trunk
from terway_core.lab.ping import ping
from terway_core.lab.state import LabError
from terway_core.wiring.engine import Engine
from terway_core.wiring.objects import Address, Clsact, LinkUp, Neighbor, Veth, VlanPop, VlanPush, Wiring

from .wirings import Rig

pytestmark = pytest.mark.kernel

MAC, FAR_MAC = "00:16:3e:00:00:01", "ee:ff:ff:ff:ff:ff"
VIDS = (1, 4094)


def near(vid):
    return ip_interface(f"10.{vid % 256}.0.2/24"), ip_interface(f"2001:db8:{vid}::2/64")


def far(vid):
    return ip_interface(f"10.{vid % 256}.0.1/24"), ip_interface(f"2001:db8:{vid}::1/64")


@pytest.fixture
def rig(terway_netns):
    """A node (``host``) whose addresses have a VLAN each, and a switch (``pod``) with as many ports."""
    rig = Rig(terway_netns(), terway_netns())
    switch = Engine(rig.pod)
    pair = Veth(name="trunk", peer="eth1", mac=FAR_MAC, peer_mac=MAC)
    switch.apply(Wiring(host=(pair,)), rig.host, "trunk")
    objects = [LinkUp(dev="eth1"), Clsact(dev="eth1"), VlanPop(dev="eth1")]
    for vid in VIDS:
        port = Veth(name=f"port{vid}", peer=f"x{vid}", mac=FAR_MAC, peer_mac=MAC)
        found = [Address(dev=port.name, address=address) for address in far(vid)]
        found += [Neighbor(dev=port.name, address=address.ip, mac=MAC) for address in near(vid)]
        switch.apply(Wiring(host=(port, *found)), rig.pod, port.name)
        objects += (Address(dev="eth1", address=address) for address in near(vid))
        objects += (Neighbor(dev="eth1", address=address.ip, mac=FAR_MAC) for address in far(vid))
        objects += (VlanPush(dev="eth1", src=address.ip, vid=vid) for address in near(vid))
    rig.engine.apply(Wiring(host=tuple(objects)), None, "test")
    switch.close()
    yield rig
    rig.engine.close()


@pytest.mark.parametrize("kernel", ["this", pytest.param("another", marks=pytest.mark.uml)])
def test_each_vlan_leads_to_its_port(rig, kernel):
    def reached(vid, timeout):
        return [rig.host.run(ping, address.ip, timeout=timeout) is not None for address in far(vid)]

    first, second = VIDS
    for vid in (first, second, first):
        rig.pod.run(trunk.connect, f"port{vid}", "trunk", vid)
    assert reached(first, 10) == reached(second, 10) == [True, True]
    for _ in range(2):
        rig.pod.run(trunk.disconnect, "trunk", first)
    assert reached(first, 0.3) == [False, False]
    assert reached(second, 10) == [True, True]


def test_a_trunk_that_is_gone_has_no_members(rig):
    rig.by_hand("pod", "ip link delete trunk")
    rig.pod.run(trunk.disconnect, "trunk", 1)
    with pytest.raises(LabError, match="VLAN 1 of trunk cannot be led to port1: no interface"):
        rig.pod.run(trunk.connect, "port1", "trunk", 1)
