"""What ``terway manifests`` prints, applied to new nodes: all of terway comes from an image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from terway_driver_trunking.api import POD_ENI
from terway_driver_trunking.webhooks import NAME as CONTROL_PLANE

from terway_core.errors import KubeError
from terway_core.kube.rbac import NAME as DAEMON
from terway_core.kube.resources import Resource
from terway_core.lab.kubernetes.real import ENV_ASSETS
from tests.e2e.containerd.machine import Machine
from tests.kubernetes.cluster import wait_for
from tests.kubernetes.control_plane import add_networking
from tests.kubernetes.image import write_image
from tests.kubernetes.image_cluster import ImageCluster
from tests.kubernetes.workload import Workload

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]

DRIVERS = ("trunking", "eniip_veth")
DAEMONSETS = Resource(group="apps", version="v1", plural="daemonsets", kind="DaemonSet")


@pytest.fixture(scope="module")
def cluster(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageCluster]:
    folder = tmp_path_factory.mktemp("image")
    archive = write_image(folder, DRIVERS)
    with pytest.MonkeyPatch.context() as patch, Machine(f"terway-k8s-image-{os.getpid()}") as machine:
        patch.setenv(ENV_ASSETS, str(programs))
        options = ("--instance-type", "ecs.g7.4xlarge")
        cluster = ImageCluster(machine, folder, programs, archive, ",".join(DRIVERS), *options)
        yield cluster
        cluster.close()


@pytest.fixture
def workload(cluster: ImageCluster) -> Iterator[Workload]:
    workload = Workload(cluster)
    yield workload
    workload.clear()


def test_it_comes_up(cluster: ImageCluster) -> None:
    """That nodes are ready, the cluster has waited for."""
    for app in (DAEMON, CONTROL_PLANE):
        pods = wait_for(
            lambda app=app: len(found := cluster.ready(app)) == 2 and found, f"{app} on each node"
        )
        assert {pod["spec"]["nodeName"] for pod in pods} == set(cluster.nodes)
    for node in cluster.nodes.values():
        assert {file.name for file in node.cni_conf_dir.iterdir()} == {"10-terway.conflist"}
        assert (node.cni_bin_dir / "terway").read_bytes().startswith(b"\x7fELF")


def test_pods_have_networks_while_the_daemons_are_replaced(cluster: ImageCluster, workload: Workload) -> None:
    workload.deploy("web", 6)
    pods = workload.ready("web", 6)
    addresses = [pod["status"]["podIP"] for pod in pods]
    assert workload.unreached(pods, addresses) == []
    before = {pod["metadata"]["uid"]: pod["status"]["containerStatuses"] for pod in pods}

    netns = cluster.netns(pods[0])
    old = {pod["metadata"]["uid"] for pod in cluster.ready(DAEMON)}
    restart = {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}
    patch = {"spec": {"template": restart}}
    cluster.ask(lambda client: client.patch(DAEMONSETS, DAEMON, patch, "kube-system"))

    def replaced() -> bool:
        assert workload.silent(netns, addresses) == []
        new = {pod["metadata"]["uid"] for pod in cluster.ready(DAEMON)}
        return len(new) == 2 and not new & old

    wait_for(replaced, "each daemon is another")
    after = {pod["metadata"]["uid"]: pod["status"]["containerStatuses"] for pod in workload.ready("web", 6)}
    assert after == before
    for node in cluster.nodes.values():
        node.audit()
    workload.scale("web", 8)
    workload.ready("web", 8)


def test_the_webhook_is_asked_by_its_service(cluster: ImageCluster, workload: Workload) -> None:
    with pytest.raises(KubeError, match="TTL needs a time"):
        add_networking(cluster, "wrong", type="Fixed", releaseStrategy="TTL", releaseAfter="0s")
    add_networking(cluster, "own", type="Elastic")
    workload.deploy_stateful("own", 2, {"networking": "own"})
    workload.deploy("web", 2)
    own, web = workload.ready("own", 2), workload.ready("web", 2)
    selected = [POD_ENI in pod["metadata"].get("annotations", {}) for pod in own + web]
    assert selected == [True, True, False, False]
    assert workload.unreached(own + web, [pod["status"]["podIP"] for pod in own + web]) == []


def test_the_printed_roles_suffice(cluster: ImageCluster) -> None:
    """Nobody was refused anything by the API server."""
    logs = cluster.logs()
    assert len(logs) >= 2 * 3  # with the containers that put the plugin there
    told = [f"{name}: {line}" for name, log in logs.items() for line in log.splitlines()]
    assert [line for line in told if "forbidden" in line.lower()] == []
