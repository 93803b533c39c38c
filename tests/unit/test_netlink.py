"""Our bytes, decoded by pyroute2, say what was declared."""

import errno
import socket
import struct
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from terway_core.wiring import netlink, tc, vlan
from terway_core.wiring.netlink import OURS, Message, NetlinkSocket
from terway_core.wiring.objects import (
    Address,
    Ipvlan,
    Neighbor,
    Redirect,
    Route,
    Rule,
    TokenBucket,
    Veth,
    VlanPop,
    VlanPush,
)

CREATE, REPLACE, EXCLUSIVE = 0x400, 0x100, 0x200
BOOT = 3

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-", min_size=1, max_size=15)
indices = st.integers(1, 2**31 - 1)
u32 = st.integers(1, 2**32 - 1)
mtus = st.integers(1280, 65535)
macs = st.binary(min_size=6, max_size=6).map(lambda octets: ":".join(f"{octet:02x}" for octet in octets))
networks = st.ip_addresses().flatmap(
    lambda ip: st.integers(0, ip.max_prefixlen).map(lambda size: ip_network(f"{ip}/{size}", strict=False))
)


def decode(kind, message):
    """The message as pyroute2 understands it; its attributes as a dict in ``attrs``."""
    header = struct.pack("=IHHII", 16 + len(message.body), message.kind, message.flags, 1, 0)
    decoded = kind(header + message.body)
    decoded.decode()
    assert decoded["header"]["length"] % 4 == 0
    value = decoded.getvalue()
    return {**value, "attrs": dict(value["attrs"])}


def family(ip):
    return socket.AF_INET if ip.version == 4 else socket.AF_INET6


def u32_attribute(table):
    return table if table < 256 else 0


def made_by(one, delete, create, *, mode=REPLACE):
    """The flags and the type of a message that creates, or of the one that deletes."""
    wanted = (create + 1, 0) if delete else (create, CREATE | mode)
    assert (one["header"]["type"], one["header"]["flags"]) == wanted


@given(names, names, macs, macs, mtus, st.integers(0, 1000))
def test_veth(name, peer, mac, peer_mac, mtu, fd):
    veth = Veth(name=name, peer=peer, mac=mac, peer_mac=peer_mac, mtu=mtu)
    one = decode(ifinfmsg, netlink.new_veth(veth, fd))
    made_by(one, False, 16, mode=EXCLUSIVE)
    attributes = one["attrs"]
    info = dict(attributes.pop("IFLA_LINKINFO")["attrs"])
    both = {"IFLA_MTU": mtu, "IFLA_NUM_TX_QUEUES": 1, "IFLA_NUM_RX_QUEUES": 1}
    assert attributes == both | {"IFLA_IFNAME": name, "IFLA_ADDRESS": mac, "IFLA_GROUP": OURS}
    assert info["IFLA_INFO_KIND"] == "veth"
    ((word, other),) = info["IFLA_INFO_DATA"]["attrs"]
    assert word == "VETH_INFO_PEER"
    assert other["flags"] == other["change"] == one["flags"] == one["change"] == 0  # both still down
    assert dict(other["attrs"]) == both | {
        "IFLA_IFNAME": peer,
        "IFLA_ADDRESS": peer_mac,
        "IFLA_NET_NS_FD": fd,
    }


@given(
    indices, st.just(0) | mtus, st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=80)
)
def test_set_up(index, mtu, alias):
    one = decode(ifinfmsg, netlink.set_up(index, mtu=mtu, alias=alias))
    assert (one["header"]["type"], one["index"], one["flags"], one["change"]) == (16, index, 1, 1)
    wanted = {"IFLA_MTU": mtu, "IFLA_IFALIAS": alias}
    assert one["attrs"] == {word: value for word, value in wanted.items() if value}


@given(names, indices, mtus, st.none() | st.integers(0, 1000))
def test_ipvlan(name, parent, mtu, fd):
    one = decode(ifinfmsg, netlink.new_ipvlan(Ipvlan(name=name, parent="eth1", mtu=mtu), parent, fd))
    made_by(one, False, 16, mode=EXCLUSIVE)
    attributes = one["attrs"]
    info = dict(attributes.pop("IFLA_LINKINFO")["attrs"])
    elsewhere = {} if fd is None else {"IFLA_NET_NS_FD": fd}
    assert attributes == {
        "IFLA_IFNAME": name,
        "IFLA_LINK": parent,
        "IFLA_MTU": mtu,
        "IFLA_GROUP": OURS,
        **elsewhere,
    }
    assert info["IFLA_INFO_KIND"] == "ipvlan"
    assert dict(info["IFLA_INFO_DATA"]["attrs"]) == {"IFLA_IPVLAN_MODE": 0}  # L2
    assert one["flags"] == one["change"] == 0  # still down


@pytest.mark.parametrize(("arp", "flags", "change"), [(None, 1, 1), (True, 1, 0x81), (False, 0x81, 0x81)])
def test_set_up_with_and_without_arp(arp, flags, change):
    one = decode(ifinfmsg, netlink.set_up(7, arp=arp))
    assert (one["flags"], one["change"]) == (flags, change)


@given(indices)
def test_delete_link(index):
    one = decode(ifinfmsg, netlink.delete_link(index))
    assert (one["header"]["type"], one["index"], one["attrs"]) == (17, index, {})


@given(indices, names, st.integers(0, 1000))
def test_move_and_rename(index, name, fd):
    one = decode(ifinfmsg, netlink.move(index, fd, name))
    assert (one["header"]["type"], one["index"], one["change"]) == (16, index, 0)
    assert one["attrs"] == {"IFLA_NET_NS_FD": fd, "IFLA_IFNAME": name}
    other = decode(ifinfmsg, netlink.rename(index, name))
    assert (other["header"]["type"], other["index"], other["change"]) == (16, index, 0)
    assert other["attrs"] == {"IFLA_IFNAME": name}


@given(indices)
def test_doom_and_its_execution(index):
    one = decode(ifinfmsg, netlink.doom(index))
    assert (one["header"]["type"], one["index"]) == (16, index)
    other = decode(ifinfmsg, netlink.delete_doomed())
    assert (other["header"]["type"], other["index"]) == (17, 0)
    assert one["attrs"] == other["attrs"] == {"IFLA_GROUP": netlink.DOOMED}
    assert netlink.DOOMED != OURS


@given(st.ip_addresses(), st.integers(0, 128), indices, st.booleans())
def test_address(ip, size, index, delete):
    assume(size <= ip.max_prefixlen)
    obj = Address(dev="eth0", address=ip_interface(f"{ip}/{size}"))
    one = decode(ifaddrmsg, netlink.address(obj, index, delete=delete))
    made_by(one, delete, 20)
    assert (one["family"], one["prefixlen"], one["index"]) == (family(ip), size, index)
    assert one["flags"] == (0x02 if ip.version == 6 else 0)  # IFA_F_NODAD
    local, address = (ip_address(one["attrs"][word]) for word in ("IFA_LOCAL", "IFA_ADDRESS"))
    assert local == address == ip


@given(networks, st.none() | st.ip_addresses(), u32, indices, st.booleans(), st.booleans())
def test_route(dst, via, table, index, ours, delete):
    assume(via is None or via.version == dst.version)
    obj = Route(dst=dst, dev="eth0", via=via, table=table)
    one = decode(rtmsg, netlink.route(obj, index, ours=ours, delete=delete))
    made_by(one, delete, 24)
    assert (one["family"], one["dst_len"], one["type"]) == (family(dst), dst.prefixlen, 1)
    assert (one["table"], one["attrs"]["RTA_TABLE"]) == (u32_attribute(table), table)
    assert one["proto"] == (OURS if ours else BOOT)
    assert one["attrs"]["RTA_OIF"] == index
    assert one["flags"] == (4 if via else 0)  # RTNH_F_ONLINK
    assert one["scope"] == (253 if via is None and dst.version == 4 else 0)  # link, universe
    assert ip_address(one["attrs"].get("RTA_DST", dst.network_address)) == dst.network_address
    assert ("RTA_DST" in one["attrs"]) == (dst.prefixlen > 0)
    assert ("RTA_GATEWAY" in one["attrs"]) == (via is not None)
    assert via is None or ip_address(one["attrs"]["RTA_GATEWAY"]) == via


@given(st.ip_addresses(), macs, indices, st.booleans(), st.booleans())
def test_neighbor(ip, mac, index, ours, delete):
    one = decode(
        ndmsg, netlink.neighbor(Neighbor(dev="eth0", address=ip, mac=mac), index, ours=ours, delete=delete)
    )
    made_by(one, delete, 28)
    assert (one["family"], one["ifindex"], one["state"]) == (family(ip), index, 0x80)  # permanent
    assert ip_address(one["attrs"].pop("NDA_DST")) == ip
    assert one["attrs"] == {"NDA_LLADDR": mac} | ({"NDA_PROTOCOL": OURS} if ours else {})


rules = st.builds(
    Rule,
    priority=st.integers(0, 2**32 - 1),
    table=u32,
    src=st.none() | networks,
    dst=st.none() | networks,
    iif=st.just("") | names,
    oif=st.just("") | names,
).filter(lambda obj: not (obj.src and obj.dst) or obj.src.version == obj.dst.version)


@given(rules, st.booleans(), st.booleans())
def test_rule(obj, ours, delete):
    one = decode(fibmsg, netlink.rule(obj, ours=ours, delete=delete))
    made_by(one, delete, 32, mode=EXCLUSIVE)
    network = obj.src or obj.dst
    version = network.version if network else obj.family
    assert one["family"] == (socket.AF_INET if version == 4 else socket.AF_INET6)
    assert one["action"] == (6 if obj.blackhole else 1)
    wanted = {
        "FRA_PRIORITY": obj.priority,
        "FRA_PROTOCOL": OURS if ours else BOOT,
        "FRA_IIFNAME": obj.iif,
        "FRA_OIFNAME": obj.oif,
        "FRA_TABLE": 0 if obj.blackhole else obj.table,
    }
    for word, selector in (("src", obj.src), ("dst", obj.dst)):
        assert one[f"{word}_len"] == (selector.prefixlen if selector else 0)
        if selector and selector.prefixlen:
            assert ip_address(one["attrs"].pop(f"FRA_{word.upper()}")) == selector.network_address
    assert one["attrs"] == {
        word: value for word, value in wanted.items() if value or word in ("FRA_PRIORITY", "FRA_PROTOCOL")
    }
    assert one["table"] == (0 if obj.blackhole else u32_attribute(obj.table))


@given(st.integers(1, 2**40), u32, u32, indices, st.booleans())
def test_token_bucket(rate, burst, limit, index, delete):
    obj = TokenBucket(dev="eth0", rate=rate, burst=burst, limit=limit)
    one = decode(tcmsg, tc.token_bucket(obj, index, delete=delete))
    made_by(one, delete, 36)
    assert (one["index"], one["parent"], one["handle"]) == (index, 0xFFFFFFFF, 0x10000)  # root, 1:
    assert one["attrs"]["TCA_KIND"] == "tbf"
    if delete:
        assert "TCA_OPTIONS" not in one["attrs"]
        return
    options = one["attrs"]["TCA_OPTIONS"]["attrs"]
    parameters = dict(options)["TCA_TBF_PARMS"]
    assert (parameters["rate"], parameters["limit"]) == (min(rate, 2**32 - 1), limit)
    # pyroute2 knows neither TCA_TBF_RATE64 (4) nor TCA_TBF_BURST (6).
    unknown = {int(value["header"]["type"]) for word, value in options if word == "UNKNOWN"}
    known = {4: "TCA_TBF_RATE64", 6: "TCA_TBF_BURST"}
    present = {number for number, word in known.items() if number in unknown or word in dict(options)}
    assert present == ({4, 6} if rate > 2**32 - 1 else {6})
    body = tc.token_bucket(obj, index).body
    assert struct.pack("=HHI", 8, 6, burst) in body
    assert (struct.pack("=HHQ", 12, 4, rate) in body) == (rate > 2**32 - 1)


@given(indices)
def test_clsact(index):
    one = decode(tcmsg, tc.clsact(index))
    assert (one["header"]["type"], one["header"]["flags"]) == (36, CREATE)  # one that is there stays
    assert (one["index"], one["parent"], one["handle"]) == (index, 0xFFFFFFF1, 0xFFFF0000)
    assert one["attrs"]["TCA_KIND"] == "clsact"


class Dump:
    """A socket that lists filters which were made by these messages."""

    def __init__(self, *made):
        self._made = made

    def dump(self, kind, body):
        assert kind == 46
        return [message.body for message in self._made]


@given(networks, indices, indices)
def test_redirect_reads_back(dst, index, to):
    assume(int(dst.broadcast_address))  # nobody's address, and the filter's handle
    obj = Redirect(dev="eth1", dst=dst, to="ipvl_3")
    message = tc.redirect(obj, index, to)
    assert list(tc.redirects(Dump(message), index)) == [(dst, to)]
    one = decode(tcmsg, message)
    made_by(one, False, 44)
    other = decode(tcmsg, tc.redirect(obj, index, 0, delete=True))
    made_by(other, True, 44)
    places = [(made["index"], made["parent"], made["handle"], made["info"]) for made in (one, other)]
    assert places[0] == places[1]
    assert places[0][:2] == (index, 0xFFFFFFF3)  # what leaves by it
    assert socket.ntohs(one["info"] & 0xFFFF) == {4: 0x0800, 6: 0x86DD}[dst.version]


@given(networks, networks)
def test_redirects_of_two_networks_have_places_of_their_own_the_longer_prefix_first(one, other):
    assume(one != other and one.version == other.version)
    first, second = (
        decode(tcmsg, tc.redirect(Redirect(dev="a", dst=dst, to="b"), 1, 2)) for dst in (one, other)
    )
    assert (first["info"], first["handle"]) != (second["info"], second["handle"])
    if one.prefixlen > other.prefixlen:
        assert first["info"] >> 16 < second["info"] >> 16


def test_filters_of_others_are_not_ours():
    one = tc.redirect(Redirect(dev="a", dst=ip_network("10.0.0.0/8"), to="b"), 1, 2)
    handle, parent, info = struct.unpack_from("=III", one.body, 8)
    for other in (
        (handle, parent, info - (200 << 16)),
        (handle, parent, info + (300 << 16)),
        (0, parent, info),
    ):
        body = one.body[:8] + struct.pack("=III", *other) + one.body[20:]
        assert list(tc.redirects(Dump(Message(44, 0, body)), 1)) == []


@given(st.ip_addresses(), st.integers(1, 4094), indices, st.integers(3, 1000))
def test_vlan_push_reads_back(src, vid, index, program):
    assume(int(src))
    obj = VlanPush(dev="eth1", src=src, vid=vid)
    message = vlan.message(obj, index, program)
    assert set(vlan.filters(Dump(message), "eth1", index)) == {obj}
    assert list(tc.redirects(Dump(message), index)) == []
    one, other = (decode(tcmsg, made) for made in (message, vlan.message(obj, index, delete=True)))
    made_by(one, False, 44)
    made_by(other, True, 44)
    places = [(made["index"], made["parent"], made["handle"], made["info"]) for made in (one, other)]
    assert places[0] == places[1]
    assert places[0][:2] == (index, 0xFFFFFFF3)
    assert socket.ntohs(one["info"] & 0xFFFF) == {4: 0x0800, 6: 0x86DD}[src.version]
    options = dict(one["attrs"]["TCA_OPTIONS"]["attrs"])
    assert (options["TCA_BPF_FD"], options["TCA_BPF_FLAGS"]) == (program, 1)  # direct action


@given(indices)
def test_vlan_pop_is_at_what_comes_in_with_a_tag(index):
    pop = VlanPop(dev="eth1")
    message = vlan.message(pop, index, 3)
    assert set(vlan.filters(Dump(message), "eth1", index)) == {pop}
    one, other = (decode(tcmsg, made) for made in (message, vlan.message(pop, index, delete=True)))
    assert (one["index"], one["parent"], socket.ntohs(one["info"] & 0xFFFF)) == (index, 0xFFFFFFF2, 0x8100)
    assert [other[name] for name in ("handle", "info")] == [one[name] for name in ("handle", "info")]


# -- the socket: asking for links needs no rights ---------------------------------------------------------


@pytest.fixture
def sock():
    with NetlinkSocket() as sock:
        yield sock


def test_links_that_exist_are_found_and_the_others_left_out(sock):
    found = sock.links(["lo", "no-such-link", "a-name-that-is-far-too-long"])
    assert set(found) == {"lo"}
    assert found["lo"].index == socket.if_nametoindex("lo")
    assert sock.links([]) == {}


def test_more_messages_than_one_send_holds(sock):
    asked = ["lo", "no-such-link"] * (2 * netlink.BATCH)
    replies = sock.send([netlink.get_link(name) for name in asked])
    assert [reply.errno for reply in replies] == [0, errno.ENODEV] * (2 * netlink.BATCH)
    assert all(bool(reply.payload) != bool(reply.errno) for reply in replies)


def test_a_malformed_message_is_answered_and_the_next_one_served(sock):
    bad = Message(netlink.RTM_GETLINK, 0, bytes(4))
    replies = sock.send([bad, netlink.get_link("lo")])
    assert [reply.errno for reply in replies] == [errno.EINVAL, 0]


def test_an_answer_that_comes_late_is_not_taken_for_another(sock):
    """A request may be interrupted between its sending and its answer."""
    message = netlink.get_link("no-such-link")
    sock._socket.send(struct.pack("=IHHII", 16 + len(message.body), message.kind, 5, 0, 0) + message.body)
    assert set(sock.links(["lo"])) == {"lo"}
