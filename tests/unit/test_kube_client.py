"""Calls of the API over real HTTP, and what each refusal means."""

import subprocess
import sys
import threading

import pytest

from terway_core.config import KubeConfig
from terway_core.errors import (
    InvalidConfig,
    KubeConflict,
    KubeError,
    KubeGone,
    KubeNotFound,
    KubeUnavailable,
    RetryLater,
)
from terway_core.kube import LEASES, NODES, PODS, KubeClient, Resource
from terway_core.lab.kubernetes.objects import CRDS
from tests.unit.kube_server import ApiServer, wait_for

WIDGETS = Resource(group="example.com", version="v1", plural="widgets", kind="Widget")


@pytest.fixture
def server(tmp_path):
    with ApiServer(tmp_path).running() as server:
        yield server


@pytest.fixture
def client(server):
    client = server.client()
    yield client
    client.close()


def define_widgets(client):
    client.create(
        CRDS,
        {
            "metadata": {"name": "widgets.example.com"},
            "spec": {
                "group": "example.com",
                "scope": "Namespaced",
                "names": {"plural": "widgets", "kind": "Widget"},
                "versions": [{"name": "v1", "served": True, "storage": True, "subresources": {"status": {}}}],
            },
        },
    )


def test_importing_it_loads_no_client():
    code = "import sys, terway_core.kube, terway_core.daemon.main; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_custom_resource_from_the_crd_to_its_end(client):
    with pytest.raises(KubeError, match="installed") as caught:
        client.get(WIDGETS, "one", "default")
    assert not isinstance(caught.value, KubeNotFound)  # nothing is known about any widget
    define_widgets(client)
    with pytest.raises(KubeNotFound):
        client.get(WIDGETS, "one", "default")

    made = client.create(
        WIDGETS, {"metadata": {"name": "one", "finalizers": ["a/b"]}, "spec": {"size": 1}}, "default"
    )
    assert (made["kind"], made["metadata"]["generation"]) == ("Widget", 1)
    with pytest.raises(KubeConflict) as caught:
        client.create(WIDGETS, {"metadata": {"name": "one"}}, "default")
    assert caught.value.reason == "AlreadyExists"

    client.patch(WIDGETS, "one", {"spec": {"size": 2}, "status": {"phase": "no"}}, "default")
    client.patch(
        WIDGETS, "one", {"spec": {"size": 9}, "status": {"phase": "Bind"}}, "default", subresource="status"
    )
    found = client.get(WIDGETS, "one", "default")
    assert (found["spec"], found["status"]) == ({"size": 2}, {"phase": "Bind"})

    with pytest.raises(KubeConflict):
        client.replace(WIDGETS, made, "default")  # it has changed since
    found["metadata"]["labels"] = {"team": "a"}
    client.replace(WIDGETS, found, "default")
    assert [w["metadata"]["name"] for w in client.list(WIDGETS, label_selector="team in (a, b)").items] == [
        "one"
    ]
    assert client.list(WIDGETS, "kube-system").items == []

    with pytest.raises(KubeConflict):
        client.delete(WIDGETS, "one", "default", uid="another")
    client.delete(WIDGETS, "one", "default", uid=made["metadata"]["uid"])
    assert "deletionTimestamp" in client.get(WIDGETS, "one", "default")["metadata"]
    client.patch(WIDGETS, "one", {"metadata": {"finalizers": None}}, "default")
    with pytest.raises(KubeNotFound):
        client.delete(WIDGETS, "one", "default")


def test_apply_makes_and_changes(client):
    for holder in ("a", "b"):
        client.patch(
            LEASES, "l", {"spec": {"holderIdentity": holder}}, "default", kind="apply", field_manager="me"
        )
        assert client.get(LEASES, "l", "default")["spec"] == {"holderIdentity": holder}


def test_strategic_patch_touches_one_condition(client, server):
    server.add_node()
    for kind, status in (("Ready", "True"), ("NetworkUnavailable", "True"), ("NetworkUnavailable", "False")):
        patch = {"status": {"conditions": [{"type": kind, "status": status}]}}
        client.patch(NODES, "node-1", patch, subresource="status", kind="strategic")
    conditions = client.get(NODES, "node-1")["status"]["conditions"]
    assert conditions == [
        {"type": "Ready", "status": "True"},
        {"type": "NetworkUnavailable", "status": "False"},
    ]


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (403, "Forbidden", KubeError),
        (422, "Invalid", KubeError),
        (409, "Conflict", KubeConflict),
        (410, "Expired", KubeGone),
        (429, "TooManyRequests", KubeUnavailable),
        (503, "ServiceUnavailable", KubeUnavailable),
    ],
)
def test_refusals_are_told_apart(client, server, code, reason, kind):
    server.refuse(code, reason)
    with pytest.raises(RetryLater, match="pods default/web-0") as caught:
        client.get(PODS, "web-0", "default")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.reason) == (code, reason)


def test_no_server(client, server):
    with server.away(), pytest.raises(KubeUnavailable, match="does not answer"):
        client.get(PODS, "web-0", "default")
    with pytest.raises(KubeNotFound):
        client.get(PODS, "web-0", "default")


@pytest.mark.parametrize("text", ["", "{", "clusters: []", "- a"])
def test_kubeconfig_that_is_none(tmp_path, text):
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(InvalidConfig, match=str(path)):
        KubeClient(KubeConfig(kubeconfig=path))


def test_no_service_account(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InvalidConfig, match="service account"):
        KubeClient(KubeConfig())


def test_token_is_sent_and_never_told(server, caplog):
    client = KubeClient(KubeConfig(kubeconfig=server.kubeconfig(token="s3cret")))
    seen = []
    server.served.refuse = lambda call: seen.append(call.agent)
    client.list(PODS)
    with server.away(), pytest.raises(KubeUnavailable) as caught:
        client.list(PODS)
    assert seen[0].startswith("terway-daemon/")
    assert "s3cret" not in f"{caught.value}{caught.value.details}{caplog.text}"


def test_list_comes_in_pages(client, server, monkeypatch):
    pages = {"": (["a", "b"], "next"), "next": (["c"], "")}
    asked = []

    def call(method, resource, name, namespace, *, query):
        asked.append(dict(query))
        names, more = pages[query.get("continue", "")]
        items = [{"metadata": {"name": name}} for name in names]
        return {"items": items, "metadata": {"resourceVersion": "7", "continue": more}}

    monkeypatch.setattr(client, "_call", call)
    listing = client.list(PODS, resource_version="0")
    assert [pod["metadata"]["name"] for pod in listing.items] == ["a", "b", "c"]
    assert listing.resource_version == "7"
    assert "resourceVersion" not in asked[1]  # the API refuses both together


def test_watch_can_be_closed_by_another_thread(client, server):
    version = client.list(PODS).resource_version
    watch = client.watch(PODS, resource_version=version)
    got = []
    thread = threading.Thread(target=lambda: got.extend(watch))
    thread.start()
    server.add_pod()
    wait_for(lambda: got)
    watch.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [event.type for event in got] == ["ADDED"]


def test_watch_from_a_forgotten_version(client, server):
    version = client.list(PODS).resource_version
    server.add_pod()
    server.objects.forget()
    with pytest.raises(KubeGone):
        client.watch(PODS, resource_version=version)
