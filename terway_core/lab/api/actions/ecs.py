"""Instances, read."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from terway_core.lab.api.model import Instance, timestamp
from terway_core.lab.api.paging import token_page
from terway_core.lab.api.params import Request
from terway_core.lab.api.service import Service, action, check_region

#: ECS sends some lists as the text of a JSON array.
JsonList = Annotated[tuple[str, ...], BeforeValidator(json.loads)]


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
    address = str(instance.private_ip)
    ipv6 = [{"Ipv6Address": str(instance.ipv6)}] if instance.ipv6 else []
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
            "PrivateIpAddress": {"IpAddress": [address]},
        },
        "NetworkInterfaces": {
            "NetworkInterface": [
                {
                    "NetworkInterfaceId": instance.network_interface_id,
                    "MacAddress": instance.mac,
                    "PrimaryIpAddress": address,
                    "Type": "Primary",
                    "PrivateIpSets": {"PrivateIpSet": [{"PrivateIpAddress": address, "Primary": True}]},
                    "Ipv6Sets": {"Ipv6Set": ipv6},
                }
            ]
        },
        "Tags": {"Tag": []},
    }
