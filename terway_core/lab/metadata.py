"""The instance metadata service, ``http://100.100.100.200`` of a simulated region.

Instances are told apart by the source address of their requests, so serve it where that address arrives
unchanged. :func:`build_app` never needs the OpenAPI; both read the same
:class:`~terway_core.lab.api.region.Region`, and the STS credentials handed out here are good there.

What it says of ENIs may be old: as much as a fault of the kind ``metadata-lag`` says.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal, TypeAlias

from aiohttp import web

from terway_core.lab.api.model import AccessKey, Instance, NetworkInterface, timestamp
from terway_core.lab.api.region import Region
from terway_core.lab.api.service import Behaviour

#: A directory, the text of an item, or what makes that text when somebody asks.
Tree: TypeAlias = "dict[str, Tree] | str | Callable[[], str]"

TOKEN_HEADER: Final = "X-aliyun-ecs-metadata-token"
TTL_HEADER: Final = "X-aliyun-ecs-metadata-token-ttl-seconds"
MAX_TTL: Final = 21600
#: STS credentials live this long, and new ones appear this much before the old expire (seconds).
STS_LIFETIME: Final = 6 * 3600
STS_RENEWAL: Final = 30 * 60
#: For so long it is remembered how an ENI was; no lag is longer (seconds).
MEMORY: Final = 600


def build_app(
    region: Region,
    *,
    behaviour: Behaviour | None = None,
    http_tokens: Literal["optional", "required"] = "optional",
) -> web.Application:
    """The metadata service.

    :param behaviour: that of the OpenAPI, whose faults of the metadata service count here.
    :param http_tokens: ``required`` is the hardened mode: a GET without a token gets 403.
    """
    service = _Metadata(region, behaviour or Behaviour(), required=http_tokens == "required")
    app = web.Application()
    app.router.add_put("/latest/api/token", service.issue_token)
    app.router.add_get("/{path:.*}", service.get)
    return app


@dataclass(frozen=True)
class _Token:
    instance_id: str
    expires: float


class _Past:
    """How each ENI is, and was of late."""

    def __init__(self, region: Region) -> None:
        self._region = region
        #: By id, oldest first: from when on, and what; None once it is deleted.
        self._known: dict[str, list[tuple[float, NetworkInterface | None]]] = {
            key: [(0.0, eni)] for key, eni in region.network_interfaces.items()
        }
        region.watch_interfaces(self._note)

    def at(self, when: float) -> Iterator[NetworkInterface]:
        """All ENIs as they were; primary ones have been there always."""
        for states in self._known.values():
            before = [eni for since, eni in states if since <= when]
            eni = before[-1] if before else states[0][1]
            if eni and (before or eni.type == "Primary"):
                yield eni

    def _note(self, network_interface_id: str, eni: NetworkInterface | None) -> None:
        now = self._region.now()
        self._known.setdefault(network_interface_id, []).append((now, eni))
        for key, states in list(self._known.items()):
            while len(states) > 1 and states[1][0] < now - MEMORY:
                del states[0]
            if states[-1][1] is None and states[-1][0] < now - MEMORY:
                del self._known[key]


class _Metadata:
    def __init__(self, region: Region, behaviour: Behaviour, *, required: bool) -> None:
        self._region = region
        self._behaviour = behaviour
        self._past = _Past(region)
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
        if self._behaviour.fault("metadata-down", "", self._region.now()) and request.transport:
            request.transport.abort()
            raise web.HTTPServiceUnavailable  # which nobody gets to read
        source = ip_address(request.remote or "")
        for eni in self._region.network_interfaces.values():
            if eni.instance_id and source in (*eni.ipv4, *eni.ipv6):
                return self._region.instances[eni.instance_id]
        raise web.HTTPNotFound(text=f"{source} is no instance of this region")

    def _interfaces(self, instance: Instance) -> Tree:
        now = self._region.now()
        lag = self._behaviour.fault("metadata-lag", "", now)
        enis = self._past.at(now - lag.seconds if lag else now)
        return {
            eni.mac: self._interface(eni)
            for eni in enis
            if eni.instance_id == instance.instance_id and eni.plugged and not eni.trunk_id
        }

    def _interface(self, eni: NetworkInterface) -> Tree:
        vpc = self._region.vpcs[eni.vpc_id]
        vswitch = self._region.vswitches[eni.vswitch_id]
        interface: dict[str, Tree] = {
            "network-interface-id": eni.network_interface_id,
            "vpc-id": vpc.vpc_id,
            "vpc-cidr-block": str(vpc.cidr),
            "vswitch-id": vswitch.vswitch_id,
            "vswitch-cidr-block": str(vswitch.cidr),
            "primary-ip-address": str(eni.private_ip),
            "private-ipv4s": json.dumps([str(address) for address in eni.ipv4]),
            "netmask": str(vswitch.cidr.netmask),
            "gateway": str(vswitch.gateway),
        }
        if eni.ipv4_prefixes:
            interface["ipv4-prefixes"] = _list(eni.ipv4_prefixes)
        if vswitch.ipv6_cidr:
            interface["vpc-ipv6-cidr-blocks"] = f"[{vpc.ipv6_cidr}]"
            interface["vswitch-ipv6-cidr-block"] = str(vswitch.ipv6_cidr)
            interface["ipv6-gateway"] = str(vswitch.ipv6_gateway)
        if eni.ipv6:
            # In brackets, but no JSON.
            interface["ipv6s"] = f"[{','.join(map(str, eni.ipv6))}]"
        return interface

    def _tree(self, instance: Instance) -> Tree:
        vpc = self._region.vpcs[instance.vpc_id]
        vswitch = self._region.vswitches[instance.vswitch_id]
        tree: dict[str, Tree] = {
            "dns-conf": {"nameservers": "100.100.2.136\n100.100.2.138"},
            "hostname": instance.name,
            "instance": {"instance-name": instance.name, "instance-type": instance.instance_type},
            "instance-id": instance.instance_id,
            "mac": instance.mac,
            "network": {"interfaces": {"macs": self._interfaces(instance)}},
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


def _list(items: Sequence[object]) -> str:
    """One is seen bare in the documentation; how several look is not known, so as lists of addresses do."""
    return str(items[0]) if len(items) == 1 else f"[{','.join(map(str, items))}]"


def _error(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text)
