"""Route entries: Pending until the fabric carries them, then Available; Deleting until it no longer does.

Changes are serialised per VPC, as in the real one: while one is under way, another gets ``TaskConflict``.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from typing import Any, Final

from pydantic import Field
from pydantic.alias_generators import to_pascal

from terway_core.lab.api.faults import Fault, invalid_parameter, missing_parameter
from terway_core.lab.api.model import IPNetwork, RouteEntry, RouteTable, timestamp
from terway_core.lab.api.paging import token_page
from terway_core.lab.api.params import ClientToken, Request
from terway_core.lab.api.region import SERVICE_CIDR, Region
from terway_core.lab.api.service import Service, action, check_region

#: How many entries one batch call takes.
BATCH: Final = 50


class DescribeRouteEntryListRequest(Request):
    region_id: str
    route_table_id: str
    route_entry_id: str = ""
    route_entry_type: str = ""
    destination_cidr_block: str = ""
    next_hop_id: str = ""
    next_hop_type: str = ""
    next_token: str = ""
    max_result: int = Field(10, ge=1, le=100)


@action("Vpc", "DescribeRouteEntryList")
async def describe_route_entry_list(
    service: Service, request: DescribeRouteEntryListRequest
) -> dict[str, Any]:
    """Filters are AND-ed. The paging parameter really is ``MaxResult``."""
    check_region(service.region, request.region_id)
    table = _table(service.region, request.route_table_id)
    entries = [
        entry
        for entry in service.region.routes_of(table.table_id)
        if request.route_entry_id in ("", entry.entry_id)
        and request.route_entry_type in ("", entry.type)
        and request.destination_cidr_block in ("", str(entry.cidr))
        and request.next_hop_id in ("", entry.next_hop_id)
        and request.next_hop_type in ("", entry.next_hop_type)
    ]
    shown, token = token_page(entries, lambda one: one.entry_id, request.next_token, request.max_result)
    return {
        "TotalCount": len(entries),
        "NextToken": token,
        "RouteEntrys": {"RouteEntry": [_reply(entry) for entry in shown]},
    }


class CreateRouteEntryRequest(Request):
    region_id: str = ""
    client_token: ClientToken = ""
    route_table_id: str
    destination_cidr_block: str
    next_hop_type: str = "Instance"
    next_hop_id: str
    route_entry_name: str = ""
    description: str = ""


@action("Vpc", "CreateRouteEntry")
async def create_route_entry(service: Service, request: CreateRouteEntryRequest) -> dict[str, Any]:
    """Replies at once; the entry is Pending for ``route_delay`` seconds."""
    if request.region_id:
        check_region(service.region, request.region_id)
    table = _table(service.region, request.route_table_id)
    _check_idle(service.region, table)
    entry = _create(
        service,
        table,
        request.destination_cidr_block,
        request.next_hop_type,
        request.next_hop_id,
        name=request.route_entry_name,
        description=request.description,
    )
    await _carry_out(service, [entry])
    return {"RouteEntryId": entry.entry_id}


class DeleteRouteEntryRequest(Request):
    region_id: str = ""
    route_entry_id: str = ""
    route_table_id: str = ""
    destination_cidr_block: str = ""
    next_hop_id: str = ""


@action("Vpc", "DeleteRouteEntry")
async def delete_route_entry(service: Service, request: DeleteRouteEntryRequest) -> dict[str, Any]:
    """By ``RouteEntryId``, or by table, CIDR and next hop."""
    region = service.region
    if request.region_id:
        check_region(region, request.region_id)
    if request.route_entry_id:
        entry = region.route_entries.get(request.route_entry_id)
        if entry is None:
            raise _not_found()
        table = region.route_tables[entry.table_id]
    else:
        for name in ("route_table_id", "destination_cidr_block", "next_hop_id"):
            if not getattr(request, name):
                raise missing_parameter(to_pascal(name))
        table = _table(region, request.route_table_id)
        entry = _find(region, table, request.destination_cidr_block, request.next_hop_id)
    if entry.status == "Available":
        _check_idle(region, table)
    await _carry_out(service, [_mark_deleting(region, entry)])
    return {}


class NewRoute(Request):
    route_table_id: str
    dst_cidr_block: str
    next_hop: str
    next_hop_type: str
    name: str = ""
    description: str = ""


class CreateRouteEntriesRequest(Request):
    region_id: str
    route_entries: tuple[NewRoute, ...] = Field(min_length=1, max_length=BATCH)


@action("Vpc", "CreateRouteEntries")
async def create_route_entries(service: Service, request: CreateRouteEntriesRequest) -> dict[str, Any]:
    """Each entry succeeds or fails on its own; those of one call do not conflict with one another."""
    check_region(service.region, request.region_id)
    tables = [_table(service.region, route.route_table_id) for route in request.route_entries]
    for table in tables:
        _check_idle(service.region, table)
    created: list[RouteEntry] = []
    failed: list[dict[str, str]] = []
    for route, table in zip(request.route_entries, tables, strict=True):
        try:
            created.append(
                _create(
                    service,
                    table,
                    route.dst_cidr_block,
                    route.next_hop_type,
                    route.next_hop,
                    name=route.name,
                    description=route.description,
                )
            )
        except Fault as fault:
            failed.append(_failure(fault, route.dst_cidr_block, route.next_hop))
    await _carry_out(service, created)
    return {
        "RouteEntryIds": [entry.entry_id for entry in created],
        "SuccessCount": len(created),
        "FailedCount": len(failed),
        "FailedRouteEntries": failed,
    }


class OldRoute(Request):
    route_table_id: str
    route_entry_id: str = ""
    dst_cidr_block: str = ""
    next_hop: str = ""


class DeleteRouteEntriesRequest(Request):
    region_id: str
    route_entries: tuple[OldRoute, ...] = Field(min_length=1, max_length=BATCH)


@action("Vpc", "DeleteRouteEntries")
async def delete_route_entries(service: Service, request: DeleteRouteEntriesRequest) -> dict[str, Any]:
    """Each entry succeeds or fails on its own."""
    region = service.region
    check_region(region, request.region_id)
    tables = [_table(region, route.route_table_id) for route in request.route_entries]
    for table in tables:
        _check_idle(region, table)
    deleting: list[RouteEntry] = []
    failed: list[dict[str, str]] = []
    for route, table in zip(request.route_entries, tables, strict=True):
        try:
            deleting.append(_mark_deleting(region, _find_listed(region, table, route)))
        except Fault as fault:
            failure = _failure(fault, route.dst_cidr_block, route.next_hop)
            failed.append({**failure, "RouteEntryId": route.route_entry_id})
    await _carry_out(service, deleting)
    return {"SuccessCount": len(deleting), "FailedCount": len(failed), "FailedRouteEntries": failed}


def resume(service: Service) -> None:
    """Take up what a stopped server left Pending or Deleting."""
    entries = [entry for entry in service.region.route_entries.values() if entry.status != "Available"]
    service.spawn(_settle(service, entries))


async def _carry_out(service: Service, entries: Sequence[RouteEntry]) -> None:
    """Bring entries to where they are going: within the call if there is no delay, else after it."""
    delay = service.behaviour.route_delay
    if not delay:
        await _settle(service, entries)
        return

    async def later() -> None:
        await asyncio.sleep(delay)
        await _settle(service, entries)

    service.spawn(later())


async def _settle(service: Service, entries: Sequence[RouteEntry]) -> None:
    failures: list[Exception] = []
    for entry in entries:
        try:
            await _settle_one(service, entry)
        except Exception as failure:
            failures.append(failure)
    if failures:
        raise ExceptionGroup("the fabric did not follow the route table", failures)


async def _settle_one(service: Service, entry: RouteEntry) -> None:
    region = service.region
    available = dataclasses.replace(entry, status="Available")
    if entry.status == "Pending":
        try:
            await service.route_added(entry)
        except Exception:
            region.drop_route(entry)
            raise
        region.put_route(available)
    else:
        try:
            await service.route_removed(entry)
        except Exception:
            region.put_route(available)
            raise
        region.drop_route(entry)


def _create(
    service: Service,
    table: RouteTable,
    cidr_text: str,
    next_hop_type: str,
    next_hop_id: str,
    *,
    name: str,
    description: str,
) -> RouteEntry:
    region = service.region
    cidr = _cidr(cidr_text)
    if next_hop_type != "Instance":
        raise invalid_parameter("NextHopType", f"this region routes to Instance only, not {next_hop_type}")
    entries = list(region.routes_of(table.table_id))
    if any(entry.cidr == cidr for entry in entries):
        raise Fault(400, "InvalidCIDRBlock.Duplicate", "Specified CIDR block is already exists.")
    own = [SERVICE_CIDR, *_vswitch_cidrs(region, table.vpc_id)]
    if any(cidr.version == other.version and cidr.subnet_of(other) for other in own):  # type: ignore[arg-type]
        raise Fault(400, "InvalidCidrBlock", f"The CIDR block {cidr} is within a system route.")
    instance = region.instances.get(next_hop_id)
    if instance is None:
        raise Fault(404, "InvalidNextHopId.NotFound", "The specified NextHopId does not exist.")
    if instance.vpc_id != table.vpc_id:
        raise Fault(
            404,
            "OperationFailed.InstanceDismatchCurrentVpc",
            "The instance is not in the VPC of the route table.",
        )
    if sum(entry.type == "Custom" for entry in entries) >= service.behaviour.route_quota:
        raise Fault(400, "QuotaExceeded", "Route entry quota exceeded in this route table.")
    return region.add_route(table, cidr, instance, name=name, description=description)


def _mark_deleting(region: Region, entry: RouteEntry) -> RouteEntry:
    if entry.type == "System":
        raise Fault(400, "OperationDenied", "The system route entry cannot be deleted.")
    if entry.status != "Available":
        raise Fault(400, "IncorrectRouteEntryStatus", f"The status of the route entry is {entry.status}.")
    return region.put_route(dataclasses.replace(entry, status="Deleting"))


def _find_listed(region: Region, table: RouteTable, route: OldRoute) -> RouteEntry:
    if not route.route_entry_id:
        return _find(region, table, route.dst_cidr_block, route.next_hop)
    entry = region.route_entries.get(route.route_entry_id)
    if entry is None or entry.table_id != table.table_id:
        raise _not_found()
    return entry


def _find(region: Region, table: RouteTable, cidr_text: str, next_hop_id: str) -> RouteEntry:
    cidr = _cidr(cidr_text)
    for entry in region.routes_of(table.table_id):
        if entry.cidr == cidr and entry.next_hop_id == next_hop_id:
            return entry
    raise _not_found()


def _not_found() -> Fault:
    return Fault(400, "InvalidRouteEntry.NotFound", "The specified route entry does not exist.")


def _table(region: Region, table_id: str) -> RouteTable:
    if table := region.route_tables.get(table_id):
        return table
    raise Fault(404, "InvalidRouteTableId.NotFound", "The specified route table does not exist.")


def _check_idle(region: Region, table: RouteTable) -> None:
    for entry in region.route_entries.values():
        if entry.status != "Available" and region.route_tables[entry.table_id].vpc_id == table.vpc_id:
            raise Fault(
                400, "TaskConflict", "The operation is too frequent, please wait a moment and try again."
            )


def _cidr(text: str) -> IPNetwork:
    """A CIDR block without a mask is one address."""
    try:
        return ip_network(text)
    except ValueError:
        raise Fault(
            400, "InvalidCidrBlock.Malformed", f"The specified CIDR block {text} is not valid."
        ) from None


def _vswitch_cidrs(region: Region, vpc_id: str) -> Iterator[IPNetwork]:
    for vswitch in region.vswitches_of(vpc_id):
        yield vswitch.cidr
        if vswitch.ipv6_cidr:
            yield vswitch.ipv6_cidr


def _failure(fault: Fault, cidr: str, next_hop: str) -> dict[str, str]:
    return {
        "DstCidrBlock": cidr,
        "NextHop": next_hop,
        "FailedCode": fault.code,
        "FailedMessage": fault.message,
    }


def _reply(entry: RouteEntry) -> dict[str, Any]:
    return {
        "RouteEntryId": entry.entry_id,
        "RouteTableId": entry.table_id,
        "RouteEntryName": entry.name,
        "Description": entry.description,
        "DestinationCidrBlock": str(entry.cidr),
        "IpVersion": f"IPv{entry.cidr.version}",
        "Type": entry.type,
        "Status": entry.status,
        "GmtModified": timestamp(entry.modified),
        "NextHops": {
            "NextHop": [{"NextHopType": entry.next_hop_type, "NextHopId": entry.next_hop_id, "Enabled": 1}]
        },
    }
