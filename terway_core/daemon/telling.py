"""What the daemon tells Kubernetes of its work: events, and the node's condition ``SufficientIP``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from terway_core.errors import RetryLater, Superseded, TerwayError
from terway_core.types import Attachment

if TYPE_CHECKING:
    from terway_core.eni.pool import Pool
    from terway_core.kube.cluster import Cluster
    from terway_core.kube.node import Condition


class Teller:
    """Tells a cluster; without one it tells nobody. Reasons are those of Alibaba Cloud's own Terway."""

    def __init__(self, cluster: Cluster | None) -> None:
        self._cluster = cluster

    @contextlib.contextmanager
    def adding(self, attachment: Attachment) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Make what comes of an ADD an event of its pod; the block is given whom to tell its answer."""
        cluster, begun = self._cluster, time.monotonic()

        def tell(answer: dict[str, Any]) -> None:
            if cluster:
                addresses = ",".join(ip["address"].partition("/")[0] for ip in answer.get("ips", ()))
                took = f"Alloc IP {addresses} took {time.monotonic() - begun:.3f}s"
                cluster.tell_pod(attachment.pod, "AllocIPSucceed", took)

        try:
            yield tell
        except Superseded:
            raise  # the pod is being deleted
        except TerwayError as error:
            if cluster:
                cluster.tell_pod(attachment.pod, "AllocIPFailed", str(error), warning=True)
            raise

    def not_started(self, unavailable: Mapping[str, str]) -> None:
        """Make each driver that is not started an event of the node.

        :param unavailable: mode → why.
        """
        for mode, why in unavailable.items():
            if self._cluster:
                self._cluster.tell_node("DriverNotStarted", f"driver {mode}: {why}", warning=True)

    def report(self, pool: Callable[[], Pool | None]) -> None:
        """Keep the condition ``SufficientIP`` from now on, and make a shortage an event of the node."""
        if self._cluster:
            self._cluster.node.report(lambda: self._sufficient_ip(pool()))

    def _sufficient_ip(self, pool: Pool | None) -> Condition | None:
        from terway_core.kube.node import Condition

        try:
            shortages = pool.shortages() if pool else None
        except RetryLater:
            return None
        if shortages is None:
            return None
        if not shortages:
            return Condition("SufficientIP", True, "SufficientIP", "the next pod gets an address")
        message = "; ".join(shortages)
        if self._cluster:
            self._cluster.tell_node("InsufficientIP", message, warning=True)
        return Condition("SufficientIP", False, "InsufficientIP", message)
