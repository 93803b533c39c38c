"""The simulated instance metadata service, over HTTP."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Literal

import pytest
from alibabacloud_tea_openapi import utils_models
from alibabacloud_tea_openapi.client import Client
from darabonba.runtime import RuntimeOptions

from terway_core.lab.api import Region, serving
from terway_core.lab.api import build_app as build_api
from terway_core.lab.metadata import build_app

TTL = "X-aliyun-ecs-metadata-token-ttl-seconds"
TOKEN = "X-aliyun-ecs-metadata-token"
META = "/latest/meta-data/"


class Lab:
    """A metadata service on the loopback, where the instances' addresses are."""

    def __init__(self, http_tokens: Literal["optional", "required"] = "optional") -> None:
        self.offset = 0.0
        self.region = Region.create(clock=lambda: time.time() + self.offset)
        vpc = self.region.add_vpc("127.0.0.0/8", "2408:4000::/56")
        dual = self.region.add_vswitch(vpc, "127.0.0.0/24", "cn-hangzhou-h", "2408:4000:0:1::/64")
        plain = self.region.add_vswitch(vpc, "127.0.1.0/24", "cn-hangzhou-g")
        self.node = self.region.add_instance(
            "node-1", instance_type="ecs.g7.large", vswitch=dual, private_ip="127.0.0.1"
        )
        self.other = self.region.add_instance(
            "node-2", instance_type="ecs.c7.large", vswitch=plain, private_ip="127.0.1.7", ram_role=""
        )
        self.vpc, self.vswitch = vpc, dual
        self.app = build_app(self.region, http_tokens=http_tokens)
        self.endpoint = ""

    def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        source: str = "127.0.0.1",
    ) -> tuple[int, str]:
        host, port = self.endpoint.split(":")
        connection = http.client.HTTPConnection(host, int(port), source_address=(source, 0))
        try:
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def item(self, path: str, source: str = "127.0.0.1") -> str | None:
        status, text = self.request("GET", META + path, source=source)
        assert status in (200, 404)
        return text if status == 200 else None

    def token(self, ttl: str = "600", source: str = "127.0.0.1") -> str:
        status, text = self.request("PUT", "/latest/api/token", {TTL: ttl}, source=source)
        assert status == 200
        return text

    def status_with(self, token: str, source: str = "127.0.0.1") -> int:
        return self.request("GET", META + "mac", {TOKEN: token}, source=source)[0]


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    with serving(lab.app) as lab.endpoint:
        yield lab


@pytest.fixture
def hardened() -> Iterator[Lab]:
    lab = Lab("required")
    with serving(lab.app) as lab.endpoint:
        yield lab


def test_items(lab: Lab) -> None:
    assert lab.item("instance-id") == lab.node.instance_id
    assert lab.item("region-id") == "cn-hangzhou"
    assert lab.item("zone-id") == "cn-hangzhou-h"
    assert lab.item("vpc-id") == lab.vpc.vpc_id
    assert lab.item("vpc-cidr-block") == "127.0.0.0/8"
    assert lab.item("vswitch-id") == lab.vswitch.vswitch_id
    assert lab.item("vswitch-cidr-block") == "127.0.0.0/24"
    assert lab.item("private-ipv4") == "127.0.0.1"
    assert lab.item("mac") == lab.node.mac
    assert lab.item("hostname") == "node-1"
    assert lab.item("instance/instance-type") == "ecs.g7.large"
    assert lab.item("dns-conf/nameservers") == "100.100.2.136\n100.100.2.138"


def test_items_of_the_interface(lab: Lab) -> None:
    interface = f"network/interfaces/macs/{lab.node.mac}"
    assert lab.item(f"{interface}/network-interface-id") == lab.node.network_interface_id
    assert lab.item(f"{interface}/private-ipv4s") == '["127.0.0.1"]'
    assert lab.item(f"{interface}/netmask") == "255.255.255.0"
    assert lab.item(f"{interface}/gateway") == "127.0.0.253"
    assert lab.item(f"{interface}/ipv6s") == "[2408:4000:0:1::1]"
    assert lab.item(f"{interface}/vpc-ipv6-cidr-blocks") == "[2408:4000::/56]"


def test_instances_are_told_apart_by_their_address(lab: Lab) -> None:
    source = "127.0.1.7"
    assert lab.item("instance-id", source) == lab.other.instance_id
    assert lab.item("instance/instance-type", source) == "ecs.c7.large"
    assert lab.item(f"network/interfaces/macs/{lab.node.mac}/gateway", source) is None
    assert lab.item(f"network/interfaces/macs/{lab.other.mac}/ipv6s", source) is None
    assert lab.request("GET", META, source="127.0.1.8")[0] == 404


def test_directories_list_their_children(lab: Lab) -> None:
    assert lab.request("GET", "/latest/") == (200, "meta-data/")
    names = (lab.item("") or "").split("\n")
    assert {"instance-id", "instance/", "network/", "dns-conf/", "ram/"} <= set(names)
    assert lab.item("instance/") == lab.item("instance") == "instance-name\ninstance-type"
    assert lab.item("network/interfaces/macs/") == f"{lab.node.mac}/"


@pytest.mark.parametrize("path", ["/latest/meta-data/eipv4", "/latest/meta-data/mac/x", "/2016-01-01/"])
def test_what_is_not_there(lab: Lab, path: str) -> None:
    assert lab.request("GET", path)[0] == 404


@pytest.mark.parametrize("ttl", ["", "0", "21601", "-1", "ten", "²"])
def test_token_with_a_bad_lifetime(lab: Lab, ttl: str) -> None:
    headers = {TTL: ttl.encode().decode("latin-1")} if ttl else {}
    status, text = lab.request("PUT", "/latest/api/token", headers)
    assert (status, text) == (400, "Missing or Invalid Parameters")


def test_token_is_not_given_to_a_proxy(lab: Lab) -> None:
    status, _ = lab.request("PUT", "/latest/api/token", {TTL: "600", "X-Forwarded-For": "10.0.0.1"})
    assert status == 403


def test_token_is_bound_to_instance_and_time(lab: Lab) -> None:
    token = lab.token(ttl="600")
    assert lab.status_with(token) == 200
    assert lab.status_with(token, source="127.0.1.7") == 401
    assert lab.status_with("made-up") == 401
    lab.offset = 599
    assert lab.status_with(token) == 200
    lab.offset = 600
    assert lab.status_with(token) == 401


def test_hardened_mode_wants_a_token(hardened: Lab) -> None:
    assert hardened.request("GET", META + "mac")[0] == 403
    assert hardened.status_with(hardened.token()) == 200


def test_credentials_of_the_role_are_good_for_the_api(lab: Lab) -> None:
    assert lab.item("ram/", source="127.0.1.7") is None  # has no role
    role = lab.item("ram/security-credentials/")
    assert role
    before = len(lab.region.access_keys)
    answer = json.loads(lab.item(f"ram/security-credentials/{role}") or "")
    assert len(lab.region.access_keys) == before + 1
    assert answer["Code"] == "Success"
    config = utils_models.Config(
        access_key_id=answer["AccessKeyId"],
        access_key_secret=answer["AccessKeySecret"],
        security_token=answer["SecurityToken"],
        protocol="http",
    )
    with serving(build_api(lab.region)) as config.endpoint:
        about = utils_models.Params(
            action="DescribeVpcs",
            version="2016-04-28",
            pathname="/",
            method="POST",
            auth_type="AK",
            style="RPC",
            req_body_type="formData",
            body_type="json",
        )
        request = utils_models.OpenApiRequest(query={"RegionId": "cn-hangzhou"})
        assert Client(config).call_api(about, request, RuntimeOptions())["body"]["TotalCount"] == 1


def test_credentials_change_half_an_hour_before_they_expire(lab: Lab) -> None:
    path = f"ram/security-credentials/{lab.node.ram_role}"
    first = json.loads(lab.item(path) or "")
    lab.offset = 5.4 * 3600
    assert json.loads(lab.item(path) or "") == first
    lab.offset = 5.6 * 3600
    second = json.loads(lab.item(path) or "")
    assert second["AccessKeyId"] != first["AccessKeyId"]
    assert second["Expiration"] > first["Expiration"]
    assert {first["AccessKeyId"], second["AccessKeyId"]} <= set(lab.region.access_keys)
