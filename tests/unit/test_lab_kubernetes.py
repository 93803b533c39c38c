"""The simulated API server's own logic, and where the programs of a real one are looked for."""

import pytest

from terway_core.kube import NAMESPACES, PODS, Resource
from terway_core.lab.kubernetes import Objects, Refusal, real
from terway_core.lab.kubernetes.objects import CRDS
from terway_core.lab.kubernetes.patches import merge, strategic
from terway_core.lab.kubernetes.selectors import parse
from terway_core.lab.state import LabError

POD = {
    "metadata": {"name": "a", "labels": {"app": "web", "tier": "front"}},
    "spec": {"nodeName": "node-1"},
}


@pytest.mark.parametrize(
    ("labels", "fields", "matches"),
    [
        ("", "", True),
        ("app=web", "", True),
        ("app == web, tier!=back", "", True),
        ("app in (api, web),tier notin (back)", "", True),
        ("app,!gone", "", True),
        ("app in (api)", "", False),
        ("!app", "", False),
        ("gone", "", False),
        ("gone!=x", "", True),
        ("", "spec.nodeName=node-1,metadata.name=a", True),
        ("", "spec.nodeName=node-2", False),
        ("", "spec.nodeName!=", True),
        ("", "status.phase=", True),
    ],
)
def test_selectors(labels, fields, matches):
    assert parse(labels, fields)(POD) is matches


@pytest.mark.parametrize("text", ["=", "a in b", "a=b c", "a in (b"])
def test_no_selector(text):
    with pytest.raises(ValueError, match="no selector"):
        parse(text, "")


def test_merge_patch_replaces_lists_and_removes_by_null():
    old = {"a": {"b": 1, "c": 2}, "conditions": [{"type": "x"}]}
    new = merge(old, {"a": {"b": None, "d": {"e": None}}, "conditions": [{"type": "y"}]})
    assert new == {"a": {"c": 2, "d": {}}, "conditions": [{"type": "y"}]}
    assert old["a"] == {"b": 1, "c": 2}


def test_strategic_patch_merges_lists_by_key():
    old = {"conditions": [{"type": "x", "n": 1}, {"type": "y"}], "taints": [{"key": "t"}]}
    patch = {
        "conditions": [{"type": "x", "m": 2}, {"type": "y", "$patch": "delete"}, {"type": "z"}],
        "taints": [{"key": "u"}],
    }
    assert strategic(old, patch) == {
        "conditions": [{"type": "x", "n": 1, "m": 2}, {"type": "z"}],
        "taints": [{"key": "u"}],
    }


def test_names_are_made_or_refused():
    objects = Objects()
    made = objects.create(PODS, {"metadata": {"generateName": "web-"}}, "default")
    assert made["metadata"]["name"].startswith("web-")
    for body, namespace, code in (({}, "default", 422), ({"metadata": {"name": "a"}}, "", 400)):
        with pytest.raises(Refusal) as caught:
            objects.create(PODS, body, namespace)
        assert caught.value.code == code


def test_nothing_changes_without_a_difference():
    objects = Objects()
    objects.create(PODS, POD, "default")
    version = objects.version
    objects.patch(PODS, "a", {"spec": {"nodeName": "node-1"}}, "default")
    assert objects.version == version
    objects.patch(NAMESPACES, "default", {"metadata": {"labels": {"a": "b"}}})
    assert objects.version == version + 1


def test_a_kind_comes_and_goes_with_its_definition():
    objects = Objects()
    spec = {
        "group": "example.com",
        "scope": "Cluster",
        "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1"}],
    }
    objects.create(CRDS, {"metadata": {"name": "widgets.example.com"}, "spec": spec})
    kind = objects.kind("example.com", "v1", "widgets")
    assert kind == Resource(
        group="example.com", version="v1", plural="widgets", kind="Widget", namespaced=False
    )
    objects.delete(CRDS, "widgets.example.com")
    assert objects.kind("example.com", "v1", "widgets") is None


def test_programs_of_a_real_server(tmp_path):
    with pytest.raises(LabError, match="etcd"):
        real.find({real.ENV_ASSETS: str(tmp_path)})
    for name in ("etcd", "kube-apiserver"):
        (tmp_path / name).touch(mode=0o755)
    programs = real.find({real.ENV_ASSETS: str(tmp_path)})
    assert programs == real.Programs(tmp_path / "etcd", tmp_path / "kube-apiserver")
