"""Events: one object for many occurrences, few calls, and nobody waits."""

import threading

import pytest

from terway_core.kube import EVENTS
from terway_core.kube import events as module
from terway_core.kube.events import Events
from tests.unit.kube_server import ApiServer, wait_for

POD = {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web-0", "uid": "u1"}
NODE = {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1"}


@pytest.fixture
def server(tmp_path):
    with ApiServer(tmp_path).running() as server:
        yield server


@pytest.fixture
def events(server, monkeypatch):
    monkeypatch.setattr(module, "REPEAT", 0.05)
    monkeypatch.setattr(module, "SPACING", 0.001)
    monkeypatch.setattr(module, "PAUSE", 0.05)
    client = server.client()
    events = Events(client, "terway-daemon", "node-1")
    events.start()
    yield events
    events.stop()
    client.close()


def sent(server):
    found, _ = server.objects.select(EVENTS, "", lambda obj: True)
    return found


def counts(server):
    return {f"{event['involvedObject']['name']} {event['reason']}": event["count"] for event in sent(server)}


def test_one_event(server, events):
    events.tell(POD, "AllocIPFailed", "no address is free", warning=True)
    (event,) = wait_for(lambda: sent(server))
    assert event["involvedObject"] == POD
    assert (event["type"], event["reason"], event["count"]) == ("Warning", "AllocIPFailed", 1)
    assert event["metadata"]["namespace"] == "default"
    assert event["source"] == {"component": "terway-daemon", "host": "node-1"}


def test_a_storm_is_one_object_and_few_calls(server, events):
    for number in range(500):
        events.tell(POD, "AllocIPFailed", f"attempt {number}", warning=True)
    wait_for(lambda: counts(server) == {"web-0 AllocIPFailed": 500})
    (event,) = sent(server)
    assert event["message"] == "attempt 499"
    assert server.calls("create", "events") == 1
    assert server.calls("patch", "events") < 20


def test_reasons_and_objects_are_told_apart(server, events):
    events.tell(POD, "AllocIPSucceed", "ok")
    events.tell(POD, "AllocIPFailed", "no")
    events.tell({**POD, "uid": "u2"}, "AllocIPFailed", "no")
    events.tell(NODE, "InsufficientIP", "no")
    wait_for(lambda: len(sent(server)) == 4)
    assert {event["metadata"]["namespace"] for event in sent(server)} == {"default"}


def test_gathered_while_the_server_is_away(server, events):
    with server.away():
        for _ in range(3):
            events.tell(POD, "AllocIPFailed", "no")
    wait_for(lambda: counts(server) == {"web-0 AllocIPFailed": 3})


def test_made_anew_when_the_server_has_forgotten_it(server, events):
    events.tell(POD, "AllocIPFailed", "no")
    (event,) = wait_for(lambda: sent(server))
    server.objects.delete(EVENTS, event["metadata"]["name"], "default")
    events.tell(POD, "AllocIPFailed", "no")
    wait_for(lambda: counts(server) == {"web-0 AllocIPFailed": 2})


def test_a_refused_event_is_given_up(server, events):
    server.refuse(403, "Forbidden", "create", "events")
    events.tell(POD, "AllocIPFailed", "no")
    wait_for(lambda: server.calls("create", "events"))
    events.tell(NODE, "InsufficientIP", "no")
    wait_for(lambda: server.calls("create", "events") == 2)
    server.refuse(0, "")
    events.tell(NODE, "InsufficientIP", "no")
    wait_for(lambda: counts(server) == {"node-1 InsufficientIP": 2})


def test_nobody_waits_while_a_call_hangs(server, events):
    hanging, release = threading.Event(), threading.Event()

    def hang(call):
        hanging.set()
        release.wait(20)

    server.served.refuse = hang
    events.tell(POD, "AllocIPFailed", "no")
    assert hanging.wait(20)
    for number in range(module.REMEMBERED + 50):
        events.tell({**POD, "name": f"web-{number}"}, "AllocIPFailed", "no")
    assert sent(server) == []  # the call still hangs: all were told without waiting for it
    server.served.refuse = lambda call: None
    release.set()
    wait_for(lambda: len(sent(server)) >= 50)
    names = {event["involvedObject"]["name"] for event in sent(server)}
    assert "web-1" not in names  # among the oldest, which were too many
