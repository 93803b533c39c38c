"""The cluster of a lab: its API server, and what somebody who installs a cluster puts into it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from terway_core.config import KubeConfig
from terway_core.errors import KubeConflict, KubeError
from terway_core.kube import NAMESPACES, NODES, KubeClient, Resource
from terway_core.kube.rbac import manifests
from terway_core.lab import fabric
from terway_core.lab.api import Region
from terway_core.lab.kubernetes import real
from terway_core.lab.process import Process
from terway_core.lab.state import Lab, NodeFiles, open_netns
from terway_core.registry import Drivers

T = TypeVar("T")

#: What a node registers with, so that no pod is scheduled there too early.
TAINT: Final = {"key": KubeConfig().not_ready_taint, "effect": "NoSchedule"}
_RBAC: Final = "rbac.authorization.k8s.io"
_KINDS: Final = {
    kind.kind: kind
    for kind in (
        Resource(group="", version="v1", plural="serviceaccounts", kind="ServiceAccount"),
        Resource(group=_RBAC, version="v1", plural="clusterroles", kind="ClusterRole", namespaced=False),
        Resource(
            group=_RBAC,
            version="v1",
            plural="clusterrolebindings",
            kind="ClusterRoleBinding",
            namespaced=False,
        ),
    )
}


class Cluster:
    """The API server of a lab that was asked for one."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.folder = lab.kubernetes_dir
        self._real = lab.spec.kubernetes == "real"
        self._tokens: dict[str, str] = {}

    def start(self) -> list[tuple[str, Process, Path]]:
        """Start what is not a part of the region's process; the name, process and log of each.

        :raises LabError: a program is missing.
        """
        self.folder.mkdir(mode=0o700)
        self._tokens = {who: secrets.token_hex(16) for who in ("admin", "daemon")}
        started = []
        if self._real and (programs := real.find()):
            started += [
                ("etcd", real.start_etcd(self._lab, programs), self.folder / "etcd.log"),
                (
                    "kube-apiserver",
                    real.start_apiserver(self._lab, programs, self._tokens),
                    self.folder / "apiserver.log",
                ),
            ]
        self._write_kubeconfig(self._lab.kubeconfig, "admin")
        return started

    def serves(self) -> bool:
        """Whether namespaces are there, without which nothing can be made."""
        if self._real and not self._certificate.exists():
            return False
        try:
            names = self.call(lambda client: [ns["metadata"]["name"] for ns in client.list(NAMESPACES).items])
        except KubeError:
            return False
        return {"default", "kube-system"} <= set(names)

    def populate(self) -> None:
        """The daemon's role, and the nodes: registered, not ready, and each with a pod CIDR."""
        region = Region.load(self._lab.region_state)
        instances = {one.name: one for one in region.instances.values()}
        drivers = Drivers.installed()
        of_drivers = [rule for mode in self._lab.spec.drivers for rule in drivers.rbac(mode)]

        def make(client: KubeClient) -> None:
            for manifest in manifests(KubeConfig(), of_drivers):
                kind = _KINDS[manifest["kind"]]
                namespace = manifest["metadata"].get("namespace", "")
                client.create(kind, manifest, namespace)
            for number, node in enumerate(self._lab.nodes, 1):
                instance = instances[node.name]
                client.create(NODES, self._node(node, number, instance.instance_id, instance.instance_type))

        self.call(make)

    def install(self, node: NodeFiles) -> None:
        """Give a node the credentials of its daemon."""
        self._write_kubeconfig(node.kubeconfig, "daemon")

    def call(self, function: Callable[[KubeClient], T]) -> T:
        """Ask the API as an administrator does.

        :raises KubeError: it refuses, or does not answer.
        """

        def ask() -> T:
            with closing(
                KubeClient(KubeConfig(kubeconfig=self._lab.kubeconfig), component="terway-lab")
            ) as c:
                return function(c)

        with open_netns(self._lab.netns("switch")) as switch:
            return switch.run(ask)

    @property
    def server(self) -> str:
        """The API's address."""
        scheme = "https" if self._real else "http"
        return f"{scheme}://{fabric.KUBERNETES}:{fabric.KUBERNETES_PORT}"

    @property
    def _certificate(self) -> Path:
        return self.folder / "apiserver.crt"

    def _write_kubeconfig(self, path: Path, who: str) -> None:
        authority = {"certificate-authority": str(self._certificate)} if self._real else {}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": self.server, **authority}}],
            "users": [{"name": who, "user": {"token": self._tokens[who]}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": who}}],
            "current-context": "lab",
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config, sort_keys=False))

    def _node(self, node: NodeFiles, number: int, instance_id: str, instance_type: str) -> dict[str, Any]:
        versions = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}[self._lab.spec.ip_stack]
        own = {4: fabric.pod_cidr(number), 6: fabric.pod_ipv6_cidr(number)}
        cidrs = [str(own[version]) for version in versions]
        labels = {
            "kubernetes.io/hostname": node.name,
            "node.kubernetes.io/instance-type": instance_type,
            "topology.kubernetes.io/region": fabric.REGION_ID,
            "topology.kubernetes.io/zone": fabric.ZONE_ID,
        }
        return {
            "metadata": {"name": node.name, "labels": labels},
            "spec": {
                "podCIDR": cidrs[0],
                "podCIDRs": cidrs,
                "providerID": f"{fabric.REGION_ID}.{instance_id}",
                "taints": [TAINT],
            },
        }


def ensure_namespace(client: KubeClient, name: str) -> None:
    """Make a namespace unless it is there."""
    with suppress(KubeConflict):
        client.create(NAMESPACES, {"metadata": {"name": name}})
