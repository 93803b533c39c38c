"""The conformance suite, with PodENIs in a simulated API server and the trunk ENI in the simulated cloud."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from terway_driver_trunking import TrunkingDriver, api

from terway_core.eni.pool import Pool
from terway_core.errors import RetryLater
from terway_core.kube.cluster import Cluster
from terway_core.testing.conformance import DriverConformance
from terway_core.testing.eni_fixtures import EniFixtures
from terway_core.testing.fakes import FakeClock, make_attachment
from terway_core.testing.kube import simulated_cluster

#: Every so many pods two have the same address, one after the other: the suite's have numbers from 1, 1000
#: and 2000 on.
ADDRESSES = 9
ADDRESS, ADDRESS6 = ip_address("192.168.2.1"), ip_address("2001:db8:2::1")


class TestTrunking(EniFixtures, DriverConformance):
    mode = "trunking"
    supports_dual_stack = True
    instance_type = "ecs.g7.4xlarge"

    @pytest.fixture
    def driver(self) -> TrunkingDriver:
        return TrunkingDriver()

    @pytest.fixture
    def kube(
        self,
        eni_pool: Callable[[str], Pool],
        bound: Callable[..., dict[str, Any]],
        terway_clock: FakeClock,
        tmp_path: Path,
        families: tuple[int, ...],
    ) -> Iterator[Cluster]:
        """A cluster whose control plane has bound ENIs to this node's trunk for each pod of the suite."""
        trunk = trunk_of(eni_pool("trunk"), terway_clock)
        interfaces = ("eth0", "eth1", "net1")
        with simulated_cluster(tmp_path) as simulated:
            simulated.define(api.PODENIS)
            for number in (*range(1, 4), *range(1000, 1010), *range(2000, 2010)):
                offsets = [16 * place + number % ADDRESSES for place in range(len(interfaces))]
                ips = [(str(ADDRESS + offset), str(ADDRESS6 + offset)) for offset in offsets]
                if 6 not in families:
                    ips = [(ipv4, "") for ipv4, _ in ips]
                simulated.write(
                    api.PODENIS, bound(make_attachment(number).pod, trunk, *ips, interfaces=interfaces)
                )
            yield simulated.cluster


def trunk_of(pool: Pool, clock: FakeClock) -> str:
    """The id of the trunk ENI, which the pool attaches when it has started; its pauses are left out."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return pool.trunk().eni_id
        except RetryLater:
            assert time.monotonic() < deadline
            clock.advance(1)
            pool.step()
            time.sleep(0.005)
