"""Addresses and prefixes of network interfaces, given and taken back. Done when the reply comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any, Final

from pydantic import Field

from terway_core.lab.api.actions.eni import exclusive
from terway_core.lab.api.actions.eni_describe import find_interface
from terway_core.lab.api.addresses import pick_ipv4, pick_ipv4_prefixes, pick_ipv6
from terway_core.lab.api.faults import Fault
from terway_core.lab.api.instance_types import InstanceType, instance_type
from terway_core.lab.api.model import NetworkInterface, VSwitch
from terway_core.lab.api.params import ClientToken, Request
from terway_core.lab.api.service import Service, action, check_region

#: What an ENI may have as long as it is attached to nothing, its primary address included.
DETACHED_IPV4: Final = 50
DETACHED_IPV6: Final = 10


class AssignPrivateIpAddressesRequest(Request):
    region_id: str
    network_interface_id: str
    private_ip_address: tuple[IPv4Address, ...] = Field((), max_length=32)
    secondary_private_ip_address_count: int = Field(0, ge=1, le=49)
    ipv4_prefix: tuple[IPv4Network, ...] = Field((), max_length=10)
    ipv4_prefix_count: int = Field(0, ge=1, le=10)
    client_token: ClientToken = ""


@action("Ecs", "AssignPrivateIpAddresses", exclusive=True)
async def assign_private_ip_addresses(
    service: Service, request: AssignPrivateIpAddressesRequest
) -> dict[str, Any]:
    """Either addresses or prefixes, by name or by number; the reply has exactly the new ones."""
    region = service.region
    exclusive(request, "private_ip_address", "secondary_private_ip_address_count")
    exclusive(request, "ipv4_prefix", "ipv4_prefix_count")
    eni, vswitch = _find(service, request.region_id, request.network_interface_id)
    addresses = len(request.private_ip_address) + request.secondary_private_ip_address_count
    prefixes = len(request.ipv4_prefix) + request.ipv4_prefix_count
    if bool(addresses) == bool(prefixes):
        raise Fault(
            400,
            "InvalidParameter.Conflict" if addresses else "MissingParameter",
            "Either private IP addresses or IPv4 prefixes are to be given.",
        )
    wanted = len(eni.ipv4) + len(eni.ipv4_prefixes) + addresses + prefixes
    kind = _type(service, eni)
    if kind and wanted > kind.ipv4:
        raise Fault(403, "InvalidOperation.Ipv4CountExceeded", "The ENI has as many IPv4 as the type allows.")
    if not kind and wanted > DETACHED_IPV4:
        raise Fault(403, "MaxEniPrivateIpsCountExceeded", "The ENI has as many private IPs as it can have.")
    new_addresses: tuple[IPv4Address, ...] = ()
    new_prefixes: tuple[IPv4Network, ...] = ()
    if addresses:
        new_addresses = pick_ipv4(
            region, vswitch, request.private_ip_address, request.secondary_private_ip_address_count
        )
    else:
        new_prefixes = pick_ipv4_prefixes(region, vswitch, request.ipv4_prefix, request.ipv4_prefix_count)
    await _give(
        service,
        eni,
        dataclasses.replace(
            eni,
            secondary_ips=(*eni.secondary_ips, *new_addresses),
            ipv4_prefixes=(*eni.ipv4_prefixes, *new_prefixes),
        ),
    )
    return {
        "AssignedPrivateIpAddressesSet": {
            "NetworkInterfaceId": eni.network_interface_id,
            "PrivateIpSet": {"PrivateIpAddress": [str(one) for one in new_addresses]},
            "Ipv4PrefixSet": {"Ipv4Prefixes": [str(one) for one in new_prefixes]},
        }
    }


class UnassignPrivateIpAddressesRequest(Request):
    region_id: str
    network_interface_id: str
    private_ip_address: tuple[IPv4Address, ...] = ()
    ipv4_prefix: tuple[IPv4Network, ...] = ()


@action("Ecs", "UnassignPrivateIpAddresses", exclusive=True)
async def unassign_private_ip_addresses(
    service: Service, request: UnassignPrivateIpAddressesRequest
) -> dict[str, Any]:
    """All or nothing; the primary address stays."""
    exclusive(request, "private_ip_address", "ipv4_prefix")
    eni, _ = _find(service, request.region_id, request.network_interface_id)
    if not request.private_ip_address and not request.ipv4_prefix:
        raise _missing("PrivateIpAddress")
    _check_held(request.private_ip_address, eni.secondary_ips)
    _check_held(request.ipv4_prefix, eni.ipv4_prefixes)
    await _take(
        service,
        eni,
        dataclasses.replace(
            eni,
            secondary_ips=tuple(one for one in eni.secondary_ips if one not in request.private_ip_address),
            ipv4_prefixes=tuple(one for one in eni.ipv4_prefixes if one not in request.ipv4_prefix),
        ),
    )
    return {}


class AssignIpv6AddressesRequest(Request):
    region_id: str
    network_interface_id: str
    ipv6_address: tuple[IPv6Address, ...] = Field((), max_length=10)
    ipv6_address_count: int = Field(0, ge=1, le=10)
    client_token: ClientToken = ""


@action("Ecs", "AssignIpv6Addresses", exclusive=True)
async def assign_ipv6_addresses(service: Service, request: AssignIpv6AddressesRequest) -> dict[str, Any]:
    """By name or by number; the reply has exactly the new ones."""
    exclusive(request, "ipv6_address", "ipv6_address_count")
    eni, vswitch = _find(service, request.region_id, request.network_interface_id)
    number = len(request.ipv6_address) + request.ipv6_address_count
    if not number:
        raise _missing("Ipv6AddressCount")
    kind = _type(service, eni)
    if kind and not kind.ipv6:
        raise Fault(403, "InvalidOperation.Ipv6NotSupport", "The instance type does not support IPv6.")
    if kind and len(eni.ipv6) + number > kind.ipv6:
        raise Fault(403, "InvalidOperation.Ipv6CountExceeded", "The ENI has as many IPv6 as the type allows.")
    if not kind and len(eni.ipv6) + number > DETACHED_IPV6:
        raise Fault(403, "MaxEniIpv6IpsCountExceeded", "The ENI has as many IPv6 as it can have.")
    new = pick_ipv6(service.region, vswitch, request.ipv6_address, request.ipv6_address_count)
    await _give(service, eni, dataclasses.replace(eni, ipv6=(*eni.ipv6, *new)))
    return {
        "NetworkInterfaceId": eni.network_interface_id,
        "Ipv6Sets": {"Ipv6Address": [str(one) for one in new]},
        "Ipv6PrefixSets": {"Ipv6Prefix": []},
    }


class UnassignIpv6AddressesRequest(Request):
    region_id: str
    network_interface_id: str
    ipv6_address: tuple[IPv6Address, ...] = Field((), max_length=10)


@action("Ecs", "UnassignIpv6Addresses", exclusive=True)
async def unassign_ipv6_addresses(service: Service, request: UnassignIpv6AddressesRequest) -> dict[str, Any]:
    """All or nothing."""
    eni, _ = _find(service, request.region_id, request.network_interface_id)
    if not request.ipv6_address:
        raise _missing("Ipv6Address")
    _check_held(request.ipv6_address, eni.ipv6)
    left = tuple(one for one in eni.ipv6 if one not in request.ipv6_address)
    await _take(service, eni, dataclasses.replace(eni, ipv6=left))
    return {}


def _find(service: Service, region_id: str, network_interface_id: str) -> tuple[NetworkInterface, VSwitch]:
    check_region(service.region, region_id)
    eni = find_interface(service.region, network_interface_id)
    if eni.status not in ("Available", "InUse"):
        raise Fault(
            400,
            "InvalidOperation.InvalidEniState",
            f"The operation does not support the status {eni.status} of the ENI.",
        )
    return eni, service.region.vswitches[eni.vswitch_id]


def _type(service: Service, eni: NetworkInterface) -> InstanceType | None:
    """The type of the instance that the ENI is attached to."""
    instance = service.region.instances.get(eni.instance_id)
    return instance_type(instance.instance_type) if instance else None


async def _give(service: Service, before: NetworkInterface, after: NetworkInterface) -> None:
    service.region.put_interface(after)  # first, so that nobody else is given the same
    try:
        await service.interface_changed(before, after)
    except BaseException:
        service.region.put_interface(before)
        raise


async def _take(service: Service, before: NetworkInterface, after: NetworkInterface) -> None:
    await service.interface_changed(before, after)
    service.region.put_interface(after)  # only now: nobody is given what still leads here


def _check_held(unwanted: Sequence[object], held: Sequence[object]) -> None:
    for one in unwanted:
        if one not in held:
            raise Fault(403, "InvalidIp.IpUnassigned", f"The IP {one} is not assigned to the ENI.")


def _missing(name: str) -> Fault:
    # These actions answer 403 where all others answer 400.
    return Fault(
        403,
        "MissingParameter",
        f'The input parameter "{name}" that is mandatory for processing this request is not supplied.',
    )
