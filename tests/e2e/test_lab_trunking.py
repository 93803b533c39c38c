"""Pods with ENIs of their own on the trunk, beside pods of eniip_veth: who reaches whom, and what is left.

The control plane is the real one. The simulated API server asks no webhook, so the pods say themselves which
PodNetworking is theirs.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest
from terway_driver_trunking import api

from terway_core.audit import audit
from terway_core.cloud import Cloud
from terway_core.config import CloudConfig, load_config
from terway_core.kube import NODES
from terway_core.lab.api import Region
from terway_core.lab.build import down, up
from terway_core.lab.cluster import Cluster
from terway_core.lab.control_plane import add_networking
from terway_core.lab.describe import describe
from terway_core.lab.ping import ping
from terway_core.lab.runtime import Runtime, Sandbox
from terway_core.lab.state import Lab, Spec
from terway_core.wiring.netns import Namespace
from terway_core.wiring.snapshot import Snapshot

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.timeout(300)]

SPEC = Spec(
    nodes=1,
    drivers=("trunking", "eniip_veth"),
    ip_stack="dual",
    instance_type="ecs.g7.4xlarge",
    kubernetes="simulated",
)


@dataclass
class World:
    """The lab, and its pods by name."""

    lab: Lab
    pods: dict[str, Sandbox]

    def reaches(self, source: str, target: str, *, timeout: float) -> list[bool]:
        """For each address of the target: is it reached?"""
        nodes = {node["name"]: node for node in describe(self.lab)["nodes"]}
        netns = nodes[source]["netns"] if source in nodes else self.pods[source].netns
        addresses = nodes[target]["addresses"] if target in nodes else self.pods[target].addresses
        with Namespace.open(netns) as namespace:
            return [namespace.run(ping, ip_address(one), timeout=timeout) is not None for one in addresses]

    def region(self) -> Region:
        return Region.load(self.lab.region_state)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.3)


def make_group(lab: Lab, name: str) -> str:
    region = describe(lab)["region"]
    env = {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": region["access_key_id"],
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": region["access_key_secret"],
    }
    endpoint = region["endpoint"].removeprefix("http://")
    cloud = Cloud(CloudConfig(region_id=region["region_id"], ecs_endpoint=endpoint, protocol="http"), env=env)
    params = {"VpcId": region["vpc_id"], "SecurityGroupName": name}
    with Namespace.open(lab.netns("switch")) as switch:
        answer = switch.run(cloud.call, "ecs", "CreateSecurityGroup", params)
    return str(answer["SecurityGroupId"])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    up(lab, SPEC, lambda share, step: None)
    try:
        region = describe(lab)["region"]
        first, second = (text.split("=")[0] for text in region["vswitches"][:2])
        red = add_networking(lab, "red", [first], [region["security_group_id"]])
        blue = add_networking(lab, "blue", [second], [make_group(lab, "blue")])
        run_pod = Runtime(lab.nodes[0]).run_pod
        pods = {"red": red, "blue-1": blue, "blue-2": blue, "plain": {}}
        yield World(lab, {name: run_pod(name, annotations=found) for name, found in pods.items()})
    finally:
        down(lab)


def test_groups_meet_and_others_do_not(world):
    """All on one node, and they meet in the VPC all the same. The node reaches its pods, as probes do."""
    same = [("red", "plain"), ("plain", "red"), ("blue-1", "blue-2"), ("node-1", "blue-1"), ("red", "node-1")]
    apart = [("red", "blue-1"), ("blue-1", "red"), ("plain", "blue-1"), ("blue-1", "plain")]
    found = {pair: world.reaches(*pair, timeout=10.0 if pair in same else 0.5) for pair in same + apart}
    assert found == {pair: [pair in same] * 2 for pair in same + apart}


def test_a_stream_arrives_whole(world):
    """Segments larger than a packet, with checksums that nobody has filled in, keep their tag on the way."""
    sent = os.urandom(4 << 20)

    def serve() -> bytes:
        listener.settimeout(20)
        with listener, closing(listener.accept()[0]) as connection, connection.makefile("rb") as stream:
            connection.settimeout(20)
            return stream.read()

    def deliver() -> None:
        with socket.create_connection((target, port), timeout=20) as connection:
            connection.sendall(sent)

    for target in map(str, world.pods["blue-2"].addresses):
        with (
            Namespace.open(world.pods["blue-1"].netns) as source,
            Namespace.open(world.pods["blue-2"].netns) as sink,
            ThreadPoolExecutor() as pool,
        ):
            family = socket.AF_INET6 if ":" in target else socket.AF_INET
            listener = sink.run(socket.create_server, (target, 0), family=family)
            port = listener.getsockname()[1]
            arrived = pool.submit(serve)
            source.run(deliver)
            assert arrived.result(20) == sent


def test_the_node_tells_of_its_trunk(world):
    (trunk,) = (eni for eni in world.region().network_interfaces.values() if eni.type == "Trunk")

    def told() -> bool:
        node = Cluster(world.lab).call(lambda client: client.get(NODES, "node-1"))
        annotations, capacity = node["metadata"].get("annotations", {}), node["status"]["capacity"]
        return (annotations.get(api.TRUNK_ON), capacity[api.MEMBER_ENI]) == (trunk.network_interface_id, "32")

    wait_for(told)


def test_nothing_is_left(world):
    """Last, as it removes the pods."""
    node = world.lab.nodes[0]
    for name in ("red", "blue-1", "blue-2"):
        Runtime(node).remove_pod(world.pods.pop(name))
    wait_for(lambda: not [eni for eni in world.region().network_interfaces.values() if eni.trunk_id])
    with Namespace.open(node.netns) as namespace:
        assert namespace.run(audit, load_config(node.config)) == []
        left = namespace.run(Snapshot.take)
    assert left.vlan_filters == set()
