"""What a cluster needs for the control plane."""

from __future__ import annotations

from typing import Any

from terway_core.config import Config
from terway_core.kube.manifests import container, pod_template
from terway_driver_trunking import crds, rbac, webhooks
from terway_driver_trunking.webhooks import NAME, PORT

#: One leads, the other is there to answer the webhook, and to lead when it goes.
REPLICAS = 2


def manifests(config: Config, image: str) -> list[dict[str, Any]]:
    """Custom resources, roles, webhooks, and the control plane as a Deployment."""
    namespace = config.kube.namespace
    return [
        *crds.manifests(),
        *rbac.manifests(namespace),
        *webhooks.manifests(namespace),
        _deployment(config, image),
    ]


def _deployment(config: Config, image: str) -> dict[str, Any]:
    serve = container(
        NAME,
        image,
        ["trunking", "controller"],
        # A port of the node: no two of them on one.
        ports=[{"name": "webhook", "containerPort": PORT, "hostPort": PORT, "protocol": "TCP"}],
        securityContext={
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        resources={"requests": {"cpu": "100m", "memory": "128Mi"}},
        livenessProbe=_probe("/healthz"),
        readinessProbe=_probe("/readyz"),
    )
    template = pod_template(
        config,
        NAME,
        [serve],
        priorityClassName="system-cluster-critical",
        # It may be needed for the first pods of the first node.
        tolerations=[{"key": config.kube.not_ready_taint, "operator": "Exists"}]
        if config.kube.not_ready_taint
        else [],
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": config.kube.namespace},
        "spec": {"replicas": REPLICAS, "selector": {"matchLabels": {"app": NAME}}, "template": template},
    }


def _probe(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": PORT, "scheme": "HTTPS"}, "periodSeconds": 10}
