"""The process behind a lab: the region's OpenAPI, its metadata service, and the network that obeys them.

A simulated Kubernetes API server, if the lab has one, lives here too.

``python -m terway_core.lab.region FOLDER`` runs in the switch's namespace. Whatever a client asks of the API,
be it a route entry, an ENI or an address, is carried out in the network before the client reads that it is.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp import web

from terway_core.lab import api, fabric, kubernetes, metadata
from terway_core.lab.state import Lab
from terway_core.lab.switch import Switch
from terway_core.wiring.engine import Engine


async def serve(lab: Lab) -> None:
    """Build the region and serve it for ever; whoever takes the lab down kills the process."""
    region = api.Region.create(region_id=fabric.REGION_ID, path=lab.region_state)
    region.add_access_key()
    switch = Switch(region, Engine())
    switch.build(lab)
    behaviour = api.Behaviour()
    openapi = web.AppRunner(
        api.build_app(
            region,
            behaviour=behaviour,
            on_route_added=switch.add_route,
            on_route_removed=switch.remove_route,
            on_interface_changed=switch.change_interface,
        ),
        access_log=None,
    )
    instances = web.AppRunner(metadata.build_app(region, behaviour=behaviour), access_log=None)
    await openapi.setup()
    await instances.setup()
    await web.TCPSite(instances, str(fabric.METADATA), 80).start()
    await web.TCPSite(openapi, str(fabric.OPENAPI), 80).start()
    await web.UnixSite(openapi, str(lab.region_socket)).start()
    if lab.spec.kubernetes == "simulated":
        cluster = web.AppRunner(kubernetes.build_app(kubernetes.Objects()), access_log=None)
        await cluster.setup()
        await web.TCPSite(cluster, str(fabric.KUBERNETES), fabric.KUBERNETES_PORT).start()
    with switch.watching():
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Lab(Path(sys.argv[1]))))
