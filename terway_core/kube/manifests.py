"""What a cluster runs for terway: the daemon on each node, and what drivers have beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from terway_core.config import Config
from terway_core.kube.rbac import NAME, Rule
from terway_core.kube.rbac import manifests as rbac
from terway_core.wiring.netns import NETNS_DIR

Manifest = dict[str, Any]

#: Where each container has the configuration: a file of the ConfigMap.
_CONFIG_DIR: Final = PurePosixPath("/etc/terway")
_CONFIG_FILE: Final = "config.yaml"


def daemon(config: Config, image: str, of_drivers: Iterable[Rule] = ()) -> list[Manifest]:
    """The daemon: service account and role, the configuration of all nodes, and a DaemonSet.

    :param image: one in which ``terway`` and the drivers are installed.
    :param of_drivers: what the configured drivers need of the API (``terway_rbac``).
    """
    metadata = {"name": NAME, "namespace": config.kube.namespace}
    return [
        *rbac(config.kube, of_drivers),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {_CONFIG_FILE: _settings(config)},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": metadata,
            "spec": {"selector": {"matchLabels": {"app": NAME}}, "template": _daemon(config, image)},
        },
    ]


def pod_template(config: Config, name: str, containers: list[Manifest], **spec: Any) -> Manifest:
    """The template of pods that are there before pods have a network: with the node's, and its DNS.

    :param name: of the service account, and the label ``app``.
    :param containers: made by :func:`container`.
    :param spec: more of the pods' specification.
    """
    return {
        "metadata": {
            "labels": {"app": name},
            # Other settings are another template, so the pods are replaced.
            "annotations": {"terway/settings": hashlib.sha256(_settings(config).encode()).hexdigest()},
        },
        "spec": {
            "serviceAccountName": name,
            "hostNetwork": True,
            "dnsPolicy": "Default",
            "containers": containers,
            **spec,
            "volumes": [{"name": "config", "configMap": {"name": NAME}}, *spec.get("volumes", ())],
        },
    }


def container(name: str, image: str, command: Iterable[str], **more: Any) -> Manifest:
    """A container that runs ``terway COMMAND`` with the configuration.

    :param more: more of it, such as ``volumeMounts``.
    """
    return {
        "name": name,
        "image": image,
        "command": ["terway", *command, "--config", str(_CONFIG_DIR / _CONFIG_FILE)],
        **more,
        "volumeMounts": [
            {"name": "config", "mountPath": str(_CONFIG_DIR), "readOnly": True},
            *more.get("volumeMounts", ()),
        ],
    }


def _daemon(config: Config, image: str) -> Manifest:
    folders = {
        "state": config.state_dir,
        "run": config.run_dir,
        "cni-bin": config.cni_bin_dir,
        "cni-conf": config.cni_conf_dir,
        "netns": NETNS_DIR,
    }
    mounts = [_mount(name, path) for name, path in folders.items()]
    # Namespaces that the runtime makes later must be seen too.
    mounts[-1]["mountPropagation"] = "HostToContainer"
    (binaries,) = (mount for mount in mounts if mount["name"] == "cni-bin")
    serve = container(
        NAME,
        image,
        ["daemon"],
        # Sysctls and namespaces of pods: no set of capabilities opens /proc/sys.
        securityContext={"privileged": True},
        env=[{"name": "TERWAY_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        resources={"requests": {"cpu": "100m", "memory": "128Mi"}},
        readinessProbe={
            "exec": {"command": ["terway", "status", "--config", str(_CONFIG_DIR / _CONFIG_FILE)]},
            "periodSeconds": 30,
            "timeoutSeconds": 10,
        },
        volumeMounts=mounts,
    )
    install = container("install", image, ["cni", "install", "--no-conflist"], volumeMounts=[binaries])
    return pod_template(
        config,
        NAME,
        [serve],
        initContainers=[install],
        priorityClassName="system-node-critical",
        tolerations=[{"operator": "Exists"}],
        volumes=[
            {"name": name, "hostPath": {"path": str(path), "type": "DirectoryOrCreate"}}
            for name, path in folders.items()
        ],
    )


def _mount(name: str, path: Path) -> Manifest:
    return {"name": name, "mountPath": str(path)}


def _settings(config: Config) -> str:
    """What differs from the defaults and is the same on all nodes."""
    # A node's name comes from the environment, and the way to the API from the service account.
    data = config.model_dump(
        mode="json", exclude_unset=True, exclude={"node_name": True, "kube": {"kubeconfig": True}}
    )
    return yaml.safe_dump(data, sort_keys=False)
