"""The conformance suite, with the real pool against the simulated API."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from terway_driver_eni import EniDriver

from terway_core.testing.base import Rig
from terway_core.testing.conformance import DriverConformance
from terway_core.testing.eni import FakeLinks
from terway_core.testing.eni_fixtures import EniFixtures
from terway_core.testing.wiring_cases import POD
from terway_core.types import Attachment
from terway_core.wiring import netlink
from terway_core.wiring.netlink import NetlinkSocket
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import MoveLink, Veth


class TestEni(EniFixtures, DriverConformance):
    mode = "eni"
    supports_dual_stack = True
    instance_type = "ecs.g7.4xlarge"

    @pytest.fixture
    def driver(self) -> EniDriver:
        return EniDriver()

    def leftovers(self, rig: Rig) -> list[str]:
        enis = rig.services.eni_pool("exclusive").describe()
        return [f"{eni['eni']} of {eni['owner']}" for eni in enis if eni["owner"]]

    def spoil_a_record(self, rig: Rig, attachment: Attachment) -> None:
        rig.services.store.write(
            lambda db: db.execute(
                "UPDATE enis SET eni = replace(eni, ?, 'not an attachment')", (str(attachment.key),)
            )
        )

    @pytest.fixture
    def host(self, rig: Rig, links: FakeLinks, terway_netns: Callable[[], Namespace]) -> Namespace:
        """A node with a link for the ENI that the case will get: just plugged in, and down."""
        host, beyond = terway_netns(), terway_netns()
        rig.allocate(POD)
        with NetlinkSocket(beyond) as sock:
            for number, mac in enumerate(links.macs):
                name = MoveLink(mac=mac, name="eth0").host_name
                link = Veth(name=f"far{number}", peer=name, mac="ee:ff:ff:ff:ff:ff", peer_mac=mac)
                (reply,) = sock.send([netlink.new_veth(link, host.fd)])
                assert reply.errno == 0
        return host
