"""Who this node is: from the settings, from the kernel, and from the instance metadata for what is left."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from terway_core.cloud import Cloud
from terway_core.config import Config
from terway_core.types import IPAddress, Node

#: Documentation addresses (RFC 5737, RFC 3849): nothing is sent to them, the kernel only chooses a route.
_FAR_AWAY = ((socket.AF_INET, "203.0.113.1"), (socket.AF_INET6, "2001:db8::1"))


def describe_node(config: Config, cloud: Cloud) -> Node:
    """The node as drivers see it.

    The metadata service is asked only when the settings leave ``vpc_cidrs`` open: a node outside Alibaba
    Cloud sets them and never waits for a service that is not there.

    :raises CloudError: the metadata service was needed and did not answer.
    """
    addresses = tuple(address for family, far in _FAR_AWAY if (address := _source_address(family, far)))
    if config.vpc_cidrs is not None:
        return Node(
            name=config.node_name,
            addresses=addresses,
            mtu=config.mtu,
            vpc_cidrs=config.vpc_cidrs,
            service_cidrs=config.service_cidrs,
            region_id=config.cloud.region_id,
        )
    identity = cloud.metadata.identity()
    return Node(
        name=config.node_name,
        addresses=addresses,
        mtu=config.mtu,
        vpc_cidrs=identity.vpc_cidrs,
        service_cidrs=config.service_cidrs,
        region_id=config.cloud.region_id or identity.region_id,
        zone_id=identity.zone_id,
        vpc_id=identity.vpc_id,
        instance_id=identity.instance_id,
        instance_type=identity.instance_type,
    )


def _source_address(family: socket.AddressFamily, far: str) -> IPAddress | None:
    """The address with which this node leaves for the world; None when it has no way there."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((far, 9))
        except OSError:
            return None
        return ip_address(probe.getsockname()[0])
