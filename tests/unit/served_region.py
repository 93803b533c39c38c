"""A simulated region with one node in each of two zones, and raw calls of it with the product's client."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest

from terway_core.cloud import Cloud
from terway_core.config import CloudConfig
from terway_core.errors import CloudError
from terway_core.lab.api import (
    CALLS,
    Behaviour,
    Instance,
    NetworkInterface,
    Region,
    VSwitch,
    build_app,
    serving,
)

Eni = dict[str, Any]


class ServedRegion:
    """``zone_h`` and ``zone_i`` are vSwitches, ``node`` is in the first, ``far`` in the second."""

    def __init__(self, region: Region | None = None, behaviour: Behaviour | None = None) -> None:
        self.region = region or Region.create()
        if not self.region.vpcs:
            vpc = self.region.add_vpc("10.0.0.0/8", "2408:4000::/56")
            zone_h = self.region.add_vswitch(vpc, "10.0.0.0/24", "cn-hangzhou-h", "2408:4000:0:1::/64")
            zone_i = self.region.add_vswitch(vpc, "10.0.1.0/24", "cn-hangzhou-i")
            for name, vswitch in (("node", zone_h), ("far", zone_i)):
                self.region.add_instance(name, instance_type="ecs.g7.large", vswitch=vswitch)
        self.vpc = next(iter(self.region.vpcs.values()))
        self.zone_h, self.zone_i = self.region.vswitches_of(self.vpc.vpc_id)
        self.node, self.far = list(self.region.instances.values())[:2]
        self.group = self.region.security_groups_of(self.vpc.vpc_id)[0].security_group_id
        self.behaviour = behaviour or Behaviour()
        #: What the fabric was told, by the statuses and addresses of before and after.
        self.told: list[tuple[NetworkInterface, NetworkInterface]] = []
        self.fabric_fails = False
        self.app = build_app(self.region, behaviour=self.behaviour, on_interface_changed=self._changed)
        self.endpoint = ""
        self.cloud: Cloud

    @contextmanager
    def served(self) -> Iterator[Self]:
        with serving(self.app) as self.endpoint:
            self.cloud = self.client()
            yield self

    def access(self) -> tuple[CloudConfig, dict[str, str]]:
        """Settings and environment of a client."""
        key = self.region.add_access_key()
        config = CloudConfig(
            region_id="cn-hangzhou",
            ecs_endpoint=self.endpoint,
            vpc_endpoint=self.endpoint,
            protocol="http",
        )
        env = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
        }
        return config, env

    def client(self, **options: Any) -> Cloud:
        """By default, one that makes one try of each call: its clock leaps 20 s at each look."""
        config, env = self.access()
        return Cloud(config, env=env, **({"monotonic": itertools.count(step=20).__next__} | options))

    def call(self, action: str, **params: Any) -> dict[str, Any]:
        return self.cloud.call("ecs", action, params)

    def refused(self, action: str, **params: Any) -> str:
        with pytest.raises(CloudError) as caught:
            self.call(action, **params)
        return caught.value.code

    def create(self, vswitch: VSwitch | None = None, **params: Any) -> Eni:
        wanted = {"VSwitchId": (vswitch or self.zone_h).vswitch_id, "SecurityGroupIds": [self.group]}
        return self.call("CreateNetworkInterface", **(wanted | params))

    def attach(self, eni: Eni, instance: Instance | None = None, **params: Any) -> None:
        self.call("AttachNetworkInterface", **self.attachment(eni, instance), **params)

    def attachment(self, eni: Eni, instance: Instance | None = None) -> dict[str, str]:
        return {
            "NetworkInterfaceId": eni["NetworkInterfaceId"],
            "InstanceId": (instance or self.node).instance_id,
        }

    def attached(self, **params: Any) -> Eni:
        eni = self.create(**params)
        self.attach(eni)
        return eni

    def look(self, eni: Eni) -> Eni:
        (found,) = self.find(NetworkInterfaceId=[eni["NetworkInterfaceId"]])
        return found

    def find(self, **filters: Any) -> list[Eni]:
        answer = self.call("DescribeNetworkInterfaces", **filters)
        return list(answer["NetworkInterfaceSets"]["NetworkInterfaceSet"])

    def status(self, eni: Eni) -> str:
        found = self.find(NetworkInterfaceId=[eni["NetworkInterfaceId"]])
        return found[0]["Status"] if found else "gone"

    def codes(self, action: str) -> list[str]:
        return [call.code for call in self.app[CALLS] if call.action == action]

    async def _changed(self, before: NetworkInterface, after: NetworkInterface) -> None:
        self.told.append((before, after))
        if self.fabric_fails:
            raise RuntimeError("no such link")


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 10
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
    return answer
