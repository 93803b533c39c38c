"""Label selectors, as the Kubernetes API has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether all of ``matchLabels`` and ``matchExpressions`` apply; an empty selector applies to all.

    :raises ValueError: an operator that there is not.
    """
    return all(
        labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items()
    ) and all(_applies(one, labels) for one in selector.get("matchExpressions") or ())


def _applies(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":  # also when there is no such label, as the API says
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case operator:
            raise ValueError(f"{operator!r} is no operator of a label selector")


def selects(
    selector: Mapping[str, Any], pod_labels: Mapping[str, str], namespace_labels: Mapping[str, str]
) -> bool:
    """Whether a PodNetworking's selector takes a pod; one that says nothing takes none."""
    pods, namespaces = selector.get("podSelector"), selector.get("namespaceSelector")
    if pods is None and namespaces is None:
        return False
    return matches(pods or {}, pod_labels) and matches(namespaces or {}, namespace_labels)
