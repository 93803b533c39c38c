"""What the journal does not know of but the kernel has: taken in, because it is in use.

A row goes after its links, so a link that names an owner without a row says that the journal was lost: the
file was damaged, or somebody removed it. Links say whose they are, and our routes say which addresses are
behind them. That is enough to keep those addresses from being given out twice, and to take everything down
when the pod goes.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import ip_interface, ip_network

from terway_core.daemon.adopt_children import children, shared_by
from terway_core.record import Record, State
from terway_core.store import Store
from terway_core.types import Attachment, AttachmentKey, Lease, Wiring
from terway_core.wiring.inspect import HostState
from terway_core.wiring.netlink import OURS
from terway_core.wiring.objects import (
    Address,
    Ipvlan,
    Neighbor,
    Route,
    Rule,
    Veth,
    VlanPop,
    VlanPush,
    WiringObject,
    describe,
)
from terway_core.wiring.snapshot import Link

log = logging.getLogger(__name__)


def adopt(store: Store, state: HostState, now: float) -> None:
    """Make a row for each attachment whose links are in ``state`` and which has none.

    The pod's name and namespace path are not known any more: such a row lives as long as its host link.
    Whatever else of ours is there may serve any of these attachments, so all of them share it.
    """
    known = {record.key for record in store.records()}
    lost = [
        (driver, key, state.snapshot.links[name])
        for name, owner in state.owned_links().items()
        if (parsed := _parse_owner(owner))  # otherwise unnamed, or of no attachment: gc takes it away
        for driver, key in [parsed]
        if key not in known
    ]
    ours: list[Route | Rule | VlanPush] = [
        *(route for route, protocol in state.snapshot.routes.items() if protocol == OURS),
        *(rule for rule, protocol in state.snapshot.rules.items() if protocol == OURS),
        *(obj for obj in state.snapshot.vlan_filters if isinstance(obj, VlanPush)),
    ]
    records = [_record(state, ours, driver, key, link, now) for driver, key, link in lost]
    records += (record for record in children(state, _parse_owner, now) if record.key not in known)
    own = {obj for record in records if record.wiring for obj in record.wiring.host}
    pod_links = set(state.owned_links())
    shared: list[WiringObject] = [*shared_by(records, state), *sorted(state.masquerades, key=describe)]
    shared += (obj for obj in state.snapshot.vlan_filters if isinstance(obj, VlanPop))
    shared += (obj for obj in ours if obj not in own and getattr(obj, "dev", "") not in pod_links)
    # With the last address of a link the kernel takes all routes of it.
    links = {obj.name if isinstance(obj, Ipvlan) else getattr(obj, "dev", "") for obj in shared}
    shared += (
        Address(dev=dev, address=address)
        for dev, address in sorted(state.snapshot.addresses, key=str)
        if dev in links and address.network.prefixlen == address.max_prefixlen
    )
    for record in records:
        assert record.wiring
        store.put(replace(record, wiring=replace(record.wiring, node=tuple(shared))))
        log.warning(
            "taken in from the kernel", extra={"attachment": str(record.key), "driver": record.driver}
        )


def _parse_owner(owner: str) -> tuple[str, AttachmentKey] | None:
    driver, _, key = owner.partition(":")
    network, _, rest = key.partition("/")
    container_id, _, ifname = rest.rpartition("/")
    if not (driver and network and container_id and ifname):
        return None
    return driver, AttachmentKey(network, container_id, ifname)


def _record(
    state: HostState,
    ours: list[Route | Rule | VlanPush],
    driver: str,
    key: AttachmentKey,
    link: Link,
    now: float,
) -> Record:
    neighbors = [
        Neighbor(dev=dev, address=address, mac=mac)
        for (dev, address), (mac, permanent) in state.snapshot.neighbors.items()
        if dev == link.name and permanent
    ]
    veth = Veth(
        name=link.name,
        peer=key.ifname,
        mac=link.mac,
        peer_mac=neighbors[0].mac if neighbors else "",
        mtu=link.mtu,
    )
    routes = [obj for obj in ours if isinstance(obj, Route) and obj.dev == link.name]
    addresses = [route.dst for route in routes if _is_host(route)]
    rules = [obj for obj in ours if isinstance(obj, Rule) and {obj.src, obj.dst} & {*addresses}]
    pushes = [obj for obj in ours if isinstance(obj, VlanPush) and ip_network(obj.src) in addresses]
    return Record(
        attachment=Attachment(network=key.network, container_id=key.container_id, ifname=key.ifname),
        driver=driver,
        state=State.READY,
        created=now,
        lease=Lease(addresses=tuple(ip_interface(str(address)) for address in addresses)),
        wiring=Wiring(host=(veth, *neighbors, *routes, *rules, *pushes)),
        problem="taken in from the kernel; the journal did not know it",
    )


def _is_host(route: Route) -> bool:
    return route.via is None and route.dst.prefixlen == route.dst.max_prefixlen
