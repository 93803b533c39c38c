"""Addresses from one CIDR, and a veth pair for each pod."""

from ipaddress import ip_address, ip_interface, ip_network
from typing import Final

from terway_core.errors import InvalidConfig
from terway_core.hookspecs import hookimpl
from terway_core.ipam import AddressPool
from terway_core.types import Attachment, DriverHooks, GcReport, Lease, Node, Outcome, Services, Wiring
from terway_core.wiring.objects import Address, Neighbor, Route, Sysctl, Veth

# By family. No link has the gateway's address: a neighbour entry in the pod says that the host is meant.
GATEWAY = {4: ip_address("169.254.1.1"), 6: ip_address("fe80::1")}
DEFAULT = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


class ExampleDriver:
    @hookimpl
    def terway_start(self, services: Services) -> None:
        try:
            cidr = ip_network(services.options.get("cidr", ""))
        except ValueError as error:
            raise InvalidConfig(f"options.example.cidr: {error}") from error
        self._pool = AddressPool(services.store, "example", cidr, rest=60, clock=services.clock)

    @hookimpl
    def terway_allocate(self, attachment: Attachment, node: Node) -> Lease:
        address = self._pool.allocate(str(attachment.key))
        return Lease(addresses=(ip_interface(address),), gateways=(GATEWAY[address.version],))

    @hookimpl
    def terway_setup(self, attachment: Attachment, lease: Lease, node: Node) -> Wiring:
        (address,), (gateway,) = lease.addresses, lease.gateways
        host, host_mac = attachment.host_ifname, attachment.mac("host")
        pod, pod_mac = attachment.ifname, attachment.mac("pod")
        return Wiring(
            node=(Sysctl(key=FORWARDING[address.version], value="1"),),
            host=(
                Veth(name=host, peer=pod, mac=host_mac, peer_mac=pod_mac, mtu=node.mtu),
                Neighbor(dev=host, address=address.ip, mac=pod_mac),
                Route(dst=address.network, dev=host),
            ),
            pod=(
                Address(dev=pod, address=address),
                Neighbor(dev=pod, address=gateway, mac=host_mac),
                Route(dst=DEFAULT[address.version], dev=pod, via=gateway),
            ),
        )

    @hookimpl
    def terway_teardown(self, attachment: Attachment, lease: Lease | None) -> Outcome:
        return Outcome(changed=self._pool.release(str(attachment.key)))

    @hookimpl
    def terway_gc(self, live: tuple[Attachment, ...], node: Node) -> GcReport:
        released = self._pool.collect(str(attachment.key) for attachment in live)
        return GcReport(released=tuple(released))


driver: Final[DriverHooks] = ExampleDriver()
