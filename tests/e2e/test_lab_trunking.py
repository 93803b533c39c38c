"""Pods with ENIs of their own on the trunk, beside pods of eniip_veth: who reaches whom, and what is left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from terway_driver_trunking import api

from terway_core.cloud import Cloud, ecs
from terway_core.cloud.ecs import NetworkInterface
from terway_core.config import CloudConfig
from terway_core.kube import NODES, PODS, KubeClient
from terway_core.lab.build import down, up
from terway_core.lab.cluster import Cluster
from terway_core.lab.describe import describe
from terway_core.lab.kubernetes.objects import CRDS
from terway_core.lab.ping import ping
from terway_core.lab.runtime import PluginFailed, Runtime, Sandbox
from terway_core.lab.state import Lab, Spec
from terway_core.testing.kube import definition
from terway_core.wiring.netns import Namespace

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.uml]
if os.geteuid() and not os.environ.get("CI"):
    pytestmark.append(pytest.mark.skip(reason="the lab needs root"))

T = TypeVar("T")
#: Label of a pod: which PodNetworking, as it were, selects it.
COLOUR = "colour"


@dataclass
class Controller:
    """Enough of a control plane: each pod gets an ENI in the vSwitch and the group of its colour."""

    lab: Lab
    places: dict[str, tuple[str, str]] = field(default_factory=dict)
    made: dict[str, NetworkInterface] = field(default_factory=dict)
    problem: BaseException | None = None

    def start(self) -> None:
        region = describe(self.lab)["region"]
        self._cloud = Cloud(
            CloudConfig(
                region_id=region["region_id"],
                ecs_endpoint=region["endpoint"].removeprefix("http://"),
                protocol="http",
            ),
            env={
                "ALIBABA_CLOUD_ACCESS_KEY_ID": region["access_key_id"],
                "ALIBABA_CLOUD_ACCESS_KEY_SECRET": region["access_key_secret"],
            },
        )
        self.ask_api(lambda client: client.create(CRDS, definition(api.PODENIS)))
        params = {"VpcId": region["vpc_id"], "SecurityGroupName": "blue"}
        other = self.ask_cloud(lambda cloud: cloud.call("ecs", "CreateSecurityGroup", params))
        vswitches = [text.split("=")[0] for text in region["vswitches"]]
        self.places["red"] = vswitches[0], region["security_group_id"]
        self.places["blue"] = vswitches[1], other["SecurityGroupId"]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def ask_cloud(self, function: Callable[[Cloud], T]) -> T:
        with Namespace.open(self.lab.netns("switch")) as switch:
            return switch.run(function, self._cloud)

    def ask_api(self, function: Callable[[KubeClient], T]) -> T:
        return Cluster(self.lab).call(function)

    def _loop(self) -> None:
        try:
            while not self._stopping.wait(0.2):
                for pod in self.ask_api(lambda client: client.list(PODS).items):
                    colour = pod["metadata"].get("labels", {}).get(COLOUR)
                    if colour and pod["metadata"]["name"] not in self.made:
                        self._bind(pod, *self.places[colour])
        except BaseException as error:
            self.problem = error
            raise

    def _bind(self, pod: dict[str, Any], vswitch_id: str, group_id: str) -> None:
        name, node = pod["metadata"]["name"], pod["spec"]["nodeName"]
        found = self.ask_api(lambda client: client.get(NODES, node))
        trunk = found["metadata"].get("annotations", {}).get(api.TRUNK_ON)
        if not trunk:
            return  # not yet
        instance = found["spec"]["providerID"].partition(".")[2]

        def attach(cloud: Cloud) -> NetworkInterface:
            new = ecs.create_network_interface(
                cloud,
                vswitch_id=vswitch_id,
                security_group_ids=[group_id],
                tags={},
                client_token=str(uuid4()),
                ipv6_count=1,
            )
            ecs.attach_network_interface(cloud, new.eni_id, instance, trunk_eni_id=trunk)
            return ecs.describe_network_interfaces(cloud, eni_ids=[new.eni_id])[0]

        eni = self.made[name] = self.ask_cloud(attach)
        podeni = {
            "metadata": {
                "name": name,
                "labels": {api.NODE: node},
                "annotations": {api.POD_UID: pod["metadata"]["uid"]},
            },
            "spec": {
                "allocations": [
                    {"eni": {"id": eni.eni_id}, "ipv4": str(eni.primary_ip), "ipv6": str(eni.ipv6[0])}
                ]
            },
        }
        status = {
            "phase": "Bind",
            "trunkENIID": trunk,
            "eniInfos": {eni.eni_id: {"id": eni.eni_id, "type": "Member", "vid": eni.device_index}},
        }

        def write(client: KubeClient) -> None:
            client.create(api.PODENIS, podeni, "default")
            client.patch(api.PODENIS, name, {"status": status}, "default", subresource="status")

        self.ask_api(write)

    def release(self, name: str) -> None:
        """The pod is gone, and so is its ENI."""
        eni = self.made.pop(name)

        def drop(cloud: Cloud) -> None:
            ecs.detach_network_interface(cloud, eni.eni_id, eni.instance_id, trunk_eni_id=eni.trunk_eni_id)
            ecs.delete_network_interface(cloud, eni.eni_id)

        self.ask_cloud(drop)
        self.ask_api(lambda client: client.delete(api.PODENIS, name, "default"))


@dataclass
class World:
    lab: Lab
    controller: Controller
    pods: dict[str, Sandbox]

    def reaches(self, source: str, target: str, *, timeout: float) -> list[bool]:
        """For each address of the target: is it reached?"""
        nodes = {node["name"]: node for node in describe(self.lab)["nodes"]}
        netns = nodes[source]["netns"] if source in nodes else self.pods[source].netns
        addresses = nodes[target]["addresses"] if target in nodes else self.pods[target].addresses
        with Namespace.open(netns) as namespace:
            return [namespace.run(ping, ip_address(one), timeout=timeout) is not None for one in addresses]


def runtime(lab: Lab, name: str) -> Runtime:
    """That of the node whose number ends the pod's name."""
    return Runtime(lab.nodes[int(name[-1]) - 1])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    spec = Spec(
        nodes=2,
        drivers=("trunking", "eniip_veth"),
        ip_stack="dual",
        instance_type="ecs.g7.4xlarge",
        kubernetes="simulated",
    )
    up(lab, spec, lambda share, step: None)
    controller = Controller(lab)
    try:
        controller.start()
        pods = {}
        for name in ("red-1", "red-2", "blue-1", "blue-2"):
            run = partial(runtime(lab, name).run_pod, name, labels={COLOUR: name[:-2]})
            pods[name] = until(partial(run, annotations={api.POD_ENI: "true"}))
        for name in ("plain-1", "plain-2"):
            pods[name] = runtime(lab, name).run_pod(name)
        yield World(lab, controller, pods)
    finally:
        controller.stop()
        down(lab)


def until(run: Callable[[], T]) -> T:
    """What the kubelet does when an ADD fails: it tries again. The trunk may not be there yet."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return run()
        except PluginFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_groups_meet_and_others_do_not(world):
    assert world.controller.problem is None
    same = [("red-1", "red-2"), ("red-1", "plain-1"), ("plain-1", "red-1"), ("plain-2", "red-1")]
    same += [("blue-1", "blue-2"), ("blue-2", "blue-1"), ("red-1", "node-2"), ("node-1", "blue-1")]
    apart = [("red-1", "blue-1"), ("blue-1", "red-1"), ("red-2", "blue-1"), ("blue-1", "red-2")]
    apart += [("plain-1", "blue-1"), ("blue-1", "plain-1"), ("blue-1", "plain-2"), ("node-2", "blue-1")]
    found = {pair: world.reaches(*pair, timeout=5.0 if pair in same else 0.5) for pair in same + apart}
    assert found == {pair: [pair in same] * 2 for pair in same + apart}
