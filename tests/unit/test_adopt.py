"""Pods whose rows are lost are taken in with all that the kernel has of them."""

from ipaddress import ip_address, ip_network

import pytest

from terway_core.daemon.adopt import adopt
from terway_core.store import Store
from terway_core.wiring.inspect import HostState
from terway_core.wiring.netlink import OURS
from terway_core.wiring.objects import Route, Rule, VlanPop, VlanPush
from terway_core.wiring.snapshot import Link, Snapshot

POD = ip_address("192.168.1.7")
ALONE = ip_network(POD)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "terway.db")
    yield store
    store.close()


def test_a_pod_on_a_trunk(store):
    links = [
        Link(name="eth1", index=3, up=True, mtu=1500, mac="00:16:3e:00:00:01", kind="", alias="", group=0),
        Link(
            name="cali1",
            index=4,
            up=True,
            mtu=1500,
            mac="0a:00:00:00:00:01",
            kind="veth",
            alias="terway:trunking:net/c1/eth0",
            group=OURS,
        ),
    ]
    gateway = Route(dst=ip_network("0.0.0.0/0"), dev="eth1", via=ip_address("192.168.0.253"), table=1003)
    push, pop = VlanPush(dev="eth1", src=POD, vid=7), VlanPop(dev="eth1")
    own = [Rule(priority=511, src=ALONE, iif="cali1", table=1003), Rule(priority=512, dst=ALONE, iif="eth1")]
    state = HostState(
        Snapshot(
            links={link.name: link for link in links},
            routes={Route(dst=ALONE, dev="cali1"): OURS, gateway: OURS},
            rules=dict.fromkeys(own, OURS),
            neighbors={("cali1", POD): ("0a:00:00:00:00:02", True)},
            vlan_filters={push, pop},
        ),
        frozenset(),
    )
    adopt(store, state, 0.0)
    (record,) = store.records()
    assert (record.driver, [address.ip for address in record.lease.addresses]) == ("trunking", [POD])
    assert {push, *own} <= {*record.wiring.host}
    assert {*record.wiring.node} == {pop, gateway}
    assert state.strays([record.wiring]) == []
