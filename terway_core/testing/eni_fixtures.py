"""For the conformance suite of drivers that live from ENIs: the real pool, and a link that leads into a VPC.

``class TestMine(SharedEniFixtures, DriverConformance)``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from terway_core.eni.model import Use
from terway_core.eni.pool import Pool
from terway_core.testing.base import ConformanceBase, Rig
from terway_core.testing.eni import FakeLinks, simulated_pool
from terway_core.testing.fakes import FakeClock, WatchedStore
from terway_core.types import Attachment
from terway_core.wiring.engine import Engine
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import Veth, Wiring

__all__ = ["EniFixtures", "SharedEniFixtures"]


class EniFixtures(ConformanceBase):
    """For drivers whose ``Services.eni_pool`` is used, in whatever way.

    :cvar instance_type: of the node; it must have as many ENIs or addresses as the suite's pods need.
    """

    instance_type: ClassVar[str] = "ecs.g7.xlarge"

    @pytest.fixture
    def links(self) -> FakeLinks:
        """The links of the ENIs."""
        return FakeLinks()

    @pytest.fixture
    def eni_pool(
        self,
        links: FakeLinks,
        terway_store: WatchedStore,
        terway_clock: FakeClock,
        families: tuple[int, ...],
    ) -> Iterator[Callable[[Use], Pool]]:
        """The pool, in front of the simulated API."""
        with simulated_pool(
            terway_store, terway_clock, links.find, families=families, instance_type=self.instance_type
        ) as simulated:
            yield simulated.start

    @pytest.fixture
    def host(self, terway_netns: Callable[[], Namespace]) -> Namespace:
        """A node whose ``eth1`` leads into another namespace, as if it were the VPC."""
        host, beyond = terway_netns(), terway_netns()
        engine = Engine(beyond)
        link = Veth(name="far", peer="eth1", mac="ee:ff:ff:ff:ff:ff", peer_mac="00:16:3e:00:00:01")
        engine.apply(Wiring(host=(link,)), host, "test")
        engine.close()
        return host


class SharedEniFixtures(EniFixtures):
    """For drivers whose pods have addresses of ENIs that they share."""

    def leftovers(self, rig: Rig) -> list[str]:
        """Addresses of the pool that somebody has."""
        pool = rig.services.eni_pool("shared")
        return [
            f"{address['address']} of {address['owner']}"
            for eni in pool.describe()
            for address in eni["addresses"]
            if address["owner"]
        ]

    def spoil_a_record(self, rig: Rig, attachment: Attachment) -> None:
        """Have the attachment's addresses belong to something else."""
        rig.services.store.write(
            lambda db: db.execute(
                "UPDATE eni_addresses SET owner='not an attachment' WHERE owner=?", (str(attachment.key),)
            )
        )
