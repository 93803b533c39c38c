"""What the conformance cases stand on: the fixtures that surround a driver, and a short way to call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import pytest

from terway_core.errors import CloudError, NoAddress
from terway_core.registry import DRIVERS_GROUP, Drivers
from terway_core.testing.fakes import FakeClock, NoCloud, WatchedStore, make_attachment
from terway_core.types import Attachment, GcReport, Lease, Node, Outcome, Services, Wiring

if TYPE_CHECKING:
    from terway_core.cloud import Cloud
    from terway_core.eni.model import Use
    from terway_core.eni.pool import Pool
    from terway_core.kube.cluster import Cluster

__all__ = ["DAY", "MOST", "ConformanceBase", "Rig"]

#: Seconds after which any address may be used again.
DAY: Final = 86_400.0
#: So many attachments must be more than the driver can serve with the options of the test.
MOST: Final = 64


@dataclass(frozen=True, slots=True)
class Rig:
    """A started driver, called as the daemon calls it."""

    mode: str
    drivers: Drivers
    services: Services
    clock: FakeClock

    def allocate(self, attachment: Attachment) -> Lease:
        return self.drivers.allocate(self.mode, attachment, self.services.node)

    def setup(self, attachment: Attachment, lease: Lease) -> Wiring:
        return self.drivers.setup(self.mode, attachment, lease, self.services.node)

    def wire(self, attachment: Attachment) -> tuple[Lease, Wiring]:
        """Allocate, then set up."""
        lease = self.allocate(attachment)
        return lease, self.setup(attachment, lease)

    def teardown(self, attachment: Attachment, lease: Lease | None) -> Outcome:
        return self.drivers.teardown(self.mode, attachment, lease)

    def gc(self, *live: Attachment) -> GcReport:
        return self.drivers.gc(self.mode, live, self.services.node)

    def restart(self) -> None:
        """The daemon ends and starts again, with the same journal."""
        self.drivers.stop(self.mode)
        self.drivers.start(self.mode, self.services)

    def exhaust(self) -> list[tuple[Attachment, Lease]]:
        """Allocate for one attachment after the other until the driver has nothing left."""
        held: list[tuple[Attachment, Lease]] = []
        with suppress(NoAddress):
            for number in range(MOST):
                attachment = make_attachment(1000 + number)
                held.append((attachment, self.allocate(attachment)))
            pytest.fail(f"{MOST} attachments did not exhaust the driver: give it fewer in `options`")
        return held


class ConformanceBase:
    """Capabilities, and fixtures that a driver's test class may override."""

    #: The driver's mode: the name of its entry point.
    mode: ClassVar[str]
    #: Can a pod have an IPv4 address, and no other? An IPv6 address, and no other? One of each?
    supports_ipv4: ClassVar[bool] = True
    supports_ipv6: ClassVar[bool] = False
    supports_dual_stack: ClassVar[bool] = False

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each case that starts the driver once for each choice of families that it supports."""
        choices = {(4,): self.supports_ipv4, (6,): self.supports_ipv6, (4, 6): self.supports_dual_stack}
        if "families" in metafunc.fixturenames:
            supported = [families for families, yes in choices.items() if yes]
            names = ["+".join(f"ipv{family}" for family in families) for families in supported]
            metafunc.parametrize("families", supported, ids=names)

    @pytest.fixture
    def driver(self) -> object:
        """The driver itself; by default what the entry point names."""
        points = metadata.entry_points(group=DRIVERS_GROUP, name=self.mode)
        if not points:
            pytest.fail(f"no package offers {self.mode!r} in the entry-point group {DRIVERS_GROUP}")
        return next(iter(points)).load()

    @pytest.fixture
    def options(self, families: tuple[int, ...]) -> Mapping[str, Any]:
        """The driver's section of the configuration: for these families, and for less than ``MOST`` pods."""
        return {}

    @pytest.fixture
    def cloud(self) -> object:
        """What the driver gets as ``services.cloud``."""
        return NoCloud()

    @pytest.fixture
    def eni_pool(self) -> Callable[[str], object]:
        """What the driver gets as ``services.eni_pool``: a function of the use that is made of it."""

        def none(use: str) -> object:
            raise CloudError(f"there is no {use} ENI pool in this test; override the fixture `eni_pool`")

        return none

    @pytest.fixture
    def kube(self) -> object:
        """What the driver gets as ``services.kube``; by default there is no Kubernetes."""
        return None

    @pytest.fixture
    def node(self, families: tuple[int, ...]) -> Node:
        """The node that the driver is told it runs on. Its addresses are of the documentation networks."""
        every = {
            4: (ip_address("192.0.2.10"), ip_network("192.0.2.0/24"), ip_network("172.21.0.0/20")),
            6: (ip_address("2001:db8::10"), ip_network("2001:db8::/64"), ip_network("fd00:21::/112")),
        }
        addresses, vpc_cidrs, service_cidrs = zip(*(every[family] for family in families), strict=True)
        return Node(
            name="node-1", addresses=addresses, vpc_cidrs=vpc_cidrs, service_cidrs=service_cidrs, mtu=1500
        )

    @pytest.fixture
    def services(
        self,
        options: Mapping[str, Any],
        node: Node,
        cloud: object,
        eni_pool: Callable[[str], object],
        kube: object,
        terway_store: WatchedStore,
        terway_clock: FakeClock,
    ) -> Services:
        """What the driver is started with."""
        return Services(
            options=options,
            node=node,
            store=terway_store,
            cloud=cast("Cloud", cloud),
            eni_pool=cast("Callable[[Use], Pool]", eni_pool),
            kube=cast("Cluster | None", kube),
            clock=terway_clock,
        )

    @pytest.fixture
    def rig(self, driver: object, services: Services, terway_clock: FakeClock) -> Iterator[Rig]:
        """The driver, started; not to be overridden."""
        drivers = Drivers()
        if problem := drivers.register(self.mode, driver).problem:
            pytest.fail(f"the driver cannot be used: {problem}")
        drivers.start(self.mode, services)
        yield Rig(self.mode, drivers, services, terway_clock)
        drivers.stop(self.mode)

    def leftovers(self, rig: Rig) -> list[str]:
        """What the driver still holds, one line each, with the attachment's key in it.

        By default the owned addresses of every :class:`~terway_core.ipam.AddressPool`. Override it for a
        driver that holds anything else: ENIs, VLAN ids, files.
        """
        with rig.services.store.read() as db:
            rows = db.execute("SELECT pool, address, owner FROM addresses WHERE owner IS NOT NULL").fetchall()
        return [f"{pool}: {address} of {owner}" for pool, address, owner in rows]

    def spoil_a_record(self, rig: Rig, attachment: Attachment) -> None:
        """Damage what the driver wrote down for ``attachment``, as an older version or a hand might have.

        By default its rows in the address pools get an owner that is no attachment's key.
        """
        changed = rig.services.store.write(
            lambda db: (
                db.execute(
                    "UPDATE addresses SET owner='not an attachment' WHERE owner=?", (str(attachment.key),)
                ).rowcount
            )
        )
        if not changed:
            pytest.fail("the driver's records are not in an AddressPool: override `spoil_a_record`")
