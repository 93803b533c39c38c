"""The VPC as wiring: what the namespace called *switch* must hold to treat packets as the real network does.

::

      node-1            node-2                          internet
    ┌────────┐        ┌────────┐                     ┌──────────────┐
    │  eth0  │        │  eth0  │                     │ 203.0.113.10 │
    └───┬────┘        └───┬────┘                     └──────┬───────┘
    ┌───┴─────────────────┴─────────────────────────────────┴───────┐
    │  eni…              eni…       ee:ff:ff:ff:ff:ff    internet   │
    │                                                    (NAT)      │
    │  lo: gateway .253, OpenAPI 100.100.0.10, metadata 100.100.100.200
    └──────────────────────────── switch ───────────────────────────┘

* Every ENI is a veth whose far end has the gateway's MAC address and answers ARP for the whole VPC.
* The switch knows who owns an address without asking: a route and a permanent neighbour for each.
* A packet passes only if it leaves by the ENI that owns its source address. Two kinds of rule per ENI say
  so: ``iif ENI from OWNED lookup main``, then ``iif ENI blackhole``. (Not ``rp_filter``: it would drop the
  ARP requests that a node sends from an ENI without an address of its own.)
* An entry of the VPC's route table is a route by way of an instance, and makes its CIDR one of the sources
  that the instance's primary ENI may send from.
* The NAT gateway translates addresses of vSwitches only. Whoever else sends to the internet gets no answer.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface, ip_network
from typing import Final

from terway_core.lab.api import Instance, VSwitch
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

VPC_CIDR: Final = IPv4Network("192.168.0.0/16")
VPC_IPV6_CIDR: Final = IPv6Network("2001:db8:0:100::/56")
VSWITCH_CIDR: Final = IPv4Network("192.168.0.0/24")
VSWITCH_IPV6_CIDR: Final = IPv6Network("2001:db8:0:100::/64")
#: Addresses of pods in ``vpc`` mode, outside the VPC; each node has one part.
POD_CIDR: Final = IPv4Network("172.20.0.0/16")
POD_IPV6_CIDR: Final = IPv6Network("fd20::/48")
SERVICE_CIDR: Final = IPv4Network("172.21.0.0/20")
SERVICE_IPV6_CIDR: Final = IPv6Network("fd21::/112")

METADATA: Final = IPv4Address("100.100.100.200")
OPENAPI: Final = IPv4Address("100.100.0.10")

INTERNET_CIDR: Final = IPv4Network("203.0.113.0/24")
INTERNET_IPV6_CIDR: Final = IPv6Network("2001:db8:ffff::/64")
NAT_GATEWAY: Final = INTERNET_CIDR[1]
NAT_GATEWAY_IPV6: Final = INTERNET_IPV6_CIDR[1]
INTERNET_HOST: Final = IPv4Address("203.0.113.10")
INTERNET_HOST_IPV6: Final = IPv6Address("2001:db8:ffff::10")

#: The MAC address behind which the real VPC hides everything.
GATEWAY_MAC: Final = "ee:ff:ff:ff:ff:ff"

_OWN_SOURCE, _OTHER_SOURCE = 100, 101
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


def ipv6_gateway(vswitch: VSwitch) -> IPv6Address | None:
    """The IPv6 gateway of a vSwitch: as for IPv4, the third address from the end."""
    return vswitch.ipv6_cidr[-3] if vswitch.ipv6_cidr else None


def backbone(vswitch: VSwitch) -> Wiring:
    """What the switch (``host``) has besides ENIs, and the host beyond the VPC (``pod``)."""
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
            for address in (vswitch.gateway, OPENAPI, METADATA)
        ),
        Veth(name=_INTERNET, peer="eth0", mac=_NAT_MAC, peer_mac=_INTERNET_MAC),
        Address(dev=_INTERNET, address=ip_interface((NAT_GATEWAY, INTERNET_CIDR.prefixlen))),
        Route(dst=_DEFAULT[4], dev=_INTERNET, via=INTERNET_HOST),
    ]
    host: list[WiringObject] = [
        LinkUp(dev="lo"),
        Address(dev="eth0", address=ip_interface((INTERNET_HOST, INTERNET_CIDR.prefixlen))),
    ]
    if vswitch.ipv6_cidr:
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
    return Wiring(node=(Masquerade(src=VPC_CIDR, exclude=_PRIVATE),), host=tuple(switch), pod=tuple(host))


def primary_eni(instance: Instance, vswitch: VSwitch) -> Wiring:
    """An instance's ``eth0``: its far end in the switch (``host``), what DHCP does in the node (``pod``)."""
    port = port_name(instance)
    switch: list[WiringObject] = [
        Veth(name=port, peer="eth0", mac=GATEWAY_MAC, peer_mac=instance.mac),
        Sysctl(key=f"ipv4/conf/{port}/proxy_arp", value="1"),
        # Without it the kernel waits up to 0.8 s before it answers for somebody else.
        Sysctl(key=f"ipv4/neigh/{port}/proxy_delay", value="0"),
        *_owned(instance, instance.private_ip),
        Rule(priority=_OTHER_SOURCE, iif=port, blackhole=True),
    ]
    node: list[WiringObject] = [
        LinkUp(dev="lo"),
        Address(dev="eth0", address=ip_interface((instance.private_ip, vswitch.cidr.prefixlen))),
        Route(dst=_DEFAULT[4], dev="eth0", via=vswitch.gateway),
    ]
    gateway = ipv6_gateway(vswitch)
    if instance.ipv6 and gateway:
        switch += [
            # On the port itself: a kernel answers neighbour solicitations only for the link they arrive on.
            Address(dev=port, address=ip_interface(gateway)),
            *_owned(instance, instance.ipv6),
            Rule(priority=_OTHER_SOURCE, iif=port, blackhole=True, family=6),
        ]
        node += [
            # As on a machine that has been up for a while: until its link-local address is no longer
            # tentative, for a second or two, a node solicits no neighbour for the pods it forwards for.
            Sysctl(key="ipv6/conf/eth0/accept_dad", value="0"),
            Address(dev="eth0", address=ip_interface(instance.ipv6)),
            Route(dst=_DEFAULT[6], dev="eth0", via=gateway),
        ]
    return Wiring(host=tuple(switch), pod=tuple(node))


def route_entry(cidr: IPNetwork, instance: Instance) -> Wiring:
    """An entry of the VPC's route table whose next hop is ``instance``.

    :raises ValueError: the instance has no address of that family.
    """
    via = instance.private_ip if cidr.version == 4 else instance.ipv6
    if via is None:
        raise ValueError(f"{instance.instance_id} has no IPv{cidr.version} address to route {cidr} to")
    port = port_name(instance)
    return Wiring(
        host=(
            Route(dst=cidr, dev=port, via=via),
            Rule(priority=_OWN_SOURCE, iif=port, src=cidr),
        )
    )


def port_name(instance: Instance) -> str:
    """Name of the far end of an instance's primary ENI."""
    return "eni" + hashlib.sha1(instance.network_interface_id.encode()).hexdigest()[:10]


def _owned(instance: Instance, address: IPAddress) -> tuple[WiringObject, ...]:
    port = port_name(instance)
    network = ip_network(address)
    return (
        Route(dst=network, dev=port),
        Neighbor(dev=port, address=address, mac=instance.mac),
        Rule(priority=_OWN_SOURCE, iif=port, src=network),
    )
