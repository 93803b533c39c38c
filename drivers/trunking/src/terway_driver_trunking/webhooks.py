"""The two webhook configurations, by which the API server knows whom to ask.

Pods: ``failurePolicy: Ignore``. While nobody answers, pods go on being made, among them those of the control
plane itself, of the node's daemon and of DNS; with ``Fail`` a cluster whose webhook is away could not start
the webhook. A pod that should have been selected and was not gets an ordinary address, and an event says so.
PodNetworkings: ``Fail``. They are ours alone, and rarely made; a wrong one would wait to do harm.
"""

from __future__ import annotations

from typing import Any, Final

from terway_core.kube.resources import Resource
from terway_driver_trunking.api import GROUP, IGNORE, POD_ENI, PODNETWORKINGS, VERSION

#: Of the Service, the configurations, the Lease and, with ``-cert``, the Secret.
NAME: Final = "terway-trunking"
PORT: Final = 4443

_API: Final = "admissionregistration.k8s.io"
MUTATING: Final = Resource(
    group=_API,
    version="v1",
    plural="mutatingwebhookconfigurations",
    kind="MutatingWebhookConfiguration",
    namespaced=False,
)
VALIDATING: Final = Resource(
    group=_API,
    version="v1",
    plural="validatingwebhookconfigurations",
    kind="ValidatingWebhookConfiguration",
    namespaced=False,
)


def manifests(namespace: str, host: str = "") -> list[dict[str, Any]]:
    """Both configurations, and the Service that they lead to; who serves them fills in the ``caBundle``.

    :param host: ``address:port`` of a control plane that does not run as a pod; there is no Service then.
    """

    def client(path: str) -> dict[str, Any]:
        if host:
            return {"url": f"https://{host}{path}"}
        return {"service": {"name": NAME, "namespace": namespace, "path": path, "port": 443}}

    common = {"sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5}
    pods = {
        "name": f"pods.{GROUP}",
        "clientConfig": client("/mutate"),
        "rules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
        ],
        "namespaceSelector": {"matchExpressions": [_not_in(POD_ENI, "false")]},
        "objectSelector": {"matchExpressions": [_not_in(IGNORE, "true")]},
        "failurePolicy": "Ignore",
        **common,
    }
    networkings = {
        "name": f"{PODNETWORKINGS.plural}.{GROUP}",
        "clientConfig": client("/validate"),
        "rules": [
            {
                "apiGroups": [GROUP],
                "apiVersions": [VERSION],
                "resources": [PODNETWORKINGS.plural],
                "operations": ["CREATE", "UPDATE"],
            }
        ],
        "failurePolicy": "Fail",
        **common,
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": namespace},
        # Server-side apply merges ports by protocol too, and older API servers do not know its default.
        "spec": {
            "selector": {"app": NAME},
            "ports": [{"port": 443, "targetPort": PORT, "protocol": "TCP"}],
        },
    }
    return [
        *([] if host else [service]),
        _configuration(MUTATING, pods),
        _configuration(VALIDATING, networkings),
    ]


def _configuration(kind: Resource, webhook: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": NAME},
        "webhooks": [webhook],
    }


def _not_in(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "operator": "NotIn", "values": [value]}
