"""What the kubelet does about a pod's object while the lab's runtime runs its sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, TypeVar

from terway_core.config import KubeConfig
from terway_core.errors import KubeConflict, KubeNotFound
from terway_core.kube import PODS, KubeClient
from terway_core.lab.cluster import ensure_namespace
from terway_core.lab.state import LabError, NodeFiles, open_netns
from terway_core.types import IPAddress

T = TypeVar("T")


class Kubelet:
    """The kubelet of one node; it asks the API server from there."""

    def __init__(self, node: NodeFiles) -> None:
        self._node = node

    def create(
        self,
        name: str,
        namespace: str,
        *,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
        requests: Mapping[str, str],
    ) -> str:
        """Make a pod that is scheduled to this node already; its UID.

        :raises LabError: the name is taken.
        """
        container: dict[str, Any] = {"name": "main", "image": "none"}
        if requests:
            container["resources"] = {"requests": dict(requests), "limits": dict(requests)}
        pod = {
            "metadata": {"name": name, "labels": dict(labels), "annotations": dict(annotations)},
            "spec": {"nodeName": self._node.name, "containers": [container], "restartPolicy": "Never"},
        }

        def create(client: KubeClient) -> str:
            ensure_namespace(client, namespace)
            return str(client.create(PODS, pod, namespace)["metadata"]["uid"])

        try:
            return self._ask(create)
        except KubeConflict:
            raise LabError(f"the cluster has a pod {namespace}/{name} already") from None

    def started(self, name: str, namespace: str, addresses: Sequence[IPAddress]) -> None:
        """Say that the pod runs, and where it is reached."""
        ips = [{"ip": str(address)} for address in addresses]
        status = {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips}
        self._ask(
            lambda client: client.patch(PODS, name, {"status": status}, namespace, subresource="status")
        )

    def removed(self, name: str, namespace: str, uid: str) -> None:
        """The sandbox is gone, and with it the object; another pod of that name stays."""
        with suppress(KubeNotFound, KubeConflict):
            self._ask(lambda client: client.delete(PODS, name, namespace, uid=uid, grace_seconds=0))

    def _ask(self, function: Callable[[KubeClient], T]) -> T:
        def ask() -> T:
            config = KubeConfig(kubeconfig=self._node.admin_kubeconfig)
            with closing(KubeClient(config, component="kubelet")) as client:
                return function(client)

        with open_netns(self._node.netns) as node:
            return node.run(ask)
