"""Starts the configured drivers, and those that have pods still; again those that were told to wait."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from terway_core.cloud import Cloud
from terway_core.config import Config
from terway_core.daemon.node import describe_node
from terway_core.errors import KubeError, RetryLater, TerwayError
from terway_core.registry import Drivers
from terway_core.store import Store
from terway_core.types import IPNetwork, Node, Services

if TYPE_CHECKING:
    from terway_core.eni.pool import Pool
    from terway_core.kube.cluster import Cluster
    from terway_core.wiring.netlink import FoundLink

log = logging.getLogger(__name__)


class Starter:
    """Knows who this node is and which drivers run.

    :ivar unavailable: mode → why it is not started. Empty when everything serves.
    :ivar pool: the node's ENIs; None when no driver has asked for them.
    """

    def __init__(
        self,
        config: Config,
        drivers: Drivers,
        store: Store,
        cloud: Cloud,
        find_link: Callable[[str], FoundLink | None],
        cluster: Cluster | None,
        clock: Callable[[], float],
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._config = config
        self._drivers = drivers
        self._store = store
        self._cloud = cloud
        self._clock = clock
        self._find_link = find_link
        self._cluster = cluster
        self._waiting = waiting
        self._node: Node | None = None
        self.pool: Pool | None = None
        self.unavailable: dict[str, str] = dict.fromkeys(config.drivers, "the daemon is starting")
        self._former: list[str] = []

    def node(self) -> Node:
        """:raises RetryLater: it is not known yet."""
        if self._node is None:
            raise RetryLater("this node's VPC is not known yet: the instance metadata has not been read")
        return self._node

    def started(self) -> list[str]:
        """Modes that run."""
        return [*(mode for mode in self._config.drivers if mode not in self.unavailable), *self._former]

    def start(self) -> None:
        """Start whatever is not started; what cannot be is left in ``unavailable`` with its reason."""
        if self._node is None:
            try:
                self._node = describe_node(self._config, self._cloud)
            except TerwayError as error:
                self.unavailable.update(dict.fromkeys(self.unavailable, str(error)))
                log.warning("node unknown", extra={"problem": str(error)})
                return
        if self._cluster and not self._node.pod_cidrs:
            self._node = replace(self._node, pod_cidrs=_pod_cidrs(self._cluster))
        for mode in tuple(self.unavailable):
            if problem := self._start(mode, self._node):
                self.unavailable[mode] = problem
            else:
                del self.unavailable[mode]
        self.start_former()

    def start_former(self) -> None:
        """Start the drivers that get no new pods, not being configured any more, but have old ones to serve.

        Nobody waits for one that cannot be started; it is tried again whenever this is called.
        """
        if self._node is None:
            return
        serving = {record.driver for record in self._store.records()}
        for mode in sorted(serving - {*self._config.drivers, *self._former}):
            if not self._start(mode, self._node):
                self._former.append(mode)

    def _start(self, mode: str, node: Node) -> str:
        """Start one driver; why it is not started, ``""`` when it is."""
        services = Services(
            options=self._config.options.get(mode, {}),
            node=node,
            store=self._store,
            cloud=self._cloud,
            eni_pool=self._start_pool,
            kube=self._cluster,
            clock=self._clock,
            waiting=self._waiting,
        )
        try:
            self._drivers.start(mode, services)
        except RetryLater as error:
            log.warning("driver waits", extra={"driver": mode, "problem": str(error)})
            return str(error)
        except TerwayError as error:
            log.error("driver refused to start", extra={"driver": mode, "problem": str(error)})
            return str(error)
        log.info("driver started", extra={"driver": mode})
        return ""

    def _start_pool(self, use: Literal["shared", "exclusive", "trunk"]) -> Pool:
        from terway_core.eni.pool import Pool  # not every node has ENIs to manage

        if self.pool is None:
            self.pool = Pool(
                self._store,
                self._cloud,
                self._config.pool,
                find_link=self._find_link,
                clock=self._clock,
                waiting=self._waiting,
            )
        self.pool.start(use)
        return self.pool

    def stop(self) -> None:
        """Stop what runs; a driver that fails to stop keeps nobody else from it."""
        for mode in self.started():
            try:
                self._drivers.stop(mode)
            except TerwayError as error:
                log.error("driver did not stop", extra={"driver": mode, "problem": str(error)})
        if self.pool:
            self.pool.stop()


def _pod_cidrs(cluster: Cluster) -> tuple[IPNetwork, ...]:
    """What Kubernetes has given this node; who needs it and finds nothing is started again later."""
    try:
        return cluster.node.pod_cidrs()
    except KubeError as error:
        log.warning("pod CIDR unknown", extra={"problem": str(error)})
        return ()
