"""The hooks of the trunking mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from terway_core.errors import RetryLater
from terway_core.hookspecs import hookimpl
from terway_core.types import Attachment, GcReport, Lease, Node, Outcome, Pod, Wiring
from terway_driver_trunking import api

if TYPE_CHECKING:
    import typer


class TrunkingDriver:
    """The control plane's commands; the node's side is not here yet."""

    @hookimpl
    def terway_claim(self, pod: Pod, node: Node) -> bool:
        return pod.annotations.get(api.POD_ENI) == "true"

    @hookimpl
    def terway_allocate(self, attachment: Attachment, node: Node) -> Lease:
        raise RetryLater("the node's side of the trunking driver is not there yet")

    @hookimpl
    def terway_setup(self, attachment: Attachment, lease: Lease, node: Node) -> Wiring:
        return Wiring(node=(), host=(), pod=())

    @hookimpl
    def terway_teardown(self, attachment: Attachment, lease: Lease | None) -> Outcome:
        return Outcome(changed=False)

    @hookimpl
    def terway_gc(self, live: tuple[Attachment, ...], node: Node) -> GcReport:
        return GcReport()

    @hookimpl
    def terway_commands(self) -> typer.Typer:
        from terway_driver_trunking.commands import app  # the daemon has no use for it

        return app
