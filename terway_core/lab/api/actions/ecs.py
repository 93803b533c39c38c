"""Instances, their types and security groups, read."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from terway_core.lab.api.actions.eni_describe import interface_reply
from terway_core.lab.api.faults import Fault
from terway_core.lab.api.instance_types import INSTANCE_TYPES, InstanceType
from terway_core.lab.api.model import Instance, SecurityGroup, timestamp
from terway_core.lab.api.paging import token_page
from terway_core.lab.api.params import ClientToken, Request
from terway_core.lab.api.service import Service, action, check_region

#: ECS sends some lists as the text of a JSON array.
JsonList = Annotated[tuple[str, ...], BeforeValidator(json.loads)]

#: What DescribeInstances tells of an ENI, beside its primary address.
_INTERFACE_FIELDS: Final = (
    "NetworkInterfaceId",
    "MacAddress",
    "Type",
    "PrivateIpSets",
    "Ipv6Sets",
    "Ipv4PrefixSets",
    "Ipv6PrefixSets",
)


class DescribeInstancesRequest(Request):
    region_id: str
    instance_ids: Annotated[JsonList | None, Field(max_length=100)] = None
    private_ip_addresses: Annotated[JsonList | None, Field(max_length=100)] = None
    vpc_id: str = ""
    v_switch_id: str = ""
    zone_id: str = ""
    instance_name: str = ""
    next_token: str = ""
    max_results: int = Field(10, ge=1, le=100)


@action("Ecs", "DescribeInstances")
async def describe_instances(service: Service, request: DescribeInstancesRequest) -> dict[str, Any]:
    """Filters are AND-ed; unknown ids give an empty list."""
    check_region(service.region, request.region_id)
    instances = [
        instance
        for instance in service.region.instances.values()
        if (request.instance_ids is None or instance.instance_id in request.instance_ids)
        and (request.private_ip_addresses is None or str(instance.private_ip) in request.private_ip_addresses)
        and request.vpc_id in ("", instance.vpc_id)
        and request.v_switch_id in ("", instance.vswitch_id)
        and request.zone_id in ("", instance.zone_id)
        and request.instance_name in ("", instance.name)
    ]
    shown, token = token_page(instances, lambda one: one.instance_id, request.next_token, request.max_results)
    return {
        "TotalCount": len(instances),
        "NextToken": token,
        "Instances": {"Instance": [_instance(service, instance) for instance in shown]},
    }


def _instance(service: Service, instance: Instance) -> dict[str, Any]:
    enis = service.region.interfaces_of(instance.instance_id)
    return {
        "InstanceId": instance.instance_id,
        "InstanceName": instance.name,
        "HostName": instance.name,
        "InstanceType": instance.instance_type,
        "InstanceNetworkType": "vpc",
        "RegionId": service.region.region_id,
        "ZoneId": instance.zone_id,
        "Status": "Running",
        "CreationTime": timestamp(instance.created),
        "VpcAttributes": {
            "VpcId": instance.vpc_id,
            "VSwitchId": instance.vswitch_id,
            "PrivateIpAddress": {"IpAddress": [str(instance.private_ip)]},
        },
        "SecurityGroupIds": {"SecurityGroupId": list(enis[0].security_group_ids)},
        "NetworkInterfaces": {
            "NetworkInterface": [
                {
                    **{name: reply[name] for name in _INTERFACE_FIELDS},
                    "PrimaryIpAddress": reply["PrivateIpAddress"],
                }
                for reply in map(interface_reply, enis)
            ]
        },
        "Tags": {"Tag": []},
    }


class DescribeInstanceTypesRequest(Request):
    instance_types: tuple[str, ...] = Field((), max_length=10)
    next_token: str = ""
    max_results: int = Field(100, ge=1, le=100)


@action("Ecs", "DescribeInstanceTypes")
async def describe_instance_types(service: Service, request: DescribeInstanceTypesRequest) -> dict[str, Any]:
    """All types, or those named; unknown ones are left out. The same in every region."""
    wanted = [
        one
        for one in INSTANCE_TYPES.values()
        if not request.instance_types or one.name in request.instance_types
    ]
    shown, token = token_page(wanted, lambda one: one.name, request.next_token, request.max_results)
    return {"NextToken": token, "InstanceTypes": {"InstanceType": [_instance_type(one) for one in shown]}}


def _instance_type(kind: InstanceType) -> dict[str, Any]:
    return {
        "InstanceTypeId": kind.name,
        "InstanceTypeFamily": kind.name.rpartition(".")[0],
        "CpuCoreCount": kind.cores,
        "MemorySize": float(kind.memory),
        "EniQuantity": kind.enis,
        "EniTotalQuantity": kind.total_enis,
        "EniPrivateIpAddressQuantity": kind.ipv4,
        "EniIpv6AddressQuantity": kind.ipv6,
        "EniTrunkSupported": kind.trunk,
        "EriQuantity": 0,
    }


class CreateSecurityGroupRequest(Request):
    region_id: str
    vpc_id: str
    security_group_name: str = ""
    client_token: ClientToken = ""


@action("Ecs", "CreateSecurityGroup")
async def create_security_group(service: Service, request: CreateSecurityGroupRequest) -> dict[str, Any]:
    """A group of the normal kind, and without rules: those in it reach each other."""
    region = service.region
    check_region(region, request.region_id)
    if request.vpc_id not in region.vpcs:
        raise Fault(404, "InvalidVpcId.NotFound", "The specified VPC does not exist.")
    group = region.add_security_group(region.vpcs[request.vpc_id], request.security_group_name)
    return {"SecurityGroupId": group.security_group_id}


class DescribeSecurityGroupsRequest(Request):
    region_id: str
    vpc_id: str = ""
    security_group_id: str = ""
    security_group_ids: Annotated[JsonList | None, Field(max_length=100)] = None
    security_group_name: str = ""
    next_token: str = ""
    max_results: int = Field(10, ge=1, le=100)


@action("Ecs", "DescribeSecurityGroups")
async def describe_security_groups(
    service: Service, request: DescribeSecurityGroupsRequest
) -> dict[str, Any]:
    """Filters are AND-ed; unknown ids give an empty list."""
    check_region(service.region, request.region_id)
    groups = [
        group
        for group in service.region.security_groups.values()
        if request.vpc_id in ("", group.vpc_id)
        and request.security_group_id in ("", group.security_group_id)
        and (request.security_group_ids is None or group.security_group_id in request.security_group_ids)
        and request.security_group_name in ("", group.name)
    ]
    shown, token = token_page(
        groups, lambda one: one.security_group_id, request.next_token, request.max_results
    )
    return {
        "RegionId": service.region.region_id,
        "TotalCount": len(groups),
        "NextToken": token,
        "SecurityGroups": {"SecurityGroup": [_security_group(group) for group in shown]},
    }


def _security_group(group: SecurityGroup) -> dict[str, Any]:
    return {
        "SecurityGroupId": group.security_group_id,
        "SecurityGroupName": group.name,
        "SecurityGroupType": "normal",
        "VpcId": group.vpc_id,
        "CreationTime": timestamp(group.created),
        "ServiceManaged": False,
        "Tags": {"Tag": []},
    }
