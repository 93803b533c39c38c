"""A cluster and a region for the control plane: two nodes with trunks, in a zone each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from terway_driver_trunking import crds
from terway_driver_trunking.api import POD_ENI, POD_NETWORKING, PODENIS, PODNETWORKINGS
from terway_driver_trunking.keeper import POLL_LAST, PodEniKeeper
from terway_driver_trunking.members import Members
from terway_driver_trunking.networking import NetworkingKeeper
from terway_driver_trunking.pods import TrunkPods
from terway_driver_trunking.vswitches import VSwitches

from terway_core.errors import KubeNotFound, RetryLater
from terway_core.kube import PODS
from terway_core.kube.resources import Resource
from terway_core.lab.api import Instance, NetworkInterface, Region
from terway_core.testing.fakes import FakeClock
from tests.unit.kube_server import ApiServer
from tests.unit.served_region import ServedRegion

Object = dict[str, Any]
CRDS = Resource(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    namespaced=False,
)


class Killed(BaseException):
    """The process is no more."""


class Told:
    """Events."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.messages: list[str] = []

    def tell(self, about: Any, reason: str, message: str, *, warning: bool = False) -> None:
        self.reasons.append(reason)
        self.messages.append(message)


class World:
    """``look`` does what one control plane does for a pod; :meth:`restart` is another one.

    :param api: an ApiServer, or what can do the same with a real one.
    """

    def __init__(self, api: Any, region: ServedRegion) -> None:
        self.api = api
        self.region = region
        self.clock = FakeClock(1_700_000_000.0)
        self.told = Told()
        self.ipv6 = False
        self.admin = api.client()
        self.trunks: dict[str, str] = {}
        self._add_node("node-1", region.node)
        self._add_node("node-2", region.far)
        self.restart()

    def restart(self) -> None:
        """A control plane that knows nothing but what is written down."""
        self.client = self.api.client()
        self.cloud = self.region.client()
        self.vswitches = VSwitches(self.cloud)
        self.members = Members(self.cloud, "c1", {"team": "net"}, ipv6=self.ipv6)
        self.networkings = NetworkingKeeper(self.client, self.vswitches, self.told, self.clock)
        self.keeper = PodEniKeeper(
            client=self.client,
            pods=TrunkPods(self.client, lambda old, new: None),
            members=self.members,
            vswitches=self.vswitches,
            events=self.told,
            clock=self.clock,
        )

    def kill_at(self, number: int, *, after: bool) -> None:
        """Die at the ``number``-th call to the API server or the cloud, before or after it is carried out."""
        count = 0

        def wrap(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == number and not after:
                    raise Killed
                answer = function(*args, **kwargs)
                if count == number:
                    raise Killed
                return answer

            return call

        for name in ("get", "create", "patch", "delete"):
            setattr(self.client, name, wrap(getattr(self.client, name)))
        self.cloud.call = wrap(self.cloud.call)

    def _add_node(self, name: str, instance: Instance) -> None:
        self.api.add_node(name, providerID=f"cn-hangzhou.{instance.instance_id}")
        trunk = self.region.create(self.region.region.vswitches[instance.vswitch_id], InstanceType="Trunk")
        self.region.attach(trunk, instance)
        self.trunks[name] = trunk["NetworkInterfaceId"]

    def add_near_node(self) -> str:
        """A node in the zone of the first."""
        instance = self.region.region.add_instance(
            "node-3", instance_type="ecs.g7.4xlarge", vswitch=self.region.zone_h
        )
        self._add_node("node-3", instance)
        return "node-3"

    def release_instance(self, node: str) -> None:
        """As the cloud does it: what is not deleted with the instance is detached."""
        region = self.region.region
        instance = next(one for one in region.instances.values() if one.name == node)
        for eni in region.interfaces_of(instance.instance_id):
            if eni.delete_on_release:
                region.drop_interface(eni)
            else:
                apart = replace(eni, status="Available", instance_id="", trunk_id="", device_index=0)
                region.put_interface(apart)
        del region.instances[instance.instance_id]

    # -- objects ------------------------------------------------------------------------------------------

    def add_networking(self, name: str = "net", **spec: Any) -> Object:
        spec = {
            "vSwitchOptions": [self.region.zone_h.vswitch_id, self.region.zone_i.vswitch_id],
            "securityGroupIDs": [self.region.group],
            "selector": {"podSelector": {"matchLabels": {"app": "db"}}},
        } | spec
        self.admin.create(PODNETWORKINGS, {"metadata": {"name": name}, "spec": spec})
        self.networkings.look(name)
        return self.admin.get(PODNETWORKINGS, name)

    def add_fixed(self, name: str = "net", **kept: str) -> Object:
        kept = {"releaseStrategy": "TTL", "releaseAfter": "5m0s"} | kept
        return self.add_networking(name, allocationType={"type": "Fixed", **kept})

    def add_pod(
        self, name: str = "db-0", node: str = "node-1", networking: str = "net", owner: str = "StatefulSet"
    ) -> Object:
        annotations = {POD_ENI: "true", POD_NETWORKING: networking}
        owners = [{"kind": owner, "name": "db", "apiVersion": "apps/v1", "uid": "u"}]
        return self.api.add_pod(name, node, annotations=annotations, ownerReferences=owners)

    def remove_pod(self, name: str = "db-0") -> None:
        self.admin.delete(PODS, name, "default", grace_seconds=0)

    def podeni(self, name: str = "db-0") -> Object | None:
        try:
            return self.admin.get(PODENIS, name, "default")
        except KubeNotFound:
            return None

    # -- what happens -------------------------------------------------------------------------------------

    def look(self, name: str = "db-0") -> float | None:
        return self.keeper.look(("default", name))

    def settle(self, name: str = "db-0") -> Object | None:
        """Look until nothing is left to do, or only time must pass; the PodENI then."""
        for _ in range(200):
            delay = self.look(name)
            if delay is None or delay > POLL_LAST:
                return self.podeni(name)
            time.sleep(min(delay, 0.005))
        raise AssertionError("it never came to rest")

    def refused(self, name: str = "db-0") -> str:
        try:
            self.settle(name)
        except RetryLater as error:
            return str(error)
        raise AssertionError("it was not refused")

    # -- the cloud ----------------------------------------------------------------------------------------

    def members_of(self, name: str = "") -> list[NetworkInterface]:
        """Our ENIs, or those of one pod."""
        return [
            eni
            for eni in self.region.region.network_interfaces.values()
            if eni.tags.get("creator") == "terway-controller" and name in ("", eni.name.rpartition("/")[2])
        ]

    def attachments(self) -> int:
        """How often a member was attached."""
        codes = self.region.codes("AttachNetworkInterface")
        return codes.count("") - len(self.trunks)


def region_with_trunks() -> ServedRegion:
    region = Region.create()
    vpc = region.add_vpc("10.0.0.0/8", "2408:4000::/56")
    zone_h = region.add_vswitch(vpc, "10.0.0.0/24", "cn-hangzhou-h", "2408:4000:0:1::/64")
    zone_i = region.add_vswitch(vpc, "10.0.1.0/24", "cn-hangzhou-i")
    for name, vswitch in (("node-1", zone_h), ("node-2", zone_i)):
        region.add_instance(name, instance_type="ecs.g7.4xlarge", vswitch=vswitch)
    return ServedRegion(region)


@contextmanager
def running_world(folder: Path, *middlewares: Any) -> Iterator[World]:
    """:param middlewares: of aiohttp, before API server and cloud."""
    api, region = ApiServer(folder), region_with_trunks()
    api.middlewares += middlewares
    region.app.middlewares.extend(middlewares)
    with api.running(), region.served():
        with closing(api.client()) as admin:
            for manifest in crds.manifests():
                admin.create(CRDS, manifest)
        yield World(api, region)


__all__ = ["CRDS", "Killed", "World", "region_with_trunks", "running_world"]
