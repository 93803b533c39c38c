"""Nodes of a lab: what a user would install and configure on a real one, and nothing that only a lab has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from typing import Any, Final

import yaml

from terway_core.cni.install import install_binary
from terway_core.config import load_config
from terway_core.lab import fabric
from terway_core.lab.process import Process, spawn
from terway_core.lab.state import LabError, NodeFiles, Spec, open_netns, remember


def _vpc_options(number: int, spec: Spec) -> dict[str, Any]:
    versions = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}[spec.ip_stack]
    own = {4: fabric.pod_cidr(number), 6: fabric.pod_ipv6_cidr(number)}
    cluster = {4: fabric.POD_CIDR, 6: fabric.POD_IPV6_CIDR}
    return {
        # With Kubernetes it is in the node's object.
        **({"pod_cidrs": [str(own[version]) for version in versions]} if spec.kubernetes == "none" else {}),
        "cluster_cidrs": [str(cluster[version]) for version in versions],
        "route_controller": True,
    }


def _pool(spec: Spec) -> dict[str, Any]:
    # A lab has few ENIs: nobody wants to wait half a minute for one that another pod has just left.
    return {"cluster": "lab", "ip_stack": spec.ip_stack, "cooldown": 5}


#: Modes whose pods get what they have from the pool of ENIs.
ENI_MODES: Final = frozenset({"eni", "eniip_ipvlan", "eniip_veth", "trunking"})

#: What a mode needs in its section of the configuration on the node with the given number.
_OPTIONS: Final[dict[str, Callable[[int, Spec], dict[str, Any]]]] = {
    "vpc": _vpc_options,
    # User-mode Linux has no nftables, and who plays kube-proxy in a lab can masquerade by other means.
    "eniip_ipvlan": lambda number, spec: {"masquerade": False},
    # Its control plane may share a slow kernel with everything else.
    "trunking": lambda number, spec: {"wait": 60},
}


def options(mode: str, number: int, spec: Spec) -> dict[str, Any]:
    """The section of a mode on the node with this number."""
    return _OPTIONS[mode](number, spec) if mode in _OPTIONS else {}


def configuration(node: NodeFiles, number: int, spec: Spec) -> dict[str, Any]:
    """The settings of the node's daemon."""
    endpoint = str(fabric.OPENAPI)
    services = (fabric.SERVICE_CIDR, *((fabric.SERVICE_IPV6_CIDR,) if spec.ip_stack != "ipv4" else ()))
    return {
        "drivers": list(spec.drivers),
        "options": {mode: found for mode in spec.drivers if (found := options(mode, number, spec))},
        **({"pool": _pool(spec)} if ENI_MODES & set(spec.drivers) else {}),
        "node_name": node.name,
        "service_cidrs": [str(cidr) for cidr in services],
        "state_dir": str(node.state_dir),
        "run_dir": str(node.run_dir),
        "cni_bin_dir": str(node.cni_bin_dir),
        "cni_conf_dir": str(node.cni_conf_dir),
        **(
            {"kube": {"enabled": True, "kubeconfig": str(node.kubeconfig)}}
            if spec.kubernetes != "none"
            else {}
        ),
        "cloud": {
            "region_id": fabric.REGION_ID,
            "vpc_endpoint": endpoint,
            "ecs_endpoint": endpoint,
            "protocol": "http",
        },
    }


def install(node: NodeFiles, number: int, spec: Spec) -> None:
    """Write the node's configuration and put the plugin into its folders, as ``terway cni install`` does."""
    for folder in (node.folder, node.state_dir, node.run_dir, node.cni_bin_dir, node.cni_conf_dir, node.pods):
        folder.mkdir(parents=True, exist_ok=True)
    node.config.write_text(yaml.safe_dump(configuration(node, number, spec), sort_keys=False))
    install_binary(load_config(node.config))  # the daemon sees to the conflist, once it can serve


def start_daemon(node: NodeFiles) -> Process:
    """Start the node's daemon. It is not ready yet when this returns."""
    argv = [executable(), "daemon", "--config", str(node.config)]
    with open_netns(node.netns) as namespace:
        process = spawn(namespace, argv, log=node.log)
    remember(node.folder, process)
    return process


def terway(node: NodeFiles, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a ``terway`` command on the node, as its operator would."""
    argv = [executable(), *arguments, "--config", str(node.config)]
    with open_netns(node.netns) as namespace:
        return namespace.run(subprocess.run, argv, capture_output=True, text=True)


def executable() -> str:
    """The ``terway`` command of this installation.

    :raises LabError: there is none.
    """
    places = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    if found := shutil.which("terway", path=os.pathsep.join(places)):
        return found
    raise LabError("the `terway` command is not installed; install it with: pip install terway-core")
