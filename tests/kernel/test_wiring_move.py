"""A link that moves into the pod, as an ENI of its own does; here the end of a veth pair stands for it."""

import pytest

from terway_core.errors import WiringError
from terway_core.wiring.netlink import NetlinkSocket
from terway_core.wiring.objects import MoveLink, Wiring

from .conftest import require
from .wirings import OWNER, POD, Rig

pytestmark = pytest.mark.kernel

ENI = MoveLink(mac="00:16:3e:00:00:01", name="eth0", mtu=1400)
OTHER_MAC = "00:16:3e:00:00:02"
WIRING = Wiring(host=(ENI,), pod=POD)


@pytest.fixture
def rig(terway_netns):
    require("ip", "tc", "nft")
    rig = Rig(terway_netns(), terway_netns())
    rig.by_hand("host", f"ip link add eth1 address {ENI.mac} type veth peer name switch0")
    yield rig
    rig.engine.close()


def links(namespace):
    with NetlinkSocket(namespace) as sock:
        return set(sock.links(["eth0", "eth1", ENI.host_name]))


def test_it_moves_in_and_comes_back(rig):
    for _ in range(2):
        rig.apply(WIRING)
        assert rig.diff(WIRING) == []
    assert (links(rig.host), links(rig.pod)) == (set(), {"eth0"})
    for _ in range(2):
        rig.remove(WIRING)
        assert (links(rig.host), links(rig.pod)) == ({ENI.host_name}, set())
    rig.apply(WIRING)  # under whatever name it is found
    assert rig.diff(WIRING) == []


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("ip link set eth0 mtu 1300", "has mtu 1300"),
        ("ip link set eth0 down", "is down"),
        ("ip link set eth0 down name eth9", "missing"),
    ],
)
def test_what_a_hand_breaks_is_named(rig, command, problem):
    rig.apply(WIRING)
    rig.by_hand("pod", command)
    assert any("00:16:3e:00:00:01" in line and problem in line for line in rig.diff(WIRING))
    rig.apply(WIRING)
    assert rig.diff(WIRING) == []


def test_a_link_that_is_nowhere_is_named(rig):
    rig.by_hand("host", "ip link del eth1")
    with pytest.raises(WiringError, match=r"00:16:3e:00:00:01 .*neither the host nor the pod"):
        rig.engine.apply(WIRING, rig.pod, OWNER)
    rig.remove(WIRING)


def test_a_taken_name_is_an_error_and_the_link_comes_back(rig):
    """The kernel moves it first, under its old name, and finds only then that the new one is taken."""
    rig.by_hand("pod", "ip link add eth0 type veth peer name other0")
    with pytest.raises(WiringError, match="00:16:3e:00:00:01"):
        rig.engine.apply(WIRING, rig.pod, OWNER)
    rig.engine.remove(WIRING, rig.pod, OWNER)
    assert (links(rig.host), links(rig.pod)) == ({ENI.host_name}, {"eth0"})


def test_a_link_is_found_wherever_its_address_goes(rig):
    """It is remembered where one was, so what was remembered must not outlive the truth."""
    found = rig.engine.find_link(ENI.mac)
    assert found.name == "eth1"
    assert rig.engine.find_link(ENI.mac) == found
    rig.by_hand("host", "ip link set eth1 name ens5")
    assert rig.engine.find_link(ENI.mac).name == "ens5"
    rig.by_hand("host", f"ip link set ens5 address {OTHER_MAC}")
    assert rig.engine.find_link(ENI.mac) is None
    assert rig.engine.find_link(OTHER_MAC).name == "ens5"
    rig.by_hand("host", "ip link del ens5")
    rig.by_hand("host", f"ip link add ens5 address {ENI.mac} type veth peer name switch0")
    assert rig.engine.find_link(OTHER_MAC) is None
    assert rig.engine.find_link(ENI.mac).name == "ens5"
