"""The hooks of the eni mode.

The pod's ``eth0`` is an ENI of its own, and the VPC's gateway its next hop: traffic does not pass the host.
Services are the exception, because kube-proxy works in the host's stack: ``veth1`` leads there.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING, Any, Final

from terway_core.config import parse_options
from terway_core.errors import RetryLater
from terway_core.hookspecs import hookimpl
from terway_core.types import (
    Attachment,
    GcReport,
    IPInterface,
    IPNetwork,
    Lease,
    Node,
    Outcome,
    Pod,
    Problem,
    Services,
    Wiring,
)
from terway_core.wiring import nft
from terway_core.wiring.objects import (
    Address,
    LinkUp,
    Masquerade,
    MoveLink,
    Neighbor,
    Route,
    Sysctl,
    Veth,
    WiringObject,
)
from terway_core.wiring.veth import FAMILIES, ipv6_sysctls
from terway_driver_eni.options import Options

if TYPE_CHECKING:
    from terway_core.eni.pool import Pool

#: With Kubernetes, what a pod requests to get an ENI, and what the scheduler counts.
RESOURCE: Final = "aliyun/eni"
#: The pod's end of the pair that leads into the host's stack.
HOST_PEER: Final = "veth1"


class EniDriver:
    """ENIs from the node's pool; wiring by moving them."""

    def __init__(self) -> None:
        self._options = Options()
        self._pool: Pool | None = None
        self._on_request = False

    @hookimpl
    def terway_start(self, services: Services) -> None:
        self._options = parse_options(Options, "eni", services.options)
        self._pool = pool = services.eni_pool("exclusive")
        self._on_request = services.kube is not None and not self._options.every_pod
        if services.kube:
            services.kube.node.offer(RESOURCE, pool.capacity)

    @hookimpl
    def terway_claim(self, pod: Pod, node: Node) -> bool:
        return not self._on_request or pod.requests.get(RESOURCE, 0) > 0

    @hookimpl
    def terway_allocate(self, attachment: Attachment, node: Node) -> Lease:
        pool = self._started()
        grant = pool.allocate(str(attachment.key), "exclusive")
        ordered = sorted(grant.addresses, key=lambda row: row.primary)  # the primary one wins
        first = {row.address.version: row.address for row in ordered}
        versions = [version for version in pool.families if version in first]
        return Lease(
            addresses=tuple(ip_interface(first[version]) for version in versions),
            gateways=tuple(grant.eni.gateway(version) for version in versions),
            data={"eni": grant.eni.eni_id, "mac": grant.eni.mac},
        )

    @hookimpl
    def terway_setup(self, attachment: Attachment, lease: Lease, node: Node) -> Wiring:
        dev = attachment.ifname
        host: list[WiringObject] = [MoveLink(mac=str(lease.data["mac"]), name=dev, mtu=node.mtu)]
        pod: list[WiringObject] = [LinkUp(dev="lo")]
        shared: list[WiringObject] = []
        for address, gateway in zip(lease.addresses, lease.gateways, strict=True):
            if address.version == 6:
                pod += ipv6_sysctls(dev, forwarding=False, dad=False)
            everywhere = FAMILIES[address.version].everywhere
            pod += [Address(dev=dev, address=address), Route(dst=everywhere, dev=dev, via=gateway)]
        if self._options.host_peer and dev == "eth0":
            self._add_host_peer(attachment, lease, node, shared, host, pod)
        return Wiring(node=tuple(shared), host=tuple(host), pod=tuple(pod))

    @hookimpl
    def terway_teardown(self, attachment: Attachment, lease: Lease | None) -> Outcome:
        return Outcome(changed=self._started().release(str(attachment.key)))

    @hookimpl
    def terway_gc(self, live: tuple[Attachment, ...], node: Node) -> GcReport:
        pool = self._started()
        released = pool.collect(str(attachment.key) for attachment in live)
        return GcReport(released=tuple(released), problems=tuple(pool.problems))

    @hookimpl
    def terway_preflight(self, node: Node, options: Mapping[str, Any]) -> list[Problem]:
        # Only what comes from the pod by the host's stack is masqueraded.
        problem = nft.preflight() if parse_options(Options, "eni", options).host_peer else None
        return [problem] if problem else []

    def _add_host_peer(
        self,
        attachment: Attachment,
        lease: Lease,
        node: Node,
        shared: list[WiringObject],
        host: list[WiringObject],
        pod: list[WiringObject],
    ) -> None:
        mac, pod_mac = attachment.mac("host"), attachment.mac("pod")
        host_if = attachment.host_ifname
        host.append(Veth(name=host_if, peer=HOST_PEER, mac=mac, peer_mac=pod_mac, mtu=node.mtu))
        for address in lease.addresses:
            family = FAMILIES[address.version]
            shared += [
                Sysctl(key=family.forwarding, value="1"),
                # What the host sends on for the pod leaves by an ENI that does not own the pod's address.
                Masquerade(src=ip_network(address.ip)),
            ]
            if address.version == 6:
                host += ipv6_sysctls(host_if, forwarding=True)
                pod += ipv6_sysctls(HOST_PEER, forwarding=False)
            host += [
                Neighbor(dev=host_if, address=address.ip, mac=pod_mac),
                Route(dst=ip_network(address.ip), dev=host_if),
            ]
            pod += [
                Address(dev=HOST_PEER, address=address),
                Neighbor(dev=HOST_PEER, address=family.next_hop, mac=mac),
                *(
                    Route(dst=destination, dev=HOST_PEER, via=family.next_hop)
                    for destination in self._by_host(address, node)
                ),
            ]

    def _by_host(self, address: IPInterface, node: Node) -> list[IPNetwork]:
        """Where packets of the address's family go by ``veth1``: Services, what was configured, the node."""
        every = (
            *node.service_cidrs,
            *self._options.host_stack_cidrs,
            *(ip_network(own) for own in node.addresses),
        )
        return list(dict.fromkeys(cidr for cidr in every if cidr.version == address.version))

    def _started(self) -> Pool:
        if self._pool is None:
            raise RetryLater("the eni driver is not started, so the pool of ENIs is closed")
        return self._pool
