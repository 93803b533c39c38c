"""The process behind a lab: the region's OpenAPI, its metadata service, and the network that obeys them.

``python -m terway_core.lab.region FOLDER`` runs in the switch's namespace. It wires every node's ENI, serves,
and turns each route entry that a client creates into a route of the switch before the entry reads Available.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

from aiohttp import web

from terway_core.lab import api, fabric, metadata
from terway_core.lab.state import Lab
from terway_core.wiring.engine import Engine
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import IPNetwork

INSTANCE_TYPE: Final = "ecs.g7.large"


class Switch:
    """The VPC's network in the calling thread's namespace."""

    def __init__(self, region: api.Region, engine: Engine) -> None:
        self._region = region
        self._engine = engine

    def build(self, lab: Lab) -> None:
        """Make the VPC, its vSwitch and every node's instance, and wire them."""
        dual = lab.spec.ip_stack != "ipv4"
        vpc = self._region.add_vpc(fabric.VPC_CIDR, fabric.VPC_IPV6_CIDR if dual else None)
        vswitch = self._region.add_vswitch(
            vpc, fabric.VSWITCH_CIDR, fabric.ZONE_ID, fabric.VSWITCH_IPV6_CIDR if dual else None
        )
        backbone = fabric.backbone(vswitch)
        self._engine.ensure(backbone.node)
        with Namespace.open(lab.netns("internet")) as internet:
            self._engine.apply(backbone, internet, "lab")
        for node in lab.nodes:
            instance = self._region.add_instance(node.name, instance_type=INSTANCE_TYPE, vswitch=vswitch)
            with Namespace.open(node.netns) as namespace:
                self._engine.apply(
                    fabric.primary_eni(instance, vswitch), namespace, instance.network_interface_id
                )

    def add_route(self, cidr: IPNetwork, instance_id: str) -> None:
        """Carry out a new entry of the VPC's route table."""
        entry = fabric.route_entry(cidr, self._region.instances[instance_id])
        self._engine.apply(entry, None, str(cidr))

    def remove_route(self, cidr: IPNetwork, instance_id: str) -> None:
        """Take back what :meth:`add_route` did."""
        entry = fabric.route_entry(cidr, self._region.instances[instance_id])
        self._engine.remove(entry, None, str(cidr))


async def serve(lab: Lab) -> None:
    """Build the region and serve it for ever; whoever takes the lab down kills the process."""
    region = api.Region.create(region_id=fabric.REGION_ID, path=lab.region_state)
    region.add_access_key()
    switch = Switch(region, Engine())
    switch.build(lab)
    openapi = web.AppRunner(
        api.build_app(region, on_route_added=switch.add_route, on_route_removed=switch.remove_route),
        access_log=None,
    )
    instances = web.AppRunner(metadata.build_app(region), access_log=None)
    await openapi.setup()
    await instances.setup()
    await web.TCPSite(instances, str(fabric.METADATA), 80).start()
    await web.TCPSite(openapi, str(fabric.OPENAPI), 80).start()
    await web.UnixSite(openapi, str(lab.region_socket)).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Lab(Path(sys.argv[1]))))
