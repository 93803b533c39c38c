"""The vpc mode, called as the daemon calls it."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from terway_driver_vpc import VpcDriver

from terway_core.errors import InvalidConfig, NoAddress, RetryLater
from terway_core.record import Record, State
from terway_core.registry import Drivers
from terway_core.testing.fakes import NoCloud, make_attachment
from terway_core.types import GcReport, Lease, Node, Problem, Services
from terway_core.wiring import nft
from terway_core.wiring.objects import Masquerade, Route, Rule, describe

V4, V6 = "172.20.1.0/29", "fd00:1::/125"
CLUSTER = ["172.20.0.0/16", "fd00::/16"]
NODE = Node(name="node-1", vpc_cidrs=(ip_network("10.0.0.0/8"), ip_network("2408::/56")), mtu=1450)


class Rig:
    def __init__(self, store, clock):
        self.store, self.clock = store, clock
        self.drivers = Drivers()
        self.drivers.register("vpc", VpcDriver())

    def start(self, *pod_cidrs, node=NODE, kube=None, **options):
        if pod_cidrs:
            options["pod_cidrs"] = pod_cidrs
        services = Services(
            options={"cluster_cidrs": CLUSTER, **options},
            node=node,
            kube=kube,
            store=self.store,
            cloud=NoCloud(),
            eni_pool=None,
            clock=self.clock,
        )
        self.drivers.start("vpc", services)

    def allocate(self, number, ifname="eth0"):
        return self.drivers.allocate("vpc", make_attachment(number, ifname=ifname), NODE)

    def setup(self, number, ifname="eth0", node=NODE):
        attachment = make_attachment(number, ifname=ifname)
        return self.drivers.setup("vpc", attachment, self.allocate(number, ifname), node)

    def teardown(self, number, ifname="eth0"):
        return self.drivers.teardown("vpc", make_attachment(number, ifname=ifname), None).changed

    def gc(self, *numbers):
        return self.drivers.gc("vpc", tuple(map(make_attachment, numbers)), NODE)

    def owned(self):
        with self.store.read() as db:
            rows = db.execute("SELECT address FROM addresses WHERE owner IS NOT NULL ORDER BY address")
            return [address for (address,) in rows]


@pytest.fixture
def rig(terway_store, terway_clock):
    return Rig(terway_store, terway_clock)


def words(objects):
    return [describe(obj) for obj in objects]


# -- pod CIDRs of Kubernetes --------------------------------------------------------------------------------


def test_pod_cidrs_of_the_node_object(rig):
    rig.start(node=replace(NODE, pod_cidrs=(ip_network(V4), ip_network(V6))), kube=object())
    assert [str(address) for address in rig.allocate(1).addresses] == ["172.20.1.1/32", "fd00:1::1/128"]


def test_configured_pod_cidrs_win(rig):
    rig.start(V4, node=replace(NODE, pod_cidrs=(ip_network("172.20.9.0/24"),)), kube=object())
    assert [str(address) for address in rig.allocate(1).addresses] == ["172.20.1.1/32"]


def test_node_object_without_a_pod_cidr_yet(rig):
    with pytest.raises(RetryLater, match="none to node node-1"):
        rig.start(kube=object())


def test_no_pod_cidr_and_no_kubernetes(rig):
    with pytest.raises(InvalidConfig, match=r"options\.vpc\.pod_cidrs"):
        rig.start()


# -- leases -----------------------------------------------------------------------------------------------


def test_lease_of_each_family(rig):
    rig.start(V4, V6)
    assert rig.allocate(1) == Lease(
        addresses=(ip_interface("172.20.1.1/32"), ip_interface("fd00:1::1/128")),
        gateways=(ip_address("169.254.1.1"), ip_address("fe80::1")),
    )


def test_two_interfaces_of_a_pod_are_two_leases(rig):
    rig.start(V4)
    assert rig.allocate(1, "eth0").addresses != rig.allocate(1, "eth1").addresses
    assert rig.teardown(1, "eth0")
    assert rig.owned() == ["172.20.1.2"]


def test_exhaustion_says_what_to_do(rig):
    rig.start(V4)
    for number in range(6):
        rig.allocate(number)
    with pytest.raises(NoAddress, match=r"172\.20\.1\.0/29: 6 are owned by pods and 0 rest .* larger CIDR"):
        rig.allocate(7)


def test_dual_stack_is_both_or_neither(rig):
    rig.start("172.20.1.0/29", "fd00:1::/127")
    for number in range(2):
        rig.allocate(number)
    with pytest.raises(NoAddress, match="fd00:1::/127"):
        rig.allocate(2)
    assert rig.owned() == ["172.20.1.1", "172.20.1.2", "fd00:1::", "fd00:1::1"]


def test_a_released_address_rests(rig, terway_clock):
    rig.start("172.20.1.1/32", rest_seconds=10)
    rig.allocate(1)
    assert rig.teardown(1)
    assert not rig.teardown(1)
    with pytest.raises(NoAddress, match="1 rest for up to 10 s"):
        rig.allocate(2)
    terway_clock.advance(10)
    rig.allocate(2)


def test_leases_outlive_the_daemon(rig, terway_store, terway_clock):
    rig.start(V4)
    lease = rig.allocate(1)
    again = Rig(terway_store, terway_clock)
    again.start(V4)
    assert again.allocate(1) == lease
    assert again.allocate(2) != lease


@pytest.mark.parametrize("cidrs", [["172.20.9.0/24"], ["172.20.1.0/30"], [V4, V6]])
def test_pods_of_an_earlier_configuration_give_their_addresses_back(rig, terway_store, terway_clock, cidrs):
    rig.start(V4, rest_seconds=0)
    for number in range(6):
        rig.allocate(number)
    again = Rig(terway_store, terway_clock)
    again.start(*cidrs, rest_seconds=0)
    for number in range(5):
        assert again.teardown(number)
    assert again.gc() == GcReport(released=(f"address 172.20.1.6 of {make_attachment(5).key}",))
    assert again.owned() == []


def test_before_its_start_the_driver_asks_to_be_called_again(rig):
    for call in (lambda: rig.allocate(1), lambda: rig.teardown(1), rig.gc):
        with pytest.raises(RetryLater, match="not started"):
            call()


def test_wrong_options_keep_it_from_starting(rig):
    with pytest.raises(InvalidConfig, match=r"options\.vpc\.rest_seconds"):
        rig.start(V4, rest_seconds="long")


# -- gc ---------------------------------------------------------------------------------------------------


def test_gc_gives_back_what_nobody_needs(rig):
    rig.start(V4, V6)
    for number in range(4):
        rig.allocate(number)
    rig.store.put(Record(attachment=make_attachment(2), driver="vpc", state=State.ALLOCATING, created=1.0))
    gone = [
        (address, make_attachment(number).key) for address in ("172.20.1", "fd00:1:") for number in (0, 3)
    ]
    assert rig.gc(1).problems == ()
    assert set(rig.owned()) == {"172.20.1.2", "172.20.1.3", "fd00:1::2", "fd00:1::3"}
    rig.allocate(0)
    assert [line.rpartition(" of ")[2] for line in rig.gc(1).released] == [str(gone[0][1])] * 2


# -- wiring -----------------------------------------------------------------------------------------------


def test_wiring_of_an_ipv4_pod(rig):
    rig.start(V4)
    attachment = make_attachment(1)
    cali, mac, pod_mac = attachment.host_ifname, attachment.mac("host"), attachment.mac("pod")
    wiring = rig.setup(1)
    assert words(wiring.node) == [
        "sysctl net/ipv4/ip_forward = 1",
        "masquerade from 172.20.1.0/29 except to 10.0.0.0/8, 172.20.0.0/16",
    ]
    assert words(wiring.host) == [
        f"veth {cali} mac {mac} mtu 1450 peer eth0 mac {pod_mac}",
        f"neighbour 172.20.1.1 lladdr {pod_mac} dev {cali} permanent",
        f"route 172.20.1.1/32 dev {cali}",
    ]
    assert words(wiring.pod) == [
        "link lo up",
        "address 172.20.1.1/32 dev eth0",
        f"neighbour 169.254.1.1 lladdr {mac} dev eth0 permanent",
        "route default via 169.254.1.1 dev eth0",
    ]


def test_wiring_of_an_ipv6_pod(rig):
    rig.start(V6)
    cali = make_attachment(1).host_ifname
    wiring = rig.setup(1)
    assert words(wiring.node) == [
        "sysctl net/ipv6/conf/all/forwarding = 1",
        "masquerade from fd00:1::/125 except to 2408::/56, fd00::/16",
    ]
    assert f"route fd00:1::1/128 dev {cali}" in words(wiring.host)
    assert {
        f"sysctl net/ipv6/conf/{cali}/{name}"
        for name in ("disable_ipv6 = 0", "accept_ra = 0", "forwarding = 1")
    } <= set(words(wiring.host))
    assert "route ::/0 via fe80::1 dev eth0" in words(wiring.pod)
    assert "sysctl net/ipv6/conf/eth0/disable_ipv6 = 0" in words(wiring.pod)


def test_dual_stack_is_the_sum_of_both(rig):
    rig.start(V4, V6)
    wiring = rig.setup(1)
    assert [obj.src for obj in wiring.node if isinstance(obj, Masquerade)] == [ip_network(V4), ip_network(V6)]
    routes = [obj for obj in wiring.pod if isinstance(obj, Route)]
    assert [str(route.via) for route in routes] == ["169.254.1.1", "fe80::1"]


def test_a_further_interface_has_a_table_and_rules_of_its_own(rig):
    rig.start(V4, V6)
    wiring = rig.setup(1, "eth1")
    routes = [obj for obj in wiring.pod if isinstance(obj, Route)]
    (table,) = {route.table for route in routes}
    assert table not in (0, 253, 254, 255)  # those of the kernel
    assert {str(route.dst) for route in routes} == {"0.0.0.0/0", "::/0"}
    rules = [obj for obj in wiring.pod if isinstance(obj, Rule)]
    assert all((rule.table, rule.priority) == (table, 512) for rule in rules)
    assert [str(rule.src) for rule in rules if rule.src] == ["172.20.1.1/32", "fd00:1::1/128"]
    assert [(rule.oif, rule.family) for rule in rules if not rule.src] == [("eth1", 4), ("eth1", 6)]
    (other,) = {obj.table for obj in rig.setup(1, "eth2").pod if isinstance(obj, Route)}
    assert other != table


def test_without_masquerade_there_is_none(rig):
    rig.start(V4, masquerade=False)
    assert words(rig.setup(1).node) == ["sysctl net/ipv4/ip_forward = 1"]


def test_masquerade_spares_the_vpc_the_cluster_and_nobody_else(rig):
    rig.start(V4)
    nowhere = replace(NODE, vpc_cidrs=())
    (masquerade,) = [obj for obj in rig.setup(1, node=nowhere).node if isinstance(obj, Masquerade)]
    assert masquerade.exclude == (ip_network("172.20.0.0/16"),)


def test_all_pods_share_the_same_objects(rig):
    rig.start(V4, V6)
    assert len({rig.setup(number).node for number in range(3)}) == 1


# -- preflight --------------------------------------------------------------------------------------------


def test_preflight_reports_what_masquerading_lacks(rig, monkeypatch):
    problem = Problem(summary="no nf_tables", remedy="another kernel")
    monkeypatch.setattr(nft, "preflight", lambda: problem)
    assert rig.drivers.preflight("vpc", NODE) == [problem]
    assert rig.drivers.preflight("vpc", NODE, {"masquerade": False}) == []
    monkeypatch.setattr(nft, "preflight", lambda: None)
    assert rig.drivers.preflight("vpc", NODE) == []
