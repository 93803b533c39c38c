"""The watched copy: what it knows, how it goes on, and when it lists again."""

import pytest

from terway_core.kube import PODS, Informer
from terway_core.kube import informer as module
from terway_core.lab.kubernetes import server as lab_server
from tests.unit.kube_server import ApiServer, wait_for


@pytest.fixture
def server(tmp_path):
    with ApiServer(tmp_path).running() as server:
        yield server


@pytest.fixture
def seen():
    return []


@pytest.fixture
def informer(server, seen, monkeypatch):
    monkeypatch.setattr(module, "RETRY_FIRST", 0.02)
    monkeypatch.setattr(module, "RETRY_LAST", 0.1)

    def changed(old, new):
        names = [obj["metadata"]["name"] if obj else "" for obj in (old, new)]
        seen.append(
            "new " + names[1] if not old else "gone " + names[0] if not new else "changed " + names[1]
        )

    client = server.client()
    with Informer(client, PODS, field_selector="spec.nodeName=node-1", on_change=changed) as informer:
        assert informer.wait_synced(20)
        yield informer
    client.close()


def names(informer):
    return sorted(pod["metadata"]["name"] for pod in informer.items())


def test_follows_what_happens(server, informer, seen):
    server.add_pod("a")
    server.add_pod("elsewhere", node="node-2")
    wait_for(lambda: informer.get("a", "default"))
    server.objects.patch(PODS, "a", {"metadata": {"labels": {"x": "y"}}}, "default")
    wait_for(lambda: informer.get("a", "default")["metadata"].get("labels"))
    server.objects.delete(PODS, "a", "default")
    wait_for(lambda: not informer.items())
    assert seen == ["new a", "changed a", "gone a"]


def test_pod_that_gets_and_loses_its_node(server, informer):
    server.add_pod("a", node="")
    server.objects.patch(PODS, "a", {"spec": {"nodeName": "node-1"}}, "default")
    wait_for(lambda: names(informer) == ["a"])
    server.objects.patch(PODS, "a", {"spec": {"nodeName": "node-2"}}, "default")
    wait_for(lambda: not informer.items())


def test_goes_on_where_the_last_watch_ended(server, informer):
    lists = server.calls("list", "pods")
    for name in ("a", "b", "c"):
        wait_for(lambda: server.served.watches)
        server.served.break_watches()
        server.add_pod(name)
        wait_for(lambda name=name: informer.get(name, "default"))
    assert server.calls("list", "pods") == lists
    assert server.calls("watch", "pods") >= 4


def test_lists_again_when_its_version_is_forgotten(server, informer, seen):
    server.add_pod("a")
    server.add_pod("b")
    wait_for(lambda: len(informer.items()) == 2)
    lists = server.calls("list", "pods")
    with server.away():
        server.objects.delete(PODS, "a", "default")
        server.add_pod("c")
        server.objects.forget()
    wait_for(lambda: names(informer) == ["b", "c"])
    assert server.calls("list", "pods") == lists + 1
    assert sorted(seen) == ["gone a", "new a", "new b", "new c"]  # nothing of b, which is as it was


def test_forgotten_while_the_watch_is_open(server, informer):
    wait_for(lambda: server.served.watches)
    server.add_pod("elsewhere", node="node-2")
    server.objects.forget()
    server.add_pod("a")
    wait_for(lambda: names(informer) == ["a"])


def test_knows_what_it_knew_while_the_server_is_away(server, informer):
    server.add_pod("a")
    wait_for(lambda: informer.items())
    with server.away():
        assert names(informer) == ["a"]
        server.add_pod("b")
    wait_for(lambda: names(informer) == ["a", "b"])


def test_refused_for_a_while(server, informer):
    server.refuse(403, "Forbidden", "watch")
    server.served.break_watches()
    refused = server.calls("watch", "pods")
    wait_for(lambda: server.calls("watch", "pods") > refused + 1)
    server.add_pod("a")
    server.refuse(0, "")
    wait_for(lambda: names(informer) == ["a"])


def test_bookmarks_move_on_where_nothing_else_does(server, informer, monkeypatch):
    monkeypatch.setattr(lab_server, "BOOKMARK_INTERVAL", 0.05)
    wait_for(lambda: server.served.watches)
    server.served.break_watches()
    wait_for(lambda: server.served.watches)
    lists = server.calls("list", "pods")
    for number in range(3):
        server.add_pod(f"elsewhere-{number}", node="node-2")
    bookmarks = server.served.bookmarks
    wait_for(lambda: server.served.bookmarks > bookmarks + 1)
    server.objects.forget()  # a watch from before these pods could not go on
    server.served.break_watches()
    server.add_pod("a")
    wait_for(lambda: names(informer) == ["a"])
    assert server.calls("list", "pods") == lists


def test_a_handler_that_fails_stops_nothing(server, monkeypatch):
    client = server.client()

    def fail(old, new):
        raise RuntimeError("a bug")

    with Informer(client, PODS, on_change=fail) as informer:
        server.add_pod("a")
        wait_for(lambda: names(informer) == ["a"])
        server.add_pod("b")
        wait_for(lambda: names(informer) == ["a", "b"])


def test_begins_without_a_server(server, monkeypatch):
    monkeypatch.setattr(module, "RETRY_FIRST", 0.02)
    monkeypatch.setattr(module, "RETRY_LAST", 0.1)
    client = server.client()
    with server.away():
        informer = Informer(client, PODS)
        informer.start()
        assert not informer.wait_synced(0.2)
    assert informer.wait_synced(20)
    informer.stop()
