"""The lab's own ICMP echo, against the kernel's answers."""

import uuid
from ipaddress import ip_address, ip_interface

import pytest

from terway_core.lab.ping import ping
from terway_core.wiring.engine import Engine
from terway_core.wiring.netns import Namespace, create_netns, delete_netns
from terway_core.wiring.objects import Address, LinkUp, Veth, Wiring

pytestmark = pytest.mark.kernel

NEAR, FAR = ip_interface("192.0.2.1/24"), ip_interface("192.0.2.2/24")
NEAR6, FAR6 = ip_interface("2001:db8::1/64"), ip_interface("2001:db8::2/64")


@pytest.fixture
def near():
    """A namespace from which FAR and FAR6 answer, over a veth pair."""
    names = [f"lab-test-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    here, there = (Namespace.open(create_netns(name)) for name in names)
    engine = Engine(here)
    veth = Veth(name="near", peer="far", mac="02:00:00:00:00:01", peer_mac="02:00:00:00:00:02")
    addresses = [Address(dev="near", address=address) for address in (NEAR, NEAR6)]
    peers = [Address(dev="far", address=address) for address in (FAR, FAR6)]
    engine.apply(Wiring(host=(LinkUp(dev="lo"), veth, *addresses), pod=tuple(peers)), there, "test")
    yield here
    engine.close()
    for namespace, name in zip((here, there), names, strict=True):
        namespace.close()
        delete_netns(name)


@pytest.mark.parametrize("address", [FAR.ip, FAR6.ip], ids=str)
def test_an_address_that_answers_has_a_round_trip_time(near, address):
    assert 0 < near.run(ping, address, timeout=5) < 5


@pytest.mark.parametrize("address", [NEAR.ip, NEAR6.ip], ids=str)
def test_own_requests_are_not_taken_for_replies(near, address):
    # Over lo a raw socket sees the request it sent as well as the reply.
    assert near.run(ping, address, timeout=5) > 0


@pytest.mark.parametrize("address", ["192.0.2.77", "2001:db8::77", "198.51.100.1", "2001:db8:1::1"])
def test_an_address_without_owner_or_route_gets_none(near, address):
    assert near.run(ping, ip_address(address), timeout=0.3, interval=0.1) is None
