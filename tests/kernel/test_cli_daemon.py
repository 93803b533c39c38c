"""The commands that ask a daemon, with one that serves real pods."""

import json

import pytest

from terway_core.wiring.netns import delete_netns

pytestmark = pytest.mark.kernel


@pytest.fixture
def pod(node):
    pod = node.pod("cart")
    pod.namespace = "shop"
    pod.addresses = node.add(pod)
    return pod


def test_status_of_a_node_that_is_well(node, pod):
    lines = node.terway("status").splitlines()
    assert lines[0].startswith("terway 0.1.0 on ")
    assert lines[0].endswith(": ready")
    assert "  driver vpc: started" in lines
    assert "  attachments vpc ready: 1" in lines
    answer = json.loads(node.terway("status", "--json"))
    assert (answer["ready"], answer["healthy"], answer["problems"]) == (True, True, [])


def test_pods_list(node, pod):
    header, line = node.terway("pods", "list").splitlines()
    assert header.split() == ["POD", "IFNAME", "ADDRESSES", "DRIVER", "STATE", "AGE", "SANDBOX"]
    assert line.split()[:2] == ["shop/cart", "eth0"]
    assert all(word in line for word in (*pod.addresses, "vpc", "ready", pod.container_id[:13]))
    (row,) = json.loads(node.terway("pods", "list", "--json"))
    assert (row["name"], row["addresses"], row["uid"]) == ("cart", pod.addresses, pod.uid)


@pytest.mark.parametrize("name", ["shop/cart", "cart", "the sandbox"])
def test_pods_show_has_every_object(node, pod, name):
    text = node.terway("pods", "show", pod.container_id if name == "the sandbox" else name)
    head, *lines = text.splitlines()
    assert head == f"shop/cart  eth0  {', '.join(pod.addresses)}"
    parts = [line.strip(" :") for line in lines if line.endswith(":")]
    assert parts == ["node, shared", "host", "pod"]
    assert f"    address {pod.addresses[0]}/32 dev eth0" in lines
    assert "    sysctl net/ipv4/ip_forward = 1" in lines
    assert any(line.startswith("    masquerade from 172.20.1.0/24") for line in lines)
    assert f"  {'container id':13}{pod.container_id}" in lines


def test_pods_show_as_json(node, pod):
    (row,) = json.loads(node.terway("pods", "show", "cart", "--json"))
    assert set(row["wiring"]) == {"node", "host", "pod"}


def test_a_pod_that_is_not_there(node, pod):
    answer = node.terway("pods", "show", "basket", status=1)
    assert answer == "terway: no pod 'basket' is attached on this node; see: terway pods list\n"


def test_gc_of_a_node_that_is_well(node, pod):
    assert node.terway("gc") == "nothing to do\n"
    assert json.loads(node.terway("gc", "--json")) == {"released": [], "problems": []}


def test_gc_says_first_what_it_would_do(node):
    pod = node.pod("gone")
    node.add(pod)
    delete_netns(pod.netns.name)
    key = f"terway/{pod.container_id}/eth0"
    announced = f"would release: attachment {key}"
    node.wait_for(lambda: announced in node.terway("gc", "--dry-run"), "gc wants to take it down")
    assert len(node.journal()) == 1
    assert f"released: attachment {key}" in node.terway("gc")
    assert node.journal() == []
    node.pods.remove(pod)


def test_audit_of_a_node_that_is_well(node, pod):
    assert node.terway("audit") == "no difference\n"
    assert json.loads(node.terway("audit", "--json")) == []


def test_audit_and_gc_of_a_stray(node, pod):
    rule = ["rule", "add", "to", "172.20.1.99", "priority", "512", "protocol", "116"]
    node.run("ip", *rule)
    stray = "rule 512: to 172.20.1.99/32 lookup 254"
    assert node.terway("audit", status=1) == f"kernel: {stray} belongs to no attachment\n"
    assert json.loads(node.terway("audit", "--json", status=1))
    assert node.terway("gc") == f"released: {stray}\n"
    assert node.terway("audit") == "no difference\n"


def test_audit_names_what_a_hand_broke(node, pod):
    pod.run("ip", "route", "del", "default")
    (line,) = node.terway("audit", status=1).splitlines()
    assert "shop/cart" in line
    assert "route default via 169.254.1.1 dev eth0: missing" in line
    pod.run("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink")
    assert node.terway("audit") == "no difference\n"


def test_doctor_of_a_node_that_is_well(node, pod):
    assert node.terway("doctor") == "no problem found\n"
    assert json.loads(node.terway("doctor", "--json")) == []


def test_doctor_sees_what_pods_rely_on(node, pod):
    node.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    problem, remedy = node.terway("doctor", status=1).splitlines()
    assert problem == "problem: node: sysctl net/ipv4/ip_forward = 1: is 0, which pods rely on"
    assert remedy == "  remedy: bring it back with: terway gc"
    node.terway("gc")
    assert node.terway("doctor") == "no problem found\n"
