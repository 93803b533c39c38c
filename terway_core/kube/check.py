"""Comparisons with the cluster, for ``terway audit`` and ``terway doctor``; they change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

from terway_core.config import Config
from terway_core.errors import InvalidConfig, KubeError, KubeNotFound
from terway_core.kube.client import KubeClient
from terway_core.kube.pods import is_same, needs_network, pods_of
from terway_core.kube.rbac import Rule, rules
from terway_core.kube.resources import ACCESS_REVIEWS, NODES, PODS
from terway_core.record import Record, State
from terway_core.types import Problem


def audit_pods(config: Config, records: Iterable[Record]) -> list[str]:
    """Each difference between the journal and the node's pods in one line."""
    try:
        with closing(KubeClient(config.kube)) as client:
            found = client.list(PODS, field_selector=pods_of(config.node_name)).items
    except (KubeError, InvalidConfig) as error:
        return [f"kubernetes: pods are not known: {error}"]
    attached = [record.attachment.pod for record in records if record.state is State.READY]
    lines = [
        f"kubernetes: pod {pod} is attached, but the API server does not have it on this node"
        for pod in attached
        if pod.namespace and pod.name and not any(is_same(obj, pod) for obj in found)
    ]
    lines += [
        f"kubernetes: pod {obj['metadata']['namespace']}/{obj['metadata']['name']} runs on this node "
        "without an attachment"
        for obj in found
        if needs_network(obj) and not any(is_same(obj, pod) for pod in attached)
    ]
    return lines


def examine(config: Config, of_drivers: Iterable[Rule] = ()) -> list[Problem]:
    """What keeps the daemon from working with the cluster.

    :param of_drivers: what the configured drivers need (``terway_rbac``).
    """
    try:
        client = KubeClient(config.kube)
    except InvalidConfig as error:
        remedy = "set kube.kubeconfig, or run as a pod with a service account"
        return [Problem(summary=str(error), remedy=remedy)]
    with closing(client):
        return list(_examine(config, client, of_drivers))


def _examine(config: Config, client: KubeClient, of_drivers: Iterable[Rule]) -> Iterator[Problem]:
    try:
        client.get(NODES, config.node_name)
    except KubeNotFound:
        remedy = "set node_name to the name that `kubectl get nodes` shows"
        yield Problem(summary=f"the cluster has no node {config.node_name!r}", remedy=remedy)
        return
    except KubeError as error:
        remedy = "see that the API server runs, is reached from here, and accepts the credentials"
        yield Problem(summary=str(error), remedy=remedy)
        return
    for rule in rules(config.kube, of_drivers):
        for verb in rule["verbs"]:
            resource, _, subresource = rule["resources"][0].partition("/")
            wanted = {
                "group": rule["apiGroups"][0],
                "verb": verb,
                "resource": resource,
                "subresource": subresource,
            }
            try:
                answer = client.create(ACCESS_REVIEWS, {"spec": {"resourceAttributes": wanted}})
            except KubeError as error:
                yield Problem(summary=str(error), remedy="see what the API server's log says")
                return
            if not answer.get("status", {}).get("allowed"):
                yield Problem(
                    summary=f"the API server does not allow us to {verb} {rule['resources'][0]}",
                    remedy="apply what this prints: terway kube rbac",
                )
