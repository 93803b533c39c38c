"""A lab with Kubernetes: nodes that come up, and pods of two modes side by side on one node."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from terway_core.errors import KubeNotFound
from terway_core.kube import EVENTS, NODES, PODS
from terway_core.lab.build import down, status, up
from terway_core.lab.cluster import Cluster
from terway_core.lab.kubernetes import real
from terway_core.lab.nodes import terway
from terway_core.lab.paths import endpoints, measure
from terway_core.lab.runtime import PluginFailed, Runtime
from terway_core.lab.state import Lab, LabError, Spec
from tests.e2e.kube_apiserver import programs

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]
if os.geteuid() and not os.environ.get("CI"):
    pytestmark.append(pytest.mark.skip(reason="the lab needs root"))

TERWAY = str(Path(sysconfig.get_path("scripts")) / "terway")


@pytest.fixture(scope="module", params=["simulated", pytest.param("real", marks=pytest.mark.kubernetes)])
def lab(request, tmp_path_factory) -> Iterator[Lab]:
    if request.param == "real":
        programs()
    lab = Lab(tmp_path_factory.mktemp("lab"))
    spec = Spec(nodes=1, drivers=("eni", "eniip_veth"), kubernetes=request.param)
    up(lab, spec, lambda share, step: None)
    try:
        yield lab
    finally:
        down(lab)


@pytest.fixture
def cluster(lab: Lab) -> Cluster:
    return Cluster(lab)


@pytest.fixture
def runtime(lab: Lab) -> Runtime:
    return Runtime(lab.nodes[0])


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)
    return answer


def node_object(cluster: Cluster) -> dict[str, Any]:
    return cluster.call(lambda client: client.get(NODES, "node-1"))


def driver_of(lab: Lab, name: str) -> str:
    rows = json.loads(terway(lab.nodes[0], "pods", "list", "--json").stdout)
    return next(row["driver"] for row in rows if row["name"] == name)


def test_the_node_says_what_it_can(lab, cluster):
    assert all(health.state == "ready" for health in status(lab))

    def ready() -> bool:
        node = node_object(cluster)
        conditions = {one["type"]: one["status"] for one in node["status"].get("conditions", ())}
        taints = {taint["key"] for taint in node["spec"].get("taints", ())}
        return (
            conditions == {"NetworkUnavailable": "False", "SufficientIP": "True"}
            and "network.alibabacloud.com/not-ready" not in taints
        )

    wait_for(ready)
    assert node_object(cluster)["status"]["capacity"]["aliyun/eni"] == "2"  # of 3 ENIs one is the primary


def test_two_modes_on_one_node(lab, cluster, runtime):
    pods = [
        runtime.run_pod("plain", labels={"app": "web"}),
        runtime.run_pod("own-eni", requests={"aliyun/eni": "1"}),
    ]
    try:
        assert [driver_of(lab, pod.name) for pod in pods] == ["eniip_veth", "eni"]
        both = [endpoint for name, endpoint in endpoints(lab).items() if name in ("plain", "own-eni")]
        paths = measure([tuple(both), tuple(reversed(both))], timeout=3)
        assert len(paths) == 2
        assert all(path.milliseconds is not None for path in paths)

        found = cluster.call(lambda client: client.get(PODS, "plain", "default"))
        assert found["metadata"]["uid"] == pods[0].uid
        assert found["metadata"]["labels"] == {"app": "web"}
        assert found["status"]["podIP"] == str(pods[0].addresses[0])
        told = wait_for(
            lambda: [
                event["reason"]
                for event in cluster.call(lambda client: client.list(EVENTS, "default")).items
                if event["involvedObject"]["name"] == "own-eni"
            ]
        )
        assert told == ["AllocIPSucceed"]
        assert json.loads(terway(lab.nodes[0], "audit", "--json").stdout) == []
        assert json.loads(terway(lab.nodes[0], "doctor", "--json").stdout) == []
    finally:
        for pod in pods:
            runtime.remove_pod(pod)
    for pod in pods:
        with pytest.raises(KubeNotFound):
            cluster.call(lambda client, name=pod.name: client.get(PODS, name, "default"))


def test_a_pod_that_fails_leaves_no_object(cluster, runtime):
    annotations = {"kubernetes.io/ingress-bandwidth": "much"}  # which the daemon learns from the API server
    with pytest.raises(PluginFailed, match="ingress-bandwidth"):
        runtime.run_pod("wrong", annotations=annotations)
    with pytest.raises(KubeNotFound):
        cluster.call(lambda client: client.get(PODS, "wrong", "default"))


def test_a_name_that_is_taken(runtime):
    pod = runtime.run_pod("web", "shop")
    try:
        with pytest.raises(LabError, match="shop/web already"):
            runtime.run_pod("web", "shop")
    finally:
        runtime.remove_pod(pod)


def test_what_a_user_types(tmp_path):
    """With the pod CIDR of the node's object, and the API server that is at hand."""

    def run(*arguments: str) -> str:
        argv = [TERWAY, "lab", *arguments, "--dir", str(tmp_path / "lab")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    kind = "real" if real.find() else "simulated"
    try:
        lines = run("up", "--kubernetes", "--nodes", "1").splitlines()
        assert lines[0] == f"{kind} API server: kubeconfig {tmp_path / 'lab/kubernetes/kubeconfig'}"
        assert f"kind               {kind}" in run("env")
        line = run(
            "pod", "add", "node-1", "web", "--label", "a=b", "--annotation", "c=d", "--request", "e/f=1"
        )
        assert "172.20.1." in line
        pod = Cluster(Lab(tmp_path / "lab")).call(lambda client: client.get(PODS, "web", "default"))
        assert (pod["metadata"]["labels"], pod["metadata"]["annotations"]) == ({"a": "b"}, {"c": "d"})
        assert pod["spec"]["containers"][0]["resources"]["requests"] == {"e/f": "1"}
        run("pod", "delete", "web")
    finally:
        run("down")


def test_pods_without_kubernetes_have_no_labels(tmp_path):
    lab = Lab(tmp_path)
    with pytest.raises(LabError, match="only pods of Kubernetes"):
        Runtime(lab.node_files(1)).run_pod("web", labels={"a": "b"})
