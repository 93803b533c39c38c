"""The hooks of the vpc mode.

A pod's packets go to a link-local next hop, which is the host's end of its veth pair; the host routes. To
pods of other nodes they leave for the VPC, whose route table leads each node's pod CIDR to that node.
"""

from __future__ import annotations

import hashlib
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final, NamedTuple

from terway_core.errors import NoAddress, RetryLater
from terway_core.hookspecs import hookimpl
from terway_core.ipam import AddressPool
from terway_core.types import (
    Attachment,
    GcReport,
    IPAddress,
    IPInterface,
    IPNetwork,
    Lease,
    Node,
    Outcome,
    Problem,
    Services,
    Wiring,
)
from terway_core.wiring import nft
from terway_core.wiring.objects import (
    Address,
    LinkUp,
    Masquerade,
    Neighbor,
    Route,
    Rule,
    Sysctl,
    Veth,
    WiringObject,
)
from terway_driver_vpc.options import Options, parse
from terway_driver_vpc.routes import RouteKeeper

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


class VpcDriver:
    """Addresses from pools in the journal; wiring from a table of objects; routes, if asked, from the API."""

    def __init__(self) -> None:
        self._options: Options | None = None
        self._pools: tuple[AddressPool, ...] = ()
        self._routes: RouteKeeper | None = None

    @hookimpl
    def terway_start(self, services: Services) -> None:
        self._options = parse(services.options)
        self._pools = tuple(
            AddressPool(
                services.store, f"vpc:{cidr}", cidr, rest=self._options.rest_seconds, clock=services.clock
            )
            for cidr in self._options.pod_cidrs
        )
        if self._options.route_controller:
            # After the pools: a DEL needs them, also while the API does not answer.
            self._routes = RouteKeeper(
                services.cloud, self._options.pod_cidrs, self._options.route_table_id, services.clock
            )
            self._routes.keep()

    @hookimpl
    def terway_allocate(self, attachment: Attachment, node: Node) -> Lease:
        owner = str(attachment.key)
        try:
            taken = [ip_interface(pool.allocate(owner)) for pool in self._started()]
        except NoAddress:
            for pool in self._pools:  # dual stack is both or neither
                pool.release(owner)
            raise
        gateways = tuple(FAMILIES[address.version].next_hop for address in taken)
        return Lease(addresses=tuple(taken), gateways=gateways)

    @hookimpl
    def terway_setup(self, attachment: Attachment, lease: Lease, node: Node) -> Wiring:
        mac, pod_mac = attachment.mac("host"), attachment.mac("pod")
        host_if, pod_if = attachment.host_ifname, attachment.ifname
        shared: list[WiringObject] = []
        host: list[WiringObject] = [Veth(name=host_if, peer=pod_if, mac=mac, peer_mac=pod_mac, mtu=node.mtu)]
        pod: list[WiringObject] = [LinkUp(dev="lo")]
        for address in lease.addresses:
            family = FAMILIES[address.version]
            alone = ip_network(address.ip)
            shared += [Sysctl(key=family.forwarding, value="1"), *self._masquerade(address, node)]
            if address.version == 6:
                host += _ipv6_sysctls(host_if, forwarding=True)
                pod += _ipv6_sysctls(pod_if, forwarding=False)
            # The host need not ask the pod for its MAC either: no first packet waits for ARP or ND.
            host += [Neighbor(dev=host_if, address=address.ip, mac=pod_mac), Route(dst=alone, dev=host_if)]
            pod += [
                Address(dev=pod_if, address=address),
                Neighbor(dev=pod_if, address=family.next_hop, mac=mac),
                *_way_out(pod_if, alone, family),
            ]
        return Wiring(node=tuple(shared), host=tuple(host), pod=tuple(pod))

    @hookimpl
    def terway_teardown(self, attachment: Attachment, lease: Lease | None) -> Outcome:
        owner = str(attachment.key)
        released = [pool.release(owner) for pool in self._started()]
        return Outcome(changed=any(released))

    @hookimpl
    def terway_gc(self, live: tuple[Attachment, ...], node: Node) -> GcReport:
        owners = [str(attachment.key) for attachment in live]
        released = tuple(line for pool in self._started() for line in pool.collect(owners))
        problems: tuple[str, ...] = ()
        if self._routes:
            try:
                self._routes.keep()
            except RetryLater as error:
                problems = (str(error),)
        return GcReport(released=released, problems=problems)

    @hookimpl
    def terway_preflight(self, node: Node) -> list[Problem]:
        return [problem] if (problem := nft.preflight()) else []

    def _started(self) -> tuple[AddressPool, ...]:
        if not self._pools:
            raise RetryLater("the vpc driver is not started, so its address pools are closed")
        return self._pools

    def _masquerade(self, address: IPInterface, node: Node) -> list[WiringObject]:
        options = self._options
        if options is None or not options.masquerade:
            return []
        source = next(cidr for cidr in options.pod_cidrs if address.ip in cidr)
        inside = (*node.vpc_cidrs, *options.cluster_cidrs)
        exclude = tuple(dict.fromkeys(cidr for cidr in inside if cidr.version == source.version))
        return [Masquerade(src=source, exclude=exclude)]


def _way_out(dev: str, own: IPNetwork, family: Family) -> list[WiringObject]:
    """The default route of ``eth0``. A further interface only answers for its own address: it has the default
    route in a table of its own, and rules that lead there what is sent from it."""
    if dev == "eth0":
        return [Route(dst=family.everywhere, dev=dev, via=family.next_hop)]
    # Any number will do that the pod does not use, if it is the same at every call.
    table = 1000 + int.from_bytes(hashlib.sha1(dev.encode()).digest()[:2])
    version = family.next_hop.version
    return [
        Route(dst=family.everywhere, dev=dev, via=family.next_hop, table=table),
        Rule(priority=POD_RULE_PRIORITY, src=own, table=table),
        Rule(priority=POD_RULE_PRIORITY, oif=dev, table=table, family=version),
    ]


def _ipv6_sysctls(dev: str, *, forwarding: bool) -> list[WiringObject]:
    """IPv6 on, although images and hosts may turn it off by default; nobody on a pod's link advertises."""
    wanted = {"disable_ipv6": "0", "accept_ra": "0"} | ({"forwarding": "1"} if forwarding else {})
    return [Sysctl(key=f"ipv6/conf/{dev}/{name}", value=value) for name, value in wanted.items()]
