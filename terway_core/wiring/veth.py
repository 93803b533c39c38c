"""The veth pair with a link-local next hop: how a pod whose packets the host routes is connected.

``vpc``, ``eniip_veth`` and ``trunking`` differ in what the host does with the packets, not in this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final, NamedTuple

from terway_core.wiring.objects import (
    Address,
    IPAddress,
    IPNetwork,
    LinkUp,
    Neighbor,
    Route,
    Rule,
    Sysctl,
    Veth,
    WiringObject,
)

if TYPE_CHECKING:
    from terway_core.types import Attachment, Lease

#: Rules of a pod's further interfaces, so that replies leave by the one that owns the address.
POD_RULE_PRIORITY: Final = 512


class Family(NamedTuple):
    """What differs between IPv4 and IPv6. The next hop is on no link: a permanent neighbour stands for it."""

    next_hop: IPAddress
    everywhere: IPNetwork
    forwarding: str


FAMILIES: Final = {
    4: Family(ip_address("169.254.1.1"), ip_network("0.0.0.0/0"), "ipv4/ip_forward"),
    6: Family(ip_address("fe80::1"), ip_network("::/0"), "ipv6/conf/all/forwarding"),
}


@dataclass(frozen=True, slots=True)
class VethWiring:
    """Objects of each part, to be joined with a driver's own."""

    node: tuple[WiringObject, ...]
    host: tuple[WiringObject, ...]
    pod: tuple[WiringObject, ...]


def wire_by_veth(attachment: Attachment, lease: Lease, mtu: int) -> VethWiring:
    """A veth pair, the pod's addresses, routes to and from the host, and forwarding on the host.

    Both ends have permanent neighbours, so no first packet waits for ARP or neighbour discovery.
    """
    mac, pod_mac = attachment.mac("host"), attachment.mac("pod")
    host_if, pod_if = attachment.host_ifname, attachment.ifname
    node: list[WiringObject] = []
    # Without IPv6 in the pod nobody needs a link-local address, and each link that comes up or goes walks the
    # IPv6 routes of all (fib6_ifup() and fib6_ifdown() in Linux).
    link_local = any(address.version == 6 for address in lease.addresses)
    host: list[WiringObject] = [
        Veth(name=host_if, peer=pod_if, mac=mac, peer_mac=pod_mac, mtu=mtu, link_local=link_local)
    ]
    pod: list[WiringObject] = [LinkUp(dev="lo")]
    for address in lease.addresses:
        family = FAMILIES[address.version]
        alone = ip_network(address.ip)
        node.append(Sysctl(key=family.forwarding, value="1"))
        if address.version == 6:
            host += ipv6_sysctls(host_if, forwarding=True)
            pod += ipv6_sysctls(pod_if, forwarding=False)
        host += [Neighbor(dev=host_if, address=address.ip, mac=pod_mac), Route(dst=alone, dev=host_if)]
        pod += [
            Address(dev=pod_if, address=address),
            Neighbor(dev=pod_if, address=family.next_hop, mac=mac),
            *way_out(pod_if, alone, family.next_hop),
        ]
    return VethWiring(tuple(node), tuple(host), tuple(pod))


def ipv6_sysctls(dev: str, *, forwarding: bool, dad: bool = True) -> list[WiringObject]:
    """IPv6 on, although images and hosts may turn it off by default; nobody on a pod's link advertises.

    :param dad: whether duplicates of an address are looked for. On an ENI there are none, for the VPC knows
        who has it; and while an address is tentative the link solicits no neighbour.
    """
    wanted = {"disable_ipv6": "0", "accept_ra": "0"} | ({"forwarding": "1"} if forwarding else {})
    wanted |= {} if dad else {"accept_dad": "0"}
    return [Sysctl(key=f"ipv6/conf/{dev}/{name}", value=value) for name, value in wanted.items()]


def way_out(
    dev: str, own: IPNetwork, via: IPAddress, on_link: Iterable[IPNetwork] = ()
) -> list[WiringObject]:
    """The default route of ``eth0``, and routes to what is ``on_link``. A further interface only answers for
    its own address: it has them in a table of its own, and rules that lead there what is sent from it."""
    everywhere = FAMILIES[via.version].everywhere
    if dev == "eth0":
        return [*(Route(dst=dst, dev=dev) for dst in on_link), Route(dst=everywhere, dev=dev, via=via)]
    # Any number will do that the pod does not use, if it is the same at every call.
    table = 1000 + int.from_bytes(hashlib.sha1(dev.encode()).digest()[:2])
    return [
        *(Route(dst=dst, dev=dev, table=table) for dst in on_link),
        Route(dst=everywhere, dev=dev, via=via, table=table),
        Rule(priority=POD_RULE_PRIORITY, src=own, table=table),
        Rule(priority=POD_RULE_PRIORITY, oif=dev, table=table, family=via.version),
    ]
