"""What the daemon's service account must be allowed to do: no more than it does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from terway_core.config import KubeConfig

Rule: TypeAlias = dict[str, list[str]]

#: Of the service account and of both cluster-wide objects.
NAME: Final = "terway"


def rules(config: KubeConfig, of_drivers: Iterable[Rule] = ()) -> list[Rule]:
    """Rules of a ClusterRole, for these settings.

    :param of_drivers: what the configured drivers need besides (``terway_rbac``).
    """
    # Taints are in the node's spec; everything else that is written is in its status.
    node = ["get", "patch"] if config.not_ready_taint else ["get"]
    return [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": node},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
        *of_drivers,
    ]


def manifests(config: KubeConfig, of_drivers: Iterable[Rule] = ()) -> list[dict[str, Any]]:
    """The service account, its role, and what ties them together."""
    api = "rbac.authorization.k8s.io"
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": config.namespace}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": config.namespace},
        },
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": NAME},
            "rules": rules(config, of_drivers),
        },
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": NAME},
            "subjects": [account],
        },
    ]
