"""Wirings as data: one line of words for each object, and a JSON form that loses nothing."""

from ipaddress import ip_address, ip_interface, ip_network
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from terway_core.wiring.objects import (
    Address,
    Clsact,
    Ipvlan,
    LinkUp,
    Masquerade,
    Neighbor,
    Redirect,
    Route,
    Rule,
    Sysctl,
    TokenBucket,
    Veth,
    Wiring,
    WiringObject,
    describe,
)

KINDS = get_args(WiringObject)
ANY = ip_network("0.0.0.0/0")


def masquerade(*exclude):
    return Masquerade(src=ip_network("172.20.0.0/16"), exclude=tuple(map(ip_network, exclude)))


def test_masquerades_that_do_the_same_are_equal():
    one = masquerade("10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "fd00::/8", "192.168.0.0/16")
    assert one == masquerade("192.168.0.0/16", "10.0.0.0/8")
    assert one != masquerade("10.0.0.0/8")
    assert len({one, masquerade("192.168.0.0/16", "10.0.0.0/8")}) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_kind_survives_json(kind, data):
    obj = data.draw(st.from_type(kind))
    adapter = TypeAdapter(WiringObject)
    back = adapter.validate_json(adapter.dump_json(obj))
    assert back == obj
    assert type(back) is type(obj)
    assert describe(back) == describe(obj)


def test_kinds_have_names_of_their_own():
    assert len({kind.__dataclass_fields__["kind"].default for kind in KINDS}) == len(KINDS)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValidationError):
        TypeAdapter(Wiring).validate_json('{"host": [{"kind": "vxlan", "name": "vx0"}]}')


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (
            Veth(name="cali1", peer="eth0", mac="0a:00:00:00:00:01", peer_mac="0a:00:00:00:00:02", mtu=1400),
            "veth cali1 mac 0a:00:00:00:00:01 mtu 1400 peer eth0 mac 0a:00:00:00:00:02",
        ),
        (
            Ipvlan(name="eth0", parent="eth1", mtu=1400),
            "ipvlan eth0 link eth1 mode l2 mtu 1400",
        ),
        (
            Ipvlan(name="ipvl_3", parent="eth1", arp=False),
            "ipvlan ipvl_3 link eth1 mode l2 mtu 1500 noarp",
        ),
        (LinkUp(dev="lo"), "link lo up"),
        (LinkUp(dev="eth1", mtu=9000), "link eth1 up mtu 9000"),
        (Address(dev="eth0", address=ip_interface("10.0.0.2/32")), "address 10.0.0.2/32 dev eth0"),
        (Route(dst=ip_network("10.0.0.2"), dev="cali1"), "route 10.0.0.2/32 dev cali1"),
        (
            Route(dst=ANY, dev="eth0", via=ip_address("169.254.1.1"), table=1001),
            "route default via 169.254.1.1 dev eth0 table 1001",
        ),
        (Route(dst=ip_network("::/0"), dev="eth0"), "route ::/0 dev eth0"),
        (Rule(priority=512, src=ip_network("10.0.0.2"), table=7), "rule 512: from 10.0.0.2/32 lookup 7"),
        (
            Rule(priority=1, dst=ip_network("fd00::/8"), iif="a", oif="b", blackhole=True),
            "rule 1: to fd00::/8 iif a oif b blackhole",
        ),
        (Rule(priority=512, oif="eth1", table=1001), "rule 512: oif eth1 lookup 1001"),
        (Rule(priority=512, oif="eth1", table=1001, family=6), "rule 512: ipv6 oif eth1 lookup 1001"),
        (
            Neighbor(dev="eth0", address=ip_address("fe80::1"), mac="0a:00:00:00:00:01"),
            "neighbour fe80::1 lladdr 0a:00:00:00:00:01 dev eth0 permanent",
        ),
        (Sysctl(key="ipv4/ip_forward", value="1"), "sysctl net/ipv4/ip_forward = 1"),
        (
            TokenBucket(dev="cali1", rate=125000, burst=4096, limit=8192),
            "tbf dev cali1 rate 125000 B/s burst 4096 limit 8192",
        ),
        (Clsact(dev="eth1"), "clsact dev eth1"),
        (
            Redirect(dev="eth1", dst=ip_network("172.21.0.0/20"), to="ipvl_3"),
            "redirect 172.21.0.0/20 from eth1 egress to ipvl_3 ingress",
        ),
        (Masquerade(src=ip_network("172.20.0.0/16")), "masquerade from 172.20.0.0/16"),
        (
            masquerade("192.168.0.0/16", "10.0.0.0/8"),
            "masquerade from 172.20.0.0/16 except to 10.0.0.0/8, 192.168.0.0/16",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_words(obj, words):
    assert describe(obj) == words
