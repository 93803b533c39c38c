"""Pods of a Deployment: each is reached from each, and by a Service; nothing is left of them."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from terway_core.kube import EVENTS
from tests.kubernetes.cluster import Cluster, wait_for
from tests.kubernetes.service_proxy import serving
from tests.kubernetes.workload import PORT, Workload

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]


def test_twenty_pods_on_two_nodes(cluster: Cluster, workload: Workload, tmp_path: Path) -> None:
    nodes = list(cluster.nodes.values())
    before = {node.name: node.traces() for node in nodes}
    workload.deploy("web", 20)
    pods = workload.ready("web", 20)
    names = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in pods}
    assert set(names.values()) == set(cluster.nodes)
    addresses = [pod["status"]["podIP"] for pod in pods]
    assert len(set(addresses)) == 20
    assert workload.unreached(pods, addresses) == []

    service = workload.expose("web")
    wait_for(lambda: sorted(workload.endpoints("web")) == sorted(addresses), "all pods behind the Service")
    with serving(nodes, tmp_path, service, 80, addresses, PORT):
        one_each = {pod["spec"]["nodeName"]: pod for pod in pods}
        for pod in one_each.values():
            # One after the other answers, thus all of them, the pod itself among them.
            answers = Counter(workload.get(pod, service, 80) for _ in range(20))
            assert answers == Counter(names.keys())
    for node in nodes:
        node.audit()

    workload.scale("web", 0)
    wait_for(lambda: not cluster.rows(), "no address is in use")
    for node in nodes:
        node.audit()
        # ENIs stay, with their routes: they serve the next pods.
        left = {name: list(after - before[node.name][name]) for name, after in node.traces().items()}
        assert [line for line in left["links"] if not re.match(r"\d+: eth", line)] == []
        assert left["rules"] == []


def test_a_fresh_node_gets_no_pod_before_it_serves(cluster: Cluster, workload: Workload) -> None:
    node = cluster.nodes["node-2"]
    fresh = cluster.forget(node)
    cluster.start_kubelet(node)
    wait_for(lambda: cluster.is_registered(node.name), "the kubelet registers its node")
    assert {taint["key"] for taint in cluster.node(node.name)["spec"]["taints"]} >= {fresh}
    # Our taint alone decides: the one that Kubernetes itself puts on such a node is tolerated.
    others = [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]
    workload.deploy("web", 2, nodeSelector={"kubernetes.io/hostname": node.name}, tolerations=others)

    def refused() -> bool:
        conditions = [one for pod in cluster.pods("web") for one in pod["status"].get("conditions", ())]
        return [one.get("reason") for one in conditions] == ["Unschedulable"] * 2

    wait_for(refused, "the scheduler refuses the pods")
    node.start_daemon()
    pods = workload.ready("web", 2)
    found = cluster.node(node.name)
    conditions = {one["type"]: (one["status"], one["reason"]) for one in found["status"]["conditions"]}
    assert conditions["NetworkUnavailable"] == ("False", "TerwayReady")
    assert conditions["SufficientIP"][0] == "True"
    wait_for(lambda: cluster.is_ready(node.name), f"{node.name} takes pods")
    names = {pod["metadata"]["name"] for pod in pods}
    failed = [
        event["message"]
        for event in cluster.list(EVENTS, "default")
        if event["involvedObject"]["name"] in names and event["reason"] == "FailedCreatePodSandBox"
    ]
    assert failed == []


def test_pods_run_on_while_the_daemon_is_killed(cluster: Cluster, workload: Workload) -> None:
    workload.deploy("web", 4)
    pods = workload.ready("web", 4)
    before = {pod["metadata"]["uid"]: pod["status"]["containerStatuses"] for pod in pods}
    addresses = [pod["status"]["podIP"] for pod in pods]
    source = cluster.netns(pods[0])
    over = threading.Event()

    def ask_on() -> list[str]:
        lost = []
        while not over.is_set():
            lost += workload.silent(source, addresses)
        return lost

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_on)
        try:
            for node in cluster.nodes.values():
                node.kill_daemon()
                node.start_daemon()
        finally:
            over.set()
        assert asking.result() == []
    after = {pod["metadata"]["uid"]: pod["status"]["containerStatuses"] for pod in cluster.pods("web")}
    assert after == before
    for node in cluster.nodes.values():
        node.audit()


def test_the_api_server_is_away_under_churn(cluster: Cluster, workload: Workload) -> None:
    """Pods that were just asked for, pods that were just deleted, and sandboxes that die meanwhile."""
    workload.deploy("old", 6)
    workload.deploy("web", 4)
    workload.ready("old", 6)
    pods = workload.ready("web", 4)
    workload.scale("old", 0)
    workload.scale("web", 14)
    wait_for(lambda: len(cluster.pods("web")) > 6, "some of the new pods are made")
    start_again = cluster.kill_apiserver()
    away_until = time.monotonic() + 60
    for pod in pods[:2]:
        cluster.kill_sandbox(pod)
    time.sleep(max(0.0, away_until - time.monotonic()))
    start_again()
    wait_for(cluster.answers, "the API server answers again")
    ready = workload.ready("web", 14)
    addresses = [pod["status"]["podIP"] for pod in ready]
    assert len(set(addresses)) == 14

    def in_use() -> list[str]:
        return sorted(address for row in cluster.rows() for address in row["addresses"])

    wait_for(lambda: in_use() == sorted(addresses), "nothing is in use but what the pods have")
    assert workload.unreached(ready[:2], addresses) == []
    for node in cluster.nodes.values():
        node.audit()
