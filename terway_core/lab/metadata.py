"""The instance metadata service, ``http://100.100.100.200`` of a simulated region.

Instances are told apart by the source address of their requests, so serve it where that address arrives
unchanged. :func:`build_app` never needs the OpenAPI; both read the same
:class:`~terway_core.lab.api.region.Region`, and the STS credentials handed out here are good there.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal, TypeAlias

from aiohttp import web

from terway_core.lab.api.model import AccessKey, Instance, timestamp
from terway_core.lab.api.region import Region

#: A directory, the text of an item, or what makes that text when somebody asks.
Tree: TypeAlias = "dict[str, Tree] | str | Callable[[], str]"

TOKEN_HEADER: Final = "X-aliyun-ecs-metadata-token"
TTL_HEADER: Final = "X-aliyun-ecs-metadata-token-ttl-seconds"
MAX_TTL: Final = 21600
#: STS credentials live this long, and new ones appear this much before the old expire (seconds).
STS_LIFETIME: Final = 6 * 3600
STS_RENEWAL: Final = 30 * 60


def build_app(
    region: Region, *, http_tokens: Literal["optional", "required"] = "optional"
) -> web.Application:
    """The metadata service.

    :param http_tokens: ``required`` is the hardened mode: a GET without a token gets 403.
    """
    service = _Metadata(region, required=http_tokens == "required")
    app = web.Application()
    app.router.add_put("/latest/api/token", service.issue_token)
    app.router.add_get("/{path:.*}", service.get)
    return app


@dataclass(frozen=True)
class _Token:
    instance_id: str
    expires: float


class _Metadata:
    def __init__(self, region: Region, *, required: bool) -> None:
        self._region = region
        self._required = required
        self._tokens: dict[str, _Token] = {}
        self._credentials: dict[str, tuple[AccessKey, float]] = {}

    async def issue_token(self, request: web.Request) -> web.Response:
        """PUT /latest/api/token."""
        instance = self._instance(request)
        if "X-Forwarded-For" in request.headers:
            return _error(403, "Forbidden")
        ttl = request.headers.get(TTL_HEADER, "")
        if not (ttl.isascii() and ttl.isdigit() and 1 <= int(ttl) <= MAX_TTL):
            return _error(400, "Missing or Invalid Parameters")
        token = secrets.token_urlsafe(40)
        now = self._region.now()
        self._tokens = {text: kept for text, kept in self._tokens.items() if kept.expires > now}
        self._tokens[token] = _Token(instance.instance_id, now + int(ttl))
        return web.Response(text=token)

    async def get(self, request: web.Request) -> web.Response:
        """GET of an item, or of a directory: its children, one a line, directories with a slash."""
        instance = self._instance(request)
        text = request.headers.get(TOKEN_HEADER)
        if text is None and self._required:
            return _error(403, "Forbidden")
        if text is not None:
            token = self._tokens.get(text)
            if not token or token.instance_id != instance.instance_id or token.expires <= self._region.now():
                return _error(401, "Unauthorized")
        node: Tree = {"latest": {"meta-data": self._tree(instance)}}
        for part in filter(None, request.match_info["path"].split("/")):
            if not isinstance(node, dict) or part not in node:
                return _error(404, "Not Found")
            node = node[part]
        if isinstance(node, dict):
            names = (f"{name}/" if isinstance(child, dict) else name for name, child in node.items())
            return web.Response(text="\n".join(names))
        return web.Response(text=node if isinstance(node, str) else node())

    def _instance(self, request: web.Request) -> Instance:
        source = ip_address(request.remote or "")
        for instance in self._region.instances.values():
            if source in (instance.private_ip, instance.ipv6):
                return instance
        raise web.HTTPNotFound(text=f"{source} is no instance of this region")

    def _tree(self, instance: Instance) -> Tree:
        vpc = self._region.vpcs[instance.vpc_id]
        vswitch = self._region.vswitches[instance.vswitch_id]
        interface: dict[str, Tree] = {
            "network-interface-id": instance.network_interface_id,
            "vpc-id": vpc.vpc_id,
            "vpc-cidr-block": str(vpc.cidr),
            "vswitch-id": vswitch.vswitch_id,
            "vswitch-cidr-block": str(vswitch.cidr),
            "primary-ip-address": str(instance.private_ip),
            "private-ipv4s": json.dumps([str(instance.private_ip)]),
            "netmask": str(vswitch.cidr.netmask),
            "gateway": str(vswitch.gateway),
        }
        if instance.ipv6:
            # Lists of IPv6 things are in brackets, but are no JSON.
            interface["ipv6s"] = f"[{instance.ipv6}]"
            interface["vpc-ipv6-cidr-blocks"] = f"[{vpc.ipv6_cidr}]"
            interface["vswitch-ipv6-cidr-block"] = str(vswitch.ipv6_cidr)
        tree: dict[str, Tree] = {
            "dns-conf": {"nameservers": "100.100.2.136\n100.100.2.138"},
            "hostname": instance.name,
            "instance": {"instance-name": instance.name, "instance-type": instance.instance_type},
            "instance-id": instance.instance_id,
            "mac": instance.mac,
            "network": {"interfaces": {"macs": {instance.mac: interface}}},
            "network-type": "vpc",
            "private-ipv4": str(instance.private_ip),
            "region-id": self._region.region_id,
            "vpc-cidr-block": str(vpc.cidr),
            "vpc-id": vpc.vpc_id,
            "vswitch-cidr-block": str(vswitch.cidr),
            "vswitch-id": vswitch.vswitch_id,
            "zone-id": instance.zone_id,
        }
        if instance.ram_role:
            tree["ram"] = {"security-credentials": {instance.ram_role: lambda: self._sts(instance)}}
        return tree

    def _sts(self, instance: Instance) -> str:
        now = self._region.now()
        key, issued = self._credentials.get(instance.instance_id, (None, 0.0))
        if key is None or now > issued + STS_LIFETIME - STS_RENEWAL:
            key, issued = self._region.add_sts_credentials(STS_LIFETIME), now
            self._credentials[instance.instance_id] = key, issued
        return json.dumps(
            {
                "AccessKeyId": key.access_key_id,
                "AccessKeySecret": key.access_key_secret,
                "Expiration": timestamp(issued + STS_LIFETIME),
                "SecurityToken": key.security_token,
                "LastUpdated": timestamp(issued),
                "Code": "Success",
            }
        )


def _error(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text)
