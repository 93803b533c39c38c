"""The hooks of the eniip_ipvlan mode.

A pod's ``eth0`` is an ipvlan link, a child of the ENI that owns the pod's address. The VPC's gateway is its
next hop, so what it sends leaves by the right ENI without passing the host's stack. A parent and its children
do not hear each other: for traffic between node and pods each ENI has one more child, on the host.
"""

from __future__ import annotations

import platform
import re
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
    Problem,
    Services,
    Wiring,
)
from terway_core.wiring import nft, probe
from terway_core.wiring.objects import (
    Address,
    Clsact,
    Ipvlan,
    LinkUp,
    Masquerade,
    Neighbor,
    Redirect,
    Route,
    Sysctl,
    WiringObject,
)
from terway_core.wiring.veth import FAMILIES, ipv6_sysctls, way_out
from terway_driver_eniip_ipvlan.options import Options

if TYPE_CHECKING:
    from terway_core.eni.pool import Pool

MODE: Final = "eniip_ipvlan"
#: The last version of Linux whose ipvlan is not fit for this, as Alibaba Cloud's own Terway has it.
TOO_OLD: Final = (4, 2)
#: The MAC address behind which the VPC hides everything.
GATEWAY_MAC: Final = "ee:ff:ff:ff:ff:ff"


class EniipIpvlanDriver:
    """Addresses from the node's pool; wiring by children of the ENI."""

    def __init__(self) -> None:
        self._options = Options()
        self._pool: Pool | None = None

    @hookimpl
    def terway_start(self, services: Services) -> None:
        self._options = parse_options(Options, MODE, services.options)
        self._pool = services.eni_pool("shared")

    @hookimpl
    def terway_allocate(self, attachment: Attachment, node: Node) -> Lease:
        grant, link = self._started().allocate_with_link(str(attachment.key))
        addresses = grant.interfaces
        return Lease(
            addresses=addresses,
            gateways=tuple(grant.eni.gateway(address.version) for address in addresses),
            data={"eni": grant.eni.eni_id, "dev": link.name, "index": link.index, "mac": grant.eni.mac},
        )

    @hookimpl
    def terway_setup(self, attachment: Attachment, lease: Lease, node: Node) -> Wiring:
        dev, child, pod_if = str(lease.data["dev"]), f"ipvl_{lease.data['index']}", attachment.ifname
        shared: list[WiringObject] = [
            LinkUp(dev=dev, mtu=node.mtu),
            Ipvlan(name=child, parent=dev, mtu=node.mtu, arp=False),
            Clsact(dev=dev),
        ]
        host: list[WiringObject] = []
        pod: list[WiringObject] = [LinkUp(dev="lo"), Ipvlan(name=pod_if, parent=dev, mtu=node.mtu)]
        for address, gateway in zip(lease.addresses, lease.gateways, strict=True):
            alone = ip_network(address.ip)
            own = [address_ for address_ in node.addresses if address_.version == address.version]
            if address.version == 6:
                shared += [*ipv6_sysctls(dev, forwarding=True), *ipv6_sysctls(child, forwarding=True)]
                pod += ipv6_sysctls(pod_if, forwarding=False, dad=False)
            shared += (Address(dev=child, address=ip_interface(one)) for one in own)
            # For pods of eniip_veth: the child, which has the node's address now, hears the gateway's answers
            # to what the host asks by the ENI itself.
            shared.append(Neighbor(dev=dev, address=gateway, mac=GATEWAY_MAC))
            shared += self._through_the_host(address, dev, child, node)
            host += [
                Route(dst=alone, dev=child),
                # The pod sends to its gateway also what is for a pod of the same ENI.
                Redirect(dev=dev, dst=alone, to=dev),
            ]
            pod += [
                Address(dev=pod_if, address=address),
                # The MAC address is that of all children: the kernel finds the one with the address.
                *(Neighbor(dev=pod_if, address=one, mac=str(lease.data["mac"])) for one in own),
                *way_out(pod_if, alone, gateway, on_link=map(ip_network, own)),
            ]
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
        chosen = parse_options(Options, MODE, options)
        release = platform.release()
        if (found := re.match(r"(\d+)\.(\d+)", release)) and (int(found[1]), int(found[2])) <= TOO_OLD:
            version = ".".join(map(str, TOO_OLD))
            return [
                Problem(
                    summary=f"Linux {release} is too old: ipvlan needs one newer than {version}",
                    remedy="run a newer kernel, or use the driver eniip_veth",
                )
            ]
        samples = (
            Ipvlan(name="probe2", parent=probe.LINK),
            Clsact(dev=probe.LINK),
            Redirect(dev=probe.LINK, dst=ip_network("192.0.2.0/24"), to=probe.LINK),
        )
        problems = [
            probe.preflight(
                samples,
                "run a kernel with CONFIG_IPVLAN, CONFIG_NET_CLS_FLOWER, CONFIG_NET_ACT_MIRRED,"
                " CONFIG_NET_ACT_SKBEDIT and CONFIG_NET_ACT_TUNNEL_KEY, or use the driver eniip_veth",
            )
        ]
        if chosen.masquerade and not chosen.cilium_chaining:
            problems.append(nft.preflight())
        return [problem for problem in problems if problem]

    @hookimpl
    def terway_conflist(self, conflist: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        if not parse_options(Options, MODE, options).cilium_chaining:
            return conflist
        return {**conflist, "plugins": [*conflist["plugins"], {"type": "cilium-cni"}]}

    def _through_the_host(self, address: IPInterface, dev: str, child: str, node: Node) -> list[WiringObject]:
        """What leads Services and ``host_stack_cidrs`` of the address's family into the host's stack, where
        kube-proxy works. With Cilium nothing does: it has answered before the packet leaves the pod."""
        if self._options.cilium_chaining:
            return []
        every: tuple[IPNetwork, ...] = (*node.service_cidrs, *self._options.host_stack_cidrs)
        cidrs = [cidr for cidr in dict.fromkeys(every) if cidr.version == address.version]
        if not cidrs:
            return []
        objects: list[WiringObject] = [Redirect(dev=dev, dst=cidr, to=child) for cidr in cidrs]
        objects.append(Sysctl(key=FAMILIES[address.version].forwarding, value="1"))
        if self._options.masquerade:
            # Else the answer would go straight to the pod, which has not asked the one that sends it.
            objects.append(Masquerade(src=ip_network(address.ip)))
        return objects

    def _started(self) -> Pool:
        if self._pool is None:
            raise RetryLater(f"the {MODE} driver is not started, so the pool of ENIs is closed")
        return self._pool
