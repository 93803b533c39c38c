"""The hooks of the eniip_veth mode.

A pod is connected by a veth pair. Its address belongs to an ENI, and the VPC drops what leaves by another
one, so each ENI has a routing table and each pod two rules: what goes to the pod is looked up in the main
table, what comes from it in the table of its ENI.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from terway_core.errors import InvalidConfig, RetryLater
from terway_core.hookspecs import hookimpl
from terway_core.types import Attachment, GcReport, Lease, Node, Outcome, Services, Wiring
from terway_core.wiring.objects import MAIN_TABLE, Rule, WiringObject
from terway_core.wiring.policy import FIRST_TABLE, FROM_POD, TO_POD, way_by_eni
from terway_core.wiring.veth import FAMILIES, wire_by_veth

if TYPE_CHECKING:
    from terway_core.eni.pool import Pool


class EniipVethDriver:
    """Addresses from the node's pool; wiring by veth, with the rules of the ENI."""

    def __init__(self) -> None:
        self._pool: Pool | None = None

    @hookimpl
    def terway_start(self, services: Services) -> None:
        if services.options:
            names = ", ".join(f"options.eniip_veth.{name}" for name in services.options)
            raise InvalidConfig(f"{names}: the mode has no options of its own; see `pool` in the settings")
        self._pool = services.eni_pool("shared")

    @hookimpl
    def terway_allocate(self, attachment: Attachment, node: Node) -> Lease:
        grant, link = self._started().allocate_with_link(str(attachment.key))
        addresses = grant.interfaces
        return Lease(
            addresses=addresses,
            gateways=tuple(FAMILIES[address.version].next_hop for address in addresses),
            data={
                "eni": grant.eni.eni_id,
                "dev": link.name,
                "table": FIRST_TABLE + link.index,
                "vpc_gateways": [str(grant.eni.gateway(address.version)) for address in addresses],
            },
        )

    @hookimpl
    def terway_setup(self, attachment: Attachment, lease: Lease, node: Node) -> Wiring:
        dev, table = str(lease.data["dev"]), int(lease.data["table"])
        gateways = [ip_address(text) for text in lease.data["vpc_gateways"]]
        pair = wire_by_veth(attachment, lease, node.mtu)
        shared = [
            obj
            for gateway in gateways
            for obj in way_by_eni(dev, table, gateway, addresses=node.addresses, mtu=node.mtu)
        ]
        rules: list[WiringObject] = []
        for address in lease.addresses:
            alone = ip_network(address.ip)
            rules += [
                Rule(priority=TO_POD, dst=alone, table=MAIN_TABLE),
                Rule(priority=FROM_POD, src=alone, table=table),
            ]
        return Wiring(node=(*pair.node, *shared), host=(*pair.host, *rules), pod=pair.pod)

    @hookimpl
    def terway_teardown(self, attachment: Attachment, lease: Lease | None) -> Outcome:
        return Outcome(changed=self._started().release(str(attachment.key)))

    @hookimpl
    def terway_gc(self, live: tuple[Attachment, ...], node: Node) -> GcReport:
        pool = self._started()
        released = pool.collect(str(attachment.key) for attachment in live)
        return GcReport(released=tuple(released), problems=tuple(pool.problems))

    def _started(self) -> Pool:
        if self._pool is None:
            raise RetryLater("the eniip_veth driver is not started, so the pool of ENIs is closed")
        return self._pool
