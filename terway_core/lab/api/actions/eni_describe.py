"""Network interfaces, read."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from pydantic import Field, field_validator

from terway_core.lab.api.faults import Fault
from terway_core.lab.api.model import NetworkInterface, timestamp
from terway_core.lab.api.paging import token_page
from terway_core.lab.api.params import Request
from terway_core.lab.api.region import OWNER_ID, Region
from terway_core.lab.api.service import Service, action, check_region


class Tag(Request):
    key: str = Field(min_length=1, max_length=128)
    value: str = Field("", max_length=128)


class DescribeNetworkInterfacesRequest(Request):
    region_id: str
    v_switch_id: str = ""
    vpc_id: str = ""
    primary_ip_address: IPv4Address | None = None
    private_ip_address: tuple[IPv4Address, ...] = Field((), max_length=100)
    ipv6_address: tuple[IPv6Address, ...] = Field((), max_length=100)
    security_group_id: str = ""
    network_interface_name: str = ""
    type: str = ""
    instance_id: str = ""
    network_interface_id: tuple[str, ...] = Field((), max_length=100)
    status: str = ""
    tag: tuple[Tag, ...] = Field((), max_length=20)
    max_results: int | None = None
    next_token: str = ""
    page_number: int | None = Field(None, ge=1)
    page_size: int | None = Field(None, ge=1, le=100)

    @field_validator("max_results")
    @classmethod
    def _within(cls, value: int | None) -> int | None:
        return None if value is None else min(max(value, 10), 500)


@action("Ecs", "DescribeNetworkInterfaces")
async def describe_network_interfaces(
    service: Service, request: DescribeNetworkInterfacesRequest
) -> dict[str, Any]:
    """Filters are AND-ed; unknown ids give an empty list. Pages have numbers only if the caller uses them."""
    check_region(service.region, request.region_id)
    enis = [eni for eni in service.region.network_interfaces.values() if _fits(eni, request)]
    reply: dict[str, Any]
    if (request.page_number or request.page_size) and not request.next_token:
        number, size = request.page_number or 1, request.page_size or 10
        shown = enis[(number - 1) * size : number * size]
        reply = {"PageNumber": number, "PageSize": size, "TotalCount": len(enis)}
    else:
        shown, token = token_page(
            enis, lambda one: one.network_interface_id, request.next_token, request.max_results or 10
        )
        reply = {"NextToken": token}
    return {**reply, "NetworkInterfaceSets": {"NetworkInterfaceSet": [interface_reply(eni) for eni in shown]}}


class DescribeNetworkInterfaceAttributeRequest(Request):
    region_id: str
    network_interface_id: str
    attribute: str = ""


@action("Ecs", "DescribeNetworkInterfaceAttribute")
async def describe_network_interface_attribute(
    service: Service, request: DescribeNetworkInterfaceAttributeRequest
) -> dict[str, Any]:
    """All that is known of one ENI; of a trunk also its members."""
    check_region(service.region, request.region_id)
    eni = find_interface(service.region, request.network_interface_id)
    reply = interface_reply(eni)
    members = [
        one.network_interface_id
        for one in service.region.network_interfaces.values()
        if one.trunk_id == eni.network_interface_id
    ]
    if members:
        reply["Attachment"]["MemberNetworkInterfaceIds"] = {"MemberNetworkInterfaceId": members}
    return reply


def find_interface(region: Region, network_interface_id: str) -> NetworkInterface:
    """:raises Fault: there is none."""
    if eni := region.network_interfaces.get(network_interface_id):
        return eni
    raise Fault(404, "InvalidEniId.NotFound", "The specified EniId does not exist.")


def interface_reply(eni: NetworkInterface) -> dict[str, Any]:
    """An ENI as replies have it."""
    member = bool(eni.trunk_id)
    attachment: dict[str, Any] = {}
    if eni.instance_id:
        attachment = {"InstanceId": eni.instance_id, "DeviceIndex": eni.device_index, "NetworkCardIndex": 0}
    if member:
        attachment["TrunkNetworkInterfaceId"] = eni.trunk_id
    return {
        "NetworkInterfaceId": eni.network_interface_id,
        "NetworkInterfaceName": eni.name,
        "Description": eni.description,
        "Type": "Member" if member else eni.type,
        "Status": eni.status,
        "InstanceId": "" if member else eni.instance_id,
        "Attachment": attachment,
        "MacAddress": eni.mac,
        "VpcId": eni.vpc_id,
        "VSwitchId": eni.vswitch_id,
        "ZoneId": eni.zone_id,
        "PrivateIpAddress": str(eni.private_ip),
        "PrivateIpSets": {
            "PrivateIpSet": [
                {"PrivateIpAddress": str(address), "Primary": address == eni.private_ip}
                for address in eni.ipv4
            ]
        },
        "Ipv6Sets": {"Ipv6Set": [{"Ipv6Address": str(address)} for address in eni.ipv6]},
        "Ipv4PrefixSets": {"Ipv4PrefixSet": [{"Ipv4Prefix": str(prefix)} for prefix in eni.ipv4_prefixes]},
        "Ipv6PrefixSets": {"Ipv6PrefixSet": []},
        "SecurityGroupIds": {"SecurityGroupId": list(eni.security_group_ids)},
        "Tags": tags_reply(eni.tags),
        "CreationTime": timestamp(eni.created),
        "DeleteOnRelease": eni.delete_on_release,
        "NetworkInterfaceTrafficMode": "Standard",
        "OwnerId": OWNER_ID,
        "ResourceGroupId": "",
        "ServiceManaged": False,
        "SourceDestCheck": False,
    }


def tags_reply(tags: Mapping[str, str]) -> dict[str, Any]:
    """Tags as ECS's replies have them."""
    return {"Tag": [{"TagKey": key, "TagValue": value} for key, value in tags.items()]}


def _fits(eni: NetworkInterface, request: DescribeNetworkInterfacesRequest) -> bool:
    return (
        request.v_switch_id in ("", eni.vswitch_id)
        and request.vpc_id in ("", eni.vpc_id)
        and request.primary_ip_address in (None, eni.private_ip)
        and (not request.private_ip_address or not set(request.private_ip_address).isdisjoint(eni.ipv4))
        and (not request.ipv6_address or not set(request.ipv6_address).isdisjoint(eni.ipv6))
        and (not request.security_group_id or request.security_group_id in eni.security_group_ids)
        and request.network_interface_name in ("", eni.name)
        and request.type in ("", "Member" if eni.trunk_id else eni.type)
        and request.instance_id in ("", eni.instance_id)
        and (not request.network_interface_id or eni.network_interface_id in request.network_interface_id)
        and request.status in ("", eni.status)
        and all(eni.tags.get(tag.key) == tag.value for tag in request.tag)
    )
