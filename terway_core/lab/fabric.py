"""The VPC as wiring: what the namespace called *switch* must hold to treat packets as the real network does.

::

        node-1            node-2                        internet
    ┌─────────────┐     ┌────────┐                   ┌──────────────┐
    │ eth0   eth1 │     │  eth0  │                   │ 203.0.113.10 │
    └──┬──────┬───┘     └───┬────┘                   └──────┬───────┘
    ┌──┴──────┴─────────────┴───────────────────────────────┴───────┐
    │ eni…   eni…         eni…      ee:ff:ff:ff:ff:ff    internet   │
    │                                                    (NAT)      │
    │ lo: gateways .253, OpenAPI 100.100.0.10, metadata 100.100.100.200
    └──────────────────────────── switch ───────────────────────────┘

* Every ENI is a veth whose far end has the gateway's MAC address and answers ARP for the whole VPC.
* The switch knows who owns an address without asking: a route and a permanent neighbour for each.
* An ENI that is attached to a running instance appears there as a NIC does that is plugged in: down, without
  addresses. What an ENI owns is decided by the API, whatever the instance configures.
* A member ENI's port is joined to its trunk's, by VLAN tag (``lab/trunk.py``). What it sends and gets has the
  trunk's MAC address.
* ENIs that have no security group in common do not reach each other, as with groups of the normal kind that
  have no rules. Whoever owns no address here, as in the internet, is no ENI and reaches all.
* A packet passes only if it leaves by the ENI that owns its source address. Two kinds of rule per ENI say
  so: ``iif ENI from OWNED lookup main``, then ``iif ENI blackhole``. (Not ``rp_filter``: it would drop the
  ARP requests that a node sends from an ENI without an address of its own.)
* An entry of the VPC's route table is a route by way of an instance, and makes its CIDR one of the sources
  that the instance's primary ENI may send from.
* The NAT gateway translates addresses of vSwitches only. Whoever else sends to the internet gets no answer.
  Where the kernel cannot translate, the internet knows the way to the VPC instead, and no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface, ip_network
from itertools import permutations
from typing import Final

from terway_core.lab.api import Instance, NetworkInterface, VSwitch
from terway_core.wiring.objects import (
    Address,
    IPAddress,
    IPNetwork,
    LinkUp,
    Masquerade,
    Neighbor,
    Route,
    Rule,
    Sysctl,
    Veth,
    Wiring,
    WiringObject,
)

REGION_ID: Final = "cn-hangzhou"
ZONE_ID: Final = "cn-hangzhou-h"
OTHER_ZONE_ID: Final = "cn-hangzhou-i"

VPC_CIDR: Final = IPv4Network("192.168.0.0/16")
VPC_IPV6_CIDR: Final = IPv6Network("2001:db8:0:100::/56")
#: Zone and CIDR of each vSwitch; nodes are in the first.
VSWITCHES: Final = (
    (ZONE_ID, IPv4Network("192.168.0.0/24")),
    (ZONE_ID, IPv4Network("192.168.1.0/24")),
    (OTHER_ZONE_ID, IPv4Network("192.168.2.0/24")),
    (OTHER_ZONE_ID, IPv4Network("192.168.3.0/24")),
)
#: Addresses of pods in ``vpc`` mode, outside the VPC; each node has one part.
POD_CIDR: Final = IPv4Network("172.20.0.0/16")
POD_IPV6_CIDR: Final = IPv6Network("fd20::/48")
SERVICE_CIDR: Final = IPv4Network("172.21.0.0/20")
SERVICE_IPV6_CIDR: Final = IPv6Network("fd21::/112")

METADATA: Final = IPv4Address("100.100.100.200")
OPENAPI: Final = IPv4Address("100.100.0.10")
#: Where the API server of a lab with Kubernetes listens.
KUBERNETES: Final = IPv4Address("100.100.0.20")
KUBERNETES_PORT: Final = 6443

INTERNET_CIDR: Final = IPv4Network("203.0.113.0/24")
INTERNET_IPV6_CIDR: Final = IPv6Network("2001:db8:ffff::/64")
NAT_GATEWAY: Final = INTERNET_CIDR[1]
NAT_GATEWAY_IPV6: Final = INTERNET_IPV6_CIDR[1]
INTERNET_HOST: Final = IPv4Address("203.0.113.10")
INTERNET_HOST_IPV6: Final = IPv6Address("2001:db8:ffff::10")

#: The MAC address behind which the real VPC hides everything.
GATEWAY_MAC: Final = "ee:ff:ff:ff:ff:ff"

_APART, _OWN_SOURCE, _OTHER_SOURCE = 99, 100, 101
_INTERNET, _NAT_MAC, _INTERNET_MAC = "internet", "02:00:00:00:00:01", "02:00:00:00:00:10"
#: Never translated on the way out: what lies inside the VPC, and what pods may have as addresses.
_PRIVATE: Final = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
_DEFAULT: Final[dict[int, IPNetwork]] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


def pod_cidr(number: int) -> IPv4Network:
    """The pod CIDR of the node with this number, from 1."""
    return IPv4Network((int(POD_CIDR[0]) + number * 256, 24))


def pod_ipv6_cidr(number: int) -> IPv6Network:
    """The IPv6 pod CIDR of the node with this number, from 1."""
    return IPv6Network((int(POD_IPV6_CIDR[0]) + (number << 64), 64))


def vswitch_ipv6_cidr(number: int) -> IPv6Network:
    """The IPv6 CIDR of the vSwitch with this number, from 0."""
    return IPv6Network((int(VPC_IPV6_CIDR[0]) + (number << 64), 64))


def all_vswitches(more: Sequence[str]) -> tuple[tuple[str, IPv4Network], ...]:
    """Zone and CIDR of every vSwitch: those of every lab, and ``more`` in the form ``[ZONE=]CIDR``.

    :raises ValueError: one of ``more`` is not of that form, or cannot be.
    """
    found = list(VSWITCHES)
    for text in more:
        zone, _, cidr_text = text.rpartition("=")
        try:
            cidr = IPv4Network(cidr_text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not [ZONE=]CIDR: {error}") from error
        if zone not in ("", ZONE_ID, OTHER_ZONE_ID):
            raise ValueError(f"{text!r}: there is no zone {zone}, only {ZONE_ID} and {OTHER_ZONE_ID}")
        if not cidr.subnet_of(VPC_CIDR) or cidr.prefixlen > 29:
            raise ValueError(f"{text!r} is no /29 or larger part of the VPC, which is {VPC_CIDR}")
        if taken := [str(other) for _, other in found if cidr.overlaps(other)]:
            raise ValueError(f"{text!r} overlaps the vSwitch {taken[0]}")
        found.append((zone or ZONE_ID, cidr))
    return tuple(found)


def backbone(vswitches: Sequence[VSwitch], *, nat: bool) -> Wiring:
    """What the switch (``host``) has besides ENIs, and the host beyond the VPC (``pod``).

    :param nat: whether the kernel can translate addresses.
    """
    switch: list[WiringObject] = [
        LinkUp(dev="lo"),
        Sysctl(key="ipv4/conf/all/forwarding", value="1"),
        Sysctl(key="ipv4/conf/all/rp_filter", value="0"),
        # A packet may leave by the ENI it came from, between two addresses of one ENI: no cause to redirect.
        Sysctl(key="ipv4/conf/all/send_redirects", value="0"),
        Sysctl(key="ipv4/conf/default/send_redirects", value="0"),
        Sysctl(key="ipv4/conf/default/rp_filter", value="0"),
        *(
            Address(dev="lo", address=ip_interface(address))
            for address in (*(vswitch.gateway for vswitch in vswitches), OPENAPI, METADATA, KUBERNETES)
        ),
        Veth(name=_INTERNET, peer="eth0", mac=_NAT_MAC, peer_mac=_INTERNET_MAC),
        Address(dev=_INTERNET, address=ip_interface((NAT_GATEWAY, INTERNET_CIDR.prefixlen))),
        Route(dst=_DEFAULT[4], dev=_INTERNET, via=INTERNET_HOST),
    ]
    host: list[WiringObject] = [
        LinkUp(dev="lo"),
        Address(dev="eth0", address=ip_interface((INTERNET_HOST, INTERNET_CIDR.prefixlen))),
    ]
    if not nat:
        host.append(Route(dst=VPC_CIDR, dev="eth0", via=NAT_GATEWAY))
    if any(vswitch.ipv6_cidr for vswitch in vswitches):
        prefixlen = INTERNET_IPV6_CIDR.prefixlen
        switch += [
            Sysctl(key="ipv6/conf/all/forwarding", value="1"),
            Address(dev=_INTERNET, address=ip_interface((NAT_GATEWAY_IPV6, prefixlen))),
            # Known from the start: a link solicits nobody while its own address is tentative, for a second.
            Neighbor(dev=_INTERNET, address=INTERNET_HOST_IPV6, mac=_INTERNET_MAC),
            Route(dst=_DEFAULT[6], dev=_INTERNET, via=INTERNET_HOST_IPV6),
        ]
        # Public already: the IPv6 gateway routes and does not translate.
        host += [
            Address(dev="eth0", address=ip_interface((INTERNET_HOST_IPV6, prefixlen))),
            Neighbor(dev="eth0", address=NAT_GATEWAY_IPV6, mac=_NAT_MAC),
            Route(dst=VPC_IPV6_CIDR, dev="eth0", via=NAT_GATEWAY_IPV6),
        ]
    gateway = (Masquerade(src=VPC_CIDR, exclude=_PRIVATE),) if nat else ()
    return Wiring(node=gateway, host=tuple(switch), pod=tuple(host))


def link(eni: NetworkInterface, dev: str) -> Veth:
    """An ENI: its far end in the switch, ``dev`` where the instance has it."""
    return Veth(name=port_name(eni.network_interface_id), peer=dev, mac=GATEWAY_MAC, peer_mac=eni.mac)


def port(eni: NetworkInterface, vswitch: VSwitch, mac: str) -> tuple[WiringObject, ...]:
    """What the switch has for an ENI beside its link: who may send by it, and what leads to it.

    :param mac: of the link that the instance has for it, which is a member's trunk's.
    """
    name = port_name(eni.network_interface_id)
    objects: list[WiringObject] = [
        Sysctl(key=f"ipv4/conf/{name}/proxy_arp", value="1"),
        # Without it the kernel waits up to 0.8 s before it answers for somebody else.
        Sysctl(key=f"ipv4/neigh/{name}/proxy_delay", value="0"),
        Rule(priority=_OTHER_SOURCE, iif=name, blackhole=True),
    ]
    if vswitch.ipv6_gateway:
        objects += [
            # On the port itself: a kernel answers neighbour solicitations only for the link they arrive on.
            Address(dev=name, address=ip_interface(vswitch.ipv6_gateway)),
            Rule(priority=_OTHER_SOURCE, iif=name, blackhole=True, family=6),
        ]
    for network in _owned(eni):
        objects += [
            Route(dst=network, dev=name),
            Rule(priority=_OWN_SOURCE, iif=name, src=network),
            *(Neighbor(dev=name, address=address, mac=mac) for address in network),
        ]
    return tuple(objects)


def walls(enis: Iterable[NetworkInterface]) -> set[Rule]:
    """What keeps ENIs apart that have no security group in common."""
    return {
        Rule(priority=_APART, iif=port_name(one.network_interface_id), dst=network, blackhole=True)
        for one, other in permutations(enis, 2)
        if set(one.security_group_ids).isdisjoint(other.security_group_ids)
        for network in _owned(other)
    }


def _owned(eni: NetworkInterface) -> list[IPNetwork]:
    owned: tuple[IPAddress | IPNetwork, ...] = (*eni.ipv4, *eni.ipv6, *eni.ipv4_prefixes)
    return [ip_network(one) for one in owned]


def booted(instance: Instance, vswitch: VSwitch) -> tuple[WiringObject, ...]:
    """What an instance has made of its primary ENI when it is up, as by DHCP."""
    node: list[WiringObject] = [
        LinkUp(dev="lo"),
        Address(dev="eth0", address=ip_interface((instance.private_ip, vswitch.cidr.prefixlen))),
        Route(dst=_DEFAULT[4], dev="eth0", via=vswitch.gateway),
    ]
    if instance.ipv6 and vswitch.ipv6_gateway:
        node += [
            # As on a machine that has been up for a while: until its link-local address is no longer
            # tentative, for a second or two, a node solicits no neighbour for the pods it forwards for.
            Sysctl(key="ipv6/conf/eth0/accept_dad", value="0"),
            Address(dev="eth0", address=ip_interface(instance.ipv6)),
            Route(dst=_DEFAULT[6], dev="eth0", via=vswitch.ipv6_gateway),
        ]
    return tuple(node)


def route_entry(cidr: IPNetwork, instance: Instance) -> Wiring:
    """An entry of the VPC's route table whose next hop is ``instance``.

    :raises ValueError: the instance has no address of that family.
    """
    via = instance.private_ip if cidr.version == 4 else instance.ipv6
    if via is None:
        raise ValueError(f"{instance.instance_id} has no IPv{cidr.version} address to route {cidr} to")
    name = port_name(instance.network_interface_id)
    return Wiring(
        host=(
            Route(dst=cidr, dev=name, via=via),
            Rule(priority=_OWN_SOURCE, iif=name, src=cidr),
        )
    )


def port_name(network_interface_id: str) -> str:
    """Name of the far end of an ENI."""
    return "eni" + hashlib.sha1(network_interface_id.encode()).hexdigest()[:10]
