"""What the control plane's service account must be allowed to do: no more than it does."""

from __future__ import annotations

from typing import Any, Final

from terway_driver_trunking.api import GROUP
from terway_driver_trunking.certificates import SECRET
from terway_driver_trunking.webhooks import MUTATING, NAME, VALIDATING

Rule = dict[str, list[str]]

_API: Final = "rbac.authorization.k8s.io"


def cluster_rules() -> list[Rule]:
    """Rules of the ClusterRole."""
    webhooks = [MUTATING.plural, VALIDATING.plural]
    return [
        _rule("", ["pods", "namespaces"], ["get", "list", "watch"]),
        _rule("", ["nodes"], ["get"]),
        _rule("", ["events"], ["create", "patch"]),
        _rule(GROUP, ["podnetworkings"], ["get", "list", "watch"]),
        _rule(GROUP, ["podnetworkings/status", "podenis/status"], ["patch"]),
        _rule(GROUP, ["podenis"], ["get", "list", "watch", "create", "patch", "delete"]),
        {**_rule(MUTATING.group, webhooks, ["get", "update"]), "resourceNames": [NAME]},
    ]


def namespace_rules() -> list[Rule]:
    """Rules of the Role in terway's own namespace. What is yet to be made cannot be named."""
    return [
        _rule("", ["secrets"], ["create"]),
        {**_rule("", ["secrets"], ["get", "update"]), "resourceNames": [SECRET]},
        _rule("coordination.k8s.io", ["leases"], ["create"]),
        {**_rule("coordination.k8s.io", ["leases"], ["get", "update"]), "resourceNames": [NAME]},
    ]


def manifests(namespace: str) -> list[dict[str, Any]]:
    """The service account, its roles, and what ties them together."""
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": namespace}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": namespace}},
        *_role("ClusterRole", {"name": NAME}, cluster_rules(), account),
        *_role("Role", {"name": NAME, "namespace": namespace}, namespace_rules(), account),
    ]


def _role(
    kind: str, metadata: dict[str, str], rules: list[Rule], account: dict[str, str]
) -> list[dict[str, Any]]:
    return [
        {"apiVersion": f"{_API}/v1", "kind": kind, "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{_API}/v1",
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": _API, "kind": kind, "name": NAME},
            "subjects": [account],
        },
    ]


def _rule(group: str, resources: list[str], verbs: list[str]) -> Rule:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}
