"""A real client: containerd runs pods on a lab's node through our plugin, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network

import pytest

from terway_core.types import Attachment, Pod

from .containerd.cri import CriError
from .containerd.machine import Machine, changes
from .containerd.node import Lab, eventually
from .containerd.runtime import LOOPBACK, POD_NAMESPACE, Containerd

pytestmark = pytest.mark.e2e

PROGRAMS = ("busybox", "containerd", "ctr", "ip", "nft", "nsenter", "runc", "tc", "unshare")


@pytest.fixture(scope="module", autouse=True)
def _equipped():
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    missing += [] if LOOPBACK.exists() else [str(LOOPBACK)]
    missing += ["root"] if os.geteuid() else []
    if missing:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"containerd cannot be driven without: {', '.join(missing)}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Machine(f"terway-e2e-{os.getpid()}") as machine:
        yield Lab(machine, tmp_path_factory.mktemp("lab"), "--ip-stack", "dual")


@pytest.fixture(scope="module")
def node(lab):
    """The node that containerd runs on."""
    return lab.nodes[0]


@pytest.fixture(scope="module")
def far(lab):
    """The addresses of the pod ``far`` on the other node."""
    return lab.add_pod(lab.nodes[1], "far")


@pytest.fixture(scope="module")
def shared_containerd(node, tmp_path_factory):
    containerd = Containerd(node, tmp_path_factory.mktemp("containerd"))
    yield containerd
    containerd.close()


@pytest.fixture(scope="module")
def empty(node, far, shared_containerd):
    """What there is while the node has no pod."""
    return traces(node)


@pytest.fixture
def containerd(shared_containerd, node, empty):
    yield shared_containerd
    node.start_daemon()
    shared_containerd.remove_all()


@pytest.fixture
def nothing_left(node, empty, containerd):
    """A function that fails unless nothing is left of any sandbox."""

    def check():
        assert containerd.sandboxes() == []
        assert node.pods() == {}
        assert_unchanged(node, empty)

    return check


def traces(node):
    return node.traces(), node.machine.traces()


def assert_unchanged(node, before):
    """There is nothing more and nothing less than before."""
    network, machine = before
    assert changes(network, node.traces()) == []  # at once, so that it cannot be gc which sees to it
    eventually(lambda: changes(machine, node.machine.traces()), [])  # shims end a little later
    node.audit()


def host_ifname(pod: str) -> str:
    """The node's end of the pod's link."""
    who = Pod(namespace=POD_NAMESPACE, name=pod)
    return Attachment(network="terway", container_id="", ifname="eth0", pod=who).host_ifname


def test_pods_have_the_addresses_that_the_runtime_was_told(containerd, node, nothing_left):
    names = [f"web-{number}" for number in range(4)]
    with ThreadPoolExecutor() as pool:
        pods = list(pool.map(containerd.run, names))
    assert node.pods() == {pod.id: pod.addresses for pod in pods}
    assert len({address for pod in pods for address in pod.addresses}) == 2 * len(pods)
    for pod in pods:
        shown = containerd.execute(pod, "ip", "-oneline", "address", "show", "eth0", "scope", "global")
        assert re.findall(r"inet6? (\S+)/", shown) == pod.addresses
    node.audit()
    with ThreadPoolExecutor() as pool:
        list(pool.map(containerd.remove, pods))
    nothing_left()


def test_pods_are_reached_and_reach(containerd, lab, node, far):
    pod, neighbour = containerd.run("pod"), containerd.run("neighbour")
    targets = {
        "itself": pod.addresses,
        "pod on the node": neighbour.addresses,
        "node": node.addresses,
        "pod on the other node": far,
        "other node": lab.nodes[1].addresses,
        "internet": lab.internet,
    }
    paths = [(name, address) for name, addresses in targets.items() for address in addresses]
    assert len(paths) == 2 * len(targets)
    assert [path for path in paths if not containerd.reaches(pod, path[1])] == []
    for address in pod.addresses:
        for source in ("far", *(node.name for node in lab.nodes)):
            lab.terway("ping", source, address)


def test_network_ends_with_the_sandbox_and_not_with_its_removal(containerd, node, nothing_left):
    pod = containerd.run("web")
    containerd.stop(pod)
    assert node.pods() == {}
    node.audit()
    containerd.remove(pod)  # the second DEL of the sandbox, without a namespace
    nothing_left()


def test_bandwidth_annotations_arrive_as_capability(containerd, node, nothing_left):
    annotations = {"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "10M"}
    pod = containerd.run("web", annotations=annotations)
    show = ("tc", "qdisc", "show", "dev")
    assert re.search(r"^qdisc tbf .* rate 20Mbit ", node.run(*show, host_ifname("web")))
    assert re.search(r"^qdisc tbf .* rate 10Mbit ", containerd.inspect(pod, *show, "eth0"))
    containerd.remove(pod)
    nothing_left()


@pytest.fixture
def two_addresses(node, containerd):
    """The node has IPv4 addresses for two pods, and no more: those of this CIDR."""
    options = node.settings["options"]["vpc"]
    ipv4, ipv6 = options["pod_cidrs"]
    *_, last = ip_network(ipv4).subnets(new_prefix=30)  # at the other end: the first ones rest
    cidr = str(last)
    changed = {"pod_cidrs": [cidr, ipv6], "route_controller": False}
    node.kill_daemon()
    node.start_daemon(options={"vpc": options | changed})
    yield cidr
    containerd.remove_all()
    node.kill_daemon()
    node.start_daemon()


def test_sandbox_without_an_address_leaves_nothing(containerd, node, two_addresses, nothing_left):
    pods = [containerd.run("one"), containerd.run("two")]
    before = traces(node)
    with pytest.raises(CriError) as failure:
        containerd.run("three")
    assert f"no address is free in {two_addresses}: 2 are owned by pods" in failure.value.details()
    assert set(containerd.sandboxes()) == set(node.pods()) == {pod.id for pod in pods}
    assert_unchanged(node, before)
    for pod in pods:
        containerd.remove(pod)
    nothing_left()


def test_sandbox_that_cannot_be_wired_leaves_nothing(containerd, node, nothing_left):
    name = host_ifname("web")
    node.run("ip", "link", "add", name, "type", "veth", "peer", "name", "foreign")
    try:
        before = traces(node)
        with pytest.raises(CriError) as failure:
            containerd.run("web")
        assert name in failure.value.details()
        assert containerd.sandboxes() == []
        assert_unchanged(node, before)
    finally:
        node.run("ip", "link", "delete", name)
    nothing_left()


def test_sandbox_without_a_daemon_leaves_nothing(containerd, node, nothing_left):
    node.kill_daemon()
    with pytest.raises(CriError) as failure:
        containerd.run("web")
    assert "the terway daemon is not reachable" in failure.value.details()
    assert containerd.sandboxes() == []
    node.start_daemon()
    nothing_left()


def test_sandboxes_are_removed_while_the_daemon_is_dead(containerd, node, far, nothing_left):
    pods = [containerd.run("one"), containerd.run("two")]
    node.kill_daemon()
    for pod in pods:
        containerd.remove(pod)
    assert containerd.sandboxes() == []
    assert node.spooled()
    node.start_daemon()
    nothing_left()
    assert containerd.reaches(containerd.run("one"), far[0])


def test_traffic_flows_while_the_daemon_is_killed_and_started(containerd, node, far, nothing_left):
    pod, neighbour = containerd.run("pod"), containerd.run("neighbour")
    before = traces(node)
    answers: list[bool] = []
    over = threading.Event()

    def send(address):
        while not over.is_set():
            answers.append(containerd.reaches(pod, address))

    with ThreadPoolExecutor() as pool:
        senders = [pool.submit(send, address) for address in (*neighbour.addresses, *far)]
        try:
            node.kill_daemon()
            node.start_daemon()
        finally:
            over.set()
    for sender in senders:
        sender.result()
    assert answers
    assert all(answers)
    assert set(node.pods()) == {pod.id, neighbour.id}
    assert_unchanged(node, before)
    containerd.remove_all()
    nothing_left()


def test_sandbox_made_again_after_a_crash_replaces_the_old_one(containerd, node, far, nothing_left):
    crashed = containerd.run("web")
    node.machine.kill(crashed.pid)
    again = containerd.run("web", attempt=1)
    assert node.pods() == {again.id: again.addresses}
    # Its addresses rest: somebody may still send to the crashed one.
    assert not set(again.addresses) & set(crashed.addresses)
    node.audit()
    containerd.remove(crashed)  # the late DELs of the old sandbox
    assert set(node.pods()) == {again.id}
    assert containerd.reaches(again, far[0])
    containerd.remove(again)
    nothing_left()
