"""What carries our mark and belongs to nobody is found and goes; nothing else does."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from terway_core.wiring import nft
from terway_core.wiring.inspect import HostState
from terway_core.wiring.objects import Masquerade, Wiring, describe

from .conftest import require
from .wirings import FULL, NODE, OWNER, POD, VETH, Rig, dump, run_in, wiring

pytestmark = pytest.mark.kernel


@pytest.fixture
def rig(terway_netns):
    require("ip", "tc", "nft")
    rig = Rig(terway_netns(), terway_netns())
    yield rig
    rig.engine.close()


def strays(rig, *wirings):
    return HostState.read(rig.host).strays(wirings)


def test_what_is_declared_is_no_stray(rig):
    rig.apply(FULL)
    assert strays(rig, FULL) == []


def test_everything_undeclared_is_a_stray_and_can_go(rig):
    before = dump(rig.host)
    rig.apply(FULL)
    # The rest goes with the link; sysctls and lo are nobody's.
    on_the_link = {describe(obj) for obj in FULL.host if getattr(obj, "dev", "") == "cali0"}
    marked = {
        describe(obj)
        for obj in (*NODE, *FULL.host)
        if type(obj).__name__ in ("Rule", "Route", "Masquerade") and describe(obj) not in on_the_link
    }
    found = strays(rig)
    # The kernel takes "from everywhere" for no selector.
    assert {stray.description.replace(" from 0.0.0.0/0", "") for stray in found} == {
        f"link cali0 of {OWNER}",
        *(text.replace(" from 0.0.0.0/0", "") for text in marked),
    }
    for stray in found:
        stray.remove(rig.engine)
    assert strays(rig) == []
    assert dump(rig.host) == before


def test_only_what_the_missing_attachment_left_is_a_stray(rig, terway_netns):
    rig.apply(FULL)
    rig.engine.apply(wiring(1), terway_netns(), "m:net/c2/eth0")
    assert [stray.description for stray in strays(rig, FULL)] == [
        "link cali1 of m:net/c2/eth0",
        "rule 512: to 172.20.1.1/32 lookup 254",
    ]


def test_a_route_on_a_link_that_stays_is_a_stray_of_its_own(rig):
    rig.apply(FULL)
    fewer = replace(FULL, host=FULL.host[:-5])
    kept = {describe(obj) for obj in fewer.host}
    for stray in strays(rig, fewer):
        assert stray.description not in kept
        stray.remove(rig.engine)
    assert strays(rig, fewer) == []
    assert rig.diff(fewer) == []


def test_a_link_that_a_kill_left_unnamed_is_nobodys(rig):
    rig.apply(Wiring(host=(VETH,)))
    rig.by_hand("host", "ip link set cali0 alias ''")
    assert HostState.read(rig.host).owned_links() == {"cali0": ""}
    (stray,) = strays(rig)
    assert stray.description == "link cali0 of nobody"
    stray.remove(rig.engine)
    assert strays(rig) == []


def test_links_that_are_about_to_be_deleted_are_strays(rig):
    rig.apply(Wiring(host=(VETH,)))
    rig.by_hand("host", "ip link set cali0 alias '' group 117")
    assert [stray.description for stray in strays(rig)] == ["link cali0 of nobody"]


def test_what_is_not_ours_is_never_a_stray(rig):
    for command in (
        "ip link add up0 type veth peer name up1",
        "ip link set up0 up alias calico:x group 7",
        "ip addr add 172.20.0.9/24 dev up0",
        "ip route add 10.8.0.0/16 dev up0 proto static",
        "ip route add 10.9.0.0/16 dev up0 proto 115 table 100",
        "ip rule add to 172.20.0.2 priority 511",
        "ip -6 rule add to fd00::2 priority 511 proto 115",
        "nft add table inet other",
    ):
        rig.by_hand("host", command)
    assert strays(rig) == []


def test_objects_in_the_pod_are_the_pods(rig):
    rig.engine.apply(Wiring(host=(VETH,), pod=POD), rig.pod, OWNER)
    assert HostState.read(rig.pod).strays([]) == []


# -- masquerading -----------------------------------------------------------------------------------------


def masquerade(src, *exclude):
    return Masquerade(src=ip_network(src), exclude=tuple(map(ip_network, exclude)))


MASQUERADES = [
    masquerade("172.20.0.0/16"),
    masquerade("172.20.0.0/16", "10.0.0.0/8"),
    masquerade("172.20.0.0/16", "10.0.0.0/8", "10.1.0.0/16", "192.168.0.0/16"),
    masquerade(
        "172.20.0.0/16", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"
    ),  # neighbours: the kernel joins them
    masquerade("172.20.0.0/16", *(f"10.{n}.0.0/16" for n in range(0, 200, 2))),
    masquerade("172.20.0.1/32", "10.0.0.1/32", "10.0.0.2/32"),
    masquerade("0.0.0.0/0", "0.0.0.0/0"),
    masquerade("fd00::/64", "fd00::/16", "fd01:2::/32", "fe80::1/128"),
    masquerade("fd00::1/128"),
    masquerade("::/0", "::/0"),
]


@pytest.mark.parametrize("obj", MASQUERADES, ids=lambda obj: describe(obj)[:60])
def test_a_rule_is_found_again_by_what_it_does(rig, obj):
    for _ in range(2):
        rig.engine.ensure([obj])
        assert list(rig.host.run(nft.masquerades)) == [obj]
    assert rig.diff(Wiring(node=(obj,))) == []
    assert strays(rig, Wiring(node=(obj,))) == []
    rig.engine.remove_shared([obj])
    rig.engine.remove_shared([obj])
    assert run_in(rig.host, "nft list ruleset") == ""


def test_all_rules_live_side_by_side(rig):
    rig.engine.ensure(MASQUERADES)
    assert set(rig.host.run(nft.masquerades)) == set(MASQUERADES)
    rig.engine.remove_shared(MASQUERADES[3:5])
    assert set(rig.host.run(nft.masquerades)) == {*MASQUERADES[:3], *MASQUERADES[5:]}


def test_a_rule_that_was_changed_by_hand_is_missed(rig):
    rig.engine.ensure(MASQUERADES[:1])
    for change in ("ip saddr 172.20.0.0/17 masquerade", "ip saddr 172.20.0.0/16 accept", "masquerade"):
        run_in(rig.host, "nft flush chain inet terway postrouting")
        run_in(rig.host, f"nft add rule inet terway postrouting {change}")
        (difference,) = rig.diff(Wiring(node=(MASQUERADES[0],)))
        assert difference == f"node: {describe(MASQUERADES[0])}: missing"
    rig.engine.ensure(MASQUERADES[:1])
    assert rig.diff(Wiring(node=(MASQUERADES[0],))) == []


def test_other_tables_stay(rig):
    run_in(rig.host, "nft add table inet other")
    rig.engine.ensure(MASQUERADES)
    rig.engine.remove_shared(MASQUERADES)
    assert run_in(rig.host, "nft list ruleset").split() == ["table", "inet", "other", "{", "}"]
