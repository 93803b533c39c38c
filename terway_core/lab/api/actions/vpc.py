"""VPCs, vSwitches and route tables, read."""

from __future__ import annotations

from typing import Any, Literal

from terway_core.lab.api.addresses import available
from terway_core.lab.api.model import RouteTable, Vpc, VSwitch, timestamp
from terway_core.lab.api.paging import NumberedPage
from terway_core.lab.api.service import Service, action, check_region


class DescribeVpcsRequest(NumberedPage):
    region_id: str
    vpc_id: str = ""


@action("Vpc", "DescribeVpcs")
async def describe_vpcs(service: Service, request: DescribeVpcsRequest) -> dict[str, Any]:
    """``VpcId`` may be several ids joined by commas; unknown ones are left out."""
    check_region(service.region, request.region_id)
    wanted = request.vpc_id.split(",") if request.vpc_id else list(service.region.vpcs)
    vpcs = [service.region.vpcs[vpc_id] for vpc_id in wanted if vpc_id in service.region.vpcs]
    shown, counters = request.cut(vpcs)
    return {
        **counters,
        "Vpcs": {"Vpc": [_vpc(service, vpc) for vpc in shown]},
    }


class DescribeVSwitchesRequest(NumberedPage):
    region_id: str = ""
    vpc_id: str = ""
    v_switch_id: str = ""
    zone_id: str = ""


@action("Vpc", "DescribeVSwitches")
async def describe_vswitches(service: Service, request: DescribeVSwitchesRequest) -> dict[str, Any]:
    """Unknown ids give an empty list."""
    if request.region_id:
        check_region(service.region, request.region_id)
    vswitches = [
        vswitch
        for vswitch in service.region.vswitches.values()
        if request.vpc_id in ("", vswitch.vpc_id)
        and request.v_switch_id in ("", vswitch.vswitch_id)
        and request.zone_id in ("", vswitch.zone_id)
    ]
    shown, counters = request.cut(vswitches)
    return {
        **counters,
        "VSwitches": {"VSwitch": [_vswitch(service, vswitch) for vswitch in shown]},
    }


class DescribeRouteTableListRequest(NumberedPage):
    region_id: str
    vpc_id: str = ""
    route_table_id: str = ""
    router_id: str = ""
    route_table_type: Literal["", "System", "Custom"] = ""


@action("Vpc", "DescribeRouteTableList")
async def describe_route_table_list(
    service: Service, request: DescribeRouteTableListRequest
) -> dict[str, Any]:
    """All tables here are the system's own, so ``RouteTableType=Custom`` gives an empty list."""
    check_region(service.region, request.region_id)
    tables = [
        table
        for table in service.region.route_tables.values()
        if request.vpc_id in ("", table.vpc_id)
        and request.route_table_id in ("", table.table_id)
        and request.router_id in ("", table.router_id)
        and request.route_table_type != "Custom"
    ]
    shown, counters = request.cut(tables)
    return {
        **counters,
        "RouterTableList": {"RouterTableListType": [_route_table(service, table) for table in shown]},
    }


def _vpc(service: Service, vpc: Vpc) -> dict[str, Any]:
    vswitches = [vswitch.vswitch_id for vswitch in service.region.vswitches_of(vpc.vpc_id)]
    return {
        "VpcId": vpc.vpc_id,
        "RegionId": service.region.region_id,
        "Status": "Available",
        "CidrBlock": str(vpc.cidr),
        "Ipv6CidrBlock": str(vpc.ipv6_cidr or ""),
        "EnabledIpv6": vpc.ipv6_cidr is not None,
        "SecondaryCidrBlocks": {"SecondaryCidrBlock": []},
        "VRouterId": vpc.router_id,
        "VSwitchIds": {"VSwitchId": vswitches},
        "RouterTableIds": {"RouterTableIds": [vpc.route_table_id]},
        "CreationTime": timestamp(vpc.created),
        "IsDefault": False,
        "Tags": {"Tag": []},
    }


def _vswitch(service: Service, vswitch: VSwitch) -> dict[str, Any]:
    return {
        "VSwitchId": vswitch.vswitch_id,
        "VpcId": vswitch.vpc_id,
        "ZoneId": vswitch.zone_id,
        "Status": "Available",
        "CidrBlock": str(vswitch.cidr),
        "Ipv6CidrBlock": str(vswitch.ipv6_cidr or ""),
        "EnabledIpv6": vswitch.ipv6_cidr is not None,
        "AvailableIpAddressCount": available(service.region, vswitch),
        "RouteTable": {
            "RouteTableId": service.region.vpcs[vswitch.vpc_id].route_table_id,
            "RouteTableType": "System",
        },
        "CreationTime": timestamp(vswitch.created),
        "IsDefault": False,
        "Tags": {"Tag": []},
    }


def _route_table(service: Service, table: RouteTable) -> dict[str, Any]:
    vswitches = [vswitch.vswitch_id for vswitch in service.region.vswitches_of(table.vpc_id)]
    return {
        "RouteTableId": table.table_id,
        "RouteTableType": "System",
        "VpcId": table.vpc_id,
        "RouterId": table.router_id,
        "RouterType": "VRouter",
        "AssociateType": "VSwitch",
        "Status": "Available",
        "VSwitchIds": {"VSwitchId": vswitches},
        "CreationTime": timestamp(table.created),
        "Tags": {"Tag": []},
    }
