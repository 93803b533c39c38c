"""Which pods are selected, what is patched into them, and which PodNetworkings make no sense."""

import json
from copy import deepcopy

import pytest
from terway_driver_trunking.admission import ZONE, patch_of, problems_of, select
from terway_driver_trunking.durations import parse_duration
from terway_driver_trunking.selectors import matches


def networking(name="net", selector=None, status="Ready", zones=("h", "i"), **spec):
    spec = {
        "selector": selector if selector is not None else {"podSelector": {"matchLabels": {"a": "b"}}}
    } | spec
    vswitches = [{"id": f"vsw-{zone}", "zone": zone} for zone in zones]
    return {"metadata": {"name": name}, "spec": spec, "status": {"status": status, "vSwitches": vswitches}}


def pod(owner="", labels=None, **spec):
    owners = [{"kind": owner}] if owner else []
    metadata = {"name": "db-0", "labels": {"a": "b"} if labels is None else labels, "ownerReferences": owners}
    return {"metadata": metadata, "spec": {"containers": [{"name": "main"}], **spec}}


def name_of(found):
    return found and found["metadata"]["name"]


def nothing():
    return None


def applied(obj, patch):
    """RFC 6902, as far as it is used: ``add`` of members."""
    obj = deepcopy(obj)
    for operation in json.loads(json.dumps(patch)):
        assert operation["op"] == "add"
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"][1:].split("/")
        ]
        target = obj
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target[part]
        target[last] = operation["value"]
    return obj


FIXED = {"type": "Fixed", "releaseStrategy": "TTL", "releaseAfter": "5m0s"}


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "b"}}, {"a": "b", "c": "d"}, True),
        ({"matchLabels": {"a": "b"}}, {"a": "c"}, False),
        ({"matchLabels": {"a": "b", "c": "d"}}, {"a": "b"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b", "c"]}]}, {"a": "c"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}, {"a": "b"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
    ],
)
def test_label_selectors(selector, labels, expected):
    assert matches(selector, labels) is expected


@pytest.mark.parametrize(
    ("selector", "namespace", "expected"),
    [
        ({}, {}, None),
        ({"podSelector": {}}, {}, "net"),
        ({"podSelector": {"matchLabels": {"a": "x"}}}, {}, None),
        ({"namespaceSelector": {"matchLabels": {"team": "db"}}}, {"team": "db"}, "net"),
        ({"namespaceSelector": {"matchLabels": {"team": "db"}}}, {}, None),
        (
            {"podSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {"matchLabels": {"team": "x"}}},
            {"team": "db"},
            None,
        ),
        ({"podSelector": {}}, {"k8s.aliyun.com/pod-eni": "false"}, None),
    ],
)
def test_selection(selector, namespace, expected):
    assert name_of(select(pod(), namespace, [networking(selector=selector)])) == expected


def test_who_is_never_selected():
    everybody = [networking(selector={"podSelector": {}})]
    assert select(pod(hostNetwork=True), {}, everybody) is None
    assert select(pod(labels={"k8s.aliyun.com/ignore-by-terway": "true"}), {}, everybody) is None
    assert select(pod(), {}, [networking(status="Fail")]) is None
    assert name_of(select(pod(), {}, everybody)) == "net"


def test_the_first_by_name():
    assert name_of(select(pod(), {}, [networking("z"), networking("b"), networking("c")])) == "b"


def test_fixed_selects_pods_of_statefulsets_only():
    networkings = [networking("a", allocationType=FIXED), networking("b")]
    assert name_of(select(pod("StatefulSet"), {}, networkings)) == "a"
    assert name_of(select(pod("ReplicaSet"), {}, networkings)) == "b"


def test_what_a_selected_pod_becomes():
    made = applied(pod(), patch_of(pod(), networking(), nothing))
    assert made["metadata"]["annotations"] == {
        "k8s.aliyun.com/pod-eni": "true",
        "k8s.aliyun.com/pod-networking": "net",
    }
    one = {"aliyun/member-eni": "1"}
    assert made["spec"]["containers"][0]["resources"] == {"requests": one, "limits": one}
    assert made["spec"]["affinity"] == {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["h", "i"]}]}
                ]
            }
        }
    }


def test_what_a_pod_says_itself_stays():
    terms = [{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}, {"matchFields": [{"key": "f"}]}]
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    affinity = {
        "podAffinity": {"x": 1},
        "nodeAffinity": {"preferred": [], required: {"nodeSelectorTerms": terms}},
    }
    original = pod(affinity=affinity)
    original["metadata"]["annotations"] = {"mine": "yes"}
    original["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "1"}}
    made = applied(original, patch_of(original, networking(zones=["h"]), nothing))
    assert made["metadata"]["annotations"]["mine"] == "yes"
    assert made["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "1", "aliyun/member-eni": "1"},
        "limits": {"aliyun/member-eni": "1"},
    }
    zone = {"key": ZONE, "operator": "In", "values": ["h"]}
    assert made["spec"]["affinity"] == {
        "podAffinity": {"x": 1},
        "nodeAffinity": {
            "preferred": [],
            required: {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "disk", "operator": "Exists"}, zone]},
                    {"matchFields": [{"key": "f"}], "matchExpressions": [zone]},
                ]
            },
        },
    }


def test_a_fixed_address_keeps_its_pod_in_its_zone():
    fixed = networking(allocationType=FIXED)
    podeni = {"spec": {"allocations": [{"allocationType": FIXED, "eni": {"zone": "i"}}]}}
    made = applied(pod("StatefulSet"), patch_of(pod("StatefulSet"), fixed, lambda: podeni))
    assert '"values": ["i"]' in json.dumps(made["spec"]["affinity"])


def test_a_pod_of_a_daemonset_is_not_moved():
    assert (
        "affinity" not in applied(pod("DaemonSet"), patch_of(pod("DaemonSet"), networking(), nothing))["spec"]
    )


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({}, ""),
        ({"allocationType": {"type": "Elastic"}}, ""),
        ({"allocationType": {"type": "Elastic", "releaseStrategy": "TTL", "releaseAfter": "5m0s"}}, ""),
        ({"allocationType": FIXED}, ""),
        ({"allocationType": {"type": "Fixed", "releaseStrategy": "Never"}}, ""),
        ({"allocationType": {"type": "Fixed"}}, "releaseStrategy"),
        ({"allocationType": {"type": "Fixed", "releaseStrategy": "TTL"}}, "releaseAfter"),
        ({"allocationType": FIXED | {"releaseAfter": "0s"}}, "releaseAfter"),
        ({"allocationType": FIXED | {"releaseAfter": "soon"}}, "releaseAfter"),
        ({"allocationType": FIXED | {"releaseStrategy": "Never"}}, "Never"),
        ({"eniOptions": {"eniType": "Trunk"}}, ""),
        ({"eniOptions": {"eniType": "ENI"}}, "mode eni"),
        ({"selector": {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}}, "needs"),
        (
            {
                "selector": {
                    "podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}
                }
            },
            "has no",
        ),
    ],
)
def test_problems(spec, problem):
    assert (problem in "; ".join(problems_of(spec))) if problem else (problems_of(spec) == [])


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m0s", 300), ("1h30m", 5400), ("0", 0), ("0s", 0), ("1.5s", 1.5), ("500ms", 0.5)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "5m ", "5 m", "1d", "m5"])
def test_no_durations(text):
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(text)
