"""Which kinds of objects there are, and where the API has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """One kind of object.

    :param group: ``""`` is the core group.
    :param plural: its name in paths and in RBAC rules.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """What an object of this kind says in ``apiVersion``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, name: str = "", namespace: str = "", subresource: str = "") -> str:
        """The path of an object, or of all objects; without a namespace, of all namespaces."""
        parts = ["", "apis", self.group, self.version] if self.group else ["", "api", self.version]
        if namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def describe(self, name: str = "", namespace: str = "") -> str:
        """For messages: ``pods default/web-0``."""
        return " ".join(filter(None, [self.plural, "/".join(filter(None, [namespace, name]))]))


PODS: Final = Resource(group="", version="v1", plural="pods", kind="Pod")
NODES: Final = Resource(group="", version="v1", plural="nodes", kind="Node", namespaced=False)
NAMESPACES: Final = Resource(group="", version="v1", plural="namespaces", kind="Namespace", namespaced=False)
EVENTS: Final = Resource(group="", version="v1", plural="events", kind="Event")
SECRETS: Final = Resource(group="", version="v1", plural="secrets", kind="Secret")
ACCESS_REVIEWS: Final = Resource(
    group="authorization.k8s.io",
    version="v1",
    plural="selfsubjectaccessreviews",
    kind="SelfSubjectAccessReview",
    namespaced=False,
)
LEASES: Final = Resource(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease")
