"""The real SDK, unchanged, against the simulated OpenAPI: what the gateway accepts, refuses and records."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from alibabacloud_tea_openapi import utils_models
from alibabacloud_tea_openapi.client import Client
from alibabacloud_tea_openapi.exceptions import ClientException, ServerException
from alibabacloud_tea_openapi.utils import Utils
from darabonba.runtime import RuntimeOptions

from terway_core.lab.api import CALLS, AccessKey, Behaviour, Region, build_app, serving

SCHEMES = ["v3", "v2"]


class Lab:
    """A served region, and the SDK pointed at it."""

    def __init__(self) -> None:
        self.offset = 0.0
        self.region = Region.create(clock=lambda: time.time() + self.offset)
        self.key = self.region.add_access_key()
        self.vpc = self.region.add_vpc("10.0.0.0/8", "2408:4000::/56")
        self.vswitch = self.region.add_vswitch(self.vpc, "10.0.0.0/24", "cn-hangzhou-h", "2408:4000::/64")
        self.behaviour = Behaviour()
        self.app = build_app(self.region, behaviour=self.behaviour, on_route_added=self.route_added)
        self.endpoint = ""
        self.route_added_does: Callable[[], None] = lambda: None

    def route_added(self, _cidr: object, _instance_id: str) -> None:
        self.route_added_does()

    def client(self, key: AccessKey | None = None, scheme: str = "v3", **config: Any) -> Client:
        key = key or self.key
        settings = {
            "access_key_id": key.access_key_id,
            "access_key_secret": key.access_key_secret,
            "security_token": key.security_token or None,
            "endpoint": self.endpoint,
            "protocol": "http",
            "signature_algorithm": "v2" if scheme == "v2" else None,
        }
        return Client(utils_models.Config(**(settings | config)))

    def call(self, action: str, client: Client | None = None, **params: Any) -> dict[str, Any]:
        return (client or self.client()).call_api(*request(action, params))["body"]


def request(
    action: str, params: dict[str, Any], *, method: str = "POST", form: bool = False, version: str = ""
) -> tuple[Any, Any, Any]:
    version = version or ("2014-05-26" if action == "DescribeInstances" else "2016-04-28")
    about = utils_models.Params(
        action=action,
        version=version,
        protocol="HTTP",
        pathname="/",
        method=method,
        auth_type="AK",
        style="RPC",
        req_body_type="formData",
        body_type="json",
    )
    sent = {"body": params} if form else {"query": Utils.query(params)}
    return about, utils_models.OpenApiRequest(**sent), RuntimeOptions()


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "DEBUG"):
        monkeypatch.delenv(name, raising=False)
    lab = Lab()
    with serving(lab.app) as lab.endpoint:
        yield lab


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Callable[..., requests.PreparedRequest]:
    """What the SDK would send, signed, but not sent."""

    def capture(client: Client, action: str, **params: Any) -> requests.PreparedRequest:
        sent: list[requests.PreparedRequest] = []

        def keep(_session: requests.Session, prepared: requests.PreparedRequest, **_: Any) -> None:
            sent.append(prepared)
            raise OSError("not sent")

        with monkeypatch.context() as patch:
            patch.setattr(requests.Session, "send", keep)
            with pytest.raises(Exception, match="not sent"):
                client.call_api(*request(action, params))
        return sent[0]

    return capture


def send(
    lab: Lab, prepared: requests.PreparedRequest, *, path: str | None = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    host, port = lab.endpoint.split(":")
    connection = http.client.HTTPConnection(host, int(port))
    try:
        sent = {**prepared.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request(prepared.method or "", path or prepared.path_url, prepared.body or b"", sent)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("form", [False, True], ids=["query", "form"])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_parameters_arrive_as_they_were_sent(lab: Lab, scheme: str, form: bool, method: str) -> None:
    awkward = "a b/+*~%&=é中文#?;"
    sent = {
        "RegionId": "cn-hangzhou",
        "VpcName": awkward,
        "Tag": [{"Key": awkward, "Value": ""}],
        "DryRun": True,
    }
    answer = lab.client(scheme=scheme).call_api(*request("DescribeVpcs", sent, form=form, method=method))[
        "body"
    ]
    assert [vpc["VpcId"] for vpc in answer["Vpcs"]["Vpc"]] == [lab.vpc.vpc_id]
    (call,) = lab.app[CALLS]
    assert call.params == {
        "RegionId": "cn-hangzhou",
        "VpcName": awkward,
        "Tag.1.Key": awkward,
        "Tag.1.Value": "",
        "DryRun": "True",
    }


def test_the_async_client_too(lab: Lab) -> None:
    answer = asyncio.run(lab.client().call_api_async(*request("DescribeVpcs", {"RegionId": "cn-hangzhou"})))
    assert answer["body"]["TotalCount"] == 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"access_key_secret": "wrong"}, 400, "SignatureDoesNotMatch"),
        ({"access_key_id": "LTAI5tNobody"}, 404, "InvalidAccessKeyId.NotFound"),
        ({"security_token": "made-up"}, 400, "InvalidSecurityToken.MismatchWithAccessKey"),
    ],
)
def test_wrong_credentials(lab: Lab, scheme: str, changes: dict[str, str], status: int, code: str) -> None:
    client = lab.client(scheme=scheme, **changes)
    with pytest.raises(ClientException) as caught:
        lab.call("DescribeVpcs", client, RegionId="cn-hangzhou")
    error = caught.value
    assert (error.code, error.status_code) == (code, status)
    assert error.data["HostId"] == "vpc.cn-hangzhou.aliyuncs.com"
    assert error.data["RequestId"] == error.request_id == error.request_id.upper()
    assert code in error.data["Recommend"]
    (call,) = lab.app[CALLS]
    assert (call.code, call.status, call.access_key_id) == (code, status, "")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sts_credentials(lab: Lab, scheme: str) -> None:
    key = lab.region.add_sts_credentials(lifetime=600)
    client = lab.client(key, scheme)
    assert lab.call("DescribeVpcs", client, RegionId="cn-hangzhou")["TotalCount"] == 1
    with pytest.raises(ClientException) as caught:
        lab.call("DescribeVpcs", lab.client(key, scheme, security_token=None), RegionId="cn-hangzhou")
    assert caught.value.code == "InvalidSecurityToken.MismatchWithAccessKey"
    lab.offset = 601
    with pytest.raises(ClientException) as caught:
        lab.call("DescribeVpcs", client, RegionId="cn-hangzhou")
    assert caught.value.code == "InvalidSecurityToken.Expired"


def test_a_disabled_key(lab: Lab) -> None:
    lab.region.disable_access_key(lab.key.access_key_id)
    with pytest.raises(ClientException) as caught:
        lab.call("DescribeVpcs", RegionId="cn-hangzhou")
    assert (caught.value.code, caught.value.status_code) == ("Forbidden.AccessKeyDisabled", 403)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_clock_that_is_off(lab: Lab, scheme: str) -> None:
    lab.offset = 15 * 60 + 5
    with pytest.raises(ClientException) as caught:
        lab.call("DescribeVpcs", lab.client(scheme=scheme), RegionId="cn-hangzhou")
    assert caught.value.code == "InvalidTimeStamp.Expired"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_replay(lab: Lab, capture: Callable[..., requests.PreparedRequest], scheme: str) -> None:
    prepared = capture(lab.client(scheme=scheme), "DescribeVpcs", RegionId="cn-hangzhou")
    assert send(lab, prepared)[0] == 200
    status, body = send(lab, prepared)
    assert (status, body["Code"]) == (400, "SignatureNonceUsed")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tampered_parameter(lab: Lab, capture: Callable[..., requests.PreparedRequest], scheme: str) -> None:
    prepared = capture(lab.client(scheme=scheme), "DescribeVpcs", RegionId="cn-hangzhou", PageSize="10")
    tampered = prepared.path_url.replace("PageSize=10", "PageSize=20")
    assert tampered != prepared.path_url
    status, body = send(lab, prepared, path=tampered)
    assert (status, body["Code"]) == (400, "SignatureDoesNotMatch")


def test_headers_outside_the_signature_do_not_matter(
    lab: Lab, capture: Callable[..., requests.PreparedRequest]
) -> None:
    prepared = capture(lab.client(), "DescribeVpcs", RegionId="cn-hangzhou")
    assert send(lab, prepared, Accept_Encoding="gzip", X_Something="else")[0] == 200


def test_no_signature_at_all(lab: Lab) -> None:
    url = f"http://{lab.endpoint}/"
    reply = requests.get(f"{url}?Action=DescribeVpcs&Version=2016-04-28", timeout=5)
    assert (reply.status_code, reply.json()["Code"]) == (400, "MissingParameter")
    assert "AccessKeyId" in reply.json()["Message"]
    headers = {"x-acs-action": "DescribeVpcs", "x-acs-version": "2016-04-28", "Authorization": "Basic eDp4"}
    reply = requests.post(url, headers=headers, timeout=5)
    assert (reply.status_code, reply.json()["Code"]) == (400, "IncompleteSignature")


@pytest.mark.parametrize(
    ("action", "version"),
    [("DescribeMoon", "2016-04-28"), ("DescribeVpcs", "2014-05-26"), ("DescribeVpcs", "1")],
)
def test_unknown_action_or_version(lab: Lab, action: str, version: str) -> None:
    with pytest.raises(ClientException) as caught:
        lab.client().call_api(*request(action, {"RegionId": "cn-hangzhou"}, version=version))
    assert (caught.value.code, caught.value.status_code) == ("InvalidAction.NotFound", 404)


@pytest.mark.parametrize(
    ("params", "code", "status"),
    [
        ({}, "MissingParameter", 400),
        ({"RegionId": "cn-moon"}, "InvalidRegionId.NotFound", 404),
        ({"RegionId": "cn-hangzhou", "PageSize": 51}, "InvalidParameter", 400),
        ({"RegionId": "cn-hangzhou", "PageSize": "many"}, "InvalidParameter", 400),
        ({"RegionId": "cn-hangzhou", "PageSize": [1]}, "InvalidParameter", 400),
    ],
)
def test_bad_parameters(lab: Lab, params: dict[str, Any], code: str, status: int) -> None:
    with pytest.raises(ClientException) as caught:
        lab.call("DescribeVpcs", **params)
    assert (caught.value.code, caught.value.status_code) == (code, status)
    assert "Recommend" not in caught.value.data


def test_an_error_of_the_lab_itself_is_an_internal_error(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    node = lab.region.add_instance("node", instance_type="ecs.g7.large", vswitch=lab.vswitch)

    def fail() -> None:
        raise RuntimeError("no such link")

    lab.route_added_does = fail
    with pytest.raises(ServerException) as caught:
        lab.call(
            "CreateRouteEntry",
            RouteTableId=lab.vpc.route_table_id,
            DestinationCidrBlock="172.16.0.0/24",
            NextHopId=node.instance_id,
        )
    assert (caught.value.code, caught.value.status_code) == ("InternalError", 500)
    assert "no such link" in caplog.text
    assert not [entry for entry in lab.region.route_entries.values() if entry.type == "Custom"]


def test_throttling_until_the_next_minute(lab: Lab) -> None:
    lab.offset = 60 - time.time() % 60  # the first second of a minute, so that the calls share it
    lab.behaviour.limits = {"DescribeVpcs": 2, "*": 1}
    for _ in range(2):
        lab.call("DescribeVpcs", RegionId="cn-hangzhou")
    for _ in range(2):
        with pytest.raises(ClientException) as caught:
            lab.call("DescribeVpcs", RegionId="cn-hangzhou")
        assert (caught.value.code, caught.value.status_code) == ("Throttling", 400)
    lab.call("DescribeVSwitches", RegionId="cn-hangzhou")  # each action has its own limit
    lab.offset += 60
    lab.call("DescribeVpcs", RegionId="cn-hangzhou")


def test_the_lab_lists_calls_and_changes_behaviour(lab: Lab) -> None:
    key = lab.region.add_sts_credentials(lifetime=600)
    lab.call("DescribeVpcs", lab.client(key, "v2"), RegionId="cn-hangzhou")
    reply = requests.get(f"http://{lab.endpoint}/lab/calls", timeout=5)
    (call,) = reply.json()["calls"]
    assert call["action"] == "DescribeVpcs"
    assert call["product"] == "Vpc"
    assert call["params"] == {"RegionId": "cn-hangzhou"}
    assert call["access_key_id"] == key.access_key_id
    assert call["source_ip"] == "127.0.0.1"
    assert (call["status"], call["code"]) == (200, "")
    assert key.security_token not in reply.text
    assert key.access_key_secret not in reply.text

    url = f"http://{lab.endpoint}/lab/behaviour"
    assert requests.get(url, timeout=5).json() == Behaviour().model_dump()
    assert requests.patch(url, json={"route_quota": 1}, timeout=5).json()["route_quota"] == 1
    assert (lab.behaviour.route_quota, lab.behaviour.route_delay) == (1, 0.0)
    assert requests.patch(url, json={"route_delay": -1}, timeout=5).status_code == 400
    assert requests.patch(url, json={"colour": "red"}, timeout=5).status_code == 400


def test_numbered_pages(lab: Lab) -> None:
    for third in range(1, 12):
        lab.region.add_vswitch(lab.vpc, f"10.0.{third}.0/24", "cn-hangzhou-g")
    first = lab.call("DescribeVSwitches", VpcId=lab.vpc.vpc_id)
    assert (first["PageNumber"], first["PageSize"], first["TotalCount"]) == (1, 10, 12)
    second = lab.call("DescribeVSwitches", VpcId=lab.vpc.vpc_id, PageNumber=2)
    pages = [page["VSwitches"]["VSwitch"] for page in (first, second)]
    assert [len(page) for page in pages] == [10, 2]
    assert {vswitch["VSwitchId"] for page in pages for vswitch in page} == set(lab.region.vswitches)
    beyond = lab.call("DescribeVSwitches", PageNumber=9)
    assert beyond["VSwitches"]["VSwitch"] == []


def test_describe_vpcs(lab: Lab) -> None:
    other = lab.region.add_vpc("192.168.0.0/16")
    answer = lab.call("DescribeVpcs", RegionId="cn-hangzhou", VpcId=f"{lab.vpc.vpc_id},vpc-unknown")
    (vpc,) = answer["Vpcs"]["Vpc"]
    assert vpc["CidrBlock"] == "10.0.0.0/8"
    assert vpc["Ipv6CidrBlock"] == "2408:4000::/56"
    assert vpc["VSwitchIds"] == {"VSwitchId": [lab.vswitch.vswitch_id]}
    assert vpc["RouterTableIds"] == {"RouterTableIds": [lab.vpc.route_table_id]}
    both = lab.call("DescribeVpcs", RegionId="cn-hangzhou")["Vpcs"]["Vpc"]
    assert {vpc["VpcId"] for vpc in both} == {lab.vpc.vpc_id, other.vpc_id}


def test_describe_vswitches(lab: Lab) -> None:
    lab.region.add_instance("node", instance_type="ecs.g7.large", vswitch=lab.vswitch)
    lab.region.add_vswitch(lab.vpc, "10.0.1.0/24", "cn-hangzhou-g")
    (vswitch,) = lab.call("DescribeVSwitches", ZoneId="cn-hangzhou-h")["VSwitches"]["VSwitch"]
    assert vswitch["VSwitchId"] == lab.vswitch.vswitch_id
    assert vswitch["CidrBlock"] == "10.0.0.0/24"
    assert vswitch["Ipv6CidrBlock"] == "2408:4000::/64"
    assert vswitch["AvailableIpAddressCount"] == 251  # 256 less 4 of the VPC's own and the node's
    assert lab.call("DescribeVSwitches", VSwitchId="vsw-unknown")["VSwitches"]["VSwitch"] == []


def test_describe_instances(lab: Lab) -> None:
    nodes = [
        lab.region.add_instance(f"node-{number}", instance_type="ecs.g7.large", vswitch=lab.vswitch)
        for number in range(12)
    ]
    first = lab.call("DescribeInstances", RegionId="cn-hangzhou")
    second = lab.call("DescribeInstances", RegionId="cn-hangzhou", NextToken=first["NextToken"])
    assert [len(page["Instances"]["Instance"]) for page in (first, second)] == [10, 2]
    assert second["NextToken"] == ""
    seen = [one for page in (first, second) for one in page["Instances"]["Instance"]]
    assert {one["InstanceId"] for one in seen} == {node.instance_id for node in nodes}

    wanted = json.dumps([nodes[3].instance_id, "i-unknown"])
    answer = lab.call("DescribeInstances", RegionId="cn-hangzhou", InstanceIds=wanted)
    (instance,) = answer["Instances"]["Instance"]
    assert instance["InstanceName"] == "node-3"
    assert instance["InstanceType"] == "ecs.g7.large"
    assert instance["VpcAttributes"]["PrivateIpAddress"]["IpAddress"] == [str(nodes[3].private_ip)]
    (eni,) = instance["NetworkInterfaces"]["NetworkInterface"]
    assert (eni["MacAddress"], eni["Type"]) == (nodes[3].mac, "Primary")
    assert eni["Ipv6Sets"]["Ipv6Set"] == [{"Ipv6Address": str(nodes[3].ipv6)}]
    with pytest.raises(ClientException) as caught:
        lab.call("DescribeInstances", RegionId="cn-hangzhou", InstanceIds="i-1,i-2")
    assert caught.value.code == "InvalidParameter"
