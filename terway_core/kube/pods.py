"""The pods of this node."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from terway_core.bandwidth import parse_quantity
from terway_core.errors import KubeNotFound, KubeUnavailable, RetryLater
from terway_core.kube.client import KubeClient
from terway_core.kube.informer import Informer
from terway_core.kube.resources import PODS
from terway_core.types import Pod

log = logging.getLogger(__name__)

#: Seconds that an ADD waits for the API server to tell about a pod.
LOOKUP_TIMEOUT: Final = 5.0
#: On the object that stands for a static pod in the API: the UID which the kubelet gave the pod itself.
_MIRROR: Final = "kubernetes.io/config.mirror"
#: May be as large as the pod itself, and no driver reads it.
_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


class Pods:
    """Knows the node's pods from a watch, and asks the API server about one that the watch has not brought.

    :param node: name of the node.
    """

    def __init__(self, client: KubeClient, node: str) -> None:
        self._client = client
        self._node = node
        self._informer = Informer(client, PODS, field_selector=pods_of(node), slim=_slim)

    def start(self) -> None:
        """Begin to watch; returns at once."""
        self._informer.start()

    def stop(self) -> None:
        """End the watch. What is known stays known."""
        self._informer.stop()

    @property
    def synced(self) -> bool:
        """All pods have been listed once."""
        return self._informer.synced

    def describe(self, pod: Pod) -> Pod:
        """A pod whose name, and UID if the runtime tells it, is known, with all the rest.

        :raises KubeUnavailable: the watch has not brought it, and the API server does not answer.
        :raises KubeError: the API server refuses to tell.
        :raises RetryLater: there is no such pod, or another one has its name by now.
        """
        found = self._informer.get(pod.name, pod.namespace)
        if found is None or not is_same(found, pod):
            found = self._ask(pod)
        return _pod(found, uid=pod.uid)

    def is_gone(self, pod: Pod) -> bool:
        """Whether the API server, now, has no such pod.

        :raises KubeError: it does not tell.
        """
        found = self._informer.get(pod.name, pod.namespace)
        if found is not None and is_same(found, pod):
            return False
        try:
            return not is_same(self._client.get(PODS, pod.name, pod.namespace), pod)
        except KubeNotFound:
            return True

    def _ask(self, pod: Pod) -> dict[str, Any]:
        try:
            found = self._client.get(PODS, pod.name, pod.namespace, timeout=LOOKUP_TIMEOUT)
        except KubeNotFound:
            raise RetryLater(f"the API server has no pod {pod}; it has been deleted") from None
        except KubeUnavailable as error:
            raise KubeUnavailable(
                f"nothing is known about pod {pod} yet, and the API server cannot be asked: {error}",
                status=error.status,
                reason=error.reason,
            ) from error
        if not is_same(found, pod):
            raise RetryLater(
                f"pod {pod} with UID {pod.uid} is no more; another one has its name: "
                f"UID {found['metadata']['uid']}"
            )
        node = found.get("spec", {}).get("nodeName", "")
        if node != self._node:
            log.warning("pod of another node", extra={"pod": str(pod), "node": node, "node_name": self._node})
        return _slim(found)


def pods_of(node: str) -> str:
    """The field selector of a node's pods."""
    return f"spec.nodeName={node}"


def is_same(obj: Mapping[str, Any], pod: Pod) -> bool:
    """Whether an object of the API is this pod, and not a later one of its name."""
    metadata = obj["metadata"]
    if (metadata["namespace"], metadata["name"]) != (pod.namespace, pod.name):
        return False
    return not pod.uid or pod.uid in (metadata["uid"], (metadata.get("annotations") or {}).get(_MIRROR))


def needs_network(obj: Mapping[str, Any]) -> bool:
    """Whether an object of the API is a pod that runs, in a network namespace of its own."""
    # The kubelet tells half a minute later that a pod which is being deleted has ended.
    ends = "deletionTimestamp" in obj["metadata"]
    return obj.get("status", {}).get("phase") == "Running" and not ends and not obj["spec"].get("hostNetwork")


def reference(pod: Pod) -> dict[str, str]:
    """The pod as the object of an event."""
    return {
        "apiVersion": PODS.api_version,
        "kind": PODS.kind,
        "namespace": pod.namespace,
        "name": pod.name,
        "uid": pod.uid,
    }


def _slim(obj: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {
        name: obj["metadata"][name]
        for name in ("namespace", "name", "uid", "resourceVersion", "labels", "annotations")
        if name in obj["metadata"]
    }
    if _APPLIED in (annotations := metadata.get("annotations") or {}):
        metadata["annotations"] = {name: text for name, text in annotations.items() if name != _APPLIED}
    return {"metadata": metadata, "requests": _requests(obj.get("spec", {}))}


def _requests(spec: Mapping[str, Any]) -> dict[str, int]:
    """Extended resources, as the scheduler counts them: all containers, or the largest init container."""
    total: dict[str, int] = {}
    for container in spec.get("containers") or ():
        for name, amount in _extended(container):
            total[name] = total.get(name, 0) + amount
    for container in spec.get("initContainers") or ():
        for name, amount in _extended(container):
            total[name] = max(total.get(name, 0), amount)
    return total


def _extended(container: Mapping[str, Any]) -> list[tuple[str, int]]:
    requests = (container.get("resources") or {}).get("requests") or {}
    return [(name, int(parse_quantity(str(text)))) for name, text in requests.items() if "/" in name]


def _pod(obj: Mapping[str, Any], uid: str = "") -> Pod:
    """:param uid: what the runtime calls it by, which for a static pod is not the object's."""
    metadata = obj["metadata"]
    return Pod(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=uid or metadata["uid"],
        annotations=metadata.get("annotations") or {},
        labels=metadata.get("labels") or {},
        requests=obj["requests"],
    )
