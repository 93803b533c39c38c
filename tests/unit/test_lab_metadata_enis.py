"""ENIs in the simulated metadata service, and how late it learns of them."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import islice

import pytest

from terway_core.lab.api import Behaviour, InjectedFault, NetworkInterface, Region, serving
from terway_core.lab.metadata import MEMORY, build_app

MACS = "/latest/meta-data/network/interfaces/macs/"


class Lab:
    """A metadata service on the loopback, and an ENI that nobody has attached yet."""

    def __init__(self) -> None:
        self.offset = 0.0
        self.region = Region.create(clock=lambda: time.time() + self.offset)
        vpc = self.region.add_vpc("127.0.0.0/8", "2408:4000::/56")
        first = self.region.add_vswitch(vpc, "127.0.0.0/24", "cn-hangzhou-h", "2408:4000:0:1::/64")
        self.vswitch = self.region.add_vswitch(vpc, "127.0.2.0/24", "cn-hangzhou-h", "2408:4000:0:2::/64")
        self.node = self.region.add_instance("node-1", instance_type="ecs.g7.large", vswitch=first)
        self.region.add_instance("node-2", instance_type="ecs.g7.large", vswitch=first)
        primary, other = islice(self.region.free_ipv4(self.vswitch), 2)
        assert self.vswitch.ipv6_cidr
        self.eni = self.region.add_interface(
            self.vswitch,
            type="Secondary",
            private_ip=primary,
            secondary_ips=(other,),
            ipv6=(self.vswitch.ipv6_cidr[7], self.vswitch.ipv6_cidr[8]),
            security_group_ids=("sg-1",),
        )
        self.behaviour = Behaviour()
        self.app = build_app(self.region, behaviour=self.behaviour)
        self.endpoint = ""

    def change(self, **fields: object) -> NetworkInterface:
        self.eni = replace(self.eni, **fields)  # type: ignore[arg-type]
        return self.region.put_interface(self.eni)

    def attach(self) -> None:
        self.change(status="InUse", instance_id=self.node.instance_id)

    def get(self, path: str = "", source: str = "127.0.0.1") -> str | None:
        host, port = self.endpoint.split(":")
        connection = http.client.HTTPConnection(host, int(port), source_address=(source, 0), timeout=10)
        try:
            connection.request("GET", MACS + path)
            response = connection.getresponse()
            return response.read().decode() if response.status == 200 else None
        finally:
            connection.close()

    def macs(self, source: str = "127.0.0.1") -> list[str]:
        return (self.get(source=source) or "").split("\n")


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    with serving(lab.app) as lab.endpoint:
        yield lab


def test_an_eni_is_listed_from_the_end_of_attaching_to_the_end_of_detaching(lab: Lab) -> None:
    before = [f"{lab.node.mac}/"]
    instance_id = lab.node.instance_id
    assert lab.macs() == before
    lab.change(status="Attaching", instance_id=instance_id)
    assert lab.macs() == before
    for status in ("InUse", "Detaching"):
        lab.change(status=status)
        assert lab.macs() == [*before, f"{lab.eni.mac}/"]
    lab.change(status="Available", instance_id="")
    assert lab.macs() == before


def test_what_it_says_of_an_eni(lab: Lab) -> None:
    lab.attach()
    items = {name: lab.get(f"{lab.eni.mac}/{name}") for name in (lab.get(lab.eni.mac) or "").split("\n")}
    assert items == {
        "network-interface-id": lab.eni.network_interface_id,
        "vpc-id": lab.eni.vpc_id,
        "vpc-cidr-block": "127.0.0.0/8",
        "vpc-ipv6-cidr-blocks": "[2408:4000::/56]",
        "vswitch-id": lab.vswitch.vswitch_id,
        "vswitch-cidr-block": "127.0.2.0/24",
        "vswitch-ipv6-cidr-block": "2408:4000:0:2::/64",
        "primary-ip-address": "127.0.2.1",
        "private-ipv4s": json.dumps(["127.0.2.1", "127.0.2.2"]),
        "ipv6s": "[2408:4000:0:2::7,2408:4000:0:2::8]",
        "netmask": "255.255.255.0",
        "gateway": "127.0.2.253",
        "ipv6-gateway": "2408:4000:0:2:ffff:ffff:ffff:fffd",
    }
    lab.change(ipv6=(), ipv4_prefixes=(ip_network("127.0.2.16/28"),))
    assert lab.get(f"{lab.eni.mac}/ipv6s") is None
    assert lab.get(f"{lab.eni.mac}/ipv4-prefixes") == "127.0.2.16/28"


def test_each_instance_sees_its_own_from_any_of_its_addresses(lab: Lab) -> None:
    lab.attach()
    assert len(lab.macs("127.0.0.2")) == 1
    assert len(lab.macs("127.0.2.2")) == 2
    lab.change(secondary_ips=(ip_address("127.0.2.9"),))
    assert lab.get(source="127.0.2.2") is None


def test_members_of_a_trunk_are_not_listed(lab: Lab) -> None:
    lab.attach()
    lab.change(trunk_id="eni-trunk")
    assert lab.macs() == [f"{lab.node.mac}/"]


def test_it_may_lag(lab: Lab) -> None:
    lab.behaviour.faults.append(InjectedFault(kind="metadata-lag", seconds=10))
    assert lab.macs() == [f"{lab.node.mac}/"]  # what an instance is born with was there always
    lab.attach()
    lab.offset += 9
    assert len(lab.macs()) == 1
    lab.offset += 2
    lab.change(secondary_ips=())
    assert len(lab.macs()) == 2
    assert lab.get(f"{lab.eni.mac}/private-ipv4s") == '["127.0.2.1", "127.0.2.2"]'
    lab.offset += 11
    assert lab.get(f"{lab.eni.mac}/private-ipv4s") == '["127.0.2.1"]'
    lab.region.drop_interface(lab.eni)
    assert len(lab.macs()) == 2
    lab.behaviour.faults.clear()
    assert len(lab.macs()) == 1


def test_what_was_long_ago_is_forgotten_but_what_is_is_not(lab: Lab) -> None:
    lab.attach()
    lab.offset += 10 * MEMORY
    lab.change(secondary_ips=())
    lab.behaviour.faults.append(InjectedFault(kind="metadata-lag", seconds=MEMORY))
    assert lab.get(f"{lab.eni.mac}/private-ipv4s") == '["127.0.2.1", "127.0.2.2"]'
    lab.region.drop_interface(lab.eni)
    lab.offset += 10 * MEMORY
    lab.region.put_interface(replace(lab.region.interfaces_of(lab.node.instance_id)[0], name="changed"))
    assert len(lab.macs()) == 1


def test_it_may_be_away(lab: Lab) -> None:
    lab.behaviour.faults.append(InjectedFault(kind="metadata-down", times=1))
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        lab.macs()
    assert len(lab.macs()) == 1
