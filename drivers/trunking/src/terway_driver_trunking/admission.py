"""What the admission webhook answers: pods that are selected, and PodNetworkings that make no sense.

Pure functions over the objects of an AdmissionReview; ``webhook`` serves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from terway_driver_trunking.api import (
    IGNORE,
    MEMBER_ENI,
    POD_ENI,
    POD_NETWORKING,
    Object,
    allocation,
    is_fixed,
)
from terway_driver_trunking.durations import parse_duration
from terway_driver_trunking.pods import is_stateful
from terway_driver_trunking.selectors import selects

ZONE: Final = "topology.kubernetes.io/zone"

#: Operations of RFC 6902.
JsonPatch = list[dict[str, Any]]


def problems_of(spec: Mapping[str, Any]) -> list[str]:
    """What is wrong with a PodNetworking that its schema cannot tell; nothing when it is right."""
    found = []
    if spec.get("eniOptions", {}).get("eniType") == "ENI":
        found.append("eniOptions.eniType: ENI is for the mode eni, which needs no PodNetworking; use Trunk")
    for name in ("podSelector", "namespaceSelector"):
        for expression in (spec.get("selector", {}).get(name) or {}).get("matchExpressions") or ():
            needs_values = expression["operator"] in ("In", "NotIn")
            if needs_values != bool(expression.get("values")):
                word = "needs" if needs_values else "has no"
                found.append(f"selector.{name}: {expression['operator']} {word} values")
    kept = spec.get("allocationType", {})
    if kept.get("type") == "Fixed":
        strategy, after = kept.get("releaseStrategy"), kept.get("releaseAfter", "")
        if strategy is None:
            found.append("allocationType.releaseStrategy: Fixed needs TTL or Never")
        if strategy == "TTL" and not _is_positive(after):
            found.append(f"allocationType.releaseAfter: TTL needs a time such as 5m0s, not {after!r}")
        if strategy == "Never" and after:
            found.append("allocationType.releaseAfter: Never has none")
    return found


def select(
    pod: Mapping[str, Any], namespace_labels: Mapping[str, str], networkings: Iterable[Object]
) -> Object | None:
    """The PodNetworking of a pod that is about to be made: the first by name that is Ready and selects it.

    One with Fixed addresses selects pods of StatefulSets only.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    labels = metadata.get("labels") or {}
    if spec.get("hostNetwork") or labels.get(IGNORE) == "true" or namespace_labels.get(POD_ENI) == "false":
        return None
    for networking in sorted(networkings, key=lambda one: str(one["metadata"]["name"])):
        wanted = networking["spec"]
        if networking.get("status", {}).get("status") != "Ready":
            continue
        if wanted.get("allocationType", {}).get("type") == "Fixed" and not is_stateful(metadata):
            continue
        if selects(wanted.get("selector") or {}, labels, namespace_labels):
            return networking
    return None


def patch_of(
    pod: Mapping[str, Any], networking: Mapping[str, Any], previous: Callable[[], Object | None]
) -> JsonPatch:
    """What makes a pod one with an ENI: annotations, the extended resource, and the zones it may run in.

    :param previous: the PodENI of its name, which is asked for only when its address may be fixed.
    """
    spec = pod["spec"]
    patch: JsonPatch = []
    _ensure(patch, pod["metadata"], "annotations", "/metadata/annotations")
    for key, value in ((POD_ENI, "true"), (POD_NETWORKING, networking["metadata"]["name"])):
        patch.append({"op": "add", "path": f"/metadata/annotations/{_escape(key)}", "value": value})
    container = spec["containers"][0]
    resources = container.get("resources") or {}
    _ensure(patch, container, "resources", "/spec/containers/0/resources")
    for kind in ("requests", "limits"):
        path = f"/spec/containers/0/resources/{kind}"
        _ensure(patch, resources, kind, path)
        patch.append({"op": "add", "path": f"{path}/{_escape(MEMBER_ENI)}", "value": "1"})
    zones = sorted({one["zone"] for one in networking["status"].get("vSwitches") or ()})
    if networking["spec"].get("allocationType", {}).get("type") == "Fixed":
        podeni = previous()
        if podeni and is_fixed(podeni) and (zone := allocation(podeni).get("eni", {}).get("zone")):
            zones = [zone]
    # A DaemonSet's pod is for one node; and nothing is known of zones yet when there are none.
    if zones and not any(
        owner.get("kind") == "DaemonSet" for owner in pod["metadata"].get("ownerReferences") or ()
    ):
        patch.append({"op": "add", "path": "/spec/affinity", "value": _in_zones(spec, zones)})
    return patch


def _in_zones(spec: Mapping[str, Any], zones: list[str]) -> dict[str, Any]:
    """The pod's affinity, with a further condition: an ENI can only be attached in its own zone."""
    condition = {"key": ZONE, "operator": "In", "values": zones}
    affinity = dict(spec.get("affinity") or {})
    of_nodes = dict(affinity.get("nodeAffinity") or {})
    key = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = (of_nodes.get(key) or {}).get("nodeSelectorTerms") or [{}]
    # Terms are alternatives: it must be in each.
    of_nodes[key] = {
        "nodeSelectorTerms": [
            {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), condition]} for term in terms
        ]
    }
    return {**affinity, "nodeAffinity": of_nodes}


def _ensure(patch: JsonPatch, parent: Mapping[str, Any], key: str, path: str) -> None:
    if not parent.get(key):
        patch.append({"op": "add", "path": path, "value": {}})


def _escape(key: str) -> str:
    """As RFC 6901 says."""
    return key.replace("~", "~0").replace("/", "~1")


def _is_positive(text: str) -> bool:
    try:
        return parse_duration(text) > 0
    except ValueError:
        return False
