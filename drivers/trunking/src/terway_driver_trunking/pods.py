"""Pods of the whole cluster, as far as the control plane looks at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from terway_core.errors import KubeNotFound
from terway_core.kube import PODS, Informer, KubeClient
from terway_driver_trunking.api import IGNORE, POD_ENI, POD_NETWORKING, Object

_KEPT: Final = (POD_ENI, POD_NETWORKING)
_METADATA: Final = ("namespace", "name", "uid", "resourceVersion", "creationTimestamp", "labels")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrunkPod:
    """A pod that lives and has a network namespace of its own.

    :param node: where it is scheduled; ``""``: not yet.
    :param networking: the PodNetworking that selected it; ``""``: none, so it needs no ENI.
    :param stateful: a StatefulSet's, so that another of its name takes its place.
    """

    namespace: str
    name: str
    uid: str
    node: str
    networking: str
    stateful: bool

    @property
    def reference(self) -> dict[str, str]:
        """As the object of an event."""
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
        }


class TrunkPods:
    """Knows from a watch which pods there are; that one is gone it hears from the API server itself.

    :param on_change: as that of an Informer.
    """

    def __init__(self, client: KubeClient, on_change: Callable[[Object | None, Object | None], None]) -> None:
        self._client = client
        self.informer = Informer(client, PODS, slim=_slim, on_change=on_change)

    def get(self, namespace: str, name: str) -> TrunkPod | None:
        """The pod; None: there is none, it has ended, or it has its node's network.

        :raises KubeError: the API server does not tell.
        """
        obj = self.informer.get(name, namespace)
        if obj is None:
            try:
                obj = _slim(self._client.get(PODS, name, namespace))
            except KubeNotFound:
                return None
        return trunk_pod(obj)


def trunk_pod(obj: Mapping[str, Any]) -> TrunkPod | None:
    """A pod from its object; None when it has ended, or has its node's network."""
    metadata, spec = obj["metadata"], obj.get("spec", {})
    # The sandbox of a pod that has ended is taken down, and is not made again.
    if spec.get("hostNetwork") or obj.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return None
    annotations = metadata.get("annotations") or {}
    ours = annotations.get(POD_ENI) == "true" and (metadata.get("labels") or {}).get(IGNORE) != "true"
    return TrunkPod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        node=spec.get("nodeName") or "",
        networking=annotations.get(POD_NETWORKING, "") if ours else "",
        stateful=is_stateful(metadata),
    )


def is_stateful(metadata: Mapping[str, Any]) -> bool:
    """Whether a StatefulSet owns it, so that its name comes back."""
    return any(owner.get("kind") == "StatefulSet" for owner in metadata.get("ownerReferences") or ())


def _slim(obj: Object) -> Object:
    metadata = obj["metadata"]
    annotations = metadata.get("annotations") or {}
    return {
        "metadata": {
            **{name: metadata[name] for name in _METADATA if name in metadata},
            "annotations": {name: annotations[name] for name in _KEPT if name in annotations},
            "ownerReferences": [{"kind": "StatefulSet"}] if is_stateful(metadata) else [],
        },
        "spec": {name: obj["spec"][name] for name in ("nodeName", "hostNetwork") if name in obj["spec"]},
        "status": {"phase": obj.get("status", {}).get("phase", "")},
    }
