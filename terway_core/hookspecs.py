"""The whole driver API.

Every hook is synchronous and runs in a worker thread of the daemon. The core picks one driver for a pod and
calls that driver alone, so no hook asks "is this mine?". ``docs/write-a-driver.md`` walks through them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import pluggy

if TYPE_CHECKING:
    import typer

    from terway_core.config import Config
    from terway_core.types import Attachment, GcReport, Lease, Node, Outcome, Pod, Problem, Services, Wiring

PROJECT: Final = "terway"
hookspec: Final = pluggy.HookspecMarker(PROJECT)
hookimpl: Final = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def terway_allocate(attachment: Attachment, node: Node) -> Lease:  # type: ignore[empty-body]
    """Take what the attachment needs. The same attachment again gets the same lease.

    :raises NoAddress: nothing is free. :raises RetryLater: a dependency is down; the runtime asks again.
    """


@hookspec(firstresult=True)
def terway_setup(attachment: Attachment, lease: Lease, node: Node) -> Wiring:  # type: ignore[empty-body]
    """Describe the wiring. Pure: no I/O, and the same arguments give an equal result."""


@hookspec(firstresult=True)
def terway_teardown(attachment: Attachment, lease: Lease | None) -> Outcome:  # type: ignore[empty-body]
    """Give the lease back; the core has removed the wiring. May come twice, may come without a lease."""


@hookspec(firstresult=True)
def terway_gc(live: tuple[Attachment, ...], node: Node) -> GcReport:  # type: ignore[empty-body]
    """Give back whatever no live attachment needs. One bad record is reported and spoils nothing else."""


@hookspec(firstresult=True)
def terway_claim(pod: Pod, node: Node) -> bool:  # type: ignore[empty-body]
    """Optional: is this pod for this driver? Drivers are asked in the configured order; absent means yes."""


@hookspec(firstresult=True)
def terway_preflight(node: Node, options: Mapping[str, Any]) -> list[Problem]:  # type: ignore[empty-body]
    """Optional: what this machine lacks for the driver to work, each with its remedy. Changes nothing, and
    comes at any time, also before ``terway_start``."""


@hookspec(firstresult=True)
def terway_start(services: Services) -> None:
    """Optional: take what the core lends, check the options. RetryLater: the core calls it again."""


@hookspec(firstresult=True)
def terway_stop() -> None:
    """Optional: the daemon ends; running pods keep their network."""


@hookspec(firstresult=True)
def terway_commands() -> typer.Typer:  # type: ignore[empty-body]
    """Optional: sub-commands, shown as ``terway MODE …``."""


@hookspec
def terway_conflist(  # type: ignore[empty-body]
    conflist: dict[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Optional: add chained plugins to the conflist that ``terway cni install`` writes. Comes at any time,
    also before ``terway_start``."""


@hookspec(firstresult=True)
def terway_rbac() -> list[dict[str, list[str]]]:  # type: ignore[empty-body]
    """Optional: what the driver asks of the Kubernetes API on a node, as rules of a ClusterRole."""


@hookspec(firstresult=True)
def terway_manifests(config: Config, image: str) -> list[dict[str, Any]]:  # type: ignore[empty-body]
    """Optional: what a cluster needs for the driver beside the daemon: custom resources, a control plane."""
