"""The cluster as a node's daemon and its drivers know it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from terway_core.config import Config
from terway_core.kube.client import KubeClient
from terway_core.kube.events import Events
from terway_core.kube.node import NodeKeeper
from terway_core.kube.pods import Pods, reference
from terway_core.types import Pod

COMPONENT: Final = "terway-daemon"


class Cluster:
    """All of it, for one node.

    :ivar client: the API, in plain dicts.
    :ivar pods: the node's pods.
    :ivar node: the node's object.
    :ivar events: what is told to people.
    :raises InvalidConfig: there are no credentials for the API.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self.client = KubeClient(config.kube, component=COMPONENT)
        self.pods = Pods(self.client, config.node_name)
        self.node = NodeKeeper(self.client, config.node_name, config.kube.not_ready_taint, clock)
        self.events = Events(self.client, COMPONENT, config.node_name, clock)

    def start(self) -> None:
        """Begin to watch, to write and to send; returns at once, whether the API server answers or not."""
        self.pods.start()
        self.node.start()
        self.events.start()

    def stop(self) -> None:
        """End all that."""
        self.pods.stop()
        self.node.stop()
        self.events.stop()
        self.client.close()

    def status(self) -> dict[str, Any]:
        """For ``terway status``."""
        return {"synced": self.pods.synced, "problem": self.node.problem}

    def tell_pod(self, pod: Pod, reason: str, message: str, *, warning: bool = False) -> None:
        """An event of a pod; of one without a name there is none."""
        if pod.name and pod.namespace:
            self.events.tell(reference(pod), reason, message, warning=warning)

    def tell_node(self, reason: str, message: str, *, warning: bool = False) -> None:
        """An event of this node."""
        self.events.tell(self.node.reference, reason, message, warning=warning)
