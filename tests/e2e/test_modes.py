"""Every mode on two nodes of the lab: who reaches whom, Services, and that the tests could fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from terway_core.lab.build import down, served_calls, up
from terway_core.lab.nodes import start_daemon, terway
from terway_core.lab.paths import INTERNET, endpoints, measure
from terway_core.lab.ping import ping
from terway_core.lab.runtime import Runtime, Sandbox
from terway_core.lab.state import Lab, NodeFiles, Spec, recall
from terway_core.wiring.inspect import HostState
from terway_core.wiring.netns import Namespace, delete_netns
from terway_core.wiring.snapshot import Snapshot

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]
if os.geteuid() and not os.environ.get("CI"):
    pytestmark.append(pytest.mark.skip(reason="the lab needs root"))

SERVICE, SERVICE6 = "172.21.0.10", "fd21::10"


@dataclass
class Modes:
    """A lab of one mode, with two pods on each node."""

    lab: Lab
    mode: str
    pods: dict[str, Sandbox]

    def runtime(self, number: int) -> Runtime:
        return Runtime(self.lab.nodes[number - 1])

    def reaches(self, source: str, target: str, *, timeout: float = 2.0) -> bool:
        with Namespace.open(self.pods[source].netns) as namespace:
            return namespace.run(ping, ip_address(target), timeout=timeout) is not None


@pytest.fixture(scope="module", params=["vpc", "eniip_veth", "eni"])
def modes(request, tmp_path_factory) -> Iterator[Modes]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    up(lab, Spec(nodes=2, drivers=(request.param,), ip_stack="dual"), lambda share, step: None)
    try:
        found = Modes(lab, request.param, {})
        for number in (1, 2):
            for letter in "ab":
                name = f"{letter}{number}"
                found.pods[name] = found.runtime(number).run_pod(name)
        yield found
    finally:
        down(lab)


@pytest.fixture
def eniip(modes) -> Modes:
    if modes.mode != "eniip_veth":
        pytest.skip("about policy routing, which only eniip_veth has")
    return modes


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.05)


def on(node: NodeFiles, *argv: str) -> str:
    with Namespace.open(node.netns) as namespace:
        done = namespace.run(subprocess.run, argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_paths(modes):
    known = endpoints(modes.lab)
    pods = [known[name] for name in modes.pods]
    targets = [*pods, known["node-1"], known["node-2"], known[INTERNET]]
    pairs = [(source, target) for source in pods for target in targets if target is not source]
    nodes = [known["node-1"], known["node-2"]]
    pairs += [(node, pod) for node in nodes for pod in pods if pod.node == node.name]
    results = measure(pairs, timeout=3.0)
    broken = [f"{r.source.name} → {r.target.name} {r.address}" for r in results if r.milliseconds is None]
    assert len(results) >= 2 * len(pairs) - 2
    assert broken == []


def test_pod_addresses_are_the_modes(modes):
    for pod in modes.pods.values():
        inside = ip_address("192.168.0.1") < pod.addresses[0] < ip_address("192.168.0.253")
        assert inside == (modes.mode != "vpc")


def test_service_goes_through_the_hosts_stack(modes):
    """What kube-proxy does for a ClusterIP, for an endpoint on this node and for one on the other."""
    node = modes.lab.nodes[0]
    assert not modes.reaches("a1", SERVICE, timeout=0.3), "who answers, with nobody to translate?"
    for endpoint in ("b1", "b2"):
        ipv4, ipv6 = modes.pods[endpoint].addresses
        rules = [
            "table inet service {",
            "chain prerouting { type nat hook prerouting priority dstnat;",
            f"ip daddr {SERVICE} dnat ip to {ipv4}",
            f"ip6 daddr {SERVICE6} dnat ip6 to {ipv6}",
            "}",
            "}",
        ]
        on(node, "nft", "\n".join(rules))
        try:
            assert modes.reaches("a1", SERVICE), f"IPv4 to {endpoint}"
            assert modes.reaches("a1", SERVICE6), f"IPv6 to {endpoint}"
        finally:
            on(node, "nft", "delete table inet service")


def test_audit_finds_no_difference(modes):
    for node in modes.lab.nodes:
        done = terway(node, "audit")
        assert (done.returncode, done.stdout.strip()) == (0, "no difference")


def test_a_pod_comes_and_goes_without_a_trace(modes):
    node = modes.lab.nodes[0]
    with Namespace.open(node.netns) as namespace:

        def state() -> object:
            host = HostState.read(namespace)
            snapshot: Snapshot = host.snapshot
            links = {name: (link.up, link.mac) for name, link in snapshot.links.items()}
            return links, snapshot.routes, snapshot.rules, host.masquerades

        # A shared ENI that a pod has had stays up; two at a time have had whichever the next one gets.
        count = 1 if modes.mode == "eni" else 2
        for earlier in [modes.runtime(1).run_pod(f"earlier-{number}") for number in range(count)]:
            modes.runtime(1).remove_pod(earlier)
        before = state()
        pod = modes.runtime(1).run_pod("guest")
        assert state() != before
        modes.runtime(1).remove_pod(pod)
        assert state() == before
    assert terway(node, "audit").returncode == 0


def test_without_its_rule_a_packet_leaves_by_the_wrong_eni_and_is_dropped(eniip):
    node = eniip.lab.nodes[0]
    target = str(eniip.pods["a2"].addresses[0])
    source = str(eniip.pods["a1"].addresses[0])
    assert eniip.reaches("a1", target)
    rule = ["priority", "2048", "from", source]
    table = next(line for line in on(node, "ip", "rule").splitlines() if f"from {source} " in line).split()[4]
    on(node, "ip", "rule", "del", *rule)
    try:
        assert not eniip.reaches("a1", target, timeout=0.5)
        done = terway(node, "audit")
        assert done.returncode == 1
        assert f"rule 2048: from {source}/32 lookup {table}: missing" in done.stdout
    finally:
        on(node, "ip", "rule", "add", *rule, "lookup", table, "protocol", "116")
    assert eniip.reaches("a1", target)


def test_a_warm_add_makes_no_api_call(eniip):
    answer = json.loads(terway(eniip.lab.nodes[0], "enis", "list", "--json").stdout)
    assert any(address["state"] == "free" for eni in answer for address in eni["addresses"])
    terway(eniip.lab.nodes[0], "pool", "hold", "--calls")  # nothing but an ADD could call
    try:
        before = len(served_calls(eniip.lab))
        pod = eniip.runtime(1).run_pod("warm")
        assert len(served_calls(eniip.lab)) == before
        eniip.runtime(1).remove_pod(pod)
    finally:
        terway(eniip.lab.nodes[0], "pool", "resume")


def test_after_the_loss_of_the_journal_a_pod_that_goes_takes_nothing_from_the_others(eniip):
    node = eniip.lab.nodes[0]
    daemon = recall(node.folder)
    os.kill(daemon.pid, signal.SIGKILL)
    wait_for(lambda: not daemon.alive)
    for file in node.state_dir.glob("terway.db*"):
        file.unlink()
    start_daemon(node)
    wait_for(lambda: terway(node, "status").returncode == 0)
    eniip.runtime(1).remove_pod(eniip.runtime(1).run_pod("guest"))
    assert terway(node, "audit").stdout.strip() == "no difference"
    for source, target in (("a1", "a2"), ("a2", "b1")):
        assert eniip.reaches(source, str(eniip.pods[target].addresses[0]))


def test_a_namespace_destroyed_before_its_del(modes):
    """The runtime crashed: there is no DEL. An ENI falls back to the host, and the next pod has it."""
    node = modes.lab.nodes[0]
    lost = modes.runtime(1).run_pod("lost")
    delete_netns(Path(lost.netns).name)
    done = terway(node, "gc")
    assert done.returncode == 0, done.stdout
    assert f"released: attachment terway/{lost.container_id}/eth0" in done.stdout.splitlines()
    assert terway(node, "audit").stdout.strip() == "no difference"
    modes.runtime(1).remove_pod(lost)  # the DEL that comes late
    heir = modes.runtime(1).run_pod("heir")
    try:
        modes.pods["heir"] = heir
        assert modes.reaches("heir", str(modes.pods["a2"].addresses[0]))
    finally:
        modes.runtime(1).remove_pod(modes.pods.pop("heir"))
