"""What is written into the node's object, and what is left alone."""

from ipaddress import ip_network

import pytest

from terway_core.errors import KubeNotFound, RetryLater
from terway_core.kube import NODES
from terway_core.kube import node as module
from terway_core.kube.node import Condition, NodeKeeper
from terway_core.lab.kubernetes import Refusal
from tests.unit.kube_server import ApiServer, wait_for

TAINT = "network.alibabacloud.com/not-ready"
OURS = {"key": TAINT, "effect": "NoSchedule"}
OTHER = {"key": "other", "effect": "NoExecute"}


@pytest.fixture
def server(tmp_path):
    with ApiServer(tmp_path).running() as server:
        yield server


@pytest.fixture
def clock():
    return [1_700_000_000.0]


@pytest.fixture
def make(server, clock, monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.02)
    monkeypatch.setattr(module, "RETRY_FIRST", 0.02)
    monkeypatch.setattr(module, "RETRY_LAST", 0.05)
    client, made = server.client(), []

    def make(taint=TAINT):
        keeper = NodeKeeper(client, "node-1", taint, lambda: clock[0])
        keeper.start()
        made.append(keeper)
        return keeper

    yield make
    for keeper in made:
        keeper.stop()
    client.close()


def node(server):
    return server.objects.get(NODES, "node-1")


def set_status(server, **status):
    server.objects.patch(NODES, "node-1", {"status": status}, status=True)


def conditions(server):
    return {one["type"]: one for one in node(server).get("status", {}).get("conditions", ())}


def patches(server):
    return [call.subresource for call in server.served.calls if call.verb == "patch"]


def look_again(server):
    """Wait until everything has been looked at once more."""
    looks = server.calls("get", "nodes")
    wait_for(lambda: server.calls("get", "nodes") > looks + 2)


def test_serving_takes_the_taint_off_and_says_that_there_is_a_network(server, make):
    server.add_node(taints=[OTHER, OURS], podCIDR="10.0.0.0/24")
    ready = {"type": "Ready", "status": "True"}
    set_status(server, conditions=[ready, {"type": "NetworkUnavailable", "status": "True"}])
    keeper = make()
    look_again(server)
    assert patches(server) == []  # not before it serves
    keeper.serve()
    wait_for(lambda: node(server)["spec"]["taints"] == [OTHER])
    assert conditions(server)["NetworkUnavailable"]["status"] == "False"
    assert conditions(server)["Ready"] == ready
    assert node(server)["spec"]["podCIDR"] == "10.0.0.0/24"
    look_again(server)
    assert patches(server) == ["status", ""]  # in this order: who sees no taint finds a network


def test_the_last_taint(server, make):
    server.add_node(taints=[OURS])
    make().serve()
    wait_for(lambda: "taints" not in node(server)["spec"])


def test_no_taint_is_configured(server, make):
    server.add_node(taints=[OURS])
    make(taint="").serve()
    wait_for(lambda: "NetworkUnavailable" in conditions(server))
    look_again(server)
    assert node(server)["spec"]["taints"] == [OURS]


def test_a_taint_that_comes_at_the_same_time_stays(server, make):
    server.add_node(taints=[OURS])
    raced = []

    def race(call):
        if call.verb == "patch" and not call.subresource and not raced:
            raced.append(call)
            server.objects.patch(NODES, "node-1", {"spec": {"taints": [OURS, OTHER]}})

    server.served.refuse = race
    make().serve()
    wait_for(lambda: node(server)["spec"].get("taints") == [OTHER])
    assert raced


def test_who_said_first_that_there_is_a_network_is_not_overruled(server, make):
    server.add_node()
    said = {"type": "NetworkUnavailable", "status": "False", "reason": "RouteCreated"}
    set_status(server, conditions=[said])
    make().serve()
    look_again(server)
    assert conditions(server)["NetworkUnavailable"] == said


def test_annotations_are_kept_beside_those_of_others(server, make):
    server.add_node()
    server.objects.patch(NODES, "node-1", {"metadata": {"annotations": {"a": "others"}}})
    told = []

    def text():
        if not told:
            raise RetryLater("not yet")
        return told[-1]

    keeper = make()
    keeper.annotate("b", text)
    keeper.offer("a/b", lambda: 1)
    wait_for(lambda: node(server).get("status", {}).get("capacity"))
    told.append("ours")
    wait_for(lambda: node(server)["metadata"]["annotations"] == {"a": "others", "b": "ours"})
    told.append("new")
    wait_for(lambda: node(server)["metadata"]["annotations"] == {"a": "others", "b": "new"})


def test_what_is_not_known_yet_is_asked_for_soon(server, make, monkeypatch):
    monkeypatch.setattr(module, "LOOK", 3600.0)
    server.add_node()
    asked = []

    def amount():
        asked.append(1)
        if len(asked) < 4:
            raise RetryLater("not yet")
        return 7

    make().offer("a/b", amount)
    wait_for(lambda: node(server).get("status", {}).get("capacity") == {"a/b": "7"})


def test_offered_resources_come_back_and_follow(server, make):
    server.add_node()
    set_status(server, capacity={"cpu": "4"})
    amount = [3]
    make().offer("aliyun/eni", lambda: amount[0])

    def offered():
        status = node(server)["status"]
        return [status.get(field, {}).get("aliyun/eni") for field in ("capacity", "allocatable")]

    wait_for(lambda: offered() == ["3", "3"])
    assert node(server)["status"]["capacity"]["cpu"] == "4"
    amount[0] = 2
    wait_for(lambda: offered() == ["2", "2"])
    set_status(server, capacity={"aliyun/eni": "0"})  # kubelet does this when it registers the node anew
    wait_for(lambda: offered() == ["2", "2"])


def test_a_resource_that_cannot_be_counted_stays_as_it_is(server, make):
    server.add_node()
    keeper = make()

    def fail():
        raise RetryLater("not started")

    keeper.offer("aliyun/eni", fail)
    keeper.offer("a/b", lambda: 1)
    wait_for(lambda: node(server).get("status", {}).get("capacity") == {"a/b": "1"})
    assert keeper.problem == ""


def test_condition_follows_its_source_and_repeats_itself_now_and_then(server, make, clock):
    server.add_node()
    wanted = [Condition("SufficientIP", True, "SufficientIP", "fine")]
    make().report(lambda: wanted[0])
    first = wait_for(lambda: conditions(server).get("SufficientIP"))
    look_again(server)
    assert len(patches(server)) == 1

    clock[0] += module.HEARTBEAT + 1
    wait_for(lambda: conditions(server)["SufficientIP"]["lastHeartbeatTime"] != first["lastHeartbeatTime"])
    second = conditions(server)["SufficientIP"]
    assert second["lastTransitionTime"] == first["lastTransitionTime"]

    wanted[0] = Condition("SufficientIP", False, "InsufficientIP", "vsw-1 is full")
    wait_for(lambda: conditions(server)["SufficientIP"]["status"] == "False")
    third = conditions(server)["SufficientIP"]
    assert (third["reason"], third["message"]) == ("InsufficientIP", "vsw-1 is full")
    assert third["lastTransitionTime"] == second["lastHeartbeatTime"]

    wanted[0] = None
    look_again(server)
    assert conditions(server)["SufficientIP"] == third


def test_done_when_the_server_comes_back(server, make):
    with server.away():
        keeper = make()
        keeper.serve()
        wait_for(lambda: "does not answer" in keeper.problem)
        server.add_node(taints=[OURS])
    wait_for(lambda: "taints" not in node(server)["spec"])
    wait_for(lambda: not keeper.problem)


def test_node_that_is_made_later(server, make):
    keeper = make()
    keeper.serve()
    wait_for(lambda: "not found" in keeper.problem)
    assert not keeper.exists()
    server.add_node()
    wait_for(lambda: "NetworkUnavailable" in conditions(server))
    assert keeper.exists()


@pytest.mark.parametrize(
    ("spec", "cidrs"),
    [
        ({}, []),
        ({"podCIDR": "10.0.0.0/24"}, ["10.0.0.0/24"]),
        ({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/64"]}, ["10.0.0.0/24", "fd00::/64"]),
    ],
)
def test_pod_cidrs(server, make, spec, cidrs):
    keeper = make()
    with pytest.raises(KubeNotFound):
        keeper.pod_cidrs()
    server.add_node(**spec)
    assert keeper.pod_cidrs() == tuple(map(ip_network, cidrs))


def test_a_defect_of_a_source_does_not_end_it(server, make):
    server.add_node()
    keeper = make()
    bugs = [RuntimeError("a bug")]

    def source():
        if bugs:
            raise bugs.pop()

    keeper.report(source)
    wait_for(lambda: not bugs)
    keeper.serve()
    wait_for(lambda: "NetworkUnavailable" in conditions(server))


def test_conflicts_without_end_are_told(server, make):
    server.add_node(taints=[OURS])

    def conflict(call):
        if call.verb == "patch" and not call.subresource:
            raise Refusal(409, "Conflict", "for a test")

    server.served.refuse = conflict
    keeper = make()
    keeper.serve()
    wait_for(lambda: TAINT in keeper.problem)
