"""The life of network interfaces in the simulated ECS: states, refusals, and what the network is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alibabacloud_tea_openapi import utils_models
from alibabacloud_tea_openapi.client import Client
from darabonba.runtime import RuntimeOptions

from terway_core.cloud import Cloud
from terway_core.errors import CloudError
from terway_core.lab.api import Behaviour, Region

from .served_region import ServedRegion, wait_for


@pytest.fixture
def lab() -> Iterator[ServedRegion]:
    with ServedRegion().served() as lab:
        yield lab


def test_what_creating_answers(lab: ServedRegion) -> None:
    eni = lab.create(
        NetworkInterfaceName="pool",
        Description="by terway",
        SecondaryPrivateIpAddressCount=1,
        Ipv6AddressCount=1,
        DeleteOnRelease=False,
        Tag=[{"Key": "a", "Value": "b"}, {"Key": "c"}],
    )
    assert eni["NetworkInterfaceId"].startswith("eni-bp1")
    assert (eni["Status"], eni["Type"], eni["ZoneId"]) == ("Available", "Secondary", "cn-hangzhou-h")
    assert (eni["NetworkInterfaceName"], eni["Description"]) == ("pool", "by terway")
    assert eni["PrivateIpSets"]["PrivateIpSet"] == [
        {"PrivateIpAddress": "10.0.0.2", "Primary": True},
        {"PrivateIpAddress": "10.0.0.3", "Primary": False},
    ]
    assert eni["Tags"]["Tag"] == [{"TagKey": "a", "TagValue": "b"}, {"TagKey": "c", "TagValue": ""}]
    assert eni["DeleteOnRelease"] is False
    assert lab.look(eni) == {key: value for key, value in eni.items() if key != "RequestId"}
    assert lab.told == []  # what is attached to nothing is nothing to the network


def test_statuses_pass_one_after_the_other() -> None:
    behaviour = Behaviour(attach_delay=0.1, detach_delay=0.1, delete_delay=0.1)
    with ServedRegion(behaviour=behaviour).served() as lab:
        eni = lab.create()
        lab.attach(eni)
        assert (lab.status(eni), lab.told) == ("Attaching", [])
        assert lab.look(eni)["InstanceId"] == lab.node.instance_id
        wait_for(lambda: lab.status(eni) == "InUse")
        (told,) = lab.told
        assert [one.plugged for one in told] == [False, True]
        lab.call("DetachNetworkInterface", **lab.attachment(eni))
        assert lab.status(eni) == "Detaching"
        wait_for(lambda: lab.status(eni) == "Available")
        assert [one.plugged for one in lab.told[1]] == [True, False]
        assert lab.look(eni)["InstanceId"] == ""
        lab.call("DeleteNetworkInterface", NetworkInterfaceId=eni["NetworkInterfaceId"])
        assert lab.status(eni) == "Deleting"
        wait_for(lambda: lab.status(eni) == "gone")
    assert len(lab.told) == 2


def test_creating_may_take_its_time_and_a_token_in_use_is_busy() -> None:
    with ServedRegion(behaviour=Behaviour(create_delay=0.5)).served() as lab:
        params = {"VSwitchId": lab.zone_h.vswitch_id, "SecurityGroupIds": [lab.group], "ClientToken": "t"}
        codes: list[str] = []

        def create(client: Cloud) -> None:
            try:
                client.call("ecs", "CreateNetworkInterface", params)
            except CloudError as error:
                codes.append(error.code)

        threads = [threading.Thread(target=create, args=(lab.client(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes == ["LastTokenProcessing"]  # whichever came second
        assert len(lab.region.network_interfaces) == 3


def test_what_is_asked_for_out_of_turn(lab: ServedRegion) -> None:
    eni = lab.create()
    one = {"NetworkInterfaceId": eni["NetworkInterfaceId"]}
    state = "InvalidOperation.InvalidEniState"
    assert lab.refused("DetachNetworkInterface", **lab.attachment(eni)) == state
    lab.attach(eni)
    assert lab.refused("AttachNetworkInterface", **lab.attachment(eni)) == state
    assert lab.refused("DeleteNetworkInterface", **one) == state
    other = lab.region.add_instance("other", instance_type="ecs.g7.large", vswitch=lab.zone_h)
    assert (
        lab.refused("DetachNetworkInterface", **lab.attachment(eni, other))
        == "InvalidParameter.EniNotBelongEcs"
    )
    lab.call("DetachNetworkInterface", **lab.attachment(eni))
    lab.call("DeleteNetworkInterface", **one)
    for action in ("DeleteNetworkInterface", "DescribeNetworkInterfaceAttribute"):
        assert lab.refused(action, **one) == "InvalidEniId.NotFound"
    assert lab.find(NetworkInterfaceId=[one["NetworkInterfaceId"]]) == []


def test_the_primary_eni_is_not_to_be_taken_away(lab: ServedRegion) -> None:
    (primary,) = lab.find(InstanceId=lab.node.instance_id)
    assert (primary["Type"], primary["Status"]) == ("Primary", "InUse")
    attachment = lab.attachment(primary)
    assert (
        lab.refused("DetachNetworkInterface", **attachment) == "InvalidOperation.DetachPrimaryEniNotAllowed"
    )
    assert lab.refused("AttachNetworkInterface", **attachment) == "InvalidOperation.InvalidEniType"
    one = {"NetworkInterfaceId": primary["NetworkInterfaceId"]}
    assert lab.refused("DeleteNetworkInterface", **one) == "InvalidOperation.InvalidEniState"
    assert (
        lab.refused("ModifyNetworkInterfaceAttribute", **one, SecurityGroupId=[lab.group])
        == "InvalidOperation.InvalidEniType"
    )


def test_an_eni_cannot_be_attached_anywhere(lab: ServedRegion) -> None:
    eni = lab.create()
    assert (
        lab.refused("AttachNetworkInterface", **lab.attachment(eni, lab.far))
        == "InvalidOperation.AvailabilityZoneMismatch"
    )
    elsewhere = lab.region.add_vswitch(lab.region.add_vpc("172.16.0.0/12"), "172.16.0.0/24", "cn-hangzhou-h")
    stranger = lab.region.add_instance("stranger", instance_type="ecs.g7.large", vswitch=elsewhere)
    assert (
        lab.refused("AttachNetworkInterface", **lab.attachment(eni, stranger))
        == "InvalidOperation.VpcMismatch"
    )
    unknown = lab.attachment(eni) | {"InstanceId": "i-unknown"}
    for action in ("AttachNetworkInterface", "DetachNetworkInterface"):
        assert lab.refused(action, **unknown) == "InvalidEcsId.NotFound"


def test_quotas(lab: ServedRegion) -> None:
    for _ in range(2):  # a g7.large has three, one of them primary
        lab.attached()
    eni = lab.create()
    assert lab.refused("AttachNetworkInterface", **lab.attachment(eni)) == "EniPerInstanceLimitExceeded"
    crowded = lab.create(vswitch=lab.zone_i, SecondaryPrivateIpAddressCount=6)
    assert (
        lab.refused("AttachNetworkInterface", **lab.attachment(crowded, lab.far))
        == "InvalidOperation.Ipv4CountExceeded"
    )
    lab.behaviour.eni_quota = 4
    assert lab.refused(
        "CreateNetworkInterface", VSwitchId=lab.zone_h.vswitch_id, SecurityGroupId=lab.group
    ) == ("MaxEniCountExceeded")


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"VSwitchId": "vsw-unknown"}, "InvalidVSwitchId.NotFound"),
        ({"SecurityGroupIds": ["sg-unknown"]}, "InvalidSecurityGroupId.NotFound"),
        ({"SecurityGroupIds": None}, "MissingParameter"),
        ({"SecurityGroupId": "sg-1"}, "InvalidParameter.Conflict"),
        ({"SecurityGroupIds": ["GROUP"] * 6}, "JoinedGroupLimitExceed"),
        ({"InstanceType": "Primary"}, "InvalidParameter"),
        ({"SecondaryPrivateIpAddressCount": 0}, "InvalidParameter"),
        ({"SecondaryPrivateIpAddressCount": 50}, "InvalidParameter"),
        ({"SecondaryPrivateIpAddressCount": 1, "Ipv4PrefixCount": 1}, "InvalidParameter.Conflict"),
        (
            {"SecondaryPrivateIpAddressCount": 1, "PrivateIpAddress": ["10.0.0.9"]},
            "InvalidParameter.Conflict",
        ),
        ({"PrimaryIpAddress": "10.0.0.1"}, "InvalidIp.IpAssigned"),
        ({"PrimaryIpAddress": "10.0.0.253"}, "InvalidVSwitchId.IpInvalid"),
        ({"PrimaryIpAddress": "10.0.7.1"}, "InvalidVSwitchId.IpInvalid"),
        ({"PrivateIpAddress": ["10.0.0.9", "10.0.0.9"]}, "InvalidPrivateIpAddress.Duplicated"),
        ({"Tag": [{"Key": "a"}, {"Key": "a"}]}, "Duplicate.TagKey"),
        ({"Tag": [{"Key": "acs:a"}]}, "InvalidTagKey.Malformed"),
        ({"Tag": [{"Key": str(number)} for number in range(21)]}, "InvalidParameter"),
        ({"NetworkInterfaceName": "x"}, "InvalidParameter"),
        ({"NetworkInterfaceName": "http://x"}, "InvalidParameter"),
    ],
)
def test_what_cannot_be_created(lab: ServedRegion, params: dict[str, Any], code: str) -> None:
    if params.get("SecurityGroupIds") == ["GROUP"] * 6:
        params = {"SecurityGroupIds": [lab.group] * 6}
    wanted = {"VSwitchId": lab.zone_h.vswitch_id, "SecurityGroupIds": [lab.group]} | params
    before = set(lab.region.network_interfaces)
    assert lab.refused("CreateNetworkInterface", **wanted) == code
    assert set(lab.region.network_interfaces) == before


def test_groups_of_another_vpc_are_refused(lab: ServedRegion) -> None:
    stranger = lab.region.security_groups_of(lab.region.add_vpc("172.16.0.0/12").vpc_id)[0].security_group_id
    eni = lab.create()
    assert (
        lab.refused(
            "ModifyNetworkInterfaceAttribute",
            NetworkInterfaceId=eni["NetworkInterfaceId"],
            SecurityGroupId=[stranger],
        )
        == "InvalidOperation.VpcMismatch"
    )


def test_addresses_may_be_asked_for_by_name(lab: ServedRegion) -> None:
    eni = lab.create(PrimaryIpAddress="10.0.0.77", PrivateIpAddress=["10.0.0.78"])
    assert eni["PrivateIpAddress"] == "10.0.0.77"
    unnamed = lab.create(PrivateIpAddress=["10.0.0.88"])
    addresses = [
        (one["PrivateIpAddress"], one["Primary"]) for one in unnamed["PrivateIpSets"]["PrivateIpSet"]
    ]
    assert addresses == [("10.0.0.2", True), ("10.0.0.88", False)]


def test_a_token_has_one_eni(lab: ServedRegion) -> None:
    eni = lab.create(ClientToken="t")
    assert lab.create(ClientToken="t")["NetworkInterfaceId"] == eni["NetworkInterfaceId"]
    params = {"VSwitchId": lab.zone_i.vswitch_id, "SecurityGroupIds": [lab.group], "ClientToken": "t"}
    assert lab.refused("CreateNetworkInterface", **params) == "IdempotentParameterMismatch"
    assert len(lab.region.network_interfaces) == 3


def test_changing_an_eni(lab: ServedRegion) -> None:
    eni = lab.create()
    one = {"NetworkInterfaceId": eni["NetworkInterfaceId"]}
    lab.call("ModifyNetworkInterfaceAttribute", **one, NetworkInterfaceName="new", DeleteOnRelease=False)
    lab.call("ModifyNetworkInterfaceAttribute", **one, Description="what for")
    found = lab.look(eni)
    assert (found["NetworkInterfaceName"], found["Description"]) == ("new", "what for")
    assert found["DeleteOnRelease"] is False


def test_the_network_is_told_of_other_groups(lab: ServedRegion) -> None:
    one = {"NetworkInterfaceId": lab.attached()["NetworkInterfaceId"]}
    group = lab.call("CreateSecurityGroup", VpcId=lab.vpc.vpc_id, SecurityGroupName="other")
    lab.told.clear()
    lab.call("ModifyNetworkInterfaceAttribute", **one, SecurityGroupId=[group["SecurityGroupId"]])
    ((before, after),) = lab.told
    assert (before.security_group_ids, after.security_group_ids) == (
        (lab.group,),
        (group["SecurityGroupId"],),
    )
    lab.call("ModifyNetworkInterfaceAttribute", **one, Description="what for")
    assert len(lab.told) == 1
    assert lab.refused("CreateSecurityGroup", VpcId="vpc-none") == "InvalidVpcId.NotFound"


def test_a_network_that_does_not_follow_leaves_it_available(lab: ServedRegion) -> None:
    eni = lab.create()
    lab.fabric_fails = True
    assert lab.refused("AttachNetworkInterface", **lab.attachment(eni)) == "InternalError"
    assert (lab.status(eni), lab.look(eni)["InstanceId"]) == ("Available", "")
    lab.fabric_fails = False
    lab.attach(eni)
    assert lab.status(eni) == "InUse"


def test_a_new_start_takes_up_what_was_on_its_way(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    behaviour = Behaviour(attach_delay=600, delete_delay=600)
    with ServedRegion(Region.create(path=path), behaviour).served() as lab:
        attaching, deleting = lab.create(), lab.create()
        lab.attach(attaching)
        lab.call("DeleteNetworkInterface", NetworkInterfaceId=deleting["NetworkInterfaceId"])
    with ServedRegion(Region.load(path)).served() as lab:
        assert lab.status(attaching) == "InUse"
        assert lab.status(deleting) == "gone"
        (told,) = lab.told
        assert told[1].network_interface_id == attaching["NetworkInterfaceId"]


def test_describing_one_eni(lab: ServedRegion) -> None:
    eni = lab.attached()
    one = {"NetworkInterfaceId": eni["NetworkInterfaceId"]}
    found = lab.call("DescribeNetworkInterfaceAttribute", **one, Attribute="attachment")
    assert found["Attachment"]["InstanceId"] == lab.node.instance_id
    assert found["MacAddress"] == eni["MacAddress"]


def test_trunks_and_members(lab: ServedRegion) -> None:
    trunk = lab.create(InstanceType="Trunk")
    assert (
        lab.refused("AttachNetworkInterface", **lab.attachment(trunk))
        == "InvalidOperation.InstanceTypeNotSupportEniTrunking"
    )
    big = lab.region.add_instance("big", instance_type="ecs.g7.4xlarge", vswitch=lab.zone_h)
    member = lab.create()
    inside = {**lab.attachment(member, big), "TrunkNetworkInstanceId": trunk["NetworkInterfaceId"]}
    assert lab.refused("AttachNetworkInterface", **inside) == "InvalidOperation.InvalidTrunkEniStatus"
    lab.attach(trunk, big)
    lab.call("AttachNetworkInterface", **inside)
    found = lab.look(member)
    assert (found["Type"], found["InstanceId"]) == ("Member", "")
    assert found["Attachment"]["InstanceId"] == big.instance_id
    assert found["Attachment"]["DeviceIndex"] == 1
    assert [one["NetworkInterfaceId"] for one in lab.find(Type="Member")] == [member["NetworkInterfaceId"]]
    described = lab.call("DescribeNetworkInterfaceAttribute", NetworkInterfaceId=trunk["NetworkInterfaceId"])
    members = described["Attachment"]["MemberNetworkInterfaceIds"]["MemberNetworkInterfaceId"]
    assert members == [member["NetworkInterfaceId"]]
    assert (
        lab.refused("DetachNetworkInterface", **lab.attachment(member, big))
        == "InvalidParameter.EniNotBelongTrunk"
    )
    lab.call("DetachNetworkInterface", **inside)
    assert lab.look(member)["Type"] == "Secondary"


def test_both_ways_of_paging(lab: ServedRegion) -> None:
    made = {lab.create()["NetworkInterfaceId"] for _ in range(23)} | {
        eni.network_interface_id for eni in lab.region.network_interfaces.values()
    }
    seen: list[str] = []
    token = ""
    while True:
        answer = lab.call(
            "DescribeNetworkInterfaces", MaxResults=1, NextToken=token or None
        )  # 1 counts as 10
        page = answer["NetworkInterfaceSets"]["NetworkInterfaceSet"]
        assert len(page) <= 10
        seen += [eni["NetworkInterfaceId"] for eni in page]
        if not (token := answer["NextToken"]):
            break
    assert (len(seen), set(seen)) == (len(made), made)
    first = lab.call("DescribeNetworkInterfaces", PageNumber=1, PageSize=20)
    second = lab.call("DescribeNetworkInterfaces", PageNumber=2, PageSize=20)
    assert first["TotalCount"] == len(made)
    numbered = [
        eni["NetworkInterfaceId"]
        for answer in (first, second)
        for eni in answer["NetworkInterfaceSets"]["NetworkInterfaceSet"]
    ]
    assert (len(numbered), set(numbered)) == (len(made), made)


def test_filters(lab: ServedRegion) -> None:
    eni = lab.create(
        vswitch=lab.zone_i,
        Tag=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}],
        PrimaryIpAddress="10.0.1.9",
    )
    lab.create()
    for filters in (
        {"VSwitchId": lab.zone_i.vswitch_id, "Type": "Secondary"},
        {"Tag": [{"Key": "a", "Value": "1"}]},
        {"Tag": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]},
        {"PrimaryIpAddress": "10.0.1.9"},
        {"PrivateIpAddress": ["10.0.1.9", "10.9.9.9"]},
    ):
        assert [one["NetworkInterfaceId"] for one in lab.find(**filters)] == [eni["NetworkInterfaceId"]]
    assert lab.find(Tag=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "1"}]) == []
    assert lab.find(Status="Attaching") == []


def test_the_older_signature_will_do_as_well(lab: ServedRegion) -> None:
    key = lab.region.add_access_key()
    client = Client(
        utils_models.Config(
            access_key_id=key.access_key_id,
            access_key_secret=key.access_key_secret,
            endpoint=lab.endpoint,
            protocol="http",
            signature_algorithm="v2",
        )
    )
    params = utils_models.Params(
        action="CreateNetworkInterface",
        version="2014-05-26",
        pathname="/",
        method="POST",
        auth_type="AK",
        style="RPC",
        req_body_type="formData",
        body_type="json",
    )
    query = {
        "RegionId": "cn-hangzhou",
        "VSwitchId": lab.zone_h.vswitch_id,
        "SecurityGroupIds.1": lab.group,
        "Tag.1.Key": "a b/é*~",
        "Tag.1.Value": "",
        "ClientToken": "t",
    }
    answer = client.call_api(params, utils_models.OpenApiRequest(query=query), RuntimeOptions())
    (eni,) = lab.find(Tag=[{"Key": "a b/é*~", "Value": ""}])
    assert answer["body"]["NetworkInterfaceId"] == eni["NetworkInterfaceId"]
