"""doctor and audit with Kubernetes, and the role that is printed."""

import pytest
import yaml
from typer.testing import CliRunner

from terway_core.cli.app import build
from terway_core.config import Config, KubeConfig
from terway_core.kube import PODS
from terway_core.kube.check import audit_pods, examine
from terway_core.kube.rbac import rules
from terway_core.lab.kubernetes import Refusal
from terway_core.record import Record, State
from terway_core.types import Attachment, Pod
from tests.unit.kube_server import ApiServer


@pytest.fixture
def server(tmp_path):
    with ApiServer(tmp_path).running() as server:
        yield server


@pytest.fixture
def config(server):
    return Config(node_name="node-1", kube=server.config)


def attached(obj, state=State.READY):
    pod = Pod(namespace="default", name=obj["metadata"]["name"], uid=obj["metadata"]["uid"])
    attachment = Attachment(network="terway", container_id=pod.uid, ifname="eth0", pod=pod)
    return Record(attachment=attachment, driver="vpc", state=state, created=0.0)


def run(server, name, **spec):
    pod = server.add_pod(name, spec=spec)
    server.objects.patch(PODS, name, {"status": {"phase": "Running"}}, "default", status=True)
    return pod


def test_nothing_is_wrong(server, config):
    server.add_node()
    assert examine(config) == []
    pod = run(server, "a")
    server.add_pod("pending")
    run(server, "host", hostNetwork=True)
    assert audit_pods(config, [attached(pod)]) == []


def test_audit_names_pods_that_only_one_side_has(server, config):
    pod = run(server, "a")
    gone = {"metadata": {"name": "gone", "uid": "u"}}
    replaced = {"metadata": {"name": "a", "uid": "an earlier one"}}
    lines = audit_pods(config, [attached(gone), attached(replaced), attached(pod, State.RELEASING)])
    assert len(lines) == 3
    assert "default/gone is attached" in lines[0]
    assert "default/a is attached" in lines[1]
    assert "default/a runs on this node without" in lines[2]


def test_a_pod_that_ends_may_have_no_network_any_more(server, config):
    pod = server.add_pod("a", finalizers=["test/hold"])
    server.objects.patch(PODS, "a", {"status": {"phase": "Running"}}, "default", status=True)
    assert len(audit_pods(config, [])) == 1
    server.objects.delete(PODS, "a", "default")
    assert audit_pods(config, []) == []
    assert audit_pods(config, [attached(pod)]) == []


def test_audit_without_a_server(server, config):
    with server.away():
        (line,) = audit_pods(config, [])
    assert "does not answer" in line


def test_doctor_names_what_is_missing(server, config, tmp_path):
    (problem,) = examine(config)
    assert "no node 'node-1'" in problem.summary
    with server.away():
        (problem,) = examine(config)
    assert "does not answer" in problem.summary
    (problem,) = examine(Config(kube=KubeConfig(enabled=True, kubeconfig=tmp_path / "none")))
    assert "none" in problem.summary


def test_doctor_tries_every_permission(server, config):
    server.add_node()

    def refuse(call):
        if call.resource.plural == "events" or call.subresource == "status":
            raise Refusal(403, "Forbidden", "for a test")

    server.served.refuse = refuse
    summaries = [problem.summary for problem in examine(config)]
    assert [summary.partition("to ")[2] for summary in summaries] == [
        "patch nodes/status",
        "create events",
        "patch events",
    ]


def test_printed_role(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("kube: {namespace: net, not_ready_taint: ''}")
    done = CliRunner().invoke(build(), ["kube", "rbac", "--config", str(path)])
    account, role, binding = yaml.safe_load_all(done.stdout)
    assert account["metadata"] == {"name": "terway", "namespace": "net"}
    assert binding["subjects"][0]["namespace"] == "net"
    assert {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]} in role["rules"]
    assert rules(KubeConfig()) != role["rules"]  # with a taint to remove, nodes are patched
