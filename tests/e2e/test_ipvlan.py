"""eniip_ipvlan on nodes that were of eniip_veth: every way of a packet, pods of both modes, what stays."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from terway_core.audit import audit
from terway_core.cli.client import ask
from terway_core.config import load_config
from terway_core.errors import IOFailure
from terway_core.lab.build import down, up
from terway_core.lab.nodes import configuration, start_daemon
from terway_core.lab.paths import INTERNET, endpoint, measure
from terway_core.lab.runtime import Runtime, Sandbox
from terway_core.lab.state import Lab, NodeFiles, Spec, recall
from terway_core.wiring.netns import Namespace, delete_netns
from terway_core.wiring.snapshot import Snapshot

# Two nodes take half a minute there, and several times that beside others.
pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.uml, pytest.mark.timeout(300)]

SERVICE, SERVICE6 = "172.21.0.10", "fd21::10"
#: Six pods to an ENI: a seventh needs another.
SPEC = Spec(nodes=2, drivers=("eniip_veth",), ip_stack="dual", instance_type="ecs.g7.large")


@dataclass
class Cluster:
    """The lab, and its pods by name."""

    lab: Lab
    pods: dict[str, Sandbox] = field(default_factory=dict)

    def node(self, number: int) -> NodeFiles:
        return self.lab.nodes[number - 1]

    def run_pod(self, number: int, name: str) -> Sandbox:
        self.pods[name] = Runtime(self.node(number)).run_pod(name)
        return self.pods[name]

    def remove_pod(self, number: int, name: str) -> None:
        Runtime(self.node(number)).remove_pod(self.pods.pop(name))

    def eni_of(self, name: str) -> str:
        """The ENI that has a pod's address."""
        pod = self.pods[name]
        (node,) = (node for node in self.lab.nodes if node.name == pod.node)
        (eni,) = (
            eni["eni"]
            for eni in ask(node.socket, "GET", "/v1/enis")["enis"]
            for address in eni["addresses"]
            if address["address"] == str(pod.addresses[0])
        )
        return str(eni)

    def run_pod_where(self, number: int, name: str, fits: Callable[[str], bool]) -> None:
        """Which ENI has a free address first is the pool's business: try until it is one that fits."""

        def placed() -> bool:
            self.run_pod(number, name)
            if not (good := fits(self.eni_of(name))):
                Runtime(self.lab.nodes[number - 1]).remove_pod(self.pods.pop(name))
            return good

        wait_for(placed, f"{name} has an address of an ENI that fits")

    def broken(self, *ways: tuple[str, str]) -> list[str]:
        """Those ways, in each family, on which no echo came back."""
        pairs = [(endpoint(self.lab, source), endpoint(self.lab, target)) for source, target in ways]
        results = measure(pairs, timeout=5.0)
        assert len(results) == 2 * len(ways)
        return [f"{r.source.name} → {r.target.name} {r.address}" for r in results if r.milliseconds is None]

    def reaches(self, name: str, address: str, timeout: float) -> bool:
        target = endpoint(self.lab, address)
        (result,) = measure([(endpoint(self.lab, name), target)], timeout=timeout)
        return result.milliseconds is not None

    def audit(self) -> list[str]:
        """What ``terway audit`` finds on both nodes."""
        return [
            line for node in self.lab.nodes for line in inside(node.netns, audit, load_config(node.config))
        ]


def inside(netns: Path | str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with Namespace.open(netns) as namespace:
        return namespace.run(function, *args, **kwargs)


def run(netns: Path | str, command: str) -> str:
    done = inside(netns, subprocess.run, ["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return str(done.stdout)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + 60
    while not (answer := condition()):
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.05)
    return answer


def serves(node: NodeFiles) -> bool:
    try:
        return bool(ask(node.socket, "GET", "/readyz")["ready"])
    except IOFailure:
        return False


def configure(lab: Lab, mode: str) -> None:
    """Give every node this mode, as an operator does: another configuration, and a restart."""
    spec = Spec(nodes=SPEC.nodes, drivers=(mode,), ip_stack=SPEC.ip_stack)
    for number, node in enumerate(lab.nodes, 1):
        node.config.write_text(yaml.safe_dump(configuration(node, number, spec)))
    restart(lab.nodes)


def restart(nodes: Sequence[NodeFiles], between: Callable[[], None] = lambda: None) -> None:
    """Stop the daemons, have something done, and start them again."""
    daemons = [recall(node.folder) for node in nodes]
    for daemon in daemons:
        os.kill(daemon.pid, signal.SIGTERM)
    for daemon in daemons:
        wait_for(lambda daemon=daemon: not daemon.alive, "the daemon ends")
    between()
    for node in nodes:
        start_daemon(node)
    for node in nodes:
        wait_for(lambda node=node: serves(node), "the daemon is ready")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Pods ``old…`` are from before the move. Of the new ones a and b share an ENI, c has another, d is on
    node-2."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    up(lab, SPEC, lambda share, step: None)
    try:
        cluster = Cluster(lab)
        cluster.run_pod(1, "old1")
        cluster.run_pod(1, "old2")
        configure(lab, "eniip_ipvlan")
        shared = cluster.eni_of("old1")
        cluster.run_pod_where(1, "a", lambda eni: eni == shared)
        cluster.run_pod_where(1, "b", lambda eni: eni == shared)
        cluster.run_pod(1, "fifth")
        cluster.run_pod(1, "sixth")
        cluster.run_pod_where(1, "c", lambda eni: eni != shared)
        cluster.run_pod(2, "d")
        yield cluster
    finally:
        down(lab)


def test_the_pods_are_where_the_tests_want_them(cluster):
    assert cluster.eni_of("a") == cluster.eni_of("b") == cluster.eni_of("old1")
    assert cluster.eni_of("c") != cluster.eni_of("a")


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param([("node-1", "a"), ("node-1", "c")], id="node-to-pod"),
        pytest.param([("a", "node-1"), ("c", "node-1")], id="pod-to-node"),
        pytest.param([("a", "b"), ("b", "a")], id="pod-to-pod-on-one-eni"),
        pytest.param([("a", "c"), ("c", "a")], id="pod-to-pod-on-two-enis"),
        pytest.param([("a", "d"), ("d", "a"), ("c", "d")], id="pod-to-pod-on-two-nodes"),
        pytest.param([("a", "node-2"), ("node-2", "a"), ("d", "node-1")], id="pod-and-the-other-node"),
        pytest.param([("a", INTERNET), (INTERNET, "a"), ("c", INTERNET)], id="pod-to-outside"),
        pytest.param([("old1", "old2"), ("old1", "node-1"), ("node-1", "old1")], id="among-old-pods"),
        pytest.param([("old1", "a"), ("a", "old1"), ("c", "old1"), ("d", "old1")], id="old-and-new-pods"),
        pytest.param([("old1", INTERNET), ("old1", "node-2")], id="old-pod-to-outside"),
    ],
)
def test_paths(cluster, ways):
    assert cluster.broken(*ways) == []


def test_a_pod_has_only_eth0_and_the_gateway_of_the_vpc(cluster):
    pod = cluster.pods["a"]
    snapshot = inside(pod.netns, Snapshot.take)
    assert {name: link.kind for name, link in snapshot.links.items()} == {"lo": "", "eth0": "ipvlan"}
    gateways = {str(route.via) for route in snapshot.routes if route.dst.prefixlen == 0}
    assert gateways == {"192.168.0.253", "2001:db8:0:100:ffff:ffff:ffff:fffd"}


def test_an_old_pod_has_still_its_veth_pair(cluster):
    snapshot = inside(cluster.pods["old1"].netns, Snapshot.take)
    assert {name: link.kind for name, link in snapshot.links.items()} == {"lo": "", "eth0": "veth"}


def forwarded(node: NodeFiles) -> int:
    """Packets that the node's stack has sent on (RFC 1213, ipForwDatagrams)."""
    names, values = (
        line.split()
        for line in inside(node.netns, Path("/proc/thread-self/net/snmp").read_text).splitlines()
        if line.startswith("Ip:")
    )
    return int(values[names.index("ForwDatagrams")])


def test_what_goes_outside_does_not_pass_the_host(cluster):
    before = forwarded(cluster.node(1))
    assert cluster.reaches("a", "203.0.113.10", 5.0)
    assert cluster.reaches("a", str(cluster.pods["d"].addresses[0]), 5.0)
    assert forwarded(cluster.node(1)) == before
    assert cluster.reaches("old1", "203.0.113.10", 5.0)
    assert forwarded(cluster.node(1)) > before


@pytest.mark.parametrize("backend", ["b", "c", "d", "old1"])
def test_services(cluster, backend):
    """What kube-proxy does on the host for a ClusterIP, with an endpoint on the same ENI, on another, on
    another node, and in an old pod."""
    node, pod = cluster.node(1), cluster.pods[backend]
    rules = [
        f"-t nat {action} {rule}"
        for action in ("-A", "-D")
        for rule in (
            "PREROUTING -d {service} -j DNAT --to-destination {pod}",
            "POSTROUTING -d {pod} -j MASQUERADE",
        )
    ]
    for command, service, address in zip(
        ("iptables-legacy", "ip6tables-legacy"), (SERVICE, SERVICE6), pod.addresses, strict=True
    ):
        made, gone = (
            "; ".join(f"{command} {rule.format(service=service, pod=address)}" for rule in part)
            for part in (rules[:2], rules[2:])
        )
        run(node.netns, made)
        try:
            assert cluster.reaches("a", service, 5.0)
        finally:
            run(node.netns, gone)


def test_without_kube_proxy_no_service_answers(cluster):
    assert not cluster.reaches("a", SERVICE, 0.5)
    assert not cluster.reaches("a", SERVICE6, 0.5)


def test_audit_finds_no_difference(cluster):
    assert cluster.audit() == []


def test_a_namespace_destroyed_before_its_del(cluster):
    """The runtime crashed: there is no DEL. The next pod may have the address."""
    lost = cluster.run_pod(2, "lost")
    delete_netns(Path(lost.netns).name)
    name = f"attachment terway/{lost.container_id}/eth0"
    wait_for(lambda: name in ask(cluster.node(2).socket, "POST", "/v1/gc")["released"], "gc takes it down")
    assert cluster.audit() == []
    cluster.remove_pod(2, "lost")  # the DEL that comes late
    assert cluster.broken(("node-2", "d")) == []


def test_the_last_pod_of_an_eni_takes_the_shared_objects_with_it(cluster):
    node = cluster.node(2)

    def shared() -> tuple[list[str], int]:
        snapshot = inside(node.netns, Snapshot.take)
        children = [name for name, link in snapshot.links.items() if link.kind == "ipvlan"]
        return children, len(snapshot.redirects)

    cluster.run_pod(2, "e")
    both = shared()
    cluster.remove_pod(2, "d")
    children, redirects = shared()
    assert children == both[0]
    assert len(children) == 1
    assert redirects == both[1] - 2  # its own, in two families
    assert cluster.broken(("node-2", "e"), ("e", "a")) == []
    cluster.remove_pod(2, "e")
    assert shared() == ([], 0)
    assert cluster.audit() == []
    cluster.run_pod(2, "d")
    assert cluster.broken(("node-2", "d"), ("d", "a")) == []


def test_the_journal_is_lost(cluster):
    """Old and new pods are taken in again, and nobody is given their addresses."""
    node = cluster.node(1)
    before = [pod for pod in cluster.pods.values() if pod.node == node.name]

    def lose() -> None:
        for file in node.state_dir.glob("terway.db*"):
            file.unlink()

    restart([node], lose)
    assert ask(node.socket, "POST", "/v1/gc")["released"] == []
    assert {pod["container_id"] for pod in ask(node.socket, "GET", "/v1/pods")} == {
        pod.container_id for pod in before
    }
    assert cluster.audit() == []
    assert cluster.broken(("node-1", "a"), ("a", "b"), ("a", "c"), ("old1", "a"), ("d", "c")) == []
    new = cluster.run_pod(1, "new")
    assert not {*new.addresses} & {address for pod in before for address in pod.addresses}
    cluster.remove_pod(1, "new")
    assert cluster.audit() == []


def test_the_way_back(cluster):
    """Pods of ipvlan are the old ones now."""
    configure(cluster.lab, "eniip_veth")
    cluster.run_pod(1, "back")
    ways = [("back", "a"), ("a", "back"), ("back", "node-1"), ("node-1", "back"), ("back", INTERNET)]
    ways += [("back", "d"), ("d", "back"), ("a", INTERNET), ("node-1", "a"), ("a", "b")]
    assert cluster.broken(*ways) == []
    assert cluster.audit() == []


def test_old_and_new_pods_go_without_a_trace(cluster):
    for pod in [pod for pod in [*cluster.pods] if pod != "d"]:
        cluster.remove_pod(1, pod)
    snapshot = inside(cluster.node(1).netns, Snapshot.take)
    assert [link.name for link in snapshot.links.values() if link.kind == "ipvlan" or link.alias] == []
    assert snapshot.redirects == set()
    assert cluster.audit() == []
