"""The hooks of the vpc mode.

A pod's packets go to a link-local next hop, which is the host's end of its veth pair; the host routes. To
pods of other nodes they leave for the VPC, whose route table leads each node's pod CIDR to that node.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface
from typing import Any

from terway_core.config import parse_options
from terway_core.errors import NoAddress, RetryLater
from terway_core.hookspecs import hookimpl
from terway_core.ipam import AddressPool
from terway_core.types import (
    Attachment,
    GcReport,
    IPInterface,
    Lease,
    Node,
    Outcome,
    Problem,
    Services,
    Wiring,
)
from terway_core.wiring import nft
from terway_core.wiring.objects import Masquerade
from terway_core.wiring.veth import FAMILIES, wire_by_veth
from terway_driver_vpc.options import Options
from terway_driver_vpc.routes import RouteKeeper


class VpcDriver:
    """Addresses from pools in the journal; wiring from a table of objects; routes, if asked, from the API."""

    def __init__(self) -> None:
        self._options: Options | None = None
        self._pools: tuple[AddressPool, ...] = ()
        self._routes: RouteKeeper | None = None

    @hookimpl
    def terway_start(self, services: Services) -> None:
        options = dict(services.options)
        if "pod_cidrs" not in options and services.kube:
            if not services.node.pod_cidrs:
                raise RetryLater(
                    "no pod CIDR is known: options.vpc.pod_cidrs is absent, and Kubernetes has given none to "
                    f"node {services.node.name}, or could not be asked"
                )
            options["pod_cidrs"] = services.node.pod_cidrs
        self._options = parse_options(Options, "vpc", options)
        self._pools = tuple(
            AddressPool(
                services.store,
                f"vpc:ipv{cidr.version}",
                cidr,
                rest=self._options.rest_seconds,
                clock=services.clock,
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
        pair = wire_by_veth(attachment, lease, node.mtu)
        masquerades = [self._masquerade(address, node) for address in lease.addresses]
        return Wiring(node=(*pair.node, *filter(None, masquerades)), host=pair.host, pod=pair.pod)

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
    def terway_preflight(self, node: Node, options: Mapping[str, Any]) -> list[Problem]:
        # Not parsed: before the mode is configured its options are none.
        problem = nft.preflight() if options.get("masquerade", True) else None
        return [problem] if problem else []

    def _started(self) -> tuple[AddressPool, ...]:
        if not self._pools:
            raise RetryLater("the vpc driver is not started, so its address pools are closed")
        return self._pools

    def _masquerade(self, address: IPInterface, node: Node) -> Masquerade | None:
        options = self._options
        if options is None or not options.masquerade:
            return None
        source = next(cidr for cidr in options.pod_cidrs if address.ip in cidr)
        inside = (*node.vpc_cidrs, *options.cluster_cidrs)
        exclude = tuple(dict.fromkeys(cidr for cidr in inside if cidr.version == source.version))
        return Masquerade(src=source, exclude=exclude)
