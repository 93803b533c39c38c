"""A node's ENI pool for the conformance suite: the real pool and the real SDK against the simulated API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from terway_core.cloud import Cloud, Identity
from terway_core.config import CloudConfig, PoolConfig
from terway_core.eni.model import Use
from terway_core.eni.pool import Pool
from terway_core.lab.api import Region, build_app, serving
from terway_core.store import Store
from terway_core.wiring.netlink import FoundLink

__all__ = ["FakeLinks", "simulated_pool"]


class FakeLinks:
    """Links as a node would have them for its ENIs, without a kernel: ``eth1``, ``eth2``…"""

    def __init__(self) -> None:
        self.macs: list[str] = []

    def find(self, mac: str) -> FoundLink:
        """The link with this MAC address; there is always one."""
        if mac not in self.macs:
            self.macs.append(mac)
        number = self.macs.index(mac) + 1
        return FoundLink(f"eth{number}", 2 + number)


@dataclass(frozen=True, slots=True)
class SimulatedPool:
    """The pool, and what stands behind it."""

    pool: Pool
    region: Region

    def start(self, use: Use) -> Pool:
        """A ``Services.eni_pool``."""
        self.pool.start(use)
        return self.pool


@contextmanager
def simulated_pool(
    store: Store,
    clock: Callable[[], float],
    find_link: Callable[[str], FoundLink | None],
    *,
    families: Sequence[int] = (4,),
    instance_type: str = "ecs.g7.xlarge",
    **settings: Any,
) -> Iterator[SimulatedPool]:
    """A pool of a new instance in a new region; ``settings`` are those of ``pool`` in the configuration.

    :param clock: for the pool it goes on by itself besides, since the API takes time.
    """
    region = Region.create(region_id="cn-hangzhou")
    key = region.add_access_key()
    ipv6 = 6 in families
    vpc = region.add_vpc("192.168.0.0/16", ipv6_cidr="2001:db8:1::/56" if ipv6 else None)
    vswitch = region.add_vswitch(
        vpc, "192.168.1.0/24", zone="cn-hangzhou-h", ipv6_cidr="2001:db8:1:1::/64" if ipv6 else None
    )
    instance = region.add_instance("node-1", instance_type=instance_type, vswitch=vswitch)
    with serving(build_app(region)) as endpoint:
        cloud = Cloud(
            CloudConfig(
                region_id=region.region_id, vpc_endpoint=endpoint, ecs_endpoint=endpoint, protocol="http"
            ),
            env={
                "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
                "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
            },
        )
        cloud.metadata = cast(
            "Any",
            _Metadata(
                Identity(
                    region_id=region.region_id,
                    zone_id=instance.zone_id,
                    vpc_id=vpc.vpc_id,
                    vpc_cidrs=(vpc.cidr,),
                    vswitch_id=vswitch.vswitch_id,
                    instance_id=instance.instance_id,
                    instance_type=instance_type,
                    private_ipv4=instance.private_ip,
                    private_ipv6=instance.ipv6,
                    mac=instance.mac,
                )
            ),
        )
        config = PoolConfig(ip_stack="dual" if ipv6 else "ipv4", **settings)
        pool = Pool(store, cloud, config, find_link=find_link, clock=lambda: clock() + time.monotonic())
        try:
            yield SimulatedPool(pool, region)
        finally:
            pool.stop()


class _Metadata:
    """The metadata service as far as the pool asks it."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def identity(self) -> Identity:
        return self._identity
