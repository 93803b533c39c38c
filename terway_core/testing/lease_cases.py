"""Cases about what a driver hands out and takes back."""

from __future__ import annotations

import pytest

from terway_core.errors import WiringError
from terway_core.record import Record, State
from terway_core.testing.base import DAY, MOST, ConformanceBase, Rig
from terway_core.testing.fakes import ALWAYS, FakeEngine, make_attachment
from terway_core.types import Attachment

POD, OTHER, THIRD = make_attachment(1), make_attachment(2), make_attachment(3)


class LeaseCases(ConformanceBase):
    """``terway_allocate``, ``terway_teardown``, ``terway_gc``."""

    def test_allocate_again_gives_the_same_lease(self, rig: Rig) -> None:
        """A runtime repeats an ADD whose answer it did not get.

        If this fails, look up what ``attachment.key`` already holds before you take anything new.
        """
        assert rig.allocate(POD) == rig.allocate(POD)

    def test_attachments_never_share_an_address(self, rig: Rig) -> None:
        """Not two pods, nor two interfaces of one pod.

        If this fails, the owner that you write down is coarser than ``attachment.key``.
        """
        attachments = [POD, OTHER, THIRD, make_attachment(1, ifname="eth1")]
        addresses = [address.ip for a in attachments for address in rig.allocate(a).addresses]
        assert len(set(addresses)) == len(addresses)

    def test_restart_keeps_the_lease(self, rig: Rig) -> None:
        """The daemon restarts while pods run, and an ADD may be repeated after it.

        If this fails, leases live in memory only: write them to ``services.store``.
        """
        lease = rig.allocate(POD)
        rig.restart()
        assert rig.allocate(POD).addresses == lease.addresses

    def test_exhaustion_is_no_address(self, rig: Rig) -> None:
        """With nothing left the runtime is asked to come again, and a pod that goes makes room.

        If this fails with DriverContractError, raise NoAddress when nothing is free. If the last step fails,
        what a teardown gives back does not become free.
        """
        held = rig.exhaust()
        rig.teardown(*held[0])
        rig.clock.advance(DAY)
        assert rig.allocate(POD).addresses

    def test_teardown_leaves_nothing(self, rig: Rig) -> None:
        """Everything that allocate took is given back by teardown, and nothing is left for gc.

        If this fails, teardown forgets what the message names.
        """
        leases = [(attachment, rig.allocate(attachment)) for attachment in (POD, OTHER)]
        for attachment, lease in leases:
            rig.teardown(attachment, lease)
        assert self.leftovers(rig) == []
        assert rig.gc().released == ()

    def test_teardown_twice(self, rig: Rig) -> None:
        """Runtimes send every DEL twice; the second finds nothing and says so.

        If this fails, answer ``Outcome(changed=False)`` for an attachment that holds nothing.
        """
        lease = rig.allocate(POD)
        assert rig.teardown(POD, lease).changed
        assert not rig.teardown(POD, lease).changed

    def test_teardown_without_lease(self, rig: Rig) -> None:
        """The lease is lost when the daemon dies within allocate; teardown comes all the same.

        If this fails, find what the attachment holds by its key, not by the lease.
        """
        rig.allocate(POD)
        rig.teardown(POD, None)
        rig.teardown(OTHER, None)  # never allocated
        rig.gc()
        assert self.leftovers(rig) == []

    def test_teardown_without_netns(self, rig: Rig) -> None:
        """The last DEL of a sandbox names network, container and interface: no namespace, no pod.

        If this fails, you identify the attachment by more than ``attachment.key``.
        """
        lease = rig.allocate(POD)
        bare = Attachment(network=POD.network, container_id=POD.container_id, ifname=POD.ifname)
        assert rig.teardown(bare, lease).changed

    def test_late_teardown_spares_the_next_owner(self, rig: Rig) -> None:
        """A DEL may be repeated after another pod got the address.

        If this fails, teardown gives back the lease's address whoever has it: give back what the attachment
        owns. If it fails with NoAddress, an address that was given back is never used again.
        """
        old = rig.allocate(POD)
        rig.teardown(POD, old)
        rig.clock.advance(DAY)
        for number in range(MOST):
            heir = make_attachment(2000 + number)
            lease = rig.allocate(heir)
            if set(lease.addresses) & set(old.addresses):
                break
        else:
            pytest.fail(f"{MOST} attachments did not bring the address back: give fewer in `options`")
        rig.teardown(POD, old)
        assert rig.allocate(heir).addresses == lease.addresses

    @pytest.mark.parametrize("times", [1, 2, ALWAYS], ids=["once", "twice", "always"])
    def test_fault_at_each_step(self, rig: Rig, times: float) -> None:
        """The kernel refuses one object of the wiring, whichever; the core undoes it, the runtime retries.

        If this fails, an attachment that was torn down cannot be allocated and set up anew.
        """
        wiring = rig.wire(POD)[1]
        for step in range(len((*wiring.node, *wiring.host, *wiring.pod))):
            engine = FakeEngine(fail_at=step, times=times)
            succeeded = [_add(rig, engine, POD) for _ in range(3)]
            assert succeeded == [attempt >= times for attempt in range(3)]
            assert bool(engine.owned(str(POD.key))) == succeeded[-1]

    def test_gc_spares_the_live(self, rig: Rig) -> None:
        """If this fails, gc gives back what a running pod uses: compare with the keys of ``live``."""
        addresses = [rig.allocate(pod).addresses for pod in (POD, OTHER)]
        assert rig.gc(POD, OTHER).released == ()
        assert [rig.allocate(pod).addresses for pod in (POD, OTHER)] == addresses

    def test_gc_spares_what_is_being_added(self, rig: Rig) -> None:
        """An ADD may begin while gc runs: the attachment is in the journal, but not in ``live``.

        If this fails, ask the journal when you decide, not before: ``AddressPool.collect`` does both in one
        transaction.
        """
        record = Record(attachment=POD, driver=rig.mode, state=State.ALLOCATING, created=rig.clock())
        rig.services.store.put(record)
        addresses = rig.allocate(POD).addresses
        assert rig.gc().released == ()
        assert rig.allocate(POD).addresses == addresses

    def test_gc_gives_back_what_nobody_needs(self, rig: Rig) -> None:
        """Attachments whose teardown was lost are gone after one round; the next one finds nothing.

        If this fails, gc leaves something behind, or reports what it did not do.
        """
        for attachment in (POD, OTHER, THIRD):
            rig.allocate(attachment)
        assert rig.gc(POD).released
        assert rig.gc(POD).released == ()

    def test_gc_survives_a_bad_record(self, rig: Rig) -> None:
        """One record that cannot be understood keeps nothing else from being given back.

        If this fails, put what you do for each record in a ``try`` of its own and report the problem.
        """
        for attachment in (POD, OTHER, THIRD):
            rig.allocate(attachment)
        self.spoil_a_record(rig, THIRD)
        rig.restart()  # nobody else writes while a daemon runs
        rig.gc(POD)
        assert [line for line in self.leftovers(rig) if str(OTHER.key) in line] == []


def _add(rig: Rig, engine: FakeEngine, attachment: Attachment) -> bool:
    """One ADD as the daemon does it; what fails half-way is undone."""
    lease, wiring = rig.wire(attachment)
    try:
        engine.ensure(wiring.node)
        engine.apply(wiring, None, str(attachment.key))
    except WiringError:
        engine.remove(wiring, None, str(attachment.key))
        rig.teardown(attachment, lease)
        rig.clock.advance(DAY)  # the retry comes at once, but must not need an address that rests
        return False
    return True
