"""A daemon in a cluster: what it learns of its pods, what it tells, what it does without the API server."""

import json

import pytest

from terway_core.kube import EVENTS, NODES, PODS
from terway_core.kube.rbac import rules
from terway_core.kube.resources import ACCESS_REVIEWS
from terway_core.wiring.netns import Namespace
from tests.unit.kube_server import ApiServer

pytestmark = pytest.mark.kernel

TAINT = {"key": "network.alibabacloud.com/not-ready", "effect": "NoSchedule"}
#: Without this node's pod CIDR.
OPTIONS = {"vpc": {"cluster_cidrs": ["172.20.0.0/16"], "rest_seconds": 0}}


@pytest.fixture
def server(tmp_path):
    server = ApiServer(tmp_path)
    yield server
    server.go()


@pytest.fixture
def make(make_node, server):
    """A node whose API server is on its own loopback."""

    def make(*, kube=None, **settings):
        kube = {"enabled": True, "kubeconfig": str(server.kubeconfig()), **(kube or {})}
        node = make_node(kube=kube, **settings)

        def there(function):
            with Namespace.open(node.netns) as namespace:
                namespace.run(function)

        server.where = there
        server.come()
        return node

    return make


def known(node, server, name, **metadata):
    """A sandbox of a pod that the API server has."""
    pod = node.pod(name)
    pod.uid = server.add_pod(name, node.name, **metadata)["metadata"]["uid"]
    return pod


def events(server, name):
    found, _ = server.objects.select(EVENTS, "", lambda event: event["involvedObject"]["name"] == name)
    return {event["reason"]: event["message"] for event in found}


def synced(node):
    node.wait_for(lambda: node.status()["kube"]["synced"], "the pods are known")


def test_a_fresh_node(make, server):
    node = make(options=OPTIONS, network="terway")
    server.add_node(node.name, taints=[TAINT])
    node.start(wait=False)
    reason = node.wait_for(lambda: events(server, node.name).get("DriverNotStarted"), "an event")
    assert "no pod CIDR" in reason
    assert server.objects.get(NODES, node.name)["spec"]["taints"] == [TAINT]
    assert "no pod CIDR" in node.terway("status", status=1)

    server.objects.patch(NODES, node.name, {"spec": {"podCIDR": "172.20.7.0/24"}})
    node.wait_until_ready()
    node.wait_for(lambda: "taints" not in server.objects.get(NODES, node.name)["spec"], "the taint is gone")
    (condition,) = server.objects.get(NODES, node.name)["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("NetworkUnavailable", "False")

    limit = {"kubernetes.io/egress-bandwidth": "10M"}
    pod = known(node, server, "web-0", annotations=limit)
    (address,) = node.add(pod)
    assert address.startswith("172.20.7.")
    assert any(qdisc["kind"] == "tbf" for qdisc in pod.inside(qdiscs))  # as the annotation says
    node.wait_for(lambda: address in events(server, "web-0").get("AllocIPSucceed", ""), "an event")
    server.objects.patch(PODS, "web-0", {"status": {"phase": "Running"}}, "default", status=True)
    assert node.audit() == []
    assert "kubernetes: pods known" in node.terway("status")
    assert "Kubernetes" not in node.terway("doctor")

    # Everything that was asked of the API server is in the role, and nothing is in it in vain.
    asked = {
        (call.verb, "/".join(filter(None, (call.resource.plural, call.subresource))))
        for call in server.served.calls
        if call.agent.startswith("terway-daemon/") and call.resource != ACCESS_REVIEWS
    }
    # Seldom: when the watch is late, and when an event repeats itself.
    seldom = {("get", "pods"), ("patch", "events")}
    allowed = {(verb, rule["resources"][0]) for rule in rules(node.config.kube) for verb in rule["verbs"]}
    assert asked | seldom == allowed


def qdiscs():
    from tests.kernel.conftest import run

    return json.loads(run("tc", "-json", "qdisc", "show"))


def test_api_server_away(make, server):
    node = make()
    server.add_node(node.name)
    node.start()
    running = known(node, server, "running")
    node.add(running)
    waiting = known(node, server, "waiting")
    synced(node)
    with server.away():
        assert node.cni("ADD", running).status == 0
        answer = node.cni("ADD", unknown := node.pod("unknown"))
        assert answer.code == 11
        assert "default/unknown" in answer.text
        assert node.cni("DEL", unknown).status == 0
        assert node.cni("DEL", running).status == 0
        node.add(waiting)  # the watch has brought it
        report = json.loads(node.terway("gc", "--json"))
        assert report["problems"] == []
        assert node.status()["healthy"]

        node.stop()  # a restart in the middle of it
        node.start()
        again = node.pod("waiting")
        again.uid = waiting.uid
        node.add(again)  # another sandbox of a pod that the journal knows
        assert [row["container_id"] for row in node.journal()] == [again.container_id]
        assert node.cni("ADD", node.pod("stranger")).code == 11
    server.add_pod("late", node.name)
    late = node.pod("late")
    late.uid = ""
    node.add(late)
    assert [line for line in node.audit() if not line.startswith("kubernetes")] == []


def test_pod_that_is_gone_while_its_namespace_stays(make, server):
    node = make(kube={"gone_after": 300})
    server.add_node(node.name)
    node.start_with_faults()
    pods = [known(node, server, name) for name in ("gone", "kept")]
    for pod in pods:
        node.add(pod)
    server.objects.delete(PODS, "gone", "default")

    def gc(ahead):
        (node.faults / "clock").write_text(str(ahead))
        return json.loads(node.terway("gc", "--json", status=0))["released"]

    assert gc(0) == []
    assert gc(100) == []
    with server.away():
        assert gc(400) == []
    server.objects.delete(NODES, node.name)
    (node.faults / "clock").write_text("500")
    assert "no node of our name" in node.terway("gc", status=1)
    server.add_node(node.name)
    assert "default/gone" in node.terway("gc", "--dry-run")
    (line,) = gc(500)
    assert "default/gone" in line
    assert [row["name"] for row in node.journal()] == ["kept"]
    assert gc(2000) == []
    assert node.audit() == []


def test_pod_that_was_replaced_by_one_of_its_name(make, server):
    node = make(kube={"gone_after": 0})
    server.add_node(node.name)
    node.start()
    node.add(known(node, server, "web-0"))
    server.objects.delete(PODS, "web-0", "default")
    server.add_pod("web-0", node.name)
    node.wait_for(lambda: node.terway("gc") and not node.journal(), "the first one is gone")


def test_cni_gc_spares_pods_that_are_there(make, server):
    node = make()
    server.add_node(node.name)
    node.start()
    kept, gone = known(node, server, "kept"), known(node, server, "gone")
    for pod in (kept, gone):
        node.add(pod)
    server.objects.delete(PODS, "gone", "default")
    nobody = {"cni.dev/valid-attachments": []}
    node.wait_for(
        lambda: node.cni("GC", version="1.1.0", **nobody).status == 0 and len(node.journal()) == 1, "gone"
    )
    assert [row["name"] for row in node.journal()] == ["kept"]
    with server.away():
        server.objects.delete(PODS, "kept", "default")
        assert node.cni("GC", version="1.1.0", **nobody).status == 0
        assert [row["name"] for row in node.journal()] == ["kept"]  # nobody can tell


def test_failures_are_events_of_the_pod(make, server):
    node = make(vpc={"pod_cidrs": ["172.20.1.0/31"], "cluster_cidrs": ["172.20.0.0/16"]})
    server.add_node(node.name)
    node.start()
    for number in range(3):
        pod = known(node, server, f"pod-{number}")
        status = node.cni("ADD", pod).status
    assert status == 1
    message = node.wait_for(lambda: events(server, "pod-2").get("AllocIPFailed"), "an event")
    assert "172.20.1.0/31" in message
