"""Pods with ENIs of their own in a real cluster: who gets one, and addresses that outlive pods and nodes.

Whether the packets of such pods pass depends on the kernel, which must have VLANs; where it has none, the
kubelet tells why a pod does not start, and user-mode Linux is where packets are tested (tests/e2e).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from terway_driver_trunking import api

from terway_core.errors import KubeError
from terway_core.kube import EVENTS, NODES
from terway_core.registry import Drivers
from terway_core.types import Node
from tests.kubernetes.cluster import Cluster, wait_for
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.workload import STATEFULSETS, Workload

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]

KEPT = {"type": "Fixed", "releaseStrategy": "TTL", "releaseAfter": "10m0s"}
BRIEF = {"type": "Fixed", "releaseStrategy": "TTL", "releaseAfter": "5s"}


@pytest.fixture(scope="module")
def control(trunk_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ControlPlane:
    control = ControlPlane(trunk_cluster, tmp_path_factory.mktemp("control"))
    control.start()
    control.add_networking("elastic", type="Elastic")
    control.add_networking("kept", **KEPT)
    control.add_networking("brief", **BRIEF)
    return control


@pytest.fixture
def trunks(control: ControlPlane) -> Iterator[Workload]:
    workload = Workload(control.cluster)
    yield workload
    workload.clear()
    for podeni in control.cluster.list(api.PODENIS, "default"):
        name = podeni["metadata"]["name"]
        control.cluster.ask(lambda client, name=name: client.delete(api.PODENIS, name, "default"))
    wait_for(lambda: not control.members(), "all member ENIs are deleted")


def test_only_who_is_selected_gets_an_eni(control: ControlPlane, trunks: Workload) -> None:
    cluster = control.cluster
    trunks.deploy_stateful("own", 2, {"networking": "elastic"})
    trunks.deploy("plain", 2)
    plain = trunks.ready("plain", 2)
    own = control.bound("own", 2)
    for pod in plain:
        assert not {api.POD_ENI, api.POD_NETWORKING} & set(pod["metadata"].get("annotations", {}))
        assert (
            "resources" not in pod["spec"]["containers"][0] or not pod["spec"]["containers"][0]["resources"]
        )
    assert {eni.private_ip and str(eni.private_ip) for eni in control.members()} == {
        ip for _, ip in own.values()
    }

    if not Drivers.installed().preflight("trunking", Node(name="node-1")):
        pods = trunks.ready("own", 2)
        assert {pod["status"]["podIP"] for pod in pods} == {ip for _, ip in own.values()}
        assert trunks.unreached(pods + plain, [pod["status"]["podIP"] for pod in pods]) == []
        return

    def told() -> set[str]:
        return {
            event["involvedObject"]["name"]
            for event in cluster.list(EVENTS, "default")
            if event["reason"] == "FailedCreatePodSandBox" and "vlan" in event["message"].lower()
        }

    wait_for(lambda: set(own) <= told(), "the kubelet tells what the kernel lacks")


def test_what_no_schema_can_refuse(control: ControlPlane) -> None:
    with pytest.raises(KubeError, match="releaseAfter"):
        control.add_networking("wrong", type="Fixed", releaseStrategy="TTL")


def test_a_fixed_address_follows_its_pod(control: ControlPlane, trunks: Workload) -> None:
    cluster = control.cluster
    trunks.deploy_stateful("db", 2, {"networking": "kept"})
    first = control.bound("db", 2)
    assert {node for node, _ in first.values()} == set(cluster.nodes)
    on = {node: name for name, (node, _) in first.items()}
    addresses = {name: address for name, (_, address) in first.items()}

    # Made again.
    control.delete_pod("db-0")
    control.bound("db", 2)

    # To the other node.
    moved = on["node-1"]
    cluster.cordon("node-1", True)
    control.delete_pod(moved)
    wait_for(lambda: control.bound("db", 2)[moved][0] == "node-2", f"{moved} is on node-2")
    assert {name: ip for name, (_, ip) in control.bound("db", 2).items()} == addresses
    cluster.cordon("node-1", False)

    # The node is lost: nobody there tells that its pods have ended.
    node = cluster.nodes["node-2"]
    cluster.kill_kubelet(node)
    cluster.ask(lambda client: client.delete(NODES, node.name))
    for name in addresses:
        control.delete_pod(name, grace_seconds=0)
    after = control.bound("db", 2)
    assert after == {name: ("node-1", address) for name, address in addresses.items()}
    cluster.start_kubelet(node)
    wait_for(lambda: cluster.is_ready(node.name), "node-2 is back")


def test_a_fixed_address_is_released_in_time(control: ControlPlane, trunks: Workload) -> None:
    trunks.deploy_stateful("cache", 1, {"networking": "brief"})
    control.bound("cache", 1)
    trunks.scale("cache", 0, STATEFULSETS)
    wait_for(lambda: not control.cluster.list(api.PODENIS, "default"), "the PodENI goes")
    assert control.members() == []


def test_the_control_plane_is_killed_while_pods_come_and_go(control: ControlPlane, trunks: Workload) -> None:
    trunks.deploy_stateful("db", 3, {"networking": "kept"})
    trunks.deploy_stateful("own", 3, {"networking": "elastic"})

    def uids() -> dict[str, str]:
        pods = control.cluster.pods("db") + control.cluster.pods("own")
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}

    # While nobody answers the webhook, pods are made without an ENI: none is made then.
    before = wait_for(lambda: len(uids()) == 6 and uids(), "all pods are made")
    for name in ("own-0", "db-1", "own-2"):
        control.kill()
        control.start()
        control.delete_pod(name, grace_seconds=0)
        wait_for(lambda name=name: uids().get(name, before[name]) != before[name], f"{name} is made again")
    bound = control.bound("db", 3) | control.bound("own", 3)
    wait_for(lambda: len(control.members()) == len(bound), "one ENI for each pod and no other")
    assert sorted(str(eni.private_ip) for eni in control.members()) == sorted(ip for _, ip in bound.values())
