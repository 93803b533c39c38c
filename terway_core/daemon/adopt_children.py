"""Pods whose only link is in their own namespace (ipvlan), found again when the journal is lost.

The host has no link that could say whose it is, but the pod's link bears the owner's name, as a veth pair's
end on the host does. So it is looked for in every namespace that a runtime has bound to a path.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_network

from terway_core.errors import TerwayError
from terway_core.record import Record, State
from terway_core.types import Attachment, AttachmentKey, Lease, Wiring
from terway_core.wiring import netns
from terway_core.wiring.changes import ALIAS_PREFIX
from terway_core.wiring.inspect import HostState
from terway_core.wiring.netlink import OURS
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import Address, Ipvlan, Neighbor, Redirect, Route, WiringObject
from terway_core.wiring.snapshot import Link, Snapshot

log = logging.getLogger(__name__)


def children(
    state: HostState, parse_owner: Callable[[str], tuple[str, AttachmentKey] | None], now: float
) -> Iterator[Record]:
    """A record for each pod that has a child of one of this host's ENIs, whether or not the journal knows it.

    Whose child it is, the host's redirect for the pod's address tells; without one it is another host's.
    """
    for path in sorted(netns.NETNS_DIR.glob("*")):
        try:
            with Namespace.open(path) as pod:
                identity, snapshot = pod.identity, pod.run(Snapshot.take)
        except TerwayError as error:
            log.info("namespace left out", extra={"netns": str(path), "problem": str(error)})
            continue
        for link in snapshot.links.values():
            owned = link.kind == "ipvlan" and link.alias.startswith(ALIAS_PREFIX)
            parsed = parse_owner(link.alias.removeprefix(ALIAS_PREFIX)) if owned else None
            if parsed and (wiring := _wiring(state, link, snapshot)):
                driver, key = parsed
                yield Record(
                    attachment=Attachment(
                        network=key.network, container_id=key.container_id, ifname=key.ifname, netns=str(path)
                    ),
                    driver=driver,
                    state=State.READY,
                    created=now,
                    netns_id=identity,
                    lease=Lease(addresses=tuple(o.address for o in wiring.pod if isinstance(o, Address))),
                    wiring=wiring,
                    problem="taken in from the kernel; the journal did not know it",
                )


def _wiring(state: HostState, link: Link, pod: Snapshot) -> Wiring | None:
    addresses = sorted(
        (address for dev, address in pod.addresses if dev == link.name and not address.is_link_local),
        key=lambda address: address.version,
    )
    alone = {ip_network(address.ip) for address in addresses}
    redirects = [obj for obj in state.snapshot.redirects if obj.dst in alone and obj.to == obj.dev]
    if not redirects:
        return None
    routes = [
        route for route, protocol in state.snapshot.routes.items() if protocol == OURS and route.dst in alone
    ]
    child = Ipvlan(name=link.name, parent=redirects[0].dev, mtu=link.mtu)
    return Wiring(
        host=(*routes, *redirects),
        pod=(child, *(Address(dev=link.name, address=address) for address in addresses)),
    )


def shared_by(records: Iterable[Record], state: HostState) -> list[WiringObject]:
    """The host's own children of the ENIs, by which it talks to the pods, and what their parents have."""
    parents: dict[str, str] = {}
    own: set[WiringObject] = set()
    for record in records:
        host = record.wiring.host if record.wiring else ()
        own.update(host)
        for redirect in (obj for obj in host if isinstance(obj, Redirect)):
            parents |= {obj.dev: redirect.dev for obj in host if isinstance(obj, Route)}
    links = state.snapshot.links
    found: list[WiringObject] = [
        Ipvlan(name=name, parent=parent, mtu=links[name].mtu, arp=links[name].arp)
        for name, parent in sorted(parents.items())
        if name in links
    ]
    found += sorted(state.snapshot.redirects - own, key=str)
    found += (
        Neighbor(dev=dev, address=address, mac=mac)
        for (dev, address), (mac, permanent) in state.snapshot.neighbors.items()
        if permanent and dev in parents.values()
    )
    return found
