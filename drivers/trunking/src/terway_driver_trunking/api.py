"""The custom resources by name, and the annotations, labels and tags by which the parts know one another.

All are those of Alibaba Cloud's own Terway, so that existing YAML and tools go on working.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from terway_core.kube.resources import Resource

Object: TypeAlias = dict[str, Any]

GROUP: Final = "network.alibabacloud.com"
VERSION: Final = "v1beta1"
PODNETWORKINGS: Final = Resource(
    group=GROUP, version=VERSION, plural="podnetworkings", kind="PodNetworking", namespaced=False
)
PODENIS: Final = Resource(group=GROUP, version=VERSION, plural="podenis", kind="PodENI")

#: On a pod, ``"true"``: it has a PodENI of its name. Label of a namespace, ``"false"``: nothing in it has.
POD_ENI: Final = "k8s.aliyun.com/pod-eni"
#: On a pod: the PodNetworking that selected it.
POD_NETWORKING: Final = "k8s.aliyun.com/pod-networking"
#: On a PodENI: the UID of the pod that it serves now. A node must compare it with its pod's.
POD_UID: Final = "k8s.aliyun.com/pod-uid"
#: Label of a PodENI: the node that its pod is on.
NODE: Final = "k8s.aliyun.com/node"
#: On a node: the id of its trunk ENI, if the node tells.
TRUNK_ON: Final = "k8s.aliyun.com/trunk-on"
#: Label of a pod, ``"true"``: not terway's.
IGNORE: Final = "k8s.aliyun.com/ignore-by-terway"
#: The extended resource of which a trunk pod has one.
MEMBER_ENI: Final = "aliyun/member-eni"

FINALIZER: Final = "network.alibabacloud.com/pod-eni"

#: Tags of member ENIs: who made them, for which cluster, and for the PodENI with which UID.
CREATOR_TAG: Final = "creator"
CREATOR: Final = "terway-controller"
CLUSTER_TAG: Final = "ack.aliyun.com"
OWNER_TAG: Final = "terway.pod-eni"


def phase(podeni: Mapping[str, Any]) -> str:
    """``""`` (new), ``Binding``, ``Bind``, ``Detaching``, ``Unbind`` or ``Deleting``."""
    status = podeni.get("status", {})
    return str(status.get("phase") or status.get("status", ""))


def allocation(podeni: Mapping[str, Any]) -> Mapping[str, Any]:
    """The allocation of the pod's only interface; empty when there is none yet."""
    spec = podeni.get("spec", {})
    if spec.get("allocations"):
        first: Mapping[str, Any] = spec["allocations"][0]
        return first
    old = dict(spec.get("allocation") or {})
    return {"allocationType": old.pop("ipType", {}), **old}


def is_fixed(podeni: Mapping[str, Any]) -> bool:
    """Whether the address outlives the pod."""
    return bool(allocation(podeni).get("allocationType", {}).get("type") == "Fixed")
