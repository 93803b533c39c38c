"""Elastic network interfaces, their addresses, and how many of both an instance type holds.

Creating and assigning take a ``client_token`` from the caller, who has written it down before: the same token
again gets the first answer again, and nothing twice. Everything else may be repeated as it is, for a repeated
call finds its work done. Attaching, detaching and deleting only begin; :func:`describe_network_interfaces`
tells how far they are.

All functions raise :class:`~terway_core.errors.CloudError`; ``failures`` has the codes worth telling apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, Literal, TypeVar

from terway_core.cloud.client import Cloud, Feature
from terway_core.cloud.failures import ELSEWHERE, INVALID_ENI_STATE, IP_UNASSIGNED, NOT_FOUND
from terway_core.errors import CloudError

#: As many as one answer holds, and as many ids as one question takes.
PAGE_SIZE: Final = 500
IDS_PER_CALL: Final = 100

#: The actions called here, and what needs them.
NEEDED_BY: Final[Mapping[str, tuple[Feature, ...]]] = {
    "CreateNetworkInterface": ("enis",),
    "AttachNetworkInterface": ("enis",),
    "DetachNetworkInterface": ("enis",),
    "DeleteNetworkInterface": ("enis",),
    "DescribeNetworkInterfaces": ("enis",),
    "DescribeInstanceTypes": ("enis",),
    "ModifyNetworkInterfaceAttribute": (),
    "TagResources": (),
    "AssignPrivateIpAddresses": ("addresses",),
    "UnassignPrivateIpAddresses": ("addresses",),
    "AssignIpv6Addresses": ("ipv6",),
    "UnassignIpv6Addresses": ("ipv6",),
}

T = TypeVar("T", IPv4Address, IPv6Address, IPv4Network)


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkInterface:
    """An ENI as the cloud knows it.

    :param type: ``Primary``, ``Secondary``, ``Trunk``, or ``Member`` while attached to a trunk.
    :param status: ``Available``, ``Attaching``, ``InUse``, ``Detaching`` or ``Deleting``.
    :param instance_id: ``""`` when attached to none.
    :param device_index: of a ``Member``, the VLAN id that its packets have on the trunk.
    :param ipv4: all but those of prefixes, the primary one first.
    """

    eni_id: str
    name: str
    type: str
    status: str
    mac: str
    vpc_id: str
    vswitch_id: str
    zone_id: str
    instance_id: str
    trunk_eni_id: str
    device_index: int
    primary_ip: IPv4Address
    ipv4: tuple[IPv4Address, ...]
    ipv6: tuple[IPv6Address, ...]
    ipv4_prefixes: tuple[IPv4Network, ...]
    ipv6_prefixes: tuple[IPv6Network, ...]
    security_group_ids: tuple[str, ...]
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceType:
    """What an instance of a type may have.

    :param eni_quantity: ENIs attached to the instance itself, the primary one included.
    :param eni_total_quantity: members of its trunk included.
    :param ipv4_per_eni: the primary address included; a prefix counts as one.
    """

    name: str
    eni_quantity: int
    eni_total_quantity: int
    ipv4_per_eni: int
    ipv6_per_eni: int
    trunk_supported: bool


def create_network_interface(
    cloud: Cloud,
    *,
    vswitch_id: str,
    security_group_ids: Sequence[str],
    tags: Mapping[str, str],
    client_token: str,
    name: str = "",
    description: str = "",
    ipv4_count: int = 0,
    ipv6_count: int = 0,
    ipv4_prefix_count: int = 0,
    type: Literal["Secondary", "Trunk"] = "Secondary",
    delete_on_release: bool = True,
) -> NetworkInterface:
    """A new ENI, ``Available``, its tags already on it.

    :param ipv4_count: addresses besides the primary one, up to 49; not together with prefixes.
    :param ipv4_prefix_count: /28 blocks, up to 10.
    :param delete_on_release: whether it goes with the instance that it is attached to then.
    :raises CloudError: codes ``EXHAUSTED_VSWITCH``, ``ENI_QUOTA``, and others.
    """
    answer = cloud.call(
        "ecs",
        "CreateNetworkInterface",
        {
            "VSwitchId": vswitch_id,
            "InstanceType": type,
            "SecurityGroupIds": list(security_group_ids),
            "NetworkInterfaceName": name or None,
            "Description": description or None,
            "SecondaryPrivateIpAddressCount": ipv4_count or None,
            "Ipv6AddressCount": ipv6_count or None,
            "Ipv4PrefixCount": ipv4_prefix_count or None,
            "DeleteOnRelease": None if delete_on_release else False,
            "Tag": _tags(tags),
            "ClientToken": client_token,
        },
    )
    if not answer.get("NetworkInterfaceId"):
        raise CloudError(
            f"CreateNetworkInterface made nothing in {vswitch_id}, and gave no reason; try again.",
            request_id=answer.get("RequestId", ""),
        )
    return _network_interface(answer)


def attach_network_interface(cloud: Cloud, eni_id: str, instance_id: str, *, trunk_eni_id: str = "") -> None:
    """Begin to attach; one that is attached to this instance, or about to be, is success.

    :param trunk_eni_id: becomes a member of this trunk, which is attached to the instance.
    :raises CloudError: codes ``ENI_QUOTA``, ``ADDRESS_QUOTA`` (it has more than the type allows), and others.
    """
    params = _attachment(eni_id, instance_id, trunk_eni_id)
    try:
        cloud.call("ecs", "AttachNetworkInterface", params, idempotent=True)
    except CloudError as error:
        if error.code != INVALID_ENI_STATE:
            raise
        eni = _find(cloud, eni_id)
        if eni is None or eni.instance_id != instance_id or eni.status not in ("Attaching", "InUse"):
            raise


def detach_network_interface(cloud: Cloud, eni_id: str, instance_id: str, *, trunk_eni_id: str = "") -> None:
    """Begin to detach; one that is gone, or attached to no instance or another one, is success."""
    params = _attachment(eni_id, instance_id, trunk_eni_id)
    try:
        cloud.call("ecs", "DetachNetworkInterface", params, idempotent=True)
    except CloudError as error:
        if error.code in NOT_FOUND or error.code == ELSEWHERE:
            return
        if error.code != INVALID_ENI_STATE:
            raise
        eni = _find(cloud, eni_id)
        if eni and eni.status != "Available":
            raise


def delete_network_interface(cloud: Cloud, eni_id: str) -> None:
    """Begin to delete; one that is gone is success. It must be ``Available``, or be ``Deleting`` already."""
    try:
        cloud.call("ecs", "DeleteNetworkInterface", {"NetworkInterfaceId": eni_id}, idempotent=True)
    except CloudError as error:
        if error.code not in NOT_FOUND:
            raise


def describe_network_interfaces(
    cloud: Cloud,
    *,
    eni_ids: Collection[str] = (),
    instance_id: str = "",
    tags: Mapping[str, str] | None = None,
    status: str = "",
    type: str = "",
) -> list[NetworkInterface]:
    """All ENIs to which every given condition applies; ids that are not known are left out.

    :param eni_ids: any number; none given is no condition.
    """
    filters = {
        "InstanceId": instance_id or None,
        "Tag": _tags(tags or {}),
        "Status": status or None,
        "Type": type or None,
        "MaxResults": PAGE_SIZE,
    }
    ids = list(eni_ids)
    parts = [ids[start : start + IDS_PER_CALL] for start in range(0, len(ids), IDS_PER_CALL)] or [[]]
    return [
        eni for part in parts for eni in _network_interfaces(cloud, {"NetworkInterfaceId": part, **filters})
    ]


def modify_network_interface(
    cloud: Cloud,
    eni_id: str,
    *,
    security_group_ids: Sequence[str] | None = None,
    name: str | None = None,
    description: str | None = None,
) -> None:
    """Change what is given; ``security_group_ids`` take the place of those it has."""
    params = {
        "NetworkInterfaceId": eni_id,
        "SecurityGroupId": security_group_ids,
        "NetworkInterfaceName": name,
        "Description": description,
    }
    cloud.call("ecs", "ModifyNetworkInterfaceAttribute", params, idempotent=True)


def assign_ipv4(cloud: Cloud, eni_id: str, count: int, *, client_token: str) -> tuple[IPv4Address, ...]:
    """Give an ENI ``count`` more addresses, and return those.

    :raises CloudError: codes ``EXHAUSTED_VSWITCH``, ``ADDRESS_QUOTA``, ``NOT_FOUND``, and others.
    """
    params = {
        "NetworkInterfaceId": eni_id,
        "SecondaryPrivateIpAddressCount": count,
        "ClientToken": client_token,
    }
    answer = cloud.call("ecs", "AssignPrivateIpAddresses", params)
    given = answer["AssignedPrivateIpAddressesSet"]["PrivateIpSet"]["PrivateIpAddress"]
    return tuple(map(IPv4Address, given))


def unassign_ipv4(cloud: Cloud, eni_id: str, addresses: Collection[IPv4Address]) -> None:
    """Take secondary addresses away; those that the ENI does not have, or no longer, are success."""
    _unassign(
        cloud, "UnassignPrivateIpAddresses", "PrivateIpAddress", eni_id, addresses, lambda eni: eni.ipv4
    )


def assign_ipv4_prefixes(
    cloud: Cloud, eni_id: str, count: int, *, client_token: str
) -> tuple[IPv4Network, ...]:
    """Give an ENI ``count`` more /28 blocks, and return those; errors as :func:`assign_ipv4`."""
    params = {"NetworkInterfaceId": eni_id, "Ipv4PrefixCount": count, "ClientToken": client_token}
    answer = cloud.call("ecs", "AssignPrivateIpAddresses", params)
    given = answer["AssignedPrivateIpAddressesSet"]["Ipv4PrefixSet"]["Ipv4Prefixes"]
    return tuple(map(IPv4Network, given))


def unassign_ipv4_prefixes(cloud: Cloud, eni_id: str, prefixes: Collection[IPv4Network]) -> None:
    """Take blocks away; those that the ENI does not have, or no longer, are success."""
    _unassign(
        cloud, "UnassignPrivateIpAddresses", "Ipv4Prefix", eni_id, prefixes, lambda eni: eni.ipv4_prefixes
    )


def assign_ipv6(cloud: Cloud, eni_id: str, count: int, *, client_token: str) -> tuple[IPv6Address, ...]:
    """Give an ENI ``count`` more IPv6 addresses, up to 10, and return those.

    :raises CloudError: codes ``ADDRESS_QUOTA``, ``NOT_FOUND``, ``InvalidVSwitch.Ipv6NotTurnOn``, and others.
    """
    params = {"NetworkInterfaceId": eni_id, "Ipv6AddressCount": count, "ClientToken": client_token}
    answer = cloud.call("ecs", "AssignIpv6Addresses", params)
    return tuple(map(IPv6Address, answer["Ipv6Sets"]["Ipv6Address"]))


def unassign_ipv6(cloud: Cloud, eni_id: str, addresses: Collection[IPv6Address]) -> None:
    """Take IPv6 addresses away; those that the ENI does not have, or no longer, are success."""
    _unassign(cloud, "UnassignIpv6Addresses", "Ipv6Address", eni_id, addresses, lambda eni: eni.ipv6)


def describe_instance_type(cloud: Cloud, name: str) -> InstanceType:
    """:raises CloudError: also when there is no such type."""
    answer = cloud.call("ecs", "DescribeInstanceTypes", {"InstanceTypes": [name]})
    for item in answer["InstanceTypes"]["InstanceType"]:
        if item["InstanceTypeId"] == name:
            quantity = int(item["EniQuantity"])
            return InstanceType(
                name=name,
                eni_quantity=quantity,
                eni_total_quantity=int(item.get("EniTotalQuantity", quantity)),
                ipv4_per_eni=int(item["EniPrivateIpAddressQuantity"]),
                ipv6_per_eni=int(item.get("EniIpv6AddressQuantity", 0)),
                trunk_supported=bool(item.get("EniTrunkSupported", False)),
            )
    raise CloudError(f"the cloud does not know the instance type {name!r}, so its quotas are not known")


def tag_resources(cloud: Cloud, eni_ids: Collection[str], tags: Mapping[str, str]) -> None:
    """Put tags on up to 50 ENIs, over those with the same key."""
    params = {"ResourceType": "eni", "ResourceId": list(eni_ids), "Tag": _tags(tags)}
    cloud.call("ecs", "TagResources", params, idempotent=True)


def _attachment(eni_id: str, instance_id: str, trunk_eni_id: str) -> dict[str, str | None]:
    return {
        "NetworkInterfaceId": eni_id,
        "InstanceId": instance_id,
        "TrunkNetworkInstanceId": trunk_eni_id or None,
    }


def _unassign(
    cloud: Cloud,
    action: str,
    parameter: str,
    eni_id: str,
    unwanted: Collection[T],
    held: Callable[[NetworkInterface], Collection[T]],
) -> None:
    while unwanted:
        params = {"NetworkInterfaceId": eni_id, parameter: [str(one) for one in unwanted]}
        try:
            cloud.call("ecs", action, params, idempotent=True)
        except CloudError as error:
            if error.code in NOT_FOUND:
                return
            if error.code != IP_UNASSIGNED:
                raise
            # One that is gone already keeps the others from going: ask for those that are left.
            eni = _find(cloud, eni_id)
            left = [one for one in unwanted if eni and one in held(eni)]
            if len(left) == len(unwanted):
                raise
            unwanted = left
        else:
            return


def _find(cloud: Cloud, eni_id: str) -> NetworkInterface | None:
    return next(iter(describe_network_interfaces(cloud, eni_ids=(eni_id,))), None)


def _network_interfaces(cloud: Cloud, filters: Mapping[str, Any]) -> Iterator[NetworkInterface]:
    token: str | None = None
    while token != "":
        answer = cloud.call("ecs", "DescribeNetworkInterfaces", {**filters, "NextToken": token})
        yield from map(_network_interface, answer["NetworkInterfaceSets"]["NetworkInterfaceSet"])
        token = answer.get("NextToken") or ""


def _network_interface(item: Mapping[str, Any]) -> NetworkInterface:
    attachment = item.get("Attachment", {})
    primary = IPv4Address(item["PrivateIpAddress"])
    others = (IPv4Address(one["PrivateIpAddress"]) for one in _list(item, "PrivateIpSet"))
    return NetworkInterface(
        eni_id=item["NetworkInterfaceId"],
        name=item.get("NetworkInterfaceName", ""),
        type=item.get("Type") or "Secondary",
        status=item["Status"],
        mac=item["MacAddress"],
        vpc_id=item["VpcId"],
        vswitch_id=item["VSwitchId"],
        zone_id=item["ZoneId"],
        # A member's own InstanceId may be empty.
        instance_id=item.get("InstanceId") or attachment.get("InstanceId", ""),
        trunk_eni_id=attachment.get("TrunkNetworkInterfaceId", ""),
        device_index=int(attachment.get("DeviceIndex", 0)),
        primary_ip=primary,
        ipv4=(primary, *(address for address in others if address != primary)),
        ipv6=tuple(IPv6Address(one["Ipv6Address"]) for one in _list(item, "Ipv6Set")),
        ipv4_prefixes=tuple(IPv4Network(one["Ipv4Prefix"]) for one in _list(item, "Ipv4PrefixSet")),
        ipv6_prefixes=tuple(IPv6Network(one["Ipv6Prefix"]) for one in _list(item, "Ipv6PrefixSet")),
        security_group_ids=tuple(item.get("SecurityGroupIds", {}).get("SecurityGroupId", ())),
        tags={tag["TagKey"]: tag["TagValue"] for tag in item.get("Tags", {}).get("Tag", ())},
    )


def _list(item: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    items: Sequence[Mapping[str, Any]] = item.get(f"{name}s", {}).get(name, ())
    return items


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
