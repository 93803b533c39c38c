"""What a driver can declare: frozen objects that say how the kernel should look.

A :class:`Wiring` has three parts. ``node`` objects live in the host's namespace and are shared: they are
only ensured at ADD and go when no attachment declares them any more. ``host`` and ``pod`` objects belong to
one attachment and live in the host's and in the pod's namespace. Links are named, never numbered: the
engine finds the interface indices.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    collapse_addresses,
    ip_network,
)
from typing import Literal, TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPInterface: TypeAlias = IPv4Interface | IPv6Interface
IPNetwork: TypeAlias = IPv4Network | IPv6Network

MAIN_TABLE = 254


@dataclass(frozen=True, kw_only=True, slots=True)
class Veth:
    """A veth pair: ``name`` stays where the object is placed, ``peer`` is born in the pod's namespace.

    Only ``host`` may hold one. MAC addresses are given, not left to the kernel, so that the neighbour
    entries on both sides can be declared beforehand. Both ends come up.

    :param link_local: whether ``name`` gives itself an IPv6 address.
    """

    name: str
    peer: str
    mac: str
    peer_mac: str
    mtu: int = 1500
    link_local: bool = True
    kind: Literal["veth"] = "veth"


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveLink:
    """A link of the host, known by its MAC address, that moves into the pod as ``name`` and comes up there.

    Only ``host`` may hold one. Removing the wiring brings it back to the host, down, under a name made of its
    MAC address. A physical link whose pod's namespace is gone has fallen back by itself.
    """

    mac: str
    name: str
    mtu: int = 1500
    kind: Literal["move-link"] = "move-link"

    @property
    def host_name(self) -> str:
        """What it is called once it is back: there, ``eth0`` is somebody else."""
        return "eni" + self.mac.replace(":", "")[-10:]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ipvlan:
    """An ipvlan link in mode L2: a child of ``parent``, a link of the host, whose MAC address it has.

    Among ``pod`` objects it is born in the pod's namespace, among ``node`` objects on the host. It comes up.
    A parent and its children do not hear each other; children of one parent do.

    :param arp: False: it neither asks nor answers who has an address. Whatever it sends goes to the MAC
        address that all children share, and so to the one that has the destination's address.
    """

    name: str
    parent: str
    mtu: int = 1500
    arp: bool = True
    kind: Literal["ipvlan"] = "ipvlan"


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkUp:
    """A link that exists already (``lo``, an ENI) and must be up; ``mtu`` 0 leaves its MTU alone."""

    dev: str
    mtu: int = 0
    kind: Literal["link-up"] = "link-up"


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """An address on a link, without duplicate address detection: the VPC has already decided who owns it."""

    dev: str
    address: IPInterface
    kind: Literal["address"] = "address"


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """A route. Without ``via`` the destination is on the link; with it the next hop is taken as on-link."""

    dst: IPNetwork
    dev: str
    via: IPAddress | None = None
    table: int = MAIN_TABLE
    kind: Literal["route"] = "route"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A policy rule; the family is that of ``src`` or ``dst``, else ``family``.

    ``blackhole`` drops what matches instead of looking it up in ``table``.
    """

    priority: int
    table: int = MAIN_TABLE
    src: IPNetwork | None = None
    dst: IPNetwork | None = None
    iif: str = ""
    oif: str = ""
    blackhole: bool = False
    family: Literal[4, 6] = 4
    kind: Literal["rule"] = "rule"


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbor:
    """A permanent neighbour entry: nobody needs to ask who has ``address``."""

    dev: str
    address: IPAddress
    mac: str
    kind: Literal["neighbor"] = "neighbor"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sysctl:
    """A value below ``/proc/sys/net``; ``key`` is the path from there, ``ipv4/conf/eth0/forwarding``.

    Removing a wiring leaves it: what was there before is not known, and per-link values go with the link.
    """

    key: str
    value: str
    kind: Literal["sysctl"] = "sysctl"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBucket:
    """A tbf qdisc at the root of a link: what the link sends is shaped.

    :param rate: bytes per second.
    :param burst: bytes that may leave at once.
    :param limit: bytes that may wait.
    """

    dev: str
    rate: int
    burst: int
    limit: int
    kind: Literal["tbf"] = "tbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Clsact:
    """A clsact qdisc: where filters see what a link receives and sends.

    Removing a wiring leaves it: others may have hung their filters on it, and it goes with the link.
    """

    dev: str
    kind: Literal["clsact"] = "clsact"


@dataclass(frozen=True, kw_only=True, slots=True)
class Redirect:
    """What would leave by ``dev`` for ``dst`` is received from ``to`` instead, as if it had come in there.

    ``dev`` needs a :class:`Clsact`. Of several that match the longest prefix wins.
    """

    dev: str
    dst: IPNetwork
    to: str
    kind: Literal["redirect"] = "redirect"


@dataclass(frozen=True, kw_only=True, slots=True)
class VlanPush:
    """What leaves by ``dev`` with the source address ``src`` gets the VLAN tag ``vid``, from 1 to 4094.

    ``dev`` needs a :class:`Clsact`.
    """

    dev: str
    src: IPAddress
    vid: int
    kind: Literal["vlan-push"] = "vlan-push"


@dataclass(frozen=True, kw_only=True, slots=True)
class VlanPop:
    """What comes in by ``dev`` with a VLAN tag loses it, and is then as if it had none.

    ``dev`` needs a :class:`Clsact`.
    """

    dev: str
    kind: Literal["vlan-pop"] = "vlan-pop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Masquerade:
    """Source NAT to the node's address for packets from ``src`` to anywhere but ``exclude``.

    Kept in nftables, in a table of our own; only ``node`` may hold it. Of ``exclude`` it keeps what matters,
    in one spelling: two that do the same are equal.
    """

    src: IPNetwork
    exclude: tuple[IPNetwork, ...] = ()
    kind: Literal["masquerade"] = "masquerade"

    def __post_init__(self) -> None:
        family = IPv4Network if self.src.version == 4 else IPv6Network
        relevant = [network for network in self.exclude if isinstance(network, family)]
        object.__setattr__(self, "exclude", tuple(collapse_addresses(relevant)))


WiringObject: TypeAlias = (
    Veth
    | MoveLink
    | Ipvlan
    | LinkUp
    | Address
    | Route
    | Rule
    | Neighbor
    | Sysctl
    | TokenBucket
    | Clsact
    | Redirect
    | VlanPush
    | VlanPop
    | Masquerade
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wiring:
    """Everything one attachment needs from the kernel.

    The engine knows which kinds must precede which (links, sysctls, addresses, neighbours, routes, rules,
    queues, filters); within a kind the order is the one given here.
    """

    node: tuple[WiringObject, ...] = ()
    host: tuple[WiringObject, ...] = ()
    pod: tuple[WiringObject, ...] = ()


def describe(obj: WiringObject) -> str:
    """One line in the words of ``ip``, ``tc`` and ``sysctl``, for people and error messages."""
    match obj:
        case Veth():
            return f"veth {obj.name} mac {obj.mac} mtu {obj.mtu} peer {obj.peer} mac {obj.peer_mac}"
        case MoveLink():
            return f"link with mac {obj.mac} moved into the pod as {obj.name} mtu {obj.mtu}"
        case Ipvlan():
            noarp = "" if obj.arp else " noarp"
            return f"ipvlan {obj.name} link {obj.parent} mode l2 mtu {obj.mtu}{noarp}"
        case LinkUp():
            return f"link {obj.dev} up" + (f" mtu {obj.mtu}" if obj.mtu else "")
        case Address():
            return f"address {obj.address} dev {obj.dev}"
        case Route():
            via = f" via {obj.via}" if obj.via else ""
            table = "" if obj.table == MAIN_TABLE else f" table {obj.table}"
            # Of ip's "default" one cannot tell the family.
            dst = "default" if obj.dst == ip_network("0.0.0.0/0") else str(obj.dst)
            return f"route {dst}{via} dev {obj.dev}{table}"
        case Rule():
            selectors = "".join(
                f" {word} {value}"
                for word, value in (
                    ("from", obj.src),
                    ("to", obj.dst),
                    ("iif", obj.iif),
                    ("oif", obj.oif),
                )
                if value
            )
            if obj.family == 6 and not (obj.src or obj.dst):
                selectors = f" ipv6{selectors}"
            action = "blackhole" if obj.blackhole else f"lookup {obj.table}"
            return f"rule {obj.priority}:{selectors} {action}"
        case Neighbor():
            return f"neighbour {obj.address} lladdr {obj.mac} dev {obj.dev} permanent"
        case Sysctl():
            return f"sysctl net/{obj.key} = {obj.value}"
        case TokenBucket():
            return f"tbf dev {obj.dev} rate {obj.rate} B/s burst {obj.burst} limit {obj.limit}"
        case Clsact():
            return f"clsact dev {obj.dev}"
        case Redirect():
            return f"redirect {obj.dst} from {obj.dev} egress to {obj.to or 'a lost link'} ingress"
        case VlanPush():
            return f"vlan {obj.vid} pushed onto what {obj.src} sends by {obj.dev}"
        case VlanPop():
            return f"vlan popped from what comes in by {obj.dev}"
        case Masquerade():
            exclude = ", ".join(map(str, obj.exclude))
            return f"masquerade from {obj.src}" + (f" except to {exclude}" if exclude else "")
