"""The conformance suite, with the real pool against the simulated API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from terway_driver_eniip_ipvlan import EniipIpvlanDriver

from terway_core.eni.pool import Pool
from terway_core.testing.base import Rig
from terway_core.testing.conformance import DriverConformance
from terway_core.testing.eni import FakeLinks, simulated_pool
from terway_core.testing.fakes import FakeClock, WatchedStore
from terway_core.types import Attachment
from terway_core.wiring.engine import Engine
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import Veth, Wiring


class TestEniipIpvlan(DriverConformance):
    mode = "eniip_ipvlan"
    supports_dual_stack = True

    @pytest.fixture
    def driver(self) -> EniipIpvlanDriver:
        return EniipIpvlanDriver()

    @pytest.fixture
    def options(self, families: tuple[int, ...]) -> Mapping[str, Any]:
        # The kernel that has ipvlan in the tests has no nftables.
        return {"masquerade": False, "host_stack_cidrs": ["169.254.20.10/32"]}

    @pytest.fixture
    def eni_pool(
        self, terway_store: WatchedStore, terway_clock: FakeClock, families: tuple[int, ...]
    ) -> Iterator[Callable[[str], Pool]]:
        links = FakeLinks()
        with simulated_pool(terway_store, terway_clock, links.find, families=families) as simulated:
            yield simulated.start

    def leftovers(self, rig: Rig) -> list[str]:
        pool = rig.services.eni_pool("shared")
        return [
            f"{address['address']} of {address['owner']}"
            for eni in pool.describe()
            for address in eni["addresses"]
            if address["owner"]
        ]

    def spoil_a_record(self, rig: Rig, attachment: Attachment) -> None:
        rig.services.store.write(
            lambda db: db.execute(
                "UPDATE eni_addresses SET owner='not an attachment' WHERE owner=?", (str(attachment.key),)
            )
        )

    @pytest.fixture
    def host(self, terway_netns: Callable[[], Namespace]) -> Iterator[Namespace]:
        """A node whose ``eth1`` leads into another namespace, as if it were the VPC."""
        host, beyond = terway_netns(), terway_netns()
        engine = Engine(beyond)
        link = Veth(name="far", peer="eth1", mac="ee:ff:ff:ff:ff:ff", peer_mac="00:16:3e:00:00:01")
        engine.apply(Wiring(host=(link,)), host, "test")
        engine.close()
        return host
