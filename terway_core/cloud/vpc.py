"""vSwitches, and the VPC's route tables: which instance gets the packets for which CIDR.

Creating and deleting entries tolerate what several nodes do to one table at a time: the VPC carries out one
change after the other and refuses the rest with ``TaskConflict``, and a repeated request finds its work done.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final

from terway_core.cloud.client import Cloud, Feature
from terway_core.errors import CloudError
from terway_core.types import IPNetwork

#: Seconds that creating or deleting an entry may take, waiting for others included.
TIMEOUT: Final = 60.0
#: Seconds between two looks at an entry that is not yet what it will be.
POLL: Final = 1.0

#: The actions called here, and what needs them.
NEEDED_BY: Final[Mapping[str, tuple[Feature, ...]]] = {
    "DescribeVSwitches": ("enis",),
    "DescribeRouteTableList": ("routes",),
    "DescribeRouteEntryList": ("routes",),
    "CreateRouteEntry": ("routes",),
    "DeleteRouteEntry": ("routes",),
}

_DUPLICATE: Final = (
    "InvalidCIDRBlock.Duplicate",
    "RouterEntryConflict.Duplicated",
    "RouteConflict.AlreadyExist",
)
_NOT_FOUND: Final = "InvalidRouteEntry.NotFound"


@dataclass(frozen=True, kw_only=True, slots=True)
class VSwitch:
    """A vSwitch.

    :param available_ips: how many more IPv4 addresses ENIs can have from it.
    """

    vswitch_id: str
    vpc_id: str
    zone_id: str
    cidr: IPv4Network
    ipv6_cidr: IPv6Network | None
    available_ips: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteTable:
    """A route table, by its ids."""

    table_id: str
    vpc_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NextHop:
    """Where an entry leads: ``Instance`` and its id, ``local``, …"""

    type: str
    id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteEntry:
    """One entry of a route table.

    :param type: ``Custom``, or ``System``, ``BGP``, ``CEN``, ``ECR``, which are not ours to change.
    :param status: ``Available``, or ``Pending``, ``Modifying``, ``Deleting`` while a change is under way.
    """

    entry_id: str
    table_id: str
    destination: IPNetwork
    type: str
    status: str
    next_hops: tuple[NextHop, ...]

    def leads_to(self, instance_id: str) -> bool:
        """Whether the instance, and nobody else, gets the packets."""
        return self.next_hops == (NextHop(type="Instance", id=instance_id),)


def describe_vswitches(cloud: Cloud, vswitch_ids: Iterable[str]) -> list[VSwitch]:
    """The vSwitches with these ids, in this order; ids that are not known are left out."""
    # One call each: the filter takes one id, and without it the answer is every vSwitch of the region.
    answers = (cloud.call("vpc", "DescribeVSwitches", {"VSwitchId": one}) for one in vswitch_ids)
    return [
        VSwitch(
            vswitch_id=item["VSwitchId"],
            vpc_id=item["VpcId"],
            zone_id=item["ZoneId"],
            cidr=IPv4Network(item["CidrBlock"]),
            ipv6_cidr=IPv6Network(item["Ipv6CidrBlock"]) if item.get("Ipv6CidrBlock") else None,
            available_ips=int(item["AvailableIpAddressCount"]),
        )
        for answer in answers
        for item in answer["VSwitches"]["VSwitch"]
    ]


def find_system_route_table(cloud: Cloud, vpc_id: str) -> RouteTable:
    """The route table that a VPC is born with; it serves every vSwitch that has no other.

    :raises CloudError: the VPC is not in this region, or not visible to our access key.
    """
    page_size = 50  # the most there is
    page = 1
    while True:
        answer = cloud.call(
            "vpc",
            "DescribeRouteTableList",
            {"VpcId": vpc_id, "RouteTableType": "System", "PageNumber": page, "PageSize": page_size},
        )
        for item in answer["RouterTableList"]["RouterTableListType"]:
            if item["RouteTableType"] == "System" and item["VpcId"] == vpc_id:
                return RouteTable(table_id=item["RouteTableId"], vpc_id=vpc_id)
        if page * page_size >= int(answer.get("TotalCount", 0)):
            raise CloudError(
                f"{vpc_id} has no system route table in {cloud.region_id}. Check the region, and that the "
                "access key's RAM policy allows vpc:DescribeRouteTableList for this VPC."
            )
        page += 1


def list_route_entries(
    cloud: Cloud, table_id: str, *, destination: IPNetwork | None = None
) -> list[RouteEntry]:
    """The entries of a route table; with ``destination``, only those for exactly that CIDR.

    Entries whose destination is no CIDR but a prefix list are left out.
    """
    # Only of IPv4 blocks there is one spelling, which the service can compare.
    filters = {"DestinationCidrBlock": str(destination)} if destination and destination.version == 4 else {}
    entries = _entries(cloud, table_id, filters)
    return [entry for entry in entries if destination in (None, entry.destination)]


def create_route_entry(
    cloud: Cloud,
    table_id: str,
    destination: IPNetwork,
    instance_id: str,
    *,
    name: str = "",
    timeout: float = TIMEOUT,
) -> RouteEntry:
    """Lead ``destination`` to an instance; returns once the entry is ``Available``.

    An entry that does so already is as good as a new one.

    :param timeout: seconds, waiting for other changes of the VPC included.
    :raises CloudError: refused; or the CIDR leads elsewhere, and the message says where; or time is up.
    """
    until = cloud.monotonic() + timeout
    token = ""
    refused: CloudError | None = None
    while True:
        entry = _find(cloud, table_id, destination)
        if entry is None and not token:
            token = str(uuid.uuid4())
            params = {
                "RouteTableId": table_id,
                "DestinationCidrBlock": str(destination),
                "NextHopType": "Instance",
                "NextHopId": instance_id,
                "RouteEntryName": name or None,
                "ClientToken": token,
            }
            try:
                cloud.call("vpc", "CreateRouteEntry", params, timeout=until - cloud.monotonic())
            except CloudError as error:
                if error.code not in _DUPLICATE:
                    raise
                refused = error  # somebody was faster; the next look shows who
            continue
        if entry and entry.status == "Deleting":
            token = ""  # make a new one once it is gone
        elif entry and not entry.leads_to(instance_id):
            hops = ", ".join(f"{hop.type} {hop.id}".strip() for hop in entry.next_hops) or "nowhere"
            raise CloudError(
                f"route table {table_id} leads {destination} to {hops} already ({entry.type} entry "
                f"{entry.entry_id}), not to {instance_id}. Delete that entry, or give the node another CIDR.",
                code=refused.code if refused else _DUPLICATE[0],
            )
        elif entry and entry.status == "Available":
            return entry
        if cloud.monotonic() + POLL >= until:
            raise CloudError(
                f"route entry {destination} to {instance_id} in {table_id} is "
                f"{entry.status if entry else 'not to be seen'} after {timeout:.0f} s"
                + (f"; {refused}" if refused else "; it may still become Available.")
            )
        cloud.sleep(POLL)


def delete_route_entry(
    cloud: Cloud, table_id: str, destination: IPNetwork, instance_id: str, *, timeout: float = TIMEOUT
) -> None:
    """Remove the entry that leads ``destination`` to an instance; returns once it is gone.

    No such entry, or one that leads elsewhere, is success: there is nothing of ours to remove.

    :param timeout: seconds, waiting for other changes of the VPC included.
    :raises CloudError: refused, or time is up.
    """
    until = cloud.monotonic() + timeout
    while True:
        entry = _find(cloud, table_id, destination)
        if entry is None or not entry.leads_to(instance_id):
            return
        if entry.status != "Deleting":
            try:
                cloud.call(
                    "vpc",
                    "DeleteRouteEntry",
                    {"RouteEntryId": entry.entry_id},
                    idempotent=True,
                    timeout=until - cloud.monotonic(),
                )
            except CloudError as error:
                if error.code != _NOT_FOUND:
                    raise
                return
            entry = _find(cloud, table_id, destination)
            if entry is None:
                return
        if cloud.monotonic() + POLL >= until:
            raise CloudError(
                f"route entry {destination} to {instance_id} in {table_id} is still {entry.status} after "
                f"{timeout:.0f} s; it is safe to delete it again."
            )
        cloud.sleep(POLL)


def _find(cloud: Cloud, table_id: str, destination: IPNetwork) -> RouteEntry | None:
    entries = list_route_entries(cloud, table_id, destination=destination)
    return entries[0] if entries else None


def _entries(cloud: Cloud, table_id: str, filters: Mapping[str, str]) -> Iterator[RouteEntry]:
    token: str | None = None
    while token != "":
        answer = cloud.call(
            "vpc",
            "DescribeRouteEntryList",
            {"RouteTableId": table_id, **filters, "MaxResult": 100, "NextToken": token},
        )
        for item in answer["RouteEntrys"]["RouteEntry"]:
            try:
                yield _entry(item)
            except ValueError:
                continue  # a prefix list (pl-…) is a destination too, and never one of ours
        token = answer.get("NextToken") or ""


def _entry(item: Mapping[str, Any]) -> RouteEntry:
    hops = item.get("NextHops", {}).get("NextHop", [])
    return RouteEntry(
        entry_id=item["RouteEntryId"],
        table_id=item["RouteTableId"],
        destination=ip_network(item["DestinationCidrBlock"]),
        type=item["Type"],
        status=item["Status"],
        next_hops=tuple(NextHop(type=hop["NextHopType"], id=hop.get("NextHopId", "")) for hop in hops),
    )
