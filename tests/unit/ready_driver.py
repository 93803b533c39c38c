"""The least that is a driver."""

from terway_core.hookspecs import hookimpl
from terway_core.types import GcReport, Lease, Outcome, Wiring


class ReadyDriver:
    """The four hooks that every driver has."""

    @hookimpl
    def terway_allocate(self, attachment, node):
        return Lease(addresses=())

    @hookimpl
    def terway_setup(self, attachment, lease, node):
        return Wiring()

    @hookimpl
    def terway_teardown(self, attachment, lease):
        return Outcome(changed=False)

    @hookimpl
    def terway_gc(self, live, node):
        return GcReport()
