"""Kubernetes, in plain dicts: the only package that imports the ``kubernetes`` client.

What a caller says and gets is JSON as the API reference has it; nothing of the client shows through::

    from terway_core.kube import KubeClient, Informer, Resource, PODS

    PODENIS = Resource(group="network.alibabacloud.com", version="v1beta1", plural="podenis", kind="PodENI")

    client = KubeClient(KubeConfig(enabled=True))     # InvalidConfig when there are no credentials
    pod = client.get(PODS, "web-0", "default")       # KubeNotFound, KubeUnavailable, KubeError
    client.create(PODENIS, {"metadata": {...}, "spec": {...}}, "default")   # KubeConflict: exists already
    client.patch(PODENIS, "web-0", {"spec": {...}}, "default")              # a merge patch
    client.patch(PODENIS, "web-0", {"status": {...}}, "default", subresource="status")
    client.replace(PODENIS, changed, "default")      # KubeConflict: changed since it was read
    client.delete(PODENIS, "web-0", "default")

    with Informer(client, PODENIS, on_change=changed) as podenis:   # list, then watch, resumed and relisted
        podenis.wait_synced(10)
        podenis.get("web-0", "default"), podenis.items()

    Election(client, "kube-system", "terway-controller", identity).run(lead, stop)

Errors are those of :mod:`terway_core.errors`: ``KubeError`` and below it ``KubeUnavailable``,
``KubeNotFound``, ``KubeConflict`` and ``KubeGone``; all are RetryLater, so a hook may let them pass.

Importing this package does not load the ``kubernetes`` client; making a :class:`KubeClient` does (35 MiB,
a quarter of a second). A daemon without Kubernetes never makes one.
"""

from terway_core.kube.client import KubeClient, Listing, Watch, WatchEvent
from terway_core.kube.election import Election
from terway_core.kube.informer import Informer
from terway_core.kube.resources import EVENTS, LEASES, NAMESPACES, NODES, PODS, SECRETS, Resource

__all__ = [
    "EVENTS",
    "LEASES",
    "NAMESPACES",
    "NODES",
    "PODS",
    "SECRETS",
    "Election",
    "Informer",
    "KubeClient",
    "Listing",
    "Resource",
    "Watch",
    "WatchEvent",
]
