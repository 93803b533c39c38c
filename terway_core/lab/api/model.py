"""What exists in a simulated region: plain records, frozen, known by ids of the real shapes."""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping
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

    @property
    def ipv6_gateway(self) -> IPv6Address | None:
        """As for IPv4, the third address from the end."""
        return self.ipv6_cidr[-3] if self.ipv6_cidr else None

    def assignable(self, address: IPv4Address) -> bool:
        """Whether an ENI may have ``address``."""
        return self.cidr[1] <= address <= self.cidr[-4]

    @property
    def usable(self) -> int:
        """How many addresses ENIs can have: all but the first and the last three."""
        return self.cidr.num_addresses - 4


@dataclass(frozen=True, kw_only=True)
class SecurityGroup:
    """A security group of the normal kind; it has no rules, so only those in it reach each other."""

    security_group_id: str
    vpc_id: str
    name: str
    created: float


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A running ECS instance, with what it was born with of its primary ENI."""

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
class NetworkInterface:
    """An ENI.

    :param type: that of a member of a trunk is ``Secondary``, as before it was attached.
    :param instance_id: from ``Attaching`` to ``Detaching``; ``""`` otherwise. ``trunk_id`` likewise.
    :param device_index: of a member, its VLAN id on the trunk.
    """

    network_interface_id: str
    type: Literal["Primary", "Secondary", "Trunk"]
    status: Literal["Available", "Attaching", "InUse", "Detaching", "Deleting"]
    mac: str
    vpc_id: str
    vswitch_id: str
    zone_id: str
    private_ip: IPv4Address
    secondary_ips: tuple[IPv4Address, ...] = ()
    ipv4_prefixes: tuple[IPv4Network, ...] = ()
    ipv6: tuple[IPv6Address, ...] = ()
    security_group_ids: tuple[str, ...]
    instance_id: str = ""
    trunk_id: str = ""
    device_index: int = 0
    name: str = ""
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    delete_on_release: bool = True
    created: float

    @property
    def ipv4(self) -> tuple[IPv4Address, ...]:
        """All addresses but those of prefixes, the primary one first."""
        return (self.private_ip, *self.secondary_ips)

    @property
    def plugged(self) -> bool:
        """Whether the instance has it: from the end of attaching to the end of detaching."""
        return self.status in ("InUse", "Detaching")


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
