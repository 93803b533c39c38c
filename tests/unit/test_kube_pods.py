"""What is known of the node's pods, with the API server there, behind and away."""

import pytest

from terway_core.errors import KubeError, KubeUnavailable, RetryLater
from terway_core.kube import PODS
from terway_core.kube.pods import Pods
from terway_core.types import Pod
from tests.unit.kube_server import ApiServer, wait_for


@pytest.fixture
def server(tmp_path):
    with ApiServer(tmp_path).running() as server:
        yield server


@pytest.fixture
def pods(server):
    client = server.client()
    pods = Pods(client, "node-1")
    pods.start()
    wait_for(lambda: pods.synced and server.served.watches)
    yield pods
    pods.stop()
    client.close()


def asked(uid="", name="web-0"):
    return Pod(namespace="default", name=name, uid=uid)


def seen(server, pods, pod):
    """Wait until the watch has brought it: until it costs no call."""

    def known():
        calls = server.calls("get", "pods")
        pods.describe(pod)
        return server.calls("get", "pods") == calls

    wait_for(known)


def stop_the_watch(server):
    server.refuse(503, "ServiceUnavailable", "watch")
    server.served.break_watches()
    wait_for(lambda: not server.served.watches)


def container(**requests):
    return {"name": "c", "resources": {"requests": requests}}


def test_a_pod_that_was_watched_costs_no_call(server, pods):
    made = server.add_pod(annotations={"a": "1"}, labels={"app": "web"})
    pod = asked(made["metadata"]["uid"])
    seen(server, pods, pod)
    calls = len(server.served.calls)
    found = pods.describe(pod)
    assert (found.uid, found.annotations, found.labels) == (pod.uid, {"a": "1"}, {"app": "web"})
    assert pods.describe(asked()).uid == pod.uid  # a runtime need not tell the UID
    assert not pods.is_gone(pod)
    assert len(server.served.calls) == calls


def test_one_call_for_a_pod_that_the_watch_has_not_brought(server, pods):
    stop_the_watch(server)
    made = server.add_pod(annotations={"a": "1"})
    assert pods.describe(asked(made["metadata"]["uid"])).annotations == {"a": "1"}
    assert server.calls("get", "pods") == 1


def test_a_later_pod_of_the_same_name(server, pods):
    old = asked(server.add_pod()["metadata"]["uid"])
    seen(server, pods, old)
    stop_the_watch(server)
    server.objects.delete(PODS, "web-0", "default")
    new = asked(server.add_pod(labels={"new": "yes"})["metadata"]["uid"])
    assert pods.describe(new).labels == {"new": "yes"}  # though the watch still has the old one
    server.refuse(0, "")
    seen(server, pods, new)
    with pytest.raises(RetryLater, match="another one has its name"):
        pods.describe(old)
    assert pods.is_gone(old)
    assert not pods.is_gone(new)


def test_a_pod_that_is_gone(pods):
    with pytest.raises(RetryLater, match="deleted"):
        pods.describe(asked("uid"))
    assert pods.is_gone(asked("uid"))


def test_server_away(server, pods):
    pod = asked(server.add_pod(annotations={"a": "1"})["metadata"]["uid"])
    seen(server, pods, pod)
    with server.away():
        assert pods.describe(pod).annotations == {"a": "1"}
        assert not pods.is_gone(pod)
        with pytest.raises(KubeUnavailable, match="default/other"):
            pods.describe(asked(name="other"))
        with pytest.raises(KubeUnavailable):
            pods.is_gone(asked(name="other"))


def test_not_allowed_is_not_gone(server, pods):
    server.refuse(403, "Forbidden", "get")
    with pytest.raises(KubeError, match="403"):
        pods.is_gone(asked("uid"))


def test_a_static_pod_has_the_uid_that_kubelet_gave_it(server, pods):
    mirror = server.add_pod(annotations={"kubernetes.io/config.mirror": "0123abcd"})
    assert mirror["metadata"]["uid"] != "0123abcd"
    assert pods.describe(asked("0123abcd")).uid == "0123abcd"
    assert not pods.is_gone(asked("0123abcd"))


def test_extended_resources_are_counted_as_the_scheduler_counts_them(server, pods):
    containers = [
        container(**{"aliyun/eni": "1", "cpu": "100m"}),
        container(**{"aliyun/eni": "2"}),
        {"name": "none"},
    ]
    initial = [container(**{"aliyun/eni": "1", "a/b": "2"}), container(**{"a/b": "1k"})]
    server.add_pod(spec={"containers": containers, "initContainers": initial})
    assert pods.describe(asked()).requests == {"aliyun/eni": 3, "a/b": 1000}


def test_a_huge_annotation_is_not_kept(server, pods):
    applied = "kubectl.kubernetes.io/last-applied-configuration"
    server.add_pod(annotations={applied: "{}", "a": "1"})
    assert pods.describe(asked()).annotations == {"a": "1"}
