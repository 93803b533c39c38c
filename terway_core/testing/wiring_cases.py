"""Cases about what a driver declares, without a kernel and with one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import pytest

from terway_core.cni.protocol import SUPPORTED_VERSIONS, result
from terway_core.record import Record, State
from terway_core.store import Store
from terway_core.testing.base import DAY, ConformanceBase, Rig
from terway_core.testing.fakes import WatchedStore, make_attachment
from terway_core.testing.purity import watch_io
from terway_core.types import Wiring
from terway_core.wiring import inspect
from terway_core.wiring.engine import Engine
from terway_core.wiring.netns import Namespace
from terway_core.wiring.objects import Address, LinkUp, Sysctl, Veth, describe
from terway_core.wiring.snapshot import Snapshot

POD, OTHER = make_attachment(1), make_attachment(2)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A wiring, and the namespaces where it belongs."""

    wiring: Wiring
    owner: str
    engine: Engine
    host: Namespace
    pod: Namespace

    def apply(self) -> None:
        self.engine.ensure(self.wiring.node)
        self.engine.apply(self.wiring, self.pod, self.owner)

    def remove(self) -> None:
        """Take down the last pod of the node: shared objects go too."""
        self.engine.remove(self.wiring, self.pod, self.owner)
        self.engine.remove_shared(self.wiring.node)

    def differences(self) -> list[str]:
        found = inspect.diff(self.wiring, self.pod, owner=self.owner, host=self.host)
        return [str(difference) for difference in found]

    def state(self) -> tuple[inspect.HostState, Snapshot]:
        host, pod = inspect.HostState.read(self.host), self.pod.run(Snapshot.take)
        for snapshot in (host.snapshot, pod):
            # The kernel numbers a link anew that comes back from another namespace.
            snapshot.links = {name: replace(link, index=0) for name, link in snapshot.links.items()}
            # And it gives a link that comes up an address of the link when it finds the time, and learns of
            # neighbours from what that sends.
            snapshot.addresses = {found for found in snapshot.addresses if not found[1].is_link_local}
            snapshot.routes = {
                route: protocol for route, protocol in snapshot.routes.items() if not route.dst.is_link_local
            }
            snapshot.neighbors = {key: found for key, found in snapshot.neighbors.items() if found[1]}
        return host, pod


class WiringCases(ConformanceBase):
    """``terway_setup``, and what the core does with its answer."""

    def test_setup_is_pure(self, rig: Rig, terway_store: WatchedStore) -> None:
        """The same arguments give an equal wiring at any time, without a look at the world.

        If this fails, move what the message names to ``terway_allocate`` and keep its outcome in
        ``Lease.data``.
        """
        lease = rig.allocate(POD)
        uses = terway_store.uses
        with watch_io() as seen:
            first = rig.setup(POD, lease)
            rig.clock.advance(DAY)
            second = rig.setup(POD, lease)
        assert second == first
        assert seen == []
        assert terway_store.uses == uses, "setup used services.store"

    @pytest.mark.parametrize("ifname", ["eth0", "net1"])
    def test_wiring_carries_the_lease(self, rig: Rig, families: tuple[int, ...], ifname: str) -> None:
        """The pod's interface gets the leased addresses, one for each family of the test.

        If this fails, ``options`` does not say ``families`` to the driver, or setup names the interface
        itself instead of using ``attachment.ifname``.
        """
        attachment = make_attachment(1, ifname=ifname)
        lease, wiring = rig.wire(attachment)
        assert sorted(address.version for address in lease.addresses) == list(families)
        given = {obj.address for obj in wiring.pod if isinstance(obj, Address) and obj.dev == ifname}
        assert given == set(lease.addresses)

    def test_wirings_of_two_pods_do_not_overlap(self, rig: Rig) -> None:
        """What belongs to one attachment goes with it, and must not be another's too.

        If this fails, move what both need to ``Wiring.node``; derive names from the attachment, as
        ``attachment.host_ifname`` does.
        """
        first, second = rig.wire(POD)[1], rig.wire(OTHER)[1]
        assert _owned(first) & _owned(second) == set()

    def test_journal_returns_what_it_was_given(self, rig: Rig, terway_store: WatchedStore) -> None:
        """The DEL works with lease and wiring as they were written down, perhaps weeks ago.

        If this fails, ``Lease.data`` holds what is not JSON (a tuple comes back as a list), or the wiring
        holds objects that are not those of ``terway_core.wiring.objects``.
        """
        lease, wiring = rig.wire(POD)
        record = Record(
            attachment=POD, driver=rig.mode, state=State.READY, created=0.0, lease=lease, wiring=wiring
        )
        terway_store.put(record)
        with closing(Store(terway_store.path, read_only=True)) as reader:
            assert reader.get(POD.key) == record

    @pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
    def test_result_at_each_cni_version(self, rig: Rig, version: str) -> None:
        """The answer to an ADD is what the specification of its version says.

        If this fails, the lease has two addresses or two gateways of one family, or a gateway of a family
        in which the pod has no address.
        """
        lease, wiring = rig.wire(POD)
        families = [address.version for address in lease.addresses]
        gateways = [gateway.version for gateway in lease.gateways]
        assert len(set(families)) == len(families)
        assert len(set(gateways)) == len(gateways)
        assert set(gateways) <= set(families)
        answer = result(POD, lease, wiring, version)
        assert json.loads(json.dumps(answer)) == answer
        for ip, address in zip(answer["ips"], lease.addresses, strict=True):
            assert ip["address"] == str(address)
            interface = answer["interfaces"][ip["interface"]]
            assert (interface["name"], interface["sandbox"]) == (POD.ifname, POD.netns)

    @pytest.mark.kernel
    def test_kernel_has_what_is_declared(self, kernel: Kernel) -> None:
        """What the engine has made reads back as it was declared, also when it is made again.

        If this fails, the kernel keeps the object in another form than the wiring has it, or two objects
        of the wiring replace each other.
        """
        for _ in range(2):
            kernel.apply()
            assert kernel.differences() == []

    @pytest.mark.kernel
    def test_removing_leaves_nothing(self, kernel: Kernel) -> None:
        """After the wiring's removal host and pod are as they were before.

        If this fails, the wiring changes something that was there before, which nobody can restore.
        """
        before = kernel.state()
        kernel.apply()
        kernel.remove()
        assert kernel.state() == before

    # -- fixtures of the kernel cases

    @pytest.fixture
    def host(self, terway_netns: Callable[[], Namespace]) -> Namespace:
        """The node's network namespace. Override it to put in what the driver expects there, such as ENIs."""
        return terway_netns()

    @pytest.fixture
    def kernel(self, rig: Rig, host: Namespace, terway_netns: Callable[[], Namespace]) -> Iterator[Kernel]:
        """A pod to be wired for real, where the driver's preflight finds no fault with this machine."""
        if problems := rig.drivers.preflight(rig.mode, rig.services.node, rig.services.options):
            pytest.skip(f"the driver cannot work here: {problems[0].summary}")
        engine = Engine(host)
        yield Kernel(rig.wire(POD)[1], str(POD.key), engine, host, terway_netns())
        engine.close()


def _owned(wiring: Wiring) -> set[str]:
    """What an attachment alone has on the host. Setting a sysctl or a link up is no possession."""
    return {
        f"link {obj.name}" if isinstance(obj, Veth) else describe(obj)
        for obj in wiring.host
        if not isinstance(obj, LinkUp | Sysctl)
    }
