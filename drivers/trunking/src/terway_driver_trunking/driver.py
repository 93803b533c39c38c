"""The hooks of the trunking mode.

A pod has an ENI of its own, which is a member of the node's trunk ENI: its packets pass the trunk with a VLAN
tag, which tells the VPC whose they are. The control plane makes the ENI and says in the pod's PodENI which
one it is. Here the pod is connected by a veth pair, what it sends leaves by the trunk, tagged, and what comes
for it loses its tag.

Security groups are the VPC's. So pods of one node meet there too: nothing from a pod reaches a trunk pod, and
nothing from a trunk pod reaches another, by the host alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any, Final

from terway_core.config import Config, parse_options
from terway_core.errors import InvalidConfig, NoAddress, RetryLater
from terway_core.hookspecs import hookimpl
from terway_core.ipam import GivenAddresses
from terway_core.types import (
    Attachment,
    GcReport,
    Lease,
    Node,
    Outcome,
    Pod,
    Problem,
    Services,
    Wiring,
)
from terway_core.wiring import probe
from terway_core.wiring.objects import Clsact, Rule, Sysctl, VlanPop, VlanPush, WiringObject
from terway_core.wiring.policy import FIRST_TABLE, TO_POD, way_by_eni
from terway_core.wiring.veth import FAMILIES, wire_by_veth
from terway_driver_trunking import api
from terway_driver_trunking.options import Options

if TYPE_CHECKING:
    import typer

    from terway_core.eni.pool import Pool
    from terway_driver_trunking.podenis import PodEnis

MODE: Final = "trunking"
#: Before the rules that lead to pods of this node, so that what a pod sends to one of them leaves the node.
FROM_MEMBER: Final = TO_POD - 1


class TrunkingDriver:
    """Addresses from PodENIs; wiring by veth, and by VLAN tags on the trunk ENI."""

    def __init__(self) -> None:
        self._options = Options()
        self._addresses: GivenAddresses | None = None
        self._podenis: PodEnis | None = None
        self._pool: Pool | None = None

    @hookimpl
    def terway_start(self, services: Services) -> None:
        self._options = parse_options(Options, MODE, services.options)
        self._addresses = GivenAddresses(services.store, MODE, clock=services.clock)
        if services.kube is None:
            raise InvalidConfig("the trunking driver learns of pods' ENIs from Kubernetes; set kube.enabled")
        self._pool = pool = services.eni_pool("trunk")
        if self._podenis is None:
            from terway_driver_trunking.podenis import PodEnis  # loads what only a cluster needs

            self._podenis = PodEnis(services.kube.client, services.node.name, services.waiting)
            self._podenis.start()
        services.kube.node.offer(api.MEMBER_ENI, pool.members)
        services.kube.node.annotate(api.TRUNK_ON, lambda: pool.trunk().eni_id)

    @hookimpl
    def terway_stop(self) -> None:
        if self._podenis:
            self._podenis.stop()
            self._podenis = None

    @hookimpl
    def terway_claim(self, pod: Pod, node: Node) -> bool:
        return pod.annotations.get(api.POD_ENI) == "true"

    @hookimpl
    def terway_allocate(self, attachment: Attachment, node: Node) -> Lease:
        if self._pool is None or self._podenis is None:
            raise _not_started()
        trunk = self._pool.trunk()
        link = self._pool.link_of(trunk)
        member = self._podenis.member(
            attachment.pod, attachment.ifname, trunk.eni_id, timeout=self._options.wait
        )
        addresses = [address for address in member.addresses if address.version in self._pool.families]
        if not addresses:
            wanted = " or ".join(f"IPv{family}" for family in self._pool.families)
            raise NoAddress(f"{member.eni_id}, the ENI of pod {attachment.pod}, has no {wanted} address")
        self._started().take(str(attachment.key), addresses)
        return Lease(
            addresses=tuple(map(ip_interface, addresses)),
            gateways=tuple(FAMILIES[address.version].next_hop for address in addresses),
            data={
                "eni": member.eni_id,
                "vid": member.vid,
                "trunk": trunk.eni_id,
                "dev": link.name,
                "table": FIRST_TABLE + link.index,
                "vpc_gateways": [str(trunk.gateway(address.version)) for address in addresses],
            },
        )

    @hookimpl
    def terway_setup(self, attachment: Attachment, lease: Lease, node: Node) -> Wiring:
        dev, table, vid = str(lease.data["dev"]), int(lease.data["table"]), int(lease.data["vid"])
        pair = wire_by_veth(attachment, lease, node.mtu)
        trunk: list[WiringObject] = [
            # Loosely: what pods of this node send to one another comes back in by the trunk.
            Sysctl(key=f"ipv4/conf/{dev}/rp_filter", value="2"),
            *(
                obj
                for gateway in map(ip_address, lease.data["vpc_gateways"])
                for obj in way_by_eni(dev, table, gateway, addresses=node.addresses, mtu=node.mtu)
            ),
            Clsact(dev=dev),
            VlanPop(dev=dev),
        ]
        own: list[WiringObject] = []
        for address in lease.addresses:
            alone = ip_network(address.ip)
            own += [
                Rule(priority=FROM_MEMBER, src=alone, iif=attachment.host_ifname, table=table),
                # From the VPC and from this node itself, as for probes. For other pods it is not here.
                Rule(priority=TO_POD, dst=alone, iif=dev),
                Rule(priority=TO_POD, dst=alone, iif="lo"),
                VlanPush(dev=dev, src=address.ip, vid=vid),
            ]
        return Wiring(node=(*pair.node, *trunk), host=(*pair.host, *own), pod=pair.pod)

    @hookimpl
    def terway_teardown(self, attachment: Attachment, lease: Lease | None) -> Outcome:
        return Outcome(changed=self._started().release(str(attachment.key)))

    @hookimpl
    def terway_gc(self, live: tuple[Attachment, ...], node: Node) -> GcReport:
        released = self._started().collect(str(attachment.key) for attachment in live)
        return GcReport(released=tuple(released), problems=tuple(self._pool.problems if self._pool else ()))

    @hookimpl
    def terway_preflight(self, node: Node, options: Mapping[str, Any]) -> list[Problem]:
        samples = (
            Clsact(dev=probe.LINK),
            VlanPop(dev=probe.LINK),
            VlanPush(dev=probe.LINK, src=ip_address("192.0.2.1"), vid=1),
        )
        problem = probe.preflight(
            samples, "run a kernel with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS"
        )
        return [problem] if problem else []

    @hookimpl
    def terway_rbac(self) -> list[dict[str, list[str]]]:
        podenis = [api.PODENIS.plural]
        return [{"apiGroups": [api.GROUP], "resources": podenis, "verbs": ["list", "watch"]}]

    @hookimpl
    def terway_manifests(self, config: Config, image: str) -> list[dict[str, Any]]:
        from terway_driver_trunking.manifests import manifests

        return manifests(config, image)

    @hookimpl
    def terway_commands(self) -> typer.Typer:
        from terway_driver_trunking.commands import app  # the daemon has no use for it

        return app

    def _started(self) -> GivenAddresses:
        if self._addresses is None:
            raise _not_started()
        return self._addresses


def _not_started() -> RetryLater:
    return RetryLater("the trunking driver is not started")
