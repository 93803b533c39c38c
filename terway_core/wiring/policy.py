"""Policy routing: a pod's packets leave by the ENI that owns its address, as the VPC drops them on others.

``eniip_veth`` and ``trunking`` differ in whose addresses those are, not in this.
"""

from __future__ import annotations

import functools
from ipaddress import ip_interface
from typing import Final

from terway_core.wiring.objects import Address, IPAddress, LinkUp, Route, WiringObject
from terway_core.wiring.veth import FAMILIES, ipv6_sysctls

#: Priorities that network-policy agents and Alibaba Cloud's own Terway expect.
TO_POD: Final = 512
FROM_POD: Final = 2048
#: The table of an ENI is this and the index of its link, as in Alibaba Cloud's own Terway.
FIRST_TABLE: Final = 1000


@functools.lru_cache(maxsize=64)  # of which nodes have ENIs; their pods share the objects
def way_by_eni(
    dev: str, table: int, gateway: IPAddress, *, addresses: tuple[IPAddress, ...], mtu: int
) -> tuple[WiringObject, ...]:
    """What one family of the pods of an ENI needs of its link ``dev``: up, and ``table`` leads to the VPC.

    :param gateway: of the ENI's vSwitch. :param addresses: the node's own.
    """
    family = FAMILIES[gateway.version]
    route = Route(dst=family.everywhere, dev=dev, via=gateway, table=table)
    # The node's own address, so that the host asks for the gateway in its own name.
    own = [
        Address(dev=dev, address=ip_interface(address))
        for address in addresses
        if address.version == gateway.version
    ]
    if gateway.version == 4:
        return LinkUp(dev=dev, mtu=mtu), *own, route
    return (
        *ipv6_sysctls(dev, forwarding=True, dad=False),
        LinkUp(dev=dev, mtu=mtu),
        *own,
        route,
    )
