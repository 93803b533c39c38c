"""What one network namespace holds, read with pyroute2 and told in the objects that declare it.

Dumps ask for each address family by itself: a rule dump without one is incomplete on some kernels.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from terway_core.errors import WiringError
from terway_core.wiring import netlink, tc
from terway_core.wiring.netlink import NetlinkSocket
from terway_core.wiring.objects import (
    MAIN_TABLE,
    IPAddress,
    IPInterface,
    Redirect,
    Route,
    Rule,
    VlanPop,
    VlanPush,
)

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_ATTEMPTS: Final = 5
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
        for _ in range(_ATTEMPTS):
            try:
                with IPRoute() as ipr, NetlinkSocket() as sock:
                    snapshot = cls._read(ipr)
                    snapshot._add_filters(sock)
                    return snapshot
            except NetlinkDumpInterrupted:
                continue
            except (OSError, NetlinkError) as error:
                raise WiringError(f"the kernel's tables cannot be read: {error}") from error
        raise WiringError(f"the kernel's tables changed during each of {_ATTEMPTS} attempts to read them")

    @classmethod
    def _read(cls, ipr: IPRoute) -> Snapshot:
        # Links come first, and what hangs on one that has come since is left out: a route without the name of
        # its link would be declared by nobody, and gc would take it from the pod that is being added.
        snapshot = cls()
        names: dict[int, str] = {}
        for message in ipr.get_links():
            link = Link(
                name=message.get("ifname"),
                index=message["index"],
                up=bool(message["flags"] & netlink.IFF_UP),
                mtu=message.get("mtu"),
                mac=message.get("address") or "",
                kind=message.get(("linkinfo", "kind")) or "",
                alias=message.get("ifalias") or "",
                group=message.get("group") or 0,
                arp=not message["flags"] & netlink.IFF_NOARP,
            )
            snapshot.links[link.name] = link
            names[link.index] = link.name
        for family in _FAMILIES:
            for message in ipr.get_addr(family=family):
                if message["index"] not in names:
                    continue
                text = message.get("local") or message.get("address")
                address = ip_interface(f"{text}/{message['prefixlen']}")
                snapshot.addresses.add((names[message["index"]], address))
            for message in ipr.get_routes(family=family):
                snapshot._add_route(message, names)
            for message in ipr.get_rules(family=family):
                snapshot._add_rule(message)
            for message in ipr.get_neighbours(family=family):
                address_ = message.get("dst")
                if address_ and message.get("lladdr") and message["ifindex"] in names:
                    key = (names[message["ifindex"]], ip_address(address_))
                    permanent = bool(message["state"] & netlink.NUD_PERMANENT)
                    snapshot.neighbors[key] = (message.get("lladdr"), permanent)
        for message in ipr.get_qdiscs():
            if message["index"] not in names:
                continue
            if message.get("kind") == "tbf":
                snapshot._add_bucket(message, names)
            elif message.get("kind") == "clsact":
                snapshot.clsacts.add(names[message["index"]])
        return snapshot

    def _add_route(self, message: Any, names: dict[int, str]) -> None:
        if message["type"] != netlink.RTN_UNICAST or message.get("oif") not in names:
            return
        default = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
        gateway = message.get("gateway")
        route = Route(
            dst=ip_network(f"{message.get('dst') or default}/{message['dst_len']}"),
            dev=names[message.get("oif")],
            via=ip_address(gateway) if gateway else None,
            table=message.get("table") or message["table"],
        )
        if self.routes.get(route) != netlink.OURS:  # one of ours may differ from another's in its metric only
            self.routes[route] = message["proto"]

    def _add_rule(self, message: Any) -> None:
        default = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
        networks = {}
        for word in ("src", "dst"):
            if message.get(word) or message[f"{word}_len"]:
                networks[word] = ip_network(f"{message.get(word) or default}/{message[f'{word}_len']}")
        blackhole = message["action"] == netlink.FR_ACT_BLACKHOLE
        rule = Rule(
            priority=message.get("priority") or 0,
            table=MAIN_TABLE if blackhole else message.get("table") or message["table"],
            src=networks.get("src"),
            dst=networks.get("dst"),
            iif=message.get("iifname") or "",
            oif=message.get("oifname") or "",
            blackhole=blackhole,
            family=4 if message["family"] == socket.AF_INET else 6,
        )
        self.rules[rule] = message.get("protocol") or 0

    def _add_bucket(self, message: Any, names: dict[int, str]) -> None:
        parms = message.get("options").get_attr("TCA_TBF_PARMS")
        rate = parms["rate"]
        burst = parms["buffer"] * TICK_NS * rate // 1_000_000_000
        self.buckets[names[message["index"]]] = (rate, burst, parms["limit"])

    def _add_filters(self, sock: NetlinkSocket) -> None:
        names = {link.index: link.name for link in self.links.values()}
        for dev in self.clsacts:
            for dst, to in tc.redirects(sock, self.links[dev].index):
                self.redirects.add(Redirect(dev=dev, dst=dst, to=names.get(to, "")))
            for src, vid in tc.vlan_pushes(sock, self.links[dev].index):
                self.vlan_filters.add(VlanPush(dev=dev, src=src, vid=vid))
            if tc.has_vlan_pop(sock, self.links[dev].index):
                self.vlan_filters.add(VlanPop(dev=dev))
