"""Instances, instance types, security groups and tags in the simulated ECS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .served_region import ServedRegion


@pytest.fixture
def lab() -> Iterator[ServedRegion]:
    with ServedRegion().served() as lab:
        yield lab


def test_an_instance_lists_its_enis(lab: ServedRegion) -> None:
    eni = lab.attached(SecondaryPrivateIpAddressCount=1)
    answer = lab.call("DescribeInstances", InstanceIds=json.dumps([lab.node.instance_id]))
    (instance,) = answer["Instances"]["Instance"]
    primary, secondary = instance["NetworkInterfaces"]["NetworkInterface"]
    assert (primary["Type"], primary["PrimaryIpAddress"]) == ("Primary", "10.0.0.1")
    assert primary["NetworkInterfaceId"] == lab.node.network_interface_id
    assert (secondary["Type"], secondary["PrimaryIpAddress"]) == ("Secondary", eni["PrivateIpAddress"])
    assert secondary["MacAddress"] == eni["MacAddress"]
    assert len(secondary["PrivateIpSets"]["PrivateIpSet"]) == 2
    assert instance["SecurityGroupIds"]["SecurityGroupId"] == [lab.group]


def types(lab: ServedRegion, **params: Any) -> dict[str, tuple[Any, ...]]:
    names = ("EniQuantity", "EniPrivateIpAddressQuantity", "EniTrunkSupported")
    answer = lab.call("DescribeInstanceTypes", **params)
    return {
        item["InstanceTypeId"]: tuple(item[name] for name in names)
        for item in answer["InstanceTypes"]["InstanceType"]
    }


def test_instance_types(lab: ServedRegion) -> None:
    assert (
        types(lab).items()
        >= {
            "ecs.g6.large": (2, 6, False),
            "ecs.g7.large": (3, 6, False),
            "ecs.g7.xlarge": (4, 15, False),
            "ecs.g7.4xlarge": (8, 30, True),
        }.items()
    )
    assert types(lab, InstanceTypes=["ecs.g6.large", "ecs.unknown"]) == {"ecs.g6.large": (2, 6, False)}
    first = lab.call("DescribeInstanceTypes", MaxResults=2)
    second = lab.call("DescribeInstanceTypes", MaxResults=100, NextToken=first["NextToken"])
    pages = [page["InstanceTypes"]["InstanceType"] for page in (first, second)]
    assert len(pages[0]) == 2
    assert len({item["InstanceTypeId"] for page in pages for item in page}) == len(types(lab))


def test_security_groups(lab: ServedRegion) -> None:
    web = lab.region.add_security_group(lab.vpc, "web").security_group_id
    other = lab.region.add_vpc("172.16.0.0/12")

    def found(**filters: Any) -> list[str]:
        answer = lab.call("DescribeSecurityGroups", **filters)
        return [group["SecurityGroupId"] for group in answer["SecurityGroups"]["SecurityGroup"]]

    assert sorted(found(VpcId=lab.vpc.vpc_id)) == sorted([lab.group, web])
    assert len(found(VpcId=other.vpc_id)) == 1
    assert found(SecurityGroupName="web") == found(SecurityGroupId=web) == [web]
    assert found(SecurityGroupIds=json.dumps([web, "sg-unknown"])) == [web]


def test_tags_come_and_go(lab: ServedRegion) -> None:
    first, second = lab.create(Tag=[{"Key": "a", "Value": "1"}]), lab.create()
    ids = [eni["NetworkInterfaceId"] for eni in (first, second)]

    def tags() -> list[dict[str, str]]:
        listed = lab.call("ListTagResources", ResourceType="eni", ResourceId=ids)["TagResources"][
            "TagResource"
        ]
        return [
            {item["TagKey"]: item["TagValue"] for item in listed if item["ResourceId"] == eni_id}
            for eni_id in ids
        ]

    new = [{"Key": "a", "Value": "2"}, {"Key": "b", "Value": "3"}]
    lab.call("TagResources", ResourceType="eni", ResourceId=ids, Tag=new)
    assert tags() == [{"a": "2", "b": "3"}] * 2
    lab.call("UntagResources", ResourceType="eni", ResourceId=ids[:1], TagKey=["a"], All=True)
    assert tags() == [{"b": "3"}, {"a": "2", "b": "3"}]
    lab.call("UntagResources", ResourceType="eni", ResourceId=ids, All=True)
    assert tags() == [{}, {}]


def test_resources_are_found_by_tag(lab: ServedRegion) -> None:
    tag = [{"Key": "a", "Value": "1"}]
    eni = lab.create(Tag=tag)
    lab.create()
    answer = lab.call("ListTagResources", ResourceType="eni", Tag=tag)
    assert [one["ResourceId"] for one in answer["TagResources"]["TagResource"]] == [eni["NetworkInterfaceId"]]
    assert lab.refused("ListTagResources", ResourceType="eni") == "MissingParameter.ResourceIds"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ResourceType": "disk"}, "InvalidResourceType.NotFound"),
        ({"ResourceId": ["eni-unknown"]}, "InvalidResourceId.NotFound"),
        ({"Tag": [{"Key": "a"}, {"Key": "a"}]}, "Duplicate.TagKey"),
        ({"Tag": [{"Key": "aliyun-x"}]}, "InvalidTagKey.Malformed"),
        ({"Tag": [{"Key": f"{number}"} for number in range(20)]}, "OperationDenied.QuotaExceed"),
    ],
)
def test_tags_that_cannot_be(lab: ServedRegion, change: dict[str, Any], code: str) -> None:
    eni = lab.create(Tag=[{"Key": "here"}])
    params = {
        "ResourceType": "eni",
        "ResourceId": [eni["NetworkInterfaceId"]],
        "Tag": [{"Key": "a"}],
    }
    assert lab.refused("TagResources", **(params | change)) == code
    assert lab.look(eni)["Tags"] == eni["Tags"]
