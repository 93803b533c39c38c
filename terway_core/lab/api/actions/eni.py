"""The life of network interfaces: created, attached, detached, deleted, and changed in between.

Attaching, detaching and deleting go on after the reply, unless they take no time at all.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from terway_core.lab.api.actions.eni_describe import Tag, find_interface, interface_reply
from terway_core.lab.api.addresses import pick_ipv4, pick_ipv4_prefixes, pick_ipv6
from terway_core.lab.api.faults import Fault, missing_parameter
from terway_core.lab.api.instance_types import InstanceType, instance_type
from terway_core.lab.api.model import Instance, NetworkInterface
from terway_core.lab.api.params import ClientToken, Request
from terway_core.lab.api.region import Region
from terway_core.lab.api.service import Service, action, check_region

MAX_SECURITY_GROUPS = 5


def _no_url(text: str) -> str:
    if text.startswith(("http://", "https://")):
        raise ValueError("it starts with http:// or https://")
    return text


Name = Annotated[str, Field(min_length=2, max_length=128), AfterValidator(_no_url)]
Description = Annotated[str, Field(min_length=2, max_length=256), AfterValidator(_no_url)]


class CreateNetworkInterfaceRequest(Request):
    region_id: str
    v_switch_id: str
    security_group_id: str = ""
    security_group_ids: tuple[str, ...] = ()
    instance_type: Literal["Secondary", "Trunk"] = "Secondary"
    primary_ip_address: IPv4Address | None = None
    private_ip_address: tuple[IPv4Address, ...] = Field((), max_length=10)
    secondary_private_ip_address_count: int = Field(0, ge=1, le=49)
    ipv6_address: tuple[IPv6Address, ...] = Field((), max_length=10)
    ipv6_address_count: int = Field(0, ge=1, le=10)
    ipv4_prefix: tuple[IPv4Network, ...] = Field((), max_length=10)
    ipv4_prefix_count: int = Field(0, ge=1, le=10)
    network_interface_name: Name = ""
    description: Description = ""
    delete_on_release: bool = True
    tag: tuple[Tag, ...] = Field((), max_length=20)
    client_token: ClientToken = ""


@action("Ecs", "CreateNetworkInterface")
async def create_network_interface(
    service: Service, request: CreateNetworkInterfaceRequest
) -> dict[str, Any]:
    """The reply comes when it is ``Available``, tags and addresses on it."""
    region = service.region
    check_region(region, request.region_id)
    await asyncio.sleep(service.behaviour.create_delay)
    vswitch = region.vswitches.get(request.v_switch_id)
    if vswitch is None:
        raise Fault(404, "InvalidVSwitchId.NotFound", "The specified VSwitch does not exist.")
    groups = _security_groups(request)
    check_security_groups(region, vswitch.vpc_id, groups)
    tags = checked_tags(request.tag)
    exclusive(request, "private_ip_address", "secondary_private_ip_address_count")
    exclusive(request, "ipv6_address", "ipv6_address_count")
    exclusive(request, "ipv4_prefix", "ipv4_prefix_count")
    addresses = request.private_ip_address or request.secondary_private_ip_address_count
    if addresses and (request.ipv4_prefix or request.ipv4_prefix_count):
        raise _conflict("addresses and prefixes")
    owned = sum(eni.type != "Primary" for eni in region.network_interfaces.values())
    if owned >= service.behaviour.eni_quota:
        raise Fault(403, "MaxEniCountExceeded", "The number of ENIs of the account exceeds the limit.")
    primary = (request.primary_ip_address,) if request.primary_ip_address else ()
    first, *others = pick_ipv4(
        region,
        vswitch,
        (*primary, *request.private_ip_address),
        request.secondary_private_ip_address_count + (not primary),
    )
    if not primary and request.private_ip_address:
        # Those asked for come first; the primary one is what was picked besides.
        *others, first = (first, *others)
    prefixes = pick_ipv4_prefixes(
        region, vswitch, request.ipv4_prefix, request.ipv4_prefix_count, beside=(first, *others)
    )
    eni = region.add_interface(
        vswitch,
        type=request.instance_type,
        private_ip=first,
        secondary_ips=tuple(others),
        ipv4_prefixes=prefixes,
        ipv6=pick_ipv6(region, vswitch, request.ipv6_address, request.ipv6_address_count),
        security_group_ids=groups,
        name=request.network_interface_name,
        description=request.description,
        tags=tags,
        delete_on_release=request.delete_on_release,
    )
    return interface_reply(eni)


class AttachNetworkInterfaceRequest(Request):
    region_id: str
    instance_id: str
    network_interface_id: str
    trunk_network_instance_id: str = ""


@action("Ecs", "AttachNetworkInterface", exclusive=True)
async def attach_network_interface(
    service: Service, request: AttachNetworkInterfaceRequest
) -> dict[str, Any]:
    """``Attaching``, then ``InUse``; back to ``Available`` if the network does not follow."""
    region = service.region
    check_region(region, request.region_id)
    eni = find_interface(region, request.network_interface_id)
    instance = _instance(region, request.instance_id)
    if eni.type == "Primary":
        raise Fault(403, "InvalidOperation.InvalidEniType", "The type of the ENI does not support it.")
    if eni.status != "Available":
        raise _invalid_state(eni)
    if eni.vpc_id != instance.vpc_id:
        raise Fault(403, "InvalidOperation.VpcMismatch", "The ENI and the instance are in different VPCs.")
    if eni.zone_id != instance.zone_id:
        raise Fault(
            403, "InvalidOperation.AvailabilityZoneMismatch", "The ENI is in another zone than the instance."
        )
    kind = instance_type(instance.instance_type)
    attached = region.interfaces_of(instance.instance_id)
    device_index = 0
    if request.trunk_network_instance_id:
        device_index = _free_vlan(region, request.trunk_network_instance_id, eni, attached, kind)
    else:
        if eni.type == "Trunk" and not kind.trunk:
            raise Fault(
                403,
                "InvalidOperation.InstanceTypeNotSupportEniTrunking",
                f"The instance type {kind.name} does not support a trunk ENI.",
            )
        if sum(not one.trunk_id for one in attached) >= kind.enis:
            raise _too_many_enis()
    if len(eni.ipv4) + len(eni.ipv4_prefixes) > kind.ipv4:
        raise Fault(403, "InvalidOperation.Ipv4CountExceeded", "The ENI has more IPv4 than the type allows.")
    if len(eni.ipv6) > kind.ipv6:
        raise Fault(403, "InvalidOperation.Ipv6CountExceeded", "The ENI has more IPv6 than the type allows.")
    attaching = region.put_interface(
        dataclasses.replace(
            eni,
            status="Attaching",
            instance_id=instance.instance_id,
            trunk_id=request.trunk_network_instance_id,
            device_index=device_index,
        )
    )
    await _settle(service, attaching)
    return {}


class DetachNetworkInterfaceRequest(AttachNetworkInterfaceRequest):
    pass


@action("Ecs", "DetachNetworkInterface", exclusive=True)
async def detach_network_interface(
    service: Service, request: DetachNetworkInterfaceRequest
) -> dict[str, Any]:
    """``Detaching``, then ``Available``; one that is stuck may be asked again."""
    region = service.region
    check_region(region, request.region_id)
    eni = find_interface(region, request.network_interface_id)
    _instance(region, request.instance_id)
    if eni.type == "Primary":
        raise Fault(400, "InvalidOperation.DetachPrimaryEniNotAllowed", "The primary ENI cannot be detached.")
    if eni.status not in ("InUse", "Detaching"):
        raise _invalid_state(eni)
    if eni.instance_id != request.instance_id:
        raise Fault(400, "InvalidParameter.EniNotBelongEcs", "The ENI does not belong to the instance.")
    if eni.trunk_id != request.trunk_network_instance_id:
        raise Fault(400, "InvalidParameter.EniNotBelongTrunk", "The ENI does not belong to the trunk.")
    if any(one.trunk_id == eni.network_interface_id for one in region.network_interfaces.values()):
        raise Fault(403, "InvalidOperation.HasMemberEniAttached", "The trunk has members attached.")
    await _settle(service, region.put_interface(dataclasses.replace(eni, status="Detaching")))
    return {}


class DeleteNetworkInterfaceRequest(Request):
    region_id: str
    network_interface_id: str


@action("Ecs", "DeleteNetworkInterface", exclusive=True)
async def delete_network_interface(
    service: Service, request: DeleteNetworkInterfaceRequest
) -> dict[str, Any]:
    """``Deleting``, then gone; one that is stuck may be asked again."""
    region = service.region
    check_region(region, request.region_id)
    eni = find_interface(region, request.network_interface_id)
    if eni.status not in ("Available", "Deleting"):
        raise _invalid_state(eni)
    await _settle(service, region.put_interface(dataclasses.replace(eni, status="Deleting")))
    return {}


class ModifyNetworkInterfaceAttributeRequest(Request):
    region_id: str
    network_interface_id: str
    security_group_id: tuple[str, ...] = ()
    network_interface_name: Name | None = None
    description: Description | None = None
    delete_on_release: bool | None = None


@action("Ecs", "ModifyNetworkInterfaceAttribute", exclusive=True)
async def modify_network_interface_attribute(
    service: Service, request: ModifyNetworkInterfaceAttributeRequest
) -> dict[str, Any]:
    """``SecurityGroupId`` takes the place of the groups that the ENI has."""
    region = service.region
    check_region(region, request.region_id)
    eni = find_interface(region, request.network_interface_id)
    groups = request.security_group_id
    if groups and eni.type == "Primary":
        raise Fault(403, "InvalidOperation.InvalidEniType", "The type of the ENI does not support it.")
    check_security_groups(region, eni.vpc_id, groups)
    changes = {
        "security_group_ids": groups or None,
        "name": request.network_interface_name,
        "description": request.description,
        "delete_on_release": request.delete_on_release,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    changed = dataclasses.replace(eni, **given)  # type: ignore[arg-type]
    if eni.plugged and changed.security_group_ids != eni.security_group_ids:
        await service.interface_changed(eni, changed)
    region.put_interface(changed)
    return {}


async def resume(service: Service) -> None:
    """Take up what a stopped server left on its way."""
    for eni in list(service.region.network_interfaces.values()):
        if eni.status in ("Attaching", "Detaching", "Deleting"):
            await _settle(service, eni)


async def _settle(service: Service, eni: NetworkInterface) -> None:
    behaviour = service.behaviour
    match eni.status:
        case "Attaching":
            name, delay, finish = "AttachNetworkInterface", behaviour.attach_delay, _attach
        case "Detaching":
            name, delay, finish = "DetachNetworkInterface", behaviour.detach_delay, _detach
        case _:
            name, delay, finish = "DeleteNetworkInterface", behaviour.delete_delay, _delete

    # As it is then: addresses and security groups may change meanwhile, the status may not.
    async def now() -> None:
        await finish(service, service.region.network_interfaces[eni.network_interface_id])

    await service.finish(name, eni.network_interface_id, delay, now)


async def _attach(service: Service, eni: NetworkInterface) -> None:
    attached = dataclasses.replace(eni, status="InUse")
    try:
        await service.interface_changed(eni, attached)
    except BaseException:
        service.region.put_interface(_apart(eni))
        raise
    service.region.put_interface(attached)


async def _detach(service: Service, eni: NetworkInterface) -> None:
    await service.interface_changed(eni, _apart(eni))
    service.region.put_interface(_apart(eni))


async def _delete(service: Service, eni: NetworkInterface) -> None:
    service.region.drop_interface(eni)


def _apart(eni: NetworkInterface) -> NetworkInterface:
    return dataclasses.replace(eni, status="Available", instance_id="", trunk_id="", device_index=0)


def exclusive(request: Request, one: str, other: str) -> None:
    """:raises Fault: both parameters are given."""
    if getattr(request, one) and getattr(request, other):
        raise _conflict(f"{one} and {other}")


def check_security_groups(region: Region, vpc_id: str, group_ids: Sequence[str]) -> None:
    """:raises Fault: an ENI of this VPC cannot be in these groups."""
    for group_id in group_ids:
        group = region.security_groups.get(group_id)
        if group is None:
            raise Fault(404, "InvalidSecurityGroupId.NotFound", "The specified SecurityGroup does not exist.")
        if group.vpc_id != vpc_id:
            raise Fault(403, "InvalidOperation.VpcMismatch", "The security group is in another VPC.")
    if len(group_ids) > MAX_SECURITY_GROUPS:
        raise Fault(400, "JoinedGroupLimitExceed", "The ENI is in more security groups than it can be.")


def checked_tags(tags: Sequence[Tag]) -> dict[str, str]:
    """:raises Fault: a key is there twice, or is not allowed."""
    found = {tag.key: tag.value for tag in tags}
    if len(found) < len(tags):
        raise Fault(400, "Duplicate.TagKey", "The Tag.N.Key contain duplicate key.")
    for key in found:
        if key.lower().startswith(("aliyun", "acs:", "http://", "https://")):
            raise Fault(400, "InvalidTagKey.Malformed", f"The tag key {key} is not valid.")
    return found


def _security_groups(request: CreateNetworkInterfaceRequest) -> tuple[str, ...]:
    exclusive(request, "security_group_id", "security_group_ids")
    groups = request.security_group_ids or tuple(filter(None, (request.security_group_id,)))
    if not groups:
        raise missing_parameter("SecurityGroupId")
    return groups


def _instance(region: Region, instance_id: str) -> Instance:
    if instance := region.instances.get(instance_id):
        return instance
    raise Fault(404, "InvalidEcsId.NotFound", "The specified EcsId does not exist.")


def _free_vlan(
    region: Region,
    trunk_id: str,
    eni: NetworkInterface,
    attached: Sequence[NetworkInterface],
    kind: InstanceType,
) -> int:
    trunk = find_interface(region, trunk_id)
    if trunk.type != "Trunk" or eni.type != "Secondary":
        raise Fault(
            403,
            "InvalidOperation.EniTypeNotSupportTrunking",
            "The type of the ENI does not support trunking.",
        )
    if trunk.status != "InUse" or trunk not in attached:
        raise Fault(
            403, "InvalidOperation.InvalidTrunkEniStatus", "The trunk is not attached to the instance."
        )
    vlans = {one.device_index for one in attached if one.trunk_id}
    if len(vlans) >= kind.total_enis - kind.enis:
        raise _too_many_enis()
    return next(vlan for vlan in range(1, 4095) if vlan not in vlans)


def _too_many_enis() -> Fault:
    return Fault(403, "EniPerInstanceLimitExceeded", "The number of ENIs of the instance exceeds the limit.")


def _invalid_state(eni: NetworkInterface) -> Fault:
    return Fault(
        400,
        "InvalidOperation.InvalidEniState",
        f"The operation does not support the status {eni.status} of the ENI.",
    )


def _conflict(what: str) -> Fault:
    return Fault(400, "InvalidParameter.Conflict", f"The parameters {what} cannot be given together.")
