"""Who an address belongs to, when sandboxes come and go in other ways than they should."""

import pytest

pytestmark = pytest.mark.kernel


def ids(node):
    """The container ids in the journal."""
    return [row["container_id"] for row in node.journal()]


def links(pod):
    return {link["ifname"] for link in pod.ip("link")}


def test_new_sandbox_of_a_pod_takes_the_old_one_down(node):
    old = node.pod("web-0")
    node.add(old)
    new = node.pod("web-0")
    addresses = node.add(new)
    assert ids(node) == [new.container_id]
    assert links(old) == {"lo"}
    assert all(node.reaches(address) for address in addresses)
    assert node.audit() == []


def test_crash_loop_without_any_delete_uses_one_address(node):
    for _ in range(20):
        pod = node.pod("crashing")
        addresses = node.add(pod)
    assert ids(node) == [pod.container_id]
    assert all(node.reaches(address) for address in addresses)
    assert node.audit() == []  # which counts owned addresses without a row, and strays in the kernel


def test_crash_loop_of_sandboxes_whose_namespaces_vanish(node):
    for _ in range(5):
        node.add(pod := node.pod("vanishing"))
        node.remove(pod)
    node.add(pod := node.pod("vanishing"))
    assert ids(node) == [pod.container_id]
    assert node.audit() == []


def test_same_pod_on_a_network_that_was_renamed(node):
    node.add(node.pod("web-0"), network="before")
    new = node.pod("web-0")
    node.add(new, network="after")
    assert [(row["network"], row["container_id"]) for row in node.journal()] == [("after", new.container_id)]
    assert node.audit() == []


@pytest.mark.parametrize("netns", ["as it was", "empty"])
def test_late_delete_of_the_old_sandbox_spares_the_new_one(node, netns):
    old = node.pod("web-0")
    node.add(old)
    new = node.pod("web-0")
    addresses = node.add(new)
    before = node.kernel()
    node.delete(old, env={} if netns == "as it was" else {"CNI_NETNS": ""})
    assert ids(node) == [new.container_id]
    assert set(node.kernel()) == set(before)
    assert all(node.reaches(address) for address in addresses)


def test_repeated_delete_spares_who_has_the_address_now(make_node):
    node = make_node(vpc={"pod_cidrs": ["172.20.1.0/30"]})
    node.start()
    first, neighbour, next_owner = node.pod(), node.pod(), node.pod()
    (address,) = node.add(first)
    node.add(neighbour)
    node.delete(first)
    assert node.add(next_owner) == [address]  # the only one that is free
    before = node.kernel()
    node.delete(first, prevResult=first.results["eth0"])
    node.delete(first, env={"CNI_NETNS": ""})
    assert ids(node) == [neighbour.container_id, next_owner.container_id]
    assert set(node.kernel()) == set(before)
    assert node.reaches(address)
    assert node.audit() == []


def test_exhausted_pool_says_so_and_recovers(make_node):
    node = make_node(vpc={"pod_cidrs": ["172.20.1.0/30", "fd00:1::/64"]})
    node.start()
    pods = [node.pod() for _ in range(3)]
    for pod in pods[:2]:
        node.add(pod)
    before = node.kernel()
    answer = node.cni("ADD", pods[2])
    assert answer.code == 11
    assert "no address is free in 172.20.1.0/30" in answer.text
    assert set(node.kernel()) == set(before)
    assert node.audit() == []
    node.delete(pods[0])
    node.add(pods[2])


def test_add_again_gives_the_same_answer_and_changes_nothing(node):
    pod = node.pod()
    node.add(pod)
    kernel, journal = node.kernel(), node.journal()
    answer = node.cni("ADD", pod)
    assert (answer.status, answer.body) == (0, pod.results["eth0"])
    assert set(node.kernel()) == set(kernel)
    assert node.journal() == journal
    answer = node.cni("ADD", pod, version="0.3.1")
    assert answer.body["cniVersion"] == "0.3.1"


def test_add_again_for_a_new_namespace_at_the_same_path_wires_it(node):
    """As cnitool does, whose container id is made of the path: the kernel gives the same inode again."""
    pod = node.pod()
    node.add(pod)
    node.renew(pod)
    addresses = node.add(pod)
    assert all(node.reaches(address) for address in addresses)
    assert node.cni("CHECK", pod).status == 0
    assert node.audit() == []


def test_two_networks_on_one_pod(node):
    pod, other = node.pod(), node.pod()
    node.add(other)
    ours = {
        "eth0": node.add(pod),
        "eth1": node.add(pod, ifname="eth1", network="second"),
    }

    def reached():
        return {
            ifname: [node.reaches(ip, timeout=0.3) and other.reaches(ip) for ip in ips]
            for ifname, ips in ours.items()
        }

    assert reached() == {"eth0": [True, True], "eth1": [True, True]}
    assert node.cni("CHECK", pod).status == 0
    assert node.cni("CHECK", pod, ifname="eth1", network="second").status == 0
    node.delete(pod, ifname="eth1", network="second")
    assert reached() == {"eth0": [True, True], "eth1": [False, False]}
    assert {rule["priority"] for rule in pod.ip("rule")} == {0, 32766, 32767}
    assert node.audit() == []

    ours["eth1"] = node.add(pod, ifname="eth1", network="second")
    node.delete(pod)
    assert reached() == {"eth0": [False, False], "eth1": [True, True]}
    assert node.audit() == []


def test_one_interface_name_is_not_given_twice(node):
    """What another network finds under its name in the pod stays, and so does its owner's network."""
    pod = node.pod()
    addresses = node.add(pod)
    answer = node.cni("ADD", pod, network="second", env={"CNI_CONTAINERID": "other", "CNI_ARGS": ""})
    assert answer.code == 100
    assert "eth0 in the pod exists" in answer.text
    assert all(node.reaches(address) for address in addresses)
    assert node.audit() == []


def test_pod_without_a_name(node):
    """As podman and cnitool call it."""
    pod, other = node.pod(), node.pod()
    for sandbox in (pod, other):
        node.add(sandbox, env={"CNI_ARGS": ""})
    assert ids(node) == [pod.container_id, other.container_id]
    node.delete(pod, env={"CNI_ARGS": "", "CNI_NETNS": ""})
    assert ids(node) == [other.container_id]
    assert node.audit() == []


def test_host_namespace_is_no_pods(node):
    before = node.kernel()
    answer = node.cni("ADD", node.pod(), env={"CNI_NETNS": str(node.netns)})
    assert answer.code == 4
    assert "host's own network namespace" in answer.text
    assert set(node.kernel()) == set(before)
    assert node.journal() == []
