"""The control plane of the trunking mode in a lab, installed and run as its README says, on node-1."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from terway_core.errors import KubeNotFound
from terway_core.kube import NODES, KubeClient, Resource
from terway_core.lab.cluster import Cluster
from terway_core.lab.kubernetes.objects import CRDS
from terway_core.lab.nodes import configuration, executable
from terway_core.lab.process import Process, spawn
from terway_core.lab.state import Lab, LabError, open_netns, remember

#: The mode that has one; it has pods only in Kubernetes.
MODE: Final = "trunking"
PODNETWORKINGS: Final = Resource(
    group="network.alibabacloud.com",
    version="v1beta1",
    plural="podnetworkings",
    kind="PodNetworking",
    namespaced=False,
)
#: Seconds until a PodNetworking is Ready, and until the nodes have their trunk ENIs.
_LIMIT: Final = 90.0


def folder(lab: Lab) -> Path:
    """Where the lab keeps which process it is."""
    return lab.kubernetes_dir / MODE


def log(lab: Lab) -> Path:
    """What it writes."""
    return lab.kubernetes_dir / f"{MODE}.log"


def start(lab: Lab) -> Process:
    """Define its custom resources, and start it; it works when it has become the leader.

    :raises LabError: ``terway trunking crds`` failed.
    """
    done = subprocess.run([executable(), MODE, "crds"], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"terway {MODE} crds failed", details=done.stdout + done.stderr)
    manifests = list(yaml.safe_load_all(done.stdout))
    cluster = Cluster(lab)
    cluster.call(lambda client: [client.create(CRDS, manifest) for manifest in manifests])
    # A real API server needs a moment until it serves what was defined.
    _wait(lambda: cluster.call(_serves), f"the API does not serve {PODNETWORKINGS.plural}", lab.region_log)
    node = lab.nodes[0]
    settings = configuration(node, 1, lab.spec)
    settings["kube"] = {"enabled": True, "kubeconfig": str(lab.kubeconfig)}
    config = lab.kubernetes_dir / f"{MODE}.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    folder(lab).mkdir()
    # On a node: like a Pod with hostNetwork it has the credentials of the instance's role.
    with open_netns(node.netns) as namespace:
        process = spawn(namespace, [executable(), MODE, "controller", "--config", str(config)], log=log(lab))
    remember(folder(lab), process)
    return process


def add_networking(
    lab: Lab, name: str, vswitch_ids: Sequence[str], security_group_ids: Sequence[str]
) -> Mapping[str, str]:
    """Make a PodNetworking and wait until it can be used; return the annotations of pods that are its.

    The webhook would write them, but the simulated API server asks none.

    :raises LabError: it does not become Ready, or a node has no trunk ENI.
    """
    networking = {
        "metadata": {"name": name},
        "spec": {
            "selector": {"podSelector": {"matchLabels": {"networking": name}}},
            "vSwitchOptions": list(vswitch_ids),
            "securityGroupIDs": list(security_group_ids),
        },
    }
    cluster = Cluster(lab)
    cluster.call(lambda client: client.create(PODNETWORKINGS, networking))

    def is_ready(client: KubeClient) -> bool:
        found = client.get(PODNETWORKINGS, name)
        return bool(found.get("status", {}).get("status") == "Ready")

    def have_trunks(client: KubeClient) -> bool:
        capacities = [node.get("status", {}).get("capacity", {}) for node in client.list(NODES).items]
        return all(int(capacity.get("aliyun/member-eni", 0)) for capacity in capacities)

    _wait(lambda: cluster.call(is_ready), f"the PodNetworking {name} does not become Ready", log(lab))
    _wait(lambda: cluster.call(have_trunks), "a node has no trunk ENI", lab.nodes[0].log)
    return {"k8s.aliyun.com/pod-eni": "true", "k8s.aliyun.com/pod-networking": name}


def _serves(client: KubeClient) -> bool:
    try:
        client.list(PODNETWORKINGS)
    except KubeNotFound:
        return False
    return True


def _wait(condition: Callable[[], bool], problem: str, see: Path) -> None:
    deadline = time.monotonic() + _LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{problem} within {_LIMIT:.0f} s; see {see}")
        time.sleep(0.1)
