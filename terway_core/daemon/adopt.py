"""After the journal was lost: take in from the kernel what still runs.

Links on the host say whose they are, and our routes say which addresses are behind them. That is enough to
keep those addresses from being given out twice, and to take everything down when the pod goes.
"""

from __future__ import annotations

import logging
from ipaddress import ip_interface

from terway_core.store import Record, State, Store
from terway_core.types import Attachment, Lease, Wiring
from terway_core.wiring.inspect import HostState, Link
from terway_core.wiring.netlink import OURS
from terway_core.wiring.objects import Neighbor, Route, Veth

log = logging.getLogger(__name__)


def adopt(store: Store, state: HostState, now: float) -> list[Record]:
    """Make a row for each attachment whose links are in ``state``; return the rows.

    The pod's name and namespace path are not known any more: such a row lives as long as its host link.
    """
    records = []
    for name, owner in state.owned_links().items():
        driver, _, key = owner.partition(":")
        network, _, rest = key.partition("/")
        container_id, _, ifname = rest.rpartition("/")
        if not (driver and network and container_id and ifname):
            continue  # unnamed, or not of an attachment: gc takes it away
        record = _record(state, state.snapshot.links[name], driver, network, container_id, ifname, now)
        store.put(record)
        records.append(record)
        log.warning("taken in from the kernel", extra={"attachment": str(record.key), "driver": driver})
    return records


def _record(
    state: HostState, link: Link, driver: str, network: str, container_id: str, ifname: str, now: float
) -> Record:
    snapshot = state.snapshot
    routes = [
        route for route, protocol in snapshot.routes.items() if route.dev == link.name and protocol == OURS
    ]
    neighbors = [
        Neighbor(dev=dev, address=address, mac=mac)
        for (dev, address), (mac, permanent) in snapshot.neighbors.items()
        if dev == link.name and permanent
    ]
    veth = Veth(
        name=link.name,
        peer=ifname,
        mac=link.mac,
        peer_mac=neighbors[0].mac if neighbors else "",
        mtu=link.mtu,
    )
    addresses = tuple(ip_interface(str(route.dst)) for route in routes if _is_host(route))
    return Record(
        attachment=Attachment(network=network, container_id=container_id, ifname=ifname),
        driver=driver,
        state=State.READY,
        created=now,
        lease=Lease(addresses=addresses),
        wiring=Wiring(host=(veth, *neighbors, *routes)),
        problem="taken in from the kernel after the journal was lost",
    )


def _is_host(route: Route) -> bool:
    return route.via is None and route.dst.prefixlen == route.dst.max_prefixlen
