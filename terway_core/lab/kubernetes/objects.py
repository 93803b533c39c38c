"""The objects of a simulated cluster, every change to them with its number, and who waits for changes."""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from terway_core.kube.resources import (
    ACCESS_REVIEWS,
    EVENTS,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    SECRETS,
    Resource,
)
from terway_core.lab.kubernetes.patches import merge, strategic
from terway_core.lab.kubernetes.selectors import Predicate

Object: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str]

#: Changes that are remembered for watches that go on from an earlier one.
REMEMBERED: Final = 2000

CRDS: Final = Resource(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    namespaced=False,
)


def _core(plural: str, kind: str) -> Resource:
    return Resource(group="", version="v1", plural=plural, kind=kind)


def _grouped(group: str, plural: str, kind: str, *, namespaced: bool = False) -> Resource:
    return Resource(group=group, version="v1", plural=plural, kind=kind, namespaced=namespaced)


_RBAC: Final = "rbac.authorization.k8s.io"
_ADMISSION: Final = "admissionregistration.k8s.io"


#: Kinds that are there from the beginning, and whether they have a status of its own.
BUILT_IN: Final[dict[Resource, bool]] = {
    PODS: True,
    NODES: True,
    NAMESPACES: True,
    _core("services", "Service"): True,
    _core("configmaps", "ConfigMap"): False,
    _core("serviceaccounts", "ServiceAccount"): False,
    _grouped(_RBAC, "clusterroles", "ClusterRole"): False,
    _grouped(_RBAC, "clusterrolebindings", "ClusterRoleBinding"): False,
    _grouped(_RBAC, "roles", "Role", namespaced=True): False,
    _grouped(_RBAC, "rolebindings", "RoleBinding", namespaced=True): False,
    _grouped(_ADMISSION, "mutatingwebhookconfigurations", "MutatingWebhookConfiguration"): False,
    _grouped(_ADMISSION, "validatingwebhookconfigurations", "ValidatingWebhookConfiguration"): False,
    SECRETS: False,
    EVENTS: False,
    LEASES: False,
    ACCESS_REVIEWS: False,
    CRDS: True,
    _grouped("apps", "statefulsets", "StatefulSet", namespaced=True): True,
    _grouped("apps", "deployments", "Deployment", namespaced=True): True,
}


class Refusal(Exception):
    """What the API answers with a ``Status`` object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason

    @property
    def status(self) -> Object:
        """The ``Status`` object."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.code,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """One change; ``old`` and ``new`` are what the object was and is, None for nothing."""

    version: int
    resource: Resource
    key: Key
    old: Object | None
    new: Object | None

    def seen_by(self, selects: Predicate) -> tuple[str, Object] | None:
        """The event that a watch with this selector gets; None when it concerns others."""
        was = self.old is not None and selects(self.old)
        now = self.new is not None and selects(self.new)
        if now:
            assert self.new is not None
            return ("MODIFIED" if was else "ADDED"), self.new
        if not was:
            return None
        assert self.old is not None
        gone = deepcopy(self.new or self.old)
        gone["metadata"]["resourceVersion"] = str(self.version)
        return "DELETED", gone


class Objects:
    """All objects. Safe to use from several threads; what it gives out must not be changed.

    :param clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._kinds = dict(BUILT_IN)
        self._objects: dict[Resource, dict[Key, Object]] = {}
        self._changes: deque[Change] = deque(maxlen=REMEMBERED)
        self._forgotten = 0
        self._version = 0
        self._listeners: list[Callable[[], None]] = []
        for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
            self.create(NAMESPACES, {"metadata": {"name": name}})

    @property
    def version(self) -> int:
        """The number of the last change."""
        return self._version

    def kinds(self) -> list[tuple[Resource, bool]]:
        """Every kind, and whether it has a status sub-resource."""
        with self._lock:
            return list(self._kinds.items())

    def kind(self, group: str, version: str, plural: str) -> Resource | None:
        """The kind at a path of the API."""
        for resource, _ in self.kinds():
            if (resource.group, resource.version, resource.plural) == (group, version, plural):
                return resource
        return None

    # -- reading ------------------------------------------------------------------------------------------

    def get(self, resource: Resource, name: str, namespace: str = "") -> Object:
        """:raises Refusal: there is none."""
        with self._lock:
            obj = self._objects.get(resource, {}).get((namespace, name))
        if obj is None:
            where = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
            raise Refusal(404, "NotFound", f'{where} "{name}" not found')
        return obj

    def select(self, resource: Resource, namespace: str, selects: Predicate) -> tuple[list[Object], int]:
        """What is selected, by name, and the number of the last change."""
        with self._lock:
            found = [
                obj
                for key, obj in sorted(self._objects.get(resource, {}).items())
                if namespace in ("", key[0]) and selects(obj)
            ]
            return found, self._version

    def changes(self, resource: Resource, namespace: str, since: int) -> tuple[list[Change], int]:
        """What has changed since a version, and the last one.

        :raises Refusal: it is forgotten (410).
        """
        with self._lock:
            oldest = self._changes[0].version - 1 if self._changes else self._version
            if not max(self._forgotten, oldest) <= since <= self._version:
                raise Refusal(410, "Expired", f"too old resource version: {since} ({self._version})")
            found = [
                change
                for change in self._changes
                if change.version > since and change.resource == resource and namespace in ("", change.key[0])
            ]
            return found, self._version

    def forget(self) -> None:
        """Forget all changes, as etcd does when it is compacted."""
        with self._lock:
            self._changes.clear()
            self._forgotten = self._version

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have ``listener`` called after each change, in whatever thread; the answer ends that."""
        with self._lock:
            self._listeners.append(listener)

        def end() -> None:
            with self._lock:
                self._listeners.remove(listener)

        return end

    # -- writing ------------------------------------------------------------------------------------------

    def create(self, resource: Resource, body: Mapping[str, Any], namespace: str = "") -> Object:
        """:raises Refusal: the name is taken, or there is none."""
        obj = deepcopy(dict(body))
        metadata = obj.setdefault("metadata", {})
        if "name" not in metadata and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)
        if not metadata.get("name"):
            raise Refusal(422, "Invalid", f"{resource.kind} is invalid: metadata.name: Required value")
        namespace = namespace or metadata.get("namespace", "") if resource.namespaced else ""
        if resource.namespaced:
            if not namespace:
                raise Refusal(400, "BadRequest", f"a {resource.kind} is made in a namespace")
            metadata["namespace"] = namespace
        key = (namespace, metadata["name"])
        with self._lock:
            if key in self._objects.get(resource, {}):
                raise Refusal(409, "AlreadyExists", f'{resource.plural} "{key[1]}" already exists')
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": self._now(), "generation": 1}
            if resource.group and self._kinds[resource]:
                obj.pop("status", None)  # a custom resource's is for its own sub-resource to write
            obj = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
            self._put(resource, key, obj)
            if resource is CRDS:
                self._define(obj)
        return obj

    def replace(
        self,
        resource: Resource,
        name: str,
        body: Mapping[str, Any],
        namespace: str = "",
        *,
        status: bool = False,
    ) -> Object:
        """Write the whole object, or only its status.

        :raises Refusal: there is none, or it has changed.
        """
        with self._lock:
            old = self.get(resource, name, namespace)
            return self._change(resource, (namespace, name), old, deepcopy(dict(body)), status=status)

    def patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        namespace: str = "",
        *,
        kind: str = "merge",
        status: bool = False,
    ) -> Object:
        """Change parts, ``merge`` or ``strategic``. ``apply`` makes the object if there is none and
        merges otherwise: who owns which field is not kept.

        :raises Refusal: there is none, or it has changed.
        """
        with self._lock:
            try:
                old = self.get(resource, name, namespace)
            except Refusal:
                if kind != "apply" or status:
                    raise
                return self.create(resource, merge({"metadata": {"name": name}}, patch), namespace)
            new = (strategic if kind == "strategic" else merge)(deepcopy(old), patch)
            return self._change(resource, (namespace, name), old, new, status=status)

    def delete(self, resource: Resource, name: str, namespace: str = "", *, uid: str = "") -> Object:
        """Delete, or mark as being deleted when finalizers are there.

        :raises Refusal: there is none, or it is another.
        """
        key = (namespace, name)
        with self._lock:
            old = self.get(resource, name, namespace)
            if uid and uid != old["metadata"]["uid"]:
                raise Refusal(409, "Conflict", f"the UID in the precondition ({uid}) is not that of {name}")
            if old["metadata"].get("finalizers"):
                if "deletionTimestamp" in old["metadata"]:
                    return old
                new = deepcopy(old)
                new["metadata"]["deletionTimestamp"] = self._now()
                self._put(resource, key, new)
                return new
            self._put(resource, key, None)
            if resource is CRDS:
                self._kinds = {kind: has for kind, has in self._kinds.items() if not _defined_by(old, kind)}
            return old

    def _change(self, resource: Resource, key: Key, old: Object, new: Object, *, status: bool) -> Object:
        wanted = str(new.get("metadata", {}).get("resourceVersion") or "")
        if wanted and wanted != old["metadata"]["resourceVersion"]:
            raise Refusal(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {resource.plural} "{key[1]}": '
                "the object has been modified; please apply your changes to the latest version and try again",
            )
        if status:
            # With a node's status its annotations may be written (nodeStatusStrategy in Kubernetes).
            changed = new["metadata"] if resource == NODES else old["metadata"]
            new = {**old, "metadata": changed, "status": new.get("status", {})}
        elif self._kinds[resource]:
            new = {**new, **({"status": old["status"]} if "status" in old else {})}
            if "status" not in old:
                new.pop("status", None)
        kept = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "generation")
        metadata = dict(new.get("metadata", {}))
        metadata |= {field: old["metadata"][field] for field in kept if field in old["metadata"]}
        if new.get("spec") != old.get("spec"):
            metadata["generation"] = old["metadata"]["generation"] + 1
        metadata["resourceVersion"] = old["metadata"]["resourceVersion"]
        new = {**new, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        if new == old:
            return old
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self._put(resource, key, None)
            return new
        self._put(resource, key, new)
        return new

    def _put(self, resource: Resource, key: Key, new: Object | None) -> None:
        old = self._objects.setdefault(resource, {}).get(key)
        self._version += 1
        if new is None:
            del self._objects[resource][key]
        else:
            new["metadata"]["resourceVersion"] = str(self._version)
            self._objects[resource][key] = new
        self._changes.append(Change(self._version, resource, key, old, new))
        for listener in self._listeners:
            listener()

    def _define(self, crd: Object) -> None:
        spec = crd["spec"]
        for version in spec["versions"]:
            resource = Resource(
                group=spec["group"],
                version=version["name"],
                plural=spec["names"]["plural"],
                kind=spec["names"]["kind"],
                namespaced=spec["scope"] == "Namespaced",
            )
            self._kinds[resource] = "status" in version.get("subresources", {})

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _defined_by(crd: Object, resource: Resource) -> bool:
    spec = crd["spec"]
    return bool((spec["group"], spec["names"]["plural"]) == (resource.group, resource.plural))
