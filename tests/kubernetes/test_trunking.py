"""Pods with ENIs of their own in a real cluster: who gets one and whom it lets them reach, and addresses that
outlive pods and nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from terway_driver_trunking import api

from terway_core.errors import KubeError
from terway_core.kube import NODES
from tests.kubernetes.cluster import Cluster, wait_for
from tests.kubernetes.control_plane import ControlPlane, add_networking
from tests.kubernetes.workload import STATEFULSETS, Workload

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]

KEPT = {"type": "Fixed", "releaseStrategy": "TTL", "releaseAfter": "10m0s"}
BRIEF = {"type": "Fixed", "releaseStrategy": "TTL", "releaseAfter": "5s"}


@pytest.fixture(scope="module")
def control(trunk_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ControlPlane:
    control = ControlPlane(trunk_cluster, tmp_path_factory.mktemp("control"))
    control.start()
    add_networking(control.cluster, "elastic", type="Elastic")
    add_networking(control.cluster, "kept", **KEPT)
    add_networking(control.cluster, "brief", **BRIEF)
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
    """On each node are pods with an ENI in either security group, and one that nobody has selected."""
    cluster, blue = control.cluster, control.add_security_group("blue")
    add_networking(cluster, "blue", vswitch=1, security_group=blue, type="Elastic")
    for app, networking in (("own", "elastic"), ("blue", "blue")):
        trunks.deploy_stateful(app, 2, {"networking": networking})
    trunks.deploy("plain", 2)
    pods = {app: trunks.ready(app, 2) for app in ("own", "blue", "plain")}
    assert [{pod["spec"]["nodeName"] for pod in found} for found in pods.values()] == [{*cluster.nodes}] * 3

    for pod in pods["plain"]:
        assert not {api.POD_ENI, api.POD_NETWORKING} & set(pod["metadata"].get("annotations", {}))
        assert not pod["spec"]["containers"][0].get("resources")
    addresses = {app: {pod["status"]["podIP"] for pod in found} for app, found in pods.items()}
    enis = {str(eni.private_ip): eni for eni in control.members()}
    assert set(enis) == addresses["own"] | addresses["blue"]
    vswitches = [text.split("=")[0] for text in cluster.lab.env["region"]["vswitches"]]
    assert {enis[address].vswitch_id for address in addresses["own"]} == {vswitches[0]}
    assert {enis[address].vswitch_id for address in addresses["blue"]} == {vswitches[1]}

    together = pods["own"] + pods["plain"]
    assert trunks.unreached(together, sorted(addresses["own"] | addresses["plain"])) == []
    assert trunks.unreached(pods["blue"], sorted(addresses["blue"])) == []
    for some, others in (
        (together, addresses["blue"]),
        (pods["blue"], addresses["own"] | addresses["plain"]),
    ):
        silent = {pod["metadata"]["name"]: sorted(others) for pod in some}
        assert dict(trunks.unreached(some, sorted(others), timeout=0.5)) == silent


def test_what_no_schema_can_refuse(control: ControlPlane) -> None:
    with pytest.raises(KubeError, match="releaseAfter"):
        add_networking(control.cluster, "wrong", type="Fixed", releaseStrategy="TTL")


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
