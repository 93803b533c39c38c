"""Deployments, StatefulSets and Services for tests, and who reaches whom."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from terway_core.errors import KubeNotFound
from terway_core.kube import PODS, Resource
from terway_core.lab.ping import ping
from tests.e2e.containerd.image import NAME as IMAGE
from tests.kubernetes.cluster import Cluster, wait_for

DEPLOYMENTS = Resource(group="apps", version="v1", plural="deployments", kind="Deployment")
STATEFULSETS = Resource(group="apps", version="v1", plural="statefulsets", kind="StatefulSet")
SERVICES = Resource(group="", version="v1", plural="services", kind="Service")
ENDPOINTS = Resource(group="", version="v1", plural="endpoints", kind="Endpoints")

PORT = 8080
#: A web server that tells the pod's name; the kubelet asks it whether the pod is ready.
CONTAINER = {
    "name": "main",
    "image": IMAGE,
    "imagePullPolicy": "Never",
    "command": ["busybox", "sh", "-c"],
    "args": [f"busybox hostname > /name; exec busybox httpd -f -p {PORT} -h /"],
    "readinessProbe": {"httpGet": {"path": "/name", "port": PORT}, "periodSeconds": 1},
}


class Workload:
    """What one test has in the cluster, all in the namespace ``default``."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._made: list[tuple[Resource, str]] = []

    def deploy(self, app: str, replicas: int, **pod: Any) -> None:
        """Make a Deployment; its pods have the label ``app``.

        :param pod: more of the pods' spec.
        """
        self._create(DEPLOYMENTS, app, replicas, {}, pod)

    def deploy_stateful(self, app: str, replicas: int, labels: dict[str, str]) -> None:
        """Make a StatefulSet, whose pods come and go side by side.

        :param labels: more of the pods'.
        """
        options = {"serviceName": app, "podManagementPolicy": "Parallel"}
        self._create(STATEFULSETS, app, replicas, labels, {}, **options)

    def scale(self, app: str, replicas: int, resource: Resource = DEPLOYMENTS) -> None:
        """Have another number of pods."""
        patch = {"spec": {"replicas": replicas}}
        self.cluster.ask(lambda client: client.patch(resource, app, patch, "default"))

    def ready(self, app: str, count: int) -> list[dict[str, Any]]:
        """Wait until the app has exactly so many pods, all of them ready, and return them."""

        def ready() -> list[dict[str, Any]] | bool:
            pods = self.cluster.pods(app)
            return len(pods) == count and all(map(is_ready, pods)) and (pods or True)

        found = wait_for(ready, f"{count} ready pods of {app}")
        return found if isinstance(found, list) else []

    def expose(self, app: str) -> str:
        """Make a Service of the app's pods, and return its ClusterIP."""
        service = {
            "metadata": {"name": app},
            "spec": {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": PORT}]},
        }
        made = self.cluster.ask(lambda client: client.create(SERVICES, service, "default"))
        self._made.append((SERVICES, app))
        return str(made["spec"]["clusterIP"])

    def endpoints(self, app: str) -> list[str]:
        """The addresses behind a Service."""
        found = self.cluster.list(ENDPOINTS, "default", field_selector=f"metadata.name={app}")
        parts = [part for one in found for part in one.get("subsets", ())]
        return [address["ip"] for part in parts for address in part.get("addresses", ())]

    def unreached(
        self, sources: list[dict[str, Any]], targets: list[str], timeout: float = 20
    ) -> list[tuple[str, list[str]]]:
        """From which pods to which addresses no echo comes back."""
        namespaces = map(self.cluster.netns, sources)
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda netns: self.silent(netns, targets, timeout), namespaces)
            return [
                (pod["metadata"]["name"], silent)
                for pod, silent in zip(sources, found, strict=True)
                if silent
            ]

    def silent(self, netns: str, targets: list[str], timeout: float = 20) -> list[str]:
        """Which addresses do not answer in a network namespace."""

        def echo() -> list[str]:
            return [one for one in targets if ping(ip_address(one), timeout=timeout) is None]

        return self.cluster.inside(netns, echo)

    def get(self, pod: dict[str, Any], host: str, port: int) -> str:
        """What a web server says who it is, asked from a pod."""

        def get() -> str:
            connection = http.client.HTTPConnection(host, port, timeout=20)
            try:
                connection.request("GET", "/name")
                return connection.getresponse().read().decode().strip()
            finally:
                connection.close()

        return self.cluster.inside(self.cluster.netns(pod), get)

    def clear(self) -> None:
        """Delete all of it, and wait until the pods are gone.

        A kubelet tells of it half a minute later only, so the pods' objects are not waited for.
        """
        for resource, name in reversed(self._made):
            with suppress(KubeNotFound):
                self.cluster.ask(
                    lambda client, resource=resource, name=name: client.delete(resource, name, "default")
                )
        wait_for(
            lambda: all("deletionTimestamp" in pod["metadata"] for pod in self.cluster.list(PODS, "default")),
            "the end of all pods",
        )
        wait_for(lambda: not self.cluster.rows(), "the end of all networks")
        for pod in self.cluster.list(PODS, "default"):
            with suppress(KubeNotFound):
                name = pod["metadata"]["name"]
                self.cluster.ask(
                    lambda client, name=name: client.delete(PODS, name, "default", grace_seconds=0)
                )

    def _create(
        self,
        resource: Resource,
        app: str,
        replicas: int,
        labels: dict[str, str],
        pod: dict[str, Any],
        **spec: Any,
    ) -> None:
        template = {
            "metadata": {"labels": {"app": app, **labels}},
            "spec": {"containers": [CONTAINER], "terminationGracePeriodSeconds": 1, **pod},
        }
        body = {
            "metadata": {"name": app},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": app}},
                "template": template,
                **spec,
            },
        }
        self.cluster.ask(lambda client: client.create(resource, body, "default"))
        self._made.append((resource, app))


def is_ready(pod: dict[str, Any]) -> bool:
    """Whether the pod's web server answers, by the kubelet's word."""
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]
