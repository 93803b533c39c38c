"""The control plane of the trunking mode in a lab, installed and run as its README says, on node-1."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import yaml

from terway_core.lab.cluster import Cluster
from terway_core.lab.kubernetes.objects import CRDS
from terway_core.lab.nodes import configuration, executable
from terway_core.lab.process import Process, spawn
from terway_core.lab.state import Lab, LabError, open_netns, remember

#: The mode that has one; it has pods only in Kubernetes.
MODE: Final = "trunking"


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
    Cluster(lab).call(lambda client: [client.create(CRDS, manifest) for manifest in manifests])
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
