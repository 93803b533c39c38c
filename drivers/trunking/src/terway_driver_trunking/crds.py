"""The custom resource definitions: structural schemas, status sub-resources, printer columns.

Fields are those of Alibaba Cloud's own Terway. The API server validates them and fills in defaults; what a
schema cannot say (a TTL needs a time) is in :mod:`~terway_driver_trunking.admission`.
"""

from __future__ import annotations

from typing import Any, Final

from terway_core.kube.resources import Resource
from terway_driver_trunking.api import GROUP, PODENIS, PODNETWORKINGS, VERSION

Schema = dict[str, Any]

#: Go's spelling of a duration that is not negative, as in ``5m0s``.
DURATION: Final = r"^(0|([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+)$"
PHASES: Final = ("", "Binding", "Bind", "Detaching", "Unbind", "Deleting")


def _string(description: str = "", **rules: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **rules}


def _object(properties: dict[str, Schema], description: str = "", **rules: Any) -> Schema:
    about = {"description": description} if description else {}
    return {"type": "object", **about, **rules, "properties": properties}


def _list(items: Schema, description: str = "", **rules: Any) -> Schema:
    return {"type": "array", **({"description": description} if description else {}), **rules, "items": items}


def _map(values: Schema, description: str = "") -> Schema:
    about = {"description": description} if description else {}
    return {"type": "object", **about, "additionalProperties": values}


def _ids(prefix: str, description: str, **rules: Any) -> Schema:
    return _list(_string(pattern=f"^{prefix}-[0-9A-Za-z]+$"), description, **rules)


_RELEASE: Final = {
    "releaseStrategy": _string(
        "TTL: the address is released when releaseAfter has passed since the pod was last seen.",
        enum=["TTL", "Never"],
    ),
    "releaseAfter": _string("How long an address outlives its pod, as in 5m0s.", pattern=DURATION),
}
_ALLOCATION_TYPE: Final = _object(
    {
        "type": _string(
            "Fixed: a StatefulSet's pod keeps its address.", enum=["Elastic", "Fixed"], default="Elastic"
        ),
        **_RELEASE,
    }
)
_LABEL_SELECTOR: Final = _object(
    {
        "matchLabels": _map(_string()),
        "matchExpressions": _list(
            _object(
                {
                    "key": _string(),
                    "operator": _string(enum=["In", "NotIn", "Exists", "DoesNotExist"]),
                    "values": _list(_string()),
                },
                required=["key", "operator"],
            )
        ),
    }
)
_ENI: Final = _object(
    {
        "id": _string(),
        "vpcID": _string(),
        "mac": _string(),
        "zone": _string(),
        "vSwitchID": _string(),
        "resourceGroupID": _string(),
        "securityGroupIDs": _list(_string()),
        "attachmentOptions": _object({"trunk": {"type": "boolean"}}),
    }
)
_ADDRESSES: Final = {"ipv4": _string(), "ipv6": _string(), "ipv4CIDR": _string(), "ipv6CIDR": _string()}

POD_NETWORKING_SPEC: Final = _object(
    {
        "eniOptions": _object({"eniType": _string(enum=["Default", "ENI", "Trunk"], default="Default")}),
        "allocationType": {**_ALLOCATION_TYPE, "default": {"type": "Elastic"}},
        "selector": _object(
            {"podSelector": _LABEL_SELECTOR, "namespaceSelector": _LABEL_SELECTOR},
            "Which pods: those to which all that is given applies. Without either, none.",
        ),
        "securityGroupIDs": _ids(
            "sg", "Security groups of the pods' ENIs, in place of the node's.", minItems=1, maxItems=10
        ),
        "vSwitchOptions": _ids("vsw", "vSwitches that the pods' ENIs may be in.", minItems=1),
        "vSwitchSelectOptions": _object(
            {
                "vSwitchSelectionPolicy": _string(
                    "Among those of the pod's zone. Absent: most, by free addresses.",
                    enum=["ordered", "random", "most"],
                )
            }
        ),
    },
    required=["securityGroupIDs", "vSwitchOptions"],
)
POD_NETWORKING_STATUS: Final = _object(
    {
        "status": _string("Only when Ready it is used for pods.", enum=["Ready", "Fail"]),
        "vSwitches": _list(_object({"id": _string(), "zone": _string()}, required=["id"])),
        "updateAt": _string(format="date-time"),
        "message": _string("Why not."),
    }
)
POD_ENI_SPEC: Final = _object(
    {
        "zone": _string(),
        "allocations": _list(
            _object(
                {
                    "allocationType": _ALLOCATION_TYPE,
                    "eni": _ENI,
                    **_ADDRESSES,
                    "interface": _string(maxLength=15),
                    "defaultRoute": {"type": "boolean"},
                    "extraRoutes": _list(_object({"dst": _string()}, required=["dst"])),
                    "extraConfig": _map(_string()),
                }
            )
        ),
        "allocation": _object(
            {"eni": _ENI, "ipType": _ALLOCATION_TYPE, **_ADDRESSES},
            "As the first releases wrote it, in place of allocations; it is read, never written.",
        ),
    }
)
POD_ENI_STATUS: Final = _object(
    {
        "phase": _string("Bind: the node may use it.", enum=list(PHASES)),
        "status": _string(
            "As the first releases wrote it, in place of phase; it is read, never written.", enum=list(PHASES)
        ),
        "instanceID": _string(),
        "trunkENIID": _string(),
        "msg": _string("Why it does not go on."),
        "podLastSeen": _string(format="date-time"),
        "eniInfos": _map(
            _object(
                {
                    "id": _string(),
                    "type": _string(enum=["Primary", "Secondary", "Trunk", "Member"]),
                    "vid": {"type": "integer", "description": "VLAN id on the trunk."},
                    "status": _string(enum=["Bind", "Unbind", "Deleted"]),
                    "networkCardIndex": {"type": "integer"},
                    "vfID": {"type": "integer"},
                }
            )
        ),
    }
)


def manifests() -> list[dict[str, Any]]:
    """Both definitions, for ``apiextensions.k8s.io/v1``."""
    age = _column("Age", ".metadata.creationTimestamp", "date")
    return [
        _definition(
            PODNETWORKINGS,
            POD_NETWORKING_SPEC,
            POD_NETWORKING_STATUS,
            [
                _column("Status", ".status.status"),
                _column("Type", ".spec.allocationType.type"),
                _column("Message", ".status.message", priority=1),
                age,
            ],
        ),
        _definition(
            PODENIS,
            POD_ENI_SPEC,
            POD_ENI_STATUS,
            [
                _column("Phase", ".status.phase"),
                _column("IPv4", ".spec.allocations[0].ipv4"),
                _column("ENI", ".spec.allocations[0].eni.id"),
                _column("Node", r".metadata.labels.k8s\.aliyun\.com/node"),
                _column("Trunk", ".status.trunkENIID", priority=1),
                _column("Instance", ".status.instanceID", priority=1),
                _column("Message", ".status.msg", priority=1),
                age,
            ],
        ),
    ]


def _column(name: str, path: str, kind: str = "string", *, priority: int = 0) -> dict[str, Any]:
    """:param priority: columns above 0 are shown by ``kubectl get -o wide`` only."""
    return {"name": name, "jsonPath": path, "type": kind, **({"priority": priority} if priority else {})}


def _definition(
    resource: Resource, spec: Schema, status: Schema, columns: list[dict[str, Any]]
) -> dict[str, Any]:
    # Of apiVersion, kind and metadata the API server knows the schema itself.
    schema = {"type": "object", "required": ["spec"], "properties": {"spec": spec, "status": status}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "names": {
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                }
            ],
        },
    }
