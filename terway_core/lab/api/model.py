"""What exists in a simulated region: plain records, frozen, known by ids of the real shapes."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Literal, TypeAlias

IPNetwork: TypeAlias = IPv4Network | IPv6Network

#: The region's part of a resource id, as seen in real ones.
_REGION_CODES: Final = {
    "cn-hangzhou": "bp1",
    "cn-shanghai": "uf6",
    "cn-beijing": "2ze",
    "cn-shenzhen": "wz9",
    "cn-hongkong": "j6c",
}
_BASE36: Final = string.digits + string.ascii_lowercase
_ALPHANUMERIC: Final = string.ascii_letters + string.digits


def new_id(kind: str, region_id: str) -> str:
    """``vpc-bp1`` and 17 base-36 digits: ``kind`` is the prefix without its dash."""
    code = _REGION_CODES.get(region_id, "x00")
    return f"{kind}-{code}{_random(_BASE36, 17)}"


def new_mac() -> str:
    """A MAC address below 00:16:3e, where those of real ENIs are."""
    return ":".join(f"{byte:02x}" for byte in (0x00, 0x16, 0x3E, *secrets.token_bytes(3)))


def timestamp(seconds: float) -> str:
    """``2019-12-25T12:31:31Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


@dataclass(frozen=True, kw_only=True)
class Vpc:
    """A VPC and the system route table it was born with."""

    vpc_id: str
    cidr: IPv4Network
    ipv6_cidr: IPv6Network | None
    router_id: str
    route_table_id: str
    created: float


@dataclass(frozen=True, kw_only=True)
class VSwitch:
    """A subnet of a VPC in one zone."""

    vswitch_id: str
    vpc_id: str
    zone_id: str
    cidr: IPv4Network
    ipv6_cidr: IPv6Network | None
    created: float

    @property
    def gateway(self) -> IPv4Address:
        """The third address from the end; first and last three are the VPC's own."""
        return self.cidr[-3]

    def assignable(self, address: IPv4Address) -> bool:
        """Whether an ENI may have ``address``."""
        return self.cidr[1] <= address <= self.cidr[-4]

    @property
    def usable(self) -> int:
        """How many addresses ENIs can have: all but the first and the last three."""
        return self.cidr.num_addresses - 4


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A running ECS instance with its primary ENI."""

    instance_id: str
    name: str
    instance_type: str
    vpc_id: str
    vswitch_id: str
    zone_id: str
    network_interface_id: str
    mac: str
    private_ip: IPv4Address
    ipv6: IPv6Address | None
    ram_role: str
    created: float


@dataclass(frozen=True, kw_only=True)
class RouteTable:
    """A route table; only the system's own exist."""

    table_id: str
    vpc_id: str
    router_id: str
    created: float


@dataclass(frozen=True, kw_only=True)
class RouteEntry:
    """One entry of a route table. A system entry (a vSwitch, the cloud's services) has no next hop id."""

    entry_id: str
    table_id: str
    cidr: IPNetwork
    type: Literal["System", "Custom"]
    status: Literal["Pending", "Available", "Deleting"]
    next_hop_type: str
    next_hop_id: str
    name: str = ""
    description: str = ""
    modified: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AccessKey:
    """Who may call: a permanent key pair, or STS credentials when ``security_token`` is set."""

    access_key_id: str
    access_key_secret: str = field(repr=False)
    security_token: str = field(default="", repr=False)
    expires: float | None = None
    enabled: bool = True

    @classmethod
    def permanent(cls) -> AccessKey:
        """A key pair of a RAM user."""
        return cls(
            access_key_id="LTAI5t" + _random(_ALPHANUMERIC, 18),
            access_key_secret=_random(_ALPHANUMERIC, 30),
        )

    @classmethod
    def temporary(cls, *, expires: float) -> AccessKey:
        """STS credentials; ``expires`` in seconds since the epoch."""
        return cls(
            access_key_id="STS.NU" + _random(_ALPHANUMERIC, 22),
            access_key_secret=_random(_ALPHANUMERIC, 44),
            security_token="CAIS" + _random(_ALPHANUMERIC, 400),
            expires=expires,
        )
