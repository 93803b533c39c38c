"""The protocol through the real plugin and the real daemon: every version, GC, STATUS, chained results."""

import json

import pytest

pytestmark = pytest.mark.kernel

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_result(node, version):
    pod = node.pod()
    answer = node.cni("ADD", pod, version=version, dns={"nameservers": ["192.0.2.53"]})
    assert answer.status == 0
    body = answer.body
    host, inside = body["interfaces"]
    (link,) = [link for link in pod.ip("link") if link["ifname"] == "eth0"]
    assert (inside["name"], inside["mac"], inside["sandbox"]) == ("eth0", link["address"], str(pod.netns))
    (link,) = [link for link in node.ip("link") if link["ifname"] == host["name"]]
    assert (host["mac"], "sandbox" in host) == (link["address"], False)
    assert [interface.get("mtu") for interface in (host, inside)] == [
        1500 if version == "1.1.0" else None
    ] * 2

    four, six = body["ips"]
    assert (four["gateway"], six["gateway"]) == ("169.254.1.1", "fe80::1")
    assert four["address"].endswith("/32")
    assert six["address"].endswith("/128")
    assert (four["interface"], six["interface"]) == (1, 1)
    assert [ip.get("version") for ip in body["ips"]] == (["4", "6"] if version < "1" else [None, None])
    assert body["routes"] == [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}]
    assert body["dns"] == {"nameservers": ["192.0.2.53"]}
    assert body["cniVersion"] == version
    assert all(node.reaches(address) for address in answer.addresses)
    node.delete(pod, version=version, prevResult=body)


def test_result_of_the_plugin_before_comes_first(node):
    previous = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "bridge0"}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
    }
    body = node.cni("ADD", node.pod(), prevResult=previous).body
    assert [interface["name"] for interface in body["interfaces"]][::2] == ["bridge0", "eth0"]
    assert body["ips"][0] == previous["ips"][0]
    assert [ip["interface"] for ip in body["ips"]] == [0, 2, 2]
    assert [route["dst"] for route in body["routes"]] == ["192.0.2.0/24", "0.0.0.0/0", "::/0"]


@pytest.mark.parametrize("version", VERSIONS)
def test_version(node, version):
    answer = node.cni("VERSION", version=version)
    assert answer.body == {"cniVersion": version, "supportedVersions": list(VERSIONS)}


@pytest.mark.parametrize("version", ["", "0.1.0", "0.2.0", "2.0.0", "1.0", "one"])
def test_unknown_version(node, version):
    pod = node.pod()
    answer = node.cni("ADD", pod, version=version)
    assert answer.code == 1
    assert answer.body["cniVersion"] == version or not version
    assert node.journal() == []


def test_status(node):
    answer = node.cni("STATUS", version="1.1.0")
    assert (answer.status, answer.body) == (0, None)
    assert node.cni("STATUS", version="1.0.0").code == 1


def valid(*pods):
    return [{"containerID": pod.container_id, "ifname": "eth0"} for pod in pods]


def test_gc_removes_all_but_the_valid_of_its_network(node):
    kept, gone, lost, elsewhere = (node.pod() for _ in range(4))
    for pod in (kept, gone, lost):
        node.add(pod)
    node.add(gone, ifname="eth1", network="second")
    node.add(elsewhere, network="second")
    answer = node.cni("GC", version="1.1.0", **{"cni.dev/valid-attachments": valid(kept)})
    assert (answer.status, answer.body) == (0, None)
    left = {(row["network"], row["container_id"], row["ifname"]) for row in node.journal()}
    assert left == {
        ("terway", kept.container_id, "eth0"),
        ("second", gone.container_id, "eth1"),
        ("second", elsewhere.container_id, "eth0"),
    }
    assert all(node.reaches(ip["address"].partition("/")[0]) for ip in kept.results["eth0"]["ips"])
    assert {link["ifname"] for link in lost.ip("link")} == {"lo"}
    assert node.audit() == []

    answer = node.cni("GC", version="1.1.0", network="second", **{"cni.dev/valid-attachments": None})
    assert answer.status == 0
    assert [row["container_id"] for row in node.journal()] == [kept.container_id]
    assert node.audit() == []


@pytest.mark.parametrize("attachments", [{}, {"cni.dev/valid-attachments": [{"containerID": "x"}]}])
def test_gc_that_does_not_say_what_is_valid_removes_nothing(node, attachments):
    node.add(node.pod())
    assert node.cni("GC", version="1.1.0", **attachments).code == 7
    assert len(node.journal()) == 1
    assert node.cni("GC", version="1.0.0", **{"cni.dev/valid-attachments": []}).code == 1
    assert len(node.journal()) == 1


def test_installed_conflist_is_what_a_runtime_needs(node):
    """The way of a runtime that knows the two folders only."""
    conflist = json.loads((node.config.cni_conf_dir / "10-terway.conflist").read_text())
    (plugin,) = conflist["plugins"]
    assert (node.config.cni_bin_dir / plugin["type"]).stat().st_mode & 0o777 == 0o755
    pod = node.pod()
    addresses = node.add(pod, **{key: value for key, value in plugin.items() if key != "type"})
    assert all(node.reaches(address) for address in addresses)
