"""Drivers that are wrong on purpose: each fails the one case of the suite that it names, and no other.

``tests/unit/test_conformance.py`` runs them.
"""

from dataclasses import replace
from ipaddress import ip_network
from itertools import count
from pathlib import Path

import pytest
from terway_driver_example import ExampleDriver

from terway_core.errors import NoAddress, RetryLater
from terway_core.hookspecs import hookimpl
from terway_core.ipam import AddressPool
from terway_core.testing.conformance import DriverConformance
from terway_core.types import GcReport, Outcome, Problem
from terway_core.wiring.objects import LinkUp, Veth


def wrong(case, entry_point="example", record_of=lambda attachment: attachment):
    """Test the class below with the suite, where it fails ``case``.

    :param record_of: whose record the driver keeps for an attachment.
    """

    def decorate(driver_class):
        class Test(DriverConformance):
            mode = entry_point

            @pytest.fixture
            def driver(self):
                return driver_class()

            @pytest.fixture
            def options(self):
                return {"cidr": "10.9.0.0/28"}

            def spoil_a_record(self, rig, attachment):
                super().spoil_a_record(rig, record_of(attachment))

        globals()[f"Test{driver_class.__name__}"] = Test
        return driver_class

    return decorate


class Keeping(ExampleDriver):
    """The example, with the store and the clock at hand for whoever misuses them."""

    @hookimpl
    def terway_start(self, services):
        super().terway_start(services)
        self.store, self.clock = services.store, services.clock

    def dead(self, live, key_of=lambda attachment: str(attachment.key)):
        """Owners in the pool that are neither in ``live`` nor in the journal."""
        known = {key_of(attachment) for attachment in live}
        known |= {key_of(record.attachment) for record in self.store.records()}
        return [owner for owner in self._pool.owners() if owner not in known]


# ---- entry point and optional hooks


@wrong("test_entry_point_names_a_working_driver", entry_point="wrong_entry")  # which names the class
class NamesAClass(ExampleDriver):
    pass


@wrong("test_claim_answers_for_any_pod")
class WantsAnAnnotation(ExampleDriver):
    @hookimpl
    def terway_claim(self, pod):
        return pod.annotations["example.com/network"] == "wrong"


@wrong("test_preflight_names_remedies")
class LeavesYouAlone(ExampleDriver):
    @hookimpl
    def terway_preflight(self, node):
        return [Problem(summary="something is missing", remedy="")]


@wrong("test_rbac_are_rules_of_a_cluster_role")
class AsksForNothingInParticular(ExampleDriver):
    @hookimpl
    def terway_rbac(self):
        return [{"apiGroups": [""], "resources": ["pods"]}]


@wrong("test_manifests_are_objects_of_kubernetes")
class ReplacesTheDaemon(ExampleDriver):
    @hookimpl
    def terway_manifests(self, config, image):
        return [{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "terway"}}]


@wrong("test_conflist_keeps_what_is_there")
class StartsAfresh(ExampleDriver):
    @hookimpl
    def terway_conflist(self, conflist):
        return {**conflist, "plugins": [{"type": "tuning"}]}


# ---- leases


@wrong("test_allocate_again_gives_the_same_lease")
class CountsLeases(ExampleDriver):
    def __init__(self):
        self.numbers = count()

    @hookimpl
    def terway_allocate(self, attachment, node):
        return replace(super().terway_allocate(attachment, node), data={"number": next(self.numbers)})


def sandbox(attachment):
    return replace(attachment, ifname="")


@wrong("test_attachments_never_share_an_address", record_of=sandbox)
class KnowsSandboxesOnly(Keeping):
    @hookimpl
    def terway_allocate(self, attachment, node):
        return super().terway_allocate(sandbox(attachment), node)

    @hookimpl
    def terway_teardown(self, attachment, lease):
        return super().terway_teardown(sandbox(attachment), lease)

    @hookimpl
    def terway_gc(self, live):
        dead = self.dead(live, lambda attachment: str(sandbox(attachment).key))
        return GcReport(released=tuple(owner for owner in dead if self._pool.release(owner)))


@wrong("test_restart_keeps_the_lease")
class ForgetsAtStart(ExampleDriver):
    @hookimpl
    def terway_start(self, services):
        super().terway_start(services)
        for owner in self._pool.owners():
            self._pool.release(owner)


@wrong("test_exhaustion_is_no_address")
class FallsOver(ExampleDriver):
    @hookimpl
    def terway_allocate(self, attachment, node):
        try:
            return super().terway_allocate(attachment, node)
        except NoAddress as error:
            raise RuntimeError("out of addresses") from error


@wrong("test_teardown_leaves_nothing")
class KeepsASecondPool(ExampleDriver):
    @hookimpl
    def terway_start(self, services):
        super().terway_start(services)
        self.ids = AddressPool(services.store, "ids", ip_network("10.0.0.0/8"), rest=0, clock=services.clock)

    @hookimpl
    def terway_allocate(self, attachment, node):
        lease = super().terway_allocate(attachment, node)
        return replace(lease, data={"id": str(self.ids.allocate(str(attachment.key)))})

    @hookimpl
    def terway_gc(self, live, node):
        owners = [str(attachment.key) for attachment in live]
        return GcReport(released=(*self._pool.collect(owners), *self.ids.collect(owners)))


@wrong("test_teardown_twice")
class AlwaysBusy(ExampleDriver):
    @hookimpl
    def terway_teardown(self, attachment, lease):
        super().terway_teardown(attachment, lease)
        return Outcome(changed=True)


@wrong("test_teardown_without_lease")
class NeedsTheLease(ExampleDriver):
    @hookimpl
    def terway_teardown(self, attachment, lease):
        assert len(lease.addresses) == 1
        return super().terway_teardown(attachment, lease)


def by_pod(attachment):
    return replace(attachment, container_id=attachment.pod.name)


@wrong("test_teardown_without_netns", record_of=by_pod)
class KnowsPodsOnly(Keeping):
    @hookimpl
    def terway_allocate(self, attachment, node):
        return super().terway_allocate(by_pod(attachment), node)

    @hookimpl
    def terway_teardown(self, attachment, lease):
        return super().terway_teardown(by_pod(attachment), lease)

    @hookimpl
    def terway_gc(self, live):
        dead = self.dead(live, lambda attachment: str(by_pod(attachment).key))
        return GcReport(released=tuple(owner for owner in dead if self._pool.release(owner)))


@wrong("test_late_teardown_spares_the_next_owner")
class ReleasesByAddress(ExampleDriver):
    @hookimpl
    def terway_teardown(self, attachment, lease):
        owner = str(attachment.key)
        for other, address in self._pool.owners().items():
            if lease and address == lease.addresses[0].ip:
                owner = other
        return Outcome(changed=self._pool.release(owner))


@wrong("test_fault_at_each_step")
class GivesOneChance(ExampleDriver):
    def __init__(self):
        self.gone = set()

    @hookimpl
    def terway_allocate(self, attachment, node):
        if attachment.key in self.gone:
            raise RetryLater(f"{attachment.key} was deleted")
        return super().terway_allocate(attachment, node)

    @hookimpl
    def terway_teardown(self, attachment, lease):
        self.gone.add(attachment.key)
        return super().terway_teardown(attachment, lease)


# ---- gc


@wrong("test_gc_spares_the_live")
class TrustsTheJournalOnly(ExampleDriver):
    @hookimpl
    def terway_gc(self, live):
        return GcReport(released=tuple(self._pool.collect(())))


@wrong("test_gc_spares_what_is_being_added")
class TrustsItsArgumentOnly(ExampleDriver):
    @hookimpl
    def terway_gc(self, live):
        keys = {str(attachment.key) for attachment in live}
        dead = [owner for owner in self._pool.owners() if owner not in keys]
        return GcReport(released=tuple(owner for owner in dead if self._pool.release(owner)))


@wrong("test_gc_gives_back_what_nobody_needs")
class CollectsOneARound(Keeping):
    @hookimpl
    def terway_gc(self, live):
        dead = sorted(self.dead(live))[-1:]
        return GcReport(released=tuple(owner for owner in dead if self._pool.release(owner)))


@wrong("test_gc_survives_a_bad_record")
class BelievesItsRecords(Keeping):
    @hookimpl
    def terway_gc(self, live):
        for owner in self._pool.owners():
            _network, _container, _ifname = owner.split("/")
        dead = self.dead(live)
        return GcReport(released=tuple(owner for owner in dead if self._pool.release(owner)))


# ---- wiring


@wrong("test_setup_is_pure")
class ReadsAFile(ExampleDriver):
    @hookimpl
    def terway_setup(self, attachment, lease, node):
        Path("/proc/sys/kernel/hostname").read_text()
        return super().terway_setup(attachment, lease, node)


@wrong("test_setup_is_pure")
class AsksTheStore(Keeping):
    @hookimpl
    def terway_setup(self, attachment, lease, node):
        self.store.records()
        return super().terway_setup(attachment, lease, node)


@wrong("test_setup_is_pure")
class LooksAtTheClock(Keeping):
    @hookimpl
    def terway_setup(self, attachment, lease, node):
        return super().terway_setup(
            attachment, lease, replace(node, mtu=1400 + int(self.clock() // 3600) % 99)
        )


@wrong("test_wiring_carries_the_lease")
class KnowsEth0Only(ExampleDriver):
    @hookimpl
    def terway_setup(self, attachment, lease, node):
        return super().terway_setup(replace(attachment, ifname="eth0"), lease, node)


@wrong("test_wirings_of_two_pods_do_not_overlap")
class NamesAllLinksAlike(ExampleDriver):
    @hookimpl
    def terway_setup(self, attachment, lease, node):
        wiring = super().terway_setup(attachment, lease, node)
        return replace(
            wiring,
            host=tuple(
                replace(obj, name="cali0") if isinstance(obj, Veth) else replace(obj, dev="cali0")
                for obj in wiring.host
            ),
        )


@wrong("test_journal_returns_what_it_was_given")
class NotesATuple(ExampleDriver):
    @hookimpl
    def terway_allocate(self, attachment, node):
        return replace(super().terway_allocate(attachment, node), data={"pair": (1, 2)})


@wrong("test_result_at_each_cni_version")
class HasTwoGateways(ExampleDriver):
    @hookimpl
    def terway_allocate(self, attachment, node):
        lease = super().terway_allocate(attachment, node)
        return replace(lease, gateways=lease.gateways * 2)

    @hookimpl
    def terway_setup(self, attachment, lease, node):
        return super().terway_setup(attachment, replace(lease, gateways=lease.gateways[:1]), node)


@wrong("test_kernel_has_what_is_declared")
class Shouts(ExampleDriver):
    @hookimpl
    def terway_setup(self, attachment, lease, node):
        wiring = super().terway_setup(attachment, lease, node)
        veth, *rest = wiring.host
        return replace(wiring, host=(replace(veth, mac=veth.mac.upper()), *rest))


@wrong("test_removing_leaves_nothing")
class ChangesTheHost(ExampleDriver):
    @hookimpl
    def terway_setup(self, attachment, lease, node):
        wiring = super().terway_setup(attachment, lease, node)
        return replace(wiring, host=(*wiring.host, LinkUp(dev="lo", mtu=9000)))
