"""Trunking's control plane and a real kube-apiserver: its schemas, its role, its webhooks."""

from __future__ import annotations

import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
import yaml
from terway_driver_trunking import TrunkingDriver, crds, rbac, webhooks
from terway_driver_trunking.api import MEMBER_ENI, NODE, POD_UID, PODENIS, PODNETWORKINGS, TRUNK_ON
from terway_driver_trunking.controller import Controller, Settings
from terway_driver_trunking.podenis import PodEnis

from terway_core.config import Config, PoolConfig
from terway_core.errors import KubeError, KubeNotFound
from terway_core.kube import NODES, PODS, KubeClient
from terway_core.kube.cluster import Cluster
from terway_core.kube.rbac import NAME as ROLE
from terway_core.kube.rbac import manifests as role_manifests
from terway_core.kube.resources import Resource
from terway_core.types import Pod
from tests.e2e.kube_apiserver import RealApiServer, programs, running
from tests.unit.kube_server import wait_for
from tests.unit.trunking.world import CRDS, World, region_with_trunks

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]

#: As the description of the network modes has them.
POD_NETWORKING = """
apiVersion: network.alibabacloud.com/v1beta1
kind: PodNetworking
metadata:
  name: test-networking
spec:
  allocationType:
    type: Elastic/Fixed # one of the two
    releaseStrategy: TTL
    releaseAfter: "5m0s"
  selector:
    podSelector:
      matchLabels:
        foo: bar
    namespaceSelector:
      matchLabels:
        foo: bar
  vSwitchOptions:
    - vsw-aaa
  securityGroupIDs:
    - sg-aaa
"""
POD_ENI = """
apiVersion: network.alibabacloud.com/v1beta1
kind: PodENI
metadata:
  name: web-0
spec:
  allocation:
    eni:
      id: eni-bp16h6wuzpa9w2vdm5dn
      mac: 00:16:3e:0d:7b:c2
      zone: cn-hangzhou-i
    ipType:
      releaseAfter: 0s
      type: Elastic
    ipv4: 192.168.51.99
status:
  instanceID: i-bp1dkga3et5atja91ixt
  podLastSeen: "2021-07-19T11:23:55Z"
  status: Bind
  trunkENIID: eni-bp16h6wuzpa9utho0t2o
"""
FIXED = {"type": "Fixed", "releaseStrategy": "TTL", "releaseAfter": "5m0s"}


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Iterator[RealApiServer]:
    with running(programs(), tmp_path_factory.mktemp("apiserver"), webhooks.NAME, ROLE) as api:
        client = api.client()
        for manifest in crds.manifests():
            client.create(CRDS, manifest)
        for kind in (PODNETWORKINGS, PODENIS):
            wait_for(lambda kind=kind: is_served(client, kind))
        yield api


def is_served(client: KubeClient, kind: Resource) -> bool:
    try:
        client.list(kind)
    except KubeError:
        return False
    return True


@pytest.fixture
def client(api) -> Iterator[KubeClient]:
    client = api.client()
    yield client
    for networking in client.list(PODNETWORKINGS).items:
        client.delete(PODNETWORKINGS, networking["metadata"]["name"])
    client.close()


def networking(**spec: Any) -> dict[str, Any]:
    found = yaml.safe_load(POD_NETWORKING)
    found["spec"] |= {"allocationType": {"type": "Elastic"}} | spec
    return found


# -- schemas ------------------------------------------------------------------------------------------------


def test_the_definitions_are_structural(client):
    for manifest in crds.manifests():
        found = client.get(CRDS, manifest["metadata"]["name"])
        conditions = {one["type"]: one["status"] for one in found["status"]["conditions"]}
        assert conditions["Established"] == "True"
        assert "NonStructuralSchema" not in conditions
        # A field that it does not know it would have dropped.
        assert found["spec"]["versions"] == manifest["spec"]["versions"]


def test_the_pod_networking_of_the_description(client):
    document = yaml.safe_load(POD_NETWORKING)
    with pytest.raises(KubeError, match="Elastic/Fixed"):
        client.create(PODNETWORKINGS, document)
    for kind in ("Elastic", "Fixed"):
        document["spec"]["allocationType"]["type"] = kind
        made = client.create(PODNETWORKINGS, document)
        assert {key: made["spec"][key] for key in document["spec"]} == document["spec"]
        client.delete(PODNETWORKINGS, "test-networking")


def test_the_pod_eni_of_the_description(client):
    document = yaml.safe_load(POD_ENI)
    made = client.create(PODENIS, document, "default")
    try:
        assert made["spec"] == document["spec"]
        assert "status" not in made  # which is for its own sub-resource to write
        status = {"status": document["status"]}
        made = client.patch(PODENIS, "web-0", status, "default", subresource="status")
        assert made["status"] == document["status"]
        assert made["spec"] == document["spec"]
    finally:
        client.delete(PODENIS, "web-0", "default")


def test_defaults(client):
    spec = networking()
    del spec["spec"]["allocationType"]
    spec["spec"]["eniOptions"] = {}
    made = client.create(PODNETWORKINGS, spec)
    assert made["spec"]["allocationType"] == {"type": "Elastic"}
    assert made["spec"]["eniOptions"] == {"eniType": "Default"}


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"allocationType": FIXED | {"releaseAfter": "soon"}}, "releaseAfter"),
        ({"allocationType": FIXED | {"releaseAfter": "-5m"}}, "releaseAfter"),
        ({"allocationType": FIXED | {"releaseStrategy": "Later"}}, "releaseStrategy"),
        ({"securityGroupIDs": []}, "securityGroupIDs"),
        ({"securityGroupIDs": [f"sg-{number}" for number in range(11)]}, "securityGroupIDs"),
        ({"securityGroupIDs": None}, "securityGroupIDs"),
        ({"vSwitchOptions": []}, "vSwitchOptions"),
        ({"vSwitchOptions": ["sg-aaa"]}, "vSwitchOptions"),
        ({"vSwitchOptions": "vsw-aaa"}, "vSwitchOptions"),
        ({"selector": {"podSelector": {"matchLabels": {"a": 1}}}}, "matchLabels"),
        ({"selector": {"podSelector": {"matchExpressions": [{"operator": "In"}]}}}, "key"),
        ({"selector": {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}}, "operator"),
        ({"vSwitchSelectOptions": {"vSwitchSelectionPolicy": "worst"}}, "vSwitchSelectionPolicy"),
        ({"eniOptions": {"eniType": "Member"}}, "eniType"),
    ],
)
def test_what_is_refused(client, spec, complaint):
    with pytest.raises(KubeError, match=complaint) as caught:
        client.create(PODNETWORKINGS, networking(**spec))
    assert caught.value.status == 422


def test_unknown_fields_are_dropped(client):
    made = client.create(PODNETWORKINGS, networking(future={"a": 1}))
    assert "future" not in made["spec"]


# -- the control plane --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(api) -> Iterator[World]:
    """With the control plane running, under its own service account."""
    client = api.client()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    host = f"127.0.0.1:{port}"
    for manifest in [*rbac.manifests("kube-system"), *webhooks.manifests("kube-system", host)]:
        kind = KINDS[manifest["kind"]]
        client.create(kind, manifest, manifest["metadata"].get("namespace", ""))
    with region_with_trunks().served() as region:
        world = World(api, region)
        config = Config(kube=api.config_of(webhooks.NAME), pool=PoolConfig(cluster="c1"))
        settings = Settings(host=host, address="127.0.0.1", port=port)
        controller = Controller(config, region.client(), settings)
        stop = threading.Event()
        thread = threading.Thread(target=controller.run, args=(stop,))
        thread.start()
        try:
            wait_for(lambda: all(has_bundle(client, kind) for kind in WEBHOOKS) and is_ready(host))
            yield world
        finally:
            stop.set()
            thread.join(30)
            client.close()


_RBAC = "rbac.authorization.k8s.io"
WEBHOOKS = (webhooks.MUTATING, webhooks.VALIDATING)
KINDS = {
    kind.kind: kind
    for kind in (
        Resource(group="", version="v1", plural="serviceaccounts", kind="ServiceAccount"),
        *(
            Resource(group=_RBAC, version="v1", plural=f"{name.lower()}s", kind=name, namespaced=namespaced)
            for name, namespaced in (
                ("ClusterRole", False),
                ("ClusterRoleBinding", False),
                ("Role", True),
                ("RoleBinding", True),
            )
        ),
        *WEBHOOKS,
    )
}


def has_bundle(client: KubeClient, kind: Resource) -> bool:
    (webhook,) = client.get(kind, webhooks.NAME)["webhooks"]
    return bool(webhook["clientConfig"].get("caBundle"))


def is_ready(host: str) -> bool:
    """As a kubelet's probe, which does not look at certificates."""
    try:
        with urllib.request.urlopen(
            f"https://{host}/readyz", context=ssl._create_unverified_context(), timeout=20
        ) as answer:
            return answer.status == 200
    except OSError:
        return False


def phase(world: World, name: str = "db-0") -> str:
    podeni = world.podeni(name)
    return podeni.get("status", {}).get("phase", "") if podeni else "gone"


def make_pod(world: World, node: str = "node-1") -> dict[str, Any]:
    owners = [{"kind": "StatefulSet", "name": "db", "apiVersion": "apps/v1", "uid": "u"}]
    return world.api.add_pod("db-0", node, labels={"app": "db"}, ownerReferences=owners)


def test_a_pod_from_its_creation_to_its_end(world, client):
    """The API server asks the webhook, which nobody but the control plane's own service account feeds."""
    near = world.add_near_node()
    spec = {
        "vSwitchOptions": [world.region.zone_h.vswitch_id],
        "securityGroupIDs": [world.region.group],
        "selector": {"podSelector": {"matchLabels": {"app": "db"}}},
        "allocationType": deepcopy(FIXED),
    }
    body = {"metadata": {"name": "net"}, "spec": spec}
    spec["allocationType"]["releaseAfter"] = "0s"
    with pytest.raises(KubeError, match="TTL needs a time"):
        client.create(PODNETWORKINGS, body)
    spec["allocationType"]["releaseAfter"] = "2s"
    client.create(PODNETWORKINGS, body)
    wait_for(lambda: client.get(PODNETWORKINGS, "net").get("status", {}).get("status") == "Ready")

    pod = wait_for_selection(world, client)
    limits = pod["spec"]["containers"][0]["resources"]
    assert limits == {"limits": {"aliyun/member-eni": "1"}, "requests": {"aliyun/member-eni": "1"}}
    wait_for(lambda: phase(world) == "Bind")
    first = world.podeni()
    (eni,) = world.members_of()
    assert first["spec"]["allocations"][0]["eni"]["id"] == eni.network_interface_id
    assert first["status"]["eniInfos"][eni.network_interface_id]["vid"] == eni.device_index

    client.delete(PODS, "db-0", "default", grace_seconds=0)
    make_pod(world, near)
    wait_for(lambda: phase(world) == "Bind" and world.podeni()["status"]["trunkENIID"] == world.trunks[near])
    assert world.podeni()["metadata"]["uid"] == first["metadata"]["uid"]
    assert len(world.members_of()) == 1

    client.delete(PODS, "db-0", "default", grace_seconds=0)
    wait_for(lambda: phase(world) == "gone")
    assert world.members_of() == []


def wait_for_selection(world: World, client: KubeClient) -> dict[str, Any]:
    """The webhook learns by its watch that the PodNetworking is Ready."""

    def selected() -> dict[str, Any] | None:
        pod = make_pod(world)
        if "k8s.aliyun.com/pod-networking" in pod["metadata"].get("annotations", {}):
            return pod
        client.delete(PODS, "db-0", "default", grace_seconds=0)
        return None

    return wait_for(selected)


# -- the node's side ----------------------------------------------------------------------------------------


def test_a_node_has_the_rights_that_it_needs(api, client):
    """With the role that is printed for the driver it tells of its trunk and hears of its PodENIs."""
    config = Config(node_name="node-7", kube=api.config_of(ROLE))
    for manifest in role_manifests(config.kube, TrunkingDriver().terway_rbac()):
        client.create(KINDS[manifest["kind"]], manifest, manifest["metadata"].get("namespace", ""))
    api.add_node("node-7")
    cluster = Cluster(config)
    podenis = PodEnis(cluster.client, "node-7")
    pod = Pod(namespace="default", name="cart", uid="u1")
    podeni = {
        "metadata": {"name": "cart", "labels": {NODE: "node-7"}, "annotations": {POD_UID: "u1"}},
        "spec": {"allocations": [{"eni": {"id": "eni-1"}, "ipv4": "192.168.1.7", "interface": "eth0"}]},
    }
    bound = {
        "phase": "Bind",
        "trunkENIID": "eni-trunk",
        "eniInfos": {"eni-1": {"id": "eni-1", "type": "Member", "vid": 7, "status": "Bind"}},
    }
    cluster.node.annotate(TRUNK_ON, lambda: "eni-trunk")
    cluster.node.offer(MEMBER_ENI, lambda: 32)
    cluster.node.start()
    podenis.start()
    try:
        client.create(PODENIS, podeni, "default")
        client.patch(PODENIS, "cart", {"status": bound}, "default", subresource="status")
        assert podenis.member(pod, "eth0", "eni-trunk", timeout=30).vid == 7
        node = wait_for(lambda: (found := client.get(NODES, "node-7"))["status"].get("capacity") and found)
        assert node["metadata"]["annotations"][TRUNK_ON] == "eni-trunk"
        assert node["status"]["allocatable"] == {MEMBER_ENI: "32"}
        assert cluster.node.problem == ""
    finally:
        podenis.stop()
        cluster.node.stop()
        cluster.client.close()
        with suppress(KubeNotFound):  # the control plane takes it away as well: it has no pod
            client.delete(PODENIS, "cart", "default")
