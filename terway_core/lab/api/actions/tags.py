"""Tags of network interfaces, put on and taken off."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from pydantic import Field

from terway_core.lab.api.actions.eni import checked_tags
from terway_core.lab.api.actions.eni_describe import Tag
from terway_core.lab.api.faults import Fault
from terway_core.lab.api.model import NetworkInterface
from terway_core.lab.api.paging import token_page
from terway_core.lab.api.params import Request
from terway_core.lab.api.service import Service, action, check_region

MAX_TAGS: Final = 20
_PAGE: Final = 50


class TagResourcesRequest(Request):
    region_id: str
    resource_type: str
    resource_id: tuple[str, ...] = Field(min_length=1, max_length=50)
    tag: tuple[Tag, ...] = Field(min_length=1, max_length=MAX_TAGS)


@action("Ecs", "TagResources")
async def tag_resources(service: Service, request: TagResourcesRequest) -> dict[str, Any]:
    """On all of them or, if one cannot have them, on none; over those with the same key."""
    check_region(service.region, request.region_id)
    tags = checked_tags(request.tag)
    enis = _interfaces(service, request.resource_type, request.resource_id)
    changed = [dataclasses.replace(eni, tags={**eni.tags, **tags}) for eni in enis]
    if any(len(eni.tags) > MAX_TAGS for eni in changed):
        raise Fault(400, "OperationDenied.QuotaExceed", "The quota of tags on resource exceeds the limit.")
    for eni in changed:
        service.region.put_interface(eni)
    return {}


class UntagResourcesRequest(Request):
    region_id: str
    resource_type: str
    resource_id: tuple[str, ...] = Field(min_length=1, max_length=50)
    tag_key: tuple[str, ...] = Field((), max_length=MAX_TAGS)
    all: bool = False


@action("Ecs", "UntagResources")
async def untag_resources(service: Service, request: UntagResourcesRequest) -> dict[str, Any]:
    """``All`` counts only if no keys are given."""
    check_region(service.region, request.region_id)
    everything = request.all and not request.tag_key
    for eni in _interfaces(service, request.resource_type, request.resource_id):
        left = {key: value for key, value in eni.tags.items() if key not in request.tag_key}
        service.region.put_interface(dataclasses.replace(eni, tags={} if everything else left))
    return {}


class ListTagResourcesRequest(Request):
    region_id: str
    resource_type: str
    resource_id: tuple[str, ...] = Field((), max_length=50)
    tag: tuple[Tag, ...] = Field((), max_length=MAX_TAGS)
    next_token: str = ""


@action("Ecs", "ListTagResources")
async def list_tag_resources(service: Service, request: ListTagResourcesRequest) -> dict[str, Any]:
    """One line for each tag of each ENI that is named, or has all the tags asked for."""
    check_region(service.region, request.region_id)
    if not request.resource_id and not request.tag:
        raise Fault(404, "MissingParameter.ResourceIds", "ResourceId or Tag is to be given.")
    enis = service.region.network_interfaces.values()
    lines = [
        {
            "ResourceType": "eni",
            "ResourceId": eni.network_interface_id,
            "TagKey": key,
            "TagValue": value,
        }
        for eni in enis
        if request.resource_type == "eni"
        and (not request.resource_id or eni.network_interface_id in request.resource_id)
        and all(eni.tags.get(tag.key) == tag.value for tag in request.tag)
        for key, value in eni.tags.items()
    ]
    shown, token = token_page(
        lines, lambda line: f"{line['ResourceId']}/{line['TagKey']}", request.next_token, _PAGE
    )
    return {"NextToken": token, "TagResources": {"TagResource": shown}}


def _interfaces(service: Service, kind: str, ids: tuple[str, ...]) -> list[NetworkInterface]:
    if kind != "eni":
        raise Fault(404, "InvalidResourceType.NotFound", f"This region tags eni only, not {kind}.")
    enis = service.region.network_interfaces
    for network_interface_id in ids:
        if network_interface_id not in enis:
            raise Fault(404, "InvalidResourceId.NotFound", f"{network_interface_id} does not exist.")
    return [enis[network_interface_id] for network_interface_id in ids]
