"""What one network namespace holds, told in the objects that declare it.

Dumps ask for each address family by itself: a rule dump without one is incomplete on some kernels.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final

from terway_core.wiring import netlink, tc, vlan
from terway_core.wiring.netlink import NetlinkSocket
from terway_core.wiring.nla import attr_text, parse_attrs
from terway_core.wiring.objects import (
    MAIN_TABLE,
    IPAddress,
    IPInterface,
    IPNetwork,
    Redirect,
    Route,
    Rule,
    VlanPop,
    VlanPush,
)

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
#: The kernel keeps a tbf's burst in ticks of 64 ns (PSCHED_SHIFT 6 in include/net/pkt_sched.h).
TICK_NS: Final = 64


@dataclass(frozen=True, slots=True)
class Link:
    """What a namespace knows of one link."""

    name: str
    index: int
    up: bool
    mtu: int
    mac: str
    kind: str
    alias: str
    group: int
    arp: bool = True


@dataclass(slots=True)
class Snapshot:
    """The state of one namespace, in the objects that declare it."""

    links: dict[str, Link] = field(default_factory=dict)
    addresses: set[tuple[str, IPInterface]] = field(default_factory=set)
    routes: dict[Route, int] = field(default_factory=dict)  # → its protocol
    rules: dict[Rule, int] = field(default_factory=dict)
    neighbors: dict[tuple[str, IPAddress], tuple[str, bool]] = field(default_factory=dict)  # → MAC, permanent
    buckets: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # → rate, burst, limit
    clsacts: set[str] = field(default_factory=set, compare=False)  # they are never taken away
    redirects: set[Redirect] = field(default_factory=set)
    vlan_filters: set[VlanPush | VlanPop] = field(default_factory=set)

    @classmethod
    def take(cls) -> Snapshot:
        """Read the calling thread's namespace.

        :raises WiringError: the kernel changed faster than it could be read, or cannot be read at all.
        """
        with NetlinkSocket() as sock:
            snapshot = cls._read(sock)
            snapshot._add_filters(sock)
            return snapshot

    @classmethod
    def _read(cls, sock: NetlinkSocket) -> Snapshot:
        # Links come first, and what hangs on one that has come since is left out: a route without the name of
        # its link would be declared by nobody, and gc would take it from the pod that is being added.
        snapshot = cls()
        names: dict[int, str] = {}
        for index, flags, attributes in sock.dump_links():
            link = _link(index, flags, attributes)
            snapshot.links[link.name] = link
            names[index] = link.name
        for family in _FAMILIES:
            for message in sock.dump(netlink.RTM_GETADDR, struct.pack("=B7x", family)):
                snapshot._add_address(message, names)
            for message in sock.dump(netlink.RTM_GETROUTE, struct.pack("=B11x", family)):
                snapshot._add_route(message, names)
            for message in sock.dump(netlink.RTM_GETRULE, struct.pack("=B11x", family)):
                snapshot._add_rule(message)
            for message in sock.dump(netlink.RTM_GETNEIGH, struct.pack("=B11x", family)):
                snapshot._add_neighbor(message, names)
        for message in sock.dump(tc.RTM_GETQDISC, bytes(20)):
            snapshot._add_queue(message, names)
        return snapshot

    def _add_address(self, message: bytes, names: Mapping[int, str]) -> None:
        _, prefixlen, _, _, index = struct.unpack_from("=BBBBI", message)
        attributes = parse_attrs(message, 8)
        packed = attributes.get(netlink.IFA_LOCAL) or attributes.get(netlink.IFA_ADDRESS)
        if packed and index in names:
            self.addresses.add((names[index], ip_interface((packed, prefixlen))))

    def _add_route(self, message: bytes, names: Mapping[int, str]) -> None:
        family, size, _, _, table, protocol, _, kind = struct.unpack_from("=8B", message)
        attributes = parse_attrs(message, 12)
        dev = names.get(_number(attributes, netlink.RTA_OIF), "")
        if kind != netlink.RTN_UNICAST or not dev:
            return
        gateway = attributes.get(netlink.RTA_GATEWAY)
        route = Route(
            dst=_network(family, attributes.get(netlink.RTA_DST), size),
            dev=dev,
            via=ip_address(gateway) if gateway else None,
            table=_number(attributes, netlink.RTA_TABLE) or table,
        )
        if self.routes.get(route) != netlink.OURS:  # one of ours may differ from another's in its metric only
            self.routes[route] = protocol

    def _add_rule(self, message: bytes) -> None:
        family, dst_size, src_size, _, table, _, _, action = struct.unpack_from("=8B", message)
        attributes = parse_attrs(message, 12)
        networks = {
            word: _network(family, attributes.get(key), size)
            for word, key, size in (
                ("src", netlink.FRA_SRC, src_size),
                ("dst", netlink.FRA_DST, dst_size),
            )
            if size or key in attributes
        }
        blackhole = action == netlink.FR_ACT_BLACKHOLE
        rule = Rule(
            priority=_number(attributes, netlink.FRA_PRIORITY),
            table=MAIN_TABLE if blackhole else _number(attributes, netlink.FRA_TABLE) or table,
            src=networks.get("src"),
            dst=networks.get("dst"),
            iif=attr_text(attributes.get(netlink.FRA_IIFNAME, b"")),
            oif=attr_text(attributes.get(netlink.FRA_OIFNAME, b"")),
            blackhole=blackhole,
            family=4 if family == socket.AF_INET else 6,
        )
        self.rules[rule] = attributes.get(netlink.FRA_PROTOCOL, b"\0")[0]

    def _add_neighbor(self, message: bytes, names: Mapping[int, str]) -> None:
        _, _, _, index, state = struct.unpack_from("=BBHiH", message)
        attributes = parse_attrs(message, 12)
        packed, mac = attributes.get(netlink.NDA_DST), attributes.get(netlink.NDA_LLADDR)
        if packed and mac and index in names:
            permanent = bool(state & netlink.NUD_PERMANENT)
            self.neighbors[names[index], ip_address(packed)] = (mac.hex(":"), permanent)

    def _add_queue(self, message: bytes, names: Mapping[int, str]) -> None:
        (index,) = struct.unpack_from("=i", message, 4)
        attributes = parse_attrs(message, 20)
        kind = attr_text(attributes.get(tc.TCA_KIND, b""))
        if kind == "clsact" and index in names:
            self.clsacts.add(names[index])
        if kind == "tbf" and index in names:
            options = parse_attrs(attributes[tc.TCA_OPTIONS])
            rate, limit, buffer = struct.unpack_from("=8xI12xII", options[tc.TCA_TBF_PARMS])
            rate = int.from_bytes(options.get(tc.TCA_TBF_RATE64, b""), sys.byteorder) or rate
            self.buckets[names[index]] = (rate, buffer * TICK_NS * rate // 1_000_000_000, limit)

    def _add_filters(self, sock: NetlinkSocket) -> None:
        names = {link.index: link.name for link in self.links.values()}
        for dev in self.clsacts:
            for dst, to in tc.redirects(sock, self.links[dev].index):
                self.redirects.add(Redirect(dev=dev, dst=dst, to=names.get(to, "")))
            self.vlan_filters.update(vlan.filters(sock, dev, self.links[dev].index))


def _link(index: int, flags: int, attributes: Mapping[int, bytes]) -> Link:
    info = parse_attrs(attributes.get(netlink.IFLA_LINKINFO, b""))
    return Link(
        name=attr_text(attributes[netlink.IFLA_IFNAME]),
        index=index,
        up=bool(flags & netlink.IFF_UP),
        mtu=_number(attributes, netlink.IFLA_MTU),
        mac=attributes.get(netlink.IFLA_ADDRESS, b"").hex(":"),
        kind=attr_text(info.get(netlink.IFLA_INFO_KIND, b"")),
        alias=attr_text(attributes.get(netlink.IFLA_IFALIAS, b"")),
        group=_number(attributes, netlink.IFLA_GROUP),
        arp=not flags & netlink.IFF_NOARP,
    )


def _network(family: int, packed: bytes | None, size: int) -> IPNetwork:
    """Of everything the kernel does not tell the address."""
    return ip_network((packed or bytes(4 if family == socket.AF_INET else 16), size))


def _number(attributes: Mapping[int, bytes], key: int) -> int:
    """0 when it is absent; no number that is asked for here means anything by being 0."""
    return int.from_bytes(attributes.get(key, b""), sys.byteorder)
