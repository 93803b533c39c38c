"""A cluster for the conformance suite: the real client against the simulated API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terway_core.config import Config, KubeConfig
from terway_core.kube.cluster import Cluster
from terway_core.kube.resources import Resource
from terway_core.lab.api import serving
from terway_core.lab.kubernetes import Objects, build_app
from terway_core.lab.kubernetes.objects import CRDS

__all__ = ["SimulatedCluster", "definition", "simulated_cluster"]


@dataclass(frozen=True, slots=True)
class SimulatedCluster:
    """A ``Services.kube`` that nobody has started, so it writes nothing itself, and what the API has."""

    cluster: Cluster
    objects: Objects

    def define(self, resource: Resource) -> None:
        """Make the API serve a custom resource."""
        self.objects.create(CRDS, definition(resource))

    def write(self, resource: Resource, obj: dict[str, Any]) -> None:
        """Put an object of a custom resource there, its status too."""
        name, namespace = obj["metadata"]["name"], obj["metadata"].get("namespace", "")
        self.objects.create(resource, obj, namespace)
        self.objects.patch(resource, name, {"status": obj["status"]}, namespace, status=True)


def definition(resource: Resource) -> dict[str, Any]:
    """A custom resource definition that the simulated API server takes."""
    names = {"plural": resource.plural, "kind": resource.kind}
    version = {"name": resource.version, "subresources": {"status": {}}}
    scope = "Namespaced" if resource.namespaced else "Cluster"
    return {
        "metadata": {"name": f"{resource.plural}.{resource.group}"},
        "spec": {"group": resource.group, "names": names, "scope": scope, "versions": [version]},
    }


@contextmanager
def simulated_cluster(folder: Path, node: str = "node-1") -> Iterator[SimulatedCluster]:
    """A cluster as the node of this name sees it; ``folder`` is for its kubeconfig file."""
    objects = Objects()
    with serving(build_app(objects)) as endpoint:
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "lab", "cluster": {"server": f"http://{endpoint}"}}],
                    "users": [{"name": "node", "user": {}}],
                    "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "node"}}],
                    "current-context": "lab",
                }
            )
        )
        cluster = Cluster(Config(node_name=node, kube=KubeConfig(enabled=True, kubeconfig=kubeconfig)))
        try:
            yield SimulatedCluster(cluster, objects)
        finally:
            cluster.client.close()
